"""Exact AUROC, area under the precision-recall curve and F1-max of scores, with ties.

Each is a mean or a maximum over the anomalous samples of a function of four counts at their score: tp (anomalous at or
above it), higher (anomalous above it), fp (normal at or above it) and above (normal above it).
"""

import numpy as np
from numpy.typing import ArrayLike

from zsad_jax.metrics.value import Undefined, missing_class

AUPR = ('step', 'trapezoid')  # rules for the area under the precision-recall curve


def auroc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
  """Returns the area under the ROC curve, P(anomalous > normal) + P(equal) / 2, as sklearn's roc_auc_score.

  Args:
    labels: any shape, 0 normal and 1 anomalous.
    scores: same shape, any real dtype; higher is more anomalous. Compared in that dtype, never narrowed.
    weights: same shape, at least 0; an integer weight counts as that many repetitions. None: all 1.

  Raises:
    Undefined: one of the classes is missing.
    ValueError: NaN or infinite scores, different shapes, labels other than 0 and 1, or negative weights.
  """
  _, mass, _, above, fp, _, positives, negatives = _ranked(labels, scores, weights)
  return float(1 - np.sum(mass * (above + fp)) / (2 * positives * negatives))


def average_precision(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None, *, rule: str = 'step'
                      ) -> float:
  """Returns the area under the precision-recall curve.

  Args:
    labels, scores, weights: as for `auroc`.
    rule: 'step', the mean precision at the anomalous samples, as sklearn's average_precision_score; or 'trapezoid',
      straight lines between the points of the curve and from (recall 0, precision 1), as sklearn's auc of
      precision_recall_curve. The trapezoidal rule is too optimistic for few samples and for ties.

  Raises:
    Undefined, ValueError: as for `auroc`, and ValueError for another rule. sklearn returns 0 without anomalous and 1
      without normal samples; here both are Undefined.
  """
  check_rule(rule)
  _, mass, tp, above, fp, higher, positives, _ = _ranked(labels, scores, weights)
  return float(np.sum(mass * mean_precision(rule, tp, fp, higher, above)) / positives)


def f1_max(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> tuple[float, float]:
  """Returns the largest F1 over all thresholds, and the highest threshold t that reaches it (anomalous: score >= t).

  Arguments and exceptions as for `auroc`.
  """
  points, _, tp, _, fp, _, positives, _ = _ranked(labels, scores, weights)
  f1 = 2 * tp / (tp + fp + positives)
  best = f1.size - 1 - np.argmax(f1[::-1])
  return float(f1[best]), points[best].item()


def counts(points: np.ndarray, positives: np.ndarray, negatives: np.ndarray
           ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns tp, above and fp, [K] int64 each, at `points` [K]; all three arrays are ascending and of one dtype."""
  tp = positives.size - np.searchsorted(positives, points, 'left')
  above = negatives.size - np.searchsorted(negatives, points, 'right')
  fp = negatives.size - np.searchsorted(negatives, points, 'left')
  return tp, above, fp


def count_higher(points: np.ndarray, positives: np.ndarray) -> np.ndarray:
  """Returns the number [K] int64 of anomalous samples above each of `points`; arrays as for `counts`."""
  return positives.size - np.searchsorted(positives, points, 'right')


def mean_precision(rule: str, tp: np.ndarray, fp: np.ndarray, higher: np.ndarray, above: np.ndarray) -> np.ndarray:
  """Returns the mean precision over the step of recall that ends at each point, by one of the rules AUPR."""
  end = tp / (tp + fp)
  if rule == 'step':
    return end
  predicted = np.asarray(higher + above)
  start = np.divide(higher, predicted, out=np.ones(predicted.shape), where=predicted > 0)
  return (end + start) / 2


def check_rule(rule: str) -> None:
  """Raises ValueError if `rule` is not one of AUPR."""
  if rule not in AUPR:
    raise ValueError(f'the rule for the area under the precision-recall curve is {rule!r}; it must be one of '
                     f'{", ".join(AUPR)}')


def sortable(values: ArrayLike) -> np.ndarray:
  """Returns the values in a dtype that numpy sorts fast, with the same order and ties."""
  values = np.asarray(values)
  if values.dtype in (np.float16, np.bool_) or values.dtype.name == 'bfloat16':
    return values.astype(np.float32)
  if values.dtype.kind not in 'iuf':
    raise ValueError(f'scores and maps must be real numbers; got dtype {values.dtype}')
  return values


def check_finite(values: np.ndarray, what: str) -> None:
  """Raises ValueError with the number of NaN and infinite values, if there are any."""
  bad = values.size - np.count_nonzero(np.isfinite(values))
  if bad:
    raise ValueError(f'{bad:,} of {values.size:,} values of {what} are NaN or infinite')


def check_binary(values: np.ndarray, what: str) -> None:
  """Raises ValueError unless all values are 0 or 1."""
  if values.dtype != np.bool_ and not np.all((values == 0) | (values == 1)):
    raise ValueError(f'{what} must be 0 (normal) or 1 (anomalous); got {np.unique(values)[:5]}')


def _ranked(labels, scores, weights) -> tuple:
  """Returns the anomalous scores ascending [P], their mass, tp, above, fp, higher [P], and the masses of both classes.

  The mass of a sample is its weight; without weights, the counts themselves are returned and the mass is 1.
  """
  labels, scores = np.asarray(labels), sortable(scores)
  if labels.shape != scores.shape:
    raise ValueError(f'labels have shape {labels.shape}, scores {scores.shape}; they must be equal')
  check_binary(labels, 'labels')
  check_finite(scores, 'the scores')
  anomalous = labels.astype(bool)
  if weights is None:
    points, normals = np.sort(scores[anomalous]), np.sort(scores[~anomalous])
    _require_both(points.size, normals.size)
    return points, 1, *counts(points, points, normals), count_higher(points, points), points.size, normals.size
  weights = _checked_weights(weights, scores)
  used = weights > 0
  points, mass = _sorted_with(scores[anomalous & used], weights[anomalous & used])
  normals, normal_mass = _sorted_with(scores[~anomalous & used], weights[~anomalous & used])
  _require_both(points.size, normals.size)
  tp, above, fp = counts(points, points, normals)
  top, normal_top = _mass_of_top(mass), _mass_of_top(normal_mass)
  return (points, mass, top[tp], normal_top[above], normal_top[fp], top[count_higher(points, points)], top[-1],
          normal_top[-1])


def _require_both(positives: int, negatives: int) -> None:
  if reason := missing_class(positives, negatives, 'samples'):
    raise Undefined(reason)


def _checked_weights(weights, scores) -> np.ndarray:
  weights = np.asarray(weights, np.float64)
  if weights.shape != scores.shape:
    raise ValueError(f'weights have shape {weights.shape}, scores {scores.shape}; they must be equal')
  check_finite(weights, 'the weights')
  if np.any(weights < 0):
    raise ValueError(f'{np.count_nonzero(weights < 0):,} of {weights.size:,} weights are negative')
  return weights


def _sorted_with(scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  order = np.argsort(scores)
  return scores[order], weights[order]


def _mass_of_top(mass: np.ndarray) -> np.ndarray:
  """Returns [K + 1]: the total weight of the k highest-scoring of K samples, k = 0..K."""
  return np.concatenate([[0.0], np.cumsum(mass[::-1])])
