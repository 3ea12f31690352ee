r"""Trains and evaluates zero-shot anomaly detectors and shows data sets; the only reader of command-line flags.

  python launch.py --config=configs/anomalyclip.py:demo --workdir=runs/demo
  python launch.py --config=configs/anomalyclip.py --workdir=runs/visa-to-mvtec --config.data.root=/data
  python launch.py --config=configs/anomalyclip.py --workdir=runs/visa-to-mvtec --mode=evaluate
  python launch.py --mode=datasets list
  python launch.py --mode=datasets verify mvtec_ad visa --manual_dir=DOWNLOADS
  python launch.py --mode=datasets prepare mvtec_ad folder:MY_IMAGES --data_root=/data
"""

import contextlib
import functools
import json
import logging as py_logging
import platform
import re
import subprocess
import sys
import textwrap
import time
import traceback
from importlib import metadata
from pathlib import Path

import jax
import ml_collections as mlc
import numpy as np
import tensorflow_datasets as tfds
from absl import app, flags, logging
from ml_collections import config_flags

import zsad_jax
from configs import common
from zsad_jax import data, encoder, evaluate, features, logs, methods, pretrain, runtime, train
from zsad_jax.data import commands, images, naming, protocol
from zsad_jax.models import clip as clip_lib
from zsad_jax.models import files, hub, preprocess
from zsad_jax.report import figures, page, tables

CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'configs/METHOD.py[:variant]; set any key with --config.KEY=VALUE.', lock_config=True)
WORKDIR = flags.DEFINE_string('workdir', None, 'Checkpoints, logs, results and pictures of this run.')
MODE = flags.DEFINE_enum(
  'mode', 'run', ('run', 'fit', 'evaluate', 'datasets'),
  'run: fit, then evaluate. fit: train on data.aux. evaluate: the newest checkpoint of --workdir (or '
  'config.checkpoint) on data.target. datasets: "list" the published data sets, "verify NAME..." their unpacked '
  'folders against what was published, or "prepare NAME..." them. Without names: data.aux and data.target of '
  '--config, or all that are unpacked.')
DATA_ROOT = flags.DEFINE_string('data_root', None, 'datasets: folder of prepared data sets, in place of data.root.')
MANUAL_DIR = flags.DEFINE_string('manual_dir', None, 'datasets: folder of unpacked ones, in place of data.manual_dir.')
DECODE = flags.DEFINE_bool('decode', True, 'datasets verify: decode every image; --nodecode compares names and counts.')

EXIT_PREEMPTED = 75  # EX_TEMPFAIL: run the same command again
# Keys that a checkpoint need not agree on; its data and weights are known by their digests, not by their names.
NOT_RECIPE = ('arch', 'checkpoint', 'clip', 'data', 'eval', 'features', 'published', 'train')


def main(argv):
  if MODE.value == 'datasets':
    sys.exit(datasets(argv[1:]))
  if len(argv) > 1:
    raise app.UsageError(f'unexpected argument {argv[1]!r}; options start with --, such as --config.seed=1')
  if CONFIG.value is None:
    raise app.UsageError('--config is missing; try --config=configs/anomalyclip.py:demo')
  cfg = mlc.FrozenConfigDict(CONFIG.value)
  if not WORKDIR.value:
    raise app.UsageError('--workdir is missing; name a folder for this run, such as --workdir=runs/demo')
  workdir = Path(WORKDIR.value)
  try:
    logs.probe(workdir)
    with logs.lock(workdir):
      runtime.compilation_cache(workdir.parent / '.compiled')
      run(cfg, workdir, MODE.value)
  except train.Preempted as stopped:
    print(f'{stopped}; the same command goes on from there', file=sys.stderr)
    sys.exit(EXIT_PREEMPTED)
  except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
    # A wrong key, file or number is the user's to mend: one message, and the traceback for those who want it.
    with contextlib.suppress(OSError):
      runtime.write_atomic(workdir / 'error.txt', traceback.format_exc().encode())
    sys.exit(f'error: {error}\n(traceback: {workdir / "error.txt"})')


