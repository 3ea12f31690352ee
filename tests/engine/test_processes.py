"""Several processes over localhost work as one: the same results, whichever is killed and however many resume."""

import csv
import json
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import ml_collections as mlc
import numpy as np
import pages
import pytest
from absl import app
from absl.testing import flagsaver
from drawn_folders import draw

from zsad_jax import cli as launch
from zsad_jax.configs import anomalyclip
from zsad_jax.engine import checkpoint
from zsad_jax.experiment import experiment
from zsad_jax.predict import folder
from zsad_jax.predict.prediction_log import PredictionLog

ROOT = Path(__file__).parents[2]
SECONDS = 240  # limit for a group of processes on a busy machine
COMMANDS = pages.commands(ROOT / 'docs' / 'cluster.md')
EPOCHS = 9
OVERRIDES = {'image_size': 64, 'train.epochs': EPOCHS, 'train.batch': 5, 'machine.encode_batch': 4,
             'machine.eval_batch': 5, 'report.pictures': 0, 'prompt.depth': 2, 'prompt.n_ctx': 4}


def overrides(place):
  """The keys of the run, on the drawn folders in `place`: 12 auxiliary images, 15 target images."""
  return OVERRIDES | {'machine.data_dir': f'{place}/data', 'data.aux': f'folder:{place}/aux',
                    'data.target': f'folder:{place}/target'}


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with both data sets, and in alone/ the results of one process that nothing interrupted."""
  place = tmp_path_factory.mktemp('place')
  draw(place / 'aux', {'tile': (100, 40, 40), 'bolt': (40, 100, 40)}, images=3)
  draw(place / 'target', {'wood': (90, 60, 30), 'nut': (60, 60, 90)}, images=4, seed=1)
  (place / 'target' / 'nut' / 'test' / 'good' / '003.png').unlink()  # batches of 5: one of 5, 3; one of 5, 2
  (place / 'alone').mkdir()
  (place / '.compiled').symlink_to(ROOT / '.pytest_cache' / 'compiled')
  experiment.run(config(place, data_dir=place / 'own_data'), place / 'alone', 'run')
  return place


def config(place, data_dir=None):
  cfg = anomalyclip.get_config('demo')
  cfg.update_from_flattened_dict(overrides(place) | ({'machine.data_dir': str(data_dir)} if data_dir else {}))
  return mlc.FrozenConfigDict(cfg)


def command_line(**flags):
  """The words after `python` of the first command of docs/cluster.md, with other values of these flags."""
  words = [(word[2:].partition('=')[0], word) for word in shlex.split(COMMANDS[0])[1:]]
  assert flags.keys() <= {name for name, _ in words}
  return [f'--{name}={flags[name]}' if name in flags else word for name, word in words]


class Group:
  """The processes of one run; a failed assertion shows their output."""

  def __init__(self, place, name, count, *words):
    with socket.socket() as probe:
      probe.bind(('localhost', 0))
      port = probe.getsockname()[1]
    keys = [f'--config.{key}={value}' for key, value in overrides(place).items()]
    self._start, self._logs, self.processes = time.monotonic(), [], []
    for number in range(count):
      self._logs.append([place / f'{name}-{count}-{number}.{kind}' for kind in ('out', 'err')])
      with open(self._logs[-1][0], 'w') as out, open(self._logs[-1][1], 'w') as err:
        words_of_page = command_line(workdir=place / name, coordinator=f'localhost:{port}', num_processes=count,
                                     process_id=number)
        command = [sys.executable, *words_of_page, *keys, *words]
        self.processes.append(subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err))
    self.checkpoints = place / name / 'checkpoints'

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self.processes:
      process.kill()
      process.wait()

  def read(self, number):
    """(stdout, stderr) of a process."""
    return tuple(path.read_text() for path in self._logs[number])

  def output(self):
    """Output of all processes, for a failed assertion."""
    return '\n'.join(f'--- process {i}, exit code {process.poll()}\n' + '\n'.join(self.read(i))
                     for i, process in enumerate(self.processes))

  def until(self, condition):
    """Waits until condition() holds while all processes run."""
    while not condition():
      assert all(process.poll() is None for process in self.processes), self.output()
      self._in_time()
      time.sleep(.05)

  def codes(self):
    """Waits for all; returns their exit codes."""
    while any(process.poll() is None for process in self.processes):
      self._in_time()
      time.sleep(.05)
    return [process.returncode for process in self.processes]

  def _in_time(self):
    assert time.monotonic() - self._start < SECONDS, f'not done in {SECONDS} s\n{self.output()}'


def results_of(workdir):
  """({image: score}, {metric: mean}, {category: counts}) of an evaluation."""
  results = workdir / 'results' / 'anomalyclip' / 'aux-to-target' / 'seed111'
  with open(results / 'scores.csv', newline='') as file:
    scores = {row['id']: float(row['score']) for row in csv.DictReader(file)}
  written = json.loads((results / 'metrics.json').read_text())
  return scores, {name: value['value'] for name, value in written['mean'].items()}, written['counts']


def require_same_results(workdir, alone):
  (scores, means, counts), (own, own_means, own_counts) = results_of(workdir), results_of(alone)
  assert scores.keys() == own.keys() and counts == own_counts
  np.testing.assert_allclose([scores[i] for i in own], list(own.values()), atol=1e-5)
  for name, mean in means.items():
    # The 200 thresholds of aupro_200 move with the lowest and the highest score.
    np.testing.assert_allclose(mean, own_means[name], atol=1e-3 if name == 'aupro_200' else 1e-5, err_msg=name)


def losses(workdir):
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [(line['step'], line['train/loss']) for line in lines]


@pytest.mark.multiprocess
def test_two_processes_give_the_results_of_one(place):
  assert [COMMANDS[0], COMMANDS[0].replace('--process_id=0', '--process_id=1')] == COMMANDS
  with Group(place, 'two', 2) as group:
    assert group.codes() == [0, 0], group.output()
  assert '2 x cpu (cpu), 2 processes' in group.read(0)[0] and 'results: ' in group.read(0)[0]
  assert group.read(1)[0] == '', 'only the first process prints'
  require_same_results(place / 'two', place / 'alone')
  several, own = losses(place / 'two'), losses(place / 'alone')
  assert [step for step, _ in several] == [step for step, _ in own] == [3 * epoch for epoch in range(1, EPOCHS + 1)]
  np.testing.assert_allclose([loss for _, loss in several], [loss for _, loss in own], atol=1e-5)


@pytest.mark.multiprocess
def test_a_run_killed_among_three_and_stopped_among_two_is_finished_by_one(place):
  steps = lambda group: checkpoint.steps(group.checkpoints)
  with Group(place, 'chain', 3) as three:
    three.until(lambda: len(steps(three)) >= 1)
    three.processes[1].kill()
    codes = three.codes()
  assert codes[1] == -signal.SIGKILL and 0 not in codes, three.output()
  saved = steps(three)
  assert 0 < len(saved) < EPOCHS, 'it was not killed during training'

  with Group(place, 'chain', 2) as two:
    two.until(lambda: len(steps(two)) > len(saved))
    two.processes[1].send_signal(signal.SIGTERM)
    assert two.codes() == [75, 75], two.output()
  assert 'run the same command again' in two.read(0)[1]
  assert saved[-1] < steps(two)[-1] < 3 * EPOCHS, 'it was not stopped during training'

  experiment.run(config(place), place / 'chain', 'run')
  require_same_results(place / 'chain', place / 'alone')
  several, own = losses(place / 'chain'), losses(place / 'alone')
  assert [step for step, _ in several] == [step for step, _ in own]
  np.testing.assert_allclose([loss for _, loss in several], [loss for _, loss in own], atol=1e-5)


@pytest.mark.multiprocess
def test_two_processes_predict_as_one_and_one_resumes(place):
  pictures, out = place / 'target' / 'wood' / 'test', place / 'predicted'
  with Group(place, 'alone', 2, '--mode=predict', f'--path={pictures}', f'--out={out}') as group:
    assert group.codes() == [0, 0], group.output()
  assert '8 images:' in group.read(0)[0] and group.read(1)[0] == ''
  rows, maps = predictions(out), {path: path.stat().st_mtime_ns for path in out.glob('maps/**/*.png')}
  assert len(maps) == len(rows) == 8 and len(list(out.glob('prediction_log*.jsonl'))) == 2

  folder.run(config(place), place / 'alone', pictures, out)
  assert predictions(out) == rows and maps == {path: path.stat().st_mtime_ns for path in out.glob('maps/**/*.png')}
  assert [path.name for path in out.glob('prediction_log*.jsonl')] == ['prediction_log.jsonl']

  folder.run(config(place), place / 'alone', pictures, place / 'predicted_alone')
  for name, row in predictions(place / 'predicted_alone').items():
    assert abs(float(row.pop('score')) - float(rows[name].pop('score'))) < 1e-5
    assert abs(float(row.pop('threshold')) - float(rows[name].pop('threshold'))) < 1e-5
    assert row == rows[name]


def predictions(out):
  with open(out / 'predictions.csv', newline='') as file:
    return {row['path']: row for row in csv.DictReader(file)}


def test_prediction_logs_of_several_processes_are_merged_by_any_number(tmp_path, monkeypatch):
  row = lambda number: {'path': f'{number}.png', 'score': number}
  for number in range(3):
    monkeypatch.setattr(jax, 'process_index', lambda number=number: number)
    PredictionLog(tmp_path, {'by': 1}).append([row(number)])
  monkeypatch.setattr(jax, 'process_index', lambda: 0)
  with open(tmp_path / 'prediction_log-1.jsonl', 'a') as file:
    file.write('{"path": "cut sho')
  again = PredictionLog(tmp_path, {'by': 1})
  assert again.rows == {f'{number}.png': row(number) for number in range(3)}
  assert [path.name for path in tmp_path.iterdir()] == ['prediction_log.jsonl']
  assert PredictionLog(tmp_path, {'by': 2}).rows == {}


@pytest.mark.multiprocess
def test_without_a_cluster_the_missing_flags_are_named(tmp_path):
  done = subprocess.run([sys.executable, 'launch.py', '--config=configs/clip.py:demo', f'--workdir={tmp_path}',
                         '--distributed'], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 1 and 'Traceback' not in done.stderr
  assert all(flag in done.stderr for flag in ('--coordinator=HOST:PORT', '--num_processes', '--process_id'))


@pytest.mark.parametrize('values, message', [
  ({'mode': 'datasets', 'distributed': True}, '--mode=datasets .*one process.* --distributed'),
  ({'process_id': 0}, '--process_id go with --distributed')])
def test_flags_of_several_processes_need_distributed(values, message):
  with flagsaver.flagsaver(**values), pytest.raises(app.UsageError, match=message):
    launch.main(['launch.py'])
