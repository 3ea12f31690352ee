"""Bootstrap intervals: coverage of known values, equality with the metrics, and degenerate input."""

import math

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from zsad_jax.metrics import auroc, average_precision, f1_max, intervals

LABELS = np.repeat([0, 1], [25, 15])


def scores(seed, shift=1.0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=40) + shift * LABELS


def test_coverage_of_a_known_auroc():
  """Two normal distributions one standard deviation apart: AUROC = Phi(1 / sqrt 2)."""
  exact = (1 + math.erf(0.5)) / 2
  hits = 0
  for seed in range(200):
    _, mean = intervals.over_images({'a': (LABELS, scores(seed))}, replicates=200, seed=seed)
    low, high, _ = mean['image_auroc']
    hits += low <= exact <= high
  assert 0.88 <= hits / 200 <= 0.98


def test_coverage_of_a_mean_over_categories():
  rng = np.random.default_rng(0)
  hits = sum(low <= 0.5 <= high for low, high, _ in (
    intervals.over_categories(dict(enumerate(rng.uniform(size=20))), replicates=300, seed=i) for i in range(200)))
  assert 0.88 <= hits / 200 <= 0.98


@pytest.mark.parametrize('aupr', ['step', 'trapezoid'])
@pytest.mark.parametrize('ties', [False, True])
def test_each_replicate_is_the_metric_of_the_resampled_images(aupr, ties):
  """A row of counts gives the same metrics as images repeated that often, with and without ties."""
  values = np.round(scores(3), 0 if ties else 9)
  times = np.random.default_rng(1).multinomial(40, np.full(40, 1 / 40), 6)
  resampled = intervals._repeated_metrics(times, LABELS, values, aupr)
  for row, got in zip(times, resampled.T):
    labels, repeated = np.repeat(LABELS, row), np.repeat(values, row)
    want = (auroc(labels, repeated), average_precision(labels, repeated, rule=aupr), f1_max(labels, repeated)[0])
    assert got == pytest.approx(want, abs=1e-12)
  precision, recall, _ = sklearn_metrics.precision_recall_curve(LABELS, values)
  area = (sklearn_metrics.average_precision_score(LABELS, values) if aupr == 'step' else
          sklearn_metrics.auc(recall, precision))
  once = intervals._repeated_metrics(np.ones((1, 40), int), LABELS, values, aupr)[:, 0]
  assert once[:2] == pytest.approx((sklearn_metrics.roc_auc_score(LABELS, values), area), abs=1e-12)


def test_intervals_contain_the_metric_and_are_reproducible():
  rows, mean = intervals.over_images({'a': (LABELS, scores(0)), 'b': (LABELS, scores(1))}, seed=4)
  point = np.mean([auroc(LABELS, scores(seed)) for seed in (0, 1)])
  low, high, reason = mean['image_auroc']
  assert low < point < high and not reason
  wide, narrow = (high - low for low, high, _ in (rows['a']['image_auroc'], mean['image_auroc']))
  assert narrow < wide  # the mean of two categories varies less than each
  assert intervals.over_images({'a': (LABELS, scores(0)), 'b': (LABELS, scores(1))}, seed=4) == (rows, mean)
  assert intervals.over_images({'a': (LABELS, scores(0))}, seed=5)[1] != intervals.over_images(
    {'a': (LABELS, scores(0))}, seed=4)[1]


def test_blocks_of_bounded_memory_change_nothing(monkeypatch):
  whole = intervals.over_images({'a': (LABELS, scores(0))}, replicates=50)
  monkeypatch.setattr(intervals, 'CELLS', 40 * 50)
  assert intervals.over_images({'a': (LABELS, scores(0))}, replicates=50) == whole


def test_intervals_of_perfect_and_constant_scores_have_no_width():
  _, perfect = intervals.over_images({'a': (LABELS, LABELS * 1.0)})
  assert set(perfect.values()) == {intervals.Interval(1.0, 1.0)}
  _, constant = intervals.over_images({'a': (LABELS, np.zeros(40))})
  assert constant['image_auroc'] == (0.5, 0.5, '')
  assert constant['image_ap'] == (15 / 40, 15 / 40, '')


def test_several_seeds_are_averaged_over_the_same_images():
  same = np.stack([scores(0)] * 3)
  one, three = (intervals.over_images({'a': (LABELS, s)})[1]['image_ap'] for s in (scores(0), same))
  assert three[:2] == pytest.approx(one[:2], abs=1e-12)


def test_an_interval_that_cannot_be_resampled_has_a_reason():
  rows, mean = intervals.over_images({'a': (np.zeros(3, int), np.arange(3.0)), 'b': (LABELS, scores(0))})
  assert rows['a']['image_ap'] == (None, None, 'no anomalous images')
  assert mean == rows['b']
  _, none = intervals.over_images({'a': (np.ones(3, int), np.arange(3.0))})
  assert none['image_auroc'].reason == 'no category has normal and anomalous images'
  assert intervals.over_categories({'a': 0.5, 'b': None}).reason == 'fewer than two categories to resample'


@pytest.mark.parametrize(('kwargs', 'message'), [
  ({'level': 1.0}, r'level=1.0 must lie in \(0, 1\)'), ({'replicates': 0}, 'replicates=0 must be at least 1'),
  ({'aupr': 'stairs'}, r"'stairs'.*step, trapezoid"),
])
def test_settings_out_of_range_are_rejected(kwargs, message):
  with pytest.raises(ValueError, match=message):
    intervals.over_images({'a': (LABELS, scores(0))}, **kwargs)


def test_different_shapes_and_nan_are_rejected():
  with pytest.raises(ValueError, match=r'a: labels .* \[n\] and scores \[n\] or \[S, n\]; got \(40,\) and \(1, 39\)'):
    intervals.over_images({'a': (LABELS, scores(0)[1:])})
  with pytest.raises(ValueError, match='1 of 40 values of the scores of a are NaN'):
    intervals.over_images({'a': (LABELS, np.where(np.arange(40) == 3, np.nan, 1.0))})