def run(cfg, workdir, mode):
  """Fits and evaluates as `mode` says, and prints where everything is."""
  if 'method' not in cfg:
    return pretrain.run(cfg, workdir)
  check(cfg)
  method = methods.get(cfg.method)
  if hasattr(method, 'loss') and not (cfg.checkpoint or cfg.data.allow_seen):
    protocol.check_names(cfg.data.aux, cfg.data.target, _names(cfg.data.aux_categories),
                         _names(cfg.data.target_categories))
  clip = load_clip(cfg, method)
  print(f'zsad_jax {zsad_jax.__version__}: {cfg.method} on CLIP {cfg.clip} at {cfg.image_size} px; '
        f'{runtime.device_summary()}', flush=True)
  # Both sets are opened before the first step, so that a wrong name costs seconds and not a training.
  aux = open_data(cfg, 'aux') if trains(cfg, method, clip) else None
  target = open_data(cfg, 'target') if mode != 'fit' else None
  if aux is not None and target is not None and not cfg.data.allow_seen:
    protocol.check_images(aux, target)
  if aux is not None:
    cfg = with_aux_names(cfg, aux)
  learnable = fit(cfg, workdir, method, clip, aux) if aux is not None and mode != 'evaluate' else None
  if target is not None:
    learnable = trained(cfg, workdir, method, clip, aux) if learnable is None else learnable
    evaluate_target(cfg, workdir, method, clip, learnable, aux, target)
  return None


def check(cfg):
  """Raises ValueError naming the first shared key that is out of range, before anything is loaded."""
  for key, low in (('train.epochs', 1), ('train.batch', 1), ('features.batch', 1), ('eval.batch', 1),
                   ('eval.pictures', 0), ('image_size', 1), ('seed', 0)):
    value = _get(cfg, key)
    if value < low:
      raise ValueError(f'{key} is {value}; it must be at least {low}')
  if not 0 < cfg.eval.fpr_limit <= 1:
    raise ValueError(f'eval.fpr_limit is {cfg.eval.fpr_limit}; it must lie in (0, 1]')
  if cfg.features.max_gb <= 0:
    raise ValueError(f'features.max_gb is {cfg.features.max_gb}; it must be positive')
  for key, allowed in (('features.storage', features.STORAGE), ('data.transparency', ('default', *images.TRANSPARENCY)),
                       ('data.exif', ('ignore', 'apply'))):
    if _get(cfg, key) not in allowed:
      raise ValueError(f'{key} is {_get(cfg, key)!r}; it must be one of {", ".join(allowed)}')


def load_clip(cfg, method):
  """The CLIP of the config; the config is held against its architecture before any weight is read."""
  arch = hub.architecture(cfg.clip, arch=cfg.arch or None)
  shell = clip_lib.Clip(arch, cfg.image_size, params=None)
  encoder.validate(shell, method.spec(shell, cfg))
  return clip_lib.load(cfg.clip, arch=cfg.arch or None, image_size=cfg.image_size)


def reader(cfg, method, clip, dataset):
  """Returns load(indices) -> (Features, batch), from the feature store, which is filled first, or past it.

  The store is bypassed where the config says so, or where the method augments or learns inside the image tower
  and says so by `STORED = False`; every read then runs the image tower.
  """
  spec = method.spec(clip, cfg)
  encode = encoder.encode(clip, spec)
  transform = preprocess.image_transform(clip.arch, clip.image_size)

  def batches(indices, size=cfg.features.batch):
    return data.batches(dataset, transform=transform, mask_size=clip.image_size, batch_size=size, indices=indices)

  if not (cfg.features.store and getattr(method, 'STORED', True)):
    print(f'features of {dataset.name} are not stored: every read runs the image tower', flush=True)
    return lambda indices: next(features.encode_batches(batches(indices, len(indices)), encode, clip.params))

  image = jax.ShapeDtypeStruct((1, clip.image_size, clip.image_size, 3), np.float32)
  key = {'weights': clip.fingerprint, 'arch': repr(clip.arch), 'spec': repr(spec), 'data': dataset.fingerprint,
         'preprocessing': 'squash'}
  store = features.Store.open(
    cfg.features.dir or f'{cfg.data.root}/features', key=key, count=len(dataset), max_gb=cfg.features.max_gb,
    fields=features.fields(jax.eval_shape(encode, clip.params, image), clip.image_size, cfg.features.storage))
  features.fill(store, batches, encode, clip.params)
  return functools.partial(features.load, store)


