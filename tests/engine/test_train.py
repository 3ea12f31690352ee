"""The training loop: one trace, exact resume, padding without weight, errors that name epoch, step and images."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsad_jax.clip.feature_spec import Features
from zsad_jax.engine import checkpoint, logs, optimizers, runtime, train

COUNT, E = 21, 6
CLS = np.random.default_rng(0).normal(size=(COUNT, E)).astype(np.float32)
OPTIM = {'lr': 1e-2, 'b1': .5, 'b2': .999}
ONE = runtime.place(jax.devices()[:1])
CONTEXT = {'scale': np.float32(1.5)}
RECIPE = train.Recipe(epochs=3, batch=8, seed=5)


def read(indices):
  return Features(CLS[indices], {}), {'label': (CLS[indices].sum(1) > 0).astype(np.int32),
                                      'id': [f'bottle/{i:03d}' for i in indices]}


def rows(indices):
  """(features, batch) as a step takes them."""
  features, batch = read(np.asarray(indices))
  return features, {'label': batch['label'], 'valid': np.ones(len(features.cls), bool)}


def loss(params, context, features, batch, rng):
  noisy = features.cls + .1 * jax.random.normal(rng, (E,))[None]
  wrong = (jnp.tanh(noisy @ params['w']) * context['scale'] - batch['label']) ** 2
  return jnp.sum(wrong * batch['valid']) / jnp.sum(batch['valid']), {'norm': jnp.sum(params['w'] ** 2)}


def fit(workdir=None, *, loss=loss, read=read, count=COUNT, place=ONE, writer=None, identity=None, stop=None, **recipe):
  """w after a training whose recipe has these changes."""
  session = train.Session(workdir, writer, identity or {}, stop)
  return train.fit(loss, optimizers.make_tx(OPTIM), {'w': np.full(E, .1, np.float32)}, CONTEXT,
                   train.Source(read, count), RECIPE._replace(**recipe), session, place)['w']


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """(workdir, trained w) of a run that nothing interrupted."""
  workdir = tmp_path_factory.mktemp('whole')
  with logs.Writer(workdir) as writer:
    return workdir, fit(workdir, writer=writer)


def numbers(workdir):
  """metrics.jsonl without the throughput."""
  lines = [json.loads(line) for line in (Path(workdir) / 'metrics.jsonl').read_text().splitlines()]
  return [{name: value for name, value in line.items() if name not in ('train/seconds', 'train/images_per_s')}
          for line in lines]


class StopAt:
  """An event that is set while step `step` runs."""

  def __init__(self, step):
    self.left = step

  def is_set(self):
    self.left -= 1
    return self.left == 0


@pytest.mark.slow
@pytest.mark.parametrize('optim', [
  {'schedule': 'cosine', 'epochs': 3, 'warmup_epochs': 1, 'warmup_lr': 1e-5},
  {'schedule': 'step', 'every': 1, 'gamma': .1}], ids=['cosine', 'step'])
def test_the_learning_rate_follows_the_epochs_through_a_resume(tmp_path, optim):
  optim = {'name': 'sgd', 'lr': .002, 'momentum': 0., 'weight_decay': 0.} | optim
  rates = optimizers.learning_rate(optim)
  tx, w = optimizers.make_tx(optim), {'w': np.zeros(1, np.float32)}
  slope_one = lambda params, *_: (jnp.sum(params['w']), {})

  def run(stop=None):
    return train.fit(slope_one, tx, w, CONTEXT, train.Source(read, COUNT), RECIPE, train.Session(tmp_path, stop=stop),
                     ONE)

  with pytest.raises(runtime.Preempted):
    run(StopAt(4))
  np.testing.assert_allclose(train.restore(tmp_path, w, tx)['w'][0], -3 * rates(0) - rates(1), rtol=1e-5)
  np.testing.assert_allclose(run()['w'][0], -3 * sum(rates(k) for k in range(3)), rtol=1e-5)


def test_a_schedule_needs_the_steps_per_epoch():
  tx = optimizers.make_tx(OPTIM | {'schedule': 'step', 'every': 1, 'gamma': .1})
  with pytest.raises(ValueError, match='steps_per_epoch'):
    train.make_step(loss, tx)(train.initial({'w': jnp.zeros(E)}, tx, 0), CONTEXT, *rows(range(8)))


def batches(seed, count, batch, done, epochs, shuffle=True):
  return list(train._batches(train.Source(read, count), train.Recipe(epochs, batch, seed, shuffle), done))


@given(st.integers(0, 2 ** 31), st.integers(0, 50), st.integers(1, 60), st.integers(1, 20), st.data())
def test_every_epoch_visits_every_image_once(seed, epoch, count, batch, data):
  assert sorted(train.order(seed, epoch, count)) == list(range(count))
  per_epoch = -(-count // batch)
  all_batches = batches(seed, count, batch, 0, 3)
  assert len(all_batches) == 3 * per_epoch
  np.testing.assert_array_equal(np.concatenate(all_batches[per_epoch:2 * per_epoch]), train.order(seed, 1, count))
  done = data.draw(st.integers(0, 3 * per_epoch))
  for a, b in zip(all_batches[done:], batches(seed, count, batch, done, 3), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('count, steps', [(1725, 216), (2162, 271)])
def test_steps_per_epoch_of_the_published_recipe(count, steps):
  assert len(batches(111, count, 8, 0, 1)) == RECIPE.steps_per_epoch(count) == steps


def test_order_is_fixed_across_versions():
  np.testing.assert_array_equal(train.order(111, 0, 8), [1, 6, 0, 7, 5, 4, 2, 3])
  assert not np.array_equal(train.order(111, 0, 99), train.order(111, 1, 99))


def test_without_shuffling_epochs_keep_the_order_of_the_data_set(tmp_path):
  reads = []
  fit(tmp_path, epochs=2, shuffle=False, read=lambda indices: (reads.append(list(indices)), read(indices))[1])
  once = list(range(COUNT))
  expected = [once[at:at + 8] for at in range(0, COUNT, 8)] * 2
  assert [batch[:len(want)] for batch, want in zip(reads, expected, strict=True)] == expected
  with pytest.raises(ValueError, match='another run: shuffle is False there and True here'):
    fit(tmp_path)


def test_images_that_are_new_every_epoch_are_read_at_indices_of_their_own():
  reads, new = [], train.Source(lambda indices: (reads.append(list(indices)), read(indices % COUNT))[1], COUNT, True)
  recipe = RECIPE._replace(epochs=2, shuffle=False)
  train.fit(loss, optimizers.make_tx(OPTIM), {'w': np.zeros(E, np.float32)}, CONTEXT, new, recipe, place=ONE)
  assert reads[0] == list(range(8)) and reads[3] == list(range(COUNT, COUNT + 8))
  assert {index for indices in reads for index in indices} == set(range(2 * COUNT))


@pytest.mark.slow
def test_fit_equals_a_plain_loop(whole):
  """fit against ten lines that pad nothing."""
  tx = optimizers.make_tx(OPTIM)
  w = {'w': jnp.full(E, .1)}
  opt, rng, means = tx.init(w), jax.random.key(5), []
  grad, update = jax.jit(jax.value_and_grad(loss, has_aux=True)), jax.jit(tx.update)
  for epoch in range(3):
    images, losses = train.order(5, epoch, COUNT), []
    for at in range(0, COUNT, 8):
      noise = jax.random.fold_in(rng, epoch * 3 + at // 8)
      (value, _), grads = grad(w, CONTEXT, *rows(images[at:at + 8]), noise)
      updates, opt = update(grads, opt)
      w = optax.apply_updates(w, updates)
      losses.append(float(value))
    means.append(np.mean(losses))
  workdir, trained = whole
  np.testing.assert_allclose(trained, w['w'], atol=1e-6)
  lines = numbers(workdir)
  assert [(line['step'], line['epoch']) for line in lines] == [(3, 1), (6, 2), (9, 3)]
  np.testing.assert_allclose([line['train/loss'] for line in lines], means, rtol=1e-5)
  assert set(lines[0]) == {'step', 'epoch', 'train/loss', 'train/norm', 'train/grad_norm'}
  assert checkpoint.steps(workdir / 'checkpoints') == [3, 6, 9]


def test_one_trace_for_full_and_partial_batches():
  traces = []

  def counted(*args):
    traces.append(args)
    return loss(*args)

  fit(loss=counted)
  assert len(traces) == 1


@pytest.mark.slow
def test_batch_of_one_and_count_below_the_batch():
  assert np.isfinite(fit(batch=1)).all()
  assert np.isfinite(fit(count=1)).all()


def test_padding_has_no_weight(whole):
  """Partial batches depend on their own images only: spoil the copies that they are padded with."""
  def spoiled(indices):
    features, batch = read(indices)
    repeats = [i for i in range(1, len(indices)) if indices[i] in indices[:i]]
    features.cls[repeats] = 1e3
    return features, batch

  np.testing.assert_array_equal(fit(read=spoiled), whole[1])


def test_arrays_of_the_caller_survive_donation():
  tx, before = optimizers.make_tx(OPTIM), np.full(E, .1, np.float32)
  for w in ({'w': jnp.asarray(before)}, {'w': before.copy()}):
    train.fit(loss, tx, w, CONTEXT, train.Source(read, COUNT), RECIPE._replace(epochs=1), place=ONE)
    np.testing.assert_array_equal(w['w'], before)
  tx, w = optax.sgd(1.), {'w': jnp.asarray(before)}
  state, _ = train.make_step(loss, tx)(train.initial(w, tx, 0), CONTEXT, *rows(range(8)))
  np.testing.assert_array_equal(w['w'], before)
  assert not np.array_equal(state.params['w'], before)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(whole):
  np.testing.assert_array_equal(fit(), whole[1])
  assert not np.array_equal(fit(seed=6), whole[1])


@pytest.mark.slow
def test_preempted_run_equals_the_uninterrupted_one(tmp_path, whole):
  done = 0
  for at in (2, 6, 7):  # inside an epoch, at the end of one, one step later
    with logs.Writer(tmp_path) as writer, pytest.raises(runtime.Preempted, match=f'after step {at} of 9'):
      fit(tmp_path, writer=writer, stop=StopAt(at - done))
    assert checkpoint.latest(tmp_path / 'checkpoints') == at
    done = at
  with logs.Writer(tmp_path) as writer:
    np.testing.assert_array_equal(fit(tmp_path, writer=writer, stop=StopAt(2)), whole[1])  # during the last step
  assert numbers(tmp_path) == numbers(whole[0])


SLOW_RUN = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_train as t
def slowly(indices):
  time.sleep(.004)
  return t.read(indices)
with t.logs.Writer(sys.argv[1]) as writer:
  t.fit(sys.argv[1], writer=writer, read=slowly, epochs=8)
print('done')
"""


