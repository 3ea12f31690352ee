"""Features with and without a store are the same, and only missing images are encoded."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.clip.feature_spec import Features
from zsad_jax.engine import features, runtime
from zsad_jax.engine.feature_store import Store

COUNT, R = 13, 10  # masks that do not fill their last byte


def images(indices):
  return np.stack([np.random.default_rng(int(i)).normal(size=(R, R, 3)) for i in indices]).astype(np.float32)


def batches(indices, size=4):
  """Batches as those of the data pipeline: the last one padded with copies."""
  for start in range(0, len(indices), size):
    index, valid = features.padded(np.asarray(indices[start:start + size]), size)
    yield {'image': images(index), 'mask': (images(index)[..., 0] > 1).astype(np.uint8),
           'has_mask': index % 2 == 0, 'label': (index % 3 == 0).astype(np.int32), 'category': index // 5 % 3,
           'valid': valid, 'index': index.astype(np.int32), 'id': [f'bottle/{i:03d}' for i in index]}


def labelled(batch):
  return batch | {name: np.asarray(batch[name], np.int32) for name in ('category', 'label')}


def all_batches(indices):
  return (labelled(batch) for batch in batches(indices))


@jax.jit
def encode(params, x):
  tokens = jnp.tanh(x.reshape(x.shape[0], 4, -1) * params['w'])
  return Features(tokens.mean(1), {'clip/2/block': tokens, 'vv/2/block': tokens + 1})


PARAMS = {'w': np.float32(.5)}
SHAPES = jax.eval_shape(encode, PARAMS, jax.ShapeDtypeStruct((1, R, R, 3), np.float32))


def opened(root, storage='float32'):
  return Store.open(root, key={'weights': 'x'}, count=COUNT, max_gb=1, shard_rows=3,
                             fields=features.fields(SHAPES, R, storage))


class CountingEncoder:
  """encode that counts its images."""

  def __init__(self):
    self.images = 0

  def __call__(self, params, x):
    self.images += len(x)
    return encode(params, x)


ONE = runtime.place(jax.devices()[:1])


def assert_same(one, two, atol=0.):
  (a, batch), (b, other) = one, two
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=0), a, b)
  for name in other:
    np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def require_the_same_from_a_store(root, place):
  """Asserts that features, masks and labels from a store equal those encoded without one."""
  store = features.fill(opened(root), all_batches, encode, PARAMS, place=place)
  streamed = list(features.encode_batches(all_batches(np.arange(COUNT)), encode, PARAMS, place=ONE))
  assert len(streamed) == 4
  for start, one in zip(range(0, COUNT, 4), streamed):
    rows, valid = features.padded(np.arange(start, min(start + 4, COUNT)), 4)
    values, batch = features.load(store, rows)
    assert batch['mask'].dtype == np.uint8 and batch['mask'].shape == (4, R, R) and batch['valid'].all()
    assert_same(one, (values, batch | {'valid': valid}), atol=1e-6)


def test_stored_features_equal_those_without_a_store(tmp_path):
  require_the_same_from_a_store(tmp_path, ONE)


def test_load_keeps_the_order_of_the_indices(tmp_path):
  store = features.fill(opened(tmp_path), all_batches, encode, PARAMS)
  got, batch = features.load(store, [12, 0, 7])
  assert batch['id'] == ['bottle/012', 'bottle/000', 'bottle/007'] and batch['valid'].all()
  np.testing.assert_allclose(got.taps['vv/2/block'], encode(PARAMS, images([12, 0, 7])).taps['vv/2/block'],
                             atol=1e-6)
  np.testing.assert_array_equal(got.cls.shape, (3, 75))


def test_only_missing_images_are_encoded(tmp_path):
  first = CountingEncoder()
  store = features.fill(opened(tmp_path), all_batches, first, PARAMS, place=ONE)
  assert first.images == 16  # 13, the last batch padded
  os.truncate(store.path / '00002.shard', 10)
  again = CountingEncoder()
  repaired = features.fill(opened(tmp_path), all_batches, again, PARAMS, place=ONE)
  assert again.images == 4 and repaired.complete  # images 6, 7, 8 and padding
  np.testing.assert_array_equal(features.load(repaired, [7])[0].cls, features.load(store, [7])[0].cls)
  third = CountingEncoder()
  features.fill(opened(tmp_path), all_batches, third, PARAMS, place=ONE)
  assert third.images == 0


def test_a_flipped_bit_is_encoded_again(tmp_path):
  store = features.fill(opened(tmp_path), all_batches, encode, PARAMS)
  data = bytearray((store.path / '00001.shard').read_bytes())
  data[5] ^= 1
  (store.path / '00001.shard').write_bytes(data)
  again = CountingEncoder()
  features.fill(opened(tmp_path), all_batches, again, PARAMS, place=ONE)
  assert again.images == 4


def test_a_bfloat16_store_is_close_and_half_as_large(tmp_path):
  exact = features.fill(opened(tmp_path), all_batches, encode, PARAMS)
  half = features.fill(opened(tmp_path, 'bfloat16'), all_batches, encode, PARAMS)
  assert_same(features.load(exact, range(COUNT)), features.load(half, range(COUNT)), atol=2 ** -7)
  assert half.predicted_bytes < .6 * exact.predicted_bytes


def test_unknown_dtype_is_refused():
  with pytest.raises(ValueError, match=r"feature_dtype='float16' .* float32, bfloat16"):
    features.fields(SHAPES, R, 'float16')


def test_a_store_without_class_token(tmp_path):
  patches_only = jax.jit(lambda params, x: Features(None, encode(params, x).taps))
  shapes = jax.eval_shape(patches_only, PARAMS, jax.ShapeDtypeStruct((1, R, R, 3), np.float32))
  store = Store.open(tmp_path, key={}, count=COUNT, max_gb=1, fields=features.fields(shapes, R))
  features.fill(store, all_batches, patches_only, PARAMS)
  assert features.load(store, [1])[0].cls is None


def test_windows_are_stored_by_their_size(tmp_path):
  def windowed(params, x):
    out = encode(params, x)
    return out._replace(taps={}, windows={10: out.taps['vv/2/block'], 2: out.taps['clip/2/block'][:, :3]})

  shapes = jax.eval_shape(windowed, PARAMS, jax.ShapeDtypeStruct((1, R, R, 3), np.float32))
  fields = features.fields(shapes, R)
  assert {name for name in fields if '/' in name} == {'windows/10', 'windows/2'}
  store = Store.open(tmp_path, key={}, count=COUNT, max_gb=1, fields=fields)
  features.fill(store, all_batches, jax.jit(windowed), PARAMS)
  got, _ = features.load(store, [3, 1])
  want = windowed(PARAMS, images([3, 1]))
  assert got.taps == {} and set(got.windows) == {2, 10}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)


def test_crops_are_stored_without_other_features(tmp_path):
  cropped = jax.jit(lambda params, x: Features(None, {}, crops=encode(params, x).taps['vv/2/block']))
  fields = features.fields(jax.eval_shape(cropped, PARAMS, jax.ShapeDtypeStruct((1, R, R, 3), np.float32)), R)
  assert fields['crops'] == ((4, 75), 'float32') and 'cls' not in fields
  store = Store.open(tmp_path, key={}, count=COUNT, max_gb=1, fields=fields)
  features.fill(store, all_batches, cropped, PARAMS)
  got, _ = features.load(store, [3, 1])
  assert got.cls is None and got.taps == {} and got.windows == {}
  np.testing.assert_allclose(got.crops, cropped(PARAMS, images([3, 1])).crops, atol=1e-6)


def test_a_pipeline_that_leaves_out_images_is_an_error(tmp_path):
  with pytest.raises(RuntimeError, match='4 images are still missing'):
    features.fill(opened(tmp_path), lambda indices: all_batches(indices[:9]), encode, PARAMS)
  assert len(opened(tmp_path).missing()) == 4


def test_an_error_while_reading_keeps_finished_shards(tmp_path):
  def broken(indices):
    yield from (batch for batch, _ in zip(all_batches(indices), range(3)))
    raise OSError('image file is truncated')

  with pytest.raises(OSError, match='image file is truncated'):
    features.fill(opened(tmp_path), broken, encode, PARAMS)
  assert 0 < len(opened(tmp_path).missing()) < COUNT


PROCESS = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from zsad_jax.engine import runtime
runtime.initialize(True, coordinator_address=sys.argv[2], num_processes=2, process_id=int(sys.argv[3]))
import json
import test_features as t
encode = t.CountingEncoder()
store = t.features.fill(t.opened(sys.argv[1]), t.all_batches, encode, t.PARAMS)
print("got", json.dumps([encode.images, store.complete, store.ids]))
"""


