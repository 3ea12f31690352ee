"""The training loop: one trace, exact resume, padding that weighs nothing, the optimizer's trap."""

import functools
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
from hypothesis import given, settings
from hypothesis import strategies as st

from zsad_jax.clip.feature_spec import Features
from zsad_jax.engine import checkpoint, logs, runtime, train

COUNT, E = 21, 6
CLS = np.random.default_rng(0).normal(size=(COUNT, E)).astype(np.float32)
OPTIM = {'lr': 1e-2, 'b1': .5, 'b2': .999}
ONE = runtime.place(jax.devices()[:1])
FROZEN = {'scale': np.float32(1.5)}


def read(indices):
  return Features(CLS[indices], {}), {'label': (CLS[indices].sum(1) > 0).astype(np.int32),
                                      'id': [f'bottle/{i:03d}' for i in indices]}


def rows(indices):
  """(features, batch) as a step takes them."""
  features, batch = read(np.asarray(indices))
  return features, {'label': batch['label'], 'valid': np.ones(len(features.cls), bool)}


def loss(learnable, frozen, features, batch, rng):
  noisy = features.cls + .1 * jax.random.normal(rng, (E,))[None]
  wrong = (jnp.tanh(noisy @ learnable['w']) * frozen['scale'] - batch['label']) ** 2
  return jnp.sum(wrong * batch['valid']) / jnp.sum(batch['valid']), {'norm': jnp.sum(learnable['w'] ** 2)}


def fit(workdir=None, loss=loss, **options):
  options = {'read': read, 'epochs': 3, 'batch': 8, 'seed': 5, 'place': ONE, 'count': COUNT} | options
  learnable, frozen = {'w': np.full(E, .1, np.float32)}, FROZEN
  return train.fit(loss, train.make_tx(OPTIM), learnable, frozen, options.pop('read'), options.pop('count'),
                   workdir=workdir, **options)['w']


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """(workdir, learned w) of the run that nothing interrupted."""
  workdir = tmp_path_factory.mktemp('whole')
  with logs.Writer(workdir) as writer:
    return workdir, fit(workdir, writer=writer)


def numbers(workdir):
  """metrics.jsonl without the pace."""
  lines = [json.loads(line) for line in (Path(workdir) / 'metrics.jsonl').read_text().splitlines()]
  return [{name: value for name, value in line.items() if name not in ('train/seconds', 'train/images_per_s')}
          for line in lines]


def test_adam_trap():
  """Betas (0.5, 0.999): after gradients +g and -g from 0 a parameter stands at -6.667e-4, not at -9.474e-4."""
  tx = train.make_tx({'lr': 1e-3, 'b1': .5, 'b2': .999})
  step = train.make_step(lambda learnable, frozen, features, batch, rng: (batch['g'] * learnable['x'], {}), tx)
  state = train.initial({'x': np.float32(0)}, tx, seed=0)
  for g in (.3, -.3):
    state, _ = step(state, {}, None, {'g': np.float32(g)})
  np.testing.assert_allclose(state.learnable['x'], -6.667e-4, atol=1e-7)


SGD = {'name': 'sgd', 'lr': .002, 'momentum': .9, 'weight_decay': 5e-4}
COSINE = {'schedule': 'cosine', 'epochs': 15, 'warmup_epochs': 1, 'warmup_lr': 1e-5}
ADAMW = {'name': 'adamw', 'lr': 1e-3, 'b1': .9, 'b2': .999, 'weight_decay': 1e-4}
STEP = {'schedule': 'step', 'every': 1, 'gamma': .1}


