"""The raw layout of Sewer-ML's validation part: SewerML_Val.csv and the folders of the unpacked archives."""

import os
from pathlib import Path

from zsad_jax.data import images, inventory
from zsad_jax.data.inventory import GOOD, Inventory, Item
from zsad_jax.data.layouts import image_table

_TABLE = 'SewerML_Val.csv'


def scan(root: Path) -> Inventory:
  """Returns the images that SewerML_Val.csv lists, sorted by defect type and stem: column `Defect` is the label.

  Images are searched next to the table and anywhere below the folders whose name starts with 'val', so it does not
  matter whether an archive was unpacked into a folder of its own. A listed file that is missing is a problem, unlisted
  ones are a note.

  Raises:
    FileNotFoundError: no table.
    ValueError: the table lacks a column, or a row is malformed.
  """
  table = root / _TABLE
  rows = image_table.read_filled(table, ('Filename', 'Defect'))
  files, problems = _find_images(root)
  scanned = Inventory([], problems, [])
  for row in rows:
    name = row['Filename']
    if row['Defect'] not in ('0', '1'):
      raise ValueError(f"{table}: 'Defect' of {name} is {row['Defect']!r}; it must be 0 or 1")
    if name in files:
      label = int(row['Defect'])
      scanned.items.append(Item('sewer_pipe', 'test', 'defect' if label else GOOD, Path(name).stem, files[name], None,
                                label))
    else:
      problems.append(f'{name}: listed in {_TABLE} but in none of the folders {root / "val*"}')
  unlisted = sorted(files.keys() - {row['Filename'] for row in rows})
  if unlisted:
    scanned.notes.append(
        f'not listed in {_TABLE}, ignored: {len(unlisted):,} images, first {files[unlisted[0]]}')
  return scanned.sort()


def _find_images(root: Path) -> tuple[dict[str, Path], list[str]]:
  """({file name: image}, problems) next to the table and below the validation folders."""
  files, problems = {}, []
  tops = [path for name, path in inventory.folders(root).items() if name.lower().startswith('val')]
  for parent, names in [(str(root), os.listdir(root)), *((w, n) for top in tops for w, _, n in os.walk(top))]:
    for name in sorted(names):
      if name.startswith('.') or Path(name).suffix.lower() not in images.SUFFIXES:
        continue
      if name in files:
        problems.append(f'{os.path.join(parent, name)}: same name as {files[name]}; keep one of the two')
      files.setdefault(name, Path(parent, name))
  return files, problems
