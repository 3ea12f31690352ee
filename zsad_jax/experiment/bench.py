"""Throughput of a config on this machine: images end to end, the image tower, the method, training; cold and warm."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from zsad_jax import data
from zsad_jax.clip import archs, preprocess
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip import tokenizer as tokenizer_lib
from zsad_jax.clip.weights import hub
from zsad_jax.engine import features, logs, optimizers, runtime, train
from zsad_jax.experiment import setup
from zsad_jax.experiment.run import Run
from zsad_jax.methods import Method, Params

DRAWN = ('bolt', 'metal_nut', 'screw', 'wood')
EPOCH_IMAGES = 1725  # of MVTec AD's test split, an epoch of AnomalyCLIP's table 8
TABLE_8 = 'AnomalyCLIP (arXiv 2310.18961), table 8, on one NVIDIA RTX 3090'
Timing = dict[str, Any]  # images_per_s, ms_per_image and their ranges


def run(cfg: setup.Config, workdir: Path) -> dict[str, Any]:
  """Measures, prints and writes <workdir>/bench.json; returns what is written.

  Programs are compiled from scratch, whatever the compilation cache holds.

  Raises:
    ValueError, FileNotFoundError: a key that is not allowed; what loading CLIP and the data raises.
  """
  cached = jax.config.values['jax_enable_compilation_cache']
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()
  try:
    with runtime.compilations() as compiled:
      report = measure(cfg, workdir, compiled)
  finally:
    jax.config.update('jax_enable_compilation_cache', cached)
    compilation_cache.reset_cache()
  logs.write_json(workdir / 'bench.json', report)
  print(text(report) + f'\n\nwritten: {workdir / "bench.json"}', flush=True)
  return report


def measure(cfg: setup.Config, workdir: Path, compiled: runtime.Compilations) -> dict[str, Any]:
  """Returns the report of `run`, JSON-able."""
  method = setup.check(cfg)
  clip = random_clip(cfg, method) if cfg.bench.random_weights else setup.load_clip(cfg, method)
  cfg, dataset = _open(cfg, workdir)
  run = Run.load(cfg, clip)
  run = run if run.trains_on_texts else run.for_auxiliary(dataset)
  indices = np.arange(min(cfg.bench.images, len(dataset)))
  rows = run.place.rows(min(cfg.machine.eval_batch, len(indices)))
  encoders = functools.cache(run.encoder)  # each compiled once
  params, read, kept = run.init(), reader(run, dataset, rows, encoders), []

  start = time.perf_counter()
  memory_bank, _ = run.reference_bank()
  predict = run.predictor(setup.object_names(cfg, dataset), memory_bank).bind(params)
  on_device = lambda values, batch: jax.device_put((values, _visible(batch)), run.place.split)
  for values, batch in read(indices):
    kept.append((values, batch))
    jax.device_get(predict(*on_device(values, batch)))
  cold = time.perf_counter() - start

  def end_to_end():
    for values, batch in read(indices):
      jax.device_get(predict(*on_device(values, batch)))

  values, batch = on_device(*kept[0])
  clip_params = jax.device_put(clip.params, run.place.copy)
  encode, side = encoders(run.spec._replace(crops=0))
  images = jax.device_put(np.zeros((rows, side, side, 3), np.float32), run.place.split)
  repeats = cfg.bench.repeats
  source = 'target' if cfg.bench.source == 'target' else f'drawn PNG files of {cfg.bench.pixels} px'
  return {
    'config': setup.label(cfg), 'clip': cfg.clip, 'random_weights': cfg.bench.random_weights,
    'precision': clip.precision, 'image_size': cfg.image_size, 'device': runtime.device_summary(),
    'jax': jax.__version__, 'batch': rows, 'images': len(indices), 'source': source, 'repeats': repeats,
    'end_to_end': {'cold_seconds': cold, **timed(end_to_end, len(indices), repeats)},
    'encoder': timed(lambda: jax.block_until_ready(encode(clip_params, images)), rows, repeats),
    'predict': timed(lambda: jax.block_until_ready(predict(values, batch)), rows, repeats),
    'training': training(run, dataset, params, kept),
    'compiled': {name: {'programs': count, 'compile_seconds': compiled.compile_seconds[name],
                        'traces': compiled.traces[name], 'trace_seconds': compiled.trace_seconds[name]}
                 for name, count in compiled.programs.items() if name in ('encoder', 'predict', 'encode_text', 'step')},
    'programs': compiled.programs.total(), 'memory': memory(), 'published': published(cfg)}


def timed(function: Callable, images: int, repeats: int) -> Timing:
  """Returns the median and the range of `repeats` calls after a warm-up, per image."""
  function()
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    function()
    seconds.append(time.perf_counter() - start)
  middle, low, high = (float(f(seconds)) for f in (np.median, np.min, np.max))
  return {'images_per_s': images / middle, 'images_per_s_range': [images / high, images / low],
          'ms_per_image': 1e3 * middle / images, 'ms_per_image_range': [1e3 * low / images, 1e3 * high / images]}


def reader(run: Run, dataset: data.Dataset, rows: int, encoders: Callable) -> Callable[[np.ndarray], Iterator]:
  """Returns read(indices), which yields (Features, batch) of image files, one batch ahead of the caller.

  `encoders` is Run.encoder or the same with a cache.
  """
  clip, spec = run.clip, run.spec

  def encoded(indices, spec):
    encode, side = encoders(spec)
    batches = data.batches(dataset, transform=preprocess.image_transform(clip.arch, side), mask_size=clip.image_size,
                           batch_size=rows, indices=indices)
    return features.encode_batches(batches, encode, clip.params)

  whole_spec = spec._replace(crops=0)

  def read(indices):
    whole = encoded(indices, whole_spec)
    if not spec.crops:
      yield from whole
      return
    for (values, batch), (crops, _) in zip(whole, encoded(indices, spec.of_crops())):
      yield values._replace(crops=crops.crops), batch

  return read


def training(run: Run, dataset: data.Dataset, params: Params, kept: list) -> dict[str, Any] | None:
  """Returns the time of a step and of an epoch on features that are already there; None if nothing is trained."""
  if not run.trains:
    return None
  if run.trains_on_texts:
    return _training_on_texts(run)
  context = run.training_context(dataset)
  values = jax.tree.map(lambda *x: np.concatenate(x), *[values for values, _ in kept])._replace(crops=None)
  truth = {key: np.concatenate([batch[key] for _, batch in kept])
           for key in ('mask', 'has_mask', 'label', 'category', 'index')}
  parts = {}
  for stage in run.method.stages(run.cfg):
    images = EPOCH_IMAGES if stage.categories is None else math.ceil(
      EPOCH_IMAGES * len(stage.categories) / len(dataset.categories))
    parts[stage.name or 'all'] = _epoch(run.with_overrides(stage.overrides), stage.part(params), context, values, truth,
                                        images)
  return {'of': f'an epoch of {EPOCH_IMAGES:,} images, from the time of a step on stored features', 'parts': parts,
          'epoch_seconds': sum(part['epoch_seconds'] for part in parts.values())}


def random_clip(cfg: setup.Config, method: Method) -> clip_lib.Clip:
  """Returns the config's CLIP with random weights of the published shapes; nothing is downloaded."""
  arch = setup.clip_without_weights(cfg, method).arch
  tokenizer = tokenizer_lib.load(None)
  if tokenizer.size > arch.text.vocab:  # the embedded CLIP has a tokenizer of its own
    tokenizer = tokenizer_lib.load(hub.resolve(cfg.clip, arch=cfg.arch or None).tokenizer_path)
  noise = np.random.default_rng(cfg.seed).standard_normal(2 ** 20 + 1, np.float32)
  params = jax.tree_util.tree_map_with_path(lambda path, leaf: _random(noise, path[-1].key, leaf.shape),
                                            archs.template(arch))
  clip = clip_lib.build(arch, params, image_size=cfg.image_size, tokenizer=tokenizer, fingerprint='random')
  return clip_lib.with_precision(dataclasses.replace(clip, arch=arch), cfg.precision)


