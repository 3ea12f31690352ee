"""Pretrains the tiny CLIP on drawn images with captions and defect masks."""

import functools
import importlib
import json
import os
import pathlib
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from absl import logging
from optax import contrib

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import FeatureSpec, SideStream, Tap
from zsad_jax.clip.weights import arch_config, port, safetensors_files
from zsad_jax.engine import runtime
from zsad_jax.tiny_clip import losses, probe

Config = Any  # ml_collections.FrozenConfigDict, whose keys no type checker knows


class State(NamedTuple):
  """Everything that a step changes: step [] int32, parameters, their running mean, optimizer state."""
  step: jax.Array
  params: Any
  mean: Any
  opt: Any


def specs(cfg: Config, image_size: int) -> tuple[FeatureSpec, ...]:
  """Returns the specs that training steps take in turns: the class token with and without ln_post.

  Patch tokens come from the V-V stream. No term reads CLIP's own patch tokens: as in real CLIP, they are not trained
  to describe their patch.
  """
  side = SideStream('vv', 'vv', first_block=cfg.side_first_block)
  taps = tuple(Tap('vv', b) for b in cfg.side_taps)
  return tuple(FeatureSpec(image_size, cls, taps, (side,)) for cls in ('ln_post_proj', 'proj'))


def architecture(cfg: Config, vocab: int) -> clip_lib.Arch:
  """Returns the architecture of `cfg.arch` with a text vocabulary of `vocab` tokens."""
  a = cfg.arch
  return clip_lib.Arch('tiny', a.embed, clip_lib.Vision(a.image_size, a.patch, a.width, a.layers, a.heads),
                       clip_lib.Text(a.context, vocab, a.text_width, a.text_layers, a.text_heads))


def optimizer(cfg: Config) -> optax.GradientTransformation:
  """Returns Muon for the image tower's matrices and Adam for the rest, both with Nesterov momentum.

  The learning rate has a linear warm-up, a constant part and a linear decay. Muon's updates are scaled to the root mean
  square of Adam's (arXiv 2502.16982), so that both use the same rate.
  """
  total = sum(cfg.phases.steps)
  decay_start = max(int(total * (1 - cfg.optim.fall)), cfg.optim.warmup)
  rate = optax.join_schedules([optax.linear_schedule(0., cfg.optim.lr, cfg.optim.warmup),
                               optax.constant_schedule(cfg.optim.lr),
                               optax.linear_schedule(cfg.optim.lr, cfg.optim.lr * .02, total - decay_start)],
                              [cfg.optim.warmup, decay_start])
  muon = contrib.muon(rate, weight_decay=cfg.optim.decay, consistent_rms=.2, adam_b2=.98,
                      muon_weight_dimension_numbers=_matrix_axes)
  return optax.chain(optax.clip_by_global_norm(1.), muon)


def _matrix_axes(params):
  """Returns the row and column axes of the image tower's matrices; further axes (layers; q, k, v) count matrices."""
  axes = {('patch_embed', 4): ((0, 1, 2), (3,)), ('qkv', 5): ((1,), (3, 4)), ('out', 4): ((1, 2), (3,)),
           ('c_fc', 3): ((1,), (2,)), ('c_proj', 3): ((1,), (2,)), ('proj', 2): ((0,), (1,))}

  def dimension_numbers(path, x):
    names = [key.key for key in path]
    numbers = axes.get((names[-2], x.ndim)) if names[0] == 'visual' else None
    return contrib.MuonDimensionNumbers(*numbers) if numbers else None
  return jax.tree_util.tree_map_with_path(dimension_numbers, params)


def make_step(clip: clip_lib.Clip, tx: optax.GradientTransformation, cfg: Config) -> Callable[..., Any]:
  """Returns jitted step(state, batch, *, spec) -> (state, metrics); the running mean of the parameters is exported."""
  @functools.partial(jax.jit, static_argnames='spec', donate_argnums=0)
  def step(state, batch, *, spec):
    loss = functools.partial(losses.loss, clip=clip, spec=spec, cfg=cfg)
    (_, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state.params, batch)
    updates, opt = tx.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(cfg.optim.mean, (1. + state.step) / (10. + state.step))
    mean = jax.tree.map(lambda m, p: m * decay + p * (1 - decay), state.mean, params)
    return State(state.step + 1, params, mean, opt), dict(metrics, grad_norm=optax.tree.norm(grads))
  return step


def init(clip: clip_lib.Clip, tx: optax.GradientTransformation, seed: int, start: str = '') -> State:
  """Returns the State at step 0, with random parameters or those of the folder `start`.

  Raises:
    ValueError: `start` has the weights of another architecture.
  """
  params = jax.jit(functools.partial(clip_lib.init_params, clip.arch))(jax.random.key(seed))
  if start:
    loaded = clip_lib.load(start).params
    if jax.tree.map(jnp.shape, loaded) != jax.tree.map(jnp.shape, params):
      raise ValueError(f'start={start} has the weights of another architecture than `arch` and the tokenizer of these '
                       'captions')
    params = loaded
  return State(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), tx.init(params))


def save(path: str | os.PathLike[str], state: State) -> None:
  """Writes a State to a safetensors file, atomically."""
  leaves = {f'{i:04d}': np.asarray(x) for i, x in enumerate(jax.tree.leaves(state))}
  runtime.write_atomic(pathlib.Path(path), safetensors.numpy.save(leaves))