@pytest.mark.parametrize('optim, message', [
  ({'lr': 1e-3}, 'optim has lr; adam at a constant rate takes lr, b1, b2 and, if need be, eps'),
  (OPTIM | {'weight_decay': 0.}, 'optim has b1, b2, lr, weight_decay; adam at a constant rate takes lr, b1, b2 and'),
  (OPTIM | {'lr': 0.}, 'optim.lr 0.0 is not positive'), (OPTIM | {'b1': 1.}, r'optim.b1 1.0 is not in \[0, 1\)'),
  (OPTIM | {'b2': -.1}, r'optim.b2 -0.1 is not in \[0, 1\)'), (OPTIM | {'eps': 0}, 'optim.eps 0 is not positive'),
  (OPTIM | {'name': 'lion'}, "optim.name 'lion' is not one of adam, adamw, sgd"),
  (OPTIM | {'schedule': 'linear'}, "optim.schedule 'linear' is not one of constant, cosine, step"),
  (OPTIM | {'epochs': 3}, 'adam at a constant rate takes'), (SGD | {'eps': 1e-8}, 'sgd at a constant rate takes lr, '),
  (SGD | {'schedule': 'cosine'},
   'sgd at a cosine rate takes lr, momentum, weight_decay, epochs, warmup_epochs, warmup_lr$'),
  (SGD | {'momentum': 1.}, r'optim.momentum 1.0 is not in \[0, 1\)'),
  (SGD | {'weight_decay': -1.}, 'optim.weight_decay -1.0 is not 0 or more'),
  (SGD | COSINE | {'warmup_epochs': -1}, 'optim.warmup_epochs -1 is not 0 or more'),
  (SGD | COSINE | {'epochs': 0}, 'optim.epochs 0 is not positive'),
  (ADAMW | STEP | {'every': 0}, 'optim.every 0 is not positive'),
  (ADAMW | STEP | {'gamma': 0.}, 'optim.gamma 0.0 is not positive')])
def test_optimizer_config_is_checked(optim, message):
  with pytest.raises(ValueError, match=message):
    train.make_tx(optim)


def test_adam_without_decay_as_configured():
  ours, theirs = train.make_tx(OPTIM | {'eps': 1e-3}), optax.adam(1e-2, b1=.5, b2=.999, eps=1e-3)
  params, grads = jnp.full(3, 5.), jnp.arange(3.)
  np.testing.assert_array_equal(ours.update(grads, ours.init(params), params)[0],
                                theirs.update(grads, theirs.init(params), params)[0])
  assert jax.tree.structure(ours.init(params)) == jax.tree.structure(theirs.init(params))  # older checkpoints restore
  np.testing.assert_array_equal(train.make_tx(OPTIM | {'name': 'adam'}).init(params)[0].mu, 0)


def test_adamws_decay_is_apart_from_its_gradient():
  """One step without gradient shrinks the weights by lr * weight_decay, and by nothing else."""
  tx, params = train.make_tx(ADAMW), jnp.full(3, 5.)
  updates, _ = tx.update(jnp.zeros(3), tx.init(params), params)
  np.testing.assert_allclose(updates, -1e-3 * 1e-4 * 5, rtol=1e-6)


def test_sgds_decay_goes_through_the_momentum():
  tx, w, path = train.make_tx(SGD | {'lr': .1}), jnp.float32(2.), []
  state = tx.init(w)
  for g in (1., 0.):
    updates, state = tx.update(jnp.float32(g), state, w)
    w = w + updates
    path.append(float(w))
  first = 1. + 5e-4 * 2
  second = .9 * first + 5e-4 * (2 - .1 * first)
  np.testing.assert_allclose(path, [2 - .1 * first, 2 - .1 * first - .1 * second], rtol=1e-6)


@pytest.mark.parametrize('optim, torch_class, options', [
  (SGD, 'SGD', {'momentum': .9, 'weight_decay': 5e-4}),
  (ADAMW, 'AdamW', {'betas': (.9, .999), 'weight_decay': 1e-4})], ids=['sgd', 'adamw'])
def test_optimizers_are_torchs(optim, torch_class, options, torch):
  grads = np.random.default_rng(3).normal(size=(6, 4)).astype(np.float32)
  theirs = torch.nn.Parameter(torch.full((4,), .7))
  optimizer = getattr(torch.optim, torch_class)([theirs], lr=optim['lr'], **options)
  tx, ours = train.make_tx(optim), jnp.full(4, .7)
  state = tx.init(ours)
  for g in grads:
    theirs.grad = torch.tensor(g)
    optimizer.step()
    updates, state = tx.update(jnp.asarray(g), state, ours)
    ours = ours + updates
  np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=2e-6)


def test_coops_schedule_is_1e5_then_a_cosine_of_all_epochs():
  """Epoch 0: 1e-5; epoch k >= 1: 0.001 (1 + cos(pi (k - 1) / T))."""
  rate = jax.jit(train.learning_rate(SGD | COSINE))
  rates = [float(rate(jnp.int32(k))) for k in range(15)]
  stated = [1e-5] + [.001 * (1 + np.cos(np.pi * (k - 1) / 15)) for k in range(1, 15)]
  np.testing.assert_allclose(rates, stated, rtol=1e-5)
  np.testing.assert_allclose([rates[1], rates[2], rates[14]], [.002, 1.978148e-3, 8.645454e-5], rtol=1e-5)
  assert float(rate(jnp.int32(16))) == 0  # and it does not rise again


