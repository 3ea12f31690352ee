"""A trained detector as one StableHLO program that runs without this project: image tower, prediction and weights.

The program takes uint8 images [B, R, R, 3] that are resized already, normalises them, and gives the score [B] and,
for methods that have one, the map [B, R, R]. Beside it lie export.json (sizes, preprocessing, sha256 of every file),
the text features, and threshold.json, which is nowhere in the program. See docs/export.md.
"""

import contextlib
import hashlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from PIL import Image

import zsad_jax
from zsad_jax import methods
from zsad_jax.clip import preprocess
from zsad_jax.engine import logs
from zsad_jax.experiment import experiment, generated, setup

FORMAT = 'zsad_jax export 1'
PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


class Model(NamedTuple):
  """What predicts one category: the arrays of a program and what it is traced from."""
  method: Any
  clip: Any
  cfg: Any
  spec: Any
  weights: Any  # {'frozen', 'learnable', 'memory'}
  bank: Any


def run(cfg, workdir) -> Path:
  """Writes the detector that `workdir` has learned to <workdir>/export, prints what lies there, returns the folder.

  Raises:
    ValueError: a score that needs the whole category, crops, a category missing or unknown, a key out of range.
    FileNotFoundError: nothing has been trained.
  """
  setup.check(cfg)
  method = methods.get(cfg.method)
  check(cfg, method)
  clip = setup.load_clip(cfg, method)
  cfg, learnable = _learned(cfg, workdir, method, clip)
  folder = write(assemble(cfg, method, clip, learnable), Path(workdir) / 'export')
  about = json.loads((folder / 'export.json').read_text())
  sizes = ', '.join(f'{name["name"]} ({name["bytes"] / 1e6:.1f} MB)' for name in about['files'].values())
  print(f'export: {folder}: {sizes}, export.json, threshold.json; for {", ".join(about["platforms"])}; '
        f'{about["images"]}\nread it with zsad_jax.export.load, or without this project as docs/export.md shows',
        flush=True)
  return folder


def check(cfg, method):
  """Raises ValueError where the config's score cannot be had of one image alone, or a key of `export` is wrong."""
  if hasattr(method, 'finish') and not hasattr(method, 'alone'):
    raise ValueError(f'{cfg.method} scores an image by all images of its category, which a program for single images '
                     'does not see')
  for key, value in (method.alone(cfg) if hasattr(method, 'alone') else {}).items():
    raise ValueError(f'{key}={setup.get(cfg, key)} scores an image by all images of its category, which a program '
                     f'for single images does not see; export with --config.{key}={value}')
  if 'multicrop' in cfg and cfg.multicrop.recipe != 'none':
    raise ValueError(f'multicrop.recipe={cfg.multicrop.recipe} reads crops of another resize, and the program takes '
                     'one image; export with --config.multicrop.recipe=none')
  platforms = setup.words(cfg.export.platforms)
  if not platforms or set(platforms) - set(PLATFORMS):
    raise ValueError(f'export.platforms {cfg.export.platforms!r} are not some of {", ".join(PLATFORMS)}')
  if cfg.export.batch < 0:
    raise ValueError(f'export.batch is {cfg.export.batch}; it must be at least 0, which stands for any number')
  _threshold(cfg)


def assemble(cfg, method, clip, learnable) -> Model:
  """Returns the Model of cfg.export.category: text features and, of a few-shot method, the memory of its references.

  Raises:
    ValueError: the category matters and is not named, or the target has no such category.
  """
  few, category = 'fewshot' in cfg and cfg.fewshot.shots > 0, cfg.export.category
  make = lambda names: lambda frozen: method.bank({} if hasattr(method, 'select') else learnable, frozen, names,
                                                  clip=clip, cfg=cfg)
  shapes = [[x.shape for x in jax.tree.leaves(jax.eval_shape(make(names), clip.params))]
            for names in (('object',), ('object', 'thing'))]
  if (few or shapes[0] != shapes[1]) and not category:
    raise ValueError(f'{cfg.method} names the object in its texts or compares it with references: say which one, such '
                     'as --config.export.category="metal nut"')
  memory = None
  if few:
    target = setup.open_data(cfg, 'target', 'train')
    known = {name: name for name in target.categories} | {target.object_names[c]: c for c in target.categories}
    if category not in known:
      raise ValueError(f'export.category {category!r} is not one of {", ".join(known)} of {cfg.data.target}')
    memory, _ = experiment.few_shot(setup.with_changes(cfg, {'data.target_categories': known[category]}), method, clip)
  texts = jax.jit(make((category or 'object',)))(clip.params)
  bank = experiment.selected(cfg, method, texts, cfg.data.target)
  weights = {'frozen': clip.params, 'learnable': learnable, 'memory': memory}
  return Model(method, clip, cfg, method.spec(clip, cfg), *jax.device_get((weights, bank)))


