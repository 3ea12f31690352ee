"""DAGM 2007 (Wieler and Hahn, 2007): 10 drawn textures, 7004 training and 8050 test images, masks as ellipses."""

import re
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from zsad_jax.data import builder, catalog, folder, survey
from zsad_jax.data.survey import GOOD, Item, Survey

_ENTRY = catalog.CATALOG['dagm2007']
_PARTS = {'Test': 'test', 'Train': 'train'}
_LIST = 'Labels.txt'


class Builder(builder.SourceBuilder):
  """tfds builder of DAGM 2007, from the unpacked archive or from a copy in MVTec layout."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First version.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = catalog.instructions('dagm2007')
  MASK_THRESHOLD = _ENTRY.mask_threshold

  @classmethod
  def survey(cls, root: Path) -> Survey:
    inside = survey.folders(root)
    if any(_PARTS.keys() & survey.folders(inside[name]).keys() for name in _ENTRY.categories if name in inside):
      return walk(root)
    return folder.walk(root, known=tuple(_ENTRY.categories), masks_required=True, suffixes=('_label', '_mask', ''))


def walk(root: Path) -> Survey:
  """Returns the items of the archive, in the order category, split, defect type, stem.

  An image is defective when Label/ holds a mask for it. Test is `test`; of Train only the normal images are `train`.
  """
  inside = survey.folders(root)
  strays = [path for name, path in inside.items() if name not in _ENTRY.categories]
  whole = Survey([], [], survey.roll_call(root, _ENTRY.categories, inside, strays))
  for category in _ENTRY.categories:
    parts = survey.folders(inside[category]) if category in inside else {}
    whole.notes.extend(f'{path}: unexpected folder, ignored' for name, path in parts.items() if name not in _PARTS)
    whole.notes.extend(f'{inside[category] / part}: folder is missing' for part in _PARTS
                       if category in inside and part not in parts)
    for part in _PARTS.keys() & parts.keys():
      _add(whole, parts[part], category, _PARTS[part])
  whole.items.sort(key=lambda item: item[:4])
  return whole


def _add(out: Survey, path: Path, category: str, split: str) -> None:
  labels = path / 'Label'
  found, problems, notes = survey.files(path, expected=(labels.name, _LIST))
  masks, more_problems, more_notes = survey.files(labels, expected=(_LIST,))
  if not labels.is_dir():
    problems.append(f'{labels}: folder is missing; without it defective images would pass for normal ones')
  for stem, image in found.items():
    mask = masks.pop(f'{stem}_label', None)
    if mask is None or split == 'test':
      kind = GOOD if mask is None else 'defect'
      out.items.append(Item(category, split, kind, stem, image, mask, int(mask is not None)))
  problems.extend(f'{mask}: mask without an image {path / stem.removesuffix("_label")}.*'
                  for stem, mask in masks.items())
  out.problems.extend([*problems, *more_problems, *_unlabelled(labels)])
  out.notes.extend(notes + more_notes)


def _unlabelled(labels: Path) -> list[str]:
  """A line for each mask that the folder's own list names and that is not there."""
  table = labels / _LIST
  if not table.is_file():
    return []
  there = {p.name.lower() for p in labels.iterdir()}
  named = re.findall(r'\S+_label\.png', table.read_text(encoding='utf-8', errors='replace'), re.IGNORECASE)
  return [f'{labels / name}: named in {_LIST} but not there'
          for name in sorted(set(named)) if name.lower() not in there]
