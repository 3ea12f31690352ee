"""Nearest neighbours in a bank of features: exact, by matrix products over a bounded number of queries at a time."""

import jax
import jax.numpy as jnp

METRICS = ('cosine', 'euclidean')


def nearest(queries, bank, *, k=1, metric='cosine', chunk=1024):
  """Returns (distances [N, k] ascending, indices [N, k] int32) of the k rows of `bank` nearest to each query.

  Beside its arguments it holds chunk * M distances at a time, and chunk * k * D numbers with 'euclidean'. Computes
  in float32 or wider.

  Args:
    queries: [N, D].
    bank: [M, D], M >= k.
    k: how many neighbours.
    metric: 'cosine', 1 - cos, of which a zero vector has 1 to everything; or 'euclidean'.
    chunk: queries compared at once; see chunk_rows.

  Raises:
    ValueError: an unknown metric, shapes that do not fit, a k beyond the bank, a chunk below 1.
  """
  _check(queries, bank, k, metric, chunk)
  wide = jnp.promote_types(jnp.promote_types(queries.dtype, bank.dtype), jnp.float32)
  queries, bank = queries.astype(wide), bank.astype(wide)
  if metric == 'cosine':
    queries, bank = _unit(queries), _unit(bank)
  else:
    # Distances do not see the shift, rounding does: far from the origin |q|^2 + |b|^2 - 2 q.b cancels.
    centre = jnp.mean(bank, axis=0, keepdims=True)
    queries, bank = queries - centre, bank - centre
    squares = jnp.sum(bank * bank, axis=1)

  def one(query):
    dots = jnp.matmul(bank, query, precision='highest')  # [M]
    if metric == 'cosine':
      distances, indices = _smallest(1 - dots, k)
      return jnp.maximum(distances, 0), indices
    _, indices = _smallest(squares - 2 * dots, k)
    # Once more from the rows themselves: a query that is in the bank has distance 0, and never NaN.
    distances = jnp.linalg.norm(bank[indices] - query[None], axis=1)
    return jax.lax.sort((distances, indices), num_keys=1)

  return jax.lax.map(one, queries, batch_size=chunk)


def nearest_by_category(queries, banks, category, *, k=1, metric='cosine', chunk=1024):
  """Returns (distances [B, N, k], indices [B, N, k]) of `nearest` in the bank of each image's category.

  Holds B copies of a bank and B times what `nearest` holds, split as B is split over devices.

  Args:
    queries: [B, N, D].
    banks: [C, M, D].
    category: [B], the image's position in 0..C - 1.
    k, metric, chunk: see nearest.
  """
  if queries.ndim != 3 or banks.ndim != 3:
    raise ValueError(f'queries {queries.shape} and banks {banks.shape} are not [B, N, D] and [C, M, D]')
  return jax.vmap(lambda rows, c: nearest(rows, banks[c], k=k, metric=metric, chunk=chunk))(queries, category)


def chunk_rows(bank_rows, mib):
  """Returns how many queries of one image keep their float32 distances to `bank_rows` rows within `mib` MiB; >= 1."""
  if not mib > 0:
    raise ValueError(f'a budget of {mib} MiB holds no distances; it must be positive')
  return max(1, int(mib * 2 ** 20) // (4 * bank_rows))


def _check(queries, bank, k, metric, chunk):
  if metric not in METRICS:
    raise ValueError(f'metric {metric!r} is not one of {", ".join(METRICS)}')
  if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
    raise ValueError(f'queries {queries.shape} and bank {bank.shape} are not [N, D] and [M, D]')
  if not 1 <= k <= bank.shape[0]:
    raise ValueError(f'k {k} is not in 1..{bank.shape[0]}, the rows of the bank')
  if chunk < 1:
    raise ValueError(f'chunk {chunk} is not 1 or more')


def _smallest(values, k):
  """(values [k] ascending, indices [k] int32) of the k smallest of values [M]."""
  if k == 1:
    index = jnp.argmin(values)[None].astype(jnp.int32)
    return values[index], index
  negated, indices = jax.lax.top_k(-values, k)
  return -negated, indices.astype(jnp.int32)


def _unit(x):
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=1, keepdims=True), 1e-24))
