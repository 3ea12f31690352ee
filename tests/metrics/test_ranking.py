"""AUROC, AP and F1-max equal scikit-learn, with ties and weights, and reject bad input."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from zsad_jax.metrics import Undefined, auroc, average_precision, f1_max

METRICS = (auroc, average_precision, f1_max)


def sklearn_f1(labels, scores, weights=None):
  precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, scores, sample_weight=weights)
  return np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300))


@st.composite
def samples(draw, dtypes=(np.float16, np.float32, np.float64, np.int64)):
  """Labels with both classes and scores with few, some or no ties."""
  n = draw(st.integers(2, 60))
  rng = np.random.default_rng(draw(st.integers(0, 2 ** 32 - 1)))
  labels = rng.random(n) < draw(st.sampled_from([0.1, 0.5, 0.9]))
  labels[:2] = [False, True]
  scores = rng.integers(0, draw(st.sampled_from([1, 2, 5, 1000])), n) - 3.0
  dtype = draw(st.sampled_from(dtypes))
  if np.issubdtype(dtype, np.floating):
    scores = scores / 7
  return labels.astype(int), scores.astype(dtype)


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(samples())
def test_equal_to_sklearn(sample):
  labels, scores = sample
  assert auroc(labels, scores) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)
  want = sklearn_metrics.average_precision_score(labels, scores)
  assert average_precision(labels, scores) == pytest.approx(want, abs=1e-12)
  assert f1_max(labels, scores)[0] == pytest.approx(sklearn_f1(labels, scores), abs=1e-12)


@settings(deadline=None, max_examples=100)
@given(samples(), st.integers(0, 2 ** 32 - 1))
def test_weights_equal_sklearn(sample, seed):
  labels, scores = sample
  weights = np.random.default_rng(seed).choice([0, 0.3, 1, 2.5], len(labels))
  assume(set(labels[weights > 0]) == {0, 1})
  want = sklearn_metrics.roc_auc_score(labels, scores, sample_weight=weights)
  assert auroc(labels, scores, weights) == pytest.approx(want, abs=1e-12)
  want = sklearn_metrics.average_precision_score(labels, scores, sample_weight=weights)
  assert average_precision(labels, scores, weights) == pytest.approx(want, abs=1e-12)
  assert f1_max(labels, scores, weights)[0] == pytest.approx(sklearn_f1(labels, scores, weights), abs=1e-12)


@settings(deadline=None, max_examples=100)
@given(samples(), st.one_of(st.none(), st.integers(0, 2 ** 32 - 1)))
def test_the_trapezoidal_area_equals_sklearn(sample, seed):
  labels, scores = sample
  weights = None if seed is None else np.random.default_rng(seed).choice([0, 0.3, 1, 2.5], len(labels))
  assume(weights is None or set(labels[weights > 0]) == {0, 1})
  precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, scores, sample_weight=weights)
  want = sklearn_metrics.auc(recall, precision)
  assert average_precision(labels, scores, weights, rule='trapezoid') == pytest.approx(want, abs=1e-12)


def test_the_two_rules_differ_and_others_are_rejected():
  labels, scores = [0, 1, 0, 1], [1, 2, 3, 4]
  assert average_precision(labels, scores) == pytest.approx((1 + 2 / 3) / 2)
  assert average_precision(labels, scores, rule='trapezoid') == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
  with pytest.raises(ValueError, match=r"'stairs'.*step, trapezoid"):
    average_precision(labels, scores, rule='stairs')


@settings(deadline=None, max_examples=60)
@given(samples(), st.integers(0, 2 ** 32 - 1))
def test_integer_weights_are_repetitions(sample, seed):
  labels, scores = sample
  weights = np.random.default_rng(seed).integers(1, 4, len(labels))
  for metric in METRICS:
    repeated = metric(np.repeat(labels, weights), np.repeat(scores, weights))
    assert metric(labels, scores, weights) == pytest.approx(repeated, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(samples(), st.randoms(use_true_random=False))
def test_sample_order_and_monotone_transforms_change_nothing(sample, random):
  labels, scores = sample
  order = list(range(len(labels)))
  random.shuffle(order)
  for metric in METRICS:
    assert metric(labels[order], scores[order]) == metric(labels, scores)
  moved = 3 * np.exp(scores.astype(np.float64) / 1000)
  assert auroc(labels, moved) == auroc(labels, scores)
  assert average_precision(labels, moved) == average_precision(labels, scores)
  assert f1_max(labels, moved)[0] == f1_max(labels, scores)[0]


@settings(deadline=None, max_examples=60)
@given(samples())
def test_f1_threshold_gives_that_f1_and_is_the_highest(sample):
  labels, scores = sample
  value, threshold = f1_max(labels, scores)
  assert sklearn_metrics.f1_score(labels, scores >= threshold) == pytest.approx(value, abs=1e-12)
  for higher in np.unique(scores[scores > threshold]):
    assert sklearn_metrics.f1_score(labels, scores >= higher) < value - 1e-12


def test_among_thresholds_of_equal_f1_the_highest_is_returned():
  assert f1_max([1, 0, 0, 1], [4, 3, 2, 1]) == (2 / 3, 4)


@settings(deadline=None, max_examples=60)
@given(samples(dtypes=(np.float64,)))
def test_auroc_of_swapped_labels_is_the_complement(sample):
  labels, scores = sample
  assert auroc(1 - labels, scores) == pytest.approx(1 - auroc(labels, scores), abs=1e-12)


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64, np.int32, np.uint8, bool])
def test_constant_scores_are_chance_exactly(dtype):
  labels = np.arange(3001) % 3 == 0
  scores = np.ones(3001, dtype)
  assert auroc(labels, scores) == 0.5
  assert auroc(labels, scores, np.full(3001, 2)) == 0.5
  assert average_precision(labels, scores) == labels.mean()
  assert f1_max(labels, scores) == (pytest.approx(2 * 1001 / (1001 + 3001)), 1)


def test_perfect_and_inverted_scores():
  labels, scores = [0, 0, 0, 1, 1], np.array([0.1, 0.2, 0.3, 0.4, 0.5], np.float32)
  assert (auroc(labels, scores), average_precision(labels, scores)) == (1.0, 1.0)
  assert f1_max(labels, scores) == (1.0, np.float32(0.4))
  assert auroc(labels, -scores) == 0.0


def test_close_scores_keep_their_order_in_every_dtype():
  one = np.float64(1)
  assert auroc([0, 1], np.array([one, np.nextafter(one, 2)])) == 1.0
  assert auroc([0, 1], np.array([2 ** 60, 2 ** 60 + 1])) == 1.0
  tiny = np.array([0, 1], np.float32) * np.float32(1e-45)
  assert auroc([0, 1], tiny) == 1.0
  assert auroc([0, 1], jnp.array([1e-30, 2e-30], jnp.bfloat16)) == 1.0


def test_negative_zero_ties_with_zero():
  assert auroc([0, 1], [0.0, -0.0]) == auroc([1, 0], [0.0, -0.0]) == 0.5


def test_jax_arrays_bfloat16_and_any_shape():
  labels = jnp.array([[0, 1], [1, 0]])
  scores = jnp.array([[0.1, 0.9], [0.2, 0.3]], jnp.bfloat16)
  assert auroc(labels, scores) == 0.75
  assert auroc(labels, scores.astype(jnp.float32)) == 0.75


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize(('labels', 'weights', 'reason'), [
  ([], None, 'no samples'),
  ([0, 0], None, 'no anomalous samples'),
  ([1, 1], None, 'no normal samples'),
  ([0, 1], [1, 0], 'no anomalous samples'),
])
def test_undefined_has_a_reason(metric, labels, weights, reason):
  with pytest.raises(Undefined, match=f'^{reason}$'):
    metric(labels, np.linspace(0, 1, len(labels)), weights)


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize(('labels', 'scores', 'weights', 'message'), [
  ([0, 1, 1], [0.1, np.nan, np.inf], None, '2 of 3 values of the scores are NaN or infinite'),
  ([0, 1], [0.1, 0.2, 0.3], None, r'labels have shape \(2,\), scores \(3,\)'),
  ([0, 2], [0.1, 0.2], None, 'labels must be 0'),
  ([0, 1], ['a', 'b'], None, 'must be real numbers'),
  ([0, 1], [1j, 2j], None, 'must be real numbers'),
  ([0, 1], [0.1, 0.2], [1], r'weights have shape \(1,\)'),
  ([0, 1], [0.1, 0.2], [1, -1], '1 of 2 weights are negative'),
  ([0, 1], [0.1, 0.2], [1, np.nan], '1 of 2 values of the weights'),
])
def test_bad_input_is_rejected(metric, labels, scores, weights, message):
  with pytest.raises(ValueError, match=message) as error:
    metric(labels, scores, weights)
  assert not isinstance(error.value, Undefined)
