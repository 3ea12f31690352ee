"""Streaming pixel metrics: equal to the array metrics, whatever the batches, with bounded memory."""

import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from zsad_jax.metrics import PIXEL_METRICS, PixelMetrics, Undefined, aupro, auroc, average_precision, f1_max
from zsad_jax.metrics import pixel as pixel_module


def example(n=6, size=24, seed=0, dtype=np.float32):
  rng = np.random.default_rng(seed)
  masks = np.zeros((n, size, size), np.uint8)
  for mask in masks[1:]:
    y, x = rng.integers(0, size - 5, 2)
    mask[y:y + 5, x:x + 3] = 1
  return (rng.integers(0, 50, masks.shape) / 7 + 2 * masks).astype(dtype), masks


def collected(maps, masks, cuts=(), **kwargs):
  metrics = PixelMetrics(**kwargs)
  for m, k in zip(np.split(maps, cuts), np.split(masks, cuts)):
    metrics.update(m, k)
  return metrics


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10 ** 6), st.sampled_from([np.float16, np.float32, np.float64, np.uint8]))
def test_equal_to_the_array_metrics(seed, dtype):
  maps, masks = example(seed=seed, dtype=dtype)
  values = collected(maps, masks, [2]).compute()
  assert tuple(values) == PIXEL_METRICS
  assert values['pixel_auroc'].value == pytest.approx(auroc(masks, maps), abs=1e-12)
  assert values['pixel_ap'].value == pytest.approx(average_precision(masks, maps), abs=1e-12)
  assert values['pixel_f1max'].value == f1_max(masks, maps)[0]
  assert all(isinstance(v.value, float) and not v.reason for v in values.values())


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 6), max_size=4).map(sorted))
def test_batching_changes_nothing(cuts):
  maps, masks = example()
  assert collected(maps, masks, cuts).compute() == collected(maps, masks).compute()


def test_image_order_changes_nothing():
  maps, masks = example(n=9)
  order = np.random.default_rng(1).permutation(9)
  want, got = collected(maps, masks).compute(), collected(maps[order], masks[order]).compute()
  for name in PIXEL_METRICS:
    assert got[name].value == pytest.approx(want[name].value, abs=1e-14)


def test_blocks_change_nothing(monkeypatch):
  maps, masks = example()
  want = collected(maps, masks).compute()
  monkeypatch.setattr(pixel_module, 'BLOCK', 7)
  got = collected(maps, masks).compute()
  for name in PIXEL_METRICS:
    assert got[name].value == pytest.approx(want[name].value, abs=1e-14)


def test_compute_may_be_repeated_and_continued():
  maps, masks = example()
  metrics = collected(maps[:3], masks[:3])
  first = metrics.compute()
  assert metrics.compute() == first == collected(maps[:3], masks[:3]).compute()
  metrics.update(maps[3:], masks[3:])
  assert metrics.compute() == collected(maps, masks).compute()


def test_one_scale_for_all_images_changes_nothing_and_one_per_image_does():
  maps, masks = example()
  want = collected(maps, masks).compute()
  scaled = collected(4 * maps, masks).compute()
  per_image = collected(maps * np.linspace(0.1, 1, 6)[:, None, None], masks)
  for name in PIXEL_METRICS:
    assert scaled[name].value == pytest.approx(want[name].value, abs=1e-12)
    assert abs(per_image.compute()[name].value - want[name].value) > 1e-3


def test_constant_maps_are_chance():
  masks = example()[1]
  values = collected(np.full(masks.shape, 0.3, np.float16), masks).compute()
  assert values['pixel_auroc'].value == 0.5
  assert values['pixel_ap'].value == pytest.approx(masks.mean(), abs=1e-15)
  assert values['aupro'].value == pytest.approx(0.15)
  assert values['aupro_200'].value is None
  assert 'has no 200 steps' in values['aupro_200'].reason


def test_limit_and_connectivity_are_used():
  maps, masks = example()
  masks[0, 0, 0] = masks[0, 1, 1] = 1
  metrics = collected(maps, masks, limit=0.05, connectivity=4)
  assert metrics.regions == collected(maps, masks).regions + 1
  assert metrics.compute()['aupro'].value == aupro(maps, masks, limit=0.05, connectivity=4)


def test_half_precision_maps_are_scored_as_they_are():
  maps, masks = example(dtype=np.float16)
  wide = collected(maps.astype(np.float64), masks).compute()
  half = collected(maps, masks).compute()
  for name in PIXEL_METRICS[:4]:
    assert half[name] == wide[name]
  bfloat16 = jnp.asarray(maps, jnp.bfloat16)
  assert collected(bfloat16, masks).compute() == collected(np.asarray(bfloat16, np.float32), masks).compute()


@pytest.mark.parametrize('narrow', [np.float16, np.float32])
@pytest.mark.parametrize('narrow_first', [True, False])
def test_batches_of_two_dtypes_are_compared_in_the_wider_one(narrow, narrow_first):
  rng = np.random.default_rng(2)
  maps, masks = example(dtype=np.float64)
  maps = (maps + rng.random(maps.shape)).astype(narrow)
  wide = maps.astype(np.float64)
  wide[3:] += rng.uniform(0, 1e-10, wide[3:].shape)
  parts = [(maps[:3], masks[:3]), (wide[3:], masks[3:])]
  metrics = PixelMetrics()
  for part in parts if narrow_first else parts[::-1]:
    metrics.update(*part)
  want = collected(wide, masks).compute()
  for name, value in metrics.compute().items():
    assert value.value == pytest.approx(want[name].value, abs=1e-14)


