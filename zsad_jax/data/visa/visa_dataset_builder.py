"""VisA (Zou et al., ECCV 2022): 12 objects, split by the archive's own split_csv/1cls.csv."""

from pathlib import Path, PurePosixPath
from typing import ClassVar

import tensorflow_datasets as tfds

from zsad_jax.data import builder, catalog, survey
from zsad_jax.data.survey import GOOD, Item, Survey
from zsad_jax.data.table import read

_ENTRY = catalog.CATALOG['visa']
_COLUMNS = ('object', 'split', 'label', 'image', 'mask')
_DEFECTS = {'normal': GOOD, 'anomaly': 'anomaly'}      # the archive names several defects per image, or none


class Builder(builder.SourceBuilder):
  """tfds builder of VisA, from the unpacked archive in its raw layout."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First version.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = catalog.instructions('visa')
  MASK_THRESHOLD = _ENTRY.mask_threshold

  @classmethod
  def survey(cls, root: Path) -> Survey:
    return walk(root)


def walk(root: Path) -> Survey:
  """Returns the items that split_csv/1cls.csv lists, in the order category, split, defect type, stem.

  A listed file that is absent is a problem, an unlisted one a note, an absent object folder too.

  Raises:
    FileNotFoundError: no split_csv/1cls.csv.
    ValueError: the table lacks a column, or a row is malformed.
  """
  present = survey.folders(root)
  table = root / 'split_csv' / '1cls.csv'
  out = Survey([], [], [f'{root / name}: category folder is missing' for name in _ENTRY.categories
                        if name not in present])
  unknown = set()
  for row in _rows(table):
    if row['object'] not in _ENTRY.categories:
      unknown.add(row['object'])
    elif row['object'] in present:
      _add(out, root, row)
  out.notes.extend(f'{table}: {name!r} is not an object of VisA, ignored' for name in sorted(unknown))
  out.notes.extend(f'{present[name]}: not a category of this data set, ignored' for name in present
                   if name not in _ENTRY.categories and name != 'split_csv')
  listed = {path for item in out.items for path in (item.image, item.mask)}
  for name in _ENTRY.categories:
    for part in ('Images/Normal', 'Images/Anomaly', 'Masks/Anomaly'):
      found = survey.files(root / name / 'Data' / part)[0].values()
      out.notes.extend(f'{path}: not listed in {table.name}, ignored' for path in found if path not in listed)
  out.items.sort(key=lambda item: item[:4])
  return out


def _rows(table: Path) -> list[dict[str, str]]:
  if not table.is_file():
    raise FileNotFoundError(f'{table}: missing; it comes with the archive and says what is test')
  rows, _ = read(table, _COLUMNS)
  for number, row in rows:
    paths = [PurePosixPath(row[c]) for c in ('image', 'mask')]
    if (row['label'] not in _DEFECTS or row['split'] not in ('train', 'test') or not row['image']
        or any(p.is_absolute() or '..' in p.parts for p in paths)):
      raise ValueError(f'{table}, line {number}: cannot be read as a VisA row: {row}')
  return [row for _, row in rows]


def _add(out: Survey, root: Path, row: dict[str, str]) -> None:
  label = int(row['label'] == 'anomaly')
  image = root / row['image']
  mask = root / row['mask'] if row['mask'] and label else None
  out.problems.extend(f'{path}: listed in 1cls.csv but not there' for path in (image, mask)
                      if path is not None and not path.is_file())
  if label and mask is None:
    out.problems.append(f'{image}: anomalous, but 1cls.csv names no mask')
  out.items.append(Item(row['object'], row['split'], _DEFECTS[row['label']], image.stem, image, mask, label))
