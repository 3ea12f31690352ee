"""How fast a config runs on this machine: images end to end, the image tower, the method, training; cold and warm."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from zsad_jax import data, methods
from zsad_jax.clip import archs, encoder, preprocess
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip import tokenizer as tokenizer_lib
from zsad_jax.clip.weights import hub
from zsad_jax.engine import evaluate, features, logs, runtime, train
from zsad_jax.experiment import experiment, setup

SOURCES = ('drawn', 'target')
DRAWN = ('bolt', 'metal_nut', 'screw', 'wood')
EPOCH_IMAGES = 1725  # of MVTec AD's test split, an epoch of AnomalyCLIP's table 8
TABLE_8 = 'AnomalyCLIP (arXiv 2310.18961), table 8, on one NVIDIA RTX 3090'


def run(cfg, workdir) -> dict:
  """Measures, prints and writes <workdir>/bench.json; returns what is written.

  Programs are compiled anew, whatever the compilation cache holds.

  Raises:
    ValueError, FileNotFoundError: a key out of range; what loading the CLIP and the data raises.
  """
  setup.check(cfg)
  check(cfg)
  cached = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()
  try:
    with runtime.compilations() as compiled:
      report = measure(cfg, Path(workdir), compiled)
  finally:
    jax.config.update('jax_enable_compilation_cache', cached)
    compilation_cache.reset_cache()
  logs.write_json(Path(workdir) / 'bench.json', report)
  print(text(report) + f'\n\nwritten: {Path(workdir) / "bench.json"}', flush=True)
  return report


def check(cfg):
  """Raises ValueError naming the first key of `bench` that is out of range."""
  for key in ('images', 'repeats', 'pixels'):
    if cfg.bench[key] < 1:
      raise ValueError(f'bench.{key} is {cfg.bench[key]}; it must be at least 1')
  if cfg.bench.source not in SOURCES:
    raise ValueError(f'bench.source is {cfg.bench.source!r}; it must be one of {", ".join(SOURCES)}')


def measure(cfg, workdir: Path, compiled: runtime.Compilations) -> dict:
  """Returns the report of run, JSON-able."""
  method = methods.get(cfg.method)
  clip = random_clip(cfg, method) if cfg.bench.random_weights else setup.load_clip(cfg, method)
  cfg, dataset = _opened(cfg, workdir)
  place = runtime.place()
  indices = np.arange(min(cfg.bench.images, len(dataset)))
  rows = place.rows(min(cfg.machine.eval_batch, len(indices)))
  aux = None if hasattr(method, 'examples') else dataset
  cfg = experiment.settled(experiment.with_aux_names(cfg, dataset), method, clip, dataset) if aux else cfg
  learnable = method.init(jax.random.key(cfg.seed), clip, cfg)
  encode = encoder.encode(clip, method.spec(clip, cfg)._replace(crops=0))
  read = reader(cfg, method, clip, dataset, rows, encode)
  kept = []

  start = time.perf_counter()
  predict = _predictor(cfg, method, clip, dataset, learnable, place)
  for values, batch in read(indices):
    kept.append((values, batch))
    jax.device_get(predict(*jax.device_put((values, _known(batch)), place.split)))
  cold = time.perf_counter() - start

  def end_to_end():
    for values, batch in read(indices):
      jax.device_get(predict(*jax.device_put((values, _known(batch)), place.split)))

  values, batch = jax.device_put((kept[0][0], _known(kept[0][1])), place.split)
  params = jax.device_put(clip.params, place.copy)
  images = jax.device_put(np.zeros((rows, cfg.image_size, cfg.image_size, 3), np.float32), place.split)
  repeats = cfg.bench.repeats
  return {
    'config': cfg.method, 'clip': cfg.clip, 'random_weights': cfg.bench.random_weights, 'precision': clip.precision,
    'image_size': cfg.image_size, 'device': runtime.device_summary(), 'jax': jax.__version__, 'batch': rows,
    'images': len(indices), 'source': cfg.bench.source if cfg.bench.source == 'target' else
    f'drawn PNG files of {cfg.bench.pixels} px', 'repeats': repeats,
    'end_to_end': {'cold_seconds': cold, **timed(end_to_end, len(indices), repeats)},
    'encoder': timed(lambda: jax.block_until_ready(encode(params, images)), rows, repeats),
    'predict': timed(lambda: jax.block_until_ready(predict(values, batch)), rows, repeats),
    'training': training(cfg, method, clip, dataset, learnable, kept, place),
    'compiled': {name: {'programs': count, 'compile_seconds': compiled.compile_seconds[name],
                        'traces': compiled.traces[name], 'trace_seconds': compiled.trace_seconds[name]}
                 for name, count in compiled.programs.items() if name in ('encoder', 'predict', 'bank', 'step')},
    'programs': compiled.programs.total(), 'memory': memory(), 'published': published(cfg)}


def timed(function: Callable, images: int, repeats: int) -> dict:
  """Returns the median and the range of `repeats` calls, after one that is not counted, as times of an image."""
  function()
  seconds = []
  for _ in range(repeats):
    start = time.perf_counter()
    function()
    seconds.append(time.perf_counter() - start)
  middle, low, high = (float(f(seconds)) for f in (np.median, np.min, np.max))
  return {'images_per_s': images / middle, 'images_per_s_range': [images / high, images / low],
          'ms_per_image': 1e3 * middle / images, 'ms_per_image_range': [1e3 * low / images, 1e3 * high / images]}


def reader(cfg, method, clip, dataset, rows: int, encode: Callable) -> Callable:
  """Returns read(indices) -> (Features, batch) after (Features, batch), from image files, one ahead of the caller."""
  spec = method.spec(clip, cfg)
  crops = encoder.encode_crops(clip, spec.of_crops()) if spec.crops else None

  def encoded(indices, encode, side):
    batches = data.batches(dataset, transform=preprocess.image_transform(clip.arch, side), mask_size=clip.image_size,
                           batch_size=rows, indices=indices)
    return features.encode_batches(batches, encode, clip.params)

  def read(indices):
    whole = encoded(indices, encode, clip.image_size)
    if crops is None:
      yield from whole
      return
    for (values, batch), (cut, _) in zip(whole, encoded(indices, crops, spec.crops)):
      yield values._replace(crops=cut.crops), batch

  return read


def training(cfg, method, clip, dataset, learnable, kept, place) -> dict | None:
  """Returns the time of a step and of an epoch, on features that are there already; None where nothing is learned."""
  if not experiment.trains(cfg, method, clip):
    return None
  if hasattr(method, 'examples'):
    return _trained_on_texts(cfg, method, clip, place)
  frozen = clip.params
  if hasattr(method, 'fixed'):
    frozen = jax.jit(functools.partial(method.fixed, categories=setup.names(cfg, dataset), clip=clip, cfg=cfg))(frozen)
    frozen = experiment.selected(cfg, method, frozen, cfg.data.aux)
  whole = jax.tree.map(lambda *x: np.concatenate(x), *[values for values, _ in kept])._replace(crops=None)
  truth = {key: np.concatenate([batch[key] for _, batch in kept])
           for key in ('mask', 'has_mask', 'label', 'category', 'index')}
  stages = {}
  for stage in methods.stages(method, cfg):
    recipe = setup.with_changes(cfg, stage.changes)
    rows = place.rows(recipe.train.batch)
    values, batch = jax.tree.map(lambda x, n=rows: np.resize(x, (n, *x.shape[1:])), (whole, truth))
    batch['valid'] = np.ones(rows, bool)
    stages[stage.name or 'all'] = _epoch(
      recipe, functools.partial(method.loss, clip=clip, cfg=recipe), stage.part(learnable), frozen, values, batch,
      EPOCH_IMAGES if stage.categories is None else math.ceil(
        EPOCH_IMAGES * len(stage.categories) / len(dataset.categories)), place)
  return {'of': f'an epoch of {EPOCH_IMAGES} images, from the time of a step on stored features', 'parts': stages,
          'epoch_seconds': sum(part['epoch_seconds'] for part in stages.values())}


def random_clip(cfg, method) -> clip_lib.Clip:
  """Returns the config's CLIP with fresh weights of the published shapes; nothing is downloaded."""
  arch = setup.shell(cfg, method).arch
  own = tokenizer_lib.load(None)
  if own.size > arch.text.vocab:  # the embedded CLIP, whose tokenizer is its own
    own = tokenizer_lib.load(hub.resolve(cfg.clip, arch=cfg.arch or None).tokenizer_path)
  drawn = np.random.default_rng(cfg.seed).standard_normal(2 ** 20 + 1, np.float32)
  params = jax.tree_util.tree_map_with_path(lambda path, leaf: _random(drawn, path[-1].key, leaf.shape),
                                            archs.template(arch))
  made = clip_lib.build(arch, params, image_size=cfg.image_size, tokenizer=own, fingerprint='random')
  return clip_lib.with_precision(dataclasses.replace(made, arch=arch), cfg.precision)


