"""Sewer-ML (Haurum & Moeslund, CVPR 2021): the 130046 validation images of sewer pipes, about half with a defect."""

import os
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from zsad_jax.data import builder, catalog, images, layouts, survey
from zsad_jax.data.survey import GOOD, Item, Survey

_ENTRY = catalog.CATALOG['sewer_ml']
_TABLE = 'SewerML_Val.csv'


class Builder(builder.SourceBuilder):
  """tfds builder of the validation part of Sewer-ML, as split 'test', from the unpacked archives and their table."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First version.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = catalog.instructions('sewer_ml')
  MASK_THRESHOLD = _ENTRY.mask_threshold

  @classmethod
  def survey(cls, root: Path) -> Survey:
    return listed(root)


def listed(root: Path) -> Survey:
  """Returns the items that SewerML_Val.csv lists, in the order defect type, stem: `Defect` is the label.

  Images are looked for beside the table and anywhere below the folders whose name starts with 'val', so that it does
  not matter whether an archive was unpacked into a folder of its own. A listed file that is absent is a problem,
  unlisted ones are a note.

  Raises:
    FileNotFoundError: no table.
    ValueError: the table lacks a column, or a row is malformed.
  """
  table = root / _TABLE
  rows = layouts.rows(table, ('Filename', 'Defect'))
  found, problems = _images(root)
  out = Survey([], problems, [])
  for row in rows:
    name = row['Filename']
    if row['Defect'] not in ('0', '1'):
      raise ValueError(f"{table}: 'Defect' of {name} is {row['Defect']!r}; it must be 0 or 1")
    if name in found:
      label = int(row['Defect'])
      defect_type = 'defect' if label else GOOD
      out.items.append(Item('sewer_pipe', 'test', defect_type, Path(name).stem, found[name], None, label))
    else:
      problems.append(f'{name}: listed in {_TABLE} but in none of the folders {root / "val*"}')
  unlisted = sorted(found.keys() - {row['Filename'] for row in rows})
  if unlisted:
    out.notes.append(f'not listed in {_TABLE}, ignored: {len(unlisted)} images, first {found[unlisted[0]]}')
  out.items.sort(key=lambda item: item[:4])
  return out


def _images(root: Path) -> tuple[dict[str, Path], list[str]]:
  """({file name: image}, problems) beside the table and below the validation folders."""
  found, problems = {}, []
  tops = [path for name, path in survey.folders(root).items() if name.lower().startswith('val')]
  for where, names in [(str(root), os.listdir(root)), *((w, n) for top in tops for w, _, n in os.walk(top))]:
    for name in sorted(names):
      if name.startswith('.') or Path(name).suffix.lower() not in images.SUFFIXES:
        continue
      if name in found:
        problems.append(f'{os.path.join(where, name)}: same name as {found[name]}; keep one of the two')
      found.setdefault(name, Path(where, name))
  return found, problems