def open_data(cfg, which):
  """The data set `which` ('aux' or 'target') of the config."""
  return data.load(cfg.data[which], root=cfg.data.root, split=cfg.data.split,
                   categories=_names(cfg.data[f'{which}_categories']), manual_dir=cfg.data.manual_dir or None,
                   rules=data.rules(cfg.data[which], cfg.data.exif, cfg.data.transparency))


def fit(cfg, workdir, method, clip, dataset):
  """Trains on the stored features of the auxiliary set; returns what was learned."""
  load = reader(cfg, method, clip, dataset)
  learnable = method.init(jax.random.key(cfg.seed), clip, cfg)
  print(f'fit: {cfg.train.epochs} epochs on {dataset.name} ({", ".join(dataset.categories)}), '
        f'{sum(x.size for x in jax.tree.leaves(learnable))} learned numbers', flush=True)
  with logs.Writer(workdir) as writer, runtime.preemption() as stop:
    return train.fit(
      functools.partial(method.loss, clip=clip, cfg=cfg), train.make_tx(cfg.optim), learnable, clip.params,
      load, len(dataset), epochs=cfg.train.epochs, batch=cfg.train.batch, seed=cfg.seed, workdir=workdir,
      writer=writer, identity=identity(cfg, method, clip, dataset), stop=stop)


def identity(cfg, method, clip, dataset):
  """What decides the learned numbers: weights, auxiliary data, what is read of it, and the recipe."""
  recipe = {k: v for k, v in json.loads(cfg.to_json_best_effort()).items() if k not in NOT_RECIPE}
  for dotted in getattr(method, 'EVALUATION_KEYS', ()):
    *path, last = dotted.split('.')
    del functools.reduce(dict.__getitem__, path, recipe)[last]
  return {'weights': clip.fingerprint, 'auxiliary data': dataset.fingerprint, 'spec': repr(method.spec(clip, cfg)),
          'features.storage': cfg.features.storage, **recipe}


