"""What a raw data set's folder holds, before anything is prepared: items, problems and oddities, as data."""

import collections
import hashlib
import os
import unicodedata
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from zsad_jax.data import catalog, images

GOOD = 'good'
NORMAL_NAMES = (GOOD, 'normal', 'ok', 'no', 'negative', 'healthy')      # what data sets call it, in any letter case
SHOWN = 10                       # how many of the same kind a message lists
_LEFT_BEHIND = ('Thumbs.db', 'desktop.ini')      # what Windows writes into folders that were looked at


class Item(NamedTuple):
  """One image and what is known about it.

  `mask` is None for normal images and for label-only ones. `box` (left, top, right, bottom) cuts the image out of a
  larger file, and the mask likewise; None takes the whole file.
  """
  category: str
  split: str
  defect_type: str
  stem: str
  image: Path
  mask: Path | None
  label: int
  box: tuple[int, int, int, int] | None = None

  @property
  def key(self) -> str:
    """The example id, unique within a data set: '<category>/<split>/<defect_type>/<stem>'."""
    return f'{self.category}/{self.split}/{self.defect_type}/{self.stem}'


class Survey(NamedTuple):
  """The items of a folder in their order, what makes it unusable, and what is odd but bearable."""
  items: list[Item]
  problems: list[str]
  notes: list[str]


def join(surveys: Iterable[Survey]) -> Survey:
  """Returns one survey of several."""
  joined = Survey([], [], [])
  for one in surveys:
    for whole, part in zip(joined, one):
      whole.extend(part)
  return joined


def shorten(lines: Sequence[str]) -> list[str]:
  """Returns the first ten lines and, when there are more, how many."""
  more = len(lines) - SHOWN
  return [*lines[:SHOWN], *([f'... and {more} more'] if more > 0 else [])]


def folders(path: Path) -> dict[str, Path]:
  """Returns {name: path} of the visible sub-folders, sorted; {} when `path` is no folder."""
  return {p.name: p for p in _visible(path) if p.is_dir()}


def files(path: Path, expected: Container[str] = ()) -> tuple[dict[str, Path], list[str], list[str]]:
  """Returns ({stem: image file} sorted by stem, problems, notes) of the files directly in a folder.

  Stems are compared in Unicode normal form C, so that files copied from a Mac pair with the others. Hidden files and
  the names in `expected` are passed over; two images of one stem are a problem, files that are no images a note.
  """
  found, problems, notes = {}, [], []
  for p in _visible(path):
    if p.name in expected:
      continue
    if p.is_dir():
      notes.append(f'{p}: unexpected folder, ignored')
    elif p.suffix.lower() not in images.SUFFIXES:
      notes.append(f'{p}: not an image file, ignored')
    else:
      stem = unicodedata.normalize('NFC', p.stem)
      if any('\udc80' <= c <= '\udcff' for c in p.name):          # how Python spells undecodable bytes
        problems.append(f'{os.fsencode(p)!r}: the file name is not valid UTF-8; rename it')
      elif stem in found:
        problems.append(f'{p}: same name as {found[stem].name} but for the extension; keep one of the two')
      else:
        found[stem] = p
  return dict(sorted(found.items())), problems, notes


def _visible(path: Path) -> list[Path]:
  if not path.is_dir():
    return []
  return sorted(p for p in path.iterdir() if _is_visible(p.name))


def _is_visible(name: str) -> bool:
  return not name.startswith('.') and name not in _LEFT_BEHIND


def roll_call(root: Path, known: Iterable[str], present: Container[str], ignored: Iterable[Path]) -> list[str]:
  """Returns a note for each known category that is not present and for each folder that is none."""
  return [*(f'{root / name}: category folder is missing or empty' for name in known if name not in present),
          *(f'{path}: not a category of this data set, ignored' for path in ignored)]


def has_images(folder: Path) -> bool:
  """Returns whether image files lie directly in `folder`."""
  return any(p.suffix.lower() in images.SUFFIXES and p.is_file() for p in _visible(folder))


def normal_names(names: Iterable[str]) -> list[str]:
  """Returns those of these folder names that call normal images by a name in use."""
  return [name for name in names if name.casefold() in NORMAL_NAMES]


def outline(folder: Path) -> str:
  """Returns in one line what a folder holds: each sub-folder, two levels deep, with its number of files."""
  below = folders(folder)
  lines = [(name, path) for name, path in below.items()]
  lines += [(f'{name}/{inner}', path) for name, outer in below.items() for inner, path in folders(outer).items()]
  parts = [f'{name}/ ({len(_files(path))} files)' for name, path in sorted(lines)]
  loose = len(_files(folder))
  return ', '.join(shorten(parts + ([f'{loose} files'] if loose else []))) or 'nothing'


