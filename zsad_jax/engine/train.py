"""One training loop for every method: a pure step over two trees on stored features, with exact resume."""

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
  """Everything a step changes, and nothing that a step only reads."""
  step: jax.Array  # [] int32, updates done
  params: Any
  opt: Any
  rng: jax.Array  # [] typed key of the run; a step folds its number in


class Source(NamedTuple):
  """Where batches come from.

  Attributes:
    read: indices [n] -> (features, batch), trees of arrays with n rows, such as partial(features.load, store).
      batch['id'], a list, names the images in errors.
    count: number of images.
    new_every_epoch: whether `read` gives other images in every epoch; image i of epoch e is then read at i + e * count.
  """
  read: Callable
  count: int
  new_every_epoch: bool = False


class Recipe(NamedTuple):
  """How long and in which order to train; `batch` is the global batch size over all devices."""
  epochs: int
  batch: int
  seed: int
  shuffle: bool = True

  def steps_per_epoch(self, count: int) -> int:
    return math.ceil(count / self.batch)


class Session(NamedTuple):
  """What a training leaves behind, and how it is interrupted.

  Attributes:
    workdir: folder of the checkpoints, saved after every epoch; None keeps nothing.
    writer: takes one line of means per epoch; of several processes only the first has one.
    identity: what must not change when a run resumes, JSON-able: config, digests of weights and data.
    stop: if set, the run saves a checkpoint after the current step and raises runtime.Preempted.
  """
  workdir: Path | None = None
  writer: logs.Writer | None = None
  identity: Mapping = {}
  stop: threading.Event | None = None

  @property
  def checkpoints(self) -> Path | None:
    return self.workdir and checkpoint_folder(self.workdir)


NOTHING_KEPT = Session()


def checkpoint_folder(workdir: Path | str) -> Path:
  """Returns the folder of a training's checkpoints."""
  return Path(workdir) / 'checkpoints'


def initial(params: Any, tx: optax.GradientTransformation, seed: int) -> State:
  """Returns the State before the first step, also the template that checkpoints are restored into."""
  params = jax.tree.map(jnp.array, params)  # a copy: steps donate the state, and the caller keeps the original
  return State(jnp.zeros((), jnp.int32), params, tx.init(params), jax.random.key(seed))


def make_step(loss_fn: Callable, tx: optax.GradientTransformation, out_shardings: Any = None,
              steps_per_epoch: int | None = None) -> Callable:
  """Returns step(state, context, features, batch) -> (state, metrics), jitted; `state` is donated.

  Args:
    loss_fn: (params, context, features, batch, rng) -> (scalar, metrics); rows for which batch['valid'] is False must
      have no weight.
    tx: the optimizer.
    out_shardings: sharding of state and metrics, Placement.copy in a data-parallel run.
    steps_per_epoch: needed by an optimizer whose learning rate changes from epoch to epoch.
  """
  tx = optax.with_extra_args_support(tx)

  @functools.partial(jax.jit, donate_argnames='state', out_shardings=out_shardings)
  def step(state: State, context: Any, features: Any, batch: Any):
    rng = jax.random.fold_in(state.rng, state.step)
    (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, context, features, batch, rng)
    epoch = state.step // steps_per_epoch if steps_per_epoch else None
    updates, opt = tx.update(grads, state.opt, state.params, epoch=epoch)
    metrics = dict(metrics, loss=loss, grad_norm=optax.tree.norm(grads))
    return State(state.step + 1, optax.apply_updates(state.params, updates), opt, state.rng), metrics

  return step


def order(seed: int, epoch: int, count: int, shuffle: bool = True) -> np.ndarray:
  """Returns the order [count] in which `epoch` (from 0) visits the images; it depends on nothing else."""
  return np.random.default_rng((seed, epoch)).permutation(count) if shuffle else np.arange(count)


def fit(loss_fn: Callable, tx: optax.GradientTransformation, params: Any, context: Any, source: Source, recipe: Recipe,
        session: Session = NOTHING_KEPT, place: runtime.Placement | None = None) -> Any:
  """Returns the trained parameters; resumes from the last checkpoint if there is one.

  On one device a resumed run equals an uninterrupted one bit for bit. The last batch of an epoch is padded to full size
  and marked by batch['valid'], so that the step is traced once.

  Args:
    loss_fn: see `make_step`.
    tx: the optimizer, see optimizers.make_tx.
    params: initial trainable parameters.
    context: what the loss only reads.
    source, recipe, session: see there.
    place: devices, by default all.

  Raises:
    ValueError: the checkpoints belong to another run.
    FloatingPointError: a metric is NaN or infinite; names epoch, step and images. Nothing of it is saved.
    runtime.Preempted: see Session.stop.
  """
  place, per_epoch = place or runtime.place(), recipe.steps_per_epoch(source.count)
  total, directory = recipe.epochs * per_epoch, session.checkpoints
  identity = _identity(session.identity, recipe, source)
  make_state = functools.partial(initial, tx=tx, seed=recipe.seed)
  state = jax.jit(make_state, out_shardings=place.copy)(jax.device_get(params))
  state, done, sums = _resumed(directory, state, identity)
  if done > total:
    raise ValueError(f'{directory} holds {done} steps, but {recipe.epochs} epochs are {total}; choose another workdir')
  if session.writer:
    session.writer.rewind(done)
  step, context = make_step(loss_fn, tx, place.copy, per_epoch), runtime.weights(context, place)
  meter = _Meter(per_epoch, sums)
  feed = runtime.prefetch(functools.partial(_rows, source.read, place, place.rows(recipe.batch)),
                          _batches(source, recipe, done))
  bar = tqdm(total=total, initial=done, desc='fit', unit='step', disable=jax.process_index() > 0)
  with bar, contextlib.closing(feed):
    for now, (images, ids, rows, batch) in enumerate(feed, done + 1):
      with jax.transfer_guard('disallow'):
        state, metrics = step(state, context, rows, batch)
      meter.push(now, images, ids, metrics)
      bar.update()
      halt = runtime.any_process(session.stop is not None and session.stop.is_set())
      epoch, left = divmod(now, per_epoch)
      if left and not halt:
        continue
      means, sums = meter.settle(), meter.sums if left else {}
      if not left:
        report_epoch(session.writer, now, epoch, recipe.epochs, means)
      if directory:
        checkpoint.save(directory, now, state, {'identity': identity, 'epoch': epoch, 'sums': sums})
      if halt and now < total:
        raise runtime.Preempted(f'asked to stop after step {now} of {total}')
      meter = _Meter(per_epoch, sums)
  return state.params