@pytest.mark.multiprocess
def test_killed_run_equals_the_uninterrupted_one(tmp_path):
  """kill -9 at random moments, also while a checkpoint or a line is written; the last start finishes."""
  with logs.Writer(tmp_path / 'whole') as writer:
    whole = fit(tmp_path / 'whole', writer=writer, epochs=8)
  rng, cut = np.random.default_rng(1), tmp_path / 'cut'
  for _ in range(2):
    before = checkpoint.latest(cut / 'checkpoints') or 0
    process = subprocess.Popen([sys.executable, '-c', SLOW_RUN, str(cut)], stdout=subprocess.PIPE)
    while (checkpoint.latest(cut / 'checkpoints') or 0) == before and process.poll() is None:
      time.sleep(.01)
    time.sleep(rng.uniform(0, .12))
    process.send_signal(signal.SIGKILL)
    out, _ = process.communicate()
    assert out == b''
  with logs.Writer(cut) as writer:
    np.testing.assert_array_equal(fit(cut, writer=writer, epochs=8), whole)
  assert numbers(cut) == numbers(tmp_path / 'whole')
  assert checkpoint.steps(cut / 'checkpoints') == [3 * epoch for epoch in range(1, 9)]


def test_a_damaged_checkpoint_costs_an_epoch_and_not_the_run(tmp_path, whole):
  shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
  (tmp_path / 'checkpoints' / '9' / '_CHECKPOINT_METADATA').unlink()
  with logs.Writer(tmp_path) as writer:
    writer.scalars(8, {'val/loss': 1.})  # of the lost steps
    np.testing.assert_array_equal(fit(tmp_path, writer=writer), whole[1])
  assert numbers(tmp_path) == numbers(whole[0])
  np.testing.assert_array_equal(train.restore(tmp_path, {'w': whole[1]}, optimizers.make_tx(OPTIM), 9)['w'], whole[1])


