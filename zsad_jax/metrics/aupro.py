"""Per-region overlap (PRO): the parts of exact AUPRO, and the 200-threshold AUPRO of the published ZSAD tables.

PRO at a threshold is the mean over all ground-truth regions, of all images of a category, of the covered fraction; the
false-positive rate is over all normal pixels of the category (Bergmann et al., IJCV 2021, sec. 5.2).
"""

from typing import Literal

import numpy as np
from numpy.typing import DTypeLike
from scipy import ndimage

from zsad_jax.metrics.value import Undefined

STRUCTURES = {4: ndimage.generate_binary_structure(2, 1), 8: ndimage.generate_binary_structure(2, 2)}


def regions(mask: np.ndarray, connectivity: int = 8) -> tuple[np.ndarray, np.ndarray]:
  """Labels the connected regions of a mask.

  Args:
    mask: [H, W] bool with at least one True.
    connectivity: 8 joins diagonal neighbours, 4 does not.

  Returns:
    The region, from 0, of each True pixel [P] in row-major order, and the sizes of the regions [R] in pixels.
  """
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  # Most defects are small: labelling only their bounding box is several times as fast.
  box = mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
  labelled, count = ndimage.label(box, STRUCTURES[connectivity])
  region = labelled[box] - 1
  return region, np.bincount(region, minlength=count)


def pixel_area(above: np.ndarray, fp: np.ndarray, limit: float) -> np.ndarray:
  """Returns the share [K] of the area up to the FPR limit that covering one anomalous pixel contributes.

  A pixel is covered once the threshold falls to its score, that is, from `fp` false positives on. Its coverage rises
  linearly from `above`, because normal pixels of the same score tie with it, so the integral of PRO is exact.

  Args:
    above, fp: [K], normal pixels above, and at or above, the pixel's score.
    limit: the FPR limit times the number of normal pixels.
  """
  start, end = np.minimum(above, limit), np.minimum(fp, limit)
  return (limit - end + (end - start) ** 2 / (2 * np.maximum(fp - above, 1))) / limit


def aupro_200_thresholds(positives: np.ndarray, region: np.ndarray, sizes: np.ndarray, negatives: np.ndarray,
                         dtype: DTypeLike, *, steps: int = 200, limit: float = 0.3) -> float:
  """Returns AUPRO as the official AnomalyCLIP code integrates it (metrics.py:cal_pro_score), from sorted pixels.

  Thresholds arange(min, max, (max - min) / 200), with bounds and step in the maps' own dtype, as numpy >= 2 computes
  them; prediction map > threshold; only points with FPR < 0.3, their FPR rescaled to [0, 1]; trapezoids without an
  anchor or interpolation. Unlike exact AUPRO it changes under a monotone transform of the maps, which may leave few
  points below 0.3.

  Args:
    positives, region: [P], anomalous scores, ascending, and the region of each.
    sizes: [R], pixels per region.
    negatives: [N], normal scores, ascending.
    dtype: of the maps, before any widening.
    steps, limit: the official 200 and 0.3.

  Raises:
    Undefined: the official code fails or returns NaN.
  """
  low = min(positives[0], negatives[0]).astype(dtype)
  high = max(positives[-1], negatives[-1]).astype(dtype)
  with np.errstate(over='ignore'):
    step = (high - low) / steps
  if not 0 < step < np.inf:
    raise Undefined(f'the range of the maps, {low} to {high}, has no {steps} steps in {np.dtype(dtype)}')
  thresholds = _rounded_down(np.arange(low, high, step), negatives.dtype)
  fpr = (negatives.size - np.searchsorted(negatives, thresholds, 'right')) / negatives.size
  below = fpr < limit
  if not below.any():
    raise Undefined(f'no threshold has a false-positive rate below {limit}')
  fpr, thresholds = fpr[below], thresholds[below]
  if fpr[0] == fpr[-1]:
    raise Undefined(f'all thresholds with a false-positive rate below {limit} share one rate, {fpr[0]:.6g}')
  fpr = (fpr - fpr.min()) / (fpr.max() - fpr.min())
  return float(-np.trapezoid(overlap(positives, region, sizes, thresholds), fpr))


def _rounded_down(thresholds: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """Returns thresholds in the scores' dtype that the same scores exceed, so that the search need not copy scores."""
  if dtype.kind != 'f':
    return np.floor(thresholds)
  with np.errstate(over='ignore'):
    rounded = thresholds.astype(dtype)
  return np.where(rounded > thresholds, np.nextafter(rounded, dtype.type(-np.inf)), rounded)


def overlap(positives: np.ndarray, region: np.ndarray, sizes: np.ndarray, thresholds: np.ndarray,
            side: Literal['left', 'right'] = 'right') -> np.ndarray:
  """Returns PRO [T] at ascending thresholds [T]; every pixel is counted once, in its interval.

  Args:
    positives, region, sizes: as for `aupro_200_thresholds`.
    thresholds: [T].
    side: 'right' for score > threshold, 'left' for score >= threshold.
  """
  bounds = np.append(np.searchsorted(positives, thresholds, side), positives.size)
  covered = np.zeros(sizes.size, np.int64)
  pro = np.empty(thresholds.size)
  for t in reversed(range(thresholds.size)):
    covered += np.bincount(region[bounds[t]:bounds[t + 1]], minlength=sizes.size)
    pro[t] = (covered / sizes).mean()
  return pro