def draw(folder: Path, images: int, references: int, pixels: int) -> Path:
  """Writes at least `images` test images as PNG files in MVTec AD's layout: smooth noise, every second with a spot."""
  rng = np.random.default_rng(0)
  for category in DRAWN:
    for split, kind, count in (('train', 'good', references), ('test', 'good', -(-images // 8)),
                               ('test', 'spot', -(-images // 8))):
      for i in range(count):
        small = Image.fromarray(rng.integers(60, 200, (pixels // 8 + 1, pixels // 8 + 1, 3)).astype(np.uint8))
        image, mask = small.resize((pixels, pixels)), Image.new('L', (pixels, pixels))
        if kind == 'spot':
          low, high = int(.4 * pixels), int(.55 * pixels)
          box = low, low, high, high
          image.paste((255, 255, 255), box)
          mask.paste(255, box)
          _saved(mask, folder / category / 'ground_truth' / kind / f'{i:03d}_mask.png')
        _saved(image, folder / category / split / kind / f'{i:03d}.png')
  return folder


def memory() -> dict[str, int | None]:
  """Returns the peak resident set and, if the device reports it, the peak of its own memory, in bytes."""
  stats = jax.devices()[0].memory_stats() or {}
  return {'peak_rss_bytes': runtime.peak_rss_bytes(), 'device_peak_bytes': stats.get('peak_bytes_in_use')}


def published(cfg: setup.Config) -> dict[str, Any] | None:
  """Returns this config's row of AnomalyCLIP's table 8, if it runs the CLIP of that row; else None."""
  stated = cfg.published.to_dict() if 'published' in cfg else {}
  if 'cost' not in stated or cfg.clip != stated.get('clip', 'vit_l14_336'):
    return None
  return {**stated['cost'], 'source': TABLE_8}


def text(report: dict[str, Any]) -> str:
  """Returns the report as lines for people."""
  weights = ' with random weights: times are valid, scores are not' if report['random_weights'] else ''
  lines = [f'\nbench: {report["config"]} on CLIP {report["clip"]}{weights}; {report["image_size"]} px, '
           f'{report["precision"]}, batches of {report["batch"]}', f'device: {report["device"]}; jax {report["jax"]}',
           f'{report["images"]} images ({report["source"]}); medians of {report["repeats"]}, range in brackets', '']
  lines.append(f'{"":30}{"images/s":>32}{"ms/image":>32}')
  for key, name in (('end_to_end', 'end to end, file to map'), ('encoder', 'image tower alone'),
                    ('predict', 'method on stored features')):
    rate, span, ms, wide = (report[key][k] for k in (
      'images_per_s', 'images_per_s_range', 'ms_per_image', 'ms_per_image_range'))
    lines.append(f'{name:30}{f"{rate:.4g} [{span[0]:.4g}, {span[1]:.4g}]":>32}'
                 f'{f"{ms:.4g} [{wide[0]:.4g}, {wide[1]:.4g}]":>32}')
  lines.append(f'cold, compiling included: {report["end_to_end"]["cold_seconds"]:.1f} s for the first pass')
  for name, row in report['compiled'].items():
    lines.append(f'compiled: {name}: {row["programs"]} program{"s" * (row["programs"] > 1)}, '
                 f'{row["trace_seconds"]:.1f} s to trace, {row["compile_seconds"]:.1f} s to compile')
  if (trained := report['training']) is None:
    lines.append('training: none')
  else:
    steps = ', '.join(f'{name}: {part["step_ms"]:.4g} ms a step of {part["rows"]}'
                      for name, part in trained['parts'].items())
    lines.append(f'training: {trained["epoch_seconds"]:.3g} s for {trained["of"]} ({steps})')
  device = report['memory']['device_peak_bytes']
  lines.append(f'peak memory: {report["memory"]["peak_rss_bytes"] / 1e9:.3g} GB resident'
               + (f', {device / 1e9:.3g} GB on the device' if device else ''))
  if row := report['published']:
    trained = f', {row["epoch_minutes"]} min an epoch' if 'epoch_minutes' in row else ''
    lines.append(f'published, on other hardware: {row["images_per_s"]} images/s{trained}; {row["source"]}')
  return '\n'.join(lines)


def _random(noise: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
  """A weight of that name: the noise repeated, of a size that keeps activations finite."""
  if name in ('bias', 'mean', 'scale', 'var', 'logit_scale'):
    return np.full(shape, {'scale': 1, 'var': 1, 'logit_scale': np.log(100)}.get(name, 0), np.float32)
  std = math.prod(shape[-3:-1]) ** -0.5 if name == 'kernel' else 0.02
  return np.resize(np.float32(std) * noise, shape)


def _open(cfg: setup.Config, workdir: Path) -> tuple[setup.Config, data.Dataset]:
  """(config, data set) to time: the target, or pictures drawn below `workdir`, which are also trained on."""
  if cfg.bench.source == 'target':
    return cfg, setup.open_data(cfg, 'target')
  shots = cfg.fewshot.shots if 'fewshot' in cfg else 0
  root = workdir / 'bench' / f'{cfg.bench.images}x{cfg.bench.pixels}x{shots}'
  folder = f'folder:{draw(root / "images", cfg.bench.images, max(shots, 1), cfg.bench.pixels)}'
  cfg = setup.with_overrides(cfg, {
    'data.target': folder, 'data.aux': folder, 'data.target_categories': '', 'data.aux_categories': '',
    'data.split': 'test', 'machine.data_dir': str(root / 'data'), 'machine.store_features': False,
    'machine.feature_dir': ''})
  return cfg, setup.open_data(cfg, 'target')


def _visible(batch: dict) -> dict:
  return {key: batch[key] for key in ('category', 'index', 'valid')}


def _training_on_texts(run: Run) -> dict[str, Any]:
  """As `training`, on random text features, as many as the method's training texts."""
  groups = run.method.training_texts(run.cfg.seed, cfg=run.cfg)
  shape = len(groups), len(groups[0]), run.clip.arch.embed_dim
  text = jax.device_put(np.random.default_rng(0).standard_normal(shape, np.float32))
  order = np.stack([train.order(run.cfg.seed, epoch, len(groups)) for epoch in range(run.cfg.train.epochs)])
  fit = jax.jit(functools.partial(run.method.train, clip=run.clip, cfg=run.cfg))
  rng, steps = jax.random.key(run.cfg.seed), run.recipe.steps_per_epoch(len(groups))
  found = timed(lambda: jax.block_until_ready(fit(text, order.astype(np.int32), rng)),
                run.cfg.train.epochs * steps, run.cfg.bench.repeats)
  seconds = steps * found['ms_per_image'] / 1e3
  return {'of': f'an epoch of {len(groups):,} groups of texts', 'epoch_seconds': seconds,
          'parts': {'all': {'rows': run.cfg.train.batch, 'step_ms': found['ms_per_image'],
                            'step_ms_range': found['ms_per_image_range'], 'epoch_seconds': seconds}}}


def _epoch(run: Run, params: Params, context: Any, values: Any, truth: dict, images: int) -> dict[str, Any]:
  """{rows, step_ms, step_ms_range, epoch_seconds} of training steps, each waited for."""
  rows = run.place.rows(run.cfg.train.batch)
  values, batch = jax.tree.map(lambda x: np.resize(x, (rows, *x.shape[1:])), (values, truth))
  batch['valid'] = np.ones(rows, bool)
  tx, per_epoch = optimizers.make_tx(run.cfg.optim), math.ceil(images / rows)
  make_state = functools.partial(train.initial, tx=tx, seed=run.cfg.seed)
  state = jax.jit(make_state, out_shardings=run.place.copy)(params)
  step = train.make_step(functools.partial(run.method.loss, clip=run.clip, cfg=run.cfg), tx, run.place.copy, per_epoch)
  context = jax.device_put(context, run.place.copy)
  values, batch = jax.device_put((values, batch), run.place.split)

  def one():
    nonlocal state
    state, metrics = step(state, context, values, batch)
    jax.block_until_ready(metrics)

  timing = timed(one, 1, run.cfg.bench.repeats)
  return {'rows': rows, 'step_ms': timing['ms_per_image'], 'step_ms_range': timing['ms_per_image_range'],
          'epoch_seconds': per_epoch * timing['ms_per_image'] / 1e3}


def _saved(image: Image.Image, path: Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  image.save(path)
