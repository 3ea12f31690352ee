"""Folders in MVTec AD's layout.

    <root>/<category>/train/good/*.png
    <root>/<category>/test/good/*.png
    <root>/<category>/test/<defect>/*.png
    <root>/<category>/ground_truth/<defect>/<stem>_mask.png      or <stem>.png

Normal images of your own may also be in a folder called normal, ok, no, negative or healthy, in any letter case; their
defect type is 'good' all the same.
"""

from collections.abc import Sequence
from pathlib import Path

from zsad_jax.data import inventory
from zsad_jax.data.inventory import GOOD, Inventory

_PARTS = ('train', 'test', 'ground_truth')
_SUFFIXES = ('_mask', '')  # what a mask's stem adds to the stem of its image


def categories(root: Path | str) -> dict[str, Path]:
  """Returns {name: folder} of the categories under `root`, or of `root` itself if it is one category.

  Raises:
    FileNotFoundError: no folder there has this layout; the message says what was expected and what is there.
  """
  root = Path(root).expanduser().absolute()
  if _is_category(root):
    return {root.name: root}
  inside = inventory.folders(root)
  by_name = {name: path for name, path in inside.items() if _is_category(path)}
  if by_name:
    return by_name
  content = ', '.join(inventory.shorten(list(inside))) or 'no folder'
  raise FileNotFoundError(
      f'{root}: no folder in MVTec layout. Expected {root}/<category>/test/<good or a defect>/*.png or '
      f'{root}/test/..., or one folder of normal and one of anomalous images; found: {content}. '
      f'{_hint(root, inside)}'.rstrip())


def is_laid_out(root: Path) -> bool:
  """Returns whether `root` is in MVTec layout, or is part of a category that is."""
  siblings = set(_PARTS) & set(inventory.folders(root.parent))
  return (any(_is_category(p) for p in (root, *inventory.folders(root).values()))
          or (root.name in _PARTS and len(siblings) > 1))


def _is_category(folder: Path) -> bool:
  return bool({'train', 'test'} & set(inventory.folders(folder)))


def _hint(root: Path, inside: dict[str, Path]) -> str:
  """The most likely mistake behind a wrong root."""
  if not root.is_dir():
    return f'{root} {"is not a folder" if root.exists() else "does not exist"}.'
  for up in (root.parent, root.parent.parent):
    if _is_category(up):
      return f'That is below the category folder {up}: pass that folder or its parent.'
  for name, path in inside.items():
    for part in (name, *inventory.folders(path)):
      if part.lower() in _PARTS and part not in _PARTS:
        return f'{part!r} should be {part.lower()!r}: names are case-sensitive.'
    if any(_is_category(p) for p in inventory.folders(path).values()):
      return f'The categories are one level deeper: pass {path}.'
    if inventory.normal_names(inventory.folders(path)):
      return f'Folders of normal and of anomalous images are one level deeper: pass one such as {path}, or a table.'
  first = next(iter(inside.values()), None)
  return f'{first} holds {inventory.outline(first)}.' if first else ''


def scan(root: Path | str, known: Sequence[str] = (), masks_required: bool = False, *, normal: Sequence[str] = (GOOD,),
         suffixes: Sequence[str] = _SUFFIXES) -> Inventory:
  """Returns the images under `root`, sorted by category, split, defect type and stem.

  Images and masks pair by stem, checked in both directions. A category without any ground_truth folder has image labels
  only, unless `masks_required`.

  Args:
    root: folder of the categories, or one category.
    known: the categories of a published data set: others are ignored with a note, missing ones named, and one in
      another layout is a problem that says what it holds.
    masks_required: a missing ground_truth folder is a problem.
    normal: the folders of normal images, whose defect type becomes 'good'.
    suffixes: what a mask's stem may add to the stem of its image.
  """
  root = Path(root)
  by_name, inside = categories(root), inventory.folders(root)
  used = {name: path for name, path in by_name.items() if not known or name in known}
  other_layout = {name: path for name, path in inside.items()
                  if name in known and name not in used and any(path.iterdir())}
  problems = [f'{path}: neither train nor test in it. It holds {inventory.outline(path)}'
              for path in other_layout.values()]
  is_one_category = root.absolute() in by_name.values()
  unknown = () if is_one_category else [path for name, path in inside.items() if name not in used and name not in known]
  notes = inventory.category_notes(root, known, used.keys() | other_layout.keys(), unknown)
  rules = (masks_required, tuple(normal), tuple(suffixes))
  return inventory.merge([Inventory([], problems, notes),
                          *(_scan_category(path, name, *rules) for name, path in used.items())]).sort()


