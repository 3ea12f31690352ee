"""Losses on probabilities and logits: scalars, each a mean over the valid rows of a batch.

`valid` [B] contains bools or non-negative weights. A row of weight 0, such as the padding of the last batch, does not
count; a batch of such rows gives 0.
"""

import jax
import jax.numpy as jnp


def mean_valid(rows: jax.Array, valid: jax.Array) -> jax.Array:
  """Returns the mean of rows [B] weighted by valid [B]; 0 if no row is valid."""
  weights = valid.astype(rows.dtype)
  total = jnp.sum(weights)
  return jnp.sum(jnp.where(weights > 0, rows * weights, 0)) / jnp.where(total > 0, total, 1)


def cross_entropy(logits: jax.Array, label: jax.Array, valid: jax.Array) -> jax.Array:
  """Returns the mean over valid rows of -log softmax(logits)[label].

  Args:
    logits: [B, S].
    label: [B] int, the true class of each row.
    valid: [B].
  """
  log_prob = jax.nn.log_softmax(logits, axis=-1)
  return mean_valid(-jnp.take_along_axis(log_prob, label[:, None], axis=-1)[:, 0], valid)


def focal(probs: jax.Array, mask: jax.Array, valid: jax.Array, *, gamma: float = 2.0, smooth: float = 1e-5,
          normal_weight: float = 1.0) -> jax.Array:
  """Returns the focal loss of AnomalyCLIP's released code, a mean over the pixels of valid rows.

  -(1 - p)^gamma log p with p = sum_c clip(onehot_c, smooth, 1 - smooth) probs_c + smooth, without class weights
  (alpha = 1 for both) and without a softmax, since probs are probabilities (arXiv 2310.18961, sec. 3.3, after Lin et
  al., arXiv 1708.02002).

  Args:
    probs: [B, R, R, 2], normal then anomalous.
    mask: [B, R, R], 1 for anomalous pixels.
    valid: [B].
    gamma, smooth: of the formula above.
    normal_weight: weight of normal pixels. FuzzyCLIP and CLIP-AD print alpha = 1 with 1 - alpha on normal pixels, which
      taken literally is 0.
  """
  mask = mask.astype(bool)
  correct = jnp.where(mask, probs[..., 1], probs[..., 0])
  wrong = jnp.where(mask, probs[..., 0], probs[..., 1])
  p = (1 - smooth) * correct + smooth * wrong + smooth
  # Rounding may push p above 1, which a fractional gamma would turn into NaN.
  pixels = -(jnp.maximum(1 - p, 0) ** gamma) * jnp.log(p)
  if normal_weight != 1:
    pixels = jnp.where(mask, pixels, normal_weight * pixels)
  return mean_valid(jnp.mean(pixels, axis=(1, 2)), valid)


def focal_and_dice(excess: jax.Array, mask: jax.Array, valid: jax.Array, *, normal_weight: float = 1.0,
                   smooth: float = 1e-5) -> tuple[jax.Array, jax.Array]:
  """Returns (focal, dice) of the probabilities sigmoid(-excess), normal, and sigmoid(excess), anomalous.

  One pass over the pixels instead of several, since the two probabilities add up to 1.

  Args:
    excess: [B, R, R], the anomalous logit minus the normal one.
    mask, valid, normal_weight, smooth: as for `focal` with gamma = 2.
  """
  anomalous = mask.astype(bool)
  logit = jnp.where(anomalous, excess, -excess)
  correct, wrong = jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit)
  pixels = -(((1 - 2 * smooth) * wrong) ** 2) * jnp.log((1 - smooth) * correct + smooth * wrong + smooth)
  if normal_weight != 1:
    pixels = jnp.where(anomalous, pixels, normal_weight * pixels)
  return (mean_valid(jnp.mean(pixels, axis=(1, 2)), valid),
          dice(jnp.where(anomalous, correct, wrong), mask, valid))


def dice(prob: jax.Array, mask: jax.Array, valid: jax.Array, *, smooth: float = 1.0) -> jax.Array:
  """Returns the Dice loss, computed per image and averaged over valid rows.

  1 - (2 sum(prob mask) + smooth) / (sum(prob) + sum(mask) + smooth), as in AnomalyCLIP's released code (arXiv
  2310.18961, sec. 3.3).

  Args:
    prob: [B, R, R], probability of anomalous.
    mask: [B, R, R], 1 for anomalous pixels.
    valid: [B].
    smooth: of the formula above.
  """
  mask = mask.astype(prob.dtype)
  total = lambda x: jnp.sum(x, axis=(1, 2))
  return mean_valid(1 - (2 * total(prob * mask) + smooth) / (total(prob) + total(mask) + smooth), valid)