def draw(folder: Path, images: int, references: int, pixels: int) -> Path:
  """Writes PNG files in MVTec's layout, `images` or a few more to test on, smooth noise with a spot on every second."""
  rng = np.random.default_rng(0)
  for category in DRAWN:
    for split, kind, count in (('train', 'good', references), ('test', 'good', -(-images // 8)),
                               ('test', 'spot', -(-images // 8))):
      for i in range(count):
        small = Image.fromarray(rng.integers(60, 200, (pixels // 8 + 1, pixels // 8 + 1, 3)).astype(np.uint8))
        image, mask = small.resize((pixels, pixels)), Image.new('L', (pixels, pixels))
        if kind == 'spot':
          box = tuple(int(x * pixels) for x in (.4, .4, .55, .55))
          image.paste((255, 255, 255), box)
          mask.paste(255, box)
          _saved(mask, folder / category / 'ground_truth' / kind / f'{i:03d}_mask.png')
        _saved(image, folder / category / split / kind / f'{i:03d}.png')
  return folder


def memory() -> dict:
  """Returns the peak resident set and, where the device tells, the peak of its own memory; in bytes."""
  stats = jax.devices()[0].memory_stats() or {}
  return {'peak_rss_bytes': runtime.peak_rss_bytes(), 'device_peak_bytes': stats.get('peak_bytes_in_use')}


def published(cfg) -> dict | None:
  """Returns the row of AnomalyCLIP's table 8 that this config is, where it runs the CLIP of that row; else None."""
  stated = cfg.published.to_dict() if 'published' in cfg else {}
  if 'cost' not in stated or cfg.clip != stated.get('clip', 'vit_l14_336'):
    return None
  return {**stated['cost'], 'source': TABLE_8}


def text(report: dict) -> str:
  """Returns the report as lines for people."""
  made = ' with random weights: times hold, scores mean nothing' if report['random_weights'] else ''
  lines = [f'\nbench: {report["config"]} on CLIP {report["clip"]}{made}; {report["image_size"]} px, '
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
  if (found := report['training']) is None:
    lines.append('training: nothing is learned')
  else:
    steps = ', '.join(f'{name}: {part["step_ms"]:.4g} ms a step of {part["rows"]}'
                      for name, part in found['parts'].items())
    lines.append(f'training: {found["epoch_seconds"]:.3g} s for {found["of"]} ({steps})')
  device = report['memory']['device_peak_bytes']
  lines.append(f'peak memory: {report["memory"]["peak_rss_bytes"] / 1e9:.3g} GB resident'
               + (f', {device / 1e9:.3g} GB on the device' if device else ''))
  if row := report['published']:
    trained = f', {row["epoch_minutes"]} min an epoch' if 'epoch_minutes' in row else ''
    lines.append(f'published, on other hardware: {row["images_per_s"]} images/s{trained}; {row["source"]}')
  return '\n'.join(lines)


def _random(drawn, name, shape):
  """A weight of that name, made of `drawn` numbers over and over, of a size that keeps activations finite."""
  if name in ('bias', 'mean', 'scale', 'var', 'logit_scale'):
    return np.full(shape, {'scale': 1, 'var': 1, 'logit_scale': np.log(100)}.get(name, 0), np.float32)
  std = math.prod(shape[-3:-1]) ** -0.5 if name == 'kernel' else 0.02
  return np.resize(np.float32(std) * drawn, shape)


def _opened(cfg, workdir):
  """(config, data set) of what is timed: the target, or pictures drawn below `workdir`, which are also trained on."""
  if cfg.bench.source == 'target':
    return cfg, setup.open_data(cfg, 'target')
  shots = cfg.fewshot.shots if 'fewshot' in cfg else 0
  root = workdir / 'bench' / f'{cfg.bench.images}x{cfg.bench.pixels}x{shots}'
  drawn = f'folder:{draw(root / "images", cfg.bench.images, max(shots, 1), cfg.bench.pixels)}'
  cfg = setup.with_changes(cfg, {
    'data.target': drawn, 'data.aux': drawn, 'data.target_categories': '', 'data.aux_categories': '',
    'data.split': 'test', 'machine.data_dir': str(root / 'data'), 'machine.store_features': False, 'machine.feature_dir': ''})
  return cfg, setup.open_data(cfg, 'target')


def _predictor(cfg, method, clip, dataset, learnable, place):
  """predict(features, batch) on the device, text features and references made."""
  memory, _ = experiment.few_shot(cfg, method, clip)
  frozen, learnable, memory = jax.device_put((clip.params, learnable, memory), place.copy)

  def bank(learnable, frozen):
    return method.bank(learnable, frozen, setup.names(cfg, dataset), clip=clip, cfg=cfg)

  texts = jax.jit(bank)({} if hasattr(method, 'select') else learnable, frozen)
  texts = jax.device_put(experiment.selected(cfg, method, texts, cfg.data.target), place.copy)
  jitted = evaluate.make_predict(method, clip, cfg, place=place)
  return lambda values, batch: jitted(learnable, frozen, texts, memory, values, batch)


def _known(batch):
  return {key: batch[key] for key in ('category', 'index', 'valid')}


def _trained_on_texts(cfg, method, clip, place):
  """As training, on made-up text features: those of every seed at once, as many as the method's examples."""
  groups = method.examples(cfg.seed, cfg=cfg)
  several = tuple(range(cfg.seed, cfg.seed + cfg.seeds))
  rows = place.rows(cfg.train.batch)
  learnable = jax.vmap(lambda seed: method.init(jax.random.key(seed), clip, cfg))(np.asarray(several, np.uint32))
  values = np.random.default_rng(0).standard_normal(
    (rows, len(several), len(groups[0]), clip.arch.embed_dim)).astype(np.float32)
  part = _epoch(cfg, functools.partial(method.loss, clip=clip, cfg=cfg), learnable, clip.params, values,
                {'valid': np.ones(rows, bool)}, len(groups), place, several)
  return {'of': f'an epoch of {len(groups)} groups of texts, {len(several)} seeds at once', 'parts': {'all': part},
          'epoch_seconds': part['epoch_seconds']}


def _epoch(cfg, loss, learnable, frozen, values, batch, count, place, several=None):
  """{rows, step_ms, step_ms_range, epoch_seconds} of training steps, each waited for."""
  tx, rows = train.make_tx(cfg.optim), len(batch['valid'])
  per_epoch = math.ceil(count / rows)
  initial = functools.partial(train.initial, tx=tx, seed=several or cfg.seed)
  state = jax.jit(initial, out_shardings=place.copy)(learnable)
  step = train.make_step(loss, tx, place.copy, per_epoch, several is not None)
  frozen = jax.device_put(frozen, place.copy)
  values, batch = jax.device_put((values, batch), place.split)

  def one():
    nonlocal state
    state, metrics = step(state, frozen, values, batch)
    jax.block_until_ready(metrics)

  found = timed(one, 1, cfg.bench.repeats)
  return {'rows': rows, 'step_ms': found['ms_per_image'], 'step_ms_range': found['ms_per_image_range'],
          'epoch_seconds': per_epoch * found['ms_per_image'] / 1e3}


def _saved(image, path):
  path.parent.mkdir(parents=True, exist_ok=True)
  image.save(path)
