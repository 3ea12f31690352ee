"""Rules that turn scores into a threshold, each with a sentence on its origin.

A score s is anomalous if s >= threshold. A rule sees scores of images other than those to decide on, or of a whole
unlabelled batch; what it can promise follows from that and is stated in Threshold.source. The same rules serve image
scores and pixels.
"""

import statistics
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from zsad_jax import metrics

FEWEST = 20  # scores that a spread is estimated from
MAD = 1.4826  # times the median absolute deviation is the standard deviation of a normal distribution


class Threshold(NamedTuple):
  """A threshold, a sentence on its origin, and the name of the rule."""
  value: float
  source: str
  rule: str


def fixed(value: float) -> Threshold:
  """Returns the threshold `value` itself; raises ValueError for NaN and infinity."""
  if not np.isfinite(value):
    raise ValueError(f'a threshold must be finite; got {value}')
  return Threshold(float(value), 'set by the user', 'fixed')


def f1_max(labels: Any, scores: Any, of: str, quantile: float = 0.95) -> Threshold:
  """Returns the threshold with the largest F1 on labelled scores; the highest of several.

  Without anomalous scores F1 is undefined: the result is `normals` of all scores at `quantile`, with a warning.

  Args:
    labels: [n], 0 normal and 1 anomalous.
    scores: [n], higher is more anomalous.
    of: what the scores belong to, such as 'the 300 images of visa'; part of the source.
    quantile: see above.

  Raises:
    ValueError: no normal score, no score, a value that is not finite, or shapes that differ.
  """
  labels, scores = np.asarray(labels), _checked(scores, of)
  if labels.shape != scores.shape:
    raise ValueError(f'labels have shape {labels.shape}, scores {scores.shape}')
  if not np.any(labels == 0):
    raise ValueError(f'{of}: all {scores.size} scores are anomalous; a threshold needs normal ones too')
  if not np.any(labels):
    logging.warning('%s: nothing is anomalous, so F1 is undefined; the threshold is the %g quantile of the normal '
                    'scores', of, quantile)
    fallback = normals(scores, quantile, of)
    return fallback._replace(source=f'F1 is undefined without anomalous examples; instead the {fallback.source}')
  best, value = metrics.f1_max(labels, scores)
  return Threshold(float(value), f'the largest F1 ({100 * best:.1f} %) on {of}', 'f1_max')


def false_positive_rate(labels: Any, scores: Any, rate: float, of: str) -> Threshold:
  """Returns the lowest threshold at which at most the share `rate` of the normal scores is anomalous.

  Args:
    labels, scores, of: see f1_max; the anomalous scores are not used.
    rate: in (0, 1).

  Raises:
    ValueError: see f1_max; a rate out of range.
  """
  labels, scores = np.asarray(labels), _checked(scores, of)
  _share(rate, 'false-positive rate')
  normal = scores[labels == 0]
  if not normal.size:
    raise ValueError(f'{of}: no score is normal, so the false-positive rate is undefined')
  value = _above(normal, _whole(rate * normal.size))
  reached = float(np.mean(normal >= value))
  source = f'set so that at most {100 * rate:g} % of normal scores reach it ({100 * reached:.3g} % do), on {of}'
  return Threshold(value, source, 'fpr')


def normals(scores: Any, quantile: float, of: str) -> Threshold:
  """Returns the `quantile` of k normal scores, as a guarantee for the next normal one.

  Of k + 1 exchangeable normal scores each is equally likely to be the j-th highest, so a new one lies above the j-th
  highest of k with a probability of at most j / (k + 1) (split conformal prediction, arXiv 2107.07511, sec. 1). The
  threshold is the next float above the j-th highest, with the largest j for which j / (k + 1) <= 1 - quantile. With
  fewer than quantile / (1 - quantile) normal images there is no such j: the threshold is then above all of them, and
  the source states the rate that this gives.

  Args:
    scores: [k] of normal images, k >= 1.
    quantile: in (0, 1).
    of: see f1_max.

  Raises:
    ValueError: no score, a value that is not finite, or a quantile out of range.
  """
  scores = _checked(scores, of)
  _share(quantile, 'quantile')
  count = scores.size
  place = _whole((1 - quantile) * (count + 1))
  least = (f'with {count} normal image{"s" * (count > 1)} the smallest false-positive rate that can be guaranteed is '
           f'1/{count + 1}')
  if place < 1:
    logging.warning('%s: %s, more than the %.3g that was asked for', of, least, 1 - quantile)
    source = f'above all of {of}: {least}, and {1 - quantile:.3g} was asked for'
  else:
    source = (f'{100 * quantile:g} % quantile of {of}: a new normal image scores higher with a probability of at '
              f'most {place}/{count + 1}; {least}')
  return Threshold(_above(scores, max(place, 1) - 1), source, 'normals')


