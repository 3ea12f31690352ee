"""Representative vectors: every rule against its definition, and what CLIP-AD's choices amount to."""

import ml_collections as mlc
import numpy as np
import pytest
from absl import logging
from golden import record_sdp
from sklearn.neighbors import KernelDensity

from zsad_jax.configs import sdp
from zsad_jax.methods.parts import representative_vectors


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
  found = representative_vectors.pairs(texts, keys(method=rule), 'mvtec_ad')
  assert found.shape == (2, 2, record_sdp.DIMS.embed) and found.dtype == np.float32
  np.testing.assert_allclose(found, want, atol=1e-6)
  np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-6)


def test_the_rules_differ():
  _, _, _, texts, _, _ = record_sdp.inputs()
  found = [representative_vectors.pairs(texts, keys(method=rule), 'mvtec_ad') for rule in ('mean', 'pca', 'kde', 'dbscan')]
  for i, one in enumerate(found):
    assert all(np.abs(one - other).max() > 1e-4 for other in found[i + 1:])


def test_the_coded_pca_is_the_top_left_singular_vector_of_the_column_centred_transpose():
  x = prompts()
  left, _, _ = np.linalg.svd((x - x.mean(1, keepdims=True)).T)
  found = representative_vectors.pca(x)
  assert abs(found @ left[:, 0]) == pytest.approx(1, abs=1e-9)
  assert found @ x.mean(0) > 0 and representative_vectors.pca(-x) @ x.mean(0) < 0
  # Subtracting the mean text gives the direction in which texts differ.
  _, _, right = np.linalg.svd(x - x.mean(0))
  textbook = representative_vectors.pca(x, textbook=True)
  assert abs(textbook @ right[0]) == pytest.approx(1, abs=1e-9) and textbook @ x.mean(0) >= 0
  assert unit(x.mean(0)) @ found > unit(x.mean(0)) @ textbook + 0.5


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
  found = representative_vectors.dbscan(np.concatenate([few, alone, many]))
  np.testing.assert_allclose(found, many.mean(0), atol=1e-12)


@pytest.mark.parametrize('dataset', ['visa', 'visa/1cls'])
def test_on_visa_dbscan_is_the_mean_and_mean_shift_is_so_always(dataset):
  """1.5 exceeds the distance of any two vectors with a positive cosine, and 2 that of any two."""
  x = np.concatenate([prompts(30, seed=1), unit(np.abs(np.random.default_rng(3).standard_normal((1, 64))))])
  x = unit(x + 0.4 * unit(x[0]))
  assert (x @ x.T).min() > 0
  plain = representative_vectors.represent(x, keys(method='mean'), dataset)
  np.testing.assert_allclose(representative_vectors.represent(x, keys(), dataset), plain, atol=1e-6)
  np.testing.assert_allclose(representative_vectors.represent(x, keys(method='mean_shift'), 'mvtec_ad'), plain, atol=1e-6)
  assert np.abs(representative_vectors.represent(x, keys(), 'mvtec_ad') - plain).max() > 1e-3


def test_min_samples_counts_the_point_itself():
  x = prompts(15, spread=0.01)
  assert (x @ x.T).min() > 0.875
  far = np.concatenate([x, -x[:1]])
  np.testing.assert_allclose(representative_vectors.dbscan(far), x.mean(0), atol=1e-12)  # 15 within reach, itself included


def test_without_a_core_point_it_is_the_mean_and_the_log_says_so(monkeypatch):
  said = []
  monkeypatch.setattr(logging, 'warning', lambda text, *rest: said.append(text % rest))
  x = prompts(14)
  np.testing.assert_array_equal(representative_vectors.dbscan(x), x.mean(0))
  assert said == ['DBSCAN: none of 14 points has 15 within 0.5, so there is no cluster; taking the mean of all']


def test_points_are_normalised_first():
  x = prompts(40)
  scaled = x * np.linspace(0.1, 10, 40)[:, None]
  np.testing.assert_allclose(representative_vectors.represent(scaled, keys(method='mean'), 'a'), unit(x.mean(0)), atol=1e-6)


@pytest.mark.parametrize('changes, message', [
  (dict(method='median'), "rvs.method 'median' is not one of mean, pca, kde, mean_shift, dbscan"),
  (dict(kde_bandwidth=0.0), 'rvs.kde_bandwidth 0.0 is not positive'),
  (dict(shift_bandwidth=-1.0), 'rvs.shift_bandwidth -1.0 is not positive'),
  (dict(dbscan=dict(visa=(0.0, 25.0))), r'rvs.dbscan.visa \(0.0, 25.0\) is not \(eps > 0, min_samples >= 1\)'),
  (dict(dbscan=dict(default=(0.5,))), r'rvs.dbscan.default \(0.5,\) is not')])
def test_bad_keys(changes, message):
  with pytest.raises(ValueError, match=message):
    representative_vectors.check(keys(**changes))
