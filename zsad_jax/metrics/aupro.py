"""Per-region overlap: exact AUPRO and the thresholded variant behind the published ZSAD tables.

PRO at a threshold is the mean over all ground-truth regions, of all images of a category, of the covered
fraction; the false-positive rate is pooled over all normal pixels (Bergmann et al., IJCV 2021, sec. 5.2).
"""

import numpy as np
from scipy import ndimage

from zsad_jax.metrics.value import Undefined

STRUCTURES = {4: ndimage.generate_binary_structure(2, 1), 8: ndimage.generate_binary_structure(2, 2)}


def regions(mask: np.ndarray, connectivity: int = 8) -> tuple[np.ndarray, np.ndarray]:
  """Region number [P] of each set pixel of mask [H, W], row-major, from 0, and the region sizes [R].

  Args:
    mask: bool, at least one pixel set.
    connectivity: 8 counts diagonal neighbours as one region, 4 does not.
  """
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  # Most defects are small: labelling only around them is several times faster.
  box = mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
  labelled, count = ndimage.label(box, STRUCTURES[connectivity])
  inside = labelled[box] - 1
  return inside, np.bincount(inside, minlength=count)


def area_won(above: np.ndarray, level: np.ndarray, limit: float) -> np.ndarray:
  """Fraction [K] of the area up to the FPR limit that covering one anomalous pixel wins.

  A pixel is covered once the threshold falls to its score, that is from `level` false positives on. Its
  coverage rises linearly from `above`, where normal pixels tie with it, so the integral of PRO is exact.

  Args:
    above, level: [K] normal pixels strictly above, and at or above, the pixel's score.
    limit: the FPR limit times the number of normal pixels.
  """
  start, full = np.minimum(above, limit), np.minimum(level, limit)
  return (limit - full + (full - start) ** 2 / (2 * np.maximum(level - above, 1))) / limit


def aupro_200_thresholds(positives, region, sizes, negatives, dtype, *, steps: int = 200, limit: float = 0.3) -> float:
  """AUPRO as the official AnomalyCLIP code integrates it (metrics.py:cal_pro_score), from sorted pixels.

  Thresholds arange(min, max, (max - min) / 200) with bounds and step in the maps' own dtype, as numpy >= 2
  runs it; prediction map > threshold; points with FPR < 0.3 kept, their FPR rescaled to [0, 1]; trapezoids
  without anchor or interpolation. Unlike the exact AUPRO it changes under a monotone transform of the maps,
  which may leave few points below 0.3.

  Args:
    positives, region: [P] anomalous scores, ascending, and the region each belongs to.
    sizes: [R] pixels per region.
    negatives: [N] normal scores, ascending.
    dtype: of the maps, before any widening.
    steps, limit: the official 200 and 0.3.

  Raises:
    Undefined: where the official code fails or gives NaN.
  """
  low = min(positives[0], negatives[0]).astype(dtype)
  high = max(positives[-1], negatives[-1]).astype(dtype)
  with np.errstate(over='ignore'):
    step = (high - low) / steps
  if not 0 < step < np.inf:
    raise Undefined(f'the range of the maps, {low} to {high}, has no {steps} steps in {np.dtype(dtype)}')
  thresholds = _rounded_down(np.arange(low, high, step), negatives.dtype)
  fpr = (negatives.size - np.searchsorted(negatives, thresholds, 'right')) / negatives.size
  kept = fpr < limit
  if not kept.any():
    raise Undefined(f'no threshold has a false-positive rate below {limit}')
  fpr, thresholds = fpr[kept], thresholds[kept]
  if fpr[0] == fpr[-1]:
    raise Undefined(f'all thresholds with a false-positive rate below {limit} share one rate, {fpr[0]:.6g}')
  fpr = (fpr - fpr.min()) / (fpr.max() - fpr.min())
  return float(-np.trapezoid(overlap(positives, region, sizes, thresholds), fpr))


def _rounded_down(thresholds, dtype) -> np.ndarray:
  """The same cuts in the scores' dtype: score > t holds for the same scores, and the search copies none."""
  if dtype.kind != 'f':
    return np.floor(thresholds)
  with np.errstate(over='ignore'):
    rounded = thresholds.astype(dtype)
  return np.where(rounded > thresholds, np.nextafter(rounded, dtype.type(-np.inf)), rounded)


def overlap(positives, region, sizes, thresholds, side: str = 'right') -> np.ndarray:
  """PRO [T] of `score > threshold` ('left': >=) at ascending thresholds: each pixel is counted once, in its interval.

  Arguments as for `aupro_200_thresholds`.
  """
  bounds = np.append(np.searchsorted(positives, thresholds, side), positives.size)
  covered = np.zeros(sizes.size, np.int64)
  pro = np.empty(thresholds.size)
  for t in reversed(range(thresholds.size)):
    covered += np.bincount(region[bounds[t]:bounds[t + 1]], minlength=sizes.size)
    pro[t] = (covered / sizes).mean()
  return pro
