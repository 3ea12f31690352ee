import numpy as np
import pytest
from medical_sets import marks, write_pairs, write_plain

from zsad_jax import data


@pytest.fixture
def root(tmp_path):
  """The composed set, its normal images by class: two of the colon, one of the upper tract, one of no normal class."""
  root = tmp_path / 'manual' / 'colon_ad'
  write_pairs(root / 'CVC-ColonDB', 'images/{}.png', 'masks/{}.png', ['10', '2'])
  for name in ('cecum', 'bbps-2-3', 'pylorus', 'polyps'):
    write_plain(root / 'normal' / name, [f'{name}-a.jpg'])
  return root


def load(tmp_path, name='colon_ad', **options):
  return data.load(name, root=tmp_path / 'data', manual_dir=tmp_path / 'manual', **options)


def test_all_images_are_in_split_test(root, tmp_path):
  dataset = load(tmp_path)                       # split='test', the default of the launcher too
  assert dataset.ids == ['colon/test/good/bbps-2-3-a', 'colon/test/good/cecum-a', 'colon/test/polyp/10',
                         'colon/test/polyp/2']
  for record, i in zip(dataset, (None, None, 0, 1)):
    expected = np.zeros_like(record['mask'], bool) if i is None else marks(i)
    np.testing.assert_array_equal(record['mask'], expected * np.uint8(255))
    assert record['has_mask'] and record['label'] == (i is not None)
  assert dataset.notes == [
    f'{root}/normal/polyps: unexpected folder, ignored', 'colon: 2 test normal images, published 163',
    'colon: 2 test anomalous images, published 380']
  with pytest.raises(ValueError, match="no images in split 'train'; it has test"):
    load(tmp_path, split='train')


def test_the_configuration_says_which_classes_are_normal(root, tmp_path):
  assert load(tmp_path, 'colon_ad/colon').ids == load(tmp_path).ids
  tract = load(tmp_path, 'colon_ad/tract')
  assert 'colon/test/good/pylorus-a' in tract.ids and len(tract) == 5
  assert tract.fingerprint != load(tmp_path).fingerprint


def test_images_directly_in_normal_are_all_normal(root, tmp_path):
  for path in sorted((root / 'normal').iterdir()):
    (path / f'{path.name}-a.jpg').rename(root / 'normal' / f'{path.name}-a.jpg')
    path.rmdir()
  assert load(tmp_path).labels.tolist() == [0, 0, 0, 0, 1, 1]


def test_missing_normal_images_are_refused(root, tmp_path):
  for name in ('cecum', 'bbps-2-3'):
    (root / 'normal' / name / f'{name}-a.jpg').unlink()
    (root / 'normal' / name).rmdir()
  with pytest.raises(ValueError, match='normal: no normal image in it or in its folders bbps-2-3, cecum'):
    load(tmp_path)
  (root / 'normal').rename(tmp_path / 'away')
  with pytest.raises(ValueError, match='normal: folder is missing'):
    load(tmp_path)


def test_missing_masks_and_polyps_are_refused(root, tmp_path):
  (root / 'CVC-ColonDB' / 'masks' / '2.png').unlink()
  with pytest.raises(ValueError, match=r'images/2\.png: no mask'):
    load(tmp_path)
  (root / 'CVC-ColonDB').rename(tmp_path / 'away')
  with pytest.raises(ValueError, match='CVC-ColonDB/images: folder is missing'):
    load(tmp_path)