def restore(workdir: Path | str, params: Any, tx: optax.GradientTransformation, step: int | None = None, *,
            identity: Mapping | None = None) -> Any:
  """Returns the params of the last checkpoint that `fit` left in `workdir`, or of `step`; None if there is none.

  Args:
    workdir: as given to `fit`.
    params: the tree as initialised, or its shapes.
    tx: the optimizer it was trained with.
    step: number of updates.
    identity: what it must have been trained with, as in Session; None accepts anything.

  Raises:
    FileNotFoundError, ValueError: see checkpoint.restore; the checkpoints belong to another run.
  """
  directory = checkpoint_folder(workdir)
  template = jax.eval_shape(functools.partial(initial, tx=tx, seed=0), params)
  restored = checkpoint.restore(directory, template, step)
  if restored and identity is not None:
    saved = restored[1]['identity']
    require_same_run(directory, {key: saved.get(key) for key in identity}, json.loads(json.dumps(identity)))
  return restored and restored[0].params


def require_same_run(directory: Path, saved: Mapping, wanted: Mapping) -> None:
  """Raises ValueError naming the first entry in which two identities differ."""
  for key in sorted(saved.keys() | wanted.keys()):
    if saved.get(key) != wanted.get(key):
      raise ValueError(f'{directory} belongs to another run: {key} is {saved.get(key)} there and '
                       f'{wanted.get(key)} here; choose another workdir')


def report_epoch(writer: logs.Writer | None, step: int, epoch: int, epochs: int, means: Mapping[str, float]) -> None:
  """Prints the means of an epoch (from 1), and writes them if there is a writer."""
  with tqdm.external_write_mode():
    logging.info('epoch %d/%d  %s', epoch, epochs, logs.summary(means))
  if writer:
    writer.scalars(step, {'epoch': epoch, **{f'train/{name}': value for name, value in means.items()}})


def _identity(identity: Mapping, recipe: Recipe, source: Source) -> dict:
  recipe_keys = {'seed': recipe.seed, 'batch': recipe.batch, 'count': source.count, 'shuffle': recipe.shuffle}
  return json.loads(json.dumps({**identity, **recipe_keys}))


def _resumed(directory: Path | None, state: State, identity: dict) -> tuple[State, int, dict]:
  """(state, steps done, sums of the current epoch) of the last checkpoint, or of a new run."""
  restored = checkpoint.restore(directory, state) if directory else None
  if directory is None or restored is None:
    return state, 0, {}
  state, extra, done = restored
  require_same_run(directory, extra['identity'], identity)
  logging.info('resuming after step %d of %s', done, directory)
  return state, done, extra['sums']


def _batches(source: Source, recipe: Recipe, done: int) -> Iterator[np.ndarray]:
  """Yields the indices of every step after `done` steps."""
  per_epoch = recipe.steps_per_epoch(source.count)
  for epoch in range(done // per_epoch, recipe.epochs):
    images = order(recipe.seed, epoch, source.count, recipe.shuffle)
    for at in range(max(0, done - epoch * per_epoch), per_epoch):
      yield images[at * recipe.batch:(at + 1) * recipe.batch] + source.new_every_epoch * epoch * source.count


def _rows(read: Callable, place: runtime.Placement, size: int, images: np.ndarray):
  """(number of images, ids, features, batch) of one step on the devices; a process reads its share of `size` rows."""
  mine, valid = (x[runtime.share(size)] for x in padded(images, size))
  features, batch = read(mine)
  batch = dict(batch, valid=valid)
  ids = np.asarray(batch.pop('id', mine), object)[valid]
  return (len(images), ids, *runtime.globalize((features, batch), place.split))


class _Meter:
  """Sums over an epoch; fetches a step's metrics while the next one runs, so that the device never waits."""

  def __init__(self, per_epoch: int, sums: dict[str, float]):
    self.sums = dict(sums)  # of the epoch's steps, those before a resume included
    self._per_epoch, self._ahead = per_epoch, None
    self._images, self._start = 0, time.perf_counter()

  def push(self, step: int, images: int, ids: Sequence[str], metrics: dict):
    """Takes the metrics of step `step` on so many images, those of this process by id; adds up the previous step's."""
    if self._ahead:
      self._add(*self._ahead)
    self._ahead = step, images, ids, metrics

  def settle(self) -> dict[str, float]:
    """Returns the means over the epoch's steps so far, and the throughput since this meter began."""
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
