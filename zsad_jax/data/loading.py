"""From a name to a data set: resolve, prepare once, open."""

import hashlib
import re
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from zsad_jax.data import builder as builder_lib
from zsad_jax.data import images, naming, preparation, survey
from zsad_jax.data.dataset import Dataset


def load(name: str, *, root, split: str = 'test', categories=(), manual_dir=None,
         rules: images.Rules | None = None, on_bad: str = 'error') -> Dataset:
  """Returns one split of a data set, preparing it under `root` first where that has not been done.

  A prepared copy belongs to the files it was made from: when a file of the source changes, a new copy is
  made. Without its source a published data set still opens, from the one copy there is.

  Args:
    name: 'mvtec_ad', 'visa', 'synthetic_aux', ..., 'kolektor_sdd/thirds' for a configuration that is not the default,
      'folder:<path>' or 'csv:<path>' for images of your own; see `naming.resolve`.
    root: folder of prepared data sets.
    split: 'train' (normal images only) or 'test'.
    categories: the categories to keep; () = all.
    manual_dir: where published data sets are unpacked, root/downloads/manual by default: the folder with
      one sub-folder for each, or the data set's own.
    rules: how image files become pixels; by default `naming.rules` of this data set.
    on_bad: 'error', or for images of your own also 'skip': damaged ones are left out and listed in `skipped`.

  Raises:
    ValueError: unknown name, split or category; files that cannot be used (each named, with the reason).
    FileNotFoundError: no data there; the message says what was expected, what was found and how to get it.
  """
  builder = locate(name, root=root, manual_dir=manual_dir, rules=rules, on_bad=on_bad)
  preparation.ensure(builder)
  path = naming.resolve(name).path
  return Dataset(builder, split, categories, name=path.name if path else name)


def locate(name: str, *, root, manual_dir=None, rules: images.Rules | None = None, on_bad: str = 'error'
           ) -> tfds.core.DatasetBuilder:
  """Returns the builder of a data set, whether or not it is prepared. Arguments and errors are those of `load`."""
  builder_class, path, options = naming.resolve(name)
  root = Path(root).expanduser().absolute()
  if on_bad != 'error' and path is None:
    raise ValueError(f"{name}: on_bad={on_bad!r} is for folders of your own; this one is used whole")
  if not issubclass(builder_class, builder_lib.SourceBuilder):
    return builder_class(data_dir=root)
  rules = naming.rules(name) if rules is None else rules
  config = naming.configuration(name, builder_class)
  chosen = {'config': config} if config else {}
  try:
    source = path or survey.find(builder_class.name, manual_dir or manual(root))
  except FileNotFoundError as e:
    copy = _only_copy(preparation.copies(root, builder_class, config), rules, e)
    logging.warning('%s: source not found, using the copy prepared in %s', name, copy)
    up = len(preparation.inside(builder_class, config).parts) - 1
    return builder_class(data_dir=copy.parents[up], rules=rules, **chosen)
  if options:
    chosen['options'] = options
  return builder_class(folder=source, data_dir=root / key(builder_class, source, rules, on_bad, options), rules=rules,
                       on_bad=on_bad, **chosen)


def manual(root) -> Path:
  """Returns where published data sets are unpacked unless another folder is named."""
  return Path(root).expanduser().absolute() / 'downloads' / 'manual'


def _only_copy(copies: list[Path], rules: images.Rules, missing: FileNotFoundError) -> Path:
  """The copy to read where the source is gone: the only one made by these rules. Raises `missing` otherwise."""
  fitting = [copy for copy in copies if preparation.rules_of_copy(copy) == rules]
  if len(fitting) == 1:
    return fitting[0]
  if copies and not fitting:
    made = preparation.rules_of_copy(copies[0])
    raise FileNotFoundError(f'{missing}\nThe copy prepared in {copies[0]} was made with {made}, not {rules}, so that '
                            'its pixels may differ') from missing
  raise missing


def key(builder: type[builder_lib.SourceBuilder], source: Path, rules: images.Rules, on_bad: str = 'error',
        options: dict | None = None) -> str:
  """Returns the folder name of a prepared copy: a readable part, and a digest of all that decides what it holds."""
  content = repr((source.name, builder.listing(source), rules, on_bad, *sorted((options or {}).items())))
  digest = hashlib.sha256(content.encode('utf-8', 'surrogateescape'))
  return f'{re.sub(r"[^A-Za-z0-9_.-]+", "_", source.name)[:40]}-{digest.hexdigest()[:16]}'
