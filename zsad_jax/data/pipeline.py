"""From records to padded batches of arrays: decode, transform, resize the mask, stack."""

import operator
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from zsad_jax.data.dataset import Dataset

THREADS = 4
_DTYPES = {'image': np.float32, 'mask': np.uint8, 'has_mask': bool, 'label': np.int32, 'category': np.int32,
           'valid': bool, 'index': np.int32}


class Batches:
  """An iterator over the batches of `epochs` passes; `len` says how many it gives, counted from `start`.

  `next_index` is the number of the next batch, over all epochs: pass it as `start` to go on from there.
  """

  def __init__(self, iterator, total: int, start: int):
    self._iterator, self._total, self._start = iterator, total, start
    self.next_index = start

  def __len__(self) -> int:
    return self._total - self._start

  def __iter__(self):
    return self

  def __next__(self) -> dict:
    batch = next(self._iterator)
    self.next_index += 1
    return batch

  def close(self) -> None:
    """Stops the reading threads; for when the batches are not read to their end."""
    self._iterator.close()


def batches(dataset: Dataset, *, transform: Callable[[Image.Image], np.ndarray], mask_size: int,
            batch_size: int, indices: Sequence[int] | None = None, seed: int | None = None, epochs: int = 1,
            start: int = 0, threads: int = THREADS) -> Batches:
  """Returns batches of exactly `batch_size` rows, each epoch's last filled up with copies of its last record.

  Each is a dict: image [B, R, R, 3] float32; mask [B, M, M] uint8, 0 or 1; has_mask [B] bool; label [B]
  int32; category [B] int32, the position in dataset.categories; valid [B] bool, False for the copies;
  index [B] int32, the record's position in `dataset`; id, a list of str (keep it out of jit).

  The order of epoch e is a function of (seed, e) and the indices alone, whatever the number of threads. For
  several hosts give each `indices=range(len(dataset))[process::processes]`: no record is lost.

  Args:
    dataset: the records.
    transform: PIL RGB image -> float32 [R, R, 3].
    mask_size: M. Masks are squashed as in AnomalyCLIP's official code (arXiv 2310.18961): 0/255,
      antialiased bilinear, then cut above one half.
    batch_size: B.
    indices: positions to read, in this order when not shuffled; all by default.
    seed: shuffles each epoch anew; None keeps the order.
    epochs: passes over the indices.
    start: first batch to give, counted over all epochs.
    threads: decoding threads; 0 decodes in the caller's.

  Raises:
    ValueError: a number out of range; names it.
  """
  order = np.arange(len(dataset)) if indices is None else np.asarray(indices, np.int64)
  _check(dataset, order, mask_size=mask_size, batch_size=batch_size, epochs=epochs, start=start,
         threads=threads)
  per_epoch = -(-len(order) // batch_size)
  total = per_epoch * epochs
  if start > total:
    raise ValueError(f'start is {start}, but {epochs} epoch(s) give only {total} batches')
  import grain  # takes 2.5 s, and a run whose features are stored reads no image

  picks = grain.MapDataset.source(order)
  if seed is not None and len(order):
    picks = picks.seed(seed).shuffle()

  def load(slot: int) -> dict | int:
    """Row `slot` of all batches laid end to end; the record's position alone where the row is padding."""
    epoch, row = divmod(slot, per_epoch * batch_size)
    position = int(picks[epoch * len(order) + min(row, len(order) - 1)])
    return position if row >= len(order) else _row(dataset, position, transform, mask_size)

  slots = grain.MapDataset.range(start * batch_size, total * batch_size).map(load)
  # Threads and buffer act on single records: a buffer counted in batches would hold gigabytes.
  ahead = max(2 * threads, batch_size) if threads else 0
  read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
  rows = slots.to_iter_dataset(read).batch(batch_size, batch_fn=_stack)
  return Batches(iter(rows), total, start)


def _check(dataset, order, **numbers) -> None:
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
  """One batch of rows; those that are only a position repeat the last real row and are not valid."""
  real = [row for row in rows if isinstance(row, dict)]
  rows = real + [real[-1] | {'valid': False}] * (len(rows) - len(real))
  arrays = {k: np.stack([np.asarray(row[k], dtype) for row in rows]) for k, dtype in _DTYPES.items()}
  return arrays | {'id': [row['id'] for row in rows]}
