"""Multi-head attention with any two of q, k, v as its queries and keys.

For large images, moving whole attention maps through memory costs more than the arithmetic. On a CPU one batched
product is fastest up to 256 tokens. Beyond, it drops to a third of its rate, which a loop over heads with at most
8 MiB of map at a time avoids. There is no loop over the batch, so that a batch that is sharded over devices stays
sharded. Accelerators keep the batched product, in tiles only if the maps would not fit in memory.
"""

import functools

import jax
import jax.numpy as jnp

MODES = ('qk', 'qq', 'kk', 'vv')
_BATCHED_TOKENS_CPU = 256
_TILE_BYTES_CPU = 2 ** 23
_TILE_BYTES = 2 ** 30


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mode: str = 'qk', mask: jax.Array | None = None) -> jax.Array:
  """Returns softmax(a b^T / sqrt d) v with (a, b) named by `mode`, [B, N, H, d].

  Args:
    q, k, v: [B, N, H, d]; for 'qk' without a mask, q may have fewer tokens.
    mode: 'qk' for CLIP's own attention, 'vv' for DPAM's (AnomalyCLIP, arXiv 2310.18961, sec. 3.3), 'qq' or 'kk'.
    mask: [N, N] bool, True if a query (row) may read a key (column), at least one per row; None allows all.

  Raises:
    ValueError: an unknown mode.
  """
  if mode not in MODES:
    raise ValueError(f'attention mode={mode!r} is not one of {", ".join(MODES)}')
  by_name = {name: x.swapaxes(1, 2) for name, x in (('q', q), ('k', k), ('v', v))}  # [B, H, N, d]
  a, b = by_name[mode[0]] * q.shape[-1] ** -0.5, by_name[mode[1]]
  out = jax.lax.platform_dependent(a, b, by_name['v'], mask, cpu=_by_head, default=_by_rows)
  return out.swapaxes(1, 2)


def maps(q: jax.Array, k: jax.Array, v: jax.Array) -> dict[str, jax.Array]:
  """Returns the attention maps {mode: [B, N, N]} of all MODES, from each token (row) to every other, mean over heads.

  For figures such as AnomalyCLIP's (arXiv 2310.18961, fig. 3). Heads are computed one at a time, to save memory.
  """
  by_name = {name: x.transpose(2, 0, 1, 3).astype(jnp.float32) for name, x in (('q', q), ('k', k), ('v', v))}

  def mean_over_heads(a, b):
    weights = lambda a, b: jax.nn.softmax(jnp.einsum('bnd,bmd->bnm', a, b) * q.shape[-1] ** -0.5, axis=-1)
    return jax.lax.fori_loop(0, len(a), lambda h, total: total + weights(a[h], b[h]) / len(a),
                             jnp.zeros((*a.shape[1:3], b.shape[2])))

  return {mode: mean_over_heads(by_name[mode[0]], by_name[mode[1]]) for mode in MODES}


def _by_head(a, b, v, mask):
  batch, n = a.shape[0], a.shape[2]
  if n <= _BATCHED_TOKENS_CPU:
    return _attend(a, b, v, mask)
  tiles = -(-4 * batch * n * n // _TILE_BYTES_CPU)
  a, b, v = (x.swapaxes(0, 1) for x in (a, b, v))  # [H, B, N, d]
  out = jax.lax.map(lambda abv: _tiled(*abv, mask, tiles), (a, b, v))
  return out.swapaxes(0, 1)


def _by_rows(a, b, v, mask):
  batch, heads, n, _ = a.shape
  return _tiled(a, b, v, mask, -(-4 * batch * heads * n * n // _TILE_BYTES))


def _tiled(a, b, v, mask, tiles):
  """Returns _attend computed in `tiles` nearly equal tiles of queries, one after another."""
  if tiles == 1:
    return _attend(a, b, v, mask)
  n = a.shape[-2]
  rows = -(-n // tiles)
  cut = functools.partial(_cut, tiles=tiles, rows=rows)
  masks = None if mask is None else cut(mask)
  out = jax.lax.map(lambda tile: _attend(tile[0], b, v, tile[1]), (cut(a), masks))
  out = jnp.moveaxis(out, 0, -3)
  return out.reshape(*out.shape[:-3], tiles * rows, out.shape[-1])[..., :n, :]


def _cut(x, tiles, rows):
  """Returns x [..., N, M] as [tiles, ..., rows, M], with the last tile padded with ones.

  Ones, not zeros: a mask row of False would give NaN, which the result drops but gradients do not.
  """
  x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, tiles * rows - x.shape[-2]), (0, 0)], constant_values=1)
  return jnp.moveaxis(x.reshape(*x.shape[:-2], tiles, rows, x.shape[-1]), -3, 0)


def _attend(a, b, v, mask):
  scores = jnp.einsum('...nd,...md->...nm', a, b, preferred_element_type=jnp.float32)
  if mask is not None:
    scores = jnp.where(mask, scores, -jnp.inf)
  # Dividing after the product with v touches N x d numbers instead of N x N.
  weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
  out = jnp.einsum('...nm,...md->...nd', weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
  return (out / weights.sum(-1, keepdims=True)).astype(v.dtype)
