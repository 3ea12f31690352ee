"""From a name to a data set: resolve, prepare once, open."""

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import io
import pkgutil
import re
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from zsad_jax import data
from zsad_jax.data import builder as builder_lib
from zsad_jax.data import images, survey
from zsad_jax.data.dataset import Dataset

FOLDER = 'folder:'
_LAYOUT = 'mvtec_layout'         # the builder behind 'folder:<path>'


def names() -> list[str]:
  """Returns the names `load` knows: every package here with a <name>_dataset_builder, and 'folder:<path>'."""
  packages = (m.name for m in pkgutil.iter_modules(data.__path__) if m.ispkg)
  found = [n for n in packages if importlib.util.find_spec(f'{data.__name__}.{n}.{n}_dataset_builder')]
  return [*(n for n in found if n != _LAYOUT), f'{FOLDER}<path>']


def resolve(name: str) -> tuple[type[tfds.core.DatasetBuilder], Path | None]:
  """Returns (builder class, path) of a data set's name; the path only for 'folder:<path>'.

  '<name>/<configuration>' selects one of a data set's configurations; see `configuration`.

  Raises:
    ValueError: no such data set or configuration; the message gives the nearest names.
  """
  path, config = None, ''
  if name.startswith(FOLDER):
    path, name = Path(name.removeprefix(FOLDER)).expanduser().absolute(), _LAYOUT
  elif name.partition('/')[0] in names():
    name, config = name.partition('/')[::2]
  else:
    near = difflib.get_close_matches(name, names(), 3, 0.4) or names()
    raise ValueError(f'no data set {name!r}; nearest: {", ".join(near)}. '
                     f'A folder of your own: {FOLDER}<path>')
  builder_class = importlib.import_module(f'{data.__name__}.{name}.{name}_dataset_builder').Builder
  known = [c.name for c in builder_class.BUILDER_CONFIGS]
  if config and config not in known:
    raise ValueError(f'{name} has no configuration {config!r}; it has {", ".join(known) or "none"}')
  return builder_class, path


def configuration(name: str, builder_class: type[tfds.core.DatasetBuilder]) -> str:
  """Returns the configuration a resolved name selects: what follows '/', else the first; '' where there are none."""
  if not builder_class.BUILDER_CONFIGS:
    return ''
  return name.partition('/')[2] or builder_class.BUILDER_CONFIGS[0].name


def load(name: str, *, root, split: str = 'test', categories=(), manual_dir=None,
         rules: images.Rules = images.DEFAULT_RULES, on_bad: str = 'error') -> Dataset:
  """Returns one split of a data set, preparing it under `root` first where that has not been done.

  A prepared copy belongs to the files it was made from: when a file of the source changes, a new copy is
  made. Without its source a published data set still opens, from the one copy there is.

  Args:
    name: 'mvtec_ad', 'visa', 'synthetic_aux', ..., 'kolektor_sdd/thirds' for a configuration that is not the default,
      or 'folder:<path>' for a folder in MVTec layout.
    root: folder of prepared data sets.
    split: 'train' (normal images only) or 'test'.
    categories: the categories to keep; () = all.
    manual_dir: where published data sets are unpacked, root/downloads/manual by default: the folder with
      one sub-folder for each, or the data set's own.
    rules: how image files become pixels.
    on_bad: 'error', or for 'folder:' also 'skip': damaged images are left out and listed in `skipped`.

  Raises:
    ValueError: unknown name, split or category; files that cannot be used (each named, with the reason).
    FileNotFoundError: no data there; the message says what was expected, what was found and how to get it.
  """
  builder_class, path = resolve(name)
  if on_bad != 'error' and path is None:
    raise ValueError(f"{name}: on_bad={on_bad!r} is for folders of your own; this one is used whole")
  if not issubclass(builder_class, builder_lib.SourceBuilder):
    return Dataset(_prepared(builder_class(data_dir=root)), split, categories)
  root = Path(root).expanduser().absolute()
  manual_dir = manual_dir or root / 'downloads' / 'manual'
  config = configuration(name, builder_class)
  inside = Path(builder_class.name, config, str(builder_class.VERSION))
  options = {'config': config} if config else {}
  copies = sorted(root.glob(f'*/{inside}'))
  try:
    source = path or survey.find(builder_class.name, manual_dir)
  except FileNotFoundError:
    if len(copies) != 1:
      raise
    logging.warning('%s: source not found, using the copy prepared in %s', name, copies[0])
    builder = builder_class(data_dir=copies[0].parents[len(inside.parts) - 1], **options)
  else:
    where = root / _key(source, rules, on_bad)
    builder = builder_class(folder=source, data_dir=where, rules=rules, on_bad=on_bad, **options)
  return Dataset(_prepared(builder), split, categories, name=path.name if path else name)


def _key(source: Path, rules: images.Rules, on_bad: str) -> str:
  """The folder name of a prepared copy: a readable part, and a digest of all that decides what it holds."""
  content = repr((source.name, survey.listing(source), rules, on_bad))
  digest = hashlib.sha256(content.encode('utf-8', 'surrogateescape'))
  return f'{re.sub(r"[^A-Za-z0-9_.-]+", "_", source.name)[:40]}-{digest.hexdigest()[:16]}'


def _prepared(builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetBuilder:
  """The builder with its records on disk, made by this process or by another that was faster."""
  if not Path(builder.data_dir).exists():
    logging.info('preparing %s in %s', builder.name, builder.data_dir)
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # tfds prints of downloads; there are none
      builder.download_and_prepare()
  except OSError:
    if not builder.is_prepared():
      raise
    builder.info.read_from_directory(builder.data_dir)
  return builder
