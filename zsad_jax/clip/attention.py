"""Attention that can be read another way: any two of q, k, v may form the map.

The maps of a large image stream through memory unless they are cut up, and then cost more than the arithmetic.
Measured on a CPU: up to 256 tokens all maps in one batched product are fastest; beyond, that product falls to a
third of its rate, and a loop over heads with at most 8 MiB of map alive keeps it. Batch is never looped over, so
that a batch split over devices stays split. Accelerators keep the batched product and cut only what would not
fit in memory.
"""

import functools

import jax
import jax.numpy as jnp

MODES = ('qk', 'qq', 'kk', 'vv')
_BATCHED_TOKENS_CPU = 256
_TILE_BYTES_CPU = 2 ** 23
_TILE_BYTES = 2 ** 30


def attend(q, k, v, mode='qk', mask=None):
  """Returns softmax(a b^T / sqrt d) v with (a, b) named by `mode`, [B, N, H, d].

  Args:
    q, k, v: [B, N, H, d]; for 'qk' without a mask, q may have fewer tokens.
    mode: 'qk' is CLIP's own attention, 'vv' DPAM's (AnomalyCLIP, arXiv 2310.18961, sec. 3.3), or 'qq', 'kk'.
    mask: [N, N] bool, True where a query (row) may read a key (column), at least one a row; None reads all.

  Raises:
    ValueError: an unknown mode.
  """
  if mode not in MODES:
    raise ValueError(f'attention mode {mode!r} is not one of {MODES}')
  read = {name: x.swapaxes(1, 2) for name, x in (('q', q), ('k', k), ('v', v))}  # [B, H, N, d]
  a, b = read[mode[0]] * q.shape[-1] ** -0.5, read[mode[1]]
  out = jax.lax.platform_dependent(a, b, read['v'], mask, cpu=_by_head, default=_by_rows)
  return out.swapaxes(1, 2)


def maps(q, k, v):
  """Returns {mode: [B, N, N]} of all MODES: the weights that a token (row) gives to each, the mean over heads.

  To be looked at (AnomalyCLIP, arXiv 2310.18961, fig. 3). One head is computed at a time.
  """
  read = {name: x.transpose(2, 0, 1, 3).astype(jnp.float32) for name, x in (('q', q), ('k', k), ('v', v))}

  def weights(a, b):
    one = lambda ab: jax.nn.softmax(jnp.einsum('bnd,bmd->bnm', *ab) * q.shape[-1] ** -0.5, axis=-1)
    return jax.lax.fori_loop(0, len(a), lambda h, total: total + one((a[h], b[h])) / len(a),
                             jnp.zeros((*a.shape[1:3], b.shape[2])))

  return {mode: weights(read[mode[0]], read[mode[1]]) for mode in MODES}


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
  """Returns _attend with the queries cut into `tiles` nearly equal runs, one after another."""
  if tiles == 1:
    return _attend(a, b, v, mask)
  n = a.shape[-2]
  rows = -(-n // tiles)
  cut = functools.partial(_cut, tiles=tiles, rows=rows)
  masks = None if mask is None else cut(mask)
  out = jax.lax.map(lambda run: _attend(run[0], b, v, run[1]), (cut(a), masks))
  out = jnp.moveaxis(out, 0, -3)
  return out.reshape(*out.shape[:-3], tiles * rows, out.shape[-1])[..., :n, :]


def _cut(x, tiles, rows):
  """Returns x [..., N, M] as [tiles, ..., rows, M], the last run filled up with ones.

  Ones, not zeros: a mask row of False would make NaN, dropped from the result but not from gradients.
  """
  x = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, tiles * rows - x.shape[-2]), (0, 0)], constant_values=1)
  return jnp.moveaxis(x.reshape(*x.shape[:-2], tiles, rows, x.shape[-1]), -3, 0)


def _attend(a, b, v, mask):
  scores = jnp.einsum('...nd,...md->...nm', a, b, preferred_element_type=jnp.float32)
  if mask is not None:
    scores = jnp.where(mask, scores, -jnp.inf)
  # The division moves behind the product with v: it then touches N x d numbers, not N x N.
  weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
  out = jnp.einsum('...nm,...md->...nd', weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
  return (out / weights.sum(-1, keepdims=True)).astype(v.dtype)