def test_more_epochs_continue_and_fewer_are_refused(tmp_path, whole):
  fit(tmp_path, epochs=2)
  np.testing.assert_array_equal(fit(tmp_path, epochs=3), whole[1])
  with pytest.raises(ValueError, match=r'holds 9 steps, but 2 epochs are 6; .*workdir'):
    fit(tmp_path, epochs=2)


@pytest.mark.slow
@pytest.mark.parametrize('change, message', [
  ({'seed': 6}, 'seed is 5 there and 6 here'), ({'batch': 4}, 'batch is 8 there and 4 here'),
  ({'count': 20}, 'count is 21 there and 20 here'), ({'identity': {'data': 'ef'}}, 'data is ab there and ef here')])
def test_another_run_is_not_resumed(tmp_path, change, message):
  fit(tmp_path, epochs=1, identity={'data': 'ab'})
  with pytest.raises(ValueError, match=message):
    fit(tmp_path, **{'identity': {'data': 'ab'}} | change)


def test_restore_returns_trained_parameters_of_any_epoch(tmp_path, whole):
  shapes, tx = {'w': jax.ShapeDtypeStruct((E,), np.float32)}, optimizers.make_tx(OPTIM)
  np.testing.assert_array_equal(train.restore(whole[0], shapes, tx)['w'], whole[1])
  np.testing.assert_array_equal(train.restore(whole[0], shapes, tx, 3)['w'], fit(epochs=1))
  assert train.restore(tmp_path / 'none', shapes, tx) is None


