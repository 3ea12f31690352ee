"""One split of a prepared data set: records by position, and an index of their labels and digests."""

import difflib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tqdm import auto as tqdm

from zsad_jax.data import catalog, images, preparation

_COLUMNS = ('id', 'category', 'object_name', 'defect_type', 'label', 'has_mask', 'image_sha256',
            'mask_sha256')
_RAW = {'image': tfds.decode.SkipDecoding(), 'mask': tfds.decode.SkipDecoding()}


class Dataset:
  """The records of one split, in the order category, defect type, file stem.

  Attributes:
    name: the data set's name.
    split: 'train' or 'test'.
    categories: the selected categories, whether or not they have images in this split.
    object_names: {category: readable name for prompts}.
    ids, image_sha256: per record, its id and the digest of its encoded image.
    labels, category_index: per record, int32 0 normal / 1 anomalous, and the position in `categories`.
    has_mask: per record, bool, whether its mask is the ground truth.
    defect_types: per record, 'good' for normal images.
    rules: how image files became pixels (`images.Rules`), None if none were read.
    notes, skipped: oddities of the data, and the ids of damaged images that were left out.
    fingerprint: sha256 over the ids, labels, categories, image files and mask pixels of these records; the same source
      gives the same one on every machine.
  """

  def __init__(self, builder: tfds.core.DatasetBuilder, split: str, categories: Sequence[str] = (), *,
               name: str | None = None):
    """Opens a split of a prepared builder.

    Raises:
      ValueError: the data set has no such split or category (the message lists those it has), or its prepared files
        have changed since they were written.
    """
    known = list(builder.info.features['category'].names)
    self.name, self.split = name or builder.name, split
    if split not in builder.info.splits:
      raise ValueError(f'{self.name}: no images in split {split!r}; it has {", ".join(builder.info.splits)}')
    self.categories = _select(self.name, tuple(categories), known)
    self._source = builder.as_data_source(split, decoders=_RAW)
    index = _load_index(builder, split, self._source)
    position = {category: i for i, category in enumerate(self.categories)}
    self._rows = np.flatnonzero([c in position for c in index['category']])
    rows = {column: [values[i] for i in self._rows] for column, values in index.items()}
    self.ids, self.image_sha256, self.defect_types = rows['id'], rows['image_sha256'], rows['defect_type']
    self.labels = np.array(rows['label'], np.int32)
    self.has_mask = np.array(rows['has_mask'], bool)
    self.category_index = np.array([position[c] for c in rows['category']], np.int32)
    metadata = builder.info.metadata or {}
    names = metadata.get('object_names', {}) | dict(zip(rows['category'], rows['object_name']))
    self.object_names = {c: names.get(c, catalog.object_name(c)) for c in self.categories}
    self.rules = preparation.rules_in(metadata)
    self.notes, self.skipped = _notes(metadata, split)
    self.notes += [f'{c}: no images in split {split!r}' for c in self.categories if c not in rows['category']]
    for note in self.notes:
      logging.warning('%s: %s', self.name, note)
    self.fingerprint = hashlib.sha256(
        json.dumps([self.categories, [rows[c] for c in _COLUMNS]]).encode()).hexdigest()

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> dict:
    """Returns record i at the image's own size.

    id, category, object_name, defect_type: str; image: PIL, 8-bit RGB; mask: uint8 [h, w], 0 or 255; has_mask: bool;
    label: int.
    """
    if not -len(self) <= i < len(self):
      raise IndexError(f'{self.name}: record {i} of {len(self)}')
    raw = self._source[int(self._rows[i])]
    key = raw['id'].decode()
    image, label, has_mask = images.decode_rgb(raw['image'], key), int(raw['label']), bool(raw['has_mask'])
    if label and has_mask:
      mask = images.decode_mask(raw['mask'], f'{key} (mask)')
    else:
      mask = np.zeros(image.size[::-1], np.uint8)  # as stored; decoding it takes as long as a small image
    return {
        'id': key, 'image': image, 'mask': mask, 'has_mask': has_mask, 'label': label,
        'category': self.categories[self.category_index[i]],
        'object_name': raw['object_name'].decode(), 'defect_type': raw['defect_type'].decode(),
    }

  def __repr__(self) -> str:
    return f'Dataset({self.name!r}, {self.split!r}, {len(self)} images, {len(self.categories)} categories)'


def _select(name: str, categories: tuple[str, ...], known: list[str]) -> tuple[str, ...]:
  """The categories in the data set's own order; all if none are given."""
  unknown = [c for c in categories if c not in known]
  if unknown:
    near = difflib.get_close_matches(unknown[0], known, 1)
    raise ValueError(f'{name}: no category {unknown[0]!r}' + (f', did you mean {near[0]!r}?' if near else '.')
                     + f' It has {", ".join(known)}')
  return tuple(c for c in known if not categories or c in categories)


def _notes(metadata: dict, split: str) -> tuple[list[str], list[str]]:
  """The preparation's notes on the folder and on this split, and the ids of the images that it left out."""
  notes = metadata.get('notes', {})
  return [*notes.get('folder', ()), *notes.get(split, ())], list(metadata.get('skipped', {}).get(split, ()))


def index_file(builder: tfds.core.DatasetBuilder, split: str) -> Path:
  """Returns the path of a split's index, which exists once the records have been read through."""
  return Path(builder.data_dir) / f'index-{split}.json'


def _load_index(builder: tfds.core.DatasetBuilder, split: str, source: Sequence[dict]) -> dict[str, list]:
  """The columns of all records, from the index file, or read through once and written to it."""
  path = index_file(builder, split)
  sizes = {f.name: f.stat().st_size for f in map(Path, sorted(builder.info.splits[split].filepaths))}
  if path.is_file():
    index = json.loads(path.read_text(encoding='utf-8'))
    if index['sizes'] != sizes:
      raise ValueError(f'{path.parent}: the prepared files are damaged: they have {sizes} bytes, but '
                       f'{index["sizes"]} were written. Delete that folder and load the data set again')
    return index['columns']
  columns = _read_columns(source, builder.info.features['category'].names, split)
  part = path.with_name(f'{path.name}.{os.getpid()}.part')
  try:
    part.write_text(json.dumps({'sizes': sizes, 'columns': columns}), encoding='utf-8')
    os.replace(part, path)
  except OSError as e:
    logging.warning('%s: cannot be written (%s); the records will be read through at every start', path, e)
  return columns


def _read_columns(source: Sequence[dict], categories: list[str], split: str) -> dict[str, list]:
  rows = []
  for raw in tqdm.tqdm(source, f'index {split}', len(source), unit='image', leave=False):
    key = raw['id'].decode()
    # Pixels, not bytes: another version of zlib compresses the same mask differently.
    mask = images.decode_mask(raw['mask'], f'{key} (mask)')
    rows.append((key, categories[raw['category']], raw['object_name'].decode(), raw['defect_type'].decode(),
                 int(raw['label']), bool(raw['has_mask']), hashlib.sha256(raw['image']).hexdigest(),
                 hashlib.sha256(repr(mask.shape).encode() + mask.tobytes()).hexdigest()))
  return {column: list(values) for column, values in zip(_COLUMNS, zip(*rows))}
