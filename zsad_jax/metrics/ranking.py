"""Exact AUROC, area under the precision-recall curve and F1-max of scores, ties included.

Each is a mean (or a maximum) over the anomalous samples of a function of counts at their score: tp (anomalous at or
above it), above (normal strictly above it), level (normal at or above it), higher (anomalous strictly above it).
"""

import numpy as np

from zsad_jax.metrics.value import Undefined, one_class

AUPR = ('step', 'trapezoid')  # rules for the area under the precision-recall curve


def auroc(labels, scores, weights=None) -> float:
  """Area under the ROC curve: P(anomalous > normal) + P(equal) / 2, equal to sklearn's roc_auc_score.

  Args:
    labels: any shape, 0 normal and 1 anomalous.
    scores: same shape, any real dtype; higher is more anomalous. Compared in that dtype, never narrowed.
    weights: same shape, >= 0; an integer weight counts as so many repetitions. None: all 1.

  Raises:
    Undefined: one of the classes is absent.
    ValueError: NaN or infinite scores, differing shapes, labels other than 0 and 1, negative weights.
  """
  _, mass, _, above, level, _, positives, negatives = _ranked(labels, scores, weights)
  return float(1 - np.sum(mass * (above + level)) / (2 * positives * negatives))


def average_precision(labels, scores, weights=None, *, rule: str = 'step') -> float:
  """Area under the precision-recall curve, by one of two rules.

  Args:
    labels, scores, weights: as for `auroc`.
    rule: 'step', the mean precision at the anomalous samples, equal to sklearn's average_precision_score; or
      'trapezoid', straight lines between the curve's points and from (recall 0, precision 1), equal to sklearn's auc
      of precision_recall_curve. It flatters few samples and ties.

  Exceptions as for `auroc`, and ValueError for another rule; sklearn's 0 (no anomalous) and 1 (no normal) are
  Undefined here.
  """
  check_rule(rule)
  _, mass, tp, above, level, higher, positives, _ = _ranked(labels, scores, weights)
  return float(np.sum(mass * heights(rule, tp, level, higher, above)) / positives)


def f1_max(labels, scores, weights=None) -> tuple[float, float]:
  """Largest F1 over all distinct thresholds, and the highest threshold t with it (anomalous: score >= t).

  Arguments and exceptions as for `auroc`.
  """
  points, _, tp, _, level, _, positives, _ = _ranked(labels, scores, weights)
  f1 = 2 * tp / (tp + level + positives)
  best = f1.size - 1 - np.argmax(f1[::-1])
  return float(f1[best]), points[best].item()


def counts(points, positives, negatives):
  """tp, above, level [K] int64 at each of `points`; all three arrays ascending and of one dtype."""
  tp = positives.size - np.searchsorted(positives, points, 'left')
  above = negatives.size - np.searchsorted(negatives, points, 'right')
  level = negatives.size - np.searchsorted(negatives, points, 'left')
  return tp, above, level


def higher(points, positives):
  """Anomalous samples strictly above each of `points` [K] int64; both arrays as for `counts`."""
  return positives.size - np.searchsorted(positives, points, 'right')


def heights(rule, tp, level, higher, above):
  """Mean height of the precision-recall curve over the step of recall that ends at each point."""
  at = tp / (tp + level)
  if rule == 'step':
    return at
  called = np.asarray(higher + above)
  before = np.divide(higher, called, out=np.ones(called.shape), where=called > 0)
  return (at + before) / 2


def check_rule(rule: str) -> None:
  """Raises ValueError for what is not one of AUPR."""
  if rule not in AUPR:
    raise ValueError(f'the rule for the area under the precision-recall curve is {rule!r}; it must be one of '
                     f'{", ".join(AUPR)}')


def ordered(values) -> np.ndarray:
  """The values as an array of a dtype that numpy sorts fast, their order and ties unchanged."""
  values = np.asarray(values)
  if values.dtype in (np.float16, np.bool_) or values.dtype.name == 'bfloat16':
    return values.astype(np.float32)
  if values.dtype.kind not in 'iuf':
    raise ValueError(f'scores or maps have dtype {values.dtype}; real numbers are needed')
  return values


def check_finite(values: np.ndarray, what: str) -> None:
  """Raises ValueError, with the number of offenders, unless all values are finite."""
  bad = values.size - np.count_nonzero(np.isfinite(values))
  if bad:
    raise ValueError(f'{bad} of {values.size} values of {what} are NaN or infinite')


def check_binary(values: np.ndarray, what: str) -> None:
  """Raises ValueError unless all values are 0 or 1."""
  if values.dtype != np.bool_ and not np.all((values == 0) | (values == 1)):
    raise ValueError(f'{what} must be 0 (normal) or 1 (anomalous), not {np.unique(values)[:5]}')


def _ranked(labels, scores, weights):
  """Points [P] (anomalous scores, ascending), their mass, tp, above, level, higher [P], and both total masses."""
  labels, scores = np.asarray(labels), ordered(scores)
  if labels.shape != scores.shape:
    raise ValueError(f'labels have shape {labels.shape}, scores {scores.shape}')
  check_binary(labels, 'labels')
  check_finite(scores, 'the scores')
  anomalous = labels.astype(bool)
  if weights is None:
    points, normals = np.sort(scores[anomalous]), np.sort(scores[~anomalous])
    _need_both(points.size, normals.size)
    return points, 1, *counts(points, points, normals), higher(points, points), points.size, normals.size
  weights = _checked_weights(weights, scores)
  used = weights > 0
  points, mass = _sorted_with(scores[anomalous & used], weights[anomalous & used])
  normals, normal_mass = _sorted_with(scores[~anomalous & used], weights[~anomalous & used])
  _need_both(points.size, normals.size)
  tp, above, level = counts(points, points, normals)
  top, normal_top = _mass_of_top(mass), _mass_of_top(normal_mass)
  return (points, mass, top[tp], normal_top[above], normal_top[level], top[higher(points, points)], top[-1],
          normal_top[-1])


def _need_both(positives: int, negatives: int) -> None:
  if reason := one_class(positives, negatives, 'samples'):
    raise Undefined(reason)


def _checked_weights(weights, scores) -> np.ndarray:
  weights = np.asarray(weights, np.float64)
  if weights.shape != scores.shape:
    raise ValueError(f'weights have shape {weights.shape}, scores {scores.shape}')
  check_finite(weights, 'the weights')
  if np.any(weights < 0):
    raise ValueError(f'{np.count_nonzero(weights < 0)} of {weights.size} weights are negative')
  return weights


def _sorted_with(scores, weights):
  order = np.argsort(scores)
  return scores[order], weights[order]


def _mass_of_top(mass):
  """[K + 1] total weight of the k highest-scoring of K samples, k = 0..K."""
  return np.concatenate([[0.0], np.cumsum(mass[::-1])])
