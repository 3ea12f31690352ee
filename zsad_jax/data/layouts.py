"""Raw folders that are not in MVTec layout: a few image folders, each of one kind, and label tables."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from zsad_jax.data import catalog, survey, table
from zsad_jax.data.images import SUFFIXES
from zsad_jax.data.survey import GOOD, Item, Survey

ANY = '*'


class Part(NamedTuple):
  """One folder of test images, all of one kind; paths are relative to the raw folder, with '/'.

  Attributes:
    folder: where the images are; a last '*' stands for every folder there but 'good'.
    defect_type: 'good' for normal images.
    masks: where their masks are, '' for none; '*' stands for what it stands for in `folder`.
    suffixes: what a mask's stem may add to its image's.
  """
  folder: str
  defect_type: str
  masks: str = ''
  suffixes: tuple[str, ...] = ('', '_mask')


class Layout(NamedTuple):
  """One way in which a data set is laid out: its parts, and folders known to belong to it but not used."""
  parts: tuple[Part, ...]
  unused: tuple[str, ...] = ()


def labels(normal: str, anomalous: str, defect_type: str, unused: Sequence[str] = ()) -> Layout:
  """Returns the layout of a data set with image labels only: one folder of normal images, one of anomalous ones."""
  return Layout((Part(normal, GOOD), Part(anomalous, defect_type)), tuple(unused))


def mvtec(defect_type: str, *, masks: bool) -> Layout:
  """Returns the layout that scripts of the field make, with MVTec AD's folders but not its defects.

  Sets with masks have no normal images, so that `test/good` is no part of theirs.
  """
  if masks:
    return Layout((Part(f'test/{ANY}', defect_type, f'ground_truth/{ANY}'),), ('train',))
  return labels(f'test/{GOOD}', f'test/{ANY}', defect_type, ('train',))


def walk(root: Path, name: str, layouts: Sequence[Layout]) -> Survey:
  """Returns the items of a data set of one category, all in split 'test', in the order defect type, stem.

  Images pair with masks by stem, checked both ways. The layout with most of its folders filled is read, of several the
  first.

  Args:
    root: the raw folder.
    name: the data set, for its category and the instructions.
    layouts: the ways in which it may be laid out.

  Raises:
    FileNotFoundError: no folder of any layout holds an image; names those expected and what is there.
  """
  present = [sum(_present(root, part) for part in layout.parts) for layout in layouts]
  entry = catalog.CATALOG[name]
  if not any(present):
    expected = '\n  or '.join(' and '.join(_shown(p) for p in layout.parts) for layout in layouts)
    raise FileNotFoundError(f'{root}: no image of {entry.title} in it. Expected\n  {expected}\nFound: '
                            f'{survey.outline(root)}. The names are case-sensitive.\n{catalog.instructions(name)}')
  layout = layouts[present.index(max(present))]
  category, = entry.categories
  out, used = Survey([], [], []), set()
  for part in layout.parts:
    expanded = _expand(root, part)
    if not expanded:
      out.problems.append(f'{root / part.folder}: folder is missing')
    for images, masks in expanded:
      used |= {images, masks} - {None}
      if masks is not None and not masks.is_dir():
        out.problems.append(f'{masks}: folder is missing; it holds the masks of {images}')
        masks = None
      _add(out, images, masks, category, part)
  out.notes.extend(f'{path}: unexpected folder, ignored' for path in _strays(root, used, layout.unused))
  out.items.sort(key=lambda item: item[:4])
  return out


def _add(out: Survey, images: Path, mask_folder: Path | None, category: str, part: Part) -> None:
  """Adds the images of one folder to `out`, each with its mask where `mask_folder` is given."""
  found, problems, notes = survey.files(images)
  masks = {}
  if mask_folder is not None:
    masks, more_problems, more_notes = survey.files(mask_folder)
    problems, notes = problems + more_problems, notes + more_notes
  for stem, image in found.items():
    mask = next((masks.pop(stem + s) for s in part.suffixes if stem + s in masks), None)
    if mask is None and mask_folder is not None:
      problems.append(f'{image}: no mask {mask_folder / (stem + part.suffixes[0])}.*')
    out.items.append(Item(category, 'test', part.defect_type, stem, image, mask, int(part.defect_type != GOOD)))
  problems.extend(f'{mask}: mask without an image in {images}' for mask in masks.values())
  out.problems.extend(problems)
  out.notes.extend(notes)


def _present(root: Path, part: Part) -> int:
  """Whether a part's images are there, and its masks beside them: 0, 1 or 2."""
  filled = [masks for images, masks in _expand(root, part)
            if any(p.suffix.lower() in SUFFIXES for p in images.iterdir())]
  return bool(filled) + any(masks is not None and masks.is_dir() for masks in filled)


def _shown(part: Part) -> str:
  return f'{part.folder}/' + (f' with {part.masks}/' if part.masks else '')


def _expand(root: Path, part: Part) -> list[tuple[Path, Path | None]]:
  """The (image folder, mask folder) that a part stands for, of those that exist."""
  parent, _, last = part.folder.rpartition('/')
  inside = survey.folders(root / parent)
  names = [n for n in inside if n != GOOD] if last == ANY else [n for n in inside if n == last]
  return [(inside[n], root / part.masks.replace(ANY, n) if part.masks else None) for n in names]


def _strays(root: Path, used: set[Path], unused: Sequence[str]) -> Iterator[Path]:
  """Folders that hold something and lie beside the used ones or beside a folder above them."""
  above = {p for path in used for p in path.parents if p == root or root in p.parents}
  for where in sorted(above):
    for name, path in survey.folders(where).items():
      if path not in used | above and name not in unused and any(path.iterdir()):
        yield path


def rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
  """Returns the rows of a table as {column: value} of these columns, none of which may be empty.

  Raises:
    FileNotFoundError, ValueError: as `table.read`, or a row lacks a value; names the line.
  """
  read, _ = table.read(path, columns)
  for line, row in read:
    empty = [c for c in columns if not row[c]]
    if empty:
      raise ValueError(f'{path}, line {line}: no value for {" and ".join(empty)}')
  return [row for _, row in read]


def copies(items: Sequence[Item]) -> list[str]:
  """Returns a line saying how many image files repeat another, byte for byte; [] for none."""
  first, repeats = {}, []
  for item in items:
    digest = hashlib.sha256(item.image.read_bytes()).hexdigest()
    if first.setdefault(digest, item) is not item:
      repeats.append((item, first[digest]))
  if not repeats:
    return []
  mixed = sum(a.label != b.label for a, b in repeats)
  return [f'exact copies of another image: {len(repeats)} of {len(items)} images, {mixed} of them under the other '
          f'label, first {repeats[0][0].key} = {repeats[0][1].key}']
