"""SDP+ of CLIP-AD: SDP's map plus that of affine layers trained on auxiliary images (arXiv 2311.00453).

As in APRIL-GAN, patch tokens of some blocks of the image tower, as the blocks leave them, each pass an affine layer
of their own and are compared with the texts. The taps' maps add up, and SDP's (parts/dual_path.py) is added to them.
The training and the layers' inputs are those of the released code, where a tap that is not the last already holds the
attention of the next block (tap_alias).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.clip.feature_spec import Features, FeatureSpec, Tap
from zsad_jax.methods import Batch, Clip, Config, Context, Metrics, Params, Prediction, Traits
from zsad_jax.methods.parts import dual_path, linear_adapter, prompts, representative_vectors
from zsad_jax.methods.parts.bounds import AT_LEAST_ONE, NOT_NEGATIVE
from zsad_jax.ops import maps

TRAITS = Traits(towers=('vit', 'resnet'), evaluation_keys=('map', 'multicrop', 'score_norm', 'surgery.prob_scale'))
BOUNDS = {
  **dual_path.BOUNDS, **representative_vectors.BOUNDS, 'mapping.depth': AT_LEAST_ONE, 'mapping.hidden': NOT_NEGATIVE,
}


def feature_spec(clip: Clip, cfg: Config) -> FeatureSpec:
  """Returns the FeatureSpec: SDP's, and raw patch tokens of CLIP's own stream at every tap."""
  return dual_path.feature_spec(clip, cfg, taps=[_tap(clip, cfg, block) for block in cfg.layers])


def init(rng: jax.Array, clip: Clip, cfg: Config) -> Params:
  """Returns the affine layers of every tap, {'block3': {'affine1': {'kernel': [W, E], 'bias': [E]}, ...}, ...}.

  A tap has mapping.depth layers, from the tap's width W, over mapping.hidden, to E; drawn from
  U(-1/sqrt fan_in, 1/sqrt fan_in).
  """
  return {linear_adapter.name(block): _init_chain(key, _widths(clip, cfg, block))
          for block, key in zip(cfg.layers, jax.random.split(rng, len(cfg.layers)))}


def encode_text(params: Params, clip_params: Any, names: Sequence[str], *, clip: Clip,
                cfg: Config) -> tuple[jax.Array, ...]:
  """Returns the features of all texts, normal [C, n, E] and abnormal [C, m, E]."""
  del params
  return _encode_text(clip_params, names, cfg.data.target, clip, cfg)


def precompute(clip_params: Any, names: Sequence[str], *, clip: Clip, cfg: Config) -> Context:
  """Returns the features of all texts of the auxiliary categories; `loss` gets them after `reduce_text_features`."""
  return Context(text_features=_encode_text(clip_params, names, cfg.data.aux, clip, cfg))


def reduce_text_features(text_features: Any, dataset: str, *, cfg: Config) -> np.ndarray:
  """Returns text features [C, 2, E], the representatives of the normal and of the abnormal texts."""
  return representative_vectors.represent_states(text_features, cfg.rvs, dataset)


def loss(params: Params, context: Context, features: Features, batch: Batch, rng: jax.Array, *, clip: Clip,
         cfg: Config) -> tuple[jax.Array, Metrics]:
  """Returns the sum over the taps of Focal(S) + Dice(S_a), and its two terms.

  S are the probabilities at image_size, the resolution of the masks: logits are upsampled, then softmaxed. An image
  whose mask is unknown weighs nothing. In the paper (eq. 12 to 15) the losses are those of the taps' sum; in the
  released code, as here, of every tap.

  Raises:
    ValueError: masks of another size.
  """
  del rng
  pair = maps.of_category(context.text_features, batch['category'])
  differences = [_difference(params, features, block, pair, clip, cfg) for block in cfg.layers]
  terms = linear_adapter.focal_and_dice(differences, batch, clip.image_size)
  return terms['loss_focal'] + terms['loss_dice'], terms


def predict(params: Params, context: Context, features: Features, batch: Batch, *, clip: Clip,
            cfg: Config) -> Prediction:
  """Returns the taps' probabilities and SDP's map, summed and smoothed, and the image score of dual_path.predict.

  No factor balances the two halves: each tap adds 0..1, each of SDP's stages some hundredths.
  """
  vision, text = clip.arch.vision, maps.of_category(context.text_features, batch['category'])
  trained = sum(jax.nn.sigmoid(_difference(params, features, block, text, clip, cfg)) for block in cfg.layers)
  stages = dual_path.similarity(features, text, vision, cfg)
  smoothed = maps.gaussian(trained + maps.upsample(stages, clip.image_size), cfg.map.sigma)
  return dual_path.predict(features, text, smoothed, vision, cfg)


def single_image_overrides(cfg: Config) -> Mapping[str, Any]:
  """Returns the key that scores an image without others; see dual_path."""
  return dual_path.single_image_overrides(cfg)


def postprocess_category(prediction: Prediction, *, cfg: Config) -> Prediction:
  """Returns the Prediction with the image score of a category; see dual_path."""
  return dual_path.postprocess_category(prediction, cfg)


def load_released(arrays: Mapping[str, np.ndarray], *, clip: Clip, cfg: Config) -> Params:
  """Returns params from the 'trainable_linearlayer' of a released checkpoint.

  Raises:
    ValueError: lists every name and shape that does not fit the config; mapping.depth is not 1.
  """
  if cfg.mapping.depth != 1:
    raise ValueError(f'mapping.depth={cfg.mapping.depth}, but released checkpoints have 1 layer for each tap; set '
                     'mapping.depth=1')
  widths = [clip.arch.vision.channels(block) for block in cfg.layers]
  layers = linear_adapter.from_released(arrays, widths, clip.arch.embed_dim)
  return {linear_adapter.name(block): {'affine1': layer} for block, layer in zip(cfg.layers, layers)}


def _tap(clip: Clip, cfg: Config, block: int) -> Tap:
  """The Tap that the layers of `block` read."""
  return dual_path.own_tap(clip.arch.vision, cfg, block, read='none')


def _widths(clip: Clip, cfg: Config, block: int) -> tuple[int, ...]:
  """The widths along a tap's chain of layers, mapping.depth + 1 of them."""
  embed = clip.arch.embed_dim
  hidden = cfg.mapping.hidden or embed
  return clip.arch.vision.channels(block), *[hidden] * (cfg.mapping.depth - 1), embed


