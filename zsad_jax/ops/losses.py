"""Losses on probabilities and logits. Every one is a mean over the rows that `valid` marks.

`valid` [B] holds bools or non-negative weights; a row of weight 0 (padding of the last batch) counts for
nothing, and a batch of such rows gives 0.
"""

import jax
import jax.numpy as jnp


def mean_valid(rows, valid):
  """Returns the mean of rows [B] weighted by valid [B], 0 where no row is valid."""
  weights = valid.astype(rows.dtype)
  total = jnp.sum(weights)
  return jnp.sum(jnp.where(weights > 0, rows * weights, 0)) / jnp.where(total > 0, total, 1)


def cross_entropy(logits, label, valid):
  """Returns the mean over valid rows of -log softmax(logits)[label], [], of logits [B, S] and label [B]."""
  log_prob = jax.nn.log_softmax(logits, axis=-1)
  return mean_valid(-jnp.take_along_axis(log_prob, label[:, None], axis=-1)[:, 0], valid)


def focal(probs, mask, valid, *, gamma=2.0, smooth=1e-5, normal_weight=1.0):
  """Returns the focal loss of AnomalyCLIP's released code, [], a mean over the pixels of valid rows.

  -(1 - p)^gamma log p with p = sum_c clip(onehot_c, smooth, 1 - smooth) probs_c + smooth; no class weights
  (alpha = 1 for both) and no softmax inside: probs are probabilities already. Of arXiv 2310.18961 (sec. 3.3),
  which cites Lin et al., arXiv 1708.02002.

  Args:
    probs: [B, R, R, 2], normal then abnormal.
    mask: [B, R, R], 1 where abnormal.
    valid: [B].
    normal_weight: what normal pixels count. FuzzyCLIP and CLIP-AD print alpha = 1 with 1 - alpha on them, which
      taken at its word is 0.
  """
  mask = mask.astype(bool)
  right = jnp.where(mask, probs[..., 1], probs[..., 0])
  wrong = jnp.where(mask, probs[..., 0], probs[..., 1])
  p = (1 - smooth) * right + smooth * wrong + smooth
  # p may exceed 1 by rounding, which a fractional gamma would turn into NaN.
  pixels = -(jnp.maximum(1 - p, 0) ** gamma) * jnp.log(p)
  if normal_weight != 1:
    pixels = jnp.where(mask, pixels, normal_weight * pixels)
  return mean_valid(jnp.mean(pixels, axis=(1, 2)), valid)


def focal_and_dice(excess, mask, valid, *, normal_weight=1.0, smooth=1e-5):
  """Returns (focal, dice) of the two states' probabilities sigmoid(-excess) and sigmoid(excess), as these functions do.

  A pass over the pixels instead of several: of two states, one probability is the other's complement.

  Args:
    excess: [B, R, R], the abnormal logit less the normal one.
    mask, valid, normal_weight, smooth: see focal, whose gamma is 2.
  """
  truth = mask.astype(bool)
  logit = jnp.where(truth, excess, -excess)
  right, wrong = jax.nn.sigmoid(logit), jax.nn.sigmoid(-logit)
  pixels = -(((1 - 2 * smooth) * wrong) ** 2) * jnp.log((1 - smooth) * right + smooth * wrong + smooth)
  if normal_weight != 1:
    pixels = jnp.where(truth, pixels, normal_weight * pixels)
  return (mean_valid(jnp.mean(pixels, axis=(1, 2)), valid),
          dice(jnp.where(truth, right, wrong), mask, valid))


def dice(prob, mask, valid, *, smooth=1.0):
  """Returns the Dice loss, [], computed per image and averaged over valid rows.

  1 - (2 sum(prob mask) + smooth) / (sum(prob) + sum(mask) + smooth), as AnomalyCLIP's released code has it
  (arXiv 2310.18961, sec. 3.3); prob and mask are [B, R, R].
  """
  mask = mask.astype(prob.dtype)
  total = lambda x: jnp.sum(x, axis=(1, 2))
  return mean_valid(1 - (2 * total(prob * mask) + smooth) / (total(prob) + total(mask) + smooth), valid)
