"""A detector as one StableHLO program that runs without this project: image tower, prediction and weights.

The program takes uint8 images [B, R, R, 3] that are already resized, normalises them, and returns the score [B] and,
for methods that have one, the anomaly map [B, R, R]. Next to it are export.json (sizes, preprocessing, sha256 of every
file), the text features, and threshold.json, which is not part of the program. See docs/export.md.
"""

import contextlib
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from PIL import Image

import zsad_jax
from zsad_jax.clip import preprocess
from zsad_jax.engine import logs
from zsad_jax.experiment import seeds, setup
from zsad_jax.experiment.run import Run
from zsad_jax.methods import Context, Params
from zsad_jax.methods.parts import bounds

FORMAT = 'zsad_jax export 1'
PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


class Model(NamedTuple):
  """What predicts one category: a run and the arrays of its program.

  Attributes:
    run: see there.
    weights: {'clip_params', 'params', 'memory_bank'}.
    text_features: of the category.
  """
  run: Run
  weights: dict[str, Any]
  text_features: Any


def run(cfg: setup.Config, workdir: Path) -> Path:
  """Writes the detector that `workdir` holds to <workdir>/export, prints what is there, returns the folder.

  Raises:
    ValueError: a score that needs the whole category, crops, a category missing or unknown, a key that is not allowed.
    FileNotFoundError: nothing has been trained.
  """
  check(cfg)
  whole = Run.load(cfg)
  every = seeds.of_run(whole)
  one = every[0]  # of several seeds, the first
  aux = setup.open_data(cfg, 'aux') if one.trains and not one.trains_on_texts else None
  one = one.for_auxiliary(aux)
  params = one.restore(seeds.folder(workdir, one, len(every)), aux)
  folder = write(assemble(one, params), workdir / 'export')
  about = json.loads((folder / 'export.json').read_text())
  sizes = ', '.join(f'{name["name"]} ({name["bytes"] / 1e6:.1f} MB)' for name in about['files'].values())
  print(f'export: {folder}: {sizes}, export.json, threshold.json; for {", ".join(about["platforms"])}; '
        f'{about["images"]}\nload it with zsad_jax.predict.export.load, or as in docs/export.md without this project',
        flush=True)
  return folder


def check(cfg: setup.Config) -> None:
  """Raises ValueError if the config's score needs other images, or a key of `export` is not allowed."""
  method = setup.check(cfg)
  for key, value in method.single_image_overrides(cfg).items():
    raise ValueError(f'{key}={bounds.value_of(cfg, key)} scores an image together with all images of its category, '
                     f'which a program for single images does not see; export with --config.{key}={value}')
  if 'multicrop' in cfg and cfg.multicrop.recipe != 'none':
    raise ValueError(f'multicrop.recipe={cfg.multicrop.recipe} reads crops of another resize, and the program takes '
                     'one image; export with --config.multicrop.recipe=none')
  platforms = setup.words(cfg.export.platforms)
  if not platforms or set(platforms) - set(PLATFORMS):
    raise ValueError(f'export.platforms={cfg.export.platforms!r} is not allowed; it must be some of '
                     f'{", ".join(PLATFORMS)}')
  _threshold(cfg)


def assemble(run: Run, params: Params) -> Model:
  """Returns the Model of export.category, with text features and, for few-shot methods, the references' memory bank.

  Raises:
    ValueError: the category matters and is not named, or the target has no such category.
  """
  cfg, clip, category = run.cfg, run.clip, run.cfg.export.category
  encode = lambda names: lambda clip_params: run.method.encode_text(params, clip_params, names, clip=clip, cfg=cfg)
  shapes = [[x.shape for x in jax.tree.leaves(jax.eval_shape(encode(names), clip.params))]
            for names in (('object',), ('object', 'thing'))]
  if (run.shots or shapes[0] != shapes[1]) and not category:
    raise ValueError(f'{setup.label(cfg)} names the object in its texts or compares it with references: say which one, '
                     'such as --config.export.category="metal nut"')
  memory_bank = None
  if run.shots:
    target = setup.open_data(cfg, 'target', 'train')
    known = {name: name for name in target.categories} | {target.object_names[c]: c for c in target.categories}
    if category not in known:
      raise ValueError(f'export.category={category!r} is not a category of {cfg.data.target}, which has '
                       f'{", ".join(known)}')
    memory_bank, _ = run.with_overrides({'data.target_categories': known[category]}).reference_bank()
  text = run.reduced(jax.jit(encode((category or 'object',)))(clip.params), cfg.data.target)
  weights = {'clip_params': clip.params, 'params': params, 'memory_bank': memory_bank}
  return Model(run, *jax.device_get((weights, text)))


