"""Affine layers that project raw patch tokens to text features, from APRIL-GAN (arXiv 2305.17382) and its code.

Patch tokens of some blocks of the image tower, as the blocks leave them, pass one layer for each block, are normalised
and compared with the texts of "normal" and "abnormal". Logits are upsampled, then softmaxed; the blocks' maps add up.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.clip.feature_spec import Features, Tap
from zsad_jax.methods import Batch, Clip, Config, Metrics, Params
from zsad_jax.methods.parts import released
from zsad_jax.ops import losses, maps


def tap(block: int) -> Tap:
  """Returns the Tap that the layer of `block` reads."""
  return Tap('clip', block)


def name(block: int) -> str:
  """Returns the key of the layer of `block` in params."""
  return f'block{block}'


def init(rng: jax.Array, layers: Sequence[int], arch: Any) -> Params:
  """Returns {'block6': {'kernel': [W, E], 'bias': [E]}, ...}, drawn from U(-1/sqrt W, 1/sqrt W) as torch does."""
  width, embed = arch.vision.width, arch.embed_dim
  uniform = lambda key, *shape: jax.random.uniform(key, shape, minval=-width ** -0.5, maxval=width ** -0.5)
  params = {}
  for block, key in zip(layers, jax.random.split(rng, len(layers))):
    kernel, bias = jax.random.split(key)
    params[name(block)] = {'kernel': uniform(kernel, width, embed), 'bias': uniform(bias, embed)}
  return params


def loss(params: Params, features: Features, pair: jax.Array, batch: Batch, *, clip: Clip, cfg: Config,
         normal_weight: float = 1.0) -> Metrics:
  """Returns `focal_and_dice` of the layers of cfg.layers.

  Args:
    params: as `init` returns them.
    features: raw tokens of every block.
    pair: text features [2, E] or [B, 2, E], normal then abnormal.
    batch, normal_weight: see focal_and_dice.
    clip, cfg: the CLIP and the config, of which `layers` and `temperature` are read.
  """
  differences = [_difference(params, features, block, pair, clip, cfg) for block in cfg.layers]
  return focal_and_dice(differences, batch, clip.image_size, normal_weight=normal_weight)


def focal_and_dice(differences: Sequence[jax.Array], batch: Batch, size: int, *,
                   normal_weight: float = 1.0) -> Metrics:
  """Returns {'loss_focal', 'loss_dice'}, the sums over the blocks of Focal(S) and Dice(S_a).

  S are the probabilities at image_size, the resolution of the masks. An image whose mask is unknown weighs nothing.

  Args:
    differences: [B, R, R] of every block, as `logit_difference` returns them.
    batch: mask [B, R, R], valid [B] and, if some masks are unknown, has_mask [B].
    size: R.
    normal_weight: of normal pixels in the focal loss.

  Raises:
    ValueError: masks of another size.
  """
  mask = batch['mask']
  if mask.shape[1:] != (size, size):
    raise ValueError(f'masks are {mask.shape[1]}x{mask.shape[2]}; the loss needs them at image_size {size}')
  known = batch['valid'] * batch['has_mask'] if 'has_mask' in batch else batch['valid']
  terms: dict[str, Any] = {'loss_focal': 0.0, 'loss_dice': 0.0}
  for difference in differences:
    focal, dice = losses.focal_and_dice(difference, mask, known, normal_weight=normal_weight)
    terms['loss_focal'] += focal
    terms['loss_dice'] += dice
  return terms


def anomaly_map(params: Params, features: Features, pair: jax.Array, *, clip: Clip, cfg: Config) -> jax.Array:
  """Returns the sum over the blocks of the abnormal text's probability, [B, R, R] at image_size; Args as for `loss`."""
  total: Any = sum(jax.nn.sigmoid(_difference(params, features, block, pair, clip, cfg)) for block in cfg.layers)
  return total


def apply(layer: Params, tokens: jax.Array) -> jax.Array:
  """Returns tokens [B, N, W] after one layer, [B, N, E]."""
  return jnp.matmul(tokens, layer['kernel']) + layer['bias'][None, None]


def logit_difference(tokens: jax.Array, pair: jax.Array, temperature: float, size: int) -> jax.Array:
  """Returns the abnormal logit minus the normal one, upsampled, [B, R, R]; its sigmoid is the softmax of the two.

  Args:
    tokens: [B, N, E] after the layers, not normalised.
    pair: text features [2, E] or [B, 2, E], normal then abnormal.
    temperature: divides every cosine.
    size: R.
  """
  # One product with the texts' difference, divided by the length afterwards: normalised tokens are never written out.
  inverse_length = jax.lax.rsqrt(jnp.maximum(jnp.sum(tokens * tokens, axis=-1), 1e-24))
  products = maps.logits(tokens, pair[..., 1:, :] - pair[..., :1, :], temperature)[..., 0]
  return maps.upsample(maps.square(products * inverse_length), size, align_corners=True)


def from_released(arrays: Mapping[str, np.ndarray], widths: Sequence[int], embed: int) -> list[Params]:
  """Returns one layer {'kernel', 'bias'} for each of `widths`, from a released checkpoint.

  Args:
    arrays: {name: array} of its 'trainable_linearlayer'.
    widths: W of each layer's tokens, in order.
    embed: E.

  Raises:
    ValueError: see released.match.
  """
  shapes: dict[str, tuple[int, ...]] = {}
  for i, width in enumerate(widths):
    shapes |= {f'fc.{i}.weight': (embed, width), f'fc.{i}.bias': (embed,)}
  named = released.match(arrays, shapes, prefix='trainable_linearlayer.', keys='layers, clip')
  return [{'kernel': jnp.asarray(named[f'fc.{i}.weight'].T, jnp.float32),
           'bias': jnp.asarray(named[f'fc.{i}.bias'], jnp.float32)} for i in range(len(widths))]


def _difference(params, features, block, pair, clip, cfg):
  tokens = features.taps[tap(block).name].astype(jnp.float32)
  return logit_difference(apply(params[name(block)], tokens), pair, cfg.temperature, clip.image_size)
