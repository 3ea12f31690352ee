"""Tables that say what images are: comma-separated files, and a data set described by one."""

import collections
import csv
import difflib
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

from zsad_jax.data import catalog, survey
from zsad_jax.data.survey import GOOD, Item, Survey

REQUIRED = ('image', 'label')
OPTIONAL = ('mask', 'category', 'split', 'object_name', 'defect_type')
_NORMAL = (*survey.NORMAL_NAMES, '0', '0.0', 'false')            # pandas writes 0.0 where a column has holes
_ANOMALOUS = ('1', '1.0', 'true', 'anomalous', 'anomaly', 'abnormal', 'defect', 'defective', 'bad', 'ng', 'ko', 'yes',
              'positive')
_UNNAMED = 'anomalous'           # the defect type of rows that name none


def read(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> tuple[list[tuple[int, dict]], list[str]]:
  """Returns ([(line, {column: value})] of the rows that are not blank, the other columns) of a table with a header.

  Blanks around names and values are dropped; absent values are ''. Commas, semicolons or tabs separate, whichever
  makes the header hold `columns`.

  Raises:
    FileNotFoundError: no such file.
    ValueError: it is no UTF-8 text, lacks a column or has one twice, or cannot be parsed; names the line.
  """
  if not path.is_file():
    raise FileNotFoundError(f'{path}: missing; it is the table that says what is anomalous')
  text = _text(path)
  headers = {d: [field.strip() for field in next(csv.reader(io.StringIO(text), delimiter=d), [])] for d in ',;\t'}
  delimiter = next((d for d, header in headers.items() if set(columns) <= set(header)), ',')
  header = headers[delimiter]
  lacking = [c for c in columns if c not in header]
  if lacking:
    raise ValueError(f'{path}: no column {", ".join(lacking)}; found {", ".join(header)}{_near(lacking, header)}')
  twice = [c for c, n in collections.Counter(header).items() if n > 1 and c in (*columns, *optional)]
  if twice:
    raise ValueError(f'{path}: column {twice[0]} is there twice')
  reader, rows = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, strict=True), []
  try:
    for values in reader:
      if any(v.strip() for v in values[len(header):]):
        raise ValueError(f'{path}, line {reader.line_num}: {len(values)} values for {len(header)} columns; quote a '
                         f'value that holds {delimiter!r}')
      row = dict(zip(header, (v.strip() for v in values)))
      rows += [(reader.line_num, {c: row.get(c, '') for c in (*columns, *optional)})] if any(row.values()) else []
  except csv.Error as e:
    raise ValueError(f'{path}, line {reader.line_num}: {e}') from e
  return rows[1:], [c for c in header if c and c not in (*columns, *optional)]


def _text(path: Path) -> str:
  data = path.read_bytes()
  if data[:2] in (b'\xff\xfe', b'\xfe\xff'):
    raise ValueError(f'{path}, line 1: the table is not UTF-8 but UTF-16; save it as CSV in UTF-8')
  try:
    return data.decode('utf-8-sig')
  except UnicodeDecodeError as e:
    line = data.count(b'\n', 0, e.start) + 1
    raise ValueError(f'{path}, line {line}: not UTF-8 text ({e.reason} {data[e.start:e.start + 1]!r}); save the table '
                     'as CSV in UTF-8') from e


def _near(lacking: Sequence[str], header: Sequence[str]) -> str:
  """', did you mean ...' for columns that are called almost so."""
  lower = {name.casefold(): name for name in header}
  pairs = [(name, difflib.get_close_matches(name, lower, 1, 0.7)) for name in lacking]
  meant = [f'{lower[near[0]]!r} should be {name!r}' for name, near in pairs if near]
  return f' ({", ".join(meant)})' if meant else ''


