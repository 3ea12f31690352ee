"""WinCLIP and WinCLIP+: windows of an image against two ensembles of texts, and against normal references.

Every square window of 2 x 2 and of 3 x 3 patches, stride 1, is encoded by itself: the other patches are dropped before
the first block. A window's score is the softmax of its cosines with the mean texts of the normal and the anomalous
state; a patch takes the harmonic mean over the windows that cover it, then over the window sizes and the image score
(WinCLIP, arXiv 2303.14814). WinCLIP+ adds half the cosine distance to the nearest feature of a few normal images,
for windows of both sizes and for patch tokens. Its authors released no code: formulas and defaults follow
Accurate-WinCLIP, with which anomalib agrees. Image scores are of the whole image alone, as in both; the paper also
uses a multi-crop prediction that it does not define, for which the key `multicrop` offers CLIP-AD's
(zsad_jax/ops/multicrop.py).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from zsad_jax.clip.feature_spec import Features, FeatureSpec, Tap
from zsad_jax.methods import Batch, Clip, Config, Context, Params, Prediction, Traits
from zsad_jax.methods.parts import bounds, prompts
from zsad_jax.methods.parts.bounds import NOT_NEGATIVE, POSITIVE, OneOf, Range
from zsad_jax.ops import maps, multicrop, windows

TEMPLATES = {'winclip22': prompts.WINCLIP_TEMPLATES, 'accurate21': prompts.ACCURATE_TEMPLATES}

TRAITS = Traits(nearest_neighbours=True)
BOUNDS = {
  'prompt.templates': OneOf(tuple(TEMPLATES)),
  'mean.windows': OneOf(windows.MEANS),
  'mean.scales': OneOf(windows.MEANS),
  'fewshot.combine': OneOf(('mean', 'sum')),
  'temperature': POSITIVE,
  'map.sigma': NOT_NEGATIVE,
}


def feature_spec(clip: Clip, cfg: Config) -> FeatureSpec:
  """Returns the class token, also of crops, the windows and, with references, the patch tokens of one block."""
  blocks, sides = clip.arch.vision.layers, tuple(cfg.windows)
  if len(set(sides)) < len(sides) or not all(1 <= side <= clip.grid for side in sides):
    raise ValueError(f'windows={sides} is not allowed; they must be different sides in [1, {clip.grid}], in patches')
  bounds.check(cfg, {'fewshot.patch_block': Range(
    0, blocks, reason=f'the blocks of the image tower of {clip.arch.name}, or 0 for the last')})
  whole = FeatureSpec(clip.image_size, cls='ln_post_proj', positions=cfg.positions, windows=sides,
                      crops=multicrop.side(clip.image_size, cfg.multicrop))
  if not cfg.fewshot.shots:
    return whole
  tap = Tap('clip', cfg.fewshot.patch_block or blocks)
  return whole._replace(taps=(tap,), read='ln_post' if cfg.fewshot.patch_ln_post else 'none')


def encode_text(params: Params, clip_params: Params, names: Sequence[str], *, clip: Clip, cfg: Config) -> jax.Array:
  """Returns text features [C, 2, E], normal and anomalous; one pair for all categories if prompt.class_word is set."""
  del params
  names = (cfg.prompt.class_word,) if cfg.prompt.class_word else names
  return prompts.ensemble(clip, clip_params, names, prompts.WINCLIP_STATES, TEMPLATES[cfg.prompt.templates],
                          normalize_each=cfg.text.normalize_each, raw_names=cfg.prompt.raw_names)


def build_memory_bank(clip_params: Params, reference_features: Features, *, clip: Clip, cfg: Config) -> dict[str, Any]:
  """Returns every category's reference features, all images and places pooled; see windows.pooled."""
  del clip_params, clip, cfg
  return windows.pooled(reference_features)


def predict(params: Params, context: Context, features: Features, batch: Batch, *,
            clip: Clip, cfg: Config) -> Prediction:
  """Returns score [B] and map [B, R, R] at image_size.

  Zero-shot: the probability of the anomalous state, see multicrop.score, and M_0, the mean over window sizes and the
  whole image's probability. With references: half that score and half the maximum of M_ref, the mean of the three
  maps of distances, before it is upsampled; and the mean (or sum) of M_0 and M_ref.
  """
  del params
  pair = maps.of_category(context.text_features, batch['category'])
  image = maps.states(features.cls[:, None], pair, cfg.temperature)[:, 0, 1]
  scales = [windows.cover_mean(maps.states(x, pair, cfg.temperature)[..., 1], clip.grid, side, cfg.mean.windows)
            for side, x in features.windows.items()]
  whole = jnp.broadcast_to(image[:, None, None], (len(image), clip.grid, clip.grid))
  text_map = windows.mean_map(jnp.stack([*scales, whole]), cfg.mean.scales)
  score = multicrop.score(features, pair, cfg.temperature, cfg.multicrop)
  if not cfg.fewshot.shots:
    return Prediction(score, maps.upsample_blur(text_map, clip.image_size, cfg.map.sigma))
  distance_map = windows.distances(context.memory_bank, features, batch['category'], clip.grid, cfg.mean.windows,
                                   cfg.machine.knn_mib)
  both = text_map + distance_map
  fused = both / 2 if cfg.fewshot.combine == 'mean' else both
  return Prediction((score + distance_map.max((1, 2))) / 2,
                    maps.upsample_blur(fused, clip.image_size, cfg.map.sigma))
