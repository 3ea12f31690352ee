"""APRIL-GAN, of the VAND challenge 2023: affine layers that carry patch tokens to the texts (arXiv 2305.17382).

Patch tokens of four blocks of the image tower, as the blocks leave them, each pass an affine layer of their own,
trained on an auxiliary set, and are compared with the texts of "normal" and "abnormal"; the four maps add up. The
image score is plain CLIP. With k normal images of a category, the distances of the same tokens to theirs are added
to the map, and the map's peak to the score. Defaults are the released code's.
"""

import dataclasses

from zsad_jax.clip.feature_spec import FeatureSpec, check_layers
from zsad_jax.methods.parts import linear_adapter, prompts
from zsad_jax.ops import maps, multicrop, neighbours

ACTIVATIONS = ('gelu', 'quick_gelu')
SCORE_NORMS = ('class_minmax', 'none')
EVALUATION_KEYS = ('fewshot', 'multicrop', 'score_norm')


def arch(arch, cfg):
  """Returns the architecture with the activation `act`.

  The released setup runs OpenAI's weights, which were trained with QuickGELU, with exact GELU in both towers: asked
  for another image size than the pretrained one, its loader builds the model anew and forgets the activation.
  """
  _one_of('act', cfg.act, ACTIVATIONS)
  return dataclasses.replace(arch, activation=cfg.act)


def spec(clip, cfg):
  """Returns the FeatureSpec: the class token as CLIP reads it, also of crops, and patch tokens as the blocks leave them."""
  check(clip, cfg)
  return FeatureSpec(clip.image_size, cls='ln_post_proj', taps=tuple(linear_adapter.tap(block) for block in cfg.layers),
              read='none', positions=cfg.positions,
              crops=multicrop.side(clip.image_size, cfg.multicrop))


def init(rng, clip, cfg):
  """Returns one affine layer a tap, {'block6': {'kernel': [W, E], 'bias': [E]}, ...}, all of U(-1/sqrt W, 1/sqrt W)."""
  check(clip, cfg)
  return linear_adapter.init(rng, cfg.layers, clip.arch)


def bank(learnable, frozen, categories, *, clip, cfg):
  """Returns text features [C, 2, E], normal and abnormal."""
  del learnable
  return prompts.ensemble(clip, frozen, categories, prompts.COMPOUND_STATES, prompts.COMPOUND_TEMPLATES,
                          raw_names=cfg.prompt.raw_names)


def fixed(frozen, categories, *, clip, cfg):
  """Returns {'bank': text features [C, 2, E] of the auxiliary categories}, all that the loss reads beside features."""
  return {'bank': bank({}, frozen, categories, clip=clip, cfg=cfg)}


def loss(learnable, frozen, features, batch, rng, *, clip, cfg):
  """Returns the sum over the taps of Focal(S) + Dice(S_a), and its two parts.

  S are the probabilities at image_size, the masks' resolution: logits are upsampled, then softmaxed. `frozen` is
  what `fixed` returns. An image whose mask is unknown counts for nothing.

  Raises:
    ValueError: masks of another size.
  """
  del rng
  pair = maps.of_category(frozen['bank'], batch['category'])
  parts = linear_adapter.loss(learnable, features, pair, batch, clip=clip, cfg=cfg)
  return parts['loss_focal'] + parts['loss_dice'], parts


def memory(frozen, reference_features, *, clip, cfg):
  """Returns {tap: [C, K N, W]}, the patch tokens of each category's references as the blocks leave them."""
  del frozen, clip, cfg
  return {name: tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])
          for name, tokens in reference_features.taps.items()}


def predict(learnable, frozen, bank, memory, features, batch, *, clip, cfg):
  """Returns score [B], the probability of the abnormal texts for the class token, and map [B, R, R] at image_size.

  The score may be averaged over crops, see multicrop.score; the released code's is not.
  The map sums the taps' probabilities, each in 0..1, and where there are references also the taps' cosine distances
  to the nearest of them. `finish` then brings the map into the score.

  Raises:
    ValueError: fewshot.shots without a memory.
  """
  del frozen
  pair = maps.of_category(bank, batch['category'])
  score = multicrop.score(features, pair, cfg.temperature, cfg.multicrop)
  total = linear_adapter.anomaly_map(learnable, features, pair, clip=clip, cfg=cfg)
  if cfg.fewshot.shots:
    if memory is None:
      raise ValueError(f'fewshot.shots is {cfg.fewshot.shots}, but predict was given no memory of references')
    distance = sum(_distance(features, memory, block, batch['category'], cfg) for block in cfg.layers)
    total += maps.upsample(maps.square(distance), clip.image_size, align_corners=True)
  return {'score': score, 'map': total}


def alone(cfg):
  """Returns the change of the config that scores an image by itself: without it few-shot scores are stretched."""
  return {'score_norm': 'none'} if cfg.fewshot.shots and cfg.score_norm != 'none' else {}


def finish(outputs, *, cfg):
  """Returns outputs whose few-shot score is the mean of the zero-shot one and the map's maximum.

  With score_norm 'class_minmax' the maxima of all images of the category are stretched to 0..1 first, as the
  released code does, so that a score depends on the other test images; with 'none' they are left alone.
  """
  if not cfg.fewshot.shots:
    return outputs
  peak = outputs['map'].max(axis=(1, 2))
  if cfg.score_norm == 'class_minmax':
    peak = maps.stretch(peak)
  return {**outputs, 'score': (outputs['score'] + peak) / 2}


def load_official(arrays, *, clip, cfg):
  """Returns learnable from the arrays of a released checkpoint, {name: array} of its 'trainable_linearlayer'.

  Raises:
    ValueError: lists every name that is missing or unknown and every shape that does not fit the config.
  """
  widths = [clip.arch.vision.width] * len(cfg.layers)
  layers = linear_adapter.from_released(arrays, widths, clip.arch.embed_dim)
  return {linear_adapter.name(block): layer for block, layer in zip(cfg.layers, layers)}


def check(clip, cfg):
  """Raises ValueError naming the first config key that is out of range."""
  check_layers(clip, cfg.layers)
  _one_of('act', cfg.act, ACTIVATIONS)
  _one_of('score_norm', cfg.score_norm, SCORE_NORMS)
  if not cfg.temperature > 0:
    raise ValueError(f'temperature {cfg.temperature} is not positive')
  if not 0 <= cfg.mosaic <= 1:
    raise ValueError(f'mosaic {cfg.mosaic} is not a probability')
  if cfg.fewshot.shots < 0:
    raise ValueError(f'fewshot.shots {cfg.fewshot.shots} is negative; 0 is zero-shot')
  if not cfg.machine.knn_mib > 0:
    raise ValueError(f'machine.knn_mib {cfg.machine.knn_mib} is not positive')


def _one_of(key, value, allowed):
  if value not in allowed:
    raise ValueError(f'{key} {value!r} is not one of {", ".join(allowed)}')


def _distance(features, memory, block, category, cfg):
  """1 - cos [B, N] to the nearest token of the references."""
  name = linear_adapter.tap(block).name
  chunk = neighbours.chunk_rows(memory[name].shape[1], cfg.machine.knn_mib)
  return neighbours.nearest_by_category(features.taps[name], memory[name], category, chunk=chunk)[0][..., 0]