def _init_chain(rng: jax.Array, widths: Sequence[int]) -> Params:
  layers = {}
  for i, key in enumerate(jax.random.split(rng, len(widths) - 1)):
    limit, (kernel, bias) = widths[i] ** -0.5, jax.random.split(key)
    uniform = lambda key, *shape, limit=limit: jax.random.uniform(key, shape, minval=-limit, maxval=limit)
    layers[f'affine{i + 1}'] = {'kernel': uniform(kernel, *widths[i:i + 2]), 'bias': uniform(bias, widths[i + 1])}
  return layers


def _encode_text(clip_params, names, dataset, clip, cfg):
  return prompts.clip_ad(clip, clip_params, names, dataset, words=cfg.rvs.extra_states,
                         raw_names=cfg.prompt.raw_names)


def _difference(params, features, block, pair, clip, cfg):
  """linear_adapter.logit_difference [B, R, R] of a tap's tokens after its chain of layers."""
  x = features.taps[_tap(clip, cfg, block).name].astype(jnp.float32)
  for i in range(cfg.mapping.depth):
    x = jax.nn.relu(x) if i and cfg.mapping.relu else x
    x = linear_adapter.apply(params[linear_adapter.name(block)][f'affine{i + 1}'], x)
  return linear_adapter.logit_difference(x, pair, cfg.temperature, clip.image_size)
