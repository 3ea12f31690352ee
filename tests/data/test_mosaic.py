"""Mosaics: four tiled records with their masks; the draw is a function of seed and position."""

import collections

import numpy as np
import pytest
from PIL import Image

from zsad_jax import data
from zsad_jax.data.mosaic import Mosaics, tile

SIZE = 24


def record(number, *, size=(6, 4), label=0, category='nut', has_mask=True):
  """A record whose image is of one grey, with a mask in its upper left pixel if it is anomalous."""
  mask = np.zeros(size[::-1], np.uint8)
  mask[0, 0] = 255 * label
  return {'id': f'{category}/{number}', 'image': Image.new('RGB', size, (10 * number,) * 3), 'mask': mask,
          'has_mask': has_mask, 'label': label, 'category': category, 'object_name': category,
          'defect_type': 'bent' if label else 'good'}


class Records:
  """A data set of two categories: 0 has six good records and one bent, 1 has one good record."""
  name, categories = 'records', ('nut', 'grid')
  category_index = np.array([0] * 7 + [1], np.int32)
  defect_types = ['good'] * 6 + ['bent'] + ['good']

  def __len__(self):
    return 8

  def __getitem__(self, i):
    return record(i, label=int(self.defect_types[i] == 'bent'), category=self.categories[self.category_index[i]])

  def __repr__(self):
    return 'Records'


def test_four_records_are_tiled_in_reading_order():
  mosaic = tile([record(1), record(2, label=1), record(3), record(4, label=1)])
  grey = np.asarray(mosaic['image'])[..., 0]
  assert grey.shape == mosaic['mask'].shape == (8, 12) and mosaic['image'].mode == 'RGB'
  np.testing.assert_array_equal(grey, np.repeat(np.repeat([[10, 20], [30, 40]], 4, 0), 6, 1))
  assert mosaic['mask'].dtype == np.uint8 and np.argwhere(mosaic['mask']).tolist() == [[0, 6], [4, 6]]
  assert mosaic['mask'].max() == 255 and mosaic['label'] == 1 and mosaic['id'] == 'nut/1+nut/2+nut/3+nut/4'
  assert tile([record(i) for i in range(4)])['label'] == 0


def test_other_sizes_are_resized_to_the_first_and_masks_stay_binary():
  mosaic = tile([record(1), record(2, size=(12, 8), label=1), record(3, size=(3, 2)), record(4)])
  assert mosaic['image'].size == (12, 8) and set(np.unique(mosaic['mask'])) <= {0, 255}
  np.testing.assert_array_equal(np.asarray(mosaic['image'])[:4, 6:], np.full((4, 6, 3), 20))


def test_has_mask_needs_all_four_masks():
  assert not tile([record(1), record(2), record(3, has_mask=False), record(4)])['has_mask']
  assert tile([record(i) for i in range(4)])['has_mask']


def test_invalid_mosaics_are_refused():
  with pytest.raises(ValueError, match='4 images, not 3'):
    tile([record(i) for i in range(3)])
  with pytest.raises(ValueError, match='one category, not of grid, nut'):
    tile([record(0), record(1, category='grid'), record(2), record(3)])
  with pytest.raises(ValueError, match=r'probability of a mosaic is 1\.5'):
    Mosaics(Records(), probability=1.5, seed=0, epochs=1)


def test_mosaics_draw_a_defect_type_then_a_record():
  mosaics = Mosaics(Records(), probability=0.2, seed=0, epochs=250)
  ids = [mosaics[i]['id'] for i in range(len(mosaics)) if mosaics.category_index[i] == 0]
  share = np.mean(['+' in i for i in ids])
  assert share == pytest.approx(0.2, abs=0.04)  # 1750 draws: four standard deviations
  pieces = collections.Counter(piece for i in ids if '+' in i for piece in i.split('+'))
  assert set(pieces) == {f'nut/{i}' for i in range(7)}
  # Half of the pieces are the one bent record, for its type is half of the types.
  assert pieces['nut/6'] / sum(pieces.values()) == pytest.approx(0.5, abs=0.06)


def test_probability_0_and_1_give_no_and_only_mosaics():
  never, always = (Mosaics(Records(), probability=p, seed=0, epochs=2) for p in (0, 1))
  assert [never[i]['id'] for i in range(16)] == [Records()[i % 8]['id'] for i in range(16)]
  assert all('+' in always[i]['id'] for i in range(16))
  assert always[7]['id'] == 'grid/7+grid/7+grid/7+grid/7' and always[7]['category'] == 'grid'


def test_draws_depend_on_seed_and_position_alone_and_differ_between_epochs():
  make = lambda seed: Mosaics(Records(), probability=1, seed=seed, epochs=2)
  ids = lambda mosaics, order: {i: mosaics[i]['id'] for i in order}
  assert ids(make(0), range(16)) == ids(make(0), reversed(range(16)))
  assert ids(make(0), range(16)) != ids(make(1), range(16))
  assert [make(0)[i]['id'] for i in range(7)] != [make(0)[i + 8]['id'] for i in range(7)]


def test_positions_beyond_the_epochs_are_refused():
  with pytest.raises(IndexError, match='record 16 of 16'):
    Mosaics(Records(), probability=1, seed=0, epochs=2)[16]


def test_batches_read_mosaics():
  squash = lambda image: np.asarray(image.resize((SIZE, SIZE), Image.Resampling.NEAREST), np.float32)
  mosaics = Mosaics(Records(), probability=1, seed=0, epochs=2)
  batch = next(data.batches(mosaics, transform=squash, mask_size=SIZE, batch_size=3, indices=[0, 15, 9], threads=0))
  assert batch['index'].tolist() == [0, 15, 9] and batch['category'].tolist() == [0, 1, 0]
  for row, i in enumerate((0, 15, 9)):
    assert batch['id'][row] == mosaics[i]['id']
    np.testing.assert_array_equal(batch['image'][row], squash(mosaics[i]['image']))
    assert batch['mask'][row].any() == mosaics[i]['mask'].any()
