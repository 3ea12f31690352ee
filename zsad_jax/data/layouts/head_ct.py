"""HeadCT's raw layout: labels.csv and numbered images."""

from pathlib import Path

from zsad_jax.data import inventory
from zsad_jax.data.catalog.entry import converted
from zsad_jax.data.inventory import GOOD, Inventory, Item
from zsad_jax.data.layouts import image_folders, image_table

_DEFECT = 'hemorrhage'  # as the archive spells its column


def scan(root: Path) -> Inventory:
  """Returns the images of the unpacked archive or of what the papers' scripts convert it to, sorted by label and stem.

  In the archive a file that labels.csv lists and that is missing is a problem, an unlisted one a note.

  Raises:
    ValueError: the table lacks a column, or a row is malformed.
  """
  table = root / 'labels.csv'
  if not table.is_file():
    return image_folders.scan(root, 'head_ct', (converted(_DEFECT, masks=False),))
  folder = root / 'head_ct'
  folder = folder / 'head_ct' if 'head_ct' in inventory.folders(folder) else folder
  images, problems, notes = inventory.files(folder)
  scanned = Inventory([], problems, notes)
  for row in image_table.read_filled(table, ('id', _DEFECT)):
    if not row['id'].isdecimal() or row[_DEFECT] not in ('0', '1'):
      raise ValueError(f'{table}: not a valid row of HeadCT: {row}')
    stem, label = f'{int(row["id"]):03}', int(row[_DEFECT])
    if stem in images:
      scanned.items.append(Item('brain', 'test', _DEFECT if label else GOOD, stem, images[stem], None, label))
    else:
      problems.append(f'{folder / stem}.png: listed in {table.name} but missing')
  unlisted = images.keys() - {item.stem for item in scanned.items}
  notes.extend(f'{images[stem]}: not listed in {table.name}, ignored' for stem in sorted(unlisted))
  return scanned.sort()
