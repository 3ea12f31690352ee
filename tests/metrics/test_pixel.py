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


def gathered(maps, masks, cuts=(), **kwargs):
  metrics = PixelMetrics(**kwargs)
  for m, k in zip(np.split(maps, cuts), np.split(masks, cuts)):
    metrics.update(m, k)
  return metrics


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10 ** 6), st.sampled_from([np.float16, np.float32, np.float64, np.uint8]))
def test_equal_to_the_array_metrics(seed, dtype):
  maps, masks = example(seed=seed, dtype=dtype)
  values = gathered(maps, masks, [2]).compute()
  assert tuple(values) == PIXEL_METRICS
  assert values['pixel_auroc'].value == pytest.approx(auroc(masks, maps), abs=1e-12)
  assert values['pixel_ap'].value == pytest.approx(average_precision(masks, maps), abs=1e-12)
  assert values['pixel_f1max'].value == f1_max(masks, maps)[0]
  assert all(isinstance(v.value, float) and not v.reason for v in values.values())


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 6), max_size=4).map(sorted))
def test_batching_changes_nothing(cuts):
  maps, masks = example()
  assert gathered(maps, masks, cuts).compute() == gathered(maps, masks).compute()


def test_image_order_changes_nothing():
  maps, masks = example(n=9)
  order = np.random.default_rng(1).permutation(9)
  want, got = gathered(maps, masks).compute(), gathered(maps[order], masks[order]).compute()
  for name in PIXEL_METRICS:
    assert got[name].value == pytest.approx(want[name].value, abs=1e-14)


def test_blocks_change_nothing(monkeypatch):
  maps, masks = example()
  want = gathered(maps, masks).compute()
  monkeypatch.setattr(pixel_module, 'BLOCK', 7)
  got = gathered(maps, masks).compute()
  for name in PIXEL_METRICS:
    assert got[name].value == pytest.approx(want[name].value, abs=1e-14)


def test_compute_may_be_repeated_and_continued():
  maps, masks = example()
  metrics = gathered(maps[:3], masks[:3])
  first = metrics.compute()
  assert metrics.compute() == first == gathered(maps[:3], masks[:3]).compute()
  metrics.update(maps[3:], masks[3:])
  assert metrics.compute() == gathered(maps, masks).compute()


def test_global_scale_is_free_and_per_image_scale_is_not():
  maps, masks = example()
  want = gathered(maps, masks).compute()
  scaled = gathered(4 * maps, masks).compute()
  per_image = gathered(maps * np.linspace(0.1, 1, 6)[:, None, None], masks)
  for name in PIXEL_METRICS:
    assert scaled[name].value == pytest.approx(want[name].value, abs=1e-12)
    assert abs(per_image.compute()[name].value - want[name].value) > 1e-3


def test_constant_maps_are_chance():
  masks = example()[1]
  values = gathered(np.full(masks.shape, 0.3, np.float16), masks).compute()
  assert values['pixel_auroc'].value == 0.5
  assert values['pixel_ap'].value == pytest.approx(masks.mean(), abs=1e-15)
  assert values['aupro'].value == pytest.approx(0.15)
  assert values['aupro_200'].value is None
  assert 'has no 200 steps' in values['aupro_200'].reason


def test_limit_and_connectivity_are_used():
  maps, masks = example()
  masks[0, 0, 0] = masks[0, 1, 1] = 1
  metrics = gathered(maps, masks, limit=0.05, connectivity=4)
  assert metrics.regions == gathered(maps, masks).regions + 1
  assert metrics.compute()['aupro'].value == aupro(maps, masks, limit=0.05, connectivity=4)


def test_half_precision_maps_are_scored_as_they_are():
  maps, masks = example(dtype=np.float16)
  wide = gathered(maps.astype(np.float64), masks).compute()
  half = gathered(maps, masks).compute()
  for name in PIXEL_METRICS[:4]:
    assert half[name] == wide[name]
  bfloat16 = jnp.asarray(maps, jnp.bfloat16)
  assert gathered(bfloat16, masks).compute() == gathered(np.asarray(bfloat16, np.float32), masks).compute()


@pytest.mark.parametrize('narrow', [np.float16, np.float32])
@pytest.mark.parametrize('narrow_first', [True, False])
def test_batches_of_two_dtypes_are_compared_in_the_wider(narrow, narrow_first):
  rng = np.random.default_rng(2)
  maps, masks = example(dtype=np.float64)
  maps = (maps + rng.random(maps.shape)).astype(narrow)
  wide = maps.astype(np.float64)
  wide[3:] += rng.uniform(0, 1e-10, wide[3:].shape)
  parts = [(maps[:3], masks[:3]), (wide[3:], masks[3:])]
  metrics = PixelMetrics()
  for part in parts if narrow_first else parts[::-1]:
    metrics.update(*part)
  want = gathered(wide, masks).compute()
  for name, value in metrics.compute().items():
    assert value.value == pytest.approx(want[name].value, abs=1e-14)


def test_batches_may_be_overwritten_after_update():
  maps, masks = example()
  metrics = gathered(maps, masks)
  want = gathered(maps.copy(), masks.copy()).compute()
  maps[:], masks[:] = 0, 0
  assert metrics.compute() == want


