"""The parts of both towers in which CLIP differs from the defaults of a library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.clip import block


@pytest.mark.parametrize('name, value', [('quick_gelu', 0.845796), ('gelu', 0.841345)])
def test_activation_is_exact_not_the_tanh_form(name, value):
  """The tanh approximation, Flax's default, gives 0.841192."""
  np.testing.assert_allclose(block.ACTIVATIONS[name](jnp.float32(1)), value, atol=1e-6)


def test_layer_norm_epsilon_is_1e_5():
  """A vector of variance 1e-5 shrinks by the square root of two; with Flax's 1e-6 it would shrink by 1.05."""
  x = np.float32(np.sqrt(1e-5)) * np.array([[1, -1, 1, -1]], np.float32)
  norm = block.LayerNorm()
  out = norm.apply(norm.init(jax.random.key(0), x), x)
  np.testing.assert_allclose(out, np.sign(x) / np.sqrt(2), rtol=1e-5)


def test_layer_norm_keeps_digits_far_from_zero():
  """The one-pass variance E[x^2] - E[x]^2 would lose all of them here."""
  x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32) + 3000
  norm = block.LayerNorm()
  out = norm.apply(norm.init(jax.random.key(0), x), x)
  x = np.float64(x)
  want = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
  np.testing.assert_allclose(out, want, atol=1e-3)


def test_layer_norm_of_bfloat16_is_computed_in_float32():
  x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 64)), jnp.bfloat16)
  norm = block.LayerNorm()
  params = norm.init(jax.random.key(0), x)
  out = norm.apply(params, x)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_array_equal(out, norm.apply(params, x.astype(jnp.float32)).astype(jnp.bfloat16))


@pytest.mark.parametrize('heads, d', [(2, 4), (4, 2)])
def test_packed_projection_splits_as_torch_packs_it(heads, d):
  """Rows of in_proj_weight are q, k, v and inside each the heads; the same for out_proj's columns."""
  width = heads * d
  rng = np.random.default_rng(0)
  packed, bias = rng.standard_normal((3 * width, width)), rng.standard_normal(3 * width)
  out, out_bias = rng.standard_normal((width, width)), rng.standard_normal(width)
  params = {
      'qkv': {'kernel': packed.reshape(3, heads, d, width).transpose(3, 0, 1, 2), 'bias': bias.reshape(3, heads, d)},
      'out': {'kernel': out.T.reshape(heads, d, width), 'bias': out_bias}}
  params = jax.tree.map(jnp.float32, params)
  x = rng.standard_normal((2, 5, width)).astype(np.float32)
  projections = block.Attention(width, heads, layers=1).bind({'params': params})
  ours = np.moveaxis(np.asarray(projections.qkv(x)), 2, 0)
  for i in range(3):
    want = x @ packed[i * width:(i + 1) * width].T + bias[i * width:(i + 1) * width]
    np.testing.assert_allclose(ours[i].reshape(2, 5, width), want, atol=1e-5)
  want = ours[0].reshape(2, 5, width) @ out.T + out_bias
  np.testing.assert_allclose(projections.out(ours[0]), want, atol=1e-4)
