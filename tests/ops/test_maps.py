"""Maps against scipy, jax.image and torch, and the order of steps from similarities to maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from zsad_jax.ops import maps


def two_steps(x, size, sigma):
  """The float64 reference: bilinear by explicit half-pixel neighbours, then scipy's filter."""
  grid = x.shape[1]
  at = np.clip((np.arange(size) + 0.5) * grid / size - 0.5, 0, grid - 1)
  low = np.floor(at).astype(int)
  high, part = np.minimum(low + 1, grid - 1), at - low
  rows = x[:, low] * (1 - part)[None, :, None] + x[:, high] * part[None, :, None]
  up = rows[:, :, low] * (1 - part)[None, None] + rows[:, :, high] * part[None, None]
  return np.stack([scipy.ndimage.gaussian_filter(m, sigma) if sigma else m for m in up])


SIZES = (1, 2, 5, 17, 40)  # few, because every size is compiled


def test_normalize_keeps_zero_rows_and_their_gradients_finite():
  x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
  np.testing.assert_allclose(maps.normalize(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
  gradient = jax.grad(lambda x: maps.normalize(x).sum())(x)
  assert np.isfinite(gradient).all()


def test_similarity_divides_by_the_temperature():
  text = jnp.array([[0.2], [0.3]])
  probs = maps.similarity(jnp.ones((1, 1, 1)), text, 0.07)
  assert probs.shape == (1, 1, 2)
  assert float(probs[0, 0, 1]) == pytest.approx(0.806679, abs=1e-6)
  assert float(maps.similarity(jnp.ones((1, 1, 1)), text, 0.01)[0, 0, 1]) > 0.9999


def test_similarity_with_texts_per_image_equals_one_image_at_a_time():
  rng = np.random.default_rng(0)
  features, text = rng.standard_normal((3, 5, 8), np.float32), rng.standard_normal((3, 2, 8), np.float32)
  together = maps.similarity(features, text, 0.07)
  apart = [maps.similarity(features[i:i + 1], text[i], 0.07)[0] for i in range(3)]
  np.testing.assert_allclose(together, np.stack(apart), rtol=1e-5)
  np.testing.assert_allclose(together.sum(-1), np.ones((3, 5)), rtol=1e-6)


@pytest.mark.parametrize('scale, expected', [
  (1, [0.1697676, -0.4501660, 0.5498340]), (2, [0.2381627, -0.4013123, 0.5986877])])
def test_feature_surgery_against_golden_values(scale, expected):
  rows = jnp.array([[[0.6, 0.8], [1, 0], [0, 1]]])
  for text in (jnp.eye(2), jnp.eye(2)[None]):
    similarity = maps.surgery(rows, rows[:, 0], text, scale)
    np.testing.assert_allclose(similarity[0, :, 1], expected, atol=1e-6)
    np.testing.assert_allclose(similarity.sum(-1), np.zeros((1, 3)), atol=1e-7)


def test_feature_surgery_is_its_definition_for_any_number_of_texts():
  rng = np.random.default_rng(6)
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  f, cls, text = (unit(rng.standard_normal(shape)) for shape in ((3, 5, 8), (3, 8), (4, 8)))
  prob = np.exp(2 * cls @ text.T)
  weights = prob / prob.mean(-1, keepdims=True)  # the softmax's denominator cancels
  feats = f[:, :, None] * text[None, None] * weights[:, None, :, None]
  expected = (feats - feats.mean(2, keepdims=True)).sum(-1)
  np.testing.assert_allclose(maps.surgery(*(jnp.asarray(x, jnp.float32) for x in (f, cls, text)), 2.0), expected,
                             atol=1e-6)


def test_patches_are_a_row_major_grid():
  patches = jnp.zeros((1, 37 * 37)).at[0, 37].set(1)  # row 1, column 0
  grid = maps.square(patches)
  assert grid.shape == (1, 37, 37)
  assert float(grid[0, 1, 0]) == 1 and float(grid.sum()) == 1
  up = np.asarray(maps.upsample(grid, 518))[0]
  assert np.unravel_index(up.argmax(), up.shape)[0] in range(14, 28)
  assert up[:, 28:].max() == 0 and up[20, 0] > 0.9


def test_tokens_with_the_class_token_are_rejected():
  with pytest.raises(ValueError, match=r'1370 patch tokens .* square grid'):
    maps.square(jnp.zeros((1, 37 * 37 + 1, 2)))


def test_upsampled_probabilities_differ_from_upsampled_logits():
  logits = jnp.array([[[5.0, -5.0], [-5.0, 5.0]]])  # [1, 2, 2], anomalous minus normal
  first = maps.upsample(jax.nn.sigmoid(logits), 4)
  last = jax.nn.sigmoid(maps.upsample(logits, 4))
  expected = 0.75 * jax.nn.sigmoid(5.0) + 0.25 * jax.nn.sigmoid(-5.0)
  assert float(first[0, 0, 1]) == pytest.approx(float(expected), abs=1e-6)
  assert abs(float(last[0, 0, 1]) - float(expected)) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize('grid,size', [(37, 518), (15, 240), (14, 112), (1, 5), (6, 6), (20, 7), (37, 9)])
def test_upsample_is_jax_linear_without_antialias_up_and_down(grid, size):
  x = np.random.default_rng(1).standard_normal((2, grid, grid, 3)).astype(np.float32)
  ours = maps.upsample(jnp.asarray(x), size)
  theirs = jax.image.resize(x, (2, size, size, 3), 'linear', antialias=False)
  np.testing.assert_allclose(ours, theirs, atol=2e-6)
  if size < grid:
    antialiased = jax.image.resize(x, (2, size, size, 3), 'linear', antialias=True)
    assert np.abs(ours - antialiased).max() > 3e-2


@pytest.mark.parametrize('grid,size', [(37, 518), (6, 48), (20, 7)])
def test_upsample_is_torch_bilinear(grid, size, torch):
  x = np.random.default_rng(2).standard_normal((2, grid, grid)).astype(np.float32)
  theirs = torch.nn.functional.interpolate(torch.tensor(x)[:, None], (size, size), mode='bilinear')[:, 0]
  np.testing.assert_allclose(maps.upsample(jnp.asarray(x), size), theirs.numpy(), atol=1e-6)


@pytest.mark.parametrize('grid,size', [(37, 518), (15, 240), (8, 64), (1, 5), (5, 1), (6, 6), (20, 7)])
def test_upsample_with_aligned_corners_is_torch_bilinear(grid, size, torch):
  x = np.random.default_rng(2).standard_normal((2, grid, grid)).astype(np.float32)
  theirs = torch.nn.functional.interpolate(
    torch.tensor(x)[:, None], (size, size), mode='bilinear', align_corners=True)[:, 0]
  np.testing.assert_allclose(maps.upsample(jnp.asarray(x), size, align_corners=True), theirs.numpy(), atol=1e-5)


def test_aligned_corners_are_exact_and_half_pixel_centres_have_a_flat_border():
  x = jnp.arange(15.0)[None, None, :, None] * jnp.ones((1, 15, 1, 2))  # a ramp along the columns
  aligned, centred = (maps.upsample(x, 240, align_corners=a)[0, ..., 1] for a in (True, False))
  np.testing.assert_allclose(aligned[::239, ::239], [[0, 14], [0, 14]], atol=1e-6)
  np.testing.assert_allclose(aligned[0], np.linspace(0, 14, 240), atol=2e-6)
  assert float(centred[0, 7]) == 0 and float(aligned[0, 7]) > 0.4


@pytest.mark.parametrize('at', [(0, 0), (258, 258), (5, 517)])
def test_gaussian_of_an_impulse_equals_scipy(at):
  x = np.zeros((1, 518, 518), np.float32)
  x[0][at] = 1
  ours = np.asarray(maps.gaussian(jnp.asarray(x), 4.0))[0]
  np.testing.assert_allclose(ours, scipy.ndimage.gaussian_filter(x[0].astype(np.float64), 4.0), atol=1e-8)
  if at == (258, 258):
    assert (ours.sum(0) > 0).sum() == 33 and (ours.sum(1) > 0).sum() == 33


def test_gaussian_has_symmetric_borders():
  x = np.random.default_rng(3).random((1, 64, 64))
  taps = np.exp(-0.5 * (np.arange(-16, 17) / 4) ** 2)
  taps /= taps.sum()
  other = np.pad(x[0], 16, 'reflect')
  for axis in (0, 1):
    other = np.apply_along_axis(np.convolve, axis, other, taps, 'valid')
  ours = np.asarray(maps.gaussian(jnp.asarray(x, jnp.float32), 4.0))[0]
  assert np.abs(ours - other).max() > 5e-3
  np.testing.assert_allclose(ours, scipy.ndimage.gaussian_filter(x[0], 4.0, mode='reflect'), atol=5e-7)


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(size=st.sampled_from(SIZES), sigma=st.sampled_from([0.3, 4.0]), seed=st.integers(0, 2**31))
def test_gaussian_equals_scipy_even_for_maps_smaller_than_the_filter(size, sigma, seed):
  x = np.random.default_rng(seed).random((2, size, size))
  expected = np.stack([scipy.ndimage.gaussian_filter(m, sigma) for m in x])
  np.testing.assert_allclose(maps.gaussian(jnp.asarray(x, jnp.float32), sigma), expected, atol=1e-6)


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(grid=st.sampled_from(SIZES), size=st.sampled_from(SIZES), sigma=st.sampled_from([0.0, 1.0, 4.0]),
       seed=st.integers(0, 2**31))
def test_upsample_blur_equals_the_two_steps(grid, size, sigma, seed):
  x = np.random.default_rng(seed).random((2, grid, grid))
  at_once = maps.upsample_blur(jnp.asarray(x, jnp.float32), size, sigma)
  one_by_one = maps.gaussian(maps.upsample(jnp.asarray(x, jnp.float32), size), sigma)
  np.testing.assert_allclose(at_once, one_by_one, atol=1e-6)
  np.testing.assert_allclose(at_once, two_steps(x, size, sigma), atol=5e-6)  # torch's coordinates are float32


def test_upsample_blur_equals_the_two_steps_at_518_pixels():
  x = jnp.asarray(np.random.default_rng(4).random((2, 37, 37)), jnp.float32)
  at_once = jax.jit(lambda x: maps.upsample_blur(x, 518, 4.0))(x)
  one_by_one = jax.jit(lambda x: maps.gaussian(maps.upsample(x, 518), 4.0))(x)
  np.testing.assert_allclose(at_once, one_by_one, atol=1e-6)
  np.testing.assert_allclose(at_once, two_steps(np.float64(x), 518, 4.0), atol=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.float16])
def test_dtype_is_kept_and_half_precision_is_rounded_once(dtype):
  x = jnp.asarray(np.random.default_rng(5).random((1, 6, 6)), dtype)
  wide = x.astype(jnp.float32)
  for f in (lambda x: maps.upsample(x, 12), lambda x: maps.gaussian(x, 2.0), maps.normalize,
            lambda x: maps.upsample_blur(x, 12, 2.0)):
    assert f(x).dtype == dtype
    np.testing.assert_array_equal(f(x), f(wide).astype(dtype))


def test_sigma_0_does_not_smooth_and_a_negative_sigma_is_rejected():
  x = jnp.ones((1, 4, 4)).at[0, 1, 2].set(3)
  np.testing.assert_array_equal(maps.gaussian(x, 0), x)
  np.testing.assert_array_equal(maps.upsample_blur(x, 4, 0), x)
  with pytest.raises(ValueError, match=r'sigma=-1\.0 .* at least 0'):
    maps.gaussian(x, -1.0)
