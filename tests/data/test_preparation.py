import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_sets import picture, write, write_category
from tensorflow_datasets.core import shuffle

from zsad_jax import data
from zsad_jax.data import commands, dataset_names, images, loading, preparation, records, shards

ROOT = Path(__file__).parents[2]
KILLED = '''
import os, signal, sys
from zsad_jax import data
from zsad_jax.data import records, shards

read = records.read
records.read = lambda item, **kwargs: (
  os.kill(os.getpid(), signal.SIGKILL) if item.key == sys.argv[3] else read(item, **kwargs))
shards.SHARD_BYTES = int(sys.argv[4])
data.load(sys.argv[1], root=sys.argv[2])
'''
LAST = 'metal_nut/test/bent/000'           # 8 of the 13 images come before it, training images first


def leftovers(root):
  return [*root.glob('*/*/incomplete.*'), *root.glob('*/*/unfinished.*')]


def content(root):
  # Not the index: it is made by whoever reads the copy first.
  return {path.name: path.read_bytes() for path in root.glob('*/*/*/*') if not path.name.startswith('index')}


def count_reads(monkeypatch, stop=None, error=KeyboardInterrupt):
  """The ids of the images that are read from now on; reading `stop` fails."""
  keys, read = [], records.read

  def record(item, **kwargs):
    if item.key == stop:
      raise error
    keys.append(item.key)
    return read(item, **kwargs)
  monkeypatch.setattr(records, 'read', record)
  return keys


@pytest.fixture
def interrupted(layout, tmp_path, monkeypatch):
  """The root of a preparation of `layout` that ended early, one image to a shard; records are counted no more."""
  monkeypatch.setattr(shards, 'SHARD_BYTES', 1)
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    count_reads(patch, LAST)
    data.load(f'folder:{layout}', root=tmp_path / 'data')
  assert len(list((tmp_path / 'data').glob('*/*/unfinished.1.0.0/*.json'))) == 8
  return tmp_path / 'data'


def test_a_killed_preparation_resumes_and_equals_an_uninterrupted_one(layout, tmp_path, monkeypatch, caplog):
  name, root, whole = f'folder:{layout}', tmp_path / 'data', tmp_path / 'whole'
  size = (layout / 'grid' / 'test' / 'glue' / '000.png').stat().st_size + 1        # one image or two to a shard
  done = subprocess.run([sys.executable, '-c', KILLED, name, str(root), LAST, str(size)], cwd=ROOT, check=False,
                        capture_output=True)
  assert done.returncode == -signal.SIGKILL and len(leftovers(root)) == 2
  monkeypatch.setattr(shards, 'SHARD_BYTES', size)
  keys = count_reads(monkeypatch)
  with caplog.at_level('INFO', logger='absl'):
    dataset = data.load(name, root=root)
  assert len(dataset) == 9 and [r['id'] for r in dataset] == dataset.ids and leftovers(root) == []
  again = len(keys)
  assert LAST in keys and 5 <= again < 13
  assert f'mvtec_layout: resuming an interrupted preparation; {13 - again} of 13 images' in caplog.text
  assert dataset.fingerprint == data.load(name, root=whole).fingerprint and len(keys) == again + 13
  assert content(root) == content(whole) and 4 < sum('array_record' in name for name in content(whole)) < 13


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError(28, 'No space left on device')])
def test_a_failed_preparation_resumes(layout, tmp_path, monkeypatch, error):
  monkeypatch.setattr(shards, 'SHARD_BYTES', 1)
  with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, OSError)):
    count_reads(patch, LAST, error)
    data.load(f'folder:{layout}', root=tmp_path)
  keys = count_reads(monkeypatch)
  data.load(f'folder:{layout}', root=tmp_path)
  assert len(keys) == 5 and keys[0] == LAST