@pytest.mark.multiprocess
def test_two_processes_share_the_work(tmp_path):
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    address = f'localhost:{probe.getsockname()[1]}'
  both = [subprocess.Popen([sys.executable, '-c', PROCESS, str(tmp_path), address, str(i)], stdout=subprocess.PIPE)
          for i in range(2)]
  lines = [next(line for line in process.communicate(timeout=120)[0].splitlines() if line.startswith(b'got'))
           for process in both]
  outputs = [json.loads(line[3:]) for line in lines]
  assert [process.returncode for process in both] == [0, 0]
  assert [output[0] for output in outputs] == [8, 8]  # shards 0, 2, 4: 7 images; shards 1, 3: 6; padded
  names = [f'bottle/{i:03d}' for i in range(COUNT)]
  assert all(output[1:] == [True, names] for output in outputs)
  np.testing.assert_allclose(features.load(opened(tmp_path), range(COUNT))[0].cls,
                             encode(PARAMS, images(range(COUNT))).cls, atol=1e-6)


@pytest.mark.multiprocess
def test_a_killed_encoder_is_resumed(tmp_path):
  slow = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
          'import time, test_features as t\n'
          'def slowly(indices):\n'
          '  for batch in t.all_batches(indices):\n'
          '    print(len(list(t.Path(sys.argv[1]).rglob("*.shard"))), flush=True); time.sleep(.05); yield batch\n'
          't.features.fill(t.opened(sys.argv[1]), slowly, t.encode, t.PARAMS)')
  process = subprocess.Popen([sys.executable, '-c', slow, str(tmp_path)], stdout=subprocess.PIPE)
  while process.stdout.readline() in (b'0\n', b''):
    pass
  process.send_signal(signal.SIGKILL)
  process.wait()
  process.stdout.close()
  left = len(opened(tmp_path).missing())
  again = CountingEncoder()
  features.fill(opened(tmp_path), all_batches, again, PARAMS, place=ONE)
  assert 0 < left < COUNT and again.images == -(-left // 4) * 4
