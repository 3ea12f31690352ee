import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from zsad_jax import data
from zsad_jax.data import pipeline

SIZE = 24


def squash(image):
  """The first channel says which pixels are white, by the same resize as the masks'."""
  return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float32)


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
  from small_sets import write_category
  root = tmp_path_factory.mktemp('pipeline')
  write_category(root / 'raw' / 'metal_nut', {'scratch': 2, 'bent': 1})
  write_category(root / 'raw' / 'grid', {'glue': 2}, mode='L')
  return data.load(f'folder:{root / "raw"}', root=root / 'data')


def read(dataset, batch_size=4, **options):
  return data.batches(dataset, transform=squash, mask_size=SIZE, batch_size=batch_size, **options)


def order(batches):
  return [int(i) for b in batches for i, v in zip(b['index'], b['valid']) if v]


def test_shapes_dtypes_and_padding(dataset):
  batches = list(read(dataset, threads=2))
  assert len(batches) == 3
  for b in batches:
    assert {k: (v.shape, v.dtype.name) for k, v in b.items() if k != 'id'} == {
      'image': ((4, SIZE, SIZE, 3), 'float32'), 'mask': ((4, SIZE, SIZE), 'uint8'), 'has_mask': ((4,), 'bool'),
      'label': ((4,), 'int32'), 'category': ((4,), 'int32'), 'valid': ((4,), 'bool'), 'index': ((4,), 'int32')}
    assert type(b['id']) is list and all(type(i) is str for i in b['id'])
  last = batches[-1]
  assert last['valid'].tolist() == [True, False, False, False]
  assert last['index'].tolist() == [8] * 4 and len(set(last['id'])) == 1
  np.testing.assert_array_equal(last['image'][0], last['image'][3])


def test_rows_equal_the_records(dataset):
  for b in read(dataset):
    for row, i in enumerate(b['index']):
      record = dataset[i]
      np.testing.assert_array_equal(b['image'][row], squash(record['image']))
      assert b['id'][row] == record['id'] and b['label'][row] == record['label']
      assert dataset.categories[b['category'][row]] == record['category']
      assert b['has_mask'][row] == record['has_mask']


def test_masks_stay_aligned_with_images(dataset):
  marked = 0
  for b in read(dataset):
    for image, mask, label, valid in zip(b['image'], b['mask'], b['label'], b['valid']):
      assert set(np.unique(mask)) <= {0, 1}
      if label:
        np.testing.assert_array_equal(image[..., 0] > 127, mask)
        marked += mask.any() and valid
      else:
        assert not mask.any()
  assert marked == 5


def test_batches_of_any_size(dataset):
  assert [len(b['id']) for b in read(dataset, 1)] == [1] * 9
  (b,) = read(dataset, 9)
  assert b['valid'].all()
  (b,) = read(dataset, 20)
  assert b['valid'].sum() == 9 and len(b['id']) == 20


@pytest.mark.parametrize('threads', [0, 1, 3, 8])
def test_order_does_not_depend_on_threads(dataset, threads):
  assert order(read(dataset, seed=5, epochs=3, threads=threads)) == order(read(dataset, seed=5, epochs=3))


def test_order_is_kept_without_a_seed(dataset):
  assert order(read(dataset, epochs=2)) == list(range(9)) * 2
  assert order(read(dataset, indices=[7, 2, 5])) == [7, 2, 5]


def test_epochs_are_complete_and_differ_in_order(dataset):
  epochs = np.reshape(order(read(dataset, seed=1, epochs=6)), (6, 9))
  assert all(sorted(e) == list(range(9)) for e in epochs.tolist())
  assert len({tuple(e) for e in epochs}) > 4


@given(seed=st.integers(0, 2**31), epochs=st.integers(1, 5), batch_size=st.integers(1, 12))
@settings(deadline=None, max_examples=4)
def test_an_epochs_order_is_a_function_of_seed_and_epoch(dataset, seed, epochs, batch_size):
  long = order(read(dataset, 4, seed=seed, epochs=5, threads=0))
  assert order(read(dataset, batch_size, seed=seed, epochs=epochs, threads=0)) == long[:9 * epochs]


