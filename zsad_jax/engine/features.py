"""Features of a data set: every image goes through the frozen image tower once, into a Store or past it.

`load_batches` (from a store) and `encode_batches` (without one) yield the same pairs (Features, batch), so
training, scoring and a notebook can read either.
"""

from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np

from zsad_jax.clip.feature_spec import Features
from zsad_jax.engine import runtime
from zsad_jax.engine.feature_store import Store

__all__ = ['STORAGE', 'Store', 'encode_batches', 'fields', 'fill', 'load', 'load_batches', 'padded']

STORAGE = ('float32', 'bfloat16')
LABELS = {'has_mask': 'bool', 'label': 'int32', 'category': 'int32'}


def fields(shapes: Features, mask_size: int, storage: str = 'float32') -> dict[str, tuple]:
  """Returns the fields of a Store that holds what training and scoring read of an image.

  Args:
    shapes: Features of any batch, or its shapes from jax.eval_shape.
    mask_size: pixels a side of the masks, which are stored as bits.
    storage: 'float32', or 'bfloat16' for half the size.

  Raises:
    ValueError: another storage.
  """
  if storage not in STORAGE:
    raise ValueError(f'feature_dtype is {storage!r}; it must be one of {", ".join(STORAGE)}')
  arrays = {name: (array.shape[1:], storage) for name, array in _named(shapes).items()}
  labels = {name: ((), dtype) for name, dtype in LABELS.items()}
  return arrays | labels | {'mask': ((mask_size, -(-mask_size // 8)), 'uint8')}


def load(store: Store, indices) -> tuple[Features, dict]:
  """Returns (Features, batch) of stored images `indices`, in that order.

  batch: mask [B, R, R] uint8 in {0, 1}; has_mask, valid [B] bool; label, category, index [B] int32; id, list.
  """
  rows = store.read(indices)
  index = np.asarray(indices, np.int32)
  batch = {name: rows[name] for name in LABELS}
  batch['mask'] = np.unpackbits(rows['mask'], axis=-1, count=rows['mask'].shape[1])
  batch |= {'index': index, 'valid': np.ones(len(index), bool), 'id': [store.ids[i] for i in index]}
  under = lambda folder: {name.removeprefix(folder): rows[name] for name in rows if name.startswith(folder)}
  windows = {int(side): rows for side, rows in under('windows/').items()}
  return Features(rows.get('cls'), under('taps/'), windows, rows.get('crops')), batch


def load_batches(store: Store, batch_size: int, indices=None) -> Iterator[tuple[Features, dict]]:
  """Yields (Features, batch) of stored images in order; batch['valid'] marks padding of the last batch."""
  indices = np.arange(store.count) if indices is None else np.asarray(indices)
  for start in range(0, len(indices), batch_size):
    rows, valid = padded(indices[start:start + batch_size], batch_size)
    features, batch = load(store, rows)
    yield features, dict(batch, valid=valid)


def padded(indices: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns `indices` [n] repeated cyclically to [size], and valid [size], False where repeated."""
  return np.resize(indices, size), np.arange(size) < len(indices)


def encode_batches(batches: Iterable[dict], encode: Callable, params, *,
                   place: runtime.Placement | None = None) -> Iterator[tuple[Features, dict]]:
  """Yields (Features of numpy arrays, batch) without a store, the next batch on the device meanwhile.

  Args:
    batches: the pipeline's batches; batch['image'] is [B, R, R, 3] float32.
    encode: jitted encode(params, images) -> Features.
    params: the frozen weights.
    place: devices of this process, by default all, which say how the weights lie; B need not be a multiple of their
      number.
  """
  place = place or runtime.place(jax.local_devices())
  params = runtime.weights(params, place)

  def fetch(out, batch):
    return jax.tree.map(lambda x: x[:len(batch['image'])], jax.device_get(out)), batch

  ahead = None
  for batch in batches:
    rows, _ = padded(np.arange(len(batch['image'])), place.rows(len(batch['image'])))
    out = encode(params, jax.device_put(batch['image'][rows], place.split))
    if ahead:
      yield fetch(*ahead)
    ahead = out, batch
  if ahead:
    yield fetch(*ahead)


def fill(store: Store, batches: Callable[[np.ndarray], Iterable[dict]], encode: Callable, params, *,
         place: runtime.Placement | None = None) -> Store:
  """Returns `store`, complete: what is there is verified, and only what is missing or damaged is encoded.

  The processes of one program share the work and must share the folder; another program waits its turn.

  Args:
    store: as opened.
    batches: indices -> the pipeline's batches of these images, in this order.
    encode, params, place: see `encode_batches`.

  Raises:
    RuntimeError: images are still missing in the end.
    ValueError, OSError: see Store.write.
  """
  def rows(missing):
    for features, batch in encode_batches(batches(missing), encode, params, place=place):
      yield _packed(features, batch)

  return store.fill(rows)


def _packed(features: Features, batch: dict) -> tuple[np.ndarray, dict, list[str]]:
  """Arguments of Store.write: the valid rows, masks as bits."""
  keep = np.flatnonzero(batch['valid'])
  rows = _named(features) | {name: batch[name] for name in LABELS}
  rows['mask'] = np.packbits(batch['mask'], axis=-1)
  rows = {name: array[keep] for name, array in rows.items()}
  return batch['index'][keep], rows, [batch['id'][i] for i in keep]


def _named(features: Features) -> dict:
  single = {name: getattr(features, name) for name in ('cls', 'crops') if getattr(features, name) is not None}
  taps = {f'taps/{name}': tap for name, tap in features.taps.items()}
  return single | taps | {f'windows/{side}': rows for side, rows in features.windows.items()}