def program(model: Model, platforms: Sequence[str], batch: int = 0, inline: bool = True) -> tuple[Any, dict]:
  """Returns (jax.export.Exported, {name: weight that it uses}).

  The program is of (text, images) or, if not `inline`, of (weights, text, images). weights and text are flat dicts of
  arrays. Images are uint8 [B, R, R, 3]; `batch` 0 leaves B open, and they go through one after another, so that every
  method and every tiling of attention is traced for a known number.
  """
  weights, text = _flat(model.weights), _flat(model.text_features)
  size = model.run.spec.image_size
  rows = batch or jax.export.symbolic_shape('b')[0]
  struct = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
  shapes = jax.tree.map(struct, text), jax.ShapeDtypeStruct((rows, size, size, 3), np.uint8)

  def predict(weights, text, images):
    if batch:
      return _predict(model, weights, text, images)
    out = jax.lax.map(lambda image: _predict(model, weights, text, image[None]), images)
    return jax.tree.map(lambda x: x[:, 0], out)

  # What is never read, such as the text tower behind precomputed text features, is known once a program exists.
  exported = jax.export.export(jax.jit(predict), platforms=platforms)(jax.tree.map(struct, weights), *shapes)
  kept = set(exported.module_kept_var_idx)
  used = {name: weights[name] for i, name in enumerate(sorted(weights)) if i in kept}
  if inline:
    whole = jax.jit(lambda text, images: predict(used, text, images))
    return jax.export.export(whole, platforms=platforms)(*shapes), used
  return jax.export.export(jax.jit(predict), platforms=platforms)(jax.tree.map(struct, used), *shapes), used


def write(model: Model, folder: Path) -> Path:
  """Writes a Model's files to `folder` and returns it; a kill leaves the old export or the new one.

  Files are named by their content, and export.json, which names them, is written last.
  """
  cfg, clip = model.run.cfg, model.run.clip
  platforms = setup.words(cfg.export.platforms)
  with _without_locations():
    exported, used, inline = _exported(model, platforms)
  parts = {'program': ('stablehlo', bytes(exported.serialize())), 'text': ('npz', _npz(_flat(model.text_features)))}
  if not inline:
    parts['weights'] = ('safetensors', safetensors.numpy.save(used))
  files: dict[str, dict[str, Any]] = {}
  for kind, (suffix, content) in parts.items():
    digest = hashlib.sha256(content).hexdigest()
    files[kind] = {'name': f'{kind}-{digest[:12]}.{suffix}', 'bytes': len(content), 'sha256': digest}
    logs.write_atomic(folder / files[kind]['name'], content)
  value = _threshold(cfg)
  logs.write_json(folder / 'threshold.json', {
    'threshold': value, 'threshold_source': None if value is None else 'export.threshold of the config'})
  logs.write_json(folder / 'export.json', {
    'format': FORMAT, 'files': files, 'platforms': platforms, 'method': cfg.method, 'category': cfg.export.category,
    'image_size': model.run.spec.image_size, 'resize': clip.arch.resize, 'mode': 'squash', 'mean': clip.arch.mean,
    'std': clip.arch.std, 'batch': cfg.export.batch, 'precision': clip.precision,
    'images': f'{cfg.export.batch} images per call' if cfg.export.batch else 'any number of images per call',
    'weights': 'inside the program' if inline else 'next to the program', 'weights_sha256': clip.fingerprint,
    'zsad_jax': zsad_jax.__version__, 'jax': jax.__version__, 'config': json.loads(cfg.to_json_best_effort())})
  named = {file['name'] for file in files.values()}
  for stale in folder.glob('*-*.*'):
    if stale.name not in named and stale.suffix in ('.stablehlo', '.npz', '.safetensors'):
      stale.unlink()
  return folder


