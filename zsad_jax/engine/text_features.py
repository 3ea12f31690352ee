"""Features of texts: each goes once through the frozen text tower, into a Store."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.engine import runtime
from zsad_jax.engine.feature_store import Store

TEXTS = 512  # encoded at once: some hundred MB of activations in a large text tower


def encoder(clip) -> Callable:
  """Returns jitted f(params, ids [B, L], eot [B]) -> features [B, E] as the text tower gives them, not normalised."""

  def encode(params, ids, eot):
    return clip.text(params, clip.embed(params, ids), eot).astype(jnp.float32)

  return jax.jit(encode)


def store(root, groups: Sequence[Sequence[str]], clip, encode: Callable, *, max_gb: float,
          place: runtime.Placement | None = None) -> Store:
  """Returns the complete Store of n groups of k texts, whose rows have the field 'texts' [k, E] float32.

  It is known by the weights and the texts themselves. Ids are cut to the longest text, to the next multiple of 8,
  which the text tower's causal mask makes exact.

  Args:
    root, max_gb: see Store.open.
    groups: texts, equally many a group.
    clip: models.clip.Clip, with tokenizer and weights.
    encode: encoder(clip); one serves many stores.
    place: devices of this process, by default all, which say how the weights lie.

  Raises:
    ValueError: groups of different sizes or none; what the tokenizer and Store.open raise.
  """
  size = len(groups[0]) if groups else 0
  if not size or any(len(group) != size for group in groups):
    raise ValueError('texts come in one group or more, all of equally many')
  digest = hashlib.sha256(json.dumps(groups).encode()).hexdigest()
  made = Store.open(
    root, key={**clip.identity, 'texts': digest}, count=len(groups),
    fields={'texts': ((size, clip.arch.embed_dim), 'float32')}, max_gb=max_gb, shard_rows=max(1, TEXTS // size))
  place = place or runtime.place(jax.local_devices())
  return made.fill(lambda missing: _rows(missing, groups, clip, encode, place, made.shard_rows), unit='text group')


def _rows(missing: np.ndarray, groups, clip, encode, place, batch: int) -> Iterator[tuple]:
  """Yields (indices, {'texts': [n, k, E]}, ids) of the missing groups, a shard's at a time."""
  size = len(groups[0])
  ids = clip.tokenize([text for i in missing for text in groups[i]])
  eot = np.asarray(clip.eot(ids), np.int32)
  ids = ids[:, :min(ids.shape[1], -(-(eot.max() + 1) // 8) * 8)]
  params = runtime.weights(clip.params, place)
  for start in range(0, len(missing), batch):
    indices = missing[start:start + batch]
    texts = np.resize(np.arange(start * size, (start + len(indices)) * size), place.rows(batch * size))
    found = jax.device_get(encode(params, *jax.device_put((ids[texts], eot[texts]), place.split)))
    yield indices, {'texts': found[:len(indices) * size].reshape(len(indices), size, -1)}, [str(i) for i in indices]
