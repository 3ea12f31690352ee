"""Loads a data set by its name: resolves the name, prepares the records once, opens them."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from zsad_jax.data import dataset_names, images, preparation, published
from zsad_jax.data.dataset import Dataset
from zsad_jax.data.source_builder import SourceBuilder


def load(name: str, *, root: Path | str, split: str = 'test', categories: Sequence[str] = (),
         manual_dir: Path | str | None = None, rules: images.Rules | None = None, on_bad: str = 'error') -> Dataset:
  """Returns one split of a data set, preparing it under `root` first if necessary.

  A prepared copy belongs to the files it was made from: if a file of the source changes, a new copy is made. Without
  its source a published data set still opens if there is exactly one copy of it.

  Args:
    name: 'mvtec_ad', 'visa', 'synthetic_aux', ..., 'kolektor_sdd/thirds' for a configuration that is not the default,
      'folder:<path>' or 'csv:<path>' for images of your own; see `dataset_names.resolve`.
    root: folder of prepared data sets.
    split: 'train' (normal images only) or 'test'.
    categories: the categories to read; () = all.
    manual_dir: where published data sets are unpacked, root/downloads/manual by default: the folder with one sub-folder
      for each, or the data set's own.
    rules: how image files become pixels; by default `dataset_names.rules` of this data set.
    on_bad: 'error', or for images of your own also 'skip': damaged ones are left out and listed in `skipped`.

  Raises:
    ValueError: unknown name, split or category; files that cannot be used (each named, with the reason).
    FileNotFoundError: no data there; the message says what was expected, what is there and how to get it.
  """
  builder = locate(name, root=root, manual_dir=manual_dir, rules=rules, on_bad=on_bad)
  preparation.ensure(builder)
  path = dataset_names.resolve(name).path
  return Dataset(builder, split, categories, name=path.name if path else name)


def locate(name: str, *, root: Path | str, manual_dir: Path | str | None = None, rules: images.Rules | None = None,
           on_bad: str = 'error') -> tfds.core.DatasetBuilder:
  """Returns the builder of a data set, prepared or not. Arguments and errors are those of `load`."""
  builder_class, path, options = dataset_names.resolve(name)
  root = Path(root).expanduser().absolute()
  if on_bad != 'error' and path is None:
    raise ValueError(f'{name}: on_bad={on_bad!r} is for images of your own; published data sets are used whole')
  if not issubclass(builder_class, SourceBuilder):
    return builder_class(data_dir=root)
  rules = dataset_names.rules(name) if rules is None else rules
  config = dataset_names.configuration(name, builder_class)
  arguments = {'rules': rules, **({'config': config} if config else {})}
  try:
    source = path or published.find(builder_class.name, manual_dir or default_manual_dir(root))
  except FileNotFoundError as e:
    copy = _only_copy(preparation.copies(root, builder_class, config), rules, e)
    logging.warning('%s: source not found, using the copy prepared in %s', name, copy)
    up = len(preparation.subfolder(builder_class, config).parts) - 1
    return builder_class(data_dir=copy.parents[up], **arguments)
  data_dir = root / copy_name(builder_class, source, rules, on_bad, options)
  return builder_class(folder=source, data_dir=data_dir, on_bad=on_bad, options=options, **arguments)


def default_manual_dir(root: Path | str) -> Path:
  """Returns where published data sets are unpacked if no other folder is given."""
  return Path(root).expanduser().absolute() / 'downloads' / 'manual'


def _only_copy(copies: list[Path], rules: images.Rules, missing: FileNotFoundError) -> Path:
  """The copy to read without its source: the only one made by these rules. Raises `missing` otherwise."""
  matching = [copy for copy in copies if preparation.rules_of_copy(copy) == rules]
  if len(matching) == 1:
    return matching[0]
  if copies and not matching:
    other = preparation.rules_of_copy(copies[0])
    raise FileNotFoundError(f'{missing}\nThe copy prepared in {copies[0]} was made with {other}, not {rules}, so its '
                            'pixels may differ') from missing
  raise missing


def copy_name(builder: type[SourceBuilder], source: Path, rules: images.Rules, on_bad: str = 'error',
              options: dict | None = None) -> str:
  """Returns the folder name of a prepared copy: a readable part, and a digest of everything that determines it."""
  content = repr((source.name, builder.source_digest(source), rules, on_bad, *sorted((options or {}).items())))
  digest = hashlib.sha256(content.encode('utf-8', 'surrogateescape'))
  return f'{re.sub(r"[^A-Za-z0-9_.-]+", "_", source.name)[:40]}-{digest.hexdigest()[:16]}'
