"""Bootstrap intervals: how much a metric varies if other images, or other categories, had been tested.

Percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap, ch. 13), with a seed. For image metrics,
the normal and the anomalous images of each category are resampled, each class in its own number, so that no category
loses a class; the categories stay. Pixels of one image are not independent, so for pixel metrics only the categories
are resampled: such an interval shows how much the mean depends on the choice of categories.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from zsad_jax.metrics.category import IMAGE_METRICS
from zsad_jax.metrics.ranking import check_binary, check_finite, check_rule, mean_precision, sortable
from zsad_jax.metrics.value import missing_class

CELLS = 1 << 20  # of the table replicates x images in memory at once


class Interval(NamedTuple):
  """The interval that contains a share `level` of all replicates.

  Attributes:
    low, high: fractions; None if undefined.
    reason: why it is undefined; '' if it is defined.
  """
  low: float | None
  high: float | None
  reason: str = ''


def over_images(
  scores: Mapping[str, tuple[ArrayLike, ArrayLike]], *, aupr: str = 'step', level: float = 0.95,
  replicates: int = 1000, seed: int = 0,
) -> tuple[dict[str, dict[str, Interval]], dict[str, Interval]]:
  """Returns intervals of the image metrics, with resampled images.

  Args:
    scores: {category: (labels [n], scores [n] or [S, n])}. For S seeds, whose metrics are averaged, the same images
      are resampled. A category without both classes has no interval and is in no mean.
    aupr: rule for image AP, see `ranking.average_precision`.
    level: share of the replicates inside the interval, in (0, 1).
    replicates: number of resamplings.
    seed: of the resampling.

  Returns:
    {category: {metric: Interval}}, and {metric: Interval} of the mean over categories.

  Raises:
    ValueError: shapes that differ, labels other than 0 and 1, NaN or infinite scores, or a level or number of
      replicates out of range.
  """
  check_rule(aupr)
  _check(level, replicates)
  rows, resampled = {}, []
  for number, (category, (labels, values)) in enumerate(scores.items()):
    labels, values = np.asarray(labels), np.atleast_2d(sortable(values))
    if labels.ndim != 1 or values.shape[1:] != labels.shape:
      raise ValueError(f'{category}: labels must have shape [n] and scores [n] or [S, n]; got {labels.shape} and '
                       f'{values.shape}')
    check_binary(labels, f'the labels of {category}')
    check_finite(values, f'the scores of {category}')
    if reason := missing_class(int(np.sum(labels == 1)), int(np.sum(labels == 0)), 'images'):
      rows[category] = dict.fromkeys(IMAGE_METRICS, Interval(None, None, reason))
      continue
    resampled.append(_replicates(labels, values, replicates, np.random.default_rng((seed, number)), aupr))
    rows[category] = _intervals(resampled[-1], level)
  if not resampled:
    return rows, dict.fromkeys(IMAGE_METRICS, Interval(None, None, 'no category has normal and anomalous images'))
  return rows, _intervals(np.mean(resampled, axis=0), level)


def over_categories(
  values: Mapping[str, float | None], *, level: float = 0.95, replicates: int = 1000, seed: int = 0,
) -> Interval:
  """Returns the Interval of the mean of one metric, with resampled categories.

  Args:
    values: {category: the metric, None if undefined}.
    level, replicates, seed: as for `over_images`.
  """
  _check(level, replicates)
  defined = np.array([value for value in values.values() if value is not None])
  if defined.size < 2:
    return Interval(None, None, 'fewer than two categories to resample')
  indices = np.random.default_rng(seed).integers(0, defined.size, (replicates, defined.size))
  return _interval(defined[indices].mean(1), level)


def _check(level: float, replicates: int) -> None:
  if not 0 < level < 1:
    raise ValueError(f'level={level} must lie in (0, 1)')
  if replicates < 1:
    raise ValueError(f'replicates={replicates} must be at least 1')


def _intervals(resampled: np.ndarray, level: float) -> dict[str, Interval]:
  return {metric: _interval(values, level) for metric, values in zip(IMAGE_METRICS, resampled)}


def _interval(values: np.ndarray, level: float) -> Interval:
  low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]).tolist()
  return Interval(low, high)


def _replicates(labels: np.ndarray, scores: np.ndarray, replicates: int, rng: np.random.Generator, aupr: str
                ) -> np.ndarray:
  """Returns IMAGE_METRICS [3, replicates] of images resampled within each class, means over the S seeds of scores."""
  rows, blocks = max(1, CELLS // labels.size), []
  for start in range(0, replicates, rows):
    times = np.empty((min(rows, replicates - start), labels.size), np.int64)  # how often each image is sampled
    for members in (np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)):
      times[:, members] = rng.multinomial(members.size, np.full(members.size, 1 / members.size), len(times))
    blocks.append(np.mean([_repeated_metrics(times, labels, one, aupr) for one in scores], axis=0))
  return np.concatenate(blocks, axis=1)


def _repeated_metrics(times: np.ndarray, labels: np.ndarray, scores: np.ndarray, aupr: str) -> np.ndarray:
  """Returns IMAGE_METRICS [3, rows] of images [n] repeated times [rows, n]."""
  order = np.argsort(-scores.astype(np.float64), kind='stable')
  last = np.append(np.flatnonzero(np.diff(scores[order])), scores.size - 1)  # of each group of equal scores
  tp = np.cumsum(times[:, order] * labels[order], axis=1)[:, last]
  fp = np.cumsum(times[:, order] * (1 - labels[order]), axis=1)[:, last]
  positives, negatives = tp[:, -1], fp[:, -1]
  higher, above = (np.pad(counts, ((0, 0), (1, 0)))[:, :-1] for counts in (tp, fp))
  auroc = np.sum((fp - above) * (tp + higher), axis=1) / (2 * positives * negatives)
  safe_fp = np.where(tp + fp > 0, fp, 1)  # avoids 0 / 0; such a point adds no recall
  ap = np.sum((tp - higher) * mean_precision(aupr, tp, safe_fp, higher, above), axis=1) / positives
  f1max = np.max(2 * tp / (tp + fp + positives[:, None]), axis=1)
  return np.stack([auroc, ap, f1max])
