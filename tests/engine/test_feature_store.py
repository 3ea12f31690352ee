"""Feature store: rows come back as written, and damaged, truncated or foreign shards are never used."""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from absl import logging
from hypothesis import given
from hypothesis import strategies as st

from zsad_jax.engine.feature_store import Store

COUNT, ROWS = 22, 4
FIELDS = {'cls': ((6,), 'float32'), 'tap': ((5, 6), 'bfloat16'), 'label': ((), 'int32'), 'has_mask': ((), 'bool'),
          'mask': ((9, 2), 'uint8')}
KEY = {'weights': 'ab' * 32, 'spec': (224, ('clip', 3)), 'data': 'cd'}


def content(indices):
  rng = [np.random.default_rng(int(i)) for i in indices]
  return {
    'cls': np.stack([r.normal(size=6) for r in rng]).astype(np.float32),
    'tap': np.stack([r.integers(-8, 8, (5, 6)) for r in rng]).astype(np.float32),  # exact in bfloat16
    'label': np.asarray(indices, np.int32), 'has_mask': np.asarray(indices) % 3 == 0,
    'mask': np.stack([r.integers(0, 256, (9, 2)) for r in rng]).astype(np.uint8)}


def opened(root, **changes):
  return Store.open(root, **{'key': KEY, 'count': COUNT, 'fields': FIELDS, 'max_gb': 1, 'shard_rows': ROWS} | changes)


def write(store, indices):
  store.write(indices, content(indices), [f'image {i}' for i in indices])


@pytest.fixture
def full(tmp_path):
  store = opened(tmp_path)
  write(store, np.arange(COUNT))
  return store


def assert_holds(store, indices):
  read = store.read(indices)
  for name, array in content(indices).items():
    np.testing.assert_array_equal(read[name], array, err_msg=name)
    assert read[name].dtype == array.dtype
  assert [store.ids[i] for i in indices] == [f'image {i}' for i in indices]


@given(st.lists(st.integers(0, COUNT - 1), max_size=40), st.permutations(range(COUNT)), st.integers(1, 9))
def test_rows_are_written_and_read_in_any_order(tmp_path_factory, wanted, order, size):
  root = tmp_path_factory.mktemp('store')
  store = opened(root)
  for start in range(0, COUNT, size):
    write(store, order[start:start + size])
  assert store.complete
  assert_holds(opened(root), np.array(wanted + [0]))
  assert store.read([])['tap'].shape == (0, 5, 6)


def test_bfloat16_rounds_once_and_halves_the_size(tmp_path):
  values = np.random.default_rng(0).normal(size=(3, 1000)).astype(np.float32)
  sizes = {}
  for dtype in ('float32', 'bfloat16'):
    store = opened(tmp_path, count=3, fields={'x': ((1000,), dtype)})
    store.write([0, 1, 2], {'x': values}, list('abc'))
    sizes[dtype] = store.predicted_bytes
    read = store.read([0, 1, 2])['x']
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, values, rtol=0 if dtype == 'float32' else 2 ** -8)
  assert sizes == {'float32': 12000, 'bfloat16': 6000}


def test_missing_images_are_whole_shards_in_order(tmp_path):
  store = opened(tmp_path)
  write(store, [8, 9, 10, 11, 20])  # a whole shard, half of the last
  np.testing.assert_array_equal(store.missing(), [*range(8), *range(12, COUNT)])
  assert not store.complete
  np.testing.assert_array_equal(opened(tmp_path).missing(), store.missing())
  with pytest.raises(IndexError, match='are not stored'):
    store.read([20])
  with pytest.raises(IndexError, match=r'22\.\.22 .* has 0\.\.21'):
    store.read([22])


def test_another_key_count_or_dtype_is_another_store(full, tmp_path):
  for change in ({'key': {**KEY, 'data': 'ce'}}, {'count': 21}, {'fields': FIELDS | {'cls': ((6,), 'bfloat16')}}):
    other = opened(tmp_path, **change)
    assert other.path != full.path and len(other.missing()) == other.count
  assert opened(tmp_path, key=dict(reversed(KEY.items()))).complete  # whatever the order of keys


