"""ROC, PR and PRO curves and histograms to be drawn: exact counts at few thresholds, from sorted scores."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zsad_jax.metrics.aupro import overlap
from zsad_jax.metrics.value import Undefined, one_class

POINTS = 320  # thresholds of a curve, at most
TAIL = 1e-3  # share of each class beyond either end of a histogram


class Curves(NamedTuple):
  """Counts at K of the thresholds, descending to the lowest score; anomalous is a score at or above the threshold.

  Attributes:
    thresholds: [K] scores.
    tp, fp: [K] anomalous and normal pixels at or above each.
    pro: [K] per-region overlap, the mean over regions of their covered fraction.
    positives, negatives: anomalous and normal pixels in all.
  """
  thresholds: np.ndarray
  tp: np.ndarray
  fp: np.ndarray
  pro: np.ndarray
  positives: int
  negatives: int

  def roc(self) -> tuple[np.ndarray, np.ndarray]:
    """False-positive rates and recalls [K + 1], from (0, 0) to (1, 1)."""
    return np.append(0, self.fp) / self.negatives, np.append(0, self.tp) / self.positives

  def pr(self) -> tuple[np.ndarray, np.ndarray]:
    """Recalls and precisions [K]."""
    return self.tp / self.positives, self.tp / (self.tp + self.fp)

  def pro_curve(self, limit: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """False-positive rates and PRO from 0 up to `limit`, where the line between the points beside it ends."""
    fpr, pro = np.append(0, self.fp) / self.negatives, np.append(0, self.pro)
    inside = fpr < limit
    return np.append(fpr[inside], limit), np.append(pro[inside], np.interp(limit, fpr, pro))


class Histogram(NamedTuple):
  """Counts between `edges` [n + 1], `normal` and `anomalous` [n]; what lies beyond the ends is in the end bins."""
  edges: np.ndarray
  normal: np.ndarray
  anomalous: np.ndarray


def curves(positives, region, sizes, negatives) -> Curves:
  """Curves of sorted pixels, at thresholds that are even and geometric in the ranks of both classes.

  Areas under them are those of all thresholds to about 0.001.

  Args:
    positives, region: [P] anomalous scores, ascending, P > 0, and the region each belongs to.
    sizes: [R] pixels per region.
    negatives: [N] normal scores, ascending, N > 0.
  """
  low = min(positives[0], negatives[0])
  chosen = np.unique(np.concatenate([_spread(positives), _spread(negatives), [low]]))
  tp = positives.size - np.searchsorted(positives, chosen, 'left')
  fp = negatives.size - np.searchsorted(negatives, chosen, 'left')
  pro = overlap(positives, region, sizes, chosen, side='left')
  return Curves(chosen[::-1], tp[::-1], fp[::-1], pro[::-1], positives.size, negatives.size)


def histogram(normal, anomalous, bins: int = 48) -> Histogram:
  """Histogram of two ascending arrays, of which one may be empty, over what lies between their tails."""
  ends = [values[[int(TAIL * (values.size - 1)), -1 - int(TAIL * (values.size - 1))]]
          for values in (normal, anomalous) if values.size]
  low, high = (float(pick(column)) for pick, column in zip((min, max), zip(*ends)))
  edges = np.linspace(low, high if high > low else low + 1, bins + 1)
  count = lambda values: np.diff(np.concatenate([[0], np.searchsorted(values, edges[1:-1]), [values.size]]))
  return Histogram(edges, count(normal), count(anomalous))


def f1_threshold(found: Sequence[Curves]) -> float:
  """The threshold with the largest F1 over all pixels of several categories, among the thresholds of their curves.

  Where a category has no threshold of its own, its counts are interpolated.
  """
  points = np.unique(np.concatenate([c.thresholds for c in found]))
  total = lambda counts, all_of_them: sum(
    np.interp(points, c.thresholds[::-1], counts(c)[::-1], left=all_of_them(c), right=0) for c in found)
  tp, fp = total(lambda c: c.tp, lambda c: c.positives), total(lambda c: c.fp, lambda c: c.negatives)
  return float(points[np.argmax(2 * tp / (tp + fp + sum(c.positives for c in found)))])


def balanced_threshold(labels, scores) -> tuple[float, float]:
  """(best balanced accuracy, the highest threshold with it) of image scores [n]; anomalous is a score at or above it.

  The mean of the shares of anomalous and of normal images that are told right. Where most images are anomalous, as in
  most test sets, the threshold with the largest F1 may call all of them so; this one does not.

  Raises:
    Undefined: one of the classes is absent.
  """
  labels, scores = np.asarray(labels), np.asarray(scores)
  normal, anomalous = (np.sort(scores[labels == label]) for label in (0, 1))
  if reason := one_class(anomalous.size, normal.size, 'images'):
    raise Undefined(reason)
  found = 1 - np.searchsorted(anomalous, anomalous, 'left') / anomalous.size
  right = (found + np.searchsorted(normal, anomalous, 'left') / normal.size) / 2
  best = right.size - 1 - np.argmax(right[::-1])
  return float(right[best]), anomalous[best].item()


def _spread(scores):
  """Up to POINTS / 2 of the ascending scores: the highest ones, and evenly and geometrically far from them."""
  ranks = np.concatenate([np.geomspace(1, scores.size, POINTS // 4), np.linspace(1, scores.size, POINTS // 4)])
  return scores[scores.size - np.unique(ranks.astype(int))]
