"""Bootstrap intervals: how far a figure moves when other images, or other categories, might have been tested.

Percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap, ch. 13), seeded. Image metrics: within
each category the normal and the anomalous images are drawn anew, each as many as there are, so that a category never
loses a class; the categories stay. Pixels of one image are not independent, so for pixel metrics the categories are
drawn anew and nothing else: such an interval says how much the mean hangs on the choice of categories.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from zsad_jax.metrics.category import IMAGE_METRICS
from zsad_jax.metrics.ranking import check_binary, check_finite, check_rule, heights, ordered
from zsad_jax.metrics.value import one_class

CELLS = 1 << 20  # of the table replicates x images held at once


class Interval(NamedTuple):
  """Where a figure lies in the middle `level` of all replicates.

  Attributes:
    low, high: fractions, None where undefined.
    reason: why it is undefined; empty where it is defined.
  """
  low: float | None
  high: float | None
  reason: str = ''


def over_images(
  scores: Mapping[str, tuple], *, aupr: str = 'step', level: float = 0.95, replicates: int = 1000, seed: int = 0,
) -> tuple[dict[str, dict[str, Interval]], dict[str, Interval]]:
  """Returns ({category: {metric: Interval}}, {metric: Interval} of the mean over categories) of the image metrics.

  Args:
    scores: {category: (labels [n], scores [n] or [S, n])}; of S seeds, whose metrics are averaged, the same images
      are drawn. A category without both classes has no interval and enters no mean.
    aupr: rule for image AP, see ranking.average_precision.
    level: share of the replicates inside the interval, in (0, 1).
    replicates: how often images are drawn.
    seed: of the draws.

  Raises:
    ValueError: shapes that do not fit, labels not binary, NaN or infinite scores, a level or number out of range.
  """
  check_rule(aupr)
  _check(level, replicates)
  rows, drawn = {}, []
  for number, (category, (labels, values)) in enumerate(scores.items()):
    labels, values = np.asarray(labels), np.atleast_2d(ordered(values))
    if labels.ndim != 1 or values.shape[1:] != labels.shape:
      raise ValueError(f'{category}: labels [n] and scores [n] or [S, n] are needed, not {labels.shape} and '
                       f'{values.shape}')
    check_binary(labels, f'the labels of {category}')
    check_finite(values, f'the scores of {category}')
    if reason := one_class(int(np.sum(labels == 1)), int(np.sum(labels == 0)), 'images'):
      rows[category] = dict.fromkeys(IMAGE_METRICS, Interval(None, None, reason))
      continue
    drawn.append(_replicates(labels, values, replicates, np.random.default_rng((seed, number)), aupr))
    rows[category] = _intervals(drawn[-1], level)
  if not drawn:
    return rows, dict.fromkeys(IMAGE_METRICS, Interval(None, None, 'no category has normal and anomalous images'))
  return rows, _intervals(np.mean(drawn, axis=0), level)


def over_categories(
  values: Mapping[str, float | None], *, level: float = 0.95, replicates: int = 1000, seed: int = 0,
) -> Interval:
  """Returns the Interval of the mean of one metric, of which the categories are drawn anew.

  Args:
    values: {category: the metric, None where undefined}.
    level, replicates, seed: as for `over_images`.
  """
  _check(level, replicates)
  known = np.array([value for value in values.values() if value is not None])
  if known.size < 2:
    return Interval(None, None, 'fewer than two categories to draw from')
  drawn = np.random.default_rng(seed).integers(0, known.size, (replicates, known.size))
  return Interval(*_quantiles(known[drawn].mean(1), level))


def _check(level, replicates):
  if not 0 < level < 1 or replicates < 1:
    raise ValueError(f'level is {level} and replicates is {replicates}; they must lie in (0, 1) and be at least 1')


def _intervals(drawn, level) -> dict[str, Interval]:
  return {metric: Interval(*_quantiles(column, level)) for metric, column in zip(IMAGE_METRICS, drawn)}


def _quantiles(values, level) -> list[float]:
  return np.quantile(values, [(1 - level) / 2, (1 + level) / 2]).tolist()


def _replicates(labels, scores, replicates, rng, aupr) -> np.ndarray:
  """IMAGE_METRICS [3, replicates] of images drawn anew from each class, means over the seeds scores [S, n] are of."""
  rows, found = max(1, CELLS // labels.size), []
  for start in range(0, replicates, rows):
    times = np.empty((min(rows, replicates - start), labels.size), np.int64)  # how often each image was drawn
    for members in (np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)):
      times[:, members] = rng.multinomial(members.size, np.full(members.size, 1 / members.size), len(times))
    found.append(np.mean([_measured(times, labels, one, aupr) for one in scores], axis=0))
  return np.concatenate(found, axis=1)


def _measured(times, labels, scores, aupr) -> np.ndarray:
  """IMAGE_METRICS [3, rows] of image i counted times[row, i] times."""
  order = np.argsort(-scores.astype(np.float64), kind='stable')
  last = np.append(np.flatnonzero(np.diff(scores[order])), scores.size - 1)  # of each group of equal scores
  tp = np.cumsum(times[:, order] * labels[order], axis=1)[:, last]
  fp = np.cumsum(times[:, order] * (1 - labels[order]), axis=1)[:, last]
  positives, negatives = tp[:, -1], fp[:, -1]
  higher, above = (np.pad(counts, ((0, 0), (1, 0)))[:, :-1] for counts in (tp, fp))
  auroc = np.sum((fp - above) * (tp + higher), axis=1) / (2 * positives * negatives)
  level = np.where(tp + fp > 0, fp, 1)  # where nothing is called anomalous yet, the recall does not grow either
  ap = np.sum((tp - higher) * heights(aupr, tp, level, higher, above), axis=1) / positives
  f1max = np.max(2 * tp / (tp + fp + positives[:, None]), axis=1)
  return np.stack([auroc, ap, f1max])
