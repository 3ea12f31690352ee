"""What the name of a data set stands for: its builder, its configuration, its place on disk, its rules for pixels."""

import difflib
import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds

from zsad_jax import data
from zsad_jax.data import catalog, folder, images, plain

FOLDER, TABLE = 'folder:', 'csv:'
OWN = (f'{FOLDER}<path>', f'{TABLE}<path>')
_OWN_BUILDERS = ('mvtec_layout', 'plain_folders', 'image_table')
_OPTIONS = ('normal', 'abnormal', 'masks')
_OPTION = re.compile(rf'(?:,(?:{"|".join(_OPTIONS)})=[^,=]*)+$')


class Named(NamedTuple):
  """What a name stands for.

  Attributes:
    builder: the tfds builder class.
    path: the user's own folder or table; None for every other data set.
    options: which folders in it hold what, {'normal' | 'abnormal' | 'masks': names}.
  """
  builder: type[tfds.core.DatasetBuilder]
  path: Path | None
  options: dict[str, tuple[str, ...]]


def names() -> list[str]:
  """Returns the names `load` knows: every package here with a <name>_dataset_builder, 'folder:<path>', 'csv:<path>'."""
  packages = (m.name for m in pkgutil.iter_modules(data.__path__) if m.ispkg)
  found = [n for n in packages if importlib.util.find_spec(f'{data.__name__}.{n}.{n}_dataset_builder')]
  return [*(n for n in found if n not in _OWN_BUILDERS), *OWN]


def resolve(name: str) -> Named:
  """Returns what a name stands for.

  '<name>/<configuration>' selects one of a data set's configurations; see `configuration`. 'folder:<path>' is read in
  MVTec layout where it has it, else as plain folders; ',normal=a+b,abnormal=c,masks=d' behind it, each optional, says
  which folders hold what. 'csv:<path>' is a table of images.

  Raises:
    ValueError: no such data set, configuration or option; the message gives the nearest names.
  """
  if name.startswith(FOLDER):
    path, options = _split(name)
    return Named(_builder(_layout(path, options)), path, options)
  if name.startswith(TABLE):
    return Named(_builder('image_table'), _absolute(name.removeprefix(TABLE)), {})
  base, _, config = name.partition('/')
  if base not in names():
    near = difflib.get_close_matches(name, names(), 3, 0.4) or names()
    raise ValueError(f'no data set {name!r}; nearest: {", ".join(near)}. '
                     f'Images of your own: {" or ".join(OWN)}')
  builder = _builder(base)
  known = [c.name for c in builder.BUILDER_CONFIGS]
  if config and config not in known:
    raise ValueError(f'{base} has no configuration {config!r}; it has {", ".join(known) or "none"}')
  return Named(builder, None, {})


def is_own(name: str) -> bool:
  """Returns whether a name is that of the user's own folder or table."""
  return name.startswith((FOLDER, TABLE))


def _builder(name: str) -> type[tfds.core.DatasetBuilder]:
  return importlib.import_module(f'{data.__name__}.{name}.{name}_dataset_builder').Builder


def _absolute(text: str) -> Path:
  return Path(text).expanduser().absolute()


def _split(name: str) -> tuple[Path, dict[str, tuple[str, ...]]]:
  """The path and the options of 'folder:<path>,normal=...'."""
  text = name.removeprefix(FOLDER)
  whole = _absolute(text)
  match = _OPTION.search(text)
  if whole.exists() or not match:
    wrong = re.search(r',(\w+)=', text)
    if wrong and not whole.exists():
      near = difflib.get_close_matches(wrong[1], _OPTIONS, 1)
      raise ValueError(f'{name}: cannot read {wrong[0]!r}' + (f', did you mean {near[0]!r}?' if near else '')
                       + f' What may follow the path is ,{"=NAME ,".join(_OPTIONS)}=NAME')
    return whole, {}
  pairs = [pair.partition('=')[::2] for pair in match[0][1:].split(',')]
  twice = [key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i])]
  if twice:
    raise ValueError(f'{name}: {twice[0]}= is there twice; join several folders by +')
  return _absolute(text[:match.start()]), {key: tuple(filter(None, value.split('+'))) for key, value in pairs}


def _layout(path: Path, options: dict) -> str:
  if {'abnormal', 'masks'} & options.keys():
    return 'plain_folders'
  return 'plain_folders' if not folder.is_laid_out(path) and plain.filled(path) else 'mvtec_layout'


def configuration(name: str, builder: type[tfds.core.DatasetBuilder]) -> str:
  """Returns the configuration a resolved name selects: what follows '/', else the first; '' where there are none."""
  if not builder.BUILDER_CONFIGS:
    return ''
  return name.partition('/')[2] or builder.BUILDER_CONFIGS[0].name


def identity(name: str) -> str:
  """Returns the same text for all names of one data set: any configuration, any spelling of a path."""
  if name.startswith(FOLDER):
    return f'{FOLDER}{_split(name)[0].resolve()}'
  if name.startswith(TABLE):
    return f'{TABLE}{_absolute(name.removeprefix(TABLE)).resolve()}'
  return name.partition('/')[0]


def short(name: str) -> str:
  """Returns a name fit for a folder: the last part of a path, '-' for the '/' before a configuration."""
  if name.startswith(FOLDER):
    name = _split(name)[0].name
  elif name.startswith(TABLE):
    name = _absolute(name.removeprefix(TABLE)).name
  return re.sub(r'[^\w.-]+', '-', name)


def rules(name: str, exif: str = 'ignore', transparency: str = 'default') -> images.Rules:
  """Returns how the image files of a data set become pixels.

  Args:
    name: as for `load`.
    exif: 'ignore' or 'apply'; see `images.Rules`.
    transparency: 'white' or 'drop', or 'default' for what the catalogue says of this set, white for all others.

  Raises:
    ValueError: another value; names those there are.
  """
  allowed = ('default', *images.TRANSPARENCY)
  if transparency not in allowed:
    raise ValueError(f'transparency is {transparency!r}; it must be one of {", ".join(allowed)}')
  if transparency == 'default':
    entry = catalog.CATALOG.get(name.partition('/')[0])
    transparency = entry.transparency if entry else 'white'
  made = images.Rules(exif, images.TRANSPARENCY[transparency])
  images.check_rules(made)
  return made
