"""Tables of images: CSV files that name and label images anywhere below their folder.

    image,label,mask,category,split,defect_type,object_name
    photos/001.jpg,0,,nut,test,,metal nut
    photos/002.jpg,1,outlines/002.png,nut,test,scratch,metal nut

`image` and `label` are required, the others may be missing or empty. Commas, semicolons or tabs separate.
"""

import collections
import csv
import difflib
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

from zsad_jax.data import catalog, inventory
from zsad_jax.data.inventory import GOOD, Inventory, Item

REQUIRED = ('image', 'label')
OPTIONAL = ('mask', 'category', 'split', 'object_name', 'defect_type')
_NORMAL = (*inventory.NORMAL_NAMES, '0', '0.0', 'false')  # pandas writes 0.0 if a column has holes
_ANOMALOUS = ('1', '1.0', 'true', 'anomalous', 'anomaly', 'abnormal', 'defect', 'defective', 'bad', 'ng', 'ko', 'yes',
              'positive')
_LABELS = {**dict.fromkeys(_NORMAL, 0), **dict.fromkeys(_ANOMALOUS, 1)}
_UNNAMED = 'anomalous'  # the defect type of anomalous rows that name none


def read(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> tuple[list[tuple[int, dict]], list[str]]:
  """Returns ([(line, {column: value})] of the rows that are not blank, the other columns) of a table with a header.

  Blanks around names and values are dropped; missing values are ''. Commas, semicolons or tabs separate, whichever
  makes the header hold `columns`.

  Raises:
    FileNotFoundError: no such file.
    ValueError: it is not UTF-8 text, lacks a column or has one twice, or cannot be parsed; names the line.
  """
  if not path.is_file():
    raise FileNotFoundError(f'{path}: missing; it is the table that labels the images')
  text = _read_text(path)
  headers = {d: [field.strip() for field in next(csv.reader(io.StringIO(text), delimiter=d), [])] for d in ',;\t'}
  delimiter = next((d for d, header in headers.items() if set(columns) <= set(header)), ',')
  header = headers[delimiter]
  missing = [c for c in columns if c not in header]
  if missing:
    raise ValueError(f'{path}: no column {", ".join(missing)}; it has {", ".join(header)}{_near(missing, header)}')
  twice = [c for c, n in collections.Counter(header).items() if n > 1 and c in (*columns, *optional)]
  if twice:
    raise ValueError(f'{path}: column {twice[0]} occurs twice; remove one')
  reader, rows = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, strict=True), []
  try:
    for values in reader:
      if any(v.strip() for v in values[len(header):]):
        raise ValueError(f'{path}, line {reader.line_num}: {len(values)} values for {len(header)} columns; quote a '
                         f'value that contains {delimiter!r}')
      row = dict(zip(header, (v.strip() for v in values)))
      rows += [(reader.line_num, {c: row.get(c, '') for c in (*columns, *optional)})] if any(row.values()) else []
  except csv.Error as e:
    raise ValueError(f'{path}, line {reader.line_num}: {e}') from e
  return rows[1:], [c for c in header if c and c not in (*columns, *optional)]


