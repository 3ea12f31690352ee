"""The workdir: metrics without duplicates, files whole or absent, one run at a time."""

import errno
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto import event_pb2

from zsad_jax.engine import logs


def lines(workdir):
  path = Path(workdir) / 'metrics.jsonl'
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def no_space(*_):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_only(*_):
  raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_scalars_are_json_lines(tmp_path):
  with logs.Writer(tmp_path) as writer:
    writer.scalars(3, {'epoch': 1, 'train/loss': np.float32(.5)})
    writer.scalars(3, {'bottle/pixel_aupro': None})
  assert lines(tmp_path) == [{'step': 3, 'epoch': 1, 'train/loss': .5}, {'step': 3, 'bottle/pixel_aupro': None}]


@pytest.mark.parametrize('bad', [float('nan'), np.inf])
def test_nan_is_refused_by_name(tmp_path, bad):
  with logs.Writer(tmp_path) as writer, pytest.raises(ValueError, match=r'loss is (nan|inf) at step 4'):
    writer.scalars(4, {'loss': bad})
  assert lines(tmp_path) == []


def test_resumed_run_has_no_step_twice(tmp_path):
  with logs.Writer(tmp_path) as writer:
    for step in (1, 2, 3):
      writer.scalars(step, {'loss': step / 2})
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 4, "lo')  # killed in the middle of a line
  with logs.Writer(tmp_path) as writer:
    writer.rewind(2)
    writer.scalars(3, {'loss': 7.})
  assert lines(tmp_path) == [{'step': 1, 'loss': .5}, {'step': 2, 'loss': 1.}, {'step': 3, 'loss': 7.}]


def test_same_name_at_the_same_step_is_replaced(tmp_path):
  with logs.Writer(tmp_path) as writer:
    writer.scalars(5, {'a': 1, 'b': 2})
    writer.scalars(6, {'a': 3})
    writer.scalars(5, {'b': 4})
    writer.scalars(5, {'a': 5})
  assert lines(tmp_path) == [{'step': 6, 'a': 3}, {'step': 5, 'b': 4}, {'step': 5, 'a': 5}]


@given(st.lists(st.tuples(st.sampled_from('wcr'), st.integers(0, 5), st.sampled_from('ab')), max_size=12))
def test_every_number_is_written_once_whatever_happens(tmp_path_factory, events):
  """Writes, reopenings and rewinds against a dict that does the same."""
  workdir, model = tmp_path_factory.mktemp('workdir'), {}
  writer = logs.Writer(workdir)
  writer._board = Board()
  for number, (kind, step, name) in enumerate(events):
    if kind == 'w':
      writer.scalars(step, {name: number})
      model[step, name] = number
    elif kind == 'c':
      writer = logs.Writer(workdir)
      writer._board = Board()
    else:
      writer.rewind(step)
      model = {key: value for key, value in model.items() if key[0] <= step}
  written = [((line['step'], name), value) for line in lines(workdir) for name, value in line.items()
             if name != 'step']
  assert dict(written) == model and len(written) == len(model)


class Board:
  """Stands in for TensorBoard if only the JSON lines matter."""

  def add_scalar(self, *_):
    pass

  def flush(self):
    pass


def test_tensorboard_reads_the_metrics_and_drops_rewound_steps(tmp_path):
  with logs.Writer(tmp_path) as writer:
    for step in range(5):
      writer.scalars(step, {'loss': step, 'undefined': None})
  with logs.Writer(tmp_path) as writer:
    writer.rewind(2)
    writer.scalars(3, {'loss': 30})
  assert tensorboard_scalars(tmp_path / 'tensorboard') == {
    ('loss', 0): 0, ('loss', 1): 1, ('loss', 2): 2, ('loss', 3): 30}


