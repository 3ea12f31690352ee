"""VisA's raw layout, split by the archive's own split_csv/1cls.csv."""

from pathlib import Path, PurePosixPath

from zsad_jax.data import catalog, inventory
from zsad_jax.data.inventory import GOOD, Inventory, Item
from zsad_jax.data.layouts import image_table

_COLUMNS = ('object', 'split', 'label', 'image', 'mask')
_DEFECT_TYPES = {'normal': GOOD, 'anomaly': 'anomaly'}  # the archive names several defects per image, or none


def scan(root: Path) -> Inventory:
  """Returns the images that split_csv/1cls.csv lists, sorted by category, split, defect type and stem.

  A listed file that is missing is a problem; an unlisted file and a missing object folder are notes.

  Raises:
    FileNotFoundError: no split_csv/1cls.csv.
    ValueError: the table lacks a column, or a row is malformed.
  """
  present, objects = inventory.folders(root), catalog.CATALOG['visa'].categories
  table = root / 'split_csv' / '1cls.csv'
  scanned = Inventory([], [], [f'{root / name}: category folder is missing' for name in objects
                               if name not in present])
  unknown = set()
  for row in _rows(table):
    if row['object'] not in objects:
      unknown.add(row['object'])
    elif row['object'] in present:
      _add(scanned, root, row)
  scanned.notes.extend(f'{table}: {name!r} is not an object of VisA, ignored' for name in sorted(unknown))
  scanned.notes.extend(f'{present[name]}: not a category of this data set, ignored' for name in present
                       if name not in objects and name != 'split_csv')
  listed = {path for item in scanned.items for path in (item.image, item.mask)}
  for name in objects:
    for part in ('Images/Normal', 'Images/Anomaly', 'Masks/Anomaly'):
      files = inventory.files(root / name / 'Data' / part)[0].values()
      scanned.notes.extend(f'{path}: not listed in {table.name}, ignored' for path in files if path not in listed)
  return scanned.sort()


def _rows(table: Path) -> list[dict[str, str]]:
  if not table.is_file():
    raise FileNotFoundError(f'{table}: missing; it comes with the archive and defines the test split')
  rows, _ = image_table.read(table, _COLUMNS)
  for number, row in rows:
    paths = [PurePosixPath(row[c]) for c in ('image', 'mask')]
    if (row['label'] not in _DEFECT_TYPES or row['split'] not in ('train', 'test') or not row['image']
        or any(p.is_absolute() or '..' in p.parts for p in paths)):
      raise ValueError(f'{table}, line {number}: not a valid row of VisA: {row}')
  return [row for _, row in rows]


def _add(scanned: Inventory, root: Path, row: dict[str, str]) -> None:
  label = int(row['label'] == 'anomaly')
  image = root / row['image']
  mask = root / row['mask'] if row['mask'] and label else None
  scanned.problems.extend(f'{path}: listed in 1cls.csv but missing' for path in (image, mask)
                          if path is not None and not path.is_file())
  if label and mask is None:
    scanned.problems.append(f'{image}: anomalous, but 1cls.csv names no mask')
  scanned.items.append(
      Item(row['object'], row['split'], _DEFECT_TYPES[row['label']], image.stem, image, mask, label))
