"""Runs that are stopped, killed, damaged, started twice or elsewhere resume, refuse, or give the same numbers."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np
import pytest
from absl.testing import flagsaver
from drawn_folders import draw
from PIL import Image

from zsad_jax import cli as launch
from zsad_jax import data
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip import preprocess
from zsad_jax.configs import anomalyclip, winclip
from zsad_jax.data import images
from zsad_jax.engine import checkpoint, evaluate, logs, optimizers, runtime, train
from zsad_jax.engine.feature_store import Store
from zsad_jax.experiment import disk_budget, experiment, results, sweep
from zsad_jax.experiment.run import Run

ROOT = Path(__file__).parents[2]
CLS = np.random.default_rng(0).normal(size=(21, 6)).astype(np.float32)


class Killed(BaseException):
  """Ends a run like a kill: no handler catches it."""


def config(tmp, module=anomalyclip, **overrides):
  c = module.get_config('demo')
  c.update_from_flattened_dict({
    'image_size': 56, 'seed': 3, 'train.epochs': 1, 'train.batch': 4, 'machine.encode_batch': 4,
    'machine.eval_batch': 4, 'report.pictures': 2, 'machine.data_dir': str(tmp / 'data'),
    'data.aux': f'folder:{tmp / "aux"}', 'data.target': f'folder:{tmp / "target"}'} | overrides)
  return mlc.FrozenConfigDict(c)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """(config, workdir) of a run that nothing interrupted, with one damaged image."""
  tmp = tmp_path_factory.mktemp('whole')
  draw(tmp / 'aux', {'tile': (100, 40, 40)}, images=3)
  draw(tmp / 'target', {'wood': (90, 60, 30), 'nut': (60, 60, 90)}, images=3, seed=1)
  (tmp / 'target/wood/test/good/000.png').write_bytes(b'')
  cfg = config(tmp, **{'data.on_bad': 'skip'})
  (tmp / 'work').mkdir()
  experiment.run(cfg, tmp / 'work', 'run')
  return cfg, tmp / 'work'


def metrics_of(workdir):
  return (workdir / 'results/anomalyclip/aux-to-target/seed3/metrics.json').read_bytes()


def ask_to_stop():
  os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_damaged_images_that_are_left_out_are_counted_in_the_results(whole):
  _, workdir = whole
  target = json.loads(metrics_of(workdir))['protocol']['target']
  assert target['skipped'] == ['wood/test/good/000'] and target['normal'] == 5
  page = (workdir / 'results/anomalyclip/aux-to-target/seed3/index.html').read_text()
  assert 'left out, such as wood/test/good/000' in page


def test_published_data_sets_are_never_evaluated_in_part(tmp_path):
  published = {'data.on_bad': 'skip', 'data.aux': 'visa', 'data.target': 'mpdd'}
  with pytest.raises(ValueError, match=r'data.on_bad=skip .*data.aux=visa .*published'):
    experiment.run(config(tmp_path, **published), tmp_path, 'run')


@pytest.mark.slow
def test_an_interrupted_evaluation_resumes_with_its_next_category(whole, tmp_path, monkeypatch):
  """Stopped in the second category, then killed while it reports: nothing is evaluated twice, the metrics are equal."""
  cfg, workdir = whole
  shutil.copytree(workdir / 'checkpoints', tmp_path / 'checkpoints')
  done, category_result = [], evaluate._category_result

  def stopping(parts, dataset, members, options):
    result = category_result(parts, dataset, members, options)
    done.append(dataset.categories[dataset.category_index[members[0]]])
    if stop and len(done) == 1:
      ask_to_stop()
    return result

  monkeypatch.setattr(evaluate, '_category_result', stopping)
  stop = True
  with runtime.preemption(), pytest.raises(runtime.Preempted, match='asked to stop during the evaluation'):
    experiment.run(cfg, tmp_path, 'evaluate')
  assert done == ['nut'] and len(list(tmp_path.rglob('*.result'))) == 1
  stop = False
  with monkeypatch.context() as patch:
    patch.setattr(results, 'write', lambda *args, **options: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
      experiment.run(cfg, tmp_path, 'evaluate')
  assert done == ['nut', 'wood'] and not (tmp_path / 'results').exists()
  experiment.run(cfg, tmp_path, 'evaluate')
  assert done == ['nut', 'wood'] and metrics_of(tmp_path) == metrics_of(workdir)
  assert not (tmp_path / 'evaluating').exists() and not list(tmp_path.rglob('*.tmp'))


def rows(indices):
  return {'cls': CLS[indices]}


def store(root):
  return Store.open(root, key={'of': 'tests'}, count=21, fields={'cls': ((6,), 'float32')}, max_gb=1, shard_rows=4)


def test_writing_features_stops_after_a_batch_and_resumes_there(tmp_path):
  def batches(missing):
    for start in range(0, len(missing), 4):
      written.append(indices := missing[start:start + 4])
      if len(written) == 2:
        ask_to_stop()
      yield indices, rows(indices), [str(i) for i in indices]

  written = []
  with runtime.preemption(), pytest.raises(runtime.Preempted, match=r'finished shards .* kept'):
    store(tmp_path).fill(batches)
  complete = store(tmp_path).fill(batches)
  assert np.concatenate(written).tolist() == list(range(21))
  np.testing.assert_array_equal(complete.read(np.arange(21))['cls'], CLS)


def test_preparing_a_data_set_stops_at_once_and_resumes(tmp_path, monkeypatch):
  name, encode = f'folder:{draw(tmp_path / "set", {"nut": (60, 60, 90)}, images=2)}', images.encode
  with monkeypatch.context() as patch, runtime.preemption():
    patch.setattr(images, 'encode', lambda *args: (ask_to_stop(), encode(*args))[1])
    with pytest.raises(runtime.Preempted, match='asked to stop'), runtime.stopping_at_once():
      data.load(name, root=tmp_path / 'data')
  assert len(data.load(name, root=tmp_path / 'data')) == 4


def test_encoding_references_stops_between_batches(monkeypatch):
  reads = []

  def load(indices):
    reads.append(indices)
    ask_to_stop()
    return {'cls': CLS[indices]}, {}

  monkeypatch.setattr(Run, 'references', lambda self: (SimpleNamespace(), np.arange(4)[None]))
  monkeypatch.setattr(Run, 'reader', lambda *args, **options: load)
  run = Run(SimpleNamespace(machine=SimpleNamespace(encode_batch=2)), None, None, None, None)
  with runtime.preemption(), pytest.raises(runtime.Preempted, match='references'):
    run.reference_bank()
  assert len(reads) == 1


def loss(params, context, features, batch, rng):
  noisy = features['cls'] + .1 * jax.random.normal(rng, (6,))[None]
  wrong = (jnp.tanh(noisy @ params['w']) * context['scale'] - batch['label']) ** 2
  return jnp.sum(wrong * batch['valid']) / jnp.sum(batch['valid']), {}


TX = optimizers.make_tx({'lr': 1e-2, 'b1': .5, 'b2': .999})


def fit(workdir, on_read=None, seed=5):
  def read(indices):
    if on_read:
      on_read(indices)
    return {'cls': CLS[indices]}, {'label': (CLS[indices].sum(1) > 0).astype(np.int32)}

  with runtime.preemption() as stop:
    return train.fit(loss, TX, {'w': np.full(6, .1, np.float32)}, {'scale': np.float32(1.5)}, train.Source(read, 21),
                     train.Recipe(epochs=3, batch=8, seed=seed), train.Session(workdir, stop=stop),
                     runtime.place(jax.devices()[:1]))['w']


def states(workdir):
  """{step: every leaf of its checkpoint as bytes}: parameters, optimizer, key and step."""
  template = train.initial({'w': np.zeros(6, np.float32)}, TX, 0)
  data = lambda x: np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
  folder, saved = workdir / 'checkpoints', {}
  for step in checkpoint.steps(folder):
    state, _, _ = checkpoint.restore(folder, template, step)
    saved[step] = [data(x).tobytes() for x in jax.tree.leaves(state)]
  return saved


@pytest.mark.slow
def test_a_training_that_is_asked_to_stop_resumes_bit_for_bit(tmp_path):
  fit(tmp_path / 'whole')
  reads, cut = [], tmp_path / 'cut'

  def stopping(indices):
    reads.append(indices.tolist())
    if len(reads) in (2, 5):  # a step or two ahead of training
      ask_to_stop()

  stops = 0
  while True:
    try:
      fit(cut, stopping)
      break
    except runtime.Preempted as stopped:
      stops += 1
      assert f'after step {checkpoint.latest(cut / "checkpoints")} of 9' in str(stopped)
  assert stops == 2
  whole, resumed = states(tmp_path / 'whole'), states(cut)
  assert {step: resumed[step] for step in whole} == whole and len(whole[9]) > 4


def test_a_row_that_is_asked_to_stop_ends_the_table_and_does_not_count_as_failed(tmp_path, monkeypatch):
  runs = []

  def run(*args, **options):
    runs.append(1)
    raise runtime.Preempted('asked to stop')

  row = sweep.Row('one', '', 'one', config(tmp_path), {})
  monkeypatch.setattr(sweep, 'planned', lambda cfg, overrides: [row, row._replace(label='two', folder='two')])
  monkeypatch.setattr(sweep, 'check', lambda rows: {})
  monkeypatch.setattr(experiment, 'run', run)
  with pytest.raises(runtime.Preempted):
    sweep.run(mlc.FrozenConfigDict({'table': {}}), tmp_path, 'run')
  assert len(runs) == 1


def test_the_exit_code_of_a_stopped_run_means_run_the_same_command_again(tmp_path, monkeypatch, capsys):
  def run(cfg, workdir, mode):
    ask_to_stop()
    assert runtime.preempted()
    raise runtime.Preempted('asked to stop after step 3 of 9')

  monkeypatch.setattr(experiment, 'run', run)
  monkeypatch.setattr(runtime, 'compilation_cache', lambda path: None)
  monkeypatch.setattr(launch, 'CONFIG', SimpleNamespace(value=mlc.ConfigDict({'method': 'clip'})))
  with flagsaver.flagsaver(workdir=str(tmp_path)), pytest.raises(SystemExit) as ended:
    launch.main(['launch.py'])
  assert ended.value.code == launch.EXIT_PREEMPTED == 75
  assert 'after step 3 of 9; run the same command again' in capsys.readouterr().err


def test_a_damaged_checkpoint_costs_a_step_and_nothing_is_cast(tmp_path, caplog):
  for step in (1, 2):
    checkpoint.save(tmp_path, step, {'w': np.full(3, step, np.float32)}, {})
  file = max((path for path in (tmp_path / '2').rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)
  state, _, step = checkpoint.restore(tmp_path, {'w': np.zeros(3, np.float32)})
  assert step == 1 and np.asarray(state['w']).tolist() == [1, 1, 1]
  name = file.relative_to(tmp_path / '2').as_posix()
  assert f'checkpoint {tmp_path / "2"} is damaged ({name} was changed)' in caplog.text
  with pytest.raises(ValueError, match=r'w is float32\[3\] there and float16\[3\] here'):
    checkpoint.restore(tmp_path, {'w': np.zeros(3, np.float16)})


def test_a_damaged_shard_of_features_is_encoded_again(tmp_path, caplog):
  fill = lambda missing: [(missing, rows(missing), [str(i) for i in missing])]
  path = store(tmp_path).fill(fill).path / '00002.shard'
  data = bytearray(path.read_bytes())
  data[5] ^= 1
  path.write_bytes(data)
  again = []
  store(tmp_path).fill(lambda missing: again.append(missing.tolist()) or fill(missing))
  assert again == [[8, 9, 10, 11]]
  assert f'{path} is damaged' in caplog.text and 'its 4 images will be encoded again' in caplog.text


def test_a_workdir_that_cannot_be_written_or_is_too_small_is_refused_at_the_start(tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match=r'cannot write to the workdir .*choose another --workdir'):
    logs.probe(tmp_path / 'file' / 'work')
  real = disk_budget.shutil.disk_usage
  monkeypatch.setattr(disk_budget.shutil, 'disk_usage', lambda path: real(path)._replace(free=3 << 30))
  disk_budget.check({tmp_path / 'a': 2 << 30})
  with pytest.raises(OSError, match=r'4.29 GB \(2.15 GB in .*/a, 2.15 GB in .*/b\), but .*3.22 GB'):
    disk_budget.check({tmp_path / 'a': 2 << 30, tmp_path / 'b': 2 << 30})


def test_a_full_disk_leaves_earlier_results(tmp_path, monkeypatch):
  logs.write_json(tmp_path / 'metrics.json', {'aupro': 0.5})

  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(OSError, match='No space left on device; the earlier content is intact'):
    logs.write_json(tmp_path / 'metrics.json', {'aupro': 0.7})
  assert json.loads((tmp_path / 'metrics.json').read_text()) == {'aupro': 0.5}
  assert [path.name for path in tmp_path.iterdir()] == ['metrics.json']


@pytest.mark.parametrize(('key', 'value', 'message'), [
  ('image_size', 57, 'image_size=57 .*patch size 8'), ('local_layers', (7,), r'layers.*7.*6'),
  ('train.batch', 0, 'train.batch=0 .*at least 1'), ('data.on_bad', 'ignore', "data.on_bad='ignore' .*error, skip"),
  ('method', 'anomalyclp', "did you mean 'anomalyclip'"), ('clip', 'vit_l14_363', 'did you mean vit_l14_336'),
])
def test_values_out_of_range_are_refused_before_weights_load(tmp_path, monkeypatch, key, value, message):
  monkeypatch.setattr(clip_lib, 'load', lambda *args, **options: pytest.fail('weights were loaded'))
  with pytest.raises(ValueError, match=message):
    experiment.run(config(tmp_path, **{key: value}), tmp_path, 'run')


@pytest.mark.parametrize(('flag', 'message'), [
  ('--config.prompt.dept=3', '--config.prompt.dept; did you mean --config.prompt.depth?'),
  ('--config.data.on_bda=skip', '--config.data.on_bda; did you mean --config.data.on_bad?')])
def test_the_nearest_key_to_a_mistyped_one_is_named(monkeypatch, flag, message):
  words = ['launch.py', f'--config={ROOT}/configs/anomalyclip.py:demo', flag]
  monkeypatch.setattr(sys, 'argv', words)  # where config flags look for the keys
  with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
    launch.parse(words)
  assert str(ended.value).endswith(message)


def test_more_references_than_images_are_refused_before_training(tmp_path):
  draw(tmp_path / 'target', {'nut': (60, 60, 90)}, images=1)
  with pytest.raises(ValueError, match=r'fewshot.shots.*9.*nut'):
    experiment.run(config(tmp_path, winclip, **{'fewshot.shots': 9}), tmp_path, 'run')


def test_a_second_run_in_a_workdir_is_refused(tmp_path):
  message = rf'in use by another run \(process {os.getpid()} on .*another --workdir'
  with logs.lock(tmp_path), pytest.raises(RuntimeError, match=message), logs.lock(tmp_path):
    pytest.fail('two runs in one workdir')
  with logs.lock(tmp_path):
    pass


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits(tmp_path):
  fit(tmp_path / 'a'), fit(tmp_path / 'b'), fit(tmp_path / 'c', seed=6)
  assert states(tmp_path / 'a') == states(tmp_path / 'b') != states(tmp_path / 'c')


ELSEWHERE = """
import hashlib, json, socket, sys
def refuse(*args, **options):
  raise OSError('there is no network')
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import jax
jax.config.update('jax_platforms', 'cpu')
from zsad_jax.clip import model as clip_lib, preprocess
from zsad_jax.data import images
from zsad_jax.engine import logs
clip = clip_lib.load('tiny', image_size=64)
pixels = preprocess.image_transform(clip.arch, 64)(images.read_rgb(sys.argv[1]))
logs.write_json(sys.argv[2], {'größe': 1.5, 'ids': clip.tokenize(['a photo of a Größe 1,5']).tolist(),
  'weights': clip.fingerprint, 'pixels': hashlib.sha256(pixels.tobytes()).hexdigest()})
"""


@pytest.mark.slow
def test_another_locale_no_network_no_home_and_no_gpu_give_the_same(tmp_path):
  picture = tmp_path / 'Größe.png'
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)).save(picture)
  env = {k: v for k, v in os.environ.items() if k not in ('HOME', 'LANG', 'XLA_FLAGS') and not k.startswith('LC_')}
  (tmp_path / 'elsewhere.py').write_text(ELSEWHERE, encoding='utf-8')
  env |= {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0', 'PYTHONPATH': str(ROOT)}
  done = subprocess.run([sys.executable, tmp_path / 'elsewhere.py', picture, tmp_path / 'out.json'], cwd=tmp_path,
                        capture_output=True, check=False, env=env)
  assert done.returncode == 0, done.stderr.decode(errors='replace')
  clip = clip_lib.load('tiny', image_size=64)
  pixels = preprocess.image_transform(clip.arch, 64)(images.read_rgb(picture))
  assert json.loads((tmp_path / 'out.json').read_text(encoding='utf-8')) == {
    'größe': 1.5, 'ids': clip.tokenize(['a photo of a Größe 1,5']).tolist(), 'weights': clip.fingerprint,
    'pixels': hashlib.sha256(pixels.tobytes()).hexdigest()}