def program(model: Model, platforms, batch: int = 0, inline: bool = True):
  """Returns (jax.export.Exported of (bank, images) or, not `inline`, of (weights, bank, images); {name: weight used}).

  bank and weights are flat dicts of arrays. Images are uint8 [B, R, R, 3]; `batch` 0 leaves B open, and they go
  through one after another, so that every method and every tiling of attention is traced for a known number.
  """
  weights, bank = _flat(model.weights), _flat(model.bank)
  size = model.spec.image_size
  rows = batch or jax.export.symbolic_shape('b')[0]
  struct = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
  shapes = jax.tree.map(struct, bank), jax.ShapeDtypeStruct((rows, size, size, 3), np.uint8)

  def predict(weights, bank, images):
    if batch:
      return _predict(model, weights, bank, images)
    out = jax.lax.map(lambda image: _predict(model, weights, bank, image[None]), images)
    return jax.tree.map(lambda x: x[:, 0], out)

  # What is never read, such as the text tower behind fixed text features, is known once a program has been made.
  exported = jax.export.export(jax.jit(predict), platforms=platforms)(jax.tree.map(struct, weights), *shapes)
  kept = set(exported.module_kept_var_idx)
  used = {name: weights[name] for i, name in enumerate(sorted(weights)) if i in kept}
  if inline:
    whole = jax.jit(lambda bank, images: predict(used, bank, images))
    return jax.export.export(whole, platforms=platforms)(*shapes), used
  return jax.export.export(jax.jit(predict), platforms=platforms)(jax.tree.map(struct, used), *shapes), used


def write(model: Model, folder: Path) -> Path:
  """Writes a Model's files to `folder` and returns it; a kill leaves the old export or the new one.

  Files are named by their content and export.json, which names them, comes last.
  """
  cfg, clip = model.cfg, model.clip
  platforms = setup.words(cfg.export.platforms)
  with _nameless():
    exported, used, inline = _made(model, platforms)
  parts = {'program': ('stablehlo', bytes(exported.serialize())), 'bank': ('npz', _npz(_flat(model.bank)))}
  if not inline:
    parts['weights'] = ('safetensors', safetensors.numpy.save(used))
  files = {}
  for kind, (suffix, data) in parts.items():
    digest = hashlib.sha256(data).hexdigest()
    files[kind] = {'name': f'{kind}-{digest[:12]}.{suffix}', 'bytes': len(data), 'sha256': digest}
    logs.write_atomic(folder / files[kind]['name'], data)
  value = _threshold(cfg)
  logs.write_json(folder / 'threshold.json', {
    'threshold': value, 'threshold_source': None if value is None else 'export.threshold of the config'})
  logs.write_json(folder / 'export.json', {
    'format': FORMAT, 'files': files, 'platforms': platforms, 'method': cfg.method, 'category': cfg.export.category,
    'image_size': model.spec.image_size, 'resize': clip.arch.resize, 'mode': 'squash', 'mean': clip.arch.mean,
    'std': clip.arch.std, 'batch': cfg.export.batch, 'precision': clip.precision,
    'images': f'{cfg.export.batch} images a call' if cfg.export.batch else 'any number of images a call',
    'weights': 'inside the program' if inline else 'beside the program', 'weights_sha256': clip.fingerprint,
    'zsad_jax': zsad_jax.__version__, 'jax': jax.__version__, 'config': json.loads(cfg.to_json_best_effort())})
  named = {file['name'] for file in files.values()}
  for stale in folder.glob('*-*.*'):
    if stale.name not in named and stale.suffix in ('.stablehlo', '.npz', '.safetensors'):
      stale.unlink()
  return folder


