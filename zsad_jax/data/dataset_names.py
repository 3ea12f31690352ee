"""Names of data sets: each resolves to a builder, a configuration, a path and rules for pixels."""

import difflib
import re
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds

from zsad_jax.data import builders, catalog, images
from zsad_jax.data.layouts import mvtec, plain_folders
from zsad_jax.data.synthetic import builder as synthetic_builder

FOLDER, TABLE = 'folder:', 'csv:'
OWN = (f'{FOLDER}<path>', f'{TABLE}<path>')
_OPTIONS = ('normal', 'abnormal', 'masks')
_OPTION = re.compile(rf'(?:,(?:{"|".join(_OPTIONS)})=[^,=]*)+$')

Builder = type[tfds.core.DatasetBuilder]


class Source(NamedTuple):
  """Where the records of a data set come from.

  Attributes:
    builder: the tfds builder class.
    path: the user's own folder or table; None for every other data set.
    options: the roles of folders in it, {'normal' | 'abnormal' | 'masks': names}.
  """
  builder: Builder
  path: Path | None
  options: dict[str, tuple[str, ...]]


def names() -> list[str]:
  """Returns the names `load` accepts, in alphabetical order, then 'folder:<path>' and 'csv:<path>'."""
  return [*sorted([*catalog.CATALOG, *synthetic_builder.BUILDERS]), *OWN]


def resolve(name: str) -> Source:
  """Returns the source of a data set.

  '<name>/<configuration>' selects one of a data set's configurations; see `configuration`. 'folder:<path>' is read in
  MVTec layout if it has it, else as plain folders; an optional suffix ',normal=a+b,abnormal=c,masks=d' assigns the
  folders' roles. 'csv:<path>' is a table of images.

  Raises:
    ValueError: no such data set, configuration or option; the message lists the nearest names.
  """
  if name.startswith(FOLDER):
    path, options = _split(name)
    return Source(_folder_builder(path, options), path, options)
  if name.startswith(TABLE):
    return Source(builders.ImageTable, _absolute(name.removeprefix(TABLE)), {})
  base, _, config = name.partition('/')
  if base in synthetic_builder.BUILDERS:
    builder = synthetic_builder.BUILDERS[base]
  elif base in catalog.CATALOG:
    builder = builders.published(base)
  else:
    near = difflib.get_close_matches(name, names(), 3, 0.4) or names()
    raise ValueError(f'there is no data set {name!r}; nearest: {", ".join(near)}. '
                     f'Images of your own: {" or ".join(OWN)}')
  configs = [c.name for c in builder.BUILDER_CONFIGS]
  if config and config not in configs:
    raise ValueError(f'{base} has no configuration {config!r}; it has {", ".join(configs) or "none"}')
  return Source(builder, None, {})


def is_own(name: str) -> bool:
  """Returns whether a name is that of a folder or table of the user's own."""
  return name.startswith((FOLDER, TABLE))


def _absolute(text: str) -> Path:
  return Path(text).expanduser().absolute()


def _split(name: str) -> tuple[Path, dict[str, tuple[str, ...]]]:
  """The path and the options of 'folder:<path>,normal=...'."""
  text = name.removeprefix(FOLDER)
  whole = _absolute(text)
  match = _OPTION.search(text)
  if whole.exists() or not match:
    unknown = re.search(r',(\w+)=', text)
    if unknown and not whole.exists():
      near = difflib.get_close_matches(unknown[1], _OPTIONS, 1)
      raise ValueError(f'{name}: cannot read {unknown[0]!r}' + (f', did you mean {near[0]!r}?' if near else '.')
                       + f' The path may be followed by ,{"=NAME ,".join(_OPTIONS)}=NAME')
    return whole, {}
  pairs = [pair.partition('=')[::2] for pair in match[0][1:].split(',')]
  twice = [key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i])]
  if twice:
    raise ValueError(f'{name}: {twice[0]}= occurs twice; join several folders with +')
  return _absolute(text[:match.start()]), {key: tuple(filter(None, value.split('+'))) for key, value in pairs}


def _folder_builder(path: Path, options: dict[str, tuple[str, ...]]) -> Builder:
  if {'abnormal', 'masks'} & options.keys():
    return builders.PlainFolders
  is_plain = not mvtec.is_laid_out(path) and plain_folders.has_image_folders(path)
  return builders.PlainFolders if is_plain else builders.MvtecLayout


def configuration(name: str, builder: Builder) -> str:
  """Returns the configuration that a name selects: what follows '/', else the first; '' if there are none."""
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
    transparency: 'white' or 'drop', or 'default' for the catalogue's rule for this data set, white for all others.

  Raises:
    ValueError: another value; lists the allowed ones.
  """
  allowed = ('default', *images.TRANSPARENCY)
  if transparency not in allowed:
    raise ValueError(f'data.transparency={transparency!r} is not allowed; use one of {", ".join(allowed)}')
  if transparency == 'default':
    entry = catalog.CATALOG.get(name.partition('/')[0])
    transparency = entry.transparency if entry else 'white'
  file_rules = images.Rules(exif, images.TRANSPARENCY[transparency])
  images.check_rules(file_rules)
  return file_rules
