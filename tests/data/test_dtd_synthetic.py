import pytest
from small_sets import assert_aligned, picture, write, write_category

from zsad_jax import data
from zsad_jax.data import builders, catalog


@pytest.fixture
def archive(tmp_path):
  """Two of the twelve textures: PNG with masks named <stem>_mask, JPEG with masks named like the image."""
  root = tmp_path / 'manual' / 'dtd_synthetic' / 'DTD-Synthetic'
  write_category(root / 'Woven_001', {'bad': 2}, size=(21, 13))
  block = (8, 0, 16, 8)
  write(root / 'Mesh_114' / 'test' / 'good' / '000.jpg', picture())
  write(root / 'Mesh_114' / 'test' / 'bad' / '000.jpg', picture(block))
  write(root / 'Mesh_114' / 'ground_truth' / 'bad' / '000.png', picture(block, mode='L'))
  return root


def load(tmp_path, **options):
  return data.load('dtd_synthetic', root=tmp_path / 'data', manual_dir=tmp_path / 'manual', **options)


def test_prepares_and_reads(archive, tmp_path):
  dataset = load(tmp_path)
  assert dataset.ids == ['Mesh_114/test/bad/000', 'Mesh_114/test/good/000', 'Woven_001/test/bad/000',
                         'Woven_001/test/bad/001', 'Woven_001/test/good/000', 'Woven_001/test/good/001']
  assert dataset.labels.tolist() == [1, 0, 1, 1, 0, 0]
  for record in dataset:
    assert_aligned(record)
  assert dataset.object_names['Woven_001'] == 'woven texture' and len(dataset.categories) == 12
  assert len(load(tmp_path, split='train')) == 2


def test_counts_are_compared_with_the_published_sums(archive, tmp_path):
  notes = load(tmp_path).notes
  assert [n for n in notes if ', published' in n] == ['in total: 3 test normal images, published 357',
                                                    'in total: 3 test anomalous images, published 947']
  assert sum('category folder is missing' in n for n in builders.published('dtd_synthetic').scan(archive).notes) == 10
  assert all(c.texture for c in catalog.CATALOG['dtd_synthetic'].categories.values())


def test_categories_in_another_layout_are_refused_with_their_content(archive, tmp_path):
  for name in ('Blotchy_099', 'Fibrous_183'):
    write(archive / name / 'images' / '000.png', picture())
    write(archive / name / 'masks' / '000.png', picture(mode='L'))
  with pytest.raises(ValueError, match=r'2 problem\(s\)') as e:
    load(tmp_path)
  holds = 'neither train nor test in it. It holds images/ (1 files), masks/ (1 files)'
  assert f'{archive / "Blotchy_099"}: {holds}' in str(e.value)


def test_a_data_set_in_another_layout_is_refused_with_its_content(archive, tmp_path):
  for name in ('Mesh_114', 'Woven_001'):
    for part in list((archive / name).iterdir()):
      part.rename(part.with_name(f'{part.name}_images'))
  with pytest.raises(FileNotFoundError, match=r'no folder in MVTec layout.*found: Mesh_114, Woven_001') as e:
    load(tmp_path)
  holds = f'{archive / "Mesh_114"} holds ground_truth_images/ (0 files), ground_truth_images/bad/ (1 files)'
  assert holds in str(e.value)


def test_a_damaged_image_is_named(archive, tmp_path):
  bad = archive / 'Mesh_114' / 'test' / 'good' / '000.jpg'
  bad.write_bytes(bad.read_bytes()[:100])
  with pytest.raises(ValueError, match=str(bad)):
    load(tmp_path)


def test_missing_and_extra_masks_are_named(archive):
  masks = archive / 'Woven_001' / 'ground_truth' / 'bad'
  (masks / '000_mask.png').rename(masks / '005_mask.png')
  problems = builders.published('dtd_synthetic').scan(archive).problems
  assert len(problems) == 2 and f'no mask {masks / "000_mask"}' in problems[0]
  assert f'{masks / "005_mask.png"}: mask without an image' in problems[1]
