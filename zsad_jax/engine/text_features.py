"""Text features of many sentences: each goes once through the frozen text tower, into a feature store."""

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.clip.model import Clip
from zsad_jax.engine import runtime
from zsad_jax.engine.feature_store import Store

TEXTS = 512  # encoded at once: some hundred MB of activations in a large text tower


def store(root: Path | str, groups: Sequence[Sequence[str]], clip: Clip, *, max_gb: float,
          place: runtime.Placement | None = None) -> Store:
  """Returns the complete Store of n groups of k texts, whose rows have the field 'texts' [k, E] float32.

  Features are as the text tower returns them, not normalised. The store is identified by the weights and the texts. Ids
  are cut after the longest text, at the next multiple of 8, which the text tower's causal mask makes exact.

  Args:
    root, max_gb: see Store.open.
    groups: texts, equally many in every group.
    clip: a CLIP with tokenizer and weights.
    place: devices of this process, by default all, which also say how the weights are placed.

  Raises:
    ValueError: no groups, or groups of different sizes; see also the tokenizer and Store.open.
  """
  size = len(groups[0]) if groups else 0
  if not size or any(len(group) != size for group in groups):
    raise ValueError('every group of texts must have the same number of texts, at least one')
  digest = hashlib.sha256(json.dumps(groups).encode()).hexdigest()
  features = Store.open(
    root, key={**clip.identity, 'texts': digest}, count=len(groups),
    fields={'texts': ((size, clip.arch.embed_dim), 'float32')}, max_gb=max_gb, shard_rows=max(1, TEXTS // size))
  rows = functools.partial(_rows, groups=groups, clip=clip, place=place or runtime.place(jax.local_devices()),
                           batch=features.shard_rows)
  return features.fill(rows, unit='text group')


def _rows(missing: np.ndarray, *, groups: Sequence[Sequence[str]], clip: Clip, place: runtime.Placement, batch: int
          ) -> Iterator[tuple]:
  """Yields (indices, {'texts': [n, k, E]}, ids) of the missing groups, one shard at a time."""
  encode = jax.jit(lambda params, ids, eot: clip.text(params, clip.embed(params, ids), eot).astype(jnp.float32))
  size = len(groups[0])
  ids = clip.tokenize([text for i in missing for text in groups[i]])
  eot = np.asarray(clip.eot(ids), np.int32)
  ids = ids[:, :min(ids.shape[1], -(-(eot.max() + 1) // 8) * 8)]
  params = runtime.weights(clip.params, place)
  for start in range(0, len(missing), batch):
    indices = missing[start:start + batch]
    texts = np.resize(np.arange(start * size, (start + len(indices)) * size), place.rows(batch * size))
    encoded = jax.device_get(encode(params, *jax.device_put((ids[texts], eot[texts]), place.split)))
    yield indices, {'texts': encoded[:len(indices) * size].reshape(len(indices), size, -1)}, [str(i) for i in indices]
