"""Nearest neighbours against float64 numpy, and the rounding of distances from matrix products."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsad_jax.ops import neighbours

nearest = jax.jit(neighbours.nearest, static_argnames=('k', 'metric', 'chunk'))


def all_distances(queries, bank, metric):
  """Every distance [N, M] in float64."""
  queries, bank = np.float64(queries), np.float64(bank)
  if metric == 'euclidean':
    return np.linalg.norm(queries[:, None] - bank[None], axis=-1)
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  return 1 - unit(queries) @ unit(bank).T


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(n=st.sampled_from([1, 7, 12]), m=st.sampled_from([3, 11]), k=st.sampled_from([1, 3]),
       metric=st.sampled_from(neighbours.METRICS), chunk=st.sampled_from([1, 5, 64]), seed=st.integers(0, 2**31))
def test_nearest_equals_numpy_for_any_chunk(n, m, k, metric, chunk, seed):
  rng = np.random.default_rng(seed)
  queries, bank = (rng.standard_normal((rows, 6)).astype(np.float32) for rows in (n, m))
  distances, indices = nearest(queries, bank, k=k, metric=metric, chunk=chunk)
  every = all_distances(queries, bank, metric)
  assert distances.shape == indices.shape == (n, k) and indices.dtype == jnp.int32
  np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :k], atol=2e-6)
  np.testing.assert_allclose(np.take_along_axis(every, np.asarray(indices), 1), distances, atol=2e-6)


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(scale=st.sampled_from([1e-3, 1.0, 1e3]), shift=st.sampled_from([0.0, 100.0]), seed=st.integers(0, 2**31))
def test_a_query_in_the_bank_has_distance_0_even_far_from_the_origin(scale, shift, seed):
  bank = np.float32(shift + scale * np.random.default_rng(seed).standard_normal((9, 16)))
  distances, indices = nearest(bank, bank, metric='euclidean', chunk=4)
  np.testing.assert_array_equal(distances, np.zeros((9, 1)))
  np.testing.assert_array_equal(indices[:, 0], np.arange(9))
  np.testing.assert_allclose(nearest(bank, bank, metric='cosine', chunk=4)[0], 0, atol=1e-6)


@pytest.mark.parametrize('metric, factor', [('euclidean', 2), ('cosine', 1)])
def test_scaling_the_features_scales_euclidean_and_not_cosine_distances(metric, factor):
  rng = np.random.default_rng(0)
  queries, bank = rng.standard_normal((5, 8), np.float32), rng.standard_normal((6, 8), np.float32)
  once, twice = (nearest(s * queries, s * bank, metric=metric)[0] for s in (1, 2))
  np.testing.assert_allclose(twice, factor * once, rtol=1e-5)


def test_cosine_distance_ranges_from_0_to_2():
  bank = jnp.array([[1.0, 0.0]])
  queries = jnp.array([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [0.0, 0.0]])
  np.testing.assert_allclose(nearest(queries, bank)[0][:, 0], [0, 1, 2, 1], atol=1e-7)


def test_half_precision_features_give_float32_distances():
  x = jnp.ones((2, 4), jnp.bfloat16)
  assert all(nearest(x, x, metric=metric)[0].dtype == jnp.float32 for metric in neighbours.METRICS)


def test_each_image_is_compared_with_the_bank_of_its_category():
  rng = np.random.default_rng(1)
  queries, banks = rng.standard_normal((3, 4, 6), np.float32), rng.standard_normal((2, 5, 6), np.float32)
  category = jnp.array([1, 0, 1])
  search = functools.partial(neighbours.nearest_by_category, k=2, metric='euclidean', chunk=3)
  distances, indices = jax.jit(search)(queries, banks, category)
  for row, c in enumerate((1, 0, 1)):
    one, at = nearest(queries[row], banks[c], k=2, metric='euclidean', chunk=3)
    np.testing.assert_allclose(distances[row], one, atol=1e-6)
    np.testing.assert_array_equal(indices[row], at)


def test_chunk_rows_fit_into_the_memory():
  assert neighbours.chunk_rows(5476, 64) == 64 * 2 ** 20 // (4 * 5476)
  assert neighbours.chunk_rows(10 ** 9, 1) == 1
  with pytest.raises(ValueError, match='0 MiB; it must be positive'):
    neighbours.chunk_rows(10, 0)


@pytest.mark.parametrize('options, message', [
  (dict(metric='manhattan'), "metric='manhattan' is not one of cosine, euclidean"),
  (dict(k=4), r'k=4 must be in 1\.\.3'),
  (dict(k=0), r'k=0 must be in 1\.\.3'),
  (dict(chunk=0), 'chunk=0 must be at least 1')])
def test_options_out_of_range_are_rejected(options, message):
  with pytest.raises(ValueError, match=message):
    neighbours.nearest(jnp.zeros((2, 5)), jnp.zeros((3, 5)), **options)


def test_shapes_that_do_not_match_are_rejected():
  with pytest.raises(ValueError, match=r'\[N, D\] and \[M, D\]; got \(2, 5\) and \(3, 4\)'):
    neighbours.nearest(jnp.zeros((2, 5)), jnp.zeros((3, 4)))
  with pytest.raises(ValueError, match=r'\[C, M, D\]; got \(1, 2, 5\) and \(3, 5\)'):
    neighbours.nearest_by_category(jnp.zeros((1, 2, 5)), jnp.zeros((3, 5)), jnp.zeros(1, int))