def test_vanished_and_contradicting_masks_are_counted():
  maps, masks = example()
  metrics = PixelMetrics()
  metrics.update(maps, masks, labels=[1, 1, 1, 0, 1, 1])
  assert (metrics.images, metrics.vanished, metrics.contradicted, metrics.regions) == (6, 1, 1, 5)
  assert metrics.compute() == gathered(maps, masks).compute()


@pytest.mark.parametrize(('fill', 'reason'), [(0, 'no anomalous pixels'), (1, 'no normal pixels')])
def test_one_class_of_pixels_is_null_with_the_reason(fill, reason):
  values = gathered(np.random.default_rng(0).random((2, 4, 4)), np.full((2, 4, 4), fill)).compute()
  assert values == dict.fromkeys(PIXEL_METRICS, (None, reason))


def test_nothing_seen_is_null():
  assert PixelMetrics().compute(('aupro',)) == {'aupro': (None, 'no pixels')}
  empty = PixelMetrics()
  empty.update(np.zeros((0, 4, 4)), np.zeros((0, 4, 4), np.uint8))
  assert empty.compute()['pixel_auroc'] == (None, 'no pixels')


def test_chosen_metrics_only_and_unknown_ones_refused():
  metrics = gathered(*example())
  whole = metrics.compute()
  for name in PIXEL_METRICS:
    assert metrics.compute((name,)) == {name: whole[name]}
  with pytest.raises(ValueError, match=r"unknown pixel metrics \['aupr'\]"):
    metrics.compute(('aupr',))


def test_bad_values_name_the_image_and_add_nothing():
  maps, masks = example()
  metrics = gathered(maps[:2], masks[:2])
  broken = maps[2:4].copy()
  broken[1, 0, :2] = np.nan, np.inf
  with pytest.raises(ValueError, match=r'2 of 576 values of the map of image good/003 are NaN or infinite'):
    metrics.update(broken, masks[2:4], ids=['good/002', 'good/003'])
  with pytest.raises(ValueError, match=r'the map of image number 3 '):
    metrics.update(broken, masks[2:4])
  with pytest.raises(ValueError, match=r'the mask of image bad/1 must be 0 .* or 1'):
    metrics.update(maps[2:3], 255 * masks[2:3], ids=['bad/1'])
  assert metrics.images == 2
  assert metrics.compute() == gathered(maps[:2], masks[:2]).compute()


@pytest.mark.parametrize(('maps', 'masks', 'kwargs', 'message'), [
  (np.zeros((2, 3, 3)), np.zeros((2, 4, 4)), {}, r'not \(2, 3, 3\) and \(2, 4, 4\)'),
  (np.zeros((3, 3)), np.zeros((3, 3)), {}, r'must be \[B, H, W\]'),
  (np.zeros((2, 3, 3)), np.zeros((2, 3, 3)), {'ids': ['a']}, '2 maps need as many ids'),
  (np.zeros((2, 3, 3)), np.zeros((2, 3, 3)), {'labels': [0]}, '2 maps need as many ids and labels'),
  (np.zeros((2, 3, 3), complex), np.zeros((2, 3, 3)), {}, 'real numbers are needed'),
])
def test_shapes_that_do_not_fit(maps, masks, kwargs, message):
  with pytest.raises(ValueError, match=message) as error:
    PixelMetrics().update(maps, masks, **kwargs)
  assert not isinstance(error.value, Undefined)


@pytest.mark.parametrize(('kwargs', 'message'), [
  ({'limit': 0}, r'\(0, 1\], not 0'), ({'limit': 1.5}, 'not 1.5'), ({'limit': 30}, 'not 30'),
  ({'limit': float('nan')}, 'not nan'), ({'connectivity': 6}, 'must be 4 or 8, not 6'),
])
def test_settings_out_of_range(kwargs, message):
  with pytest.raises(ValueError, match=message):
    PixelMetrics(**kwargs)


def test_memory_is_the_scores_and_one_copy():
  maps, masks = example(n=8)
  maps, masks = (np.kron(a, np.ones((1, 20, 20), a.dtype)) for a in (maps, masks))
  tracemalloc.start()
  metrics = PixelMetrics()
  for i in range(8):
    metrics.update(maps[i:i + 1], masks[i:i + 1])
  held, _ = tracemalloc.get_traced_memory()
  metrics.compute()
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert held < 4.5 * maps.size
  assert peak < 12 * maps.size


def test_pixel_ap_by_the_trapezoidal_rule(monkeypatch):
  rng = np.random.default_rng(0)
  maps, masks = rng.integers(0, 30, (4, 8, 8)).astype(np.float32), rng.random((4, 8, 8)) < 0.3
  monkeypatch.setattr(pixel_module, 'BLOCK', 7)
  made = PixelMetrics(aupr='trapezoid')
  made.update(maps, masks)
  precision, recall, _ = sklearn_metrics.precision_recall_curve(masks.ravel(), maps.ravel())
  assert made.compute()['pixel_ap'].value == pytest.approx(sklearn_metrics.auc(recall, precision), abs=1e-12)
  with pytest.raises(ValueError, match='it must be one of step, trapezoid'):
    PixelMetrics(aupr='stairs')
