"""WinCLIP's windows (arXiv 2303.14814): patch maps from window scores, and distances from normal references."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.ops import maps, neighbours

MEANS = ('harmonic', 'arithmetic')
TINY = 1e-30  # smallest score whose inverse is finite in float32; a harmonic mean with it is 0


def cover_mean(scores: jax.Array, grid: int, side: int, mean: str = 'harmonic') -> jax.Array:
  """Returns, for every patch, the mean score of the windows that cover it, [B, G, G].

  Harmonic: M[p] = n[p] / sum_{w covers p} 1 / s_w, with n[p] = 1 in a corner and side^2 inside, as nothing is padded.
  The 0/1 matrix of which window covers which patch is a product of one such matrix along each axis.

  Args:
    scores: [B, n], at least 0, windows in row-major order.
    grid: patches per side of the image.
    side: patches per side of a window.
    mean: one of MEANS.
  """
  positions = grid - side + 1
  offset = np.arange(grid)[:, None] - np.arange(positions)[None]
  axis = ((offset >= 0) & (offset < side)).astype(np.float32)  # [G, positions]
  count = axis.sum(1)[:, None] * axis.sum(1)[None]
  total = lambda x: jnp.einsum('gi,bij,hj->bgh', axis, x.reshape(-1, positions, positions), axis, precision='highest')
  if mean == 'harmonic':
    return count[None] / total(1 / jnp.maximum(scores, TINY))
  return total(scores) / count[None]


def pooled(references: Any) -> dict[str, Any]:
  """Returns the memory bank of every category: the features of all its references and positions.

  Args:
    references: Features with leading axes [C, K], with windows and one tap of patch tokens.

  Returns:
    'windows' {side: [C, K n, E]} and 'patches' [C, K N, D].
  """
  flat = lambda x: x.reshape(x.shape[0], -1, x.shape[-1])
  patches, = references.taps.values()
  return {'windows': {side: flat(x) for side, x in references.windows.items()}, 'patches': flat(patches)}


def distances(memory: Mapping[str, Any], features: Any, category: jax.Array, grid: int, mean: str = 'harmonic',
              mib: float = 64.0) -> jax.Array:
  """Returns M_ref [B, G, G]: the mean over window sizes and patch tokens of d = min_r (1 - cos(f, r)) / 2.

  Args:
    memory: memory bank, from `pooled`.
    features: Features with windows {side: [B, n, E]} and one tap of patch tokens [B, N, D].
    category: [B], rows of the memory bank.
    grid: patches per side of the image.
    mean: over the windows that cover a patch, one of MEANS; see `cover_mean`.
    mib: MiB of distances in memory at once, for one image.
  """
  def nearest(x: jax.Array, rows: jax.Array) -> jax.Array:
    chunk = neighbours.chunk_rows(rows.shape[1], mib)
    return neighbours.nearest_by_category(x, rows, category, chunk=chunk)[0][..., 0] / 2

  patches, = features.taps.values()
  window_maps = [cover_mean(nearest(x, memory['windows'][side]), grid, side, mean)
                 for side, x in features.windows.items()]
  return sum(window_maps, maps.square(nearest(patches, memory['patches']))) / (len(window_maps) + 1)


def mean_map(x: jax.Array, kind: str) -> jax.Array:
  """Returns the mean of x over its first axis; `kind` is one of MEANS."""
  return 1 / (1 / jnp.maximum(x, TINY)).mean(0) if kind == 'harmonic' else x.mean(0)