def load(folder: Path | str) -> tuple[Callable, dict[str, Any]]:
  """Returns (predict, about) of an export; needs only jax, numpy and Pillow, as docs/export.md shows.

  predict takes a list of PIL images in RGB and returns {'score': [B], 'map': [B, R, R]} as numpy arrays; about is
  export.json with threshold.json's keys.

  Raises:
    ValueError: not an export, or a file is not the one that export.json names.
  """
  folder = Path(folder)
  about = json.loads((folder / 'export.json').read_text())
  if about.get('format') != FORMAT:
    raise ValueError(f'{folder} is not a {FORMAT} but {about.get("format")!r}; export again')
  data = {kind: (folder / file['name']).read_bytes() for kind, file in about['files'].items()}
  for kind, file in about['files'].items():
    if hashlib.sha256(data[kind]).hexdigest() != file['sha256']:
      raise ValueError(f'{folder / file["name"]} is damaged or another file: its sha256 is not the one in export.json; '
                       'export again')
  exported = jax.export.deserialize(bytearray(data['program']))
  text = dict(np.load(io.BytesIO(data['text']), allow_pickle=False))
  arrays = (safetensors.numpy.load(data['weights']), text) if 'weights' in data else (text,)
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
def _without_locations() -> Iterator[None]:
  """Keeps the places of this checkout's source lines out of programs."""
  before = jax.config.values['jax_traceback_in_locations_limit']
  jax.config.update('jax_traceback_in_locations_limit', 0)
  try:
    yield
  finally:
    jax.config.update('jax_traceback_in_locations_limit', before)


def _exported(model: Model, platforms: Sequence[str]) -> tuple[Any, dict, bool]:
  """(program, weights used, whether they are inside the program): inside if those used are small enough."""
  cfg, limit = model.run.cfg, model.run.cfg.export.inline_gb * 1e9
  if _bytes(model.weights) > limit:
    exported, used = program(model, platforms, cfg.export.batch, inline=False)
    if _bytes(used) > limit:
      return exported, used, False
  return *program(model, platforms, cfg.export.batch), True


def _predict(model: Model, weights: Mapping, text: Mapping, images: jax.Array) -> dict[str, Any]:
  """Score and map of uint8 images; weights that are missing are read nowhere."""
  run = model.run
  tree = _filled(model.weights, weights)
  row = lambda x: jnp.asarray(x, jnp.float32)[None, None, None]
  pixels = (images.astype(jnp.float32) / 255 - row(run.clip.arch.mean)) / row(run.clip.arch.std)
  features = run.clip.image(tree['clip_params'], pixels, run.spec)
  count = images.shape[0]
  batch = {'category': jnp.zeros(count, jnp.int32), 'valid': jnp.ones(count, bool), 'index': jnp.arange(count)}
  context = Context(tree['clip_params'], _filled(model.text_features, text), tree['memory_bank'])
  prediction = run.method.predict(tree['params'], context, features, batch, clip=run.clip, cfg=run.cfg)
  prediction = run.postprocess(prediction) if run.postprocess else prediction
  return {'score': prediction.score} | ({} if prediction.map is None else {'map': prediction.map})


def _flat(tree: Any) -> dict[str, Any]:
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _filled(tree: Any, flat: Mapping) -> Any:
  """`tree` with the arrays of `flat` in their places, and zeros for those that it lacks."""
  def leaf(path, old):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return jnp.asarray(flat[name]) if name in flat else jnp.zeros(old.shape, old.dtype)

  return jax.tree_util.tree_map_with_path(leaf, tree)


def _npz(arrays: Mapping) -> bytes:
  out = io.BytesIO()
  np.savez(out, **arrays)
  return out.getvalue()


def _bytes(tree: Any) -> int:
  return sum(x.nbytes for x in jax.tree.leaves(tree))


def _threshold(cfg: setup.Config) -> float | None:
  if not cfg.export.threshold:
    return None
  try:
    return float(cfg.export.threshold)
  except ValueError:
    raise ValueError(f'export.threshold={cfg.export.threshold!r} is not a number') from None