def tensorboard_scalars(folder):
  """{(name, step): number} of event files as TensorBoard reads them: a session that starts at a step hides what earlier
  ones wrote from there on."""
  scalars = {}
  for path in sorted(folder.iterdir()):
    data = path.read_bytes()
    while data:
      size = struct.unpack('<Q', data[:8])[0]
      event, data = event_pb2.Event.FromString(data[12:12 + size]), data[16 + size:]
      if event.session_log.status == event_pb2.SessionLog.START:
        scalars = {key: value for key, value in scalars.items() if key[1] < event.step}
      for value in event.summary.value:
        scalars[value.tag, event.step] = value.simple_value
  return scalars


def test_write_json(tmp_path):
  path = tmp_path / 'a' / 'b.json'
  logs.write_json(path, {'name': 'é', 'value': None})
  assert json.loads(path.read_text(encoding='utf-8')) == {'name': 'é', 'value': None}
  with pytest.raises(ValueError, match=r'b\.json: .*write null'):
    logs.write_json(path, {'value': float('nan')})
  assert json.loads(path.read_text(encoding='utf-8'))['name'] == 'é'


@pytest.mark.parametrize('call', ['fsync', 'replace'])
@pytest.mark.parametrize('fault', [no_space, read_only])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, call, fault):
  path = tmp_path / 'metrics.json'
  logs.write_atomic(path, 'old')
  monkeypatch.setattr(os, call, fault)
  with pytest.raises(OSError, match=r'earlier content is intact.*metrics\.json'):
    logs.write_atomic(path, 'new')
  assert path.read_text() == 'old' and os.listdir(tmp_path) == ['metrics.json']


def test_probe_creates_the_workdir_and_leaves_no_file(tmp_path):
  logs.probe(tmp_path / 'a' / 'b')
  assert os.listdir(tmp_path / 'a' / 'b') == []


@pytest.mark.parametrize('fault, reason', [(no_space, 'No space left'), (read_only, 'Read-only file system')])
def test_probe_says_why_it_cannot_write(tmp_path, monkeypatch, fault, reason):
  (tmp_path / 'results.json').write_text('earlier')
  monkeypatch.setattr(os, 'replace', fault)
  with pytest.raises(OSError, match=rf'cannot write to the workdir \({reason}.*choose another --workdir'):
    logs.probe(tmp_path)
  assert os.listdir(tmp_path) == ['results.json']


def test_probe_of_a_workdir_under_a_file(tmp_path):
  (tmp_path / 'file').write_text('')
  for workdir in (tmp_path / 'file', tmp_path / 'file' / 'run'):
    with pytest.raises(OSError, match='cannot write to the workdir'):
      logs.probe(workdir)


def test_probe_needs_free_space(tmp_path):
  free = shutil.disk_usage(tmp_path).free
  with pytest.raises(OSError, match=r'MB are free in the workdir, but [\d,]+ MB are needed') as error:
    logs.probe(tmp_path, free_bytes=2 * free)
  assert error.value.errno == errno.ENOSPC


def test_lock_refuses_a_second_run_and_names_the_first(tmp_path):
  with logs.lock(tmp_path):
    with pytest.raises(RuntimeError, match=rf'in use by another run \(process {os.getpid()} on .*--workdir'), \
         logs.lock(tmp_path):
      pass
    with logs.lock(tmp_path.parent):
      pass
  with logs.lock(tmp_path):
    assert (tmp_path / 'lock').read_text().count('process') == 1


@pytest.mark.multiprocess
def test_the_lock_of_a_killed_run_is_free(tmp_path):
  program = ('import sys, time\nfrom zsad_jax.engine import logs\n'
             'with logs.lock(sys.argv[1]):\n  print("held", flush=True); time.sleep(60)')
  process = subprocess.Popen([sys.executable, '-c', program, str(tmp_path)], stdout=subprocess.PIPE)
  with process.stdout:
    assert process.stdout.readline() == b'held\n'
    with pytest.raises(RuntimeError, match=f'process {process.pid} '), logs.lock(tmp_path):
      pass
    process.kill()
    process.wait()
  with logs.lock(tmp_path):
    pass


def test_summary():
  assert logs.summary({'loss': np.float32(.12345678), 'aupro': None, 'n': 3}) == 'loss 0.1235  aupro n/a  n 3'
