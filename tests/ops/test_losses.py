"""Losses against golden values of the released code and float64 numpy; padded rows do not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsad_jax.ops import losses


def numpy_focal(probs, mask, smooth=1e-5):
  onehot = np.stack([1 - mask, mask], -1).clip(smooth, 1 - smooth)
  p = (onehot * probs).sum(-1) + smooth
  return (-(1 - p) ** 2 * np.log(p)).mean((1, 2))


def numpy_dice(prob, mask):
  return 1 - (2 * (prob * mask).sum((1, 2)) + 1) / (prob.sum((1, 2)) + mask.sum((1, 2)) + 1)


def numpy_cross_entropy(logits, label):
  shifted = logits - logits.max(-1, keepdims=True)
  return np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(label)), label]


def golden_batch():
  mask = np.zeros((8, 518, 518), np.uint8)
  mask[:4, 100:150, 200:250] = 1
  return jnp.full((8, 518, 518, 2), 0.5), jnp.asarray(mask), jnp.ones(8, bool)


@pytest.mark.slow
def test_focal_is_an_unweighted_mean_over_probabilities():
  probs, mask, valid = golden_batch()
  assert float(losses.focal(probs, mask, valid)) == pytest.approx(0.173275, abs=1e-6)


def test_dice_is_computed_per_image_with_smooth_1():
  probs, mask, valid = golden_batch()
  assert float(losses.dice(probs[..., 1], mask, valid)) == pytest.approx(0.990846, abs=1e-6)
  assert float(losses.dice(probs[..., 0], 1 - mask, valid)) == pytest.approx(0.334374, abs=1e-6)


def test_normal_weight_scales_the_loss_of_normal_pixels():
  probs = jnp.array([[[[0.8, 0.2], [0.3, 0.7]]]])
  mask, valid = jnp.array([[[0, 1]]]), jnp.ones(1, bool)
  whole, half, none = (float(losses.focal(probs, mask, valid, normal_weight=w)) for w in (1., .5, 0.))
  assert whole == pytest.approx(0.0205119, abs=1e-6)
  assert none == pytest.approx(-0.3 ** 2 * np.log(0.7) / 2, abs=1e-5)  # alpha = 1 taken literally
  assert half == pytest.approx((whole + none) / 2)


@pytest.mark.slow
def test_focal_stays_finite_for_certain_and_wrong_probabilities():
  probs = jnp.stack([jnp.ones((1, 2, 2)), jnp.zeros((1, 2, 2))], -1)
  for mask in (0, 1):
    loss, gradient = jax.value_and_grad(losses.focal)(probs, jnp.full((1, 2, 2), mask), jnp.ones(1))
    assert np.isfinite(loss) and np.isfinite(gradient).all()
  # -log(2e-5 - 1e-10): the smoothing caps how wrong a pixel can be.
  assert float(loss) == pytest.approx(-(1 - 2e-5) ** 2 * np.log(2e-5), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('normal_weight', [1., .3])
@pytest.mark.parametrize('sharp', [.5, 5., 60.])
def test_focal_and_dice_equals_focal_and_dice_with_their_gradients(sharp, normal_weight):
  rng = np.random.default_rng(0)
  excess = jnp.asarray(sharp * rng.standard_normal((3, 6, 6)), jnp.float32)
  mask, valid = jnp.asarray(rng.integers(0, 2, (3, 6, 6))), jnp.array([True, False, True])

  def separate(x):
    probs = jnp.stack([jax.nn.sigmoid(-x), jax.nn.sigmoid(x)], -1)
    return (losses.focal(probs, mask, valid, normal_weight=normal_weight),
            losses.dice(probs[..., 1], mask, valid))

  joint = lambda x: losses.focal_and_dice(x, mask, valid, normal_weight=normal_weight)
  for part in (0, 1):
    want, wanted = jax.jit(jax.value_and_grad(lambda x, k=part: separate(x)[k]))(excess)
    got, gradient = jax.jit(jax.value_and_grad(lambda x, k=part: joint(x)[k]))(excess)
    assert float(got) == pytest.approx(float(want), rel=1e-5)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-8)


def test_focal_with_a_fractional_gamma_survives_probabilities_that_round_above_1():
  probs = jnp.full((1, 1, 1, 2), jnp.array([1.0 + 1e-6, 0.0]))
  assert np.isfinite(losses.focal(probs, jnp.zeros((1, 1, 1)), jnp.ones(1), gamma=1.5))


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(rows=st.sampled_from([1, 5]), size=st.sampled_from([1, 6]), seed=st.integers(0, 2**31),
       sharp=st.sampled_from([0.1, 1, 8]))
def test_every_loss_equals_numpy_over_the_valid_rows(rows, size, seed, sharp):
  rng = np.random.default_rng(seed)
  anomalous = 1 / (1 + np.exp(-sharp * rng.standard_normal((rows, size, size))))
  probs = np.stack([1 - anomalous, anomalous], -1).astype(np.float32)
  mask = rng.integers(0, 2, (rows, size, size))
  logits, label = rng.standard_normal((rows, 2)).astype(np.float32) * sharp, rng.integers(0, 2, rows)
  valid = rng.integers(0, 2, rows).astype(bool)
  valid[rng.integers(rows)] = True
  wide = np.float64(probs)
  for ours, rowwise in (
    (jax.jit(losses.focal)(probs, mask, valid), numpy_focal(wide, mask)),
    (jax.jit(losses.dice)(probs[..., 1], mask, valid), numpy_dice(wide[..., 1], mask)),
    (jax.jit(losses.cross_entropy)(logits, label, valid), numpy_cross_entropy(np.float64(logits), label)),
  ):
    assert float(ours) == pytest.approx(rowwise[valid].mean(), rel=2e-5, abs=1e-6)


@pytest.mark.parametrize('poison', [1e30, np.nan, np.inf])
def test_padded_rows_do_not_count_whatever_they_contain(poison):
  rng = np.random.default_rng(0)
  rows = rng.random(4).astype(np.float32)
  padded = np.append(rows, np.float32(poison))
  valid = jnp.array([True] * 4 + [False])
  assert float(losses.mean_valid(jnp.asarray(padded), valid)) == pytest.approx(rows.mean(), rel=1e-6)


@pytest.mark.slow
def test_padding_changes_neither_losses_nor_gradients():
  rng = np.random.default_rng(1)
  logits = rng.standard_normal((3, 2)).astype(np.float32)
  label = np.array([0, 1, 1])
  alone = jax.value_and_grad(losses.cross_entropy)(jnp.asarray(logits), jnp.asarray(label), jnp.ones(3, bool))
  again = np.concatenate([logits, logits[-1:], logits[-1:]]), np.append(label, [1, 1])
  padded = jax.value_and_grad(losses.cross_entropy)(
    jnp.asarray(again[0]), jnp.asarray(again[1]), jnp.array([1, 1, 1, 0, 0], bool))
  np.testing.assert_allclose(padded[0], alone[0], rtol=1e-6)
  np.testing.assert_allclose(padded[1][:3], alone[1], rtol=1e-6)
  np.testing.assert_array_equal(padded[1][3:], np.zeros((2, 2)))


def test_weights_give_a_weighted_mean_and_no_valid_row_gives_0():
  rows = jnp.array([1.0, 3.0])
  assert float(losses.mean_valid(rows, jnp.array([1.0, 3.0]))) == pytest.approx(2.5)
  assert float(losses.mean_valid(rows, jnp.array([0.25, 0.25]))) == pytest.approx(2.0)
  assert float(losses.mean_valid(rows, jnp.zeros(2, bool))) == 0


@pytest.mark.slow
def test_a_batch_of_one_follows_the_batched_formula():
  probs, mask, valid = golden_batch()
  local = lambda n: [losses.focal(probs[:n], mask[:n], valid[:n]), losses.dice(probs[:n, ..., 1], mask[:n], valid[:n]),
                     losses.dice(probs[:n, ..., 0], 1 - mask[:n], valid[:n])]
  np.testing.assert_allclose(local(1), local(4), rtol=1e-6)  # the first four images are the same