def evaluate_target(cfg, workdir, method, clip, learnable, aux, dataset):
  """Evaluates on the target set; writes and prints results, tables and pictures."""
  start = time.time()
  load = reader(cfg, method, clip, dataset)
  place = runtime.place()
  names = tuple(dataset.object_names[c] for c in dataset.categories)
  frozen, learnable = jax.device_put((clip.params, learnable), place.copy)
  make_bank = functools.partial(method.bank, categories=names, clip=clip, cfg=cfg)
  bank = jax.jit(make_bank)(learnable, frozen)
  jitted = evaluate.make_predict(method, clip, cfg, place=place)
  chosen = pictured(dataset, cfg.eval.pictures)
  result = evaluate.run(
    lambda values, batch: jitted(learnable, frozen, bank, None, values, batch),
    load, dataset, batch=cfg.eval.batch, place=place, fpr_limit=cfg.eval.fpr_limit,
    finish=getattr(method, 'finish', None), keep=chosen)

  pair = f'{naming.short(cfg.data.aux) if aux is not None else "nothing"}-to-{naming.short(cfg.data.target)}'
  folder = workdir / 'results' / cfg.method / pair / f'seed{cfg.seed}'
  rules = protocol.record(aux, dataset, aux_name=cfg.data.aux, target_name=cfg.data.target,
                          allow_seen=cfg.data.allow_seen) | {
    'selection': f'last epoch ({cfg.train.epochs})' if aux is not None else 'none', 'seed': cfg.seed,
    'checkpoint': cfg.checkpoint or None}
  logs.write_json(folder / 'metrics.json', {
    'protocol': rules, 'mean': result.summary, 'counts': result.counts,
    'per_category': {c: {m: v._asdict() for m, v in row.items()} for c, row in result.rows.items()}})
  logs.write_atomic(folder / 'per_category.csv', tables.to_csv(result.rows, result.counts))
  logs.write_json(folder / 'manifest.json', manifest(cfg, clip, rules, time.time() - start))
  pictures = dict(write_sheets(folder / 'pictures', dataset, result, chosen))
  learned = sum(x.size for x in jax.tree.leaves(learnable))
  explanation = page.explain(cfg.method, cfg.clip, clip.image_size, learned, aux, dataset,
                             rules['shared_images']['count'])
  title = f'{cfg.method}, {pair}: split {cfg.data.split}, seed {cfg.seed}'
  logs.write_atomic(folder / 'index.html', page.render(
    title, explanation, result.rows, result.summary, published(cfg),
    {category: path.relative_to(folder).as_posix() for category, path in pictures.items()}))

  print(f'\n{title}; maps and masks at {clip.image_size} px; percent')
  print(tables.text(result.rows, result.summary, published(cfg)))
  print('\n' + '\n'.join(textwrap.fill(line, 110) for line in explanation))
  print(f'\nresults: {folder}\n' + (f'look at: {folder / "index.html"}' if pictures else ''))


def trained(cfg, workdir, method, clip, aux):
  """What an earlier run learned: config.checkpoint, or the workdir's newest checkpoint, held against the config."""
  if cfg.checkpoint:
    return method.load_official(files.read_safetensors(cfg.checkpoint), clip=clip, cfg=cfg)
  template = learned_shapes(cfg, method, clip)
  if aux is None:
    return template
  found = train.learned(workdir, template, train.make_tx(cfg.optim), identity=identity(cfg, method, clip, aux))
  if found is None:
    raise FileNotFoundError(f'no checkpoint in {workdir / "checkpoints"}; train first, with --mode=fit or '
                            '--mode=run')
  return found


def learned_shapes(cfg, method, clip):
  """What the method learns under this config, as shapes; {} for nothing."""
  return jax.eval_shape(lambda: method.init(jax.random.key(cfg.seed), clip, cfg))


def trains(cfg, method, clip):
  """Whether this method learns from data.aux under this config."""
  return hasattr(method, 'loss') and not cfg.checkpoint and bool(jax.tree.leaves(learned_shapes(cfg, method, clip)))


def with_aux_names(cfg, dataset):
  """The config with the auxiliary set's object names, for methods that train prompts per category."""
  if 'prompt' not in cfg or 'categories' not in cfg.prompt or cfg.prompt.categories:
    return cfg
  changed = mlc.ConfigDict(cfg.to_dict())  # a ConfigDict made from cfg itself would share its nested nodes
  changed.prompt.categories = tuple(dataset.object_names[c] for c in dataset.categories)
  return mlc.FrozenConfigDict(changed)