def _files(folder: Path) -> list[Path]:
  return [p for p in _visible(folder) if p.is_file()]


def listing(folder: Path) -> str:
  """Returns the sha256 of every visible file's relative path, size and modification time below `folder`.

  Cheap (nothing is read) and changed by anything that is added, removed, renamed or written, but not by what file
  managers leave in folders that were looked at.
  """
  digest = hashlib.sha256()
  for where, inner, names in os.walk(folder, followlinks=True):
    inner[:] = sorted(filter(_is_visible, inner))
    for name in sorted(filter(_is_visible, names)):
      path = os.path.join(where, name)
      if os.path.exists(path):
        stat = os.stat(path)
        line = f'{os.path.relpath(path, folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n'
        digest.update(line.encode('utf-8', 'surrogateescape'))
  return digest.hexdigest()


def repeated(items: Sequence[Item]) -> list[str]:
  """Returns a line for each id that two images share."""
  times = collections.Counter(item.key for item in items)
  return [f'{key}: {n} images have this id' for key, n in times.items() if n > 1]


def compare(name: str, items: Sequence[Item], config: str = '') -> list[str]:
  """Returns a line for each count that differs from the published one, with both numbers, or for all of none.

  Per category, or in all where the catalogue is sure of the sums only; `config` is the tfds configuration, where
  there are several.
  """
  lines = []
  for category, expected in catalog.CATALOG[name].published(config).items():
    found = counts(i for i in items if category in ('', i.category))
    told = [(kind, number) for kind, number in zip(('train', 'test normal', 'test anomalous'), expected)
            if number is not None and found.get(kind, 0) != number]
    if found:
      lines += [f'{category or "in all"}: {found.get(kind, 0)} {kind} images, published {number}'
                for kind, number in told]
    elif told:
      lines.append(f'{category}: no images, published {", ".join(f"{number} {kind}" for kind, number in told)}')
  return lines


def counts(items: Iterable[Item]) -> dict[str, int]:
  """Returns the number of images of each kind: 'train', 'test normal', 'test anomalous'."""
  found = {}
  for item in items:
    kind = item.split if item.split == 'train' else f'{item.split} {("normal", "anomalous")[item.label]}'
    found[kind] = found.get(kind, 0) + 1
  return found


def find(name: str, manual_dir) -> Path:
  """Returns the folder that holds the data set `name`: manual_dir/<name>, or manual_dir itself.

  The archive's own top folder may stand in either.

  Raises:
    FileNotFoundError: neither holds a marker of the data set (a category folder, where it has no others); the
      message says what was found instead (another letter case, one level too high or too low) and how to get the data.
  """
  manual, entry = Path(manual_dir).expanduser().absolute(), catalog.CATALOG[name]
  known = set(entry.markers or entry.categories)
  for folder in (manual / name, manual):
    for candidate in (folder, *(folder / top for top in entry.tops)):
      if known & _names(candidate):
        return candidate
  example = next(iter(entry.markers or entry.categories))
  raise FileNotFoundError(
      f'{name}: no {"file or folder" if entry.markers else "category folder"} such as {example!r} in '
      f'{manual / name} or in {manual}. '
      f'{_hint(name, manual, known)}\n{catalog.instructions(name)}')


def _names(folder: Path) -> set[str]:
  return {p.name for p in _visible(folder)}


def _hint(name: str, manual: Path, known: set[str]) -> str:
  """What a wrong root most likely is."""
  if not manual.is_dir():
    return f'{manual} is no folder.' if manual.exists() else f'{manual} does not exist.'
  if manual.name in known or known & _names(manual.parent):
    return f'That is one level too low: the data set is {manual.parent}.'
  lower = {n.lower(): n for n in known}
  for folder in (manual / name, manual):
    for child, path in folders(folder).items():
      if any(known & _names(path / top) for top in ('', *catalog.CATALOG[name].tops)):
        case = f' (another letter case than {name!r})' if child.lower() == name else ''
        return (f'The data set seems to be {path}{case}: move or rename it to {manual / name}, or take it for the '
                'manual folder.')
    other = sorted(n for n in _names(folder) if n.lower() in lower)
    if other:
      return f'{folder} holds {other[0]!r}, expected {lower[other[0].lower()]!r}: the names are case-sensitive.'
  return f'Found there: {", ".join(shorten([p.name for p in _visible(manual)])) or "nothing"}.'
