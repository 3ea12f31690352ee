"""Rules for thresholds keep their promises, on any scores."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsad_jax import metrics
from zsad_jax.predict import thresholds

SCORES = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60)


@given(SCORES, SCORES)
def test_f1_max_is_the_best_of_all_thresholds(normal, anomalous):
  labels, scores = [0] * len(normal) + [1] * len(anomalous), np.array(normal + anomalous)
  threshold = thresholds.f1_max(labels, scores, 'a set')
  f1 = lambda t: 2 * np.sum(np.array(anomalous) >= t) / (np.sum(scores >= t) + len(anomalous))
  assert f1(threshold.value) == pytest.approx(max(map(f1, scores)))
  assert threshold.rule == 'f1_max' and f'{100 * f1(threshold.value):.1f} %' in threshold.source


@given(SCORES, SCORES, st.floats(0.01, 0.99))
def test_a_false_positive_rate_is_respected_and_used_up(normal, anomalous, rate):
  labels, scores = [0] * len(normal) + [1] * len(anomalous), normal + anomalous
  value = thresholds.false_positive_rate(labels, scores, rate, 'a set').value
  assert np.mean(np.array(normal) >= value) <= rate + 1e-9
  below = max((x for x in normal if x < value), default=None)
  if below is not None:  # a threshold at the next lower score would exceed the rate
    assert np.mean(np.array(normal) >= below) > rate - 1e-9


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_the_quantile_of_normals_bounds_the_rate_of_the_next_one(scores, quantile):
  """Leaves out each of k + 1 scores in turn: the share that reaches the threshold of the others is bounded."""
  above = np.mean([one >= thresholds.normals(np.delete(scores, i), quantile, 'normals').value
                   for i, one in enumerate(scores)]) if len(scores) > 1 else 0
  assert above <= max(1 - quantile, 1 / len(scores)) + 1e-9


def test_too_few_normals_state_the_smallest_rate_that_they_guarantee(caplog):
  threshold = thresholds.normals([0.1, 0.3, 0.2], 0.95, '3 normal images')
  assert threshold.value == np.nextafter(0.3, 1)
  for words in ('3 normal images', 'smallest false-positive rate', '1/4', '0.05'):
    assert words in threshold.source
  assert '1/4' in caplog.text
  assert '1/20' in thresholds.normals(np.arange(19.), 0.95, 'of 19').source
  assert thresholds.normals(np.arange(19.), 0.95, 'of 19').value == np.nextafter(18, 99)
  assert thresholds.normals(np.arange(39.), 0.95, 'of 39').value == np.nextafter(37, 99)


@given(SCORES)
def test_without_anomalies_f1_max_is_the_quantile_of_normals_and_says_so(scores):
  threshold = thresholds.f1_max(np.zeros(len(scores)), scores, 'a set', quantile=0.9)
  assert threshold.value == thresholds.normals(scores, 0.9, 'a set').value > np.quantile(scores, 0.5, method='lower')
  assert threshold.rule == 'normals' and 'F1 is undefined' in threshold.source


def test_a_robust_fit_hardly_depends_on_anomalies():
  rng = np.random.default_rng(0)
  normal = rng.normal(0.3, 0.05, 300)
  clean = thresholds.robust(normal, 0.05, 'x').value
  assert clean == pytest.approx(0.3 + 1.645 * 0.05, abs=0.025)
  for count in (30, 100, 200):  # up to 40 %
    mixed = np.concatenate([normal, rng.normal(0.8, 0.1, count)])
    value = thresholds.robust(mixed, 0.05, 'x').value
    assert clean - 0.01 < value < np.median(mixed) + 3 * 0.05 * (1 + count / 100)
    assert np.mean(normal >= value) < 0.08
    assert np.mean(mixed[300:] >= value) > 0.97
    farther = np.concatenate([normal, np.full(count, 99.)])  # how far above they lie does not matter
    assert thresholds.robust(farther, 0.05, 'x').value == pytest.approx(value, abs=1e-9)
  assert thresholds.robust(mixed, 0.01, 'x').value > value


@given(st.floats(-1e3, 1e3, width=32), st.integers(20, 50), st.lists(st.floats(0, 1), max_size=9))
def test_equal_scores_are_normal(value, count, others):
  scores = [value] * count + [value + x for x in others]
  assert value < thresholds.robust(scores, 0.05, 'x').value


@given(st.lists(st.integers(-50, 50), min_size=20, max_size=60), st.integers(1, 9), st.integers(-20, 20))
def test_a_robust_fit_moves_and_scales_with_its_scores(scores, factor, shift):
  value = thresholds.robust(scores, 0.05, 'x').value
  moved = thresholds.robust(np.array(scores) * factor + shift, 0.05, 'x').value
  assert moved == pytest.approx(value * factor + shift, abs=1e-6)


@given(SCORES, SCORES)
def test_percentiles_rise_with_the_score_and_lie_in_0_to_100(reference, scores):
  percent = thresholds.percentile(np.sort(scores), reference)
  assert np.all((percent >= 0) & (percent <= 100)) and np.all(np.diff(percent) >= 0)
  assert np.mean(thresholds.percentile(reference, reference)) == pytest.approx(50)


def test_scores_and_rates_without_a_threshold_are_refused():
  for call, message in (
    (lambda: thresholds.f1_max([1, 1], [1., 2.], 'x'), 'x: all 2 scores are anomalous'),
    (lambda: thresholds.f1_max([1, 0, 0], [1., 2.], 'x'), 'shape'),
    (lambda: thresholds.false_positive_rate([1], [1.], 0.1, 'x'), 'no score is normal'),
    (lambda: thresholds.false_positive_rate([0], [1.], 0., 'x'), r'rate of 0.0 is not in \(0, 1\)'),
    (lambda: thresholds.normals([], 0.9, 'x'), 'x: no scores'),
    (lambda: thresholds.normals([1.], 1, 'x'), 'quantile of 1'),
    (lambda: thresholds.robust(np.arange(19), 0.05, 'x'), r'x: 19 scores.*at least 20'),
    (lambda: thresholds.robust(np.arange(30), 0.5, 'x'), 'rate of 0.5'),
    (lambda: thresholds.percentile(1., [np.nan]), '1 of 1 scores are NaN or infinite'),
    (lambda: thresholds.fixed(np.inf), 'finite')):
    with pytest.raises(ValueError, match=message):
      call()
  assert thresholds.fixed(0.5) == (0.5, 'set by the user', 'fixed')


def test_a_threshold_names_its_rule_and_its_source():
  labels, scores = np.arange(40) % 2, np.linspace(0, 1, 40)
  rules = [thresholds.f1_max(labels, scores, 'x'), thresholds.false_positive_rate(labels, scores, 0.1, 'x'),
           thresholds.normals(scores, 0.9, 'x'), thresholds.robust(scores, 0.1, 'x'), thresholds.fixed(1)]
  assert [threshold.rule for threshold in rules] == ['f1_max', 'fpr', 'normals', 'batch', 'fixed']
  assert all(isinstance(threshold.value, float) and threshold.source for threshold in rules)
  assert all(a.source != b.source for a, b in itertools.combinations(rules, 2))
  assert metrics.f1_max(labels, scores)[1] == rules[0].value
