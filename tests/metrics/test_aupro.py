"""AUPRO against a brute force over all thresholds, aupro_200 against the official loop."""

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import auc

from zsad_jax.metrics import Undefined, aupro, aupro_200, auroc, average_precision
from zsad_jax.metrics.aupro import regions


def flood_fill(mask, connectivity=8):
  """Boolean mask of every connected region, in the order of their first pixels."""
  left, filled = mask.astype(bool).copy(), []
  steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if connectivity == 8 or not dy * dx]
  for start in zip(*np.nonzero(mask)):
    if not left[start]:
      continue
    region, stack = np.zeros(mask.shape, bool), [start]
    while stack:
      y, x = stack.pop()
      if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and left[y, x]:
        left[y, x], region[y, x] = False, True
        stack += [(y + dy, x + dx) for dy, dx in steps]
    filled.append(region)
  return filled


def overlap(predicted, masks, connectivity=8):
  """PRO and FPR of boolean maps."""
  pro = [p[region].sum() / region.sum() for p, mask in zip(predicted, masks)
         for region in flood_fill(mask, connectivity)]
  normal = masks == 0
  return np.array(pro).mean(), np.logical_and(normal, predicted).sum() / normal.sum()


def brute_force_aupro(maps, masks, limit=0.3, connectivity=8):
  """Trapezoids over the full curve, cut by linear interpolation at the limit."""
  points = [(0.0, 0.0)]
  for threshold in np.unique(maps)[::-1]:
    pro, fpr = overlap(maps >= threshold, masks, connectivity)
    points.append((fpr, pro))
  area = 0.0
  for (x0, y0), (x1, y1) in itertools.pairwise(points):
    if x1 > limit:
      if x0 < limit:
        y_cut = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (limit - x0) * (y0 + y_cut) / 2
      break
    area += (x1 - x0) * (y0 + y1) / 2
  return area / limit


def official_loop(maps, masks, connectivity=8):
  """cal_pro_score of the official AnomalyCLIP code, one threshold after the other; may fail or return NaN."""
  low, high = maps.min(), maps.max()
  pros, fprs = [], []
  for threshold in np.arange(low, high, (high - low) / 200):
    pro, fpr = overlap(maps > threshold, masks, connectivity)
    pros.append(pro)
    fprs.append(fpr)
  pros, fprs = np.array(pros), np.array(fprs)
  below = fprs < 0.3
  fprs = fprs[below]
  fprs = (fprs - fprs.min()) / (fprs.max() - fprs.min())
  return auc(fprs, pros[below])


def golden_input():
  k, y, x = np.meshgrid(np.arange(4), np.arange(64), np.arange(64), indexing='ij')
  noise = ((x * 73856093) ^ (y * 19349663) ^ (k * 83492791)) % 1000 / 1000
  masks = np.zeros((4, 64, 64), np.uint8)
  masks[0, 5:10, 5:10] = masks[0, 10, 10] = masks[1, 30:50, 30:50] = 1
  return noise + 0.3 * masks, masks


@st.composite
def map_sets(draw, dtypes=(np.float16, np.float32, np.float64, np.int32)):
  """A few small maps with masks that have anomalous and normal pixels, some images without regions."""
  rng = np.random.default_rng(draw(st.integers(0, 2 ** 32 - 1)))
  shape = (draw(st.integers(1, 3)), draw(st.integers(2, 7)), draw(st.integers(2, 7)))
  masks = (rng.random(shape) < draw(st.sampled_from([0.1, 0.4, 0.8]))).astype(np.uint8)
  masks[0, 0, :2] = [0, 1]
  if shape[0] > 1:
    masks[-1] = 0
  maps = rng.integers(0, draw(st.sampled_from([2, 4, 30, 10000])), shape) / 13
  maps = maps + draw(st.sampled_from([0, 0.5])) * masks
  return maps.astype(draw(st.sampled_from(dtypes))), masks


@settings(deadline=None, max_examples=120)
@given(map_sets(), st.sampled_from([0.01, 0.05, 0.3, 0.5, 1.0]), st.sampled_from([4, 8]))
def test_aupro_equals_brute_force(maps_and_masks, limit, connectivity):
  maps, masks = maps_and_masks
  value = aupro(maps, masks, limit=limit, connectivity=connectivity)
  assert value == pytest.approx(brute_force_aupro(maps, masks, limit, connectivity), abs=1e-12)
  assert 0 <= value <= 1


@pytest.mark.slow
@settings(deadline=None, max_examples=120)
@given(map_sets(), st.sampled_from([4, 8]))
def test_aupro_200_equals_the_official_loop_or_is_undefined_with_it(maps_and_masks, connectivity):
  maps, masks = maps_and_masks
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', RuntimeWarning)
    try:
      want = official_loop(maps, masks, connectivity)
    except (ValueError, ZeroDivisionError):
      want = np.nan
  if np.isnan(want):
    with pytest.raises(Undefined):
      aupro_200(maps, masks, connectivity=connectivity)
  else:
    assert aupro_200(maps, masks, connectivity=connectivity) == want


