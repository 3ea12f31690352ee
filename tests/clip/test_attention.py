"""Attention against a float64 softmax, in every mode and with every tiling."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from zsad_jax.clip import attention


def draw(batch, n, heads, d, seed=0, scale=1.0):
  rng = np.random.default_rng(seed)
  return [(rng.standard_normal((batch, n, heads, d)) * scale).astype(np.float32) for _ in range(3)]


def reference(q, k, v, mode, mask=None):
  by_name = {'q': np.float64(q), 'k': np.float64(k), 'v': np.float64(v)}
  scores = np.einsum('bnhd,bmhd->bhnm', by_name[mode[0]], by_name[mode[1]]) / np.sqrt(q.shape[-1])
  scores = scores if mask is None else np.where(mask[None, None], scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  return np.einsum('bhnm,bmhd->bnhd', weights / weights.sum(-1, keepdims=True), by_name['v'])


@contextlib.contextmanager
def tiles(tile_bytes):
  """Makes attend loop over heads and tile the queries even for small input, without the programs compiled before."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(attention, '_BATCHED_TOKENS_CPU', 0)
    patch.setattr(attention, '_TILE_BYTES_CPU', tile_bytes)
    patch.setattr(attention, '_TILE_BYTES', tile_bytes)
    jax.clear_caches()
    yield
  jax.clear_caches()


@pytest.mark.parametrize('mode', attention.MODES)
def test_modes_name_queries_and_keys(mode):
  q, k, v = draw(2, 19, 3, 8)
  out = attention.attend(q, k, v, mode)
  np.testing.assert_allclose(out, reference(q, k, v, mode), atol=1e-6)
  others = [reference(q, k, v, other) for other in attention.MODES if other != mode]
  assert all(np.abs(out - other).max() > 0.1 for other in others)


@pytest.mark.slow
@settings(max_examples=8)  # each compiles
@given(batch=st.integers(1, 3), n=st.integers(1, 41), heads=st.integers(1, 3), tile_bytes=st.integers(4, 4000),
       mode=st.sampled_from(attention.MODES), causal=st.booleans())
def test_any_tiling_is_exact(batch, n, heads, tile_bytes, mode, causal):
  q, k, v = draw(batch, n, heads, 4, seed=n)
  mask = np.tril(np.ones((n, n), bool)) if causal else None
  want = reference(q, k, v, mode, mask)
  with tiles(tile_bytes):
    np.testing.assert_allclose(jax.jit(lambda *x: attention.attend(*x, mode, mask))(q, k, v), want, atol=2e-6)
    swapped = [jnp.swapaxes(x, 1, 2) for x in (q, k, v)]
    a, b = (dict(zip('qkv', swapped))[name] for name in mode)
    out = jax.jit(attention._by_rows)(a * 0.5, b, swapped[2], mask)  # what accelerators run
    np.testing.assert_allclose(out.swapaxes(1, 2), want, atol=2e-6)


def test_tiles_of_a_published_size_agree_with_the_plain_form():
  q, k, v = draw(1, 1370, 2, 64)
  out = jax.jit(attention.attend, static_argnames='mode')(q, k, v, mode='vv')
  np.testing.assert_allclose(out, reference(q, k, v, 'vv'), atol=1e-5)


def test_fewer_queries_than_keys():
  q, k, v = draw(2, 300, 2, 4)
  np.testing.assert_allclose(attention.attend(q[:, :1], k, v), reference(q, k, v, 'qk')[:, :1], atol=1e-6)


def test_large_scores_stay_finite():
  q, k, v = draw(1, 9, 1, 4, scale=300.0)
  np.testing.assert_allclose(attention.attend(q, k, v), reference(q, k, v, 'qk'), rtol=1e-4)


@pytest.mark.slow
def test_gradients_do_not_depend_on_the_tiling():
  q, k, v = draw(2, 11, 2, 4)
  mask = np.tril(np.ones((11, 11), bool))
  grad = jax.grad(lambda qkv: jnp.square(attention.attend(*qkv, mask=mask)).sum())
  plain = jax.jit(grad)((q, k, v))
  with tiles(4 * 2 * 11 * 3):  # three rows per tile, so that the last tile is padded
    assert str(jax.make_jaxpr(attention.attend)(q, k, v)).count('scan') > 1
    tiled = jax.jit(grad)((q, k, v))
  for a, b in zip(plain, tiled):
    assert np.isfinite(b).all()
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.devices8
def test_a_sharded_batch_stays_sharded():
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  qkv = draw(8, 12, 2, 4)
  placed = jax.device_put(qkv, NamedSharding(mesh, P('data')))
  with tiles(256):
    compiled = jax.jit(attention.attend).lower(*placed).compile()
  assert 'while' in compiled.as_text()
  assert not any(op in compiled.as_text() for op in ('all-gather', 'all-reduce', 'all-to-all', 'collective'))
  np.testing.assert_allclose(compiled(*placed), reference(*qkv, 'qk'), atol=1e-6)


def test_bfloat16_stays_bfloat16():
  q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in draw(1, 16, 2, 8))
  out = attention.attend(q, k, v)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(out.astype(jnp.float32), reference(*(np.asarray(x, np.float32) for x in (q, k, v)), 'qk'),
                             atol=0.03)


def test_unknown_modes_are_refused():
  with pytest.raises(ValueError, match=r"mode='kv' is not one of qk, qq, kk, vv"):
    attention.attend(*draw(1, 2, 1, 2), 'kv')


def test_maps_are_the_weights_averaged_over_heads():
  qkv = dict(zip('qkv', draw(2, 7, 3, 4)))
  maps = jax.jit(attention.maps)(*qkv.values())
  assert set(maps) == set(attention.MODES)
  for mode, weights in maps.items():
    scores = np.einsum('bnhd,bmhd->bhnm', qkv[mode[0]], qkv[mode[1]], dtype=np.float64) / 2
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    np.testing.assert_allclose(weights, (scores / scores.sum(-1, keepdims=True)).mean(1), atol=1e-6)
