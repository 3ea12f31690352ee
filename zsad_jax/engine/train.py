"""One training loop for every method: a pure step over two trees, over stored features, resumed exactly."""

import contextlib
import functools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from tqdm import tqdm

from zsad_jax.engine import checkpoint, logs, runtime
from zsad_jax.engine.features import padded


class State(NamedTuple):
  """Everything a step changes, and nothing a step only reads."""
  step: jax.Array  # [] int32, updates done
  learnable: Any
  opt: Any
  rng: jax.Array  # [] typed key, the run's; a step folds its number in


# What each optimizer and each schedule takes beside lr, name and schedule.
OPTIMIZERS = {'adam': ('b1', 'b2'), 'adamw': ('b1', 'b2', 'weight_decay'), 'sgd': ('momentum', 'weight_decay')}
SCHEDULES = {'constant': (), 'cosine': ('epochs', 'warmup_epochs', 'warmup_lr'), 'step': ('every', 'gamma')}
STATISTICS = 'statistics'  # a key of the learnable tree that no gradient and no decay reaches; see make_step
MAY_LACK = {'adam': ('eps',), 'adamw': ('eps',), 'sgd': ()}  # eps is 1e-8 where a config does not say


def make_tx(optim: Mapping) -> optax.GradientTransformation:
  """Returns the optimizer that a config's `optim` describes; its rate is constant where no schedule is named.

  What it keeps between steps does not depend on the schedule, which `make_step` tells the epoch.

  Args:
    optim: lr; name, by default 'adam', with the keys of OPTIMIZERS; schedule, by default 'constant', with the keys
      of SCHEDULES (see learning_rate). 'sgd' is torch's: g + weight_decay p goes through
      buffer = momentum buffer + g. 'adamw' decays every array apart from its gradient.

  Raises:
    ValueError: a key is missing, unknown or out of range.
  """
  rate = learning_rate(optim)
  name, weight_decay = optim.get('name', 'adam'), optim.get('weight_decay', 0.)
  if name == 'sgd':
    parts = [optax.add_decayed_weights(weight_decay), optax.trace(optim['momentum'])]
  else:
    parts = [optax.scale_by_adam(optim['b1'], optim['b2'], optim.get('eps', 1e-8))]
    parts += [optax.add_decayed_weights(weight_decay)] if name == 'adamw' else []
  constant = optim.get('schedule', 'constant') == 'constant'
  return optax.chain(*parts, optax.scale_by_learning_rate(optim['lr']) if constant else _descend(rate))


