import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zsad_jax import data
from zsad_jax.data import commands, loading, naming, preparation

ROOT = Path(__file__).parents[2]
KILLED = '''
import os, signal, sys
from zsad_jax import data
from zsad_jax.data import builder

def die(*args, **kwargs):
  os.kill(os.getpid(), signal.SIGKILL)

read = builder.record
builder.record = lambda item, **kwargs: die() if item.key.endswith('glue/001') else read(item, **kwargs)
data.load(sys.argv[1], root=sys.argv[2])
'''


def leftovers(root):
  return list(root.glob('*/*/incomplete.*'))


def killed(layout, root):
  """What a preparation of `layout` leaves that is killed at its second image."""
  done = subprocess.run([sys.executable, '-c', KILLED, f'folder:{layout}', str(root)], cwd=ROOT, check=False,
                        capture_output=True)
  assert done.returncode == -signal.SIGKILL and len(leftovers(root)) == 1
  return leftovers(root)[0]


def test_a_killed_preparation_starts_anew_and_leaves_nothing(layout, tmp_path, caplog):
  root = tmp_path / 'data'
  left = killed(layout, root)
  with caplog.at_level('INFO', logger='absl'):
    dataset = data.load(f'folder:{layout}', root=root)
  assert len(dataset) == 9 and [r['id'] for r in dataset] == dataset.ids and leftovers(root) == []
  assert f'{left}: left by a preparation that was killed; removed, it starts anew' in caplog.text


def test_what_a_killed_preparation_of_older_files_left_is_removed_too(layout, tmp_path):
  root = tmp_path / 'data'
  killed(layout, root)
  (layout / 'grid' / 'test' / 'good' / '001.png').unlink()
  lines = list(commands.prepare([f'folder:{layout}'], commands.Place(root)))
  assert len(lines) == 1 and lines[0][1] and leftovers(root) == []


def test_what_another_process_is_writing_is_left_alone(layout, tmp_path):
  builder = loading.locate(f'folder:{layout}', root=tmp_path)
  folder = Path(builder.data_dir).parent
  (folder / 'incomplete.ABCDEF_1.0.0').mkdir(parents=True)
  with preparation._alone(folder):
    preparation.clean(tmp_path, naming.resolve(f'folder:{layout}').builder, '')
    assert len(leftovers(tmp_path)) == 1
  preparation.clean(tmp_path, naming.resolve(f'folder:{layout}').builder, '')
  assert leftovers(tmp_path) == []


LOADED = '''
import sys
from zsad_jax import data
print('begun', flush=True)
print(data.load(sys.argv[1], root=sys.argv[2]).fingerprint)
'''


def test_who_comes_second_waits_for_the_first_and_reads_its_copy(layout, tmp_path):
  builder = loading.locate(f'folder:{layout}', root=tmp_path)
  command = [sys.executable, '-c', LOADED, f'folder:{layout}', str(tmp_path)]
  with preparation._alone(Path(builder.data_dir).parent):
    other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert other.stdout.readline() == 'begun\n'
    time.sleep(.5)
    assert other.poll() is None
    builder.download_and_prepare()
    inode = os.stat(builder.data_dir).st_ino
  said, _ = other.communicate(timeout=30)
  assert os.stat(builder.data_dir).st_ino == inode
  assert data.load(f'folder:{layout}', root=tmp_path).fingerprint == said.strip()


def test_without_locks_another_process_may_be_faster(layout, tmp_path, monkeypatch, caplog):
  def refuse(*_):
    raise OSError(37, 'No locks available')
  monkeypatch.setattr(preparation.fcntl, 'flock', refuse)
  name = f'folder:{layout}'
  generate = naming.resolve(name).builder._generate_examples

  def overtaken(self, split, items):
    monkeypatch.setattr(naming.resolve(name).builder, '_generate_examples', generate)
    data.load(name, root=tmp_path)
    return generate(self, split, items)
  monkeypatch.setattr(naming.resolve(name).builder, '_generate_examples', overtaken)
  dataset = data.load(name, root=tmp_path)
  assert len(dataset) == 9 and [r['id'] for r in dataset] == dataset.ids and leftovers(tmp_path) == []
  assert 'cannot be locked' in caplog.text


def test_a_prepared_copy_needs_no_place_to_write(layout, tmp_path, monkeypatch):
  before = data.load(f'folder:{layout}', root=tmp_path).fingerprint
  monkeypatch.setattr(Path, 'mkdir', lambda *_, **__: pytest.fail('a folder was made'))
  assert data.load(f'folder:{layout}', root=tmp_path).fingerprint == before