def test_cosine_is_torchs_behind_a_constant_warm_up(torch):
  optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=.002)
  successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
  rates = [1e-5, 1e-5]  # as a wrapper that starts the successor after two epochs
  for _ in range(7):
    rates.append(optimizer.param_groups[0]['lr'])
    optimizer.step()
    successor.step()
  ours = train.learning_rate(SGD | COSINE | {'epochs': 9, 'warmup_epochs': 2})
  np.testing.assert_allclose([float(ours(k)) for k in range(9)], rates, rtol=1e-5)


def test_step_decay_and_a_constant_rate():
  rate = train.learning_rate(ADAMW | STEP | {'every': 2})
  np.testing.assert_allclose([rate(k) for k in range(5)], [1e-3, 1e-3, 1e-4, 1e-4, 1e-5], rtol=1e-6)
  assert train.learning_rate(OPTIM)(7) == OPTIM['lr']


def test_warm_up_that_covers_everything_is_said(caplog):
  with caplog.at_level('WARNING'):
    rate = train.learning_rate(SGD | COSINE | {'epochs': 1})
  assert 'all 1 epochs are warm-up, at a learning rate of 1e-05' in caplog.text
  np.testing.assert_allclose(rate(0), 1e-5)


def downhill(learnable, frozen, features, batch, rng):
  """A loss of gradient 1."""
  return jnp.sum(learnable['w']), {}


@pytest.mark.parametrize('optim', [SGD | COSINE | {'epochs': 3}, SGD | STEP], ids=['cosine', 'step'])
def test_fit_tells_the_schedule_its_epochs_also_when_it_goes_on(tmp_path, optim):
  plain = optim | {'momentum': 0., 'weight_decay': 0.}
  rates = train.learning_rate(plain)
  tx, w = train.make_tx(plain), {'w': np.zeros(1, np.float32)}
  go = functools.partial(train.fit, downhill, tx, w, FROZEN, read, COUNT, epochs=3, batch=8, seed=0, place=ONE,
                         workdir=tmp_path)
  with pytest.raises(runtime.Preempted):
    go(stop=StopAt(4))
  np.testing.assert_allclose(train.learned(tmp_path, w, tx)['w'][0], -3 * rates(0) - rates(1), rtol=1e-5)
  np.testing.assert_allclose(go()['w'][0], -3 * sum(rates(k) for k in range(3)), rtol=1e-5)


def test_a_step_that_does_not_know_its_epoch_refuses_a_schedule():
  tx, w = train.make_tx(SGD | COSINE), {'w': jnp.zeros(E)}
  with pytest.raises(ValueError, match='the learning rate follows the epoch; give make_step per_epoch'):
    train.make_step(loss, tx)(train.initial(w, tx, 0), FROZEN, *rows(range(8)))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2 ** 31), st.integers(0, 50), st.integers(1, 60), st.integers(1, 20), st.data())