def load(folder) -> tuple[Callable, dict]:
  """Returns (predict, about) of an export; needs jax, numpy and Pillow alone, as docs/export.md spells out.

  predict takes a list of PIL images in RGB and returns {'score': [B], 'map': [B, R, R]} as numpy arrays; about is
  export.json with threshold.json's keys.

  Raises:
    ValueError: not an export, or a file is not the one that export.json names.
  """
  folder = Path(folder)
  about = json.loads((folder / 'export.json').read_text())
  if about.get('format') != FORMAT:
    raise ValueError(f'{folder} is no {FORMAT}, but {about.get("format")!r}')
  data = {kind: (folder / file['name']).read_bytes() for kind, file in about['files'].items()}
  for kind, file in about['files'].items():
    if hashlib.sha256(data[kind]).hexdigest() != file['sha256']:
      raise ValueError(f'{folder / file["name"]} is damaged or another file: its sha256 is not the one in export.json; '
                       'export again')
  exported = jax.export.deserialize(bytearray(data['program']))
  bank = dict(np.load(io.BytesIO(data['bank']), allow_pickle=False))
  arrays = (safetensors.numpy.load(data['weights']), bank) if 'weights' in data else (bank,)
  arrays, call = jax.device_put(arrays), jax.jit(exported.call)
  size, resample = about['image_size'], preprocess.FILTERS[about['resize']]

  def predict(images: list[Image.Image]) -> dict[str, np.ndarray]:
    pixels = np.stack([np.asarray(image.convert('RGB').resize((size, size), resample)) for image in images])
    batch = about['batch'] or len(pixels)
    padded = np.resize(pixels, (math.ceil(len(pixels) / batch) * batch, *pixels.shape[1:]))
    parts = [jax.device_get(call(*arrays, padded[at:at + batch])) for at in range(0, len(padded), batch)]
    return {key: np.concatenate([part[key] for part in parts])[:len(pixels)] for key in parts[0]}

  return predict, {**about, **json.loads((folder / 'threshold.json').read_text())}


@contextlib.contextmanager
def _nameless():
  """Leaves out of programs where in this checkout every line of them comes from."""
  before = jax.config.jax_traceback_in_locations_limit
  jax.config.update('jax_traceback_in_locations_limit', 0)
  try:
    yield
  finally:
    jax.config.update('jax_traceback_in_locations_limit', before)


def _made(model, platforms):
  """(program, weights used, whether they are inside): inside where what is used of them is small enough."""
  cfg, limit = model.cfg, model.cfg.export.inline_gb * 1e9
  if _bytes(model.weights) > limit:
    exported, used = program(model, platforms, cfg.export.batch, inline=False)
    if _bytes(used) > limit:
      return exported, used, False
  return *program(model, platforms, cfg.export.batch), True


def _learned(cfg, workdir, method, clip):
  """(the config with what training found out, what was learned), of the first seed where several were trained."""
  if not experiment.trains(cfg, method, clip):
    return cfg, experiment.trained(cfg, workdir, method, clip, None) if cfg.checkpoint else {}
  if hasattr(method, 'examples'):
    every = experiment.trained(cfg, workdir, method, clip, None)
    return generated.of_seed(cfg, 0), jax.tree.map(lambda x: x[0], every)
  aux = setup.open_data(cfg, 'aux')
  cfg = experiment.settled(experiment.with_aux_names(cfg, aux), method, clip, aux)
  return cfg, experiment.trained(cfg, workdir, method, clip, aux)


def _predict(model, weights, bank, images):
  """Score and map of uint8 images; a weight that is not given is read nowhere."""
  arch, method, cfg = model.clip.arch, model.method, model.cfg
  tree = _filled(model.weights, weights)
  row = lambda x: jnp.asarray(x, jnp.float32)[None, None, None]
  pixels = (images.astype(jnp.float32) / 255 - row(arch.mean)) / row(arch.std)
  features = model.clip.image(tree['frozen'], pixels, model.spec)
  count = images.shape[0]
  batch = {'category': jnp.zeros(count, jnp.int32), 'valid': jnp.ones(count, bool), 'index': jnp.arange(count)}
  out = method.predict(tree['learnable'], tree['frozen'], _filled(model.bank, bank), tree['memory'], features, batch,
                       clip=model.clip, cfg=cfg)
  out = method.finish(out, cfg=cfg) if hasattr(method, 'finish') else out
  return {key: out[key] for key in ('score', 'map') if key in out}


def _flat(tree) -> dict:
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _filled(tree, flat):
  """`tree` with the arrays of `flat` in their places, and zeros where it has none."""
  def leaf(path, old):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return jnp.asarray(flat[name]) if name in flat else jnp.zeros(old.shape, old.dtype)

  return jax.tree_util.tree_map_with_path(leaf, tree)


def _npz(arrays) -> bytes:
  data = io.BytesIO()
  np.savez(data, **arrays)
  return data.getvalue()


def _bytes(tree) -> int:
  return sum(x.nbytes for x in jax.tree.leaves(tree))


def _threshold(cfg) -> float | None:
  if not cfg.export.threshold:
    return None
  try:
    return float(cfg.export.threshold)
  except ValueError:
    raise ValueError(f'export.threshold {cfg.export.threshold!r} is not a number') from None