def test_goldens():
  maps, masks = golden_input()
  assert aupro_200(maps, masks) == pytest.approx(0.3479231, abs=5e-8)
  assert aupro_200(maps, masks, connectivity=4) == pytest.approx(0.3158043, abs=5e-8)
  assert aupro(maps, masks) == pytest.approx(0.3498764, abs=5e-8)
  assert auroc(masks, maps) == pytest.approx(0.7661282, abs=5e-8)
  assert average_precision(masks, maps) == pytest.approx(0.3658534, abs=5e-8)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_aupro_200_takes_its_step_in_the_dtype_of_the_maps(dtype):
  maps, masks = golden_input()
  maps = maps.astype(dtype)
  assert aupro_200(maps, masks) == official_loop(maps, masks)


def test_aupro_200_of_half_precision_maps_differs_from_the_same_maps_widened():
  maps, masks = golden_input()
  maps = maps.astype(np.float16)
  assert aupro_200(maps, masks) != aupro_200(maps.astype(np.float64), masks)
  assert aupro(maps, masks) == aupro(maps.astype(np.float64), masks)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64, np.int32])
def test_aupro_200_if_scores_lie_on_or_next_to_the_thresholds(dtype):
  steps = np.arange(dtype(0), dtype(200), dtype(200) / 200) if dtype == np.int32 else (
    np.arange(dtype(0.1), dtype(0.9), (dtype(0.9) - dtype(0.1)) / 200))
  maps = np.append(steps[:200], steps[-1] + steps[1] - steps[0]).astype(dtype)
  maps = np.random.default_rng(0).permutation(np.repeat(maps, 4)).reshape(1, 12, 67)
  masks = np.random.default_rng(1).integers(0, 2, maps.shape)
  assert aupro_200(maps, masks) == official_loop(maps, masks)


def test_skewed_scores_break_the_official_loop_and_not_the_exact_value():
  maps, masks = golden_input()
  maps = np.rint(1000 * maps)
  skewed = np.exp(0.016 * maps)
  assert aupro(skewed, masks) == aupro(maps, masks)
  assert aupro_200(skewed, masks) == official_loop(skewed, masks)
  assert abs(aupro_200(skewed, masks) - aupro(maps, masks)) > 0.1


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_perfect_map_is_one_exactly_and_never_more(dtype):
  rng = np.random.default_rng(0)
  masks = (rng.random((5, 40, 40)) < 0.07).astype(np.uint8)
  maps = (rng.random((5, 40, 40)) + 2 * masks).astype(dtype)
  for limit in (1e-4, 0.05, 0.3, 1.0):
    assert aupro(maps, masks, limit=limit) == 1.0
  assert aupro(-maps, masks) == 0.0


def test_constant_map_is_half_the_limit():
  masks = golden_input()[1]
  assert aupro(np.zeros(masks.shape), masks) == pytest.approx(0.15)
  assert aupro(np.zeros(masks.shape), masks, limit=1) == 0.5


def test_every_region_counts_the_same():
  masks = np.zeros((1, 20, 20), np.uint8)
  masks[0, :10, :10] = masks[0, 15, 15] = 1
  maps = np.zeros(masks.shape)
  maps[0, 15, 15] = 1
  small = aupro(maps, masks, limit=1)
  maps = np.zeros(masks.shape)
  maps[0, :10, :10] = 1
  assert small == aupro(maps, masks, limit=1) == 0.75


@pytest.mark.parametrize(('maps', 'reason'), [
  (np.zeros((1, 4, 4), np.float32), 'has no 200 steps'),
  (np.eye(4)[None], 'share one rate'),
  (1 - np.eye(4)[None], 'no threshold has a false-positive rate below 0.3'),
])
def test_aupro_200_is_undefined_if_the_official_code_fails(maps, reason):
  with pytest.raises(Undefined, match=reason):
    aupro_200(maps, np.eye(4, dtype=np.uint8)[None])


def test_aupro_200_of_a_range_too_wide_for_half_precision():
  maps = np.linspace(-60000, 60000, 16).reshape(1, 4, 4).astype(np.float16)
  with pytest.raises(Undefined, match='has no 200 steps in float16'):
    aupro_200(maps, np.eye(4, dtype=np.uint8)[None])


def test_aupro_200_of_a_graded_perfect_map_is_one():
  masks = golden_input()[1]
  maps = golden_input()[0] + 10 * masks
  assert aupro_200(maps, masks) == official_loop(maps, masks) == 1.0


@pytest.mark.parametrize('metric', [aupro, aupro_200])
@pytest.mark.parametrize(('fill', 'reason'), [(0, 'no anomalous pixels'), (1, 'no normal pixels')])
def test_one_class_is_undefined(metric, fill, reason):
  with pytest.raises(Undefined, match=f'^{reason}$'):
    metric(np.random.default_rng(0).random((2, 3, 3)), np.full((2, 3, 3), fill))


@pytest.mark.parametrize('connectivity', [4, 8])
def test_regions_equal_flood_fill(connectivity):
  mask = np.random.default_rng(1).random((30, 20)) < 0.3
  region, sizes = regions(mask, connectivity)
  filled = flood_fill(mask, connectivity)
  assert sizes.tolist() == [r.sum() for r in filled]
  for number, expected in enumerate(filled):
    np.testing.assert_array_equal(region == number, expected[mask])


def test_a_diagonal_is_one_region_unless_four_connected():
  assert regions(np.eye(6, dtype=bool))[1].tolist() == [6]
  assert regions(np.eye(6, dtype=bool), 4)[1].tolist() == [1] * 6
