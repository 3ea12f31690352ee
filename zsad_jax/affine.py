"""Affine layers that carry raw patch tokens to the texts: APRIL-GAN's path to pixels (arXiv 2305.17382, its code).

Patch tokens of some blocks of the image tower, as the blocks leave them, pass one layer a block, are normalised and
compared with the texts of "normal" and "abnormal". Logits are upsampled, then softmaxed; the blocks' maps add up.
"""

import jax
import jax.numpy as jnp

from zsad_jax import losses, maps
from zsad_jax.spec import Tap


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
  """Returns {'loss_focal', 'loss_dice'}, sums over the blocks of Focal(S) and Dice(S_a).

  S are the probabilities at image_size, the masks' resolution. An image whose mask is unknown counts for nothing.

  Args:
    learnable: as `init` gives it.
    features: raw tokens of every block.
    pair: text features [2, E] or [B, 2, E], normal then abnormal.
    batch: mask [B, R, R], valid [B] and, where some masks are unknown, has_mask [B].
    clip, cfg: of the config, `layers` and `temperature`.
    normal_weight: of normal pixels in the focal loss.

  Raises:
    ValueError: masks of another size.
  """
  mask, size = batch['mask'], clip.image_size
  if mask.shape[1:] != (size, size):
    raise ValueError(f'masks are {mask.shape[1]}x{mask.shape[2]}; the loss needs them at image_size {size}')
  known = batch['valid'] * batch['has_mask'] if 'has_mask' in batch else batch['valid']
  parts = {'loss_focal': 0.0, 'loss_dice': 0.0}
  for block in cfg.layers:
    excess = _excess(learnable, features, block, pair, clip, cfg)
    probs = jnp.stack([jax.nn.sigmoid(-excess), jax.nn.sigmoid(excess)], axis=-1)
    parts['loss_focal'] += losses.focal(probs, mask, known, normal_weight=normal_weight)
    parts['loss_dice'] += losses.dice(probs[..., 1], mask, known)
  return parts


def anomaly_map(learnable, features, pair, *, clip, cfg):
  """Returns the sum over the blocks of the abnormal text's probability, [B, R, R] at image_size; see `loss`."""
  return sum(jax.nn.sigmoid(_excess(learnable, features, block, pair, clip, cfg)) for block in cfg.layers)


def check_layers(clip, layers):
  """Raises ValueError unless `layers` are different blocks of the image tower."""
  blocks = clip.arch.vision.layers
  if not layers or len(set(layers)) < len(layers) or not all(1 <= block <= blocks for block in layers):
    raise ValueError(f'layers {layers} are not different blocks in 1..{blocks}, those of {clip.arch.name}')


def _excess(learnable, features, block, pair, clip, cfg):
  """The abnormal logit less the normal one, upsampled, [B, R, R]: of two states, all that a softmax sees."""
  layer = learnable[name(block)]
  tokens = features.taps[tap(block).name].astype(jnp.float32)
  projected = maps.normalize(jnp.matmul(tokens, layer['kernel']) + layer['bias'][None, None])
  logits = maps.logits(projected, pair, cfg.temperature)  # [B, N, 2]
  return maps.upsample(maps.square(logits[..., 1] - logits[..., 0]), clip.image_size, align_corners=True)
