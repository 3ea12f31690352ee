"""Configs by name or path: `anomalyclip:demo`, `tables/clip_ad_4_rvs`, `configs/anomalyclip.py:demo`, `../mine.py`."""

import difflib
import functools
import importlib
import importlib.machinery
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import ml_collections as mlc

import zsad_jax

FOLDER = Path(zsad_jax.__file__).parent / 'configs'


@functools.cache
def names() -> tuple[str, ...]:
  """Returns the names of the package's configs: methods first, then tables/..."""
  paths = (path.relative_to(FOLDER) for path in FOLDER.rglob('*.py') if path.stem not in ('__init__', 'common'))
  return tuple(sorted((path.with_suffix('').as_posix() for path in paths), key=lambda name: ('/' in name, name)))


def load(config: str | Path | Mapping | mlc.ConfigDict) -> mlc.FrozenConfigDict:
  """Returns the config of a name or path, with its variant if there is one; a config itself is returned frozen.

  Raises:
    FileNotFoundError: a path that is neither a file nor `configs/NAME.py` of the package.
    ValueError: an unknown name or variant, or a file without get_config.
  """
  if isinstance(config, str | Path):
    config = read(str(config))
  return mlc.FrozenConfigDict(config)


def read(reference: str) -> mlc.ConfigDict:
  """Returns the config of `reference` as get_config makes it, to be changed; see `load`.

  A path that exists wins over a name. `configs/NAME.py` is NAME if there is no such file, so that commands of the
  documentation work in every folder.
  """
  name, _, variant = reference.partition(':')
  module = _module(name)
  if not hasattr(module, 'get_config'):
    raise ValueError(f'config file {name} has no function get_config')
  if variant and not inspect.signature(module.get_config).parameters:
    raise ValueError(f'unknown variant :{variant}; config {name} has none')
  return module.get_config(variant) if variant else module.get_config()


def _module(name: str) -> ModuleType:
  path = Path(name)
  if path.suffix == '.py' and path.is_file():
    return _execute(path)
  plain = name.removeprefix('configs/').removesuffix('.py')
  if plain in names():
    return importlib.import_module(f'zsad_jax.configs.{plain.replace("/", ".")}')
  near = difflib.get_close_matches(plain, names(), 1)
  single = [other for other in names() if '/' not in other]
  remedy = f'did you mean {near[0]}?' if near else f'choose one of {", ".join(single)}, tables/..., or a .py file'
  if path.suffix == '.py':
    raise FileNotFoundError(f'config file {name} does not exist; {remedy}')
  raise ValueError(f'unknown config {name!r}; {remedy}')


def _execute(path: Path) -> ModuleType:
  module = ModuleType(path.stem)
  module.__file__ = str(path)
  importlib.machinery.SourceFileLoader(path.stem, str(path)).exec_module(module)
  return module