def pictured(dataset, count):
  """Indices of up to `count` images a category, half of them anomalous, spread over its defect types."""
  chosen = []
  for number in range(len(dataset.categories)):
    members = dataset.category_index == number
    anomalous, normal = (np.flatnonzero(members & (dataset.labels == label)) for label in (1, 0))
    share = min(len(anomalous), max(count - len(normal), -(-count // 2)))
    for group, size in ((anomalous, share), (normal, min(len(normal), count - share))):
      chosen += [int(i) for i in group[np.linspace(0, len(group) - 1, size).round().astype(int)]]
  return chosen


def write_sheets(folder, dataset, result, chosen):
  """Writes one PNG sheet a category and yields (category, path); all share one colour scale."""
  if not chosen:
    return
  scale = figures.colour_scale([result.maps[i] for i in chosen])
  for number, category in enumerate(dataset.categories):
    shown = []
    for i in (i for i in chosen if dataset.category_index[i] == number):
      record = dataset[i]
      caption = f'{record["defect_type"]}/{record["id"].rsplit("/", 1)[-1]}'
      shown.append(figures.Shown(record['image'], record['mask'], result.maps[i], float(result.scores[i]),
                                 record['label'], caption))
    path = folder / f'{category}.png'
    logs.write_atomic(path, figures.sheet(f'{dataset.name}: {category}', shown, scale))
    yield category, path


def manifest(cfg, clip, protocol, seconds):
  """Everything that would have to be equal for the same numbers, as a JSON-able dict."""
  versions = {p: metadata.version(p) for p in ('jax', 'flax', 'optax', 'numpy', 'pillow', 'scipy')}
  return {
    'config': json.loads(cfg.to_json_best_effort()), 'protocol': protocol, 'weights_sha256': clip.fingerprint,
    'image_size': clip.image_size, 'metric_resolution': clip.image_size, 'zsad_jax': zsad_jax.__version__,
    'git': git_revision(), 'versions': versions, 'python': platform.python_version(),
    'device': runtime.device_summary(), 'evaluation_seconds': round(seconds, 1),
    'peak_rss_bytes': runtime.peak_rss_bytes()}


def git_revision():
  """The commit of this checkout, '-dirty' where files differ from it; None outside a git checkout."""
  try:
    said = subprocess.run(['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*'],
                          cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return None
  return said.stdout.strip()


def published(cfg):
  """The paper's means for this target, where the config states them and the weights are the paper's."""
  if 'published' not in cfg or cfg.clip != 'vit_l14_336':
    return None
  return dict(cfg.published.get(cfg.data.target, {}))


def datasets(words):
  """Lists, verifies or prepares data sets as the command's words say; returns the exit code."""
  given = {} if CONFIG.value is None else CONFIG.value.get('data', {})
  keys = {**common.base().data, **given}
  place = commands.Place(DATA_ROOT.value or keys['root'], MANUAL_DIR.value or keys['manual_dir'] or None,
                         keys['exif'], keys['transparency'])
  code = 0
  try:
    for text, good in commands.run(words, place, names=[given[k] for k in ('aux', 'target') if k in given],
                                   decode=DECODE.value):
      print(text, flush=True)
      code |= not good
  except ValueError as error:
    sys.exit(f'error: {error}')
  return code


def _names(text):
  return tuple(name.strip() for name in text.split(',') if name.strip())


def _get(cfg, dotted):
  for part in dotted.split('.'):
    cfg = cfg[part]
  return cfg


def _parse(argv):
  """absl's flag parsing, with an unknown config key or variant as one line and the nearest name."""
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    text = str(error)
    if near := re.search(r'Did you mean "(.+)" instead of "(.+)"', text):
      text = f'unknown key {near[2]!r}; did you mean {near[1]!r}?'
    sys.exit(f'error: config: {text}')


class _Plain(py_logging.Formatter):
  """Messages as they are; warnings and errors say so."""

  def format(self, record):
    text = record.getMessage()
    return text if record.levelno < py_logging.WARNING else f'{record.levelname.lower()}: {text}'


def _show_progress():
  """Lets our own progress lines through, and of every library what is a warning or worse."""
  ours = f'{Path(__file__).parent}/zsad_jax/'
  handler = logging.get_absl_handler()
  handler.addFilter(lambda record: record.levelno >= py_logging.WARNING or record.pathname.startswith(ours))
  handler.setFormatter(_Plain())
  logging.set_verbosity(logging.INFO)
  tfds.disable_progress_bar()  # the data room has bars of its own, with an ETA


if __name__ == '__main__':
  _show_progress()
  flags.FLAGS.set_gnu_getopt(True)  # options may follow the names of data sets
  app.run(main, flags_parser=_parse)
