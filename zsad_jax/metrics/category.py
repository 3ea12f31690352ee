"""All metrics of one category, and their means over categories."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from zsad_jax.metrics.pixel import PIXEL_METRICS, PixelMetrics
from zsad_jax.metrics.ranking import auroc, average_precision, check_binary, check_finite, f1_max, sortable
from zsad_jax.metrics.value import Value, missing_class

IMAGE_METRICS = ('image_auroc', 'image_ap', 'image_f1max')
METRICS = IMAGE_METRICS + PIXEL_METRICS


def evaluate_category(labels: ArrayLike, scores: ArrayLike, pixel: PixelMetrics | None = None, *,
                      ids: Sequence[str] | None = None, aupr: str = 'step') -> dict[str, Value]:
  """Returns {metric: Value} for all of METRICS, in that order; an undefined one is Value(None, reason).

  Args:
    labels: [n], image labels, 0 normal and 1 anomalous.
    scores: [n], image scores; higher is more anomalous.
    pixel: pixel metrics to which the category's maps were added; None for a category without masks.
    ids: [n], image names for error messages; None for their numbers.
    aupr: rule for image AP, 'step' or 'trapezoid', see `ranking.average_precision`.

  Raises:
    ValueError: NaN or infinite scores (with the images' names), labels other than 0 and 1, or shapes that differ.
  """
  labels, scores = np.asarray(labels), sortable(scores)
  if labels.ndim != 1 or labels.shape != scores.shape:
    raise ValueError(f'labels and scores must both have shape [n]; got {labels.shape} and {scores.shape}')
  if ids is not None and len(ids) != len(scores):
    raise ValueError(f'there are {len(scores):,} scores and {len(ids):,} ids; they must be equally many')
  check_binary(labels, 'image labels')
  bad = np.flatnonzero(~np.isfinite(scores))
  names = ', '.join(str(i if ids is None else ids[i]) for i in bad[:5]) + (', ...' if bad.size > 5 else '')
  check_finite(scores, f'the image scores ({names})')
  values = _image_metrics(labels, scores, aupr)
  values |= dict.fromkeys(PIXEL_METRICS, Value(None, 'no masks')) if pixel is None else pixel.compute()
  return values


def summarise(rows: Mapping[str, Mapping[str, Value]]) -> dict[str, dict[str, Any]]:
  """Returns the means over categories, {metric: {'value', 'count', 'of', 'reason'}}.

  'value' is the unweighted mean of the unrounded values of the categories that have one, None if none has; 'count' of
  'of' categories are in it; 'reason' names those left out and why, '' for none.

  Args:
    rows: {category: {metric: Value}}, the same metrics in every row.

  Raises:
    ValueError: there are no categories, or a category lacks a metric.
  """
  if not rows:
    raise ValueError('there are no categories to summarise')
  metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row))
  for category, row in rows.items():
    if missing := [m for m in metrics if m not in row]:
      raise ValueError(f'category {category} has no entry for {", ".join(missing)}')
  return {metric: _mean({category: row[metric] for category, row in rows.items()}) for metric in metrics}


def _image_metrics(labels: np.ndarray, scores: np.ndarray, aupr: str) -> dict[str, Value]:
  anomalous = int(np.sum(labels == 1))
  if reason := missing_class(anomalous, labels.size - anomalous, 'images'):
    return dict.fromkeys(IMAGE_METRICS, Value(None, reason))
  values = (auroc(labels, scores), average_precision(labels, scores, rule=aupr), f1_max(labels, scores)[0])
  return dict(zip(IMAGE_METRICS, map(Value, values)))


def _mean(column: Mapping[str, Value]) -> dict[str, Any]:
  defined = [v.value for v in column.values() if v.value is not None]
  undefined: dict[str, list[str]] = {}
  for category, value in column.items():
    if value.value is None:
      undefined.setdefault(value.reason, []).append(category)
  return {
    'value': float(np.mean(defined)) if defined else None,
    'count': len(defined),
    'of': len(column),
    'reason': '; '.join(f'{", ".join(categories)}: {reason}' for reason, categories in undefined.items()),
  }