def test_restore_refuses_another_identity(tmp_path):
  fit(tmp_path, epochs=1, identity={'data': 'ab', 'layers': (1, 2)})
  shapes, tx = {'w': jax.ShapeDtypeStruct((E,), np.float32)}, optimizers.make_tx(OPTIM)
  assert train.restore(tmp_path, shapes, tx, identity={'data': 'ab', 'layers': (1, 2)}) is not None
  with pytest.raises(ValueError, match='another run: data is ab there and ef here'):
    train.restore(tmp_path, shapes, tx, identity={'data': 'ef'})


@pytest.mark.slow
@pytest.mark.parametrize('name', ['loss', 'norm'])
def test_nan_stops_and_names_epoch_step_and_images(tmp_path, name):
  bad = int(train.order(5, 1, COUNT)[17])  # in the last, partial batch of the second epoch

  def broken(params, context, features, batch, rng):
    value, metrics = loss(params, context, features, batch, rng)
    hit = jnp.any((batch['number'] == bad) & batch['valid']) & (rng_step(rng) >= 3)
    return jnp.where(hit & (name == 'loss'), jnp.nan, value), {'norm': jnp.where(hit, jnp.inf, metrics['norm'])}

  def numbered(indices):
    features, batch = read(indices)
    return features, batch | {'number': np.asarray(indices, np.int32)}

  steps = jnp.stack([jax.random.key_data(jax.random.fold_in(jax.random.key(5), i)) for i in range(9)])

  def rng_step(rng):
    return jnp.argmax(jnp.all(steps == jax.random.key_data(rng)[None], -1))

  with pytest.raises(FloatingPointError, match=r'(loss is nan|norm is inf) in epoch 2, step 3 of 3') as error:
    fit(tmp_path, loss=broken, read=numbered)
  assert error.match(f'bottle/{bad:03d}')
  assert error.value.args[0].count('bottle/') == 5  # padding is not named
  assert checkpoint.steps(tmp_path / 'checkpoints') == [3]


def test_reading_error_reaches_the_caller():
  def broken(indices):
    raise OSError('damaged feature shard')

  with pytest.raises(OSError, match='damaged feature shard'):
    fit(read=broken)


PROCESS = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from zsad_jax.engine import runtime
runtime.initialize(True, coordinator_address=sys.argv[2], num_processes=2, process_id=int(sys.argv[3]))
import test_train as t
writer = t.logs.Writer(sys.argv[1]) if t.jax.process_index() == 0 else None
t.fit(sys.argv[1], writer=writer, place=runtime.place(), epochs=1)
print('trained', *t.fit(sys.argv[1], writer=writer, place=runtime.place()))
"""


@pytest.mark.multiprocess
def test_two_processes_train_as_one(tmp_path, whole):
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    address = f'localhost:{probe.getsockname()[1]}'
  both = [subprocess.Popen([sys.executable, '-c', PROCESS, str(tmp_path), address, str(i)], stdout=subprocess.PIPE)
          for i in range(2)]
  for process in both:
    lines = process.communicate(timeout=120)[0].splitlines()
    trained = next(line for line in lines if line.startswith(b'trained'))
    np.testing.assert_allclose(np.array(trained.split()[1:], float), whole[1], atol=1e-5)
  assert [line['step'] for line in numbers(tmp_path)] == [3, 6, 9]
  assert checkpoint.steps(tmp_path / 'checkpoints') == [3, 6, 9]