def test_notes_and_skipped_images_of_finished_shards_survive(layout, tmp_path, monkeypatch):
  monkeypatch.setattr(shards, 'SHARD_BYTES', 1)
  (layout / 'grid' / 'test' / 'good' / '000.png').write_bytes(b'')
  for kind in ('grid/test/good/001', 'metal_nut/test/good/001'):
    write(layout / f'{kind}.png', picture(mode='RGBA'))
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    count_reads(patch, LAST)
    data.load(f'folder:{layout}', root=tmp_path / 'data', on_bad='skip')
  for root in ('data', 'whole'):
    dataset = data.load(f'folder:{layout}', root=tmp_path / root, on_bad='skip')
    assert [r['id'] for r in dataset] == dataset.ids and len(dataset) == 8
  assert content(tmp_path / 'data') == content(tmp_path / 'whole') and dataset.skipped == ['grid/test/good/000']
  assert dataset.notes == ['alpha laid over (255, 255, 255): 2 of 9 images, first grid/test/good/001',
                           'damaged and left out: 1 of 9 images, first grid/test/good/000']


@pytest.mark.parametrize('harm', ['shard', 'summary', 'missing', 'source'])
def test_a_damaged_shard_is_written_again(layout, interrupted, tmp_path, monkeypatch, caplog, harm):
  shard = sorted(interrupted.glob('*/*/unfinished.1.0.0/*test*00001-of-*[0-9]'))[0]
  summary = shard.with_name(f'{shard.name}.json')
  data_of = bytearray(shard.read_bytes())
  data_of[-1] ^= 1
  {'shard': lambda: shard.write_bytes(data_of), 'summary': lambda: summary.write_bytes(b''), 'missing': shard.unlink,
   'source': lambda: summary.write_text(json.dumps(json.loads(summary.read_text()) | {'digest': 'another'}))}[harm]()
  keys = count_reads(monkeypatch)
  data.load(f'folder:{layout}', root=interrupted)
  assert keys[:2] == ['grid/test/glue/001', LAST] and len(keys) == 6
  reason = 'source files have changed' if harm == 'source' else 'damaged'
  assert str(shard) in caplog.text and reason in caplog.text
  data.load(f'folder:{layout}', root=tmp_path / 'whole')
  assert content(interrupted) == content(tmp_path / 'whole')


def another_archive(root):
  shutil.rmtree(root)
  write_category(root / 'metal_nut', {'scratch': 3})


@pytest.mark.parametrize('change', [
  lambda root: (root / 'grid' / 'test' / 'good' / '001.png').unlink(), another_archive,
  lambda root: write(root / 'grid' / 'test' / 'good' / '000.png', picture((3, 3, 5, 5))),
  lambda root: os.utime(root / 'grid' / 'test' / 'good' / '000.png', (1, 1))])
def test_shards_of_a_changed_source_are_discarded(layout, interrupted, tmp_path, monkeypatch, caplog, change):
  change(layout)
  keys = count_reads(monkeypatch)
  lines = list(commands.prepare([f'folder:{layout}'], commands.Place(interrupted)))
  assert len(lines) == 1 and lines[0][1] and leftovers(interrupted) == []
  assert f'{layout}: its files or rules have changed' in caplog.text and 'from scratch' in caplog.text
  data.load(f'folder:{layout}', root=tmp_path / 'whole')
  assert content(interrupted) == content(tmp_path / 'whole') and len(keys) % 2 == 0


def test_shards_made_by_other_rules_are_discarded(layout, interrupted, monkeypatch, caplog):
  keys = count_reads(monkeypatch)
  data.load(f'folder:{layout}', root=interrupted, rules=images.Rules(exif='apply'))
  assert len(keys) == 13 and leftovers(interrupted) == [] and 'from scratch' in caplog.text


def test_shards_of_another_source_are_left_alone(layout, interrupted, tmp_path):
  write_category(tmp_path / 'other' / 'raw' / 'screw', {'cut': 1})
  data.load(f'folder:{tmp_path}/other/raw', root=interrupted)
  assert len(leftovers(interrupted)) == 1


