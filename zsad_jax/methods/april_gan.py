"""APRIL-GAN: affine layers from patch tokens to text features, winner of the VAND challenge 2023 (arXiv 2305.17382).

Patch tokens of four blocks of the image tower, as the blocks leave them, each pass an affine layer of their own,
trained on an auxiliary data set, and are compared with the texts of "normal" and "abnormal"; the four maps add up. The
image score is plain CLIP. With k normal images of a category, the distances of the same tokens to theirs are added
to the map, and the map's peak to the score. Defaults are those of the released code.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from zsad_jax.clip.feature_spec import Features, FeatureSpec, check_layers
from zsad_jax.methods import Batch, Clip, Config, Context, Metrics, Params, Prediction, Traits
from zsad_jax.methods.parts import linear_adapter, prompts
from zsad_jax.methods.parts.bounds import POSITIVE, PROBABILITY, OneOf
from zsad_jax.ops import maps, multicrop, neighbours

TRAITS = Traits(evaluation_keys=('fewshot', 'multicrop', 'score_norm'), nearest_neighbours=True)
BOUNDS = {
  'act': OneOf(('gelu', 'quick_gelu')), 'score_norm': OneOf(('class_minmax', 'none')), 'temperature': POSITIVE,
  'mosaic': PROBABILITY,
}


def architecture(arch: Any, cfg: Config) -> Any:
  """Returns the architecture with the activation `act`.

  The released setup runs OpenAI's weights, which were trained with QuickGELU, with exact GELU in both towers: if
  another image size than the pretrained one is requested, its loader builds the model again and forgets the activation.
  """
  return dataclasses.replace(arch, activation=cfg.act)


def feature_spec(clip: Clip, cfg: Config) -> FeatureSpec:
  """Returns the FeatureSpec: CLIP's class token, also of crops, and patch tokens as the blocks leave them."""
  check_layers(clip, cfg.layers)
  return FeatureSpec(clip.image_size, cls='ln_post_proj', taps=tuple(linear_adapter.tap(block) for block in cfg.layers),
                     read='none', positions=cfg.positions, crops=multicrop.side(clip.image_size, cfg.multicrop))


def init(rng: jax.Array, clip: Clip, cfg: Config) -> Params:
  """Returns one affine layer for each tap; see linear_adapter.init."""
  return linear_adapter.init(rng, cfg.layers, clip.arch)


def encode_text(params: Params, clip_params: Any, names: Sequence[str], *, clip: Clip, cfg: Config) -> jax.Array:
  """Returns text features [C, 2, E], normal and abnormal."""
  del params
  return prompts.ensemble(clip, clip_params, names, prompts.COMPOUND_STATES, prompts.COMPOUND_TEMPLATES,
                          raw_names=cfg.prompt.raw_names)


def precompute(clip_params: Any, names: Sequence[str], *, clip: Clip, cfg: Config) -> Context:
  """Returns the text features of the auxiliary categories, all that the loss reads in addition to image features."""
  return Context(text_features=encode_text({}, clip_params, names, clip=clip, cfg=cfg))


def loss(params: Params, context: Context, features: Features, batch: Batch, rng: jax.Array, *, clip: Clip,
         cfg: Config) -> tuple[jax.Array, Metrics]:
  """Returns the sum over the taps of Focal(S) + Dice(S_a), and its two terms.

  S are the probabilities at image_size, the resolution of the masks: logits are upsampled, then softmaxed. An image
  whose mask is unknown weighs nothing.

  Raises:
    ValueError: masks of another size.
  """
  del rng
  pair = maps.of_category(context.text_features, batch['category'])
  terms = linear_adapter.loss(params, features, pair, batch, clip=clip, cfg=cfg)
  return terms['loss_focal'] + terms['loss_dice'], terms


def build_memory_bank(clip_params: Any, reference_features: Features, *, clip: Clip,
                      cfg: Config) -> dict[str, jax.Array]:
  """Returns {tap: [C, K N, W]}, the patch tokens of each category's references as the blocks leave them."""
  del clip_params, clip, cfg
  return {name: tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])
          for name, tokens in reference_features.taps.items()}


def predict(params: Params, context: Context, features: Features, batch: Batch, *, clip: Clip,
            cfg: Config) -> Prediction:
  """Returns the abnormal texts' probability for the class token, and the map.

  The score may be averaged over crops (multicrop.score), which the released code does not do. The map sums the taps'
  probabilities, each in 0..1. With references it also sums the taps' cosine distances to the nearest of them, and
  `postprocess_category` brings the map into the score.

  Raises:
    ValueError: fewshot.shots without a memory bank.
  """
  pair = maps.of_category(context.text_features, batch['category'])
  score = multicrop.score(features, pair, cfg.temperature, cfg.multicrop)
  total = linear_adapter.anomaly_map(params, features, pair, clip=clip, cfg=cfg)
  if cfg.fewshot.shots:
    if context.memory_bank is None:
      raise ValueError(f'fewshot.shots={cfg.fewshot.shots} needs references, but context.memory_bank is None')
    distance = sum(_distance(features, context.memory_bank, block, batch['category'], cfg) for block in cfg.layers)
    total += maps.upsample(maps.square(distance), clip.image_size, align_corners=True)
  return Prediction(score, total)


def single_image_overrides(cfg: Config) -> Mapping[str, Any]:
  """Returns the key that leaves few-shot scores as they are, not stretched over a category."""
  return {'score_norm': 'none'} if cfg.fewshot.shots and cfg.score_norm != 'none' else {}


def postprocess_category(prediction: Prediction, *, cfg: Config) -> Prediction:
  """Returns few-shot scores as the mean of the zero-shot score and the map's maximum.

  With score_norm 'class_minmax' the maxima of all images of the category are stretched to 0..1 first, as in the
  released code, so that a score depends on the other test images; with 'none' they are not.
  """
  if not cfg.fewshot.shots:
    return prediction
  peak: Any = prediction.map.max(axis=(1, 2))
  if cfg.score_norm == 'class_minmax':
    peak = maps.stretch(peak)
  return prediction._replace(score=(prediction.score + peak) / 2)


def load_released(arrays: Mapping[str, np.ndarray], *, clip: Clip, cfg: Config) -> Params:
  """Returns params from the 'trainable_linearlayer' of a released checkpoint.

  Raises:
    ValueError: lists every name and shape that does not fit the config.
  """
  widths = [clip.arch.vision.width] * len(cfg.layers)
  layers = linear_adapter.from_released(arrays, widths, clip.arch.embed_dim)
  return {linear_adapter.name(block): layer for block, layer in zip(cfg.layers, layers)}


def _distance(features, memory_bank, block, category, cfg):
  """1 - cos [B, N] to the nearest token of the references."""
  name = linear_adapter.tap(block).name
  chunk = neighbours.chunk_rows(memory_bank[name].shape[1], cfg.machine.knn_mib)
  return neighbours.nearest_by_category(features.taps[name], memory_bank[name], category, chunk=chunk)[0][..., 0]
