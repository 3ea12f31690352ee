"""Windows of WinCLIP (arXiv 2303.14814): their scores as maps of patches, and distances from normal references."""

import jax.numpy as jnp
import numpy as np

from zsad_jax.ops import maps, neighbours

MEANS = ('harmonic', 'arithmetic')
TINY = 1e-30  # 1 / TINY is finite in float32; a smaller score counts as this, and so any mean with it as 0


def cover_mean(scores, grid, side, mean='harmonic'):
  """Returns for every patch the mean score of the windows that cover it, [B, G, G].

  Harmonic: M[p] = n[p] / sum_{w covers p} 1 / s_w, with n[p] = 1 in a corner and side^2 inside, as nothing is padded.
  The 0/1 matrix of which window covers which patch is the product of one such matrix along each axis.

  Args:
    scores: [B, n], at least 0, windows in row-major order.
    grid: patches a side of the image.
    side: patches a side of a window.
    mean: one of MEANS.
  """
  places = grid - side + 1
  offset = np.arange(grid)[:, None] - np.arange(places)[None]
  axis = ((offset >= 0) & (offset < side)).astype(np.float32)  # [G, places]
  count = axis.sum(1)[:, None] * axis.sum(1)[None]
  total = lambda x: jnp.einsum('gi,bij,hj->bgh', axis, x.reshape(-1, places, places), axis, precision='highest')
  if mean == 'harmonic':
    return count[None] / total(1 / jnp.maximum(scores, TINY))
  return total(scores) / count[None]


def pooled(references):
  """Returns every category's reference features, all images and places pooled, {name: [C, M, E or D]}.

  `windows` {side: [C, K n, E]} and `patches` [C, K N, D], of reference features with leading axes [C, K].
  """
  flat = lambda x: x.reshape(x.shape[0], -1, x.shape[-1])
  patches, = references.taps.values()
  return {'windows': {side: flat(x) for side, x in references.windows.items()}, 'patches': flat(patches)}


def distances(memory, features, category, grid, mean='harmonic', mib=64.0):
  """Returns M_ref [B, G, G]: the mean over window sizes and patch tokens of d = min_r (1 - cos(f, r)) / 2.

  Args:
    memory: as from pooled.
    features: windows {side: [B, n, E]} and one tap of patch tokens [B, N, D].
    category: [B], rows of the memory.
    grid: patches a side of the image.
    mean: over the windows that cover a patch; see cover_mean.
    mib: MiB of distances held at once, for one image.
  """
  def nearest(x, rows):
    chunk = neighbours.chunk_rows(rows.shape[1], mib)
    return neighbours.nearest_by_category(x, rows, category, chunk=chunk)[0][..., 0] / 2

  patches, = features.taps.values()
  found = [cover_mean(nearest(x, memory['windows'][side]), grid, side, mean)
           for side, x in features.windows.items()]
  return sum(found, maps.square(nearest(patches, memory['patches']))) / (len(found) + 1)


def mean_map(x, kind):
  """Returns the mean over the first axis, of one kind of MEANS."""
  return 1 / (1 / jnp.maximum(x, TINY)).mean(0) if kind == 'harmonic' else x.mean(0)
