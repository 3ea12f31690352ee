import pytest
import tensorflow_datasets as tfds
from small_sets import write_category

from zsad_jax import data
from zsad_jax.data import catalog
from zsad_jax.data.mvtec_ad import mvtec_ad_dataset_builder as mvtec_ad


@pytest.fixture
def manual(tmp_path):
  root = tmp_path / 'manual'
  write_category(root / 'mvtec_ad' / 'toothbrush', {'defective': 2})
  write_category(root / 'mvtec_ad' / 'grid', {'bent': 1, 'thread': 1}, mode='L')
  return root


def test_the_tfds_way_to_prepare(manual, tmp_path):
  made = mvtec_ad.Builder(data_dir=tmp_path / 'data')
  made.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual))
  assert made.name == 'mvtec_ad'
  assert {k: s.num_examples for k, s in made.info.splits.items()} == {'train': 4, 'test': 8}
  assert made.info.features['category'].names == list(catalog.CATALOG['mvtec_ad'].categories)
  assert made.info.metadata['object_names']['metal_nut'] == 'metal nut'
  assert made.info.metadata['textures'] == ['carpet', 'grid', 'leather', 'tile', 'wood']
  assert 'CC BY-NC-SA' in str(made.info.as_json) and 'bergmann2019mvtec' in made.info.citation
  assert '5354 images' in made.info.description


def test_counts_that_differ_are_told_with_both_numbers(manual, tmp_path):
  dataset = data.load('mvtec_ad', root=tmp_path / 'data', manual_dir=manual)
  text = '\n'.join(dataset.notes)
  assert 'bottle: category folder is missing' in text
  assert 'bottle: no images, published 209 train, 20 test normal, 63 test anomalous' in text
  assert '... and ' in text


def test_all_categories_are_there_the_absent_ones_empty(manual, tmp_path):
  dataset = data.load('mvtec_ad', root=tmp_path / 'data', manual_dir=manual)
  assert len(dataset.categories) == 15 and len(dataset) == 8
  assert {dataset.categories[c] for c in dataset.category_index} == {'grid', 'toothbrush'}
  assert "bottle: no images in split 'test'" in dataset.notes
  assert dataset.object_names['metal_nut'] == 'metal nut'


def test_absent_masks_are_an_error_not_a_label_only_set(manual, tmp_path):
  (manual / 'mvtec_ad' / 'grid' / 'ground_truth').rename(manual / 'elsewhere')
  with pytest.raises(ValueError, match='no mask'):
    data.load('mvtec_ad', root=tmp_path / 'data', manual_dir=manual)


def test_without_the_archive_the_error_says_how_to_get_it(tmp_path):
  with pytest.raises(FileNotFoundError, match='downloaded by hand') as e:
    data.load('mvtec_ad', root=tmp_path / 'data')
  assert str(tmp_path / 'data' / 'downloads' / 'manual') in str(e.value)