@pytest.mark.parametrize('changed', ['grid/test/glue/001.png', 'grid/ground_truth/glue/001_mask.png'])
def test_files_that_change_during_preparation_are_refused(layout, tmp_path, monkeypatch, changed):
  read = records.read
  with monkeypatch.context() as patch:
    patch.setattr(records, 'read', lambda item, **kwargs: (
      read(item, **kwargs), item.key == 'grid/test/glue/001' and os.utime(layout / changed, (1, 1)))[0])
    with pytest.raises(ValueError, match=r'glue/001\.png, or its mask, has changed'):
      data.load(f'folder:{layout}', root=tmp_path / 'data')
  assert not list((tmp_path / 'data').glob('*/*/1.0.0'))
  assert len(data.load(f'folder:{layout}', root=tmp_path / 'data')) == 9 and leftovers(tmp_path / 'data') == []


def test_shards_that_another_process_writes_are_left_alone(layout, interrupted):
  (shelf,) = leftovers(interrupted)
  (layout / 'grid' / 'test' / 'good' / '001.png').unlink()
  with preparation._lock(shelf.parent):
    data.load(f'folder:{layout}', root=interrupted)
  assert leftovers(interrupted) == [shelf]


def test_without_hard_links_shards_are_copied(layout, tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(95, 'Operation not supported')
  data.load(f'folder:{layout}', root=tmp_path / 'whole')
  monkeypatch.setattr(shards.os, 'link', refuse)
  data.load(f'folder:{layout}', root=tmp_path / 'data')
  assert content(tmp_path / 'data') == content(tmp_path / 'whole') and leftovers(tmp_path / 'data') == []


def test_more_than_tfds_holds_in_memory_needs_no_tensorflow(layout, tmp_path, monkeypatch):
  monkeypatch.setattr(shuffle, 'MAX_MEM_BUFFER_SIZE', 1)
  assert len(data.load(f'folder:{layout}', root=tmp_path)) == 9


LOADED = '''
import sys
from zsad_jax import data
print('started', flush=True)
print(data.load(sys.argv[1], root=sys.argv[2]).fingerprint)
'''


def test_a_second_process_waits_and_reads_the_copy_of_the_first(layout, tmp_path):
  builder = loading.locate(f'folder:{layout}', root=tmp_path)
  command = [sys.executable, '-c', LOADED, f'folder:{layout}', str(tmp_path)]
  with preparation._lock(Path(builder.data_dir).parent):
    other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert other.stdout.readline() == 'started\n'
    time.sleep(.5)
    assert other.poll() is None
    builder.download_and_prepare()
    inode = os.stat(builder.data_dir).st_ino
  fingerprint, _ = other.communicate(timeout=30)
  assert os.stat(builder.data_dir).st_ino == inode
  assert data.load(f'folder:{layout}', root=tmp_path).fingerprint == fingerprint.strip()


def test_a_copy_finished_by_another_builder_is_read(layout, tmp_path):
  name = f'folder:{layout}'
  late = loading.locate(name, root=tmp_path)  # made before there is a copy
  assert preparation.ensure(loading.locate(name, root=tmp_path))
  assert not preparation.ensure(late)
  assert len(data.Dataset(late, 'test')) == len(data.load(name, root=tmp_path)) == 9


def test_a_copy_that_another_process_finishes_without_locks_is_read(layout, tmp_path, monkeypatch, caplog):
  def refuse(*_):
    raise OSError(37, 'No locks available')
  monkeypatch.setattr(preparation.fcntl, 'flock', refuse)
  name = f'folder:{layout}'
  kind = dataset_names.resolve(name).builder
  divided = kind._plan_shards

  def overtaken(self, root):
    monkeypatch.setattr(kind, '_plan_shards', divided)
    data.load(name, root=tmp_path)
    return divided(self, root)
  monkeypatch.setattr(kind, '_plan_shards', overtaken)
  dataset = data.load(name, root=tmp_path)
  assert len(dataset) == 9 and [r['id'] for r in dataset] == dataset.ids and leftovers(tmp_path) == []
  assert 'cannot be locked' in caplog.text


def test_a_prepared_copy_is_read_without_writing(layout, tmp_path, monkeypatch):
  before = data.load(f'folder:{layout}', root=tmp_path).fingerprint
  monkeypatch.setattr(Path, 'mkdir', lambda *_, **__: pytest.fail('a folder was made'))
  assert data.load(f'folder:{layout}', root=tmp_path).fingerprint == before
