"""Affine layers that carry raw patch tokens to the texts: APRIL-GAN's path to pixels (arXiv 2305.17382, its code).

Patch tokens of some blocks of the image tower, as the blocks leave them, pass one layer a block, are normalised and
compared with the texts of "normal" and "abnormal". Logits are upsampled, then softmaxed; the blocks' maps add up.
"""

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.clip.feature_spec import Tap
from zsad_jax.ops import losses, maps


def tap(block):
  """Returns the Tap that the layer of `block` sees."""
  return Tap('clip', block)


def name(block):
  """Returns what the layer of `block` is called among the learned ones."""
  return f'block{block}'


def init(rng, layers, arch):
  """Returns one layer a block, {'block6': {'kernel': [W, E], 'bias': [E]}, ...}, all of U(-1/sqrt W, 1/sqrt W)."""
  width, embed = arch.vision.width, arch.embed_dim
  draw = lambda key, *shape: jax.random.uniform(key, shape, minval=-width ** -0.5, maxval=width ** -0.5)
  learnable = {}
  for block, key in zip(layers, jax.random.split(rng, len(layers))):
    kernel, bias = jax.random.split(key)
    learnable[name(block)] = {'kernel': draw(kernel, width, embed), 'bias': draw(bias, embed)}
  return learnable


def loss(learnable, features, pair, batch, *, clip, cfg, normal_weight=1.0):
  """Returns `focal_and_dice` of the blocks' layers.

  Args:
    learnable: as `init` gives it.
    features: raw tokens of every block.
    pair: text features [2, E] or [B, 2, E], normal then abnormal.
    batch, normal_weight: see focal_and_dice.
    clip, cfg: of the config, `layers` and `temperature`.
  """
  found = [_excess(learnable, features, block, pair, clip, cfg) for block in cfg.layers]
  return focal_and_dice(found, batch, clip.image_size, normal_weight=normal_weight)


def focal_and_dice(excesses, batch, size, *, normal_weight=1.0):
  """Returns {'loss_focal', 'loss_dice'}, sums over the blocks of Focal(S) and Dice(S_a).

  S are the probabilities at image_size, the masks' resolution. An image whose mask is unknown counts for nothing.

  Args:
    excesses: [B, R, R] of every block, as `excess` gives them.
    batch: mask [B, R, R], valid [B] and, where some masks are unknown, has_mask [B].
    size: R.
    normal_weight: of normal pixels in the focal loss.

  Raises:
    ValueError: masks of another size.
  """
  mask = batch['mask']
  if mask.shape[1:] != (size, size):
    raise ValueError(f'masks are {mask.shape[1]}x{mask.shape[2]}; the loss needs them at image_size {size}')
  known = batch['valid'] * batch['has_mask'] if 'has_mask' in batch else batch['valid']
  parts = {'loss_focal': 0.0, 'loss_dice': 0.0}
  for found in excesses:
    focal, dice = losses.focal_and_dice(found, mask, known, normal_weight=normal_weight)
    parts['loss_focal'] += focal
    parts['loss_dice'] += dice
  return parts


def anomaly_map(learnable, features, pair, *, clip, cfg):
  """Returns the sum over the blocks of the abnormal text's probability, [B, R, R] at image_size; see `loss`."""
  return sum(jax.nn.sigmoid(_excess(learnable, features, block, pair, clip, cfg)) for block in cfg.layers)


def apply(layer, tokens):
  """Returns tokens [B, N, W] after one layer, [B, N, E]."""
  return jnp.matmul(tokens, layer['kernel']) + layer['bias'][None, None]


def excess(tokens, pair, temperature, size):
  """Returns the abnormal logit less the normal one, upsampled, [B, R, R]: of two states, all that a softmax sees.

  Args:
    tokens: [B, N, E] after the layers, not normalised.
    pair: see `loss`.
    temperature: divides every cosine.
    size: R.
  """
  # One product with the texts' difference, and the length apart: normalised tokens are never written out.
  length = jax.lax.rsqrt(jnp.maximum(jnp.sum(tokens * tokens, axis=-1), 1e-24))
  between = maps.logits(tokens, pair[..., 1:, :] - pair[..., :1, :], temperature)[..., 0]
  return maps.upsample(maps.square(between * length), size, align_corners=True)


def from_released(arrays, widths, embed):
  """Returns one layer {'kernel', 'bias'} for each of the tokens' `widths`, from a released checkpoint's arrays.

  Args:
    arrays: {name: array} of its 'trainable_linearlayer'.
    widths: W of each layer, in order.
    embed: E of all.

  Raises:
    ValueError: lists every name that is missing or unknown and every shape that does not fit.
  """
  have = {name.removeprefix('trainable_linearlayer.'): np.asarray(array) for name, array in arrays.items()}
  want = {}
  for i, width in enumerate(widths):
    want |= {f'fc.{i}.weight': (embed, width), f'fc.{i}.bias': (embed,)}
  wrong = [f'missing {name}' for name in want if name not in have]
  wrong += [f'unknown {name} {array.shape}' for name, array in have.items() if name not in want]
  wrong += [f'{name} is {have[name].shape}, not {shape}' for name, shape in want.items()
            if name in have and have[name].shape != shape]
  if wrong:
    raise ValueError('checkpoint does not fit this config (layers, CLIP): ' + '; '.join(wrong))
  return [{'kernel': jnp.asarray(have[f'fc.{i}.weight'].T, jnp.float32),
           'bias': jnp.asarray(have[f'fc.{i}.bias'], jnp.float32)} for i in range(len(widths))]


def _excess(learnable, features, block, pair, clip, cfg):
  tokens = features.taps[tap(block).name].astype(jnp.float32)
  return excess(apply(learnable[name(block)], tokens), pair, cfg.temperature, clip.image_size)
