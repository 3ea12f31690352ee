"""Curves keep the areas of all thresholds, histograms count every pixel, and a run has one threshold."""

import numpy as np
import pytest

from zsad_jax import metrics
from zsad_jax.metrics import curves


def collected(seed=0, n=8, size=64, gap=1.0, decimals=None):
  rng = np.random.default_rng(seed)
  masks = np.zeros((n, size, size), np.uint8)
  for mask in masks[1:]:
    (y, x), (h, w) = rng.integers(0, size - 14, 2), rng.integers(2, 14, 2)
    mask[y:y + h, x:x + w] = 1
  maps = np.exp(2 * rng.standard_normal(masks.shape) + gap * masks).astype(np.float32)
  maps = maps if decimals is None else maps.round(decimals)
  pixel = metrics.PixelMetrics()
  pixel.update(maps, masks)
  return pixel, maps, masks


@pytest.mark.parametrize('seed, gap, decimals', [(0, 1.0, None), (1, 3.0, None), (2, 6.0, 0), (3, -1.0, None)])
def test_areas_equal_those_of_all_thresholds(seed, gap, decimals):
  pixel, *_ = collected(seed, gap=gap, decimals=decimals)
  thinned, exact = pixel.curves(), pixel.compute()
  assert len(thinned.thresholds) <= curves.POINTS + 1
  assert np.trapezoid(*thinned.roc()[::-1]) == pytest.approx(exact['pixel_auroc'].value, abs=1e-3)
  assert np.trapezoid(*thinned.pro_curve(0.3)[::-1]) / 0.3 == pytest.approx(exact['aupro'].value, abs=2e-3)
  recall, precision = thinned.pr()
  assert np.trapezoid(np.append(precision[0], precision), np.append(0, recall)) == pytest.approx(
    exact['pixel_ap'].value, abs=5e-3)


def test_counts_are_exact_at_every_threshold():
  pixel, maps, masks = collected(decimals=0, gap=3)
  thinned = pixel.curves()
  for t, tp, fp in list(zip(thinned.thresholds, thinned.tp, thinned.fp))[::7]:
    assert (tp, fp) == (np.sum(maps[masks == 1] >= t), np.sum(maps[masks == 0] >= t))
  assert (thinned.tp[-1], thinned.fp[-1], thinned.pro[-1]) == (thinned.positives, thinned.negatives, 1)
  for x, y in (thinned.roc(), thinned.pro_curve()):
    assert np.all(np.diff(x) >= 0) and np.all(np.diff(y) >= 0)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)


def test_curves_leave_later_batches_and_metrics_as_they_are():
  pixel, maps, masks = collected()
  pixel.curves()
  pixel.update(maps[:3] + 1, masks[:3])
  whole = metrics.PixelMetrics()
  whole.update(np.concatenate([maps, maps[:3] + 1]), np.concatenate([masks, masks[:3]]))
  assert pixel.compute() == whole.compute()
  assert pixel.curves().positives == whole.curves().positives


def test_histogram_counts_every_pixel_once():
  pixel, maps, masks = collected()
  thinned = pixel.histogram()
  assert thinned.normal.sum() == np.sum(masks == 0) and thinned.anomalous.sum() == masks.sum()
  inner = np.histogram(maps[masks == 0], thinned.edges)[0]
  np.testing.assert_array_equal(thinned.normal[1:-1], inner[1:-1])
  assert thinned.edges[-1] < maps.max()  # one pixel in a thousand does not stretch the axis


def test_histograms_of_one_class_and_of_one_value():
  pixel = metrics.PixelMetrics()
  pixel.update(np.full((1, 4, 4), 0.5), np.zeros((1, 4, 4)))
  thinned = pixel.histogram()
  assert (thinned.normal.sum(), thinned.anomalous.sum()) == (16, 0)
  with pytest.raises(metrics.Undefined, match='no anomalous pixels'):
    pixel.curves()
  with pytest.raises(metrics.Undefined, match='no pixels'):
    metrics.PixelMetrics().histogram()


def test_the_threshold_of_a_run_is_that_of_all_its_pixels():
  parts = [collected(seed, gap=gap) for seed, gap in ((0, 3.0), (1, 4.0), (2, 5.0))]
  maps, masks = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
  best, _ = metrics.f1_max(masks, maps)
  predicted = maps >= metrics.f1_threshold([part[0].curves() for part in parts])
  f1 = 2 * np.sum(predicted & (masks == 1)) / (predicted.sum() + masks.sum())
  assert f1 == pytest.approx(best, abs=2e-3)


def test_the_balanced_threshold_does_not_classify_everything_as_anomalous():
  scores = np.array([.1, .2, .3, .4, .5, .6, .7, .8, .9, .95])
  labels = np.array([0, 1, 0, 1, 1, 1, 1, 1, 1, 1])
  accuracy, threshold = metrics.balanced_threshold(labels, scores)
  assert (accuracy, threshold) == (pytest.approx((1 + 7 / 8) / 2), .4)
  assert metrics.f1_max(labels, scores)[1] == .2
  assert metrics.balanced_threshold([0, 1, 1, 0], [1, 1, 1, 1]) == (.5, 1)
  with pytest.raises(metrics.Undefined, match='no normal images'):
    metrics.balanced_threshold([1, 1], [.1, .2])


@pytest.mark.parametrize('seed', range(5))
def test_no_threshold_has_a_better_balanced_accuracy(seed):
  rng = np.random.default_rng(seed)
  labels, scores = np.append(rng.integers(0, 2, 30), [0, 1]), rng.integers(0, 9, 32)
  accuracy = lambda t: (np.mean(scores[labels == 1] >= t) + np.mean(scores[labels == 0] < t)) / 2
  best, threshold = metrics.balanced_threshold(labels, scores)
  assert accuracy(threshold) == pytest.approx(best) == max(accuracy(t) for t in range(10))
