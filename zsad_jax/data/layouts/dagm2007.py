"""DAGM 2007's raw layout: Class<n>/{Train,Test}/, each with a folder Label/ of masks."""

import re
from pathlib import Path

from zsad_jax.data import catalog, inventory
from zsad_jax.data.inventory import GOOD, Inventory, Item
from zsad_jax.data.layouts import mvtec

_SPLITS = {'Test': 'test', 'Train': 'train'}  # {folder: split}
_LIST = 'Labels.txt'


def scan(root: Path) -> Inventory:
  """Returns the images of the unpacked archive or of a copy in MVTec layout, sorted by category, split and stem.

  In the archive an image is anomalous if Label/ holds a mask for it. Test is `test`; of Train only the normal images
  are used, as `train`.
  """
  inside, classes = inventory.folders(root), catalog.CATALOG['dagm2007'].categories
  if not any(_SPLITS.keys() & inventory.folders(inside[name]).keys() for name in classes if name in inside):
    return mvtec.scan(root, known=tuple(classes), masks_required=True, suffixes=('_label', '_mask', ''))
  unknown = [path for name, path in inside.items() if name not in classes]
  scanned = Inventory([], [], inventory.category_notes(root, classes, inside, unknown))
  for category in classes:
    parts = inventory.folders(inside[category]) if category in inside else {}
    scanned.notes.extend(f'{path}: unexpected folder, ignored' for name, path in parts.items() if name not in _SPLITS)
    scanned.notes.extend(f'{inside[category] / part}: folder is missing' for part in _SPLITS
                         if category in inside and part not in parts)
    for part, split in _SPLITS.items():
      if part in parts:
        _add(scanned, parts[part], category, split)
  return scanned.sort()


def _add(scanned: Inventory, path: Path, category: str, split: str) -> None:
  labels = path / 'Label'
  images, problems, notes = inventory.files(path, expected=(labels.name, _LIST))
  masks, mask_problems, mask_notes = inventory.files(labels, expected=(_LIST,))
  if not labels.is_dir():
    problems.append(f'{labels}: folder is missing; without it anomalous images would pass for normal ones')
  for stem, image in images.items():
    mask = masks.pop(f'{stem}_label', None)
    if mask is None or split == 'test':
      defect_type = GOOD if mask is None else 'defect'
      scanned.items.append(Item(category, split, defect_type, stem, image, mask, int(mask is not None)))
  problems.extend(f'{mask}: mask without an image {path / stem.removesuffix("_label")}.*'
                  for stem, mask in masks.items())
  scanned.problems.extend([*problems, *mask_problems, *_missing_masks(labels)])
  scanned.notes.extend(notes + mask_notes)


def _missing_masks(labels: Path) -> list[str]:
  """A line for each mask that the folder's own list names and that is missing."""
  table = labels / _LIST
  if not table.is_file():
    return []
  present = {p.name.lower() for p in labels.iterdir()}
  named = re.findall(r'\S+_label\.png', table.read_text(encoding='utf-8', errors='replace'), re.IGNORECASE)
  return [f'{labels / name}: named in {_LIST} but missing'
          for name in sorted(set(named)) if name.lower() not in present]
