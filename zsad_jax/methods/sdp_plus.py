"""SDP+ of CLIP-AD: SDP's map and that of affine layers, trained on auxiliary images (arXiv 2311.00453).

As in APRIL-GAN, patch tokens of some blocks of the image tower, as the blocks leave them, each pass an affine layer
of their own and are compared with the texts; the taps' maps add up, and SDP's (zsad_jax/methods/parts/dual_path.py) is added to
them. What is trained on and what the layers see is as in the released code, where a tap that is not the last holds
the attention of the next block already (tap_alias).
"""

import jax
import jax.numpy as jnp

from zsad_jax.methods.parts import dual_path, linear_adapter, prompts, representative_vectors
from zsad_jax.ops import maps

TOWERS = ('vit', 'resnet')
EVALUATION_KEYS = ('map', 'multicrop', 'score_norm', 'surgery.prob_scale')


def spec(clip, cfg):
  """Returns the FeatureSpec: what SDP reads, and raw patch tokens of CLIP's own stream at every tap."""
  check(clip, cfg)
  return dual_path.spec(clip, cfg, taps=_taps(clip, cfg).values())


def init(rng, clip, cfg):
  """Returns the affine layers of every tap, {'block3': {'affine1': {'kernel': [W, E], 'bias': [E]}, ...}, ...}.

  mapping.depth layers a tap, the first from the tap's width W, those between them mapping.hidden wide; drawn from
  U(-1/sqrt fan_in, 1/sqrt fan_in).
  """
  check(clip, cfg)
  return {linear_adapter.name(block): _chain(key, _widths(clip, cfg, block))
          for block, key in zip(cfg.layers, jax.random.split(rng, len(cfg.layers)))}


def bank(learnable, frozen, categories, *, clip, cfg):
  """Returns the features of all texts, normal [C, n, E] and abnormal [C, m, E]."""
  del learnable
  return _texts(frozen, categories, cfg.data.target, clip, cfg)


def fixed(frozen, categories, *, clip, cfg):
  """Returns the same of the auxiliary categories; the loss gets in place of the weights what `select` makes of it."""
  return _texts(frozen, categories, cfg.data.aux, clip, cfg)


def select(texts, dataset, *, cfg):
  """Returns text features [C, 2, E], the representatives of the normal and of the abnormal texts."""
  return representative_vectors.pairs(texts, cfg.rvs, dataset)


def loss(learnable, frozen, features, batch, rng, *, clip, cfg):
  """Returns the sum over the taps of Focal(S) + Dice(S_a), and its two parts.

  S are the probabilities at image_size, the masks' resolution: logits are upsampled, then softmaxed. `frozen` are
  the text features [C, 2, E] of the auxiliary categories. An image whose mask is unknown counts for nothing. In the
  paper (eq. 12 to 15) the losses are of the taps' sum; in the released code, as here, of every tap.

  Raises:
    ValueError: masks of another size.
  """
  del rng
  pair = maps.of_category(frozen, batch['category'])
  found = [_excess(learnable, features, block, pair, clip, cfg) for block in cfg.layers]
  parts = linear_adapter.focal_and_dice(found, batch, clip.image_size)
  return parts['loss_focal'] + parts['loss_dice'], parts


def predict(learnable, frozen, bank, memory, features, batch, *, clip, cfg):
  """Returns score [B], and map [B, R, R] at image_size: the taps' probabilities and SDP's map, summed and smoothed.

  Nothing weighs the two halves: each tap adds 0..1, each of SDP's stages some hundredths. The score is SDP's, of the
  joint map.
  """
  del frozen, memory
  vision, text = clip.arch.vision, maps.of_category(bank, batch['category'])
  learned = sum(jax.nn.sigmoid(_excess(learnable, features, block, text, clip, cfg)) for block in cfg.layers)
  stages = dual_path.similarity(features, text, vision, cfg)
  smoothed = maps.gaussian(learned + maps.upsample(stages, clip.image_size), cfg.map.sigma)
  probability = dual_path.probability(features, text, vision, cfg)
  return {'score': dual_path.score(probability, smoothed, cfg), 'map': smoothed}


def alone(cfg):
  """Returns the change of the config that scores an image by itself."""
  return dual_path.alone(cfg)


def finish(outputs, *, cfg):
  """Returns outputs with the image score of a category; see dual_path.score."""
  return dual_path.finish(outputs, cfg)


def load_official(arrays, *, clip, cfg):
  """Returns learnable from the arrays of a released checkpoint, {name: array} of its 'trainable_linearlayer'.

  Raises:
    ValueError: lists every name that is missing or unknown and every shape that does not fit the config; the
      released checkpoints have one layer a tap.
  """
  if cfg.mapping.depth != 1:
    raise ValueError(f'mapping.depth is {cfg.mapping.depth}; released checkpoints have 1 layer a tap')
  widths = [clip.arch.vision.channels(block) for block in cfg.layers]
  layers = linear_adapter.from_released(arrays, widths, clip.arch.embed_dim)
  return {linear_adapter.name(block): {'affine1': layer} for block, layer in zip(cfg.layers, layers)}


def check(clip, cfg):
  """Raises ValueError naming the first config key that is out of range."""
  dual_path.check(clip, cfg)
  representative_vectors.check(cfg.rvs)
  for key, low in (('depth', 1), ('hidden', 0)):
    if cfg.mapping[key] < low:
      raise ValueError(f'mapping.{key} {cfg.mapping[key]} is less than {low}')


def _taps(clip, cfg):
  """{block: the Tap whose tokens its layers see}."""
  return {block: dual_path.kept(clip.arch.vision, cfg, block, read='none') for block in cfg.layers}


def _widths(clip, cfg, block):
  """The widths along a tap's chain of layers, mapping.depth + 1 of them."""
  embed = clip.arch.embed_dim
  hidden = cfg.mapping.hidden or embed
  return clip.arch.vision.channels(block), *[hidden] * (cfg.mapping.depth - 1), embed


def _chain(rng, widths):
  layers = {}
  for i, key in enumerate(jax.random.split(rng, len(widths) - 1)):
    bound, (kernel, bias) = widths[i] ** -0.5, jax.random.split(key)
    draw = lambda key, *shape, bound=bound: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    layers[f'affine{i + 1}'] = {'kernel': draw(kernel, *widths[i:i + 2]), 'bias': draw(bias, widths[i + 1])}
  return layers


def _texts(frozen, categories, dataset, clip, cfg):
  return prompts.clip_ad(clip, frozen, categories, dataset, words=cfg.rvs.extra_states,
                         raw_names=cfg.prompt.raw_names)


def _excess(learnable, features, block, pair, clip, cfg):
  """affine.excess [B, R, R] of what a tap's chain makes of its tokens."""
  x = features.taps[_taps(clip, cfg)[block].name].astype(jnp.float32)
  for i in range(cfg.mapping.depth):
    x = jax.nn.relu(x) if i and cfg.mapping.relu else x
    x = linear_adapter.apply(learnable[linear_adapter.name(block)][f'affine{i + 1}'], x)
  return linear_adapter.excess(x, pair, cfg.temperature, clip.image_size)
