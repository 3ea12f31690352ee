import numpy as np
import pytest
from PIL import Image
from small_sets import assert_aligned, picture, write

from zsad_jax import data
from zsad_jax.data import builders, catalog

KINDS = {'01': ('bmp', 'png'), '02': ('png', 'png'), '03': ('bmp', 'bmp')}      # of images, of masks


@pytest.fixture
def archive(tmp_path):
  """Three products with one training, two normal and two anomalous images each; both kinds share their stems."""
  root = tmp_path / 'manual' / 'btad' / 'BTech_Dataset_transformed'
  for product, (image, mask) in KINDS.items():
    write(root / product / 'train' / 'ok' / f'0000.{image}', picture())
    for i in range(2):
      block = (3 + i, 2, 14, 9)
      write(root / product / 'test' / 'ok' / f'000{i}.{image}', picture())
      write(root / product / 'test' / 'ko' / f'000{i}.{image}', picture(block))
      write(root / product / 'ground_truth' / 'ko' / f'000{i}.{mask}', picture(block, mode='L'))
  return root


def load(tmp_path, **options):
  return data.load('btad', root=tmp_path / 'data', manual_dir=tmp_path / 'manual', **options)


def test_prepares_and_reads(archive, tmp_path):
  dataset = load(tmp_path)
  assert dataset.ids[:4] == ['01/test/good/0000', '01/test/good/0001', '01/test/ko/0000', '01/test/ko/0001']
  assert dataset.labels.tolist() == [0, 0, 1, 1] * 3
  assert dataset.categories == ('01', '02', '03') and set(dataset.object_names.values()) == {'object'}
  for record in dataset:
    assert_aligned(record)
  assert len(load(tmp_path, split='train')) == 3


def test_bmp_is_stored_as_png_with_the_same_pixels(archive, tmp_path):
  stored = load(tmp_path)[2]['image']
  assert (archive / '01' / 'test' / 'ko' / '0000.bmp').is_file() and stored.format == 'PNG'
  original = Image.open(archive / '01' / 'test' / 'ko' / '0000.bmp')
  np.testing.assert_array_equal(np.asarray(stored), np.asarray(original))


def test_only_the_sums_are_compared_with_the_published_ones(archive, tmp_path):
  published = [n for n in load(tmp_path).notes if ', published' in n]
  assert published == ['in total: 3 train images, published 1,799', 'in total: 6 test normal images, published 451',
                       'in total: 6 test anomalous images, published 290']
  entry = catalog.CATALOG['btad']
  assert (entry.normal, entry.anomalous) == (451, 290)


def test_normal_images_may_be_in_good(archive, tmp_path):
  before = load(tmp_path).ids
  for product in KINDS:
    for split in ('train', 'test'):
      (archive / product / split / 'ok').rename(archive / product / split / 'good')
  assert load(tmp_path).ids == before


def test_missing_and_unknown_categories_are_noted(archive, tmp_path):
  (archive / '02').rename(archive / '04')
  notes = load(tmp_path).notes
  assert any('02: category folder is missing' in n for n in notes)
  assert any('04: not a category' in n for n in notes)


def test_one_stem_as_bmp_and_png_is_refused(archive, tmp_path):
  write(archive / '03' / 'test' / 'ok' / '0000.png', picture())
  with pytest.raises(ValueError, match=r'0000\.png: same name as 0000\.bmp'):
    load(tmp_path)


def test_a_damaged_image_is_named(archive, tmp_path):
  bad = archive / '01' / 'train' / 'ok' / '0000.bmp'
  bad.write_bytes(bad.read_bytes()[:30])
  with pytest.raises(ValueError, match=str(bad)):
    load(tmp_path)


def test_missing_and_extra_masks_are_named(archive):
  masks = archive / '03' / 'ground_truth' / 'ko'
  (masks / '0000.bmp').rename(masks / '0005.bmp')
  problems = builders.published('btad').scan(archive).problems
  assert len(problems) == 2 and 'test/ko/0000.bmp: no mask' in problems[0]
  assert f'{masks / "0005.bmp"}: mask without an image' in problems[1]


def test_an_unknown_folder_of_images_needs_masks(archive, tmp_path):
  write(archive / '01' / 'test' / 'spare' / '0000.bmp', picture())
  with pytest.raises(ValueError, match=r'spare/0000\.bmp: no mask'):
    load(tmp_path)
