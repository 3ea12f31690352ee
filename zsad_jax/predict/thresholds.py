"""Where normal ends and anomalous begins: rules that turn scores into a threshold, each with what it rests on.

A score s is called anomalous where s >= threshold. A rule sees scores of images that are not the ones to decide on, or
of a whole unlabelled batch; what it may promise follows from that and stands in Threshold.source. The same rules serve
image scores and pixels.
"""

import statistics
from typing import NamedTuple

import numpy as np
from absl import logging

from zsad_jax import metrics

FEWEST = 20  # scores that a spread is estimated from
MAD = 1.4826  # times the median absolute deviation is the standard deviation of a normal distribution


class Threshold(NamedTuple):
  """A threshold, one sentence on where it comes from, and the name of the rule."""
  value: float
  source: str
  rule: str


def fixed(value: float) -> Threshold:
  """Returns the threshold `value` as it was given; raises ValueError for NaN and infinity."""
  if not np.isfinite(value):
    raise ValueError(f'a threshold must be finite, not {value}')
  return Threshold(float(value), 'given as a number', 'fixed')


def f1_max(labels, scores, of: str, quantile: float = 0.95) -> Threshold:
  """Returns the threshold of the largest F1 on labelled scores; of several, the highest.

  Without anomalous scores there is no F1: the result is `normals` of all scores at `quantile`, with a warning.

  Args:
    labels: [n], 0 normal and 1 anomalous.
    scores: [n], higher is more anomalous.
    of: what the scores are of, such as 'the 300 images of visa'; it goes into the source.
    quantile: see above.

  Raises:
    ValueError: no normal score, no score, a value that is not finite, or shapes that differ.
  """
  labels, scores = np.asarray(labels), _checked(scores, of)
  if labels.shape != scores.shape:
    raise ValueError(f'labels have shape {labels.shape}, scores {scores.shape}')
  if not np.any(labels == 0):
    raise ValueError(f'{of}: all {scores.size} scores are anomalous, so every threshold is as good as none; there must '
                     'be normal ones')
  if not np.any(labels):
    logging.warning('%s: nothing is anomalous, so that F1 has no maximum; the threshold is the %g quantile of the '
                    'normal scores', of, quantile)
    found = normals(scores, quantile, of)
    return found._replace(source=f'F1 has no maximum without anomalous examples; instead {found.source}')
  best, value = metrics.f1_max(labels, scores)
  return Threshold(float(value), f'largest F1 ({100 * best:.1f} %) on {of}', 'f1_max')


def false_positive_rate(labels, scores, rate: float, of: str) -> Threshold:
  """Returns the lowest threshold at which no more than the share `rate` of the normal scores is called anomalous.

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
    raise ValueError(f'{of}: no score is normal, so there is no false-positive rate')
  value = _above(normal, _whole(rate * normal.size))
  reached = float(np.mean(normal >= value))
  source = f'{100 * reached:.3g} % of the normal ones reach it, asked for were at most {100 * rate:g} %, on {of}'
  return Threshold(value, source, 'fpr')


def normals(scores, quantile: float, of: str) -> Threshold:
  """Returns the `quantile` of k normals' scores, as a promise about the next normal one.

  Of k + 1 exchangeable normal scores each is as likely to be the j-th highest, so that a new one lies above the j-th
  highest of k with a probability of at most j / (k + 1) (split conformal prediction, arXiv 2107.07511, sec. 1). The
  threshold lies a hair above the j-th highest, j the largest with j / (k + 1) <= 1 - quantile. With fewer than
  quantile / (1 - quantile) normals there is none: it is then above all of them, and the source says which rate that is.

  Args:
    scores: [k] of normal images, k >= 1.
    quantile: in (0, 1).
    of: see f1_max.

  Raises:
    ValueError: no score, a value that is not finite, a quantile out of range.
  """
  scores = _checked(scores, of)
  _share(quantile, 'quantile')
  count = scores.size
  place = _whole((1 - quantile) * (count + 1))
  least = f'with {count} normal{"s" * (count > 1)} the smallest false-positive rate that can be named is 1/{count + 1}'
  if place < 1:
    logging.warning('%s: %s, more than the %.3g asked for', of, least, 1 - quantile)
    source = f'above all of {of}: {least}, and {1 - quantile:.3g} was asked for'
  else:
    source = (f'{100 * quantile:g} % quantile of {of}: a new normal one lies above it {place} times in '
              f'{count + 1}; {least}')
  return Threshold(_above(scores, max(place, 1) - 1), source, 'normals')


def robust(scores, rate: float, of: str) -> Threshold:
  """Returns a threshold from unlabelled scores, most of which are taken to be normal.

  Assumption: normal scores are the majority and spread evenly to both sides, and anomalous ones lie above them. The
  centre is the median; the spread is 1.4826 times the median distance of the scores below it, a one-sided median
  absolute deviation (Rousseeuw and Croux 1993, sec. 1), which nothing above the centre enters. The threshold leaves the
  share `rate` of a normal distribution of that centre and spread above it. Anomalous images move the median up, and so
  the threshold: the more there are, the fewer are found, rather than that normal ones are called anomalous.

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
    raise ValueError(f'{of}: {scores.size} score{"s" * (scores.size > 1)}, but a fit needs at least {FEWEST}; give '
                     'more images, normal ones, or a number as the threshold')
  centre = float(np.median(scores))
  spread = MAD * float(np.median(centre - scores[scores <= centre]))
  value = centre + statistics.NormalDist().inv_cdf(1 - rate) * spread
  if not spread:  # equal scores are normal
    value = float(np.nextafter(centre, np.inf))
  source = (f'robust fit to {of}, of which most are taken to be normal: median {centre:.4g}, spread {spread:.3g}, '
            f'{100 * rate:g} % of normal ones above')
  return Threshold(value, source, 'batch')


def percentile(score, reference) -> np.ndarray:
  """Returns the percentage, 0 to 100, of `reference` scores below each score, equal ones counted half.

  Args:
    score: any shape.
    reference: [n], n >= 1.

  Raises:
    ValueError: no reference scores, or some that are not finite.
  """
  reference = np.sort(_checked(reference, 'the reference'))
  places = np.searchsorted(reference, score, 'left') + np.searchsorted(reference, score, 'right')
  return 50 * places / reference.size


def _above(scores: np.ndarray, allowed: int) -> float:
  """The lowest threshold that `allowed` of the scores reach at most."""
  if allowed >= scores.size:
    return float(scores.min())
  return float(np.nextafter(np.sort(scores)[scores.size - 1 - allowed], np.inf))


def _whole(product: float) -> int:
  """The whole part of a share of a count, which rounding may leave a hair short: 0.29 * 100 is 28.999999999999996."""
  return int(np.floor(product + 1e-9))


def _checked(scores, of: str) -> np.ndarray:
  scores = np.asarray(scores, np.float64).ravel()
  if not scores.size:
    raise ValueError(f'{of}: no scores to find a threshold from')
  bad = scores.size - np.count_nonzero(np.isfinite(scores))
  if bad:
    raise ValueError(f'{of}: {bad} of {scores.size} scores are NaN or infinite')
  return scores


def _share(value: float, what: str):
  if not 0 < value < 1:
    raise ValueError(f'a {what} of {value} is not in (0, 1)')