def _scan_category(folder: Path, category: str, masks_required: bool, normal: tuple[str, ...],
                   suffixes: tuple[str, ...]) -> Inventory:
  scanned = inventory.empty()
  parts = inventory.folders(folder)
  scanned.notes.extend(f'{path}: unexpected folder, ignored' for name, path in parts.items() if name not in _PARTS)
  has_masks = 'ground_truth' in parts
  for split in ('test', 'train'):
    if split not in parts:
      scanned.notes.append(f'{folder / split}: folder is missing')
      continue
    loose, _, notes = inventory.files(folder / split)
    scanned.problems.extend(f'{path}: image outside of {normal[0]}/ and the defect folders' for path in loose.values())
    scanned.notes.extend(n for n in notes if not n.endswith('folder, ignored'))
    for defect, path in inventory.folders(folder / split).items():
      if split == 'train' and defect not in normal:
        scanned.notes.append(f'{path}: unexpected folder, ignored (training images are normal)')
        continue
      masks = folder / 'ground_truth' / defect if split == 'test' and (has_masks or masks_required) else None
      inventory.pair(scanned, path, masks, (category, split, GOOD if defect in normal else defect), suffixes)
  if has_masks:
    defects = inventory.folders(folder / 'test')
    scanned.problems.extend(f'{path}: masks of a defect without images in {folder / "test" / name}'
                            for name, path in inventory.folders(parts['ground_truth']).items()
                            if name not in defects and inventory.files(path)[0])
  elif any(item.label for item in scanned.items):
    scanned.notes.append(f'{folder / "ground_truth"}: folder is missing; {category} has image labels only')
  return scanned


def scan_own(root: Path, normal: Sequence[str] | None = None) -> Inventory:
  """Returns the images of a folder of your own in this layout.

  Args:
    root: folder of the categories, or one category.
    normal: the folders of normal images; None recognises them by their names.

  Raises:
    ValueError: no category has a folder of that name.
    FileNotFoundError: see `categories`.
  """
  if normal is None:
    names, problems = _normal_folders(root)
  else:
    names, problems = tuple(normal) or (GOOD,), []
    inside = {name for path in categories(root).values() for part in ('test', 'train')
              for name in inventory.folders(path / part)}
    if missing := [name for name in normal if name not in inside]:
      raise ValueError(f'{root}: no folder {missing[0]!r} in test or train of any category; there are '
                       f'{", ".join(sorted(inside)) or "none"}')
  scanned = scan(root, normal=names)
  scanned.problems[:0] = problems
  return scanned


def _normal_folders(root: Path) -> tuple[tuple[str, ...], list[str]]:
  """(The folders that hold normal images by their names, 'good' first; a problem for each split with several)."""
  names, problems = [], []
  for path in categories(root).values():
    for split in ('test', 'train'):
      normal = inventory.normal_names(inventory.folders(path / split))
      names += normal
      if len(normal) > 1:
        problems.append(f'{path / split}: both {" and ".join(normal)} may hold the normal images; choose with '
                        f'folder:{root},normal={normal[0]} or normal={"+".join(normal)}')
  return tuple(sorted(dict.fromkeys(names), key=lambda name: name != GOOD)) or (GOOD,), problems
