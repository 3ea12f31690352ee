"""One split of a prepared data set: records by position, and an index of what they are."""

import difflib
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tqdm import auto as tqdm

from zsad_jax.data import catalog, images, preparation

_COLUMNS = ('id', 'category', 'object_name', 'defect_type', 'label', 'has_mask', 'image_sha256',
            'mask_sha256')


class Dataset:
  """The records of one split, in the order category, defect type, file stem.

  Attributes:
    name: the data set's name.
    split: 'train' or 'test'.
    categories: the chosen categories, whether or not they have images in this split.
    object_names: {category: readable name for prompts}.
    ids, image_sha256: per record, its id and the digest of its encoded image.
    labels, category_index: per record, int32 0 normal / 1 anomalous, and the position in `categories`.
    has_mask: per record, bool, whether its mask is the truth.
    defect_types: per record, 'good' for normal images.
    rules: how image files became pixels (`images.Rules`), None where none were read.
    notes, skipped: what is odd about the data, and the ids of damaged images that were left out.
    fingerprint: sha256 over the ids, labels, categories, image files and mask pixels of these records; the
      same source gives the same one on every machine.
  """

  def __init__(self, builder: tfds.core.DatasetBuilder, split: str, categories=(), *,
               name: str | None = None):
    """Opens a split of a prepared builder.

    Raises:
      ValueError: the data set has no such split or category (the message lists those it has), or its prepared
        files are not those that were written.
    """
    known = list(builder.info.features['category'].names)
    self.name, self.split = name or builder.name, split
    if split not in builder.info.splits:
      raise ValueError(f'{self.name}: no images in split {split!r}; it has {", ".join(builder.info.splits)}')
    self.categories = _chosen(self.name, tuple(categories), known)
    self._source = builder.as_data_source(split, decoders={
        'image': tfds.decode.SkipDecoding(), 'mask': tfds.decode.SkipDecoding()})
    index = _index(builder, split, self._source)
    place = {category: i for i, category in enumerate(self.categories)}
    self._rows = np.flatnonzero([c in place for c in index['category']])
    rows = {column: [values[i] for i in self._rows] for column, values in index.items()}
    self.ids, self.image_sha256, self.defect_types = rows['id'], rows['image_sha256'], rows['defect_type']
    self.labels = np.array(rows['label'], np.int32)
    self.has_mask = np.array(rows['has_mask'], bool)
    self.category_index = np.array([place[c] for c in rows['category']], np.int32)
    metadata = builder.info.metadata or {}
    told = metadata.get('object_names', {}) | dict(zip(rows['category'], rows['object_name']))
    self.object_names = {c: told.get(c, catalog.object_name(c)) for c in self.categories}
    self.rules = preparation.rules_of(metadata)
    self.notes, self.skipped = _remarks(metadata, split)
    self.notes += [f'{c}: no images in split {split!r}' for c in self.categories if c not in rows['category']]
    for note in self.notes:
      logging.warning('%s: %s', self.name, note)
    self.fingerprint = hashlib.sha256(
        json.dumps([self.categories, [rows[c] for c in _COLUMNS]]).encode()).hexdigest()

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> dict:
    """Returns record i, all of it at the image's own size.

    id, category, object_name, defect_type: str; image: PIL, 8-bit RGB; mask: uint8 [h, w], 0 or 255;
    has_mask: bool; label: int.
    """
    if not -len(self) <= i < len(self):
      raise IndexError(f'{self.name}: record {i} of {len(self)}')
    raw = self._source[int(self._rows[i])]
    key = raw['id'].decode()
    image, label, has_mask = images.decode_rgb(raw['image'], key), int(raw['label']), bool(raw['has_mask'])
    if label and has_mask:
      mask = images.decode_mask(raw['mask'], f'{key} (mask)')
    else:
      mask = np.zeros(image.size[::-1], np.uint8)      # what is stored; decoding it takes as long as a small image
    return {
        'id': key, 'image': image, 'mask': mask, 'has_mask': has_mask, 'label': label,
        'category': self.categories[self.category_index[i]],
        'object_name': raw['object_name'].decode(), 'defect_type': raw['defect_type'].decode(),
    }

  def __repr__(self) -> str:
    return f'Dataset({self.name!r}, {self.split!r}, {len(self)} images, {len(self.categories)} categories)'


def _chosen(name: str, asked: tuple[str, ...], known: list[str]) -> tuple[str, ...]:
  """The asked categories in the data set's own order; all when none is asked."""
  unknown = [c for c in asked if c not in known]
  if unknown:
    near = difflib.get_close_matches(unknown[0], known, 1)
    raise ValueError(f'{name}: no category {unknown[0]!r}' + (f', did you mean {near[0]!r}?' if near else '.')
                     + f' It has {", ".join(known)}')
  return tuple(c for c in known if not asked or c in asked)


def _remarks(metadata: dict, split: str) -> tuple[list[str], list[str]]:
  """The preparation's notes on the folder and on this split, and the ids it skipped."""
  notes = metadata.get('notes', {})
  return [*notes.get('folder', ()), *notes.get(split, ())], list(metadata.get('skipped', {}).get(split, ()))


def index_file(builder: tfds.core.DatasetBuilder, split: str) -> Path:
  """Returns where the index of a split is kept once the records have been read through."""
  return Path(builder.data_dir) / f'index-{split}.json'


def _index(builder: tfds.core.DatasetBuilder, split: str, source) -> dict[str, list]:
  """The columns of all records, from the file beside them, or read through once and kept there."""
  path = index_file(builder, split)
  sizes = {f.name: f.stat().st_size for f in map(Path, sorted(builder.info.splits[split].filepaths))}
  if path.is_file():
    kept = json.loads(path.read_text(encoding='utf-8'))
    if kept['sizes'] != sizes:
      raise ValueError(f'{path.parent}: the prepared files are damaged: {sizes} bytes, written were '
                       f'{kept["sizes"]}. Delete that folder and load the data set again')
    return kept['columns']
  columns = _read_through(source, builder.info.features['category'].names, split)
  part = path.with_name(f'{path.name}.{os.getpid()}.part')
  try:
    part.write_text(json.dumps({'sizes': sizes, 'columns': columns}), encoding='utf-8')
    os.replace(part, path)
  except OSError as e:
    logging.warning('%s: cannot be written (%s); the records will be read through at every start', path, e)
  return columns


def _read_through(source, categories: list[str], split: str) -> dict[str, list]:
  rows = []
  for raw in tqdm.tqdm(source, f'index {split}', len(source), unit='image', leave=False):
    key = raw['id'].decode()
    # Pixels, not bytes: another zlib packs the same mask differently.
    mask = images.decode_mask(raw['mask'], f'{key} (mask)')
    rows.append((key, categories[raw['category']], raw['object_name'].decode(), raw['defect_type'].decode(),
                 int(raw['label']), bool(raw['has_mask']), hashlib.sha256(raw['image']).hexdigest(),
                 hashlib.sha256(repr(mask.shape).encode() + mask.tobytes()).hexdigest()))
  return {column: list(values) for column, values in zip(_COLUMNS, zip(*rows))}
