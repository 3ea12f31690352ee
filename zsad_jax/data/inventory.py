"""Inventory of a raw folder before anything is prepared: its images with labels and masks, problems and remarks."""

import collections
import hashlib
import os
import unicodedata
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from zsad_jax.data import images

GOOD = 'good'
NORMAL_NAMES = (GOOD, 'normal', 'ok', 'no', 'negative', 'healthy')  # of folders and labels, in any letter case
SHOWN = 10  # lines of one kind that a message lists
_SYSTEM_FILES = ('Thumbs.db', 'desktop.ini')  # written by Windows into folders that were opened


class Item(NamedTuple):
  """One image and what is known about it.

  `mask` is None for normal images and for images with a label only. `box` (left, top, right, bottom) cuts image and
  mask out of larger files; None takes the whole files.
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


class Inventory(NamedTuple):
  """The items of a raw folder in order, problems that make it unusable, and notes on oddities that do not."""
  items: list[Item]
  problems: list[str]
  notes: list[str]

  def sort(self) -> 'Inventory':
    """Sorts the items by category, split, defect type and stem, and returns the inventory."""
    self.items.sort(key=lambda item: item[:4])
    return self


def empty() -> Inventory:
  """Returns an inventory without items, to be filled."""
  return Inventory([], [], [])


def merge(inventories: Iterable[Inventory]) -> Inventory:
  """Returns the concatenation of several inventories."""
  merged = empty()
  for inventory in inventories:
    for whole, part in zip(merged, inventory):
      whole.extend(part)
  return merged


def pair(inventory: Inventory, folder: Path, mask_folder: Path | None, kind: tuple[str, str, str],
         suffixes: Sequence[str]) -> None:
  """Adds the images of one folder to `inventory`, each with its mask if `mask_folder` is given.

  Images and masks pair by stem, checked in both directions.

  Args:
    inventory: what is extended.
    folder: of the images.
    mask_folder: of their masks; None for images that have none.
    kind: (category, split, defect type); every defect type except 'good' needs its masks.
    suffixes: what a mask's stem may add to the stem of its image.
  """
  category, split, defect = kind
  by_stem, problems, notes = files(folder)
  masks = {}
  if mask_folder is not None:
    masks, mask_problems, mask_notes = files(mask_folder)
    problems, notes = problems + mask_problems, notes + mask_notes
  for stem, image in by_stem.items():
    mask = next((masks.pop(stem + suffix) for suffix in suffixes if stem + suffix in masks), None)
    if mask is None and mask_folder is not None and defect != GOOD:
      hint = f' (normal images belong in {GOOD!r}, not {defect!r})' if normal_names([defect]) else ''
      problems.append(f'{image}: no mask {mask_folder / (stem + suffixes[0])}.*{hint}')
    inventory.items.append(Item(category, split, defect, stem, image, mask, int(defect != GOOD)))
  problems.extend(f'{mask}: mask without an image {folder / stem.removesuffix(suffixes[0])}.*'
                  for stem, mask in masks.items())
  inventory.problems.extend(problems)
  inventory.notes.extend(notes)


def shorten(lines: Sequence[str]) -> list[str]:
  """Returns the first ten lines, followed by the number of further lines if there are any."""
  more = len(lines) - SHOWN
  return [*lines[:SHOWN], *([f'... and {more} more'] if more > 0 else [])]


def folders(path: Path) -> dict[str, Path]:
  """Returns {name: path} of the visible sub-folders, sorted; {} if `path` is not a folder."""
  return {p.name: p for p in visible(path) if p.is_dir()}


def files(path: Path, expected: Container[str] = ()) -> tuple[dict[str, Path], list[str], list[str]]:
  """Returns ({stem: image file} sorted by stem, problems, notes) of the files directly in a folder.

  Stems are compared in Unicode normal form C, so that files copied from a Mac pair with others. Hidden files and the
  names in `expected` are skipped; two images of one stem are a problem, files that are not images a note.
  """
  by_stem, problems, notes = {}, [], []
  for p in visible(path):
    if p.name in expected:
      continue
    if p.is_dir():
      notes.append(f'{p}: unexpected folder, ignored')
    elif p.suffix.lower() not in images.SUFFIXES:
      notes.append(f'{p}: not an image file, ignored')
    else:
      stem = unicodedata.normalize('NFC', p.stem)
      if any('\udc80' <= c <= '\udcff' for c in p.name):  # Python's spelling of undecodable bytes
        problems.append(f'{os.fsencode(p)!r}: the file name is not valid UTF-8; rename it')
      elif stem in by_stem:
        problems.append(f'{p}: same name as {by_stem[stem].name} except for the extension; keep one of the two')
      else:
        by_stem[stem] = p
  return dict(sorted(by_stem.items())), problems, notes


def visible(path: Path) -> list[Path]:
  """Returns what is directly in a folder, sorted, except hidden and system files; [] if `path` is not a folder."""
  return sorted(p for p in path.iterdir() if _is_visible(p.name)) if path.is_dir() else []


def _is_visible(name: str) -> bool:
  return not name.startswith('.') and name not in _SYSTEM_FILES


def category_notes(root: Path, known: Iterable[str], present: Container[str], unknown: Iterable[Path]) -> list[str]:
  """Returns a note for each known category that is not present and for each folder that is not a category."""
  return [*(f'{root / name}: category folder is missing or empty' for name in known if name not in present),
          *(f'{path}: not a category of this data set, ignored' for path in unknown)]


def has_images(folder: Path) -> bool:
  """Returns whether image files are directly in `folder`."""
  return any(p.suffix.lower() in images.SUFFIXES and p.is_file() for p in visible(folder))


def normal_names(names: Iterable[str]) -> list[str]:
  """Returns those folder names that are in use for normal images."""
  return [name for name in names if name.casefold() in NORMAL_NAMES]


def outline(folder: Path) -> str:
  """Returns one line on the content of a folder: each sub-folder, two levels deep, with its number of files."""
  below = folders(folder)
  paths = [(name, path) for name, path in below.items()]
  paths += [(f'{name}/{inner}', path) for name, outer in below.items() for inner, path in folders(outer).items()]
  parts = [f'{name}/ ({_file_count(path)} files)' for name, path in sorted(paths)]
  loose = _file_count(folder)
  return ', '.join(shorten(parts + ([f'{loose} files'] if loose else []))) or 'nothing'


def _file_count(folder: Path) -> int:
  return sum(p.is_file() for p in visible(folder))


def listing_digest(folder: Path) -> str:
  """Returns the sha256 of every visible file's relative path, size and modification time below `folder`.

  It is cheap, since nothing is read, and changes with anything added, removed, renamed or written, except files that
  file managers leave in folders that were opened.
  """
  digest = hashlib.sha256()
  for parent, inner, names in os.walk(folder, followlinks=True):
    inner[:] = sorted(filter(_is_visible, inner))
    for name in sorted(filter(_is_visible, names)):
      path = os.path.join(parent, name)
      if os.path.exists(path):
        stat = os.stat(path)
        line = f'{os.path.relpath(path, folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n'
        digest.update(line.encode('utf-8', 'surrogateescape'))
  return digest.hexdigest()


def duplicate_ids(items: Sequence[Item]) -> list[str]:
  """Returns a line for each id that several images share."""
  times = collections.Counter(item.key for item in items)
  return [f'{key}: {n} images have this id' for key, n in times.items() if n > 1]


def duplicate_files(items: Sequence[Item]) -> list[str]:
  """Returns a line on how many image files repeat another byte for byte; [] if none does."""
  first, repeats = {}, []
  for item in items:
    digest = hashlib.sha256(item.image.read_bytes()).hexdigest()
    if first.setdefault(digest, item) is not item:
      repeats.append((item, first[digest]))
  if not repeats:
    return []
  mixed = sum(a.label != b.label for a, b in repeats)
  return [f'exact copies of another image: {len(repeats):,} of {len(items):,} images, {mixed} of them under the other '
          f'label, first {repeats[0][0].key} = {repeats[0][1].key}']


def counts(items: Iterable[Item]) -> dict[str, int]:
  """Returns the number of images of each kind: 'train', 'test normal', 'test anomalous'."""
  return dict(collections.Counter(
      item.split if item.split == 'train' else f'{item.split} {("normal", "anomalous")[item.label]}'
      for item in items))