def test_meta_json_holds_the_key_and_guards_the_folder(full, tmp_path):
  meta = full.path / 'meta.json'
  assert json.loads(meta.read_text())['key'] == json.loads(json.dumps(KEY))
  meta.write_text(meta.read_text().replace('cd', 'ce'))
  with pytest.raises(ValueError, match=r'meta\.json describes another feature store'):
    opened(tmp_path)


@pytest.mark.parametrize('key', [{'a': {1, 2}}, {'a': float('nan')}])
def test_key_must_be_json_able(tmp_path, key):
  with pytest.raises(ValueError, match='must be JSON-able'):
    opened(tmp_path, key=key)


def flip(path, at):
  data = bytearray(path.read_bytes())
  data[at] ^= 4
  path.write_bytes(data)


DAMAGE = {
  'first byte': lambda p: flip(p, 0), 'middle': lambda p: flip(p, 200), 'trailer': lambda p: flip(p, -40),
  'tail': lambda p: flip(p, -1), 'magic': lambda p: flip(p, -12), 'truncated': lambda p: os.truncate(p, 100),
  'one byte short': lambda p: os.truncate(p, p.stat().st_size - 1), 'empty': lambda p: os.truncate(p, 0),
  'longer': lambda p: p.write_bytes(p.read_bytes() + b'x'),
  'another place': lambda p: shutil.copy(p.with_name('00003.shard'), p), 'deleted': lambda p: p.unlink()}


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_shard_is_missing_and_written_again(full, tmp_path, monkeypatch, damage):
  DAMAGE[damage](full.path / '00001.shard')
  warnings = []
  monkeypatch.setattr(logging, 'warning', lambda text, *args: warnings.append(text % args))
  store = opened(tmp_path)
  store.verify()
  np.testing.assert_array_equal(store.missing(), [4, 5, 6, 7])
  assert len(warnings) == (damage != 'deleted')
  assert all('00001.shard is damaged' in text and '4 images' in text for text in warnings)
  assert store.ids[4:8] == [None] * 4
  store.refresh()  # the same file is not a new one
  assert len(store.missing()) == 4
  write(store, [4, 5, 6, 7])
  assert_holds(store, np.arange(COUNT))
  again = opened(tmp_path)
  again.verify()
  assert again.complete


def test_reading_a_damaged_shard_is_an_error(full, tmp_path):
  flip(full.path / '00001.shard', 50)
  store = opened(tmp_path)
  assert_holds(store, np.array([0, 21]))
  with pytest.raises(OSError, match='damaged feature shard'):
    store.read([5])
  np.testing.assert_array_equal(store.missing(), [4, 5, 6, 7])


def test_too_large_is_refused_before_anything_is_written(tmp_path):
  with pytest.raises(ValueError, match=r'2\.4 GB.*max_feature_gb=1\.5.*--config\.machine\.max_feature_gb=3'):
    opened(tmp_path / 'new', count=3, fields={'x': ((200, 10 ** 6), 'float32')}, max_gb=1.5)
  assert not (tmp_path / 'new').exists()


def test_a_complete_store_opens_under_any_limit(full, tmp_path):
  assert opened(tmp_path, max_gb=1e-9).complete


def test_too_little_space_is_refused_before_anything_is_written(tmp_path, monkeypatch):
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10, 9, 1))
  with pytest.raises(OSError, match=r'GB are free; .*--config.machine.feature_dir') as error:
    opened(tmp_path / 'new')
  assert error.value.errno == errno.ENOSPC and not (tmp_path / 'new').exists()


def test_a_folder_that_cannot_be_created(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match='to a writable folder'):
    opened(tmp_path / 'file' / 'root')