def walk(path: Path) -> Survey:
  """Returns the images that a table lists, in the order category, split, defect type, stem.

  Columns are REQUIRED and OPTIONAL, paths relative to the table's folder and inside it. Missing files, images listed
  twice and values that make no sense are problems that name the line; columns that are not read are a note.

  Raises:
    FileNotFoundError, ValueError: as `read`.
  """
  path = Path(path).expanduser().absolute()
  rows, others = read(path, REQUIRED, OPTIONAL)
  out, first, names = Survey([], [], []), {}, {}
  for line, row in rows:
    wrong, item = _item(path, row)
    if item is not None:
      where = os.path.realpath(item.image)
      before = first.setdefault(where, line)
      wrong += [f'{row["image"]} is listed on line {before} already'] if before != line else []
      name = row['object_name'] and names.setdefault(item.category, row['object_name'])
      if row['object_name'] != name:
        wrong.append(f'category {item.category} is called {row["object_name"]!r} here and {name!r} before')
    out.problems.extend(f'{path}, line {line}: {text}' for text in wrong)
    out.items.extend([item] if item and not wrong else [])
  unread = [c for c in OPTIONAL if all(not row[c] for _, row in rows)]
  out.notes.extend([f'{path}: columns not read: {", ".join(others)}{_near(unread, others)}'] if _near(unread, others)
                   else [])
  if not rows:
    out.problems.append(f'{path}: no row below the header')
  _distinguish(out.items, path.parent)
  out.items.sort(key=lambda item: item[:4])
  return out


def _item(path: Path, row: dict[str, str]) -> tuple[list[str], Item | None]:
  """(what is wrong with a row, its item); no item where the row does not tell what it is."""
  if not row['image']:
    return ['no image'], None
  label = {**dict.fromkeys(_NORMAL, 0), **dict.fromkeys(_ANOMALOUS, 1)}.get(row['label'].casefold())
  if label is None:
    return [f'label {row["label"]!r} is unknown; write 0 or normal, 1 or anomalous'], None
  category, split = row['category'] or path.parent.name, row['split'] or 'test'
  kind = row['defect_type'] or (_UNNAMED if label else GOOD)
  named_normal = bool(survey.normal_names([kind]))
  wrong = [f'{name} {value!r} may not hold / or start with a dot'
           for name, value in (('category', category), ('defect_type', kind)) if '/' in value or value.startswith('.')]
  if named_normal == bool(label):
    wrong.append(f'label {row["label"]!r} and defect_type {kind!r} contradict each other')
  if split not in ('train', 'test'):
    wrong.append(f'split {split!r} is unknown; write train (normal images only) or test')
  elif split == 'train' and label:
    wrong.append('an anomalous image in split train, which is for normal ones; write test')
  outside = [row[c] for c in ('image', 'mask') if os.path.isabs(row[c]) or
             os.path.normpath(row[c]).split(os.sep)[0] == os.pardir]
  if outside:
    return [f'{outside[0]} lies outside of the folder of the table; write paths relative to that folder, and put the '
            'table above all its images'], None
  files = [path.parent / row[c] if row[c] else None for c in ('image', 'mask')]
  wrong += [_missing(file) for file in files if file is not None and not file.is_file()]
  return wrong, Item(category, split, GOOD if not label else kind, files[0].stem, *files, label)


def _missing(file: Path) -> str:
  same = [p.name for p in file.parent.iterdir() if p.name.casefold() == file.name.casefold()
          ] if file.parent.is_dir() else []
  hint = f' (there is {same[0]}: another letter case)' if same else ' (write / for \\)' if '\\' in str(file) else ''
  return f'{file}: no such file{hint}'


def _distinguish(items: list[Item], folder: Path) -> None:
  """Gives images that would share an id their whole path, with its ending, for a stem."""
  times = collections.Counter(item.key for item in items)
  items[:] = [item._replace(stem=os.path.relpath(item.image, folder)) if times[item.key] > 1 else item
              for item in items]


def object_names(path: Path) -> dict[str, str]:
  """Returns {category: name for prompts} of a table, in alphabetical order: its object_name, or the category's own."""
  rows, _ = read(path, REQUIRED, OPTIONAL)
  names = {row['category'] or path.parent.name: row['object_name'] for _, row in sorted(
      rows, key=lambda line: bool(line[1]['object_name']))}
  return {category: names[category] or catalog.object_name(category) for category in sorted(names)}


def listing(path: Path) -> str:
  """Returns the sha256 of a table and of the size and modification time of every file that it names."""
  rows, _ = read(path, REQUIRED, OPTIONAL)
  digest = hashlib.sha256(path.read_bytes())
  for file in (path.parent / row[c] for _, row in rows for c in ('image', 'mask') if row[c]):
    if file.is_file():
      stat = file.stat()
      digest.update(f'{os.path.relpath(file, path.parent)}\0{stat.st_size}\0{stat.st_mtime_ns}\n'.encode(
          'utf-8', 'surrogateescape'))
  return digest.hexdigest()