def test_neighbouring_seeds_do_not_share_their_epochs(dataset):
  one = np.reshape(order(read(dataset, seed=1, epochs=6)), (6, 9)).tolist()
  two = np.reshape(order(read(dataset, seed=2, epochs=6)), (6, 9)).tolist()
  assert not {tuple(e) for e in one} & {tuple(e) for e in two}


@pytest.mark.parametrize('start', [0, 1, 3, 5, 6])
def test_start_resumes_with_exactly_the_remaining_batches(dataset, start):
  whole = list(read(dataset, seed=3, epochs=2))
  rest = list(read(dataset, seed=3, epochs=2, start=start))
  assert len(rest) == 6 - start
  assert [b['id'] for b in rest] == [b['id'] for b in whole[start:]]
  assert [b['valid'].tolist() for b in rest] == [b['valid'].tolist() for b in whole[start:]]


@pytest.mark.parametrize('hosts', [2, 3, 4])
def test_slices_for_hosts_lose_nothing(dataset, hosts):
  parts = [order(read(dataset, 2, indices=range(9)[h::hosts], seed=0)) for h in range(hosts)]
  assert sorted(i for part in parts for i in part) == list(range(9))


def test_no_indices_give_no_batches(dataset):
  assert list(read(dataset, indices=[], seed=0)) == []


@pytest.mark.parametrize('options,message', [
  ({'batch_size': 0}, 'batch_size is 0'), ({'epochs': 0}, 'epochs is 0'), ({'threads': -1}, 'threads is -1'),
  ({'indices': [9]}, 'indices: 9 is not a record'), ({'indices': [-1]}, 'indices: -1 is not a record'),
  ({'start': 4}, 'give 3 batches'), ({'start': -1}, 'start is -1')])
def test_numbers_out_of_range_are_refused(dataset, options, message):
  with pytest.raises(ValueError, match=message):
    read(dataset, **options)


def test_errors_in_threads_reach_the_caller(dataset):
  def broken(image):
    raise RuntimeError('no transform')
  with pytest.raises(RuntimeError, match='no transform'):
    next(data.batches(dataset, transform=broken, mask_size=SIZE, batch_size=2))


def test_only_a_few_records_are_read_ahead(dataset):
  calls, lock = [], threading.Lock()

  def count(image):
    with lock:
      calls.append(1)
    return squash(image)
  batches = data.batches(dataset, transform=count, mask_size=SIZE, batch_size=1, threads=1, epochs=50)
  next(batches)
  batches.close()
  assert len(calls) <= 6


def test_reading_does_not_import_tensorflow(dataset):
  next(read(dataset))
  assert 'tensorflow' not in sys.modules


@pytest.mark.parametrize('value,expected', [(127, 0), (128, 1)])
def test_masks_are_thresholded_above_one_half(value, expected):
  assert (pipeline.resize_mask(np.full((5, 7), value, np.uint8), 3) == expected).all()


def test_masks_are_resized_with_antialiasing_not_cropped():
  corner = np.zeros((100, 200), np.uint8)
  corner[:20, :40] = 255
  corner[-20:, -40:] = 255
  small = pipeline.resize_mask(corner, 10)
  assert small[0, 0] and small[-1, -1] and not small[0, -1] and not small[-1, 0]
  assert small.sum() == 2 * 2 * 2
  thin = np.zeros((100, 100), np.uint8)
  thin[5] = 255                        # one line of a hundred: picked up or lost by nearest, averaged away here
  assert not pipeline.resize_mask(thin, 10).any()


@given(seed=st.integers(0, 50), size=st.integers(1, 30))
@settings(deadline=None, max_examples=20)
def test_resize_equals_pillows_bilinear(seed, size):
  mask = (np.random.default_rng(seed).random((17, 29)) > 0.7).astype(np.uint8) * np.uint8(255)
  official = np.asarray(Image.fromarray(mask).resize((size, size), Image.BILINEAR), np.float32) / 255 > 0.5
  np.testing.assert_array_equal(pipeline.resize_mask(mask, size), official)