def robust(scores: Any, rate: float, of: str) -> Threshold:
  """Returns a threshold from unlabelled scores, most of which are taken to be normal.

  Assumption: normal scores are the majority and symmetric about their median, and anomalous ones lie above them. The
  centre is the median; the spread is 1.4826 times the median distance of the scores below it, a one-sided median
  absolute deviation (Rousseeuw and Croux 1993, sec. 1), which does not depend on what lies above the centre. The
  threshold leaves the share `rate` of a normal distribution with that centre and spread above it. Anomalous images
  raise the median and with it the threshold: the more there are, the fewer are found, but normal ones are not called
  anomalous.

  Args:
    scores: [n], at least FEWEST.
    rate: in (0, 0.5).
    of: see f1_max.

  Raises:
    ValueError: too few scores, a value that is not finite, a rate out of range.
  """
  scores = _checked(scores, of)
  if not 0 < rate < 0.5:
    raise ValueError(f'a false-positive rate of {rate} is not in (0, 0.5)')
  if scores.size < FEWEST:
    raise ValueError(f'{of}: {scores.size} score{"s" * (scores.size > 1)}, but a fit needs at least {FEWEST}; add '
                     'images, or use a folder of normal ones or a number as the threshold')
  centre = float(np.median(scores))
  spread = MAD * float(np.median(centre - scores[scores <= centre]))
  value = centre + statistics.NormalDist().inv_cdf(1 - rate) * spread
  if not spread:  # equal scores are normal
    value = float(np.nextafter(centre, np.inf))
  source = (f'robust fit to {of}, assuming that most are normal: median {centre:.4g}, spread {spread:.3g}, '
            f'{100 * rate:g} % of normal ones above')
  return Threshold(value, source, 'batch')


def percentile(score: Any, reference: Any) -> np.ndarray:
  """Returns the percentage, 0 to 100, of `reference` scores below each score; equal ones count half.

  Args:
    score: any shape.
    reference: [n], n >= 1.

  Raises:
    ValueError: no reference scores, or one that is not finite.
  """
  reference = np.sort(_checked(reference, 'the reference'))
  places = np.searchsorted(reference, score, 'left') + np.searchsorted(reference, score, 'right')
  return 50 * places / reference.size


def _above(scores: np.ndarray, allowed: int) -> float:
  """The lowest threshold that at most `allowed` of the scores reach."""
  if allowed >= scores.size:
    return float(scores.min())
  return float(np.nextafter(np.sort(scores)[scores.size - 1 - allowed], np.inf))


def _whole(product: float) -> int:
  """The integer part of a share of a count, which rounding may leave just below: 0.29 * 100 is 28.999999999999996."""
  return int(np.floor(product + 1e-9))


def _checked(scores: Any, of: str) -> np.ndarray:
  scores = np.asarray(scores, np.float64).ravel()
  if not scores.size:
    raise ValueError(f'{of}: no scores to compute a threshold from')
  bad = scores.size - np.count_nonzero(np.isfinite(scores))
  if bad:
    raise ValueError(f'{of}: {bad} of {scores.size} scores are NaN or infinite')
  return scores


def _share(value: float, what: str):
  if not 0 < value < 1:
    raise ValueError(f'a {what} of {value} is not in (0, 1)')
