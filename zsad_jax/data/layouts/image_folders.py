"""Published data sets of one category whose raw folder has a few image folders, each with one label."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from zsad_jax.data import catalog, inventory
from zsad_jax.data.catalog import ImageFolders, Part
from zsad_jax.data.inventory import GOOD, Inventory

_ANY = '*'


def scan(root: Path, name: str, layouts: Sequence[ImageFolders]) -> Inventory:
  """Returns the images of a data set of one category, all in split 'test', sorted by defect type and stem.

  Images and masks pair by stem, checked in both directions. The layout with most of its folders filled is read; of
  several, the first.

  Args:
    root: the raw folder.
    name: the data set, for its category and the instructions.
    layouts: the layouts it may have.

  Raises:
    FileNotFoundError: no folder of any layout holds an image; names the expected folders and what is there.
  """
  filled = [sum(_filled(root, part) for part in layout.parts) for layout in layouts]
  entry = catalog.CATALOG[name]
  if not any(filled):
    expected = '\n  or '.join(' and '.join(_described(p) for p in layout.parts) for layout in layouts)
    raise FileNotFoundError(f'{root}: no image of {entry.title} in it. Expected\n  {expected}\nFound: '
                            f'{inventory.outline(root)}. Names are case-sensitive.\n{catalog.instructions(name)}')
  layout = layouts[filled.index(max(filled))]
  category, = entry.categories
  scanned, used = inventory.empty(), set()
  for part in layout.parts:
    expanded = _expand(root, part)
    if not expanded:
      scanned.problems.append(f'{root / part.folder}: folder is missing')
    for folder, masks in expanded:
      used |= {folder, masks} - {None}
      if masks is not None and not masks.is_dir():
        scanned.problems.append(f'{masks}: folder is missing; it holds the masks of {folder}')
        masks = None
      inventory.pair(scanned, folder, masks, (category, 'test', part.defect_type), part.suffixes)
  scanned.notes.extend(f'{path}: unexpected folder, ignored' for path in _unexpected(root, used, layout.unused))
  return scanned.sort()


def _filled(root: Path, part: Part) -> int:
  """Number of folders of a part that are filled: 0, 1 with images, 2 with masks too."""
  filled = [masks for folder, masks in _expand(root, part) if inventory.has_images(folder)]
  return bool(filled) + any(masks is not None and masks.is_dir() for masks in filled)


def _described(part: Part) -> str:
  return f'{part.folder}/' + (f' with {part.masks}/' if part.masks else '')


def _expand(root: Path, part: Part) -> list[tuple[Path, Path | None]]:
  """The existing (image folder, mask folder) pairs that a part stands for."""
  parent, _, last = part.folder.rpartition('/')
  inside = inventory.folders(root / parent)
  names = [n for n in inside if n != GOOD] if last == _ANY else [n for n in inside if n == last]
  return [(inside[n], root / part.masks.replace(_ANY, n) if part.masks else None) for n in names]


def _unexpected(root: Path, used: set[Path], unused: Sequence[str]) -> Iterator[Path]:
  """Folders that are not empty and lie next to the used ones or next to a folder above them."""
  above = {p for path in used for p in path.parents if p == root or root in p.parents}
  for parent in sorted(above):
    for name, path in inventory.folders(parent).items():
      if path not in used | above and name not in unused and any(path.iterdir()):
        yield path