def learning_rate(optim: Mapping) -> Callable:
  """Returns epoch (from 0) -> learning rate, as a config's `optim` describes it.

  constant: lr.
  cosine: warmup_lr for warmup_epochs, then lr / 2 (1 + cos(pi k / epochs)) with k epochs since. It is CoOp's
    schedule (arXiv 2109.01134): k does not reach `epochs`, all that are trained, so the last rate is above 0.
  step: lr gamma^(epoch // every).

  Raises:
    ValueError: a key is missing, unknown or out of range.
  """
  _check_optim(optim)
  optim = dict(optim)
  lr, kind = optim['lr'], optim.get('schedule', 'constant')
  if kind == 'constant':
    return lambda epoch: lr
  if kind == 'step':
    return lambda epoch: lr * optim['gamma'] ** (epoch // optim['every'])
  epochs, warmup = optim['epochs'], optim['warmup_epochs']
  if warmup >= epochs:
    logging.warning('all %d epochs are warm-up, at a learning rate of %g', epochs, optim['warmup_lr'])

  def cosine(epoch):
    turn = jnp.clip((epoch - warmup) / epochs, 0, 1)
    return jnp.where(epoch < warmup, optim['warmup_lr'], lr / 2 * (1 + jnp.cos(jnp.pi * turn)))

  return cosine


def _descend(rate: Callable) -> optax.GradientTransformationExtraArgs:
  """Turns directions into updates of size rate(epoch)."""
  def update(updates, state, params=None, *, epoch=None, **others):
    del params, others
    if epoch is None:
      raise ValueError('the learning rate follows the epoch; give make_step per_epoch, the steps of one')
    return jax.tree.map(lambda u: -jnp.asarray(rate(epoch), u.dtype) * u, updates), state

  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _check_optim(optim: Mapping):
  """Raises ValueError naming the first key of `optim` that is missing, unknown or out of range."""
  name, schedule = optim.get('name', 'adam'), optim.get('schedule', 'constant')
  for key, value, allowed in (('name', name, OPTIMIZERS), ('schedule', schedule, SCHEDULES)):
    if value not in allowed:
      raise ValueError(f'optim.{key} {value!r} is not one of {", ".join(allowed)}')
  needs = ('lr', *OPTIMIZERS[name], *SCHEDULES[schedule])
  given = set(optim) - {'name', 'schedule'}
  if not set(needs) <= given <= {*needs, *MAY_LACK[name]}:
    may = ''.join(f' and, if need be, {key}' for key in MAY_LACK[name])
    raise ValueError(f'optim has {", ".join(sorted(given))}; {name} at a {schedule} rate takes {", ".join(needs)}{may}')
  for keys, fits, what in ((('lr', 'eps', 'epochs', 'warmup_lr', 'every', 'gamma'), lambda x: x > 0, 'positive'),
                           (('b1', 'b2', 'momentum'), lambda x: 0 <= x < 1, 'in [0, 1)'),
                           (('weight_decay', 'warmup_epochs'), lambda x: x >= 0, '0 or more')):
    for key in keys:
      if key in optim and not fits(optim[key]):
        raise ValueError(f'optim.{key} {optim[key]} is not {what}')


def initial(learnable, tx: optax.GradientTransformation, seed: int | Sequence[int]) -> State:
  """Returns the State of a run before its first step, also the template that checkpoints are restored to.

  Of several seeds it is that of as many runs: every leaf, those of `learnable` too, has an axis of them in front.
  """
  if isinstance(seed, Sequence):
    return jax.vmap(lambda start, one: initial(start, tx, one))(learnable, jnp.asarray(seed, jnp.uint32))
  learnable = jax.tree.map(jnp.array, learnable)  # a copy: steps donate the state, and the caller keeps his
  return State(jnp.zeros((), jnp.int32), learnable, tx.init(_parted(learnable)[0]), jax.random.key(seed))


def _parted(learnable) -> tuple[Any, dict]:
  """(what the optimizer changes, {STATISTICS: what the loss itself moves} or {})."""
  if not (isinstance(learnable, dict) and STATISTICS in learnable):
    return learnable, {}
  return {k: v for k, v in learnable.items() if k != STATISTICS}, {STATISTICS: learnable[STATISTICS]}


def make_step(loss_fn: Callable, tx: optax.GradientTransformation, out_shardings=None,
              per_epoch: int | None = None, several: bool = False) -> Callable:
  """Returns step(state, frozen, features, batch) -> (state, metrics), jitted; `state` is donated.

  Where the learnable tree has STATISTICS, such as running means, the optimizer leaves them alone: the loss gives the
  next ones as metrics[STATISTICS].

  Args:
    loss_fn: (learnable, frozen, features, batch, rng) -> (scalar, metrics); rows that batch['valid'] marks
      False must weigh nothing.
    tx: the optimizer.
    out_shardings: where state and metrics stay, Placement.copy in a data-parallel run.
    per_epoch: steps an epoch, for an optimizer whose rate changes from epoch to epoch.
    several: whether `state` is that of several runs, see initial. Features then have an axis of them behind that of
      the rows, the batch is common, and metrics are means over the runs.
  """
  tx = optax.with_extra_args_support(tx)

  def one(state, frozen, features, batch):
    rng = jax.random.fold_in(state.rng, state.step)
    changing, kept = _parted(state.learnable)

    def loss_of(part):
      return loss_fn({**part, **kept} if kept else part, frozen, features, batch, rng)

    (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(changing)
    epoch = state.step // per_epoch if per_epoch else None
    updates, opt = tx.update(grads, state.opt, changing, epoch=epoch)
    learnable = optax.apply_updates(changing, updates)
    metrics = dict(metrics, loss=loss, grad_norm=optax.tree.norm(grads))
    if kept:
      learnable = {**learnable, STATISTICS: metrics.pop(STATISTICS)}
    return State(state.step + 1, learnable, opt, state.rng), metrics

  @functools.partial(jax.jit, donate_argnames='state', out_shardings=out_shardings)
  def step(state, frozen, features, batch):
    if not several:
      return one(state, frozen, features, batch)
    state, metrics = jax.vmap(one, in_axes=(0, None, 1, None))(state, frozen, features, batch)
    return state, jax.tree.map(jnp.mean, metrics)

  return step


def order(seed: int, epoch: int, count: int, shuffle: bool = True) -> np.ndarray:
  """Returns the order [count] in which `epoch` (from 0) visits the images; depends on nothing else."""
  return np.random.default_rng((seed, epoch)).permutation(count) if shuffle else np.arange(count)


def fit(loss_fn: Callable, tx: optax.GradientTransformation, learnable, frozen, read: Callable, count: int, *,
        epochs: int, batch: int, seed: int | Sequence[int], place: runtime.Placement | None = None, workdir=None,
        writer: logs.Writer | None = None, keep: int | None = None, identity: Mapping | None = None,
        stop: threading.Event | None = None, fresh: bool = False, shuffle: bool = True):
  """Returns the learnable tree after `epochs` over `count` images; goes on from the last checkpoint, if any.

  A resumed run equals an uninterrupted one bit for bit on one device. The last batch of an epoch is padded to
  full size and marked by batch['valid'], so that the step is traced once.

  Args:
    loss_fn: see `make_step`.
    tx: see `make_tx`.
    learnable, frozen: what is trained, and what the loss only reads.
    read: indices [n] -> (features, batch), trees of arrays of n rows, such as partial(features.load, store);
      batch['id'], a list, names images in errors.
    count: number of images.
    epochs, batch, seed: recipe; batch is over all devices. Several seeds are as many runs at once (see initial and
      make_step), whose orders, too, are read's: they go with shuffle=False.
    place: the devices, by default all.
    workdir: checkpoints go to <workdir>/checkpoints after every epoch; None keeps nothing.
    writer: takes one line of means an epoch; of several processes only the first has one.
    keep: how many checkpoints remain, the newest; None all.
    identity: what must not change when a run resumes, JSON-able (config, fingerprints of weights and data).
    stop: when set, the run saves after the step under way and raises runtime.Preempted.
    fresh: whether image i of epoch e is read at i + e * count: `read` then gives other images in every epoch.
    shuffle: whether an epoch has an order of its own; else every one has that of `read`.

  Raises:
    ValueError: the checkpoints are another run's; several seeds and shuffle.
    FloatingPointError: a metric is NaN or infinite; it names epoch, step and images. Nothing of it is saved.
    runtime.Preempted: see `stop`.
  """
  several = isinstance(seed, Sequence)
  if several and shuffle:
    raise ValueError('several seeds have no one order to shuffle by: read them in their own, with shuffle=False')
  place, per_epoch = place or runtime.place(), math.ceil(count / batch)
  total = epochs * per_epoch
  directory = workdir and Path(workdir) / 'checkpoints'
  unshuffled = {} if shuffle else {'shuffle': False}
  identity = json.loads(json.dumps({**(identity or {}), 'seed': seed, 'batch': batch, 'count': count, **unshuffled}))
  state = jax.jit(functools.partial(initial, tx=tx, seed=seed), out_shardings=place.copy)(jax.device_get(learnable))
  state, done, sums = _resumed(directory, state, identity)
  if done > total:
    raise ValueError(f'{directory} holds {done} steps, {epochs} epochs are {total}; choose another workdir')
  if writer:
    writer.rewind(done)
  step, frozen = make_step(loss_fn, tx, place.copy, per_epoch, several), runtime.weights(frozen, place)
  meter = _Meter(per_epoch, sums)
  feed = runtime.prefetch(functools.partial(_rows, read, place, place.rows(batch)),
                          _plan(seed, count, batch, done, epochs, fresh, shuffle))
  bar = tqdm(total=total, initial=done, desc='fit', unit='step', disable=jax.process_index() > 0)
  with bar, contextlib.closing(feed):
    for now, (images, ids, rows, data) in enumerate(feed, done + 1):
      with jax.transfer_guard('disallow'):
        state, metrics = step(state, frozen, rows, data)
      meter.push(now, images, ids, metrics)
      bar.update()
      halt = runtime.any_process(stop is not None and stop.is_set())
      epoch, left = divmod(now, per_epoch)
      if left and not halt:
        continue
      means, sums = meter.settle(), meter.sums if left else {}
      if not left:
        _report(writer, now, epoch, epochs, means)
      if directory:
        extra = {'identity': identity, 'epoch': epoch, 'sums': sums}
        checkpoint.save(directory, now, state, extra, keep=keep)
      if halt and now < total:
        raise runtime.Preempted(f'asked to stop after step {now} of {total}')
      meter = _Meter(per_epoch, sums)
  return state.learnable


def learned(workdir, learnable, tx: optax.GradientTransformation, step: int | None = None, *,
            identity: Mapping | None = None, seed: int | Sequence[int] = 0):
  """Returns what `fit` had learned in `workdir` at its last checkpoint, or at `step`; None if there is none.

  Args:
    workdir: as given to fit.
    learnable: the tree as initialised, or its shapes.
    tx: the optimizer it was trained with.
    step: number of updates.
    identity: what it must have been trained with, as given to fit; None takes anything.
    seed: as given to fit where that was several; any one is as good as another.

  Raises:
    FileNotFoundError, ValueError: see checkpoint.restore; the checkpoints are another run's.
  """
  directory = Path(workdir) / 'checkpoints'
  template = jax.eval_shape(functools.partial(initial, tx=tx, seed=seed), learnable)
  found = checkpoint.restore(directory, template, step)
  if found and identity is not None:
    there = found[1]['identity']
    _require_same(directory, {key: there.get(key) for key in identity}, json.loads(json.dumps(identity)))
  return found and found[0].learnable


def _resumed(directory: Path | None, state: State, identity: dict) -> tuple[State, int, dict]:
  """(state, steps done, sums of the epoch under way) of the last checkpoint, or of a new run."""
  found = checkpoint.restore(directory, state) if directory else None
  if found is None:
    return state, 0, {}
  state, extra, done = found
  _require_same(directory, extra['identity'], identity)
  logging.info('going on after step %d of %s', done, directory)
  return state, done, extra['sums']


def _require_same(directory: Path, there: dict, here: dict):
  for key in sorted(there.keys() | here.keys()):
    if there.get(key) != here.get(key):
      raise ValueError(f'{directory} is of another run: {key} is {there.get(key)} there, {here.get(key)} here; '
                       'choose another workdir')


def _plan(seed: int, count: int, batch: int, done: int, epochs: int, fresh: bool, shuffle: bool = True
          ) -> Iterator[np.ndarray]:
  """Yields the images of every step from `done` on."""
  per_epoch = math.ceil(count / batch)
  for epoch in range(done // per_epoch, epochs):
    images = order(seed, epoch, count, shuffle)
    for at in range(max(0, done - epoch * per_epoch), per_epoch):
      yield images[at * batch:(at + 1) * batch] + fresh * epoch * count


def _rows(read: Callable, place: runtime.Placement, size: int, images: np.ndarray):
  """(number of images, ids, features, batch) of one step on the devices; a process reads its share of `size` rows."""
  mine, valid = (x[runtime.share(size)] for x in padded(images, size))
  features, batch = read(mine)
  batch = dict(batch, valid=valid)
  ids = np.asarray(batch.pop('id', mine), object)[valid]
  return (len(images), ids, *runtime.globalize((features, batch), place.split))


def _report(writer: logs.Writer | None, step: int, epoch: int, epochs: int, means: dict):
  with tqdm.external_write_mode():
    logging.info('epoch %d/%d  %s', epoch, epochs, logs.summary(means))
  if writer:
    writer.scalars(step, {'epoch': epoch, **{f'train/{name}': value for name, value in means.items()}})


class _Meter:
  """Sums over an epoch; fetches a step's metrics while the next one runs, so that the device never waits."""

  def __init__(self, per_epoch: int, sums: dict[str, float]):
    self.sums = dict(sums)  # of the epoch's steps, those before a resume included
    self._per_epoch, self._ahead = per_epoch, None
    self._images, self._start = 0, time.perf_counter()

  def push(self, step: int, images: int, ids: Sequence[str], metrics: dict):
    """Takes the metrics of step `step` on so many images, those of this process by id; adds up the step before's."""
    if self._ahead:
      self._add(*self._ahead)
    self._ahead = step, images, ids, metrics

  def settle(self) -> dict[str, float]:
    """Returns the means over the epoch's steps so far, and the pace since this meter began."""
    self._add(*self._ahead)
    steps, seconds = (self._ahead[0] - 1) % self._per_epoch + 1, time.perf_counter() - self._start
    means = {name: total / steps for name, total in self.sums.items()}
    return means | {'seconds': seconds, 'images_per_s': self._images / seconds}

  def _add(self, step: int, images: int, ids: Sequence[str], metrics: dict):
    for name, value in jax.device_get(metrics).items():
      if not np.isfinite(value):
        epoch, at = divmod(step - 1, self._per_epoch)
        raise FloatingPointError(
            f'{name} is {value} in epoch {epoch + 1}, step {at + 1} of {self._per_epoch}, images '
            f'{", ".join(map(str, ids))}; the last checkpoint was saved before it')
      self.sums[name] = self.sums.get(name, 0.) + float(value)
    self._images += images