def restore(path: str | os.PathLike[str], template: State) -> State:
  """Returns the State in a file of `save`; raises ValueError if its shapes are not those of `template`."""
  leaves, tree = jax.tree.flatten(template)
  arrays = safetensors.numpy.load_file(path)
  if [x.shape for x in leaves] != [arrays[k].shape for k in sorted(arrays)]:
    raise ValueError(f'{path} is the state of another architecture or optimizer; remove it to train from scratch')
  return jax.tree.unflatten(tree, [jnp.asarray(arrays[k]) for k in sorted(arrays)])


def export(folder: str | os.PathLike[str], clip: clip_lib.Clip, params: Any, tokenizer: Any) -> None:
  """Writes model.safetensors (open_clip's names, float32), config.json and tokenizer.json for clip.model.load.

  Args:
    folder: the folder to write.
    clip: gives the architecture.
    params: CLIP's parameter tree.
    tokenizer: a tokenizers.Tokenizer.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  safetensors_files.write(folder / 'model.safetensors', port.to_state_dict(jax.device_get(params), 'open_clip'))
  for name, text in (('config.json', json.dumps(arch_config.to_json(clip.arch), indent=2) + '\n'),
                     ('tokenizer.json', tokenizer.to_str(pretty=True) + '\n')):
    runtime.write_atomic(folder / name, text.encode())


def fit(cfg: Config, workdir: str | os.PathLike[str], source: ModuleType) -> None:
  """Trains to the end of the last phase and exports to workdir/export. Resumes from workdir/state.safetensors.

  Args:
    cfg: configs/pretrain_tiny.py.
    workdir: folder for the state, curve.jsonl (one line per probe) and the export.
    source: module that draws and captions images, zsad_jax.data.synthetic.pretraining.

  Raises:
    ValueError: workdir belongs to a run with another architecture or tokenizer.
  """
  workdir = pathlib.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  tokenizer = source.tokenizer(cfg.merges)
  tokenize = functools.partial(source.encode, tokenizer, length=cfg.arch.context)
  _write_or_compare(workdir / 'tokenizer.json', tokenizer.to_str(pretty=True) + '\n')
  arch = architecture(cfg, tokenizer.get_vocab_size())
  clip = clip_lib.Clip(arch, arch.vision.image_size, None, unroll=True)
  tx = optimizer(cfg)
  step_fn, path = make_step(clip, tx, cfg), workdir / 'state.safetensors'
  state = init(clip, tx, cfg.seed, '' if path.exists() else cfg.start)
  if path.exists():
    state = restore(path, state)
  _truncate_curve(workdir / 'curve.jsonl', int(state.step))
  held_out = source.draw(cfg.probe.group, 0, cfg.probe.count, cfg.pool.size, cfg.seed, 'probe')
  nouns, encode = source.vocabulary(cfg.probe.group).nouns, probe.encoders(clip, specs(cfg, clip.image_size)[1])
  step, history, start_time = int(state.step), [], time.monotonic()
  save_time = start_time
  for batch in source.batches(tokenizer, workdir / 'pool', phases=cfg.phases, pool=cfg.pool, patch=cfg.arch.patch,
                              seed=cfg.seed, start=step):
    options = specs(cfg, batch['image'].shape[1])
    state, metrics = step_fn(state, batch, spec=options[step % len(options)])
    step += 1
    history.append(jax.device_get(metrics))
    if step % cfg.probe.every == 0:
      means = {k: float(np.mean([values[k] for values in history])) for k in history[0]}
      line = dict(step=step, images=images_after(cfg, step), image_size=batch['image'].shape[1],
                  seconds=time.monotonic() - start_time, **means,
                  **probe.measure(clip, encode, state.mean, held_out, nouns, tokenize))
      with (workdir / 'curve.jsonl').open('a') as file:
        file.write(json.dumps({k: round(v, 4) for k, v in line.items()}) + '\n')
      logging.info('%s', line)
      export(workdir / 'export', clip, state.mean, tokenizer)
      history = []
    if time.monotonic() - save_time > cfg.save_seconds:
      save(path, state)
      save_time = time.monotonic()
  save(path, state)
  export(workdir / 'export', clip, state.mean, tokenizer)


def _truncate_curve(path, step: int) -> None:
  """Drops the lines of a curve after `step`, which were written after the state that training resumes from."""
  if path.exists():
    lines = [line for line in path.read_text().splitlines(True) if json.loads(line)['step'] <= step]
    runtime.write_atomic(path, ''.join(lines).encode())


def _write_or_compare(path, text: str) -> None:
  """Writes the tokenizer to a new file; raises ValueError if the file exists with other content."""
  if not path.exists():
    runtime.write_atomic(path, text.encode())
  elif path.read_text() != text:
    raise ValueError(f'{path} is not the tokenizer of these captions, so this run belongs to another version; '
                     'use a new workdir')


def images_after(cfg: Config, step: int) -> int:
  """Returns the number of images that the first `step` steps train on."""
  firsts = np.cumsum([0, *cfg.phases.steps])
  return int(sum(min(max(step - first, 0), n) * b for first, n, b in zip(firsts, cfg.phases.steps, cfg.phases.batch)))


def run(cfg: Config, workdir: str | os.PathLike[str]) -> None:
  """Pretrains with `cfg` (configs/pretrain_tiny.py) on the data module that it names; see `fit`."""
  fit(cfg, workdir, importlib.import_module(cfg.source))