def test_every_epoch_visits_every_image_once(seed, epoch, count, batch, data):
  assert sorted(train.order(seed, epoch, count)) == list(range(count))
  per_epoch = -(-count // batch)
  whole = list(train._plan(seed, count, batch, 0, 3, False))
  assert len(whole) == 3 * per_epoch
  np.testing.assert_array_equal(np.concatenate(whole[per_epoch:2 * per_epoch]), train.order(seed, 1, count))
  done = data.draw(st.integers(0, 3 * per_epoch))
  for a, b in zip(whole[done:], train._plan(seed, count, batch, done, 3, False), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('count, steps', [(1725, 216), (2162, 271)])
def test_steps_an_epoch_of_the_published_recipe(count, steps):
  assert len(list(train._plan(111, count, 8, 0, 1, False))) == steps


def test_order_is_fixed_across_versions():
  np.testing.assert_array_equal(train.order(111, 0, 8), [1, 6, 0, 7, 5, 4, 2, 3])
  assert not np.array_equal(train.order(111, 0, 99), train.order(111, 1, 99))


def test_unshuffled_epochs_keep_the_data_sets_order(tmp_path):
  seen = []
  fit(tmp_path, epochs=2, shuffle=False, read=lambda indices: (seen.append(list(indices)), read(indices))[1])
  once = list(range(COUNT))
  batches = [once[at:at + 8] for at in range(0, COUNT, 8)]
  assert [batch[:len(want)] for batch, want in zip(seen, batches * 2)] == batches * 2 and len(seen) == 2 * len(batches)
  with pytest.raises(ValueError, match='another run: shuffle is False there, None here'):
    fit(tmp_path)


def test_loop_is_the_plain_loop(whole):
  """fit against ten lines that pad nothing."""
  tx = train.make_tx(OPTIM)
  w = {'w': jnp.full(E, .1)}
  opt, rng, means = tx.init(w), jax.random.key(5), []
  for epoch in range(3):
    images, losses = train.order(5, epoch, COUNT), []
    for at in range(0, COUNT, 8):
      noise = jax.random.fold_in(rng, epoch * 3 + at // 8)
      (value, _), grads = jax.value_and_grad(loss, has_aux=True)(w, FROZEN, *rows(images[at:at + 8]), noise)
      updates, opt = tx.update(grads, opt)
      w = optax.apply_updates(w, updates)
      losses.append(float(value))
    means.append(np.mean(losses))
  workdir, learned = whole
  np.testing.assert_allclose(learned, w['w'], atol=1e-6)
  written = numbers(workdir)
  assert [(line['step'], line['epoch']) for line in written] == [(3, 1), (6, 2), (9, 3)]
  np.testing.assert_allclose([line['train/loss'] for line in written], means, rtol=1e-5)
  assert set(written[0]) == {'step', 'epoch', 'train/loss', 'train/norm', 'train/grad_norm'}
  assert checkpoint.steps(workdir / 'checkpoints') == [3, 6, 9]


@pytest.mark.parametrize('batch', [8, 3])
def test_one_device_and_eight_agree(batch):
  np.testing.assert_allclose(fit(place=runtime.place(), batch=batch), fit(batch=batch), atol=1e-5)


@pytest.mark.parametrize('place', [ONE, runtime.place()], ids=['one', 'eight'])
def test_one_trace_for_full_and_partial_batches(place):
  traces = []

  def counted(*args):
    traces.append(args)
    return loss(*args)

  fit(loss=counted, place=place)
  assert len(traces) == 1


def test_batch_of_one_and_count_below_the_batch():
  assert np.isfinite(fit(batch=1)).all()
  assert np.isfinite(fit(count=1)).all()


def test_padding_weighs_nothing(whole):
  """Partial batches see their own images only: poison what they are padded with."""
  def poisoned(indices):
    features, batch = read(indices)
    repeats = [i for i in range(1, len(indices)) if indices[i] in indices[:i]]
    features.cls[repeats] = 1e3
    return features, batch

  np.testing.assert_array_equal(fit(read=poisoned), whole[1])


def test_callers_arrays_survive_donation():
  tx, before = train.make_tx(OPTIM), np.full(E, .1, np.float32)
  for w in ({'w': jnp.asarray(before)}, {'w': before.copy()}):
    train.fit(loss, tx, w, FROZEN, read, COUNT, epochs=1, batch=8, seed=0, place=ONE)
    np.testing.assert_array_equal(w['w'], before)
  tx, w = optax.sgd(1.), {'w': jnp.asarray(before)}
  state, _ = train.make_step(loss, tx)(train.initial(w, tx, 0), FROZEN, *rows(range(8)))
  np.testing.assert_array_equal(w['w'], before)
  assert not np.array_equal(state.learnable['w'], before)


def test_same_seed_same_bits_other_seed_other_numbers(whole):
  np.testing.assert_array_equal(fit(), whole[1])
  assert not np.array_equal(fit(seed=6), whole[1])


class StopAt:
  """An event that comes while step `step` runs."""

  def __init__(self, step):
    self.left = step

  def is_set(self):
    self.left -= 1
    return self.left == 0


def test_preempted_run_equals_the_uninterrupted_one(tmp_path, whole):
  done = 0
  for at in (2, 6, 7):  # inside an epoch, at the end of one, one step later
    with logs.Writer(tmp_path) as writer, pytest.raises(runtime.Preempted, match=f'after step {at} of 9'):
      fit(tmp_path, writer=writer, stop=StopAt(at - done))
    assert checkpoint.latest(tmp_path / 'checkpoints') == at
    done = at
  with logs.Writer(tmp_path) as writer:
    np.testing.assert_array_equal(fit(tmp_path, writer=writer, stop=StopAt(2)), whole[1])  # the last step
  assert numbers(tmp_path) == numbers(whole[0])


KILLED = f"""
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


def test_killed_run_equals_the_uninterrupted_one(tmp_path):
  """kill -9 at random moments, also while a checkpoint or a line is written; the last start finishes."""
  with logs.Writer(tmp_path / 'whole') as writer:
    whole = fit(tmp_path / 'whole', writer=writer, epochs=8)
  rng, cut = np.random.default_rng(1), tmp_path / 'cut'
  for _ in range(2):
    before = checkpoint.latest(cut / 'checkpoints') or 0
    process = subprocess.Popen([sys.executable, '-c', KILLED, str(cut)], stdout=subprocess.PIPE)
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


def test_damaged_checkpoint_costs_an_epoch_not_the_run(tmp_path, whole):
  shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
  (tmp_path / 'checkpoints' / '9' / '_CHECKPOINT_METADATA').unlink()
  with logs.Writer(tmp_path) as writer:
    writer.scalars(8, {'val/loss': 1.})  # of the steps that are lost
    np.testing.assert_array_equal(fit(tmp_path, writer=writer), whole[1])
  assert numbers(tmp_path) == numbers(whole[0])
  np.testing.assert_array_equal(train.learned(tmp_path, {'w': whole[1]}, train.make_tx(OPTIM), 9)['w'], whole[1])


def test_more_epochs_go_on(tmp_path, whole):
  fit(tmp_path, epochs=2)
  np.testing.assert_array_equal(fit(tmp_path, epochs=3), whole[1])
  with pytest.raises(ValueError, match='holds 9 steps, 2 epochs are 6; choose another workdir'):
    fit(tmp_path, epochs=2)


@pytest.mark.parametrize('change, message', [
  ({'seed': 6}, 'seed is 5 there, 6 here'), ({'batch': 4}, 'batch is 8 there, 4 here'),
  ({'count': 20}, 'count is 21 there, 20 here'), ({'identity': {'data': 'ef'}}, 'data is ab there, ef here')])
def test_another_run_is_not_resumed(tmp_path, change, message):
  fit(tmp_path, epochs=1, identity={'data': 'ab'})
  with pytest.raises(ValueError, match=message):
    fit(tmp_path, **{'identity': {'data': 'ab'}} | change)


def test_learned_is_read_without_training(tmp_path, whole):
  shapes, tx = {'w': jax.ShapeDtypeStruct((E,), np.float32)}, train.make_tx(OPTIM)
  np.testing.assert_array_equal(train.learned(whole[0], shapes, tx)['w'], whole[1])
  np.testing.assert_array_equal(train.learned(whole[0], shapes, tx, 3)['w'], fit(epochs=1))
  assert train.learned(tmp_path / 'none', shapes, tx) is None


@pytest.mark.parametrize('name', ['loss', 'norm'])
def test_nan_stops_and_names_epoch_step_and_images(tmp_path, name):
  bad = int(train.order(5, 1, COUNT)[17])  # in the last, partial batch of the second epoch

  def broken(learnable, frozen, features, batch, rng):
    value, metrics = loss(learnable, frozen, features, batch, rng)
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
from zsad_jax import runtime
runtime.initialize(True, coordinator_address=sys.argv[2], num_processes=2, process_id=int(sys.argv[3]))
import test_train as t
writer = t.logs.Writer(sys.argv[1]) if t.jax.process_index() == 0 else None
t.fit(sys.argv[1], writer=writer, place=runtime.place(), epochs=1)
print('learned', *t.fit(sys.argv[1], writer=writer, place=runtime.place()))
"""


def test_two_processes_train_as_one(tmp_path, whole):
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    address = f'localhost:{probe.getsockname()[1]}'
  both = [subprocess.Popen([sys.executable, '-c', PROCESS, str(tmp_path), address, str(i)], stdout=subprocess.PIPE)
          for i in range(2)]
  for process in both:
    said = next(line for line in process.communicate(timeout=120)[0].splitlines() if line.startswith(b'learned'))
    np.testing.assert_allclose(np.array(said.split()[1:], float), whole[1], atol=1e-5)
  assert [line['step'] for line in numbers(tmp_path)] == [3, 6, 9]
  assert checkpoint.steps(tmp_path / 'checkpoints') == [3, 6, 9]