def test_a_full_disk_keeps_stored_shards(tmp_path, monkeypatch):
  store = opened(tmp_path)
  write(store, np.arange(8))

  def fsync(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', fsync)
    with pytest.raises(OSError, match=r'No space left on device.*8 of 22 images are stored') as error:
      write(store, np.arange(8, 12))
  assert error.value.errno == errno.ENOSPC
  assert not list(store.path.glob('.*.tmp'))
  store = opened(tmp_path)
  assert_holds(store, np.arange(8))
  assert len(store.missing()) == COUNT - 8


def test_a_complete_store_is_read_from_a_read_only_disk(full, tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))

  monkeypatch.setattr(os, 'replace', refuse)
  store = opened(tmp_path)
  store.verify()
  assert_holds(store, np.arange(COUNT))


@pytest.mark.parametrize('change, message', [
  ({'cls': np.zeros((4, 6), np.float64)}, 'cls is float64 .*float32'),
  ({'cls': np.zeros((4, 7), np.float32)}, r'cls is float32 \(4, 7\).*\(4, 6\)'),
  ({'label': np.zeros(4, np.int64)}, 'label is int64 .*int32'), ({'extra': np.zeros(4)}, 'extra'),
  ({'cls': np.array([[0.] * 6, [np.nan] * 6, [0.] * 6, [np.inf] * 6], np.float32)},
   'cls is NaN or infinite for b, d')])
def test_rows_that_do_not_fit_are_refused(tmp_path, change, message):
  store = opened(tmp_path)
  with pytest.raises(ValueError, match=message):
    store.write(range(4), content(range(4)) | change, list('abcd'))
  assert len(store.missing()) == COUNT


WRITER = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
import numpy as np, test_feature_store
store = test_feature_store.opened(sys.argv[1], count=4000)
rows = {{name: np.repeat(array, 8, 0) for name, array in test_feature_store.content([0]).items()}}
print('ready', flush=True)
with store.locked():
  missing = store.missing()
  for at in range(0, len(missing), 8):
    indices = missing[at:at + 8]
    test_feature_store.write(store, indices)
print('done', flush=True)
"""


@contextlib.contextmanager
def writer(root):
  """A process that fills a store; gone at the end."""
  process = subprocess.Popen([sys.executable, '-c', WRITER, str(root)], stdout=subprocess.PIPE, text=True)
  try:
    assert process.stdout.readline() == 'ready\n'
    yield process
  finally:
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.multiprocess
def test_a_killed_writer_leaves_whole_shards(tmp_path):
  rng, before = np.random.default_rng(0), 0
  for _ in range(3):
    with writer(tmp_path) as process:
      time.sleep(rng.uniform(.005, .1))
      process.send_signal(signal.SIGKILL)
      process.wait()
    store = opened(tmp_path, count=4000)
    store.verify()
    stored = np.setdiff1d(np.arange(4000), store.missing())
    assert before <= len(stored) < 4000 and len(stored) % ROWS == 0
    assert_holds(store, stored[-50:])
    before = len(stored)
  assert before > 0
  (store.path / '.00007.shard.1.tmp').write_bytes(b'left by a kill')
  with store.locked():
    assert not list(store.path.glob('.*.tmp'))


def test_a_second_lock_waits_for_the_first(tmp_path, monkeypatch):
  store, waiting, order = opened(tmp_path), threading.Event(), []
  monkeypatch.setattr(logging, 'warning', lambda *_: waiting.set())

  def second():
    with opened(tmp_path).locked():
      order.append('second')

  thread = threading.Thread(target=second)
  with store.locked():
    thread.start()
    assert waiting.wait(10)
    order.append('first')
  thread.join(10)
  assert order == ['first', 'second']


@pytest.mark.multiprocess
def test_a_second_writer_waits_for_the_first(tmp_path, monkeypatch):
  store = opened(tmp_path, count=4000)
  warnings = []
  monkeypatch.setattr(logging, 'warning', lambda text, *args: warnings.append(text % args))
  with writer(tmp_path):
    while not list(store.path.glob('*.shard')):
      time.sleep(.005)
    with store.locked():
      store.refresh()
      assert store.complete
  assert len(warnings) == 1 and str(store.path) in warnings[0] and 'waiting' in warnings[0]
