import pytest
import tensorflow_datasets as tfds
from small_sets import write_category

from zsad_jax import data
from zsad_jax.data import builders, catalog


@pytest.fixture
def manual(tmp_path):
  root = tmp_path / 'manual'
  write_category(root / 'mvtec_ad' / 'toothbrush', {'defective': 2})
  write_category(root / 'mvtec_ad' / 'grid', {'bent': 1, 'thread': 1}, mode='L')
  return root


def test_tfds_prepares_it_with_citation_licence_and_description(manual, tmp_path):
  builder = builders.published('mvtec_ad')(data_dir=tmp_path / 'data')
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual))
  assert builder.name == 'mvtec_ad'
  assert {k: s.num_examples for k, s in builder.info.splits.items()} == {'train': 4, 'test': 8}
  assert builder.info.features['category'].names == list(catalog.CATALOG['mvtec_ad'].categories)
  assert builder.info.metadata['object_names']['metal_nut'] == 'metal nut'
  assert builder.info.metadata['textures'] == ['carpet', 'grid', 'leather', 'tile', 'wood']
  assert 'CC BY-NC-SA' in str(builder.info.as_json) and 'bergmann2019mvtec' in builder.info.citation
  assert '5,354 images' in builder.info.description


def test_differing_counts_are_noted_with_both_numbers(manual, tmp_path):
  dataset = data.load('mvtec_ad', root=tmp_path / 'data', manual_dir=manual)
  text = '\n'.join(dataset.notes)
  assert 'bottle: category folder is missing' in text
  assert 'bottle: no images, published 209 train, 20 test normal, 63 test anomalous' in text
  assert '... and ' in text


def test_missing_categories_are_listed_as_empty(manual, tmp_path):
  dataset = data.load('mvtec_ad', root=tmp_path / 'data', manual_dir=manual)
  assert len(dataset.categories) == 15 and len(dataset) == 8
  assert {dataset.categories[c] for c in dataset.category_index} == {'grid', 'toothbrush'}
  assert "bottle: no images in split 'test'" in dataset.notes
  assert dataset.object_names['metal_nut'] == 'metal nut'


def test_missing_masks_are_an_error(manual, tmp_path):
  (manual / 'mvtec_ad' / 'grid' / 'ground_truth').rename(manual / 'elsewhere')
  with pytest.raises(ValueError, match='no mask'):
    data.load('mvtec_ad', root=tmp_path / 'data', manual_dir=manual)


def test_a_missing_archive_is_an_error_with_instructions(tmp_path):
  with pytest.raises(FileNotFoundError, match='downloaded by hand') as e:
    data.load('mvtec_ad', root=tmp_path / 'data')
  assert str(tmp_path / 'data' / 'downloads' / 'manual') in str(e.value)
