"""Exact nearest neighbours in a memory bank, with a bounded number of queries at a time."""

import jax
import jax.numpy as jnp

METRICS = ('cosine', 'euclidean')


def nearest(queries: jax.Array, bank: jax.Array, *, k: int = 1, metric: str = 'cosine', chunk: int = 1024
            ) -> tuple[jax.Array, jax.Array]:
  """Finds the k rows of a memory bank nearest to each query.

  Computes in float32 or wider. In addition to its arguments, memory contains chunk * M distances at a time, and chunk *
  k * D numbers for 'euclidean'.

  Args:
    queries: [N, D].
    bank: [M, D], M >= k.
    k: number of neighbours.
    metric: 'cosine', 1 - cos, where a zero vector has distance 1 to everything; or 'euclidean'.
    chunk: queries compared at once; see `chunk_rows`.

  Returns:
    Distances [N, k], ascending, and row indices [N, k] int32.

  Raises:
    ValueError: an unknown metric, shapes that do not match, k > M, or chunk < 1.
  """
  _check(queries, bank, k, metric, chunk)
  wide = jnp.promote_types(jnp.promote_types(queries.dtype, bank.dtype), jnp.float32)
  queries, bank = queries.astype(wide), bank.astype(wide)
  if metric == 'cosine':
    queries, bank = _unit(queries), _unit(bank)
  else:
    # The shift does not change distances but avoids cancellation in |q|^2 + |b|^2 - 2 q.b far from the origin.
    centre = jnp.mean(bank, axis=0, keepdims=True)
    queries, bank = queries - centre, bank - centre
    squares = jnp.sum(bank * bank, axis=1)

  def of_query(query):
    dots = jnp.matmul(bank, query, precision='highest')  # [M]
    if metric == 'cosine':
      distances, indices = _smallest(1 - dots, k)
      return jnp.maximum(distances, 0), indices
    _, indices = _smallest(squares - 2 * dots, k)
    # Again from the rows themselves: a query that is in the bank has distance 0, never NaN.
    distances = jnp.linalg.norm(bank[indices] - query[None], axis=1)
    return jax.lax.sort((distances, indices), num_keys=1)

  return jax.lax.map(of_query, queries, batch_size=chunk)


def nearest_by_category(queries: jax.Array, banks: jax.Array, category: jax.Array, *, k: int = 1,
                        metric: str = 'cosine', chunk: int = 1024) -> tuple[jax.Array, jax.Array]:
  """Applies `nearest` to each image with the memory bank of its category.

  Memory contains B copies of a bank and B times the arrays of `nearest`, sharded as B is sharded over devices.

  Args:
    queries: [B, N, D].
    banks: [C, M, D].
    category: [B], in 0..C - 1.
    k, metric, chunk: as for `nearest`.

  Returns:
    Distances [B, N, k], ascending, and row indices [B, N, k] int32.
  """
  if queries.ndim != 3 or banks.ndim != 3:
    raise ValueError(f'queries and banks must have shapes [B, N, D] and [C, M, D]; got {queries.shape} and '
                     f'{banks.shape}')
  return jax.vmap(lambda rows, c: nearest(rows, banks[c], k=k, metric=metric, chunk=chunk))(queries, category)


def chunk_rows(bank_rows: int, mib: float) -> int:
  """Returns the number of queries, at least 1, whose float32 distances to `bank_rows` rows fit into `mib` MiB."""
  if not mib > 0:
    raise ValueError(f'the memory for distances is {mib} MiB; it must be positive')
  return max(1, int(mib * 2 ** 20) // (4 * bank_rows))


def _check(queries: jax.Array, bank: jax.Array, k: int, metric: str, chunk: int) -> None:
  if metric not in METRICS:
    raise ValueError(f'metric={metric!r} is not one of {", ".join(METRICS)}')
  if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
    raise ValueError(f'queries and bank must have shapes [N, D] and [M, D]; got {queries.shape} and {bank.shape}')
  if not 1 <= k <= bank.shape[0]:
    raise ValueError(f'k={k} must be in 1..{bank.shape[0]}, the number of rows of the bank')
  if chunk < 1:
    raise ValueError(f'chunk={chunk} must be at least 1')


def _smallest(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """Returns the k smallest of values [M], ascending, and their indices [k] int32."""
  if k == 1:
    index = jnp.argmin(values)[None].astype(jnp.int32)
    return values[index], index
  negated, indices = jax.lax.top_k(-values, k)
  return -negated, indices.astype(jnp.int32)


def _unit(x: jax.Array) -> jax.Array:
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=1, keepdims=True), 1e-24))