def read_filled(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
  """Returns the rows of a table as {column: value} of these columns, none of which may be empty.

  Raises:
    FileNotFoundError, ValueError: as `read`, or a row lacks a value; names the line.
  """
  rows, _ = read(path, columns)
  for line, row in rows:
    blank = [c for c in columns if not row[c]]
    if blank:
      raise ValueError(f'{path}, line {line}: no value for {" and ".join(blank)}')
  return [row for _, row in rows]


def _read_text(path: Path) -> str:
  data = path.read_bytes()
  if data[:2] in (b'\xff\xfe', b'\xfe\xff'):
    raise ValueError(f'{path}, line 1: the table is UTF-16, not UTF-8; save it as CSV in UTF-8')
  try:
    return data.decode('utf-8-sig')
  except UnicodeDecodeError as e:
    line = data.count(b'\n', 0, e.start) + 1
    raise ValueError(f'{path}, line {line}: not UTF-8 text ({e.reason} {data[e.start:e.start + 1]!r}); save the table '
                     'as CSV in UTF-8') from e


def _near(missing: Sequence[str], header: Sequence[str]) -> str:
  """A hint at columns with similar names; '' without any."""
  lower = {name.casefold(): name for name in header}
  pairs = [(name, difflib.get_close_matches(name, lower, 1, 0.7)) for name in missing]
  renames = [f'{lower[near[0]]!r} should be {name!r}' for name, near in pairs if near]
  return f' ({", ".join(renames)})' if renames else ''


def scan(path: Path | str) -> Inventory:
  """Returns the images that a table lists, sorted by category, split, defect type and stem.

  Columns are REQUIRED and OPTIONAL, paths relative to the table's folder and inside it. Missing files, images listed
  twice and values that make no sense are problems that name the line; a column with a similar name that is not read is
  a note.

  Raises:
    FileNotFoundError, ValueError: as `read`.
  """
  path = Path(path).expanduser().absolute()
  rows, others = read(path, REQUIRED, OPTIONAL)
  scanned, lines, object_names = inventory.empty(), {}, {}
  for line, row in rows:
    errors, item = _scan_row(path, row)
    if item is not None:
      first = lines.setdefault(os.path.realpath(item.image), line)
      errors += [f'{row["image"]} is already listed on line {first}'] if first != line else []
      name = row['object_name'] and object_names.setdefault(item.category, row['object_name'])
      if row['object_name'] != name:
        errors.append(f'category {item.category} has object_name {row["object_name"]!r} here and {name!r} before')
    scanned.problems.extend(f'{path}, line {line}: {error}' for error in errors)
    scanned.items.extend([item] if item and not errors else [])
  unused = [c for c in OPTIONAL if all(not row[c] for _, row in rows)]
  if near := _near(unused, others):
    scanned.notes.append(f'{path}: columns not read: {", ".join(others)}{near}')
  if not rows:
    scanned.problems.append(f'{path}: no row below the header')
  _distinguish(scanned.items, path.parent)
  return scanned.sort()


def _scan_row(path: Path, row: dict[str, str]) -> tuple[list[str], Item | None]:
  """(errors of a row, its item); no item if the row does not say what it is."""
  if not row['image']:
    return ['no image'], None
  label = _LABELS.get(row['label'].casefold())
  if label is None:
    return [f'label {row["label"]!r} is unknown; write 0 or normal, 1 or anomalous'], None
  category, split = row['category'] or path.parent.name, row['split'] or 'test'
  defect_type = row['defect_type'] or (_UNNAMED if label else GOOD)
  errors = [f'{name} {value!r} must not contain / or start with a dot'
            for name, value in (('category', category), ('defect_type', defect_type))
            if '/' in value or value.startswith('.')]
  if bool(inventory.normal_names([defect_type])) == bool(label):
    errors.append(f'label {row["label"]!r} and defect_type {defect_type!r} contradict each other')
  if split not in ('train', 'test'):
    errors.append(f'split {split!r} is unknown; write train (normal images only) or test')
  elif split == 'train' and label:
    errors.append('an anomalous image in split train, which is for normal ones; write test')
  outside = [row[c] for c in ('image', 'mask') if os.path.isabs(row[c]) or
             os.path.normpath(row[c]).split(os.sep)[0] == os.pardir]
  if outside:
    return [f'{outside[0]} is outside the folder of the table; write paths relative to that folder, and put the table '
            'above all its images'], None
  image, mask = (path.parent / row[c] if row[c] else None for c in ('image', 'mask'))
  errors += [_missing(file) for file in (image, mask) if file is not None and not file.is_file()]
  return errors, Item(category, split, defect_type if label else GOOD, image.stem, image, mask, label)


def _missing(file: Path) -> str:
  same = [p.name for p in file.parent.iterdir() if p.name.casefold() == file.name.casefold()
          ] if file.parent.is_dir() else []
  hint = f' (there is {same[0]}: another letter case)' if same else ' (write / for \\)' if '\\' in str(file) else ''
  return f'{file}: no such file{hint}'


def _distinguish(items: list[Item], folder: Path) -> None:
  """Gives images that would share an id their whole path, with its extension, as their stem."""
  times = collections.Counter(item.key for item in items)
  items[:] = [item._replace(stem=os.path.relpath(item.image, folder)) if times[item.key] > 1 else item
              for item in items]


def object_names(path: Path) -> dict[str, str]:
  """Returns {category: name in prompts} of a table, in alphabetical order: its object_name, or the category's name."""
  rows, _ = read(path, REQUIRED, OPTIONAL)
  names = {row['category'] or path.parent.name: row['object_name'] for _, row in sorted(
      rows, key=lambda line: bool(line[1]['object_name']))}
  return {category: names[category] or catalog.object_name(category) for category in sorted(names)}


def listing_digest(path: Path) -> str:
  """Returns the sha256 of a table and of the size and modification time of every file that it names."""
  rows, _ = read(path, REQUIRED, OPTIONAL)
  digest = hashlib.sha256(path.read_bytes())
  for file in (path.parent / row[c] for _, row in rows for c in ('image', 'mask') if row[c]):
    if file.is_file():
      stat = file.stat()
      digest.update(f'{os.path.relpath(file, path.parent)}\0{stat.st_size}\0{stat.st_mtime_ns}\n'.encode(
          'utf-8', 'surrogateescape'))
  return digest.hexdigest()
