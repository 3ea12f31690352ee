"""HeadCT (Kitamura, 2018): 200 slices of head CT, half of them with a haemorrhage."""

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from zsad_jax.data import builder, catalog, layouts, survey
from zsad_jax.data.layouts import mvtec
from zsad_jax.data.survey import GOOD, Item, Survey

_ENTRY = catalog.CATALOG['head_ct']
_DEFECT = 'hemorrhage'           # as the archive spells its column
_LAYOUTS = (mvtec(_DEFECT, masks=False),)


class Builder(builder.SourceBuilder):
  """tfds builder of HeadCT, from the unpacked archive or what scripts of the field make of it."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First version.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = catalog.instructions('head_ct')
  MASK_THRESHOLD = _ENTRY.mask_threshold

  @classmethod
  def survey(cls, root: Path) -> Survey:
    table = root / 'labels.csv'
    return listed(root, table) if table.is_file() else layouts.walk(root, 'head_ct', _LAYOUTS)


def listed(root: Path, table: Path) -> Survey:
  """Returns the items that labels.csv lists, in the order defect type, stem.

  A listed file that is absent is a problem, an unlisted one a note.

  Raises:
    ValueError: the table lacks a column, or a row is malformed.
  """
  folder = root / 'head_ct'
  folder = folder / 'head_ct' if 'head_ct' in survey.folders(folder) else folder
  found, problems, notes = survey.files(folder)
  out = Survey([], problems, notes)
  for row in layouts.rows(table, ('id', _DEFECT)):
    if not row['id'].isdecimal() or row[_DEFECT] not in ('0', '1'):
      raise ValueError(f'{table}: cannot be read as a row of HeadCT: {row}')
    stem, label = f'{int(row["id"]):03}', int(row[_DEFECT])
    if stem in found:
      out.items.append(Item('brain', 'test', _DEFECT if label else GOOD, stem, found[stem], None, label))
    else:
      problems.append(f'{folder / stem}.png: listed in {table.name} but not there')
  unlisted = found.keys() - {item.stem for item in out.items}
  notes.extend(f'{found[stem]}: not listed in {table.name}, ignored' for stem in sorted(unlisted))
  out.items.sort(key=lambda item: item[:4])
  return out
