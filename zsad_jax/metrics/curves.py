"""ROC, PR and PRO curves and histograms for plots: exact counts at a few thresholds, from sorted scores."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from zsad_jax.metrics.aupro import overlap
from zsad_jax.metrics.value import Undefined, missing_class

POINTS = 320  # largest number of thresholds of a curve
TAIL = 1e-3  # share of each class beyond either end of a histogram


class Curves(NamedTuple):
  """Counts at K thresholds, from the highest score to the lowest; a pixel at or above the threshold is anomalous.

  Attributes:
    thresholds: [K], scores.
    tp, fp: [K], anomalous and normal pixels at or above each threshold.
    pro: [K], per-region overlap: the mean over regions of the covered fraction.
    positives, negatives: total numbers of anomalous and normal pixels.
  """
  thresholds: np.ndarray
  tp: np.ndarray
  fp: np.ndarray
  pro: np.ndarray
  positives: int
  negatives: int

  def roc(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns false-positive rates and recalls, [K + 1] each, from (0, 0) to (1, 1)."""
    return np.append(0, self.fp) / self.negatives, np.append(0, self.tp) / self.positives

  def pr(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns recalls and precisions, [K] each."""
    return self.tp / self.positives, self.tp / (self.tp + self.fp)

  def pro_curve(self, limit: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Returns false-positive rates and PRO from 0 to `limit`, where PRO is interpolated."""
    fpr, pro = np.append(0, self.fp) / self.negatives, np.append(0, self.pro)
    inside = fpr < limit
    return np.append(fpr[inside], limit), np.append(pro[inside], np.interp(limit, fpr, pro))


class Histogram(NamedTuple):
  """Counts between `edges` [n + 1]: `normal` and `anomalous` [n]; the outermost bins include all scores beyond them."""
  edges: np.ndarray
  normal: np.ndarray
  anomalous: np.ndarray


def curves(positives: np.ndarray, region: np.ndarray, sizes: np.ndarray, negatives: np.ndarray) -> Curves:
  """Returns the curves of sorted pixels, at thresholds spread evenly and geometrically over the ranks of both classes.

  Areas under them deviate from those of all thresholds by about 0.001.

  Args:
    positives, region: [P], anomalous scores, ascending, P > 0, and the region of each.
    sizes: [R], pixels per region.
    negatives: [N], normal scores, ascending, N > 0.
  """
  low = min(positives[0], negatives[0])
  thresholds = np.unique(np.concatenate([_spread(positives), _spread(negatives), [low]]))
  tp = positives.size - np.searchsorted(positives, thresholds, 'left')
  fp = negatives.size - np.searchsorted(negatives, thresholds, 'left')
  pro = overlap(positives, region, sizes, thresholds, side='left')
  return Curves(thresholds[::-1], tp[::-1], fp[::-1], pro[::-1], positives.size, negatives.size)


def histogram(normal: np.ndarray, anomalous: np.ndarray, bins: int = 48) -> Histogram:
  """Returns the Histogram of two ascending arrays, one of which may be empty, between their tails."""
  ends = [values[[int(TAIL * (values.size - 1)), -1 - int(TAIL * (values.size - 1))]]
          for values in (normal, anomalous) if values.size]
  low, high = (float(pick(column)) for pick, column in zip((min, max), zip(*ends)))
  edges = np.linspace(low, high if high > low else low + 1, bins + 1)
  count = lambda values: np.diff(np.concatenate([[0], np.searchsorted(values, edges[1:-1]), [values.size]]))
  return Histogram(edges, count(normal), count(anomalous))


def f1_threshold(categories: Sequence[Curves]) -> float:
  """Returns the threshold with the largest F1 over all pixels of several categories.

  Candidates are the thresholds of all curves; between its own thresholds, a category's counts are interpolated.
  """
  points = np.unique(np.concatenate([c.thresholds for c in categories]))
  total = lambda counts, maximum: sum(
    np.interp(points, c.thresholds[::-1], counts(c)[::-1], left=maximum(c), right=0) for c in categories)
  tp, fp = total(lambda c: c.tp, lambda c: c.positives), total(lambda c: c.fp, lambda c: c.negatives)
  return float(points[np.argmax(2 * tp / (tp + fp + sum(c.positives for c in categories)))])


def balanced_threshold(labels: ArrayLike, scores: ArrayLike) -> tuple[float, float]:
  """Returns the best balanced accuracy of image scores, and the highest threshold that reaches it.

  An image at or above the threshold is anomalous. Balanced accuracy is the mean of the shares of anomalous and of
  normal images that are classified correctly. If most images are anomalous, as in most test sets, the threshold with
  the largest F1 may classify all of them as anomalous; this one does not.

  Args:
    labels: [n], 0 normal and 1 anomalous.
    scores: [n].

  Raises:
    Undefined: one of the classes is missing.
  """
  labels, scores = np.asarray(labels), np.asarray(scores)
  normal, anomalous = (np.sort(scores[labels == label]) for label in (0, 1))
  if reason := missing_class(anomalous.size, normal.size, 'images'):
    raise Undefined(reason)
  recall = 1 - np.searchsorted(anomalous, anomalous, 'left') / anomalous.size
  accuracy = (recall + np.searchsorted(normal, anomalous, 'left') / normal.size) / 2
  best = accuracy.size - 1 - np.argmax(accuracy[::-1])
  return float(accuracy[best]), anomalous[best].item()


def _spread(scores: np.ndarray) -> np.ndarray:
  """Returns up to POINTS / 2 of the ascending scores, at ranks spaced evenly and geometrically from the highest."""
  ranks = np.concatenate([np.geomspace(1, scores.size, POINTS // 4), np.linspace(1, scores.size, POINTS // 4)])
  return scores[scores.size - np.unique(ranks.astype(int))]
