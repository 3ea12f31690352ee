"""CLIP Surgery as an anomaly detector: patches from a V-V stream, similarities without what all texts share.

In the last blocks of the image tower a second stream collects attention of values with values, starting from CLIP's
own and reading it block after block ("architecture surgery"). Its patches, through ln_post and the projection, are
compared with the texts of "normal" and "abnormal", and what both have in common is subtracted ("feature
surgery"; arXiv 2304.05653). That work explains what CLIP sees; CLIP-AD (arXiv 2311.00453) has a row for anomaly
detection with it, which this follows: maps are not stretched to 0..1, and the image score is plain CLIP's, of the
whole image or averaged over crops.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.clip.feature_spec import Features, FeatureSpec, SideStream, Tap
from zsad_jax.methods import Batch, Clip, Config, Context, Params, Prediction
from zsad_jax.methods.parts import bounds, prompts, representative_vectors
from zsad_jax.methods.parts.bounds import NOT_NEGATIVE, POSITIVE, OneOf, Range
from zsad_jax.ops import maps, multicrop

# The 85 templates around the empty string, whose mean is what every text says: ImageNet's and five scenes.
EMPTY_TEMPLATES = prompts.IMAGENET_TEMPLATES + tuple(
  template for template in prompts.COMPOUND_TEMPLATES if template not in prompts.IMAGENET_TEMPLATES)

BOUNDS = {
  **representative_vectors.BOUNDS,
  'prompt.ensemble': OneOf(('clip_ad', 'compound')),
  'temperature': POSITIVE,
  'surgery.prob_scale': POSITIVE,
  'map.sigma': NOT_NEGATIVE,
}


def feature_spec(clip: Clip, cfg: Config) -> FeatureSpec:
  """Returns CLIP's class token, also of crops, and the V-V stream at the end, all through ln_post and projection."""
  last = clip.arch.vision.layers
  bounds.check(cfg, {'surgery.last_n': Range(1, last, reason=f'the blocks of the image tower of {clip.arch.name}')})
  return FeatureSpec(clip.image_size, cls='ln_post_proj', taps=(Tap('surgery', last),),
                     sides=(SideStream('surgery', 'vv', first_block=last - cfg.surgery.last_n + 1),),
                     positions=cfg.positions, crops=multicrop.side(clip.image_size, cfg.multicrop))


def encode_text(params: Params, clip_params: Params, names: Sequence[str], *,
                clip: Clip, cfg: Config) -> tuple[jax.Array, ...]:
  """Returns text features: normal [C, n, E], abnormal [C, m, E], with surgery.single_text the empty string's [C, 1, E].

  With prompt.ensemble 'compound' n and m are 1: the means of APRIL-GAN's texts.
  """
  del params
  if cfg.prompt.ensemble == 'clip_ad':
    texts = prompts.clip_ad(clip, clip_params, names, cfg.data.target, words=cfg.rvs.extra_states,
                            raw_names=cfg.prompt.raw_names)
  else:
    pair = prompts.ensemble(clip, clip_params, names, prompts.COMPOUND_STATES, prompts.COMPOUND_TEMPLATES,
                            raw_names=cfg.prompt.raw_names)
    texts = pair[:, :1], pair[:, 1:]
  if not cfg.surgery.single_text:
    return texts
  empty = prompts.ensemble(clip, clip_params, ('',), (('{}',),), EMPTY_TEMPLATES)  # [1, 1, E]
  return *texts, jnp.broadcast_to(empty, (len(names), *empty.shape[1:]))


def reduce_text_features(text_features: Any, dataset: str, *, cfg: Config) -> np.ndarray:
  """Returns text features [C, 2, E], normal and abnormal, or [C, 3, E] with the empty string's."""
  pair = np.concatenate(text_features[:2], axis=1)
  if cfg.prompt.ensemble == 'clip_ad':
    pair = representative_vectors.represent_states(text_features[:2], cfg.rvs, dataset)
  return np.concatenate([pair, *text_features[2:]], axis=1)


def predict(params: Params, context: Context, features: Features, batch: Batch, *,
            clip: Clip, cfg: Config) -> Prediction:
  """Returns score [B], CLIP's probability of the abnormal texts (multicrop.score), and map [B, R, R] at image_size.

  The map is the abnormal text's similarity after feature surgery, maps.surgery: 0 is as normal as abnormal. With
  surgery.single_text it is f . (t - t_empty) of the abnormal text alone.
  """
  del params
  text = maps.of_category(context.text_features, batch['category'])
  pair = text[..., :2, :]
  patches, = features.taps.values()
  patches = maps.normalize(patches.astype(jnp.float32))
  cls = maps.normalize(features.cls.astype(jnp.float32))
  score = multicrop.score(features, pair, cfg.temperature, cfg.multicrop)
  if cfg.surgery.single_text:
    abnormal = maps.logits(patches, text[..., 1:2, :] - text[..., 2:, :], 1.0)[..., 0]
  else:
    abnormal = maps.surgery(patches, cls, pair, cfg.surgery.prob_scale)[..., 1]
  if cfg.surgery.minmax:
    low, high = (f(abnormal, axis=1, keepdims=True) for f in (jnp.min, jnp.max))
    spread = high - low
    # Below float32's rounding of a cosine the map is constant.
    abnormal = jnp.where(spread > 1e-6, (abnormal - low) / jnp.maximum(spread, 1e-6), 0)
  return Prediction(score, maps.upsample_blur(maps.square(abnormal), clip.image_size, cfg.map.sigma))
