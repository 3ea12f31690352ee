"""From records to padded batches of arrays: decode, transform, resize the mask, stack."""

import contextlib
import operator
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

from zsad_jax.data.dataset import Dataset
from zsad_jax.data.read_ahead import read_ahead

THREADS = 4
_DTYPES = {'image': np.float32, 'mask': np.uint8, 'has_mask': bool, 'label': np.int32, 'category': np.int32,
           'valid': bool, 'index': np.int32}


def batches(dataset: Dataset, *, transform: Callable[[Image.Image], np.ndarray], mask_size: int,
            batch_size: int, indices: Sequence[int] | None = None, seed: int | None = None, epochs: int = 1,
            start: int = 0, threads: int = THREADS) -> Iterator[dict]:
  """Yields batches of exactly `batch_size` rows; the last one of an epoch is padded with copies of its last record.

  Each is a dict: image [B, R, R, 3] float32; mask [B, M, M] uint8, 0 or 1; has_mask [B] bool; label [B] int32; category
  [B] int32, the position in dataset.categories; valid [B] bool, False for the copies; index [B] int32, the record's
  position in `dataset`; id, a list of str (keep it out of jit). Close the iterator if it is not read to its end.

  The order of epoch e is a function of (seed, e) and the indices alone, whatever the number of threads. On several
  hosts pass each `indices=range(len(dataset))[process::processes]`: no record is lost.

  Args:
    dataset: the records.
    transform: PIL RGB image -> float32 [R, R, 3].
    mask_size: M. Masks are resized as in AnomalyCLIP's official code (arXiv 2310.18961): 0/255, antialiased bilinear,
      then thresholded above one half.
    batch_size: B.
    indices: positions to read, in this order if not shuffled; all by default.
    seed: shuffles every epoch differently; None keeps the order.
    epochs: passes over the indices.
    start: first batch, counted over all epochs, to resume from.
    threads: decoding threads; 0 decodes in the caller's.

  Raises:
    ValueError: a number is out of range; names it.
  """
  order = np.arange(len(dataset)) if indices is None else np.asarray(indices, np.int64)
  _check(dataset, order, mask_size=mask_size, batch_size=batch_size, epochs=epochs, start=start,
         threads=threads)
  per_epoch = -(-len(order) // batch_size)
  if start > per_epoch * epochs:
    raise ValueError(f'start={start} is beyond the end: {epochs} epoch(s) give {per_epoch * epochs} batches')
  rows = _positions(order, seed, epochs, per_epoch * batch_size, start * batch_size)
  # Rows are read ahead, not batches: a buffer counted in batches would hold gigabytes.
  depth = max(2 * threads, batch_size)
  read = lambda position: position if position < 0 else _row(dataset, position, transform, mask_size)
  return _stacked(read_ahead(read, rows, threads=threads, depth=depth), batch_size)


def _positions(order: np.ndarray, seed: int | None, epochs: int, rows: int, start: int) -> Iterator[int]:
  """The position of every row of all epochs from row `start`; -1 for the padding that fills an epoch up to `rows`."""
  for epoch in range(start // rows if rows else 0, epochs):
    shuffled = order if seed is None else np.random.default_rng((seed, epoch)).permutation(order)
    padded = [*shuffled.tolist(), *[-1] * (rows - len(order))]
    yield from padded[max(start - epoch * rows, 0):]


def _stacked(rows: Iterator[dict | int], batch_size: int) -> Iterator[dict]:
  """Batches of `batch_size` rows."""
  batch = []
  with contextlib.closing(rows):
    for row in rows:
      batch.append(row)
      if len(batch) == batch_size:
        yield _stack(batch)
        batch = []


def _check(dataset: Dataset, order: np.ndarray, **numbers: int) -> None:
  for name, value in numbers.items():
    least = 0 if name in ('start', 'threads') else 1
    if operator.index(value) < least:
      raise ValueError(f'{name} is {value}; it must be at least {least}')
  outside = order[(order < 0) | (order >= len(dataset))]
  if outside.size:
    raise ValueError(f'indices: {outside[0]} is not a record of {dataset!r}')


def _row(dataset: Dataset, position: int, transform: Callable, mask_size: int) -> dict:
  record = dataset[position]
  return {
      'image': np.asarray(transform(record['image']), np.float32),
      'mask': resize_mask(record['mask'], mask_size),
      'has_mask': record['has_mask'], 'label': record['label'],
      'category': dataset.category_index[position], 'valid': True, 'index': position, 'id': record['id'],
  }


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
  """Returns uint8 [size, size], 0 or 1, of a mask [h, w] of 0 and 255: 127 becomes 0, 128 becomes 1."""
  if not mask.any():
    return np.zeros((size, size), np.uint8)
  small = Image.fromarray(mask).resize((size, size), Image.Resampling.BILINEAR)
  return (np.asarray(small) > 127).astype(np.uint8)


def _stack(rows: Sequence[dict | int]) -> dict:
  """One batch; padding repeats the last record and is not valid."""
  real = [row for row in rows if isinstance(row, dict)]
  rows = real + [real[-1] | {'valid': False}] * (len(rows) - len(real))
  arrays = {k: np.stack([np.asarray(row[k], dtype) for row in rows]) for k, dtype in _DTYPES.items()}
  return arrays | {'id': [row['id'] for row in rows]}
