"""Features of images: each goes once through CLIP's image tower, into a feature store or directly to the caller.

`load` (from a store) and `encode_batches` (without one) give the same pairs (Features, batch), so training, evaluation
and prediction read either.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from zsad_jax.clip.feature_spec import Features
from zsad_jax.engine import runtime
from zsad_jax.engine.feature_store import Store

Batch = dict[str, Any]  # arrays with one row per image, and a list of ids
STORAGE = ('float32', 'bfloat16')
LABELS = {'has_mask': 'bool', 'label': 'int32', 'category': 'int32'}


def fields(shapes: Features, mask_size: int, storage: str = 'float32') -> dict[str, tuple]:
  """Returns the fields of a Store of features, masks and labels.

  Args:
    shapes: Features of any batch, or their shapes from jax.eval_shape.
    mask_size: pixels per side of the masks, which are stored as bits.
    storage: dtype of the features, 'float32', or 'bfloat16' for half the size.

  Raises:
    ValueError: `storage` is not in STORAGE.
  """
  if storage not in STORAGE:
    raise ValueError(f'feature_dtype={storage!r} is not allowed; it must be one of {", ".join(STORAGE)}')
  arrays = {name: (array.shape[1:], storage) for name, array in _named(shapes).items()}
  labels = {name: ((), dtype) for name, dtype in LABELS.items()}
  return arrays | labels | {'mask': ((mask_size, -(-mask_size // 8)), 'uint8')}


def load(store: Store, indices: Sequence[int] | np.ndarray) -> tuple[Features, Batch]:
  """Returns (Features, batch) of the stored images `indices`, in this order.

  The batch has mask [B, R, R] uint8 in {0, 1}; has_mask, valid [B] bool; label, category, index [B] int32; and id, a
  list of strings.
  """
  rows = store.read(indices)
  index = np.asarray(indices, np.int32)
  batch: Batch = {name: rows[name] for name in LABELS}
  batch['mask'] = np.unpackbits(rows['mask'], axis=-1, count=rows['mask'].shape[1])
  batch |= {'index': index, 'valid': np.ones(len(index), bool), 'id': [store.ids[i] for i in index]}
  under = lambda folder: {name.removeprefix(folder): rows[name] for name in rows if name.startswith(folder)}
  windows = {int(side): rows for side, rows in under('windows/').items()}
  return Features(rows.get('cls'), under('taps/'), windows, rows.get('crops')), batch


def padded(indices: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns (`indices` [n] repeated cyclically to [size], valid [size] bool, False for the repetitions)."""
  return np.resize(indices, size), np.arange(size) < len(indices)


def encode_batches(batches: Iterable[Batch], encode: Callable, params: Any, *,
                   place: runtime.Placement | None = None) -> Iterator[tuple[Features, Batch]]:
  """Yields (Features of numpy arrays, batch) without a store; the device encodes the next batch meanwhile.

  Args:
    batches: batches of data.batches; batch['image'] is [B, R, R, 3] float32.
    encode: jitted encode(params, images) -> Features.
    params: CLIP's weights.
    place: devices of this process, by default all, and the placement of the weights; they need not divide B.
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


def fill(store: Store, batches: Callable[[np.ndarray], Iterable[Batch]], encode: Callable, params: Any, *,
         place: runtime.Placement | None = None) -> Store:
  """Returns the complete store: verifies the shards that exist and encodes only missing or damaged ones.

  Args:
    store: as opened.
    batches: indices -> batches of data.batches for these images, in this order.
    encode, params, place: see `encode_batches`.

  Raises:
    RuntimeError, ValueError, OSError, runtime.Preempted: see Store.fill.
  """
  def rows(missing):
    for features, batch in encode_batches(batches(missing), encode, params, place=place):
      yield _packed(features, batch)

  return store.fill(rows)


def _packed(features: Features, batch: Batch) -> tuple[np.ndarray, dict[str, np.ndarray], list[str]]:
  """Returns the arguments of Store.write: the valid rows, with masks as bits."""
  keep = np.flatnonzero(batch['valid'])
  rows = _named(features) | {name: batch[name] for name in LABELS}
  rows['mask'] = np.packbits(batch['mask'], axis=-1)
  rows = {name: array[keep] for name, array in rows.items()}
  return batch['index'][keep], rows, [batch['id'][i] for i in keep]


def _named(features: Features) -> dict[str, Any]:
  """Returns {name of the field: array} of the features."""
  single = {name: getattr(features, name) for name in ('cls', 'crops') if getattr(features, name) is not None}
  taps = {f'taps/{name}': tap for name, tap in features.taps.items()}
  return single | taps | {f'windows/{side}': rows for side, rows in features.windows.items()}
