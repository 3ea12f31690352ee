"""Representative vectors: every rule against its definition, and the effect of CLIP-AD's settings."""

import ml_collections as mlc
import numpy as np
import pytest
from absl import logging
from golden import record_sdp
from sklearn.neighbors import KernelDensity

from zsad_jax.configs import sdp
from zsad_jax.methods.parts import bounds, representative_vectors


def keys(**changes):
  c = sdp.method().rvs
  c.update(changes)
  return mlc.FrozenConfigDict(c)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def prompts(count=40, width=64, spread=0.05, seed=0):
  """Unit vectors near one direction."""
  rng = np.random.default_rng(seed)
  return unit(rng.standard_normal(width) * 0.5 + spread * rng.standard_normal((count, width)))


@pytest.mark.parametrize('rule', record_sdp.RULES)
def test_every_rule_as_the_released_code_computes_it(rule):
  _, _, _, texts, _, _ = record_sdp.inputs()
  with np.load(record_sdp.HERE / 'sdp.npz') as golden:
    want = golden[f'vectors_{rule}']
  vectors = representative_vectors.represent_states(texts, keys(method=rule), 'mvtec_ad')
  assert vectors.shape == (2, 2, record_sdp.DIMS.embed) and vectors.dtype == np.float32
  np.testing.assert_allclose(vectors, want, atol=1e-6)
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-6)


def test_the_rules_differ():
  _, _, _, texts, _, _ = record_sdp.inputs()
  vectors = [representative_vectors.represent_states(texts, keys(method=rule), 'mvtec_ad')
             for rule in ('mean', 'pca', 'kde', 'dbscan')]
  for i, one in enumerate(vectors):
    assert all(np.abs(one - other).max() > 1e-4 for other in vectors[i + 1:])


def test_the_coded_pca_is_the_top_left_singular_vector_of_the_column_centred_transpose():
  x = prompts()
  left, _, _ = np.linalg.svd((x - x.mean(1, keepdims=True)).T)
  coded = representative_vectors.pca(x)
  assert abs(coded @ left[:, 0]) == pytest.approx(1, abs=1e-9)
  assert coded @ x.mean(0) > 0 and representative_vectors.pca(-x) @ x.mean(0) < 0
  # Subtracting the mean text gives the direction in which texts differ.
  _, _, right = np.linalg.svd(x - x.mean(0))
  textbook = representative_vectors.pca(x, textbook=True)
  assert abs(textbook @ right[0]) == pytest.approx(1, abs=1e-9) and textbook @ x.mean(0) >= 0
  assert unit(x.mean(0)) @ coded > unit(x.mean(0)) @ textbook + 0.5


def test_kernel_density_is_scikit_learns_and_finite_where_densities_overflow():
  x = prompts(width=640, spread=0.02)
  log_density = KernelDensity(bandwidth=0.3).fit(x).score_samples(x)
  with np.errstate(over='ignore'):
    assert log_density.min() > 100 and not np.isfinite(np.exp(np.float32(log_density))).any()
  weights = np.exp(log_density - log_density.max())
  np.testing.assert_allclose(representative_vectors.kde(x), weights @ x / weights.sum(), atol=1e-12)


def test_dbscan_drops_the_outlier_and_takes_the_larger_of_two_clusters():
  many, few = prompts(30, seed=1), prompts(20, seed=2)
  alone = unit(np.random.default_rng(3).standard_normal((1, 64)))
  vector = representative_vectors.dbscan(np.concatenate([few, alone, many]))
  np.testing.assert_allclose(vector, many.mean(0), atol=1e-12)


@pytest.mark.parametrize('dataset', ['visa', 'visa/1cls'])
def test_dbscan_is_the_mean_on_visa_and_mean_shift_always(dataset):
  """1.5 exceeds the distance of any two vectors with a positive cosine, and 2 that of any two."""
  x = np.concatenate([prompts(30, seed=1), unit(np.abs(np.random.default_rng(3).standard_normal((1, 64))))])
  x = unit(x + 0.4 * unit(x[0]))
  assert (x @ x.T).min() > 0
  plain = representative_vectors.represent(x, keys(method='mean'), dataset)
  np.testing.assert_allclose(representative_vectors.represent(x, keys(), dataset), plain, atol=1e-6)
  shifted = representative_vectors.represent(x, keys(method='mean_shift'), 'mvtec_ad')
  np.testing.assert_allclose(shifted, plain, atol=1e-6)
  assert np.abs(representative_vectors.represent(x, keys(), 'mvtec_ad') - plain).max() > 1e-3


def test_min_samples_counts_the_point_itself():
  x = prompts(15, spread=0.01)
  assert (x @ x.T).min() > 0.875
  far = np.concatenate([x, -x[:1]])  # 15 are within reach of a point of x, itself included
  np.testing.assert_allclose(representative_vectors.dbscan(far), x.mean(0), atol=1e-12)


def test_without_a_core_point_it_is_the_mean_and_the_log_says_so(monkeypatch):
  warnings = []
  monkeypatch.setattr(logging, 'warning', lambda text, *values: warnings.append(text % values))
  x = prompts(14)
  np.testing.assert_array_equal(representative_vectors.dbscan(x), x.mean(0))
  assert len(warnings) == 1 and 'none of 14 points has 15 within 0.5' in warnings[0]


def test_points_are_normalised_first():
  x = prompts(40)
  scaled = x * np.linspace(0.1, 10, 40)[:, None]
  vector = representative_vectors.represent(scaled, keys(method='mean'), 'a')
  np.testing.assert_allclose(vector, unit(x.mean(0)), atol=1e-6)


@pytest.mark.parametrize('changes, message', [
  (dict(method='median'), r"rvs\.method='median' .* mean, pca, kde, mean_shift, dbscan"),
  (dict(kde_bandwidth=0.0), r'rvs\.kde_bandwidth=0\.0'), (dict(shift_bandwidth=-1.0), r'rvs\.shift_bandwidth=-1\.0'),
  (dict(dbscan=dict(visa=(0.0, 25.0))), r'rvs\.dbscan\.visa=\(0\.0, 25\.0\) .* eps > 0 and min_samples >= 1'),
  (dict(dbscan=dict(default=(0.5,))), r'rvs\.dbscan\.default=\(0\.5,\)')])
def test_keys_out_of_range_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    bounds.check({'rvs': keys(**changes)}, representative_vectors.BOUNDS)