def test_batches_may_be_overwritten_after_update():
  maps, masks = example()
  metrics = collected(maps, masks)
  want = collected(maps.copy(), masks.copy()).compute()
  maps[:], masks[:] = 0, 0
  assert metrics.compute() == want


def test_vanished_and_contradicting_masks_are_counted():
  maps, masks = example()
  metrics = PixelMetrics()
  metrics.update(maps, masks, labels=[1, 1, 1, 0, 1, 1])
  assert (metrics.images, metrics.vanished, metrics.contradicted, metrics.regions) == (6, 1, 1, 5)
  assert metrics.compute() == collected(maps, masks).compute()


@pytest.mark.parametrize(('fill', 'reason'), [(0, 'no anomalous pixels'), (1, 'no normal pixels')])
def test_one_class_of_pixels_is_null_with_the_reason(fill, reason):
  values = collected(np.random.default_rng(0).random((2, 4, 4)), np.full((2, 4, 4), fill)).compute()
  assert values == dict.fromkeys(PIXEL_METRICS, (None, reason))


def test_no_images_is_null():
  assert PixelMetrics().compute(('aupro',)) == {'aupro': (None, 'no pixels')}
  empty = PixelMetrics()
  empty.update(np.zeros((0, 4, 4)), np.zeros((0, 4, 4), np.uint8))
  assert empty.compute()['pixel_auroc'] == (None, 'no pixels')


def test_a_choice_of_metrics_is_computed_and_unknown_ones_are_rejected():
  metrics = collected(*example())
  whole = metrics.compute()
  for name in PIXEL_METRICS:
    assert metrics.compute((name,)) == {name: whole[name]}
  with pytest.raises(ValueError, match=r"unknown pixel metrics \['aupr'\]"):
    metrics.compute(('aupr',))


def test_bad_values_name_the_image_and_add_nothing():
  maps, masks = example()
  metrics = collected(maps[:2], masks[:2])
  broken = maps[2:4].copy()
  broken[1, 0, :2] = np.nan, np.inf
  with pytest.raises(ValueError, match=r'2 of 576 values of the map of image good/003 are NaN or infinite'):
    metrics.update(broken, masks[2:4], ids=['good/002', 'good/003'])
  with pytest.raises(ValueError, match=r'the map of image number 3 '):
    metrics.update(broken, masks[2:4])
  with pytest.raises(ValueError, match=r'the mask of image bad/1 must be 0 .* or 1'):
    metrics.update(maps[2:3], 255 * masks[2:3], ids=['bad/1'])
  assert metrics.images == 2
  assert metrics.compute() == collected(maps[:2], masks[:2]).compute()


@pytest.mark.parametrize(('maps', 'masks', 'kwargs', 'message'), [
  (np.zeros((2, 3, 3)), np.zeros((2, 4, 4)), {}, r'got \(2, 3, 3\) and \(2, 4, 4\)'),
  (np.zeros((3, 3)), np.zeros((3, 3)), {}, r'shape \[B, H, W\]'),
  (np.zeros((2, 3, 3)), np.zeros((2, 3, 3)), {'ids': ['a']}, '2 maps; ids and labels'),
  (np.zeros((2, 3, 3)), np.zeros((2, 3, 3)), {'labels': [0]}, '2 maps; ids and labels'),
  (np.zeros((2, 3, 3), complex), np.zeros((2, 3, 3)), {}, 'real numbers'),
])
def test_different_shapes_are_rejected(maps, masks, kwargs, message):
  with pytest.raises(ValueError, match=message) as error:
    PixelMetrics().update(maps, masks, **kwargs)
  assert not isinstance(error.value, Undefined)


@pytest.mark.parametrize(('kwargs', 'message'), [
  ({'limit': 0}, r'\(0, 1\]; got 0'), ({'limit': 1.5}, 'got 1.5'), ({'limit': 30}, 'got 30'),
  ({'limit': float('nan')}, 'got nan'), ({'connectivity': 6}, 'must be 4 or 8; got 6'),
])
def test_settings_out_of_range_are_rejected(kwargs, message):
  with pytest.raises(ValueError, match=message):
    PixelMetrics(**kwargs)


def test_memory_is_the_scores_and_one_copy():
  maps, masks = example(n=8)
  maps, masks = (np.kron(a, np.ones((1, 20, 20), a.dtype)) for a in (maps, masks))
  tracemalloc.start()
  metrics = PixelMetrics()
  for i in range(8):
    metrics.update(maps[i:i + 1], masks[i:i + 1])
  stored, _ = tracemalloc.get_traced_memory()
  metrics.compute()
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert stored < 4.5 * maps.size
  assert peak < 12 * maps.size


def test_pixel_ap_by_the_trapezoidal_rule(monkeypatch):
  rng = np.random.default_rng(0)
  maps, masks = rng.integers(0, 30, (4, 8, 8)).astype(np.float32), rng.random((4, 8, 8)) < 0.3
  monkeypatch.setattr(pixel_module, 'BLOCK', 7)
  pixel = PixelMetrics(aupr='trapezoid')
  pixel.update(maps, masks)
  precision, recall, _ = sklearn_metrics.precision_recall_curve(masks.ravel(), maps.ravel())
  assert pixel.compute()['pixel_ap'].value == pytest.approx(sklearn_metrics.auc(recall, precision), abs=1e-12)
  with pytest.raises(ValueError, match=r"'stairs'.*step, trapezoid"):
    PixelMetrics(aupr='stairs')
