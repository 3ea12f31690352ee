"""CLIP Surgery as an anomaly detector: patches from a V-V stream, similarities without what all texts share.

In the last blocks of the image tower a second stream collects attention of values with values, starting from CLIP's
own and reading it block after block ("architecture surgery"). Its patches, through ln_post and the projection, are
compared with the texts of "normal" and "abnormal" so that what both have in common is subtracted ("feature
surgery"; arXiv 2304.05653). That work explains what CLIP sees; CLIP-AD (arXiv 2311.00453) made a row for anomaly
detection of it, which this follows: no stretching of maps to 0..1, and the image score is plain CLIP's, of the whole
image or averaged over crops.
"""

import jax.numpy as jnp
import numpy as np

from zsad_jax.clip.feature_spec import FeatureSpec, SideStream, Tap
from zsad_jax.methods.parts import prompts, representative_vectors
from zsad_jax.ops import maps, multicrop

# The 85 templates around the empty string, whose mean is what every text says: ImageNet's and five scenes.
EMPTY_TEMPLATES = prompts.IMAGENET_TEMPLATES + tuple(
  template for template in prompts.COMPOUND_TEMPLATES if template not in prompts.IMAGENET_TEMPLATES)
TEXTS = ('clip_ad', 'compound')  # of prompt.ensemble


def spec(clip, cfg):
  """Returns the FeatureSpec: CLIP's class token, also of crops, and the V-V stream at the end, all fully read out."""
  check(clip, cfg)
  last = clip.arch.vision.layers
  return FeatureSpec(clip.image_size, cls='ln_post_proj', taps=(Tap('surgery', last),),
              sides=(SideStream('surgery', 'vv', first_block=last - cfg.surgery.last_n + 1),), positions=cfg.positions,
              crops=multicrop.side(clip.image_size, cfg.multicrop))


def init(rng, clip, cfg):
  """Returns {}: nothing is learned."""
  del rng, clip, cfg
  return {}


def bank(learnable, frozen, categories, *, clip, cfg):
  """Returns text features: normal [C, n, E], abnormal [C, m, E], and the empty string's [C, 1, E] where it is cut out.

  With prompt.ensemble 'compound' n and m are 1: the means of APRIL-GAN's texts.
  """
  del learnable
  if cfg.prompt.ensemble == 'clip_ad':
    texts = prompts.clip_ad(clip, frozen, categories, cfg.data.target, words=cfg.rvs.extra_states,
                            raw_names=cfg.prompt.raw_names)
  else:
    pair = prompts.ensemble(clip, frozen, categories, prompts.COMPOUND_STATES, prompts.COMPOUND_TEMPLATES,
                            raw_names=cfg.prompt.raw_names)
    texts = pair[:, :1], pair[:, 1:]
  if not cfg.surgery.single_text:
    return texts
  empty = prompts.ensemble(clip, frozen, ('',), (('{}',),), EMPTY_TEMPLATES)  # [1, 1, E]
  return *texts, jnp.broadcast_to(empty, (len(categories), *empty.shape[1:]))


def select(texts, dataset, *, cfg):
  """Returns text features [C, 2, E], normal and abnormal, or [C, 3, E] with the empty string's."""
  pair = np.concatenate(texts[:2], axis=1)
  if cfg.prompt.ensemble == 'clip_ad':
    pair = representative_vectors.pairs(texts[:2], cfg.rvs, dataset)
  return np.concatenate([pair, *texts[2:]], axis=1)


def predict(learnable, frozen, bank, memory, features, batch, *, clip, cfg):
  """Returns score [B], CLIP's probability of the abnormal texts (multicrop.score), and map [B, R, R] at image_size.

  The map is the abnormal text's similarity after feature surgery, maps.surgery, so that 0 is as normal as abnormal;
  with surgery.single_text it is f . (t - t_empty) of the abnormal text alone.
  """
  del learnable, frozen, memory
  text = maps.of_category(bank, batch['category'])
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
  return {'score': score, 'map': maps.upsample_blur(maps.square(abnormal), clip.image_size, cfg.map.sigma)}


def check(clip, cfg):
  """Raises ValueError naming the first config key that is out of range."""
  blocks = clip.arch.vision.layers
  representative_vectors.check(cfg.rvs)
  if cfg.prompt.ensemble not in TEXTS:
    raise ValueError(f'prompt.ensemble {cfg.prompt.ensemble!r} is not one of {", ".join(TEXTS)}')
  if not 1 <= cfg.surgery.last_n <= blocks:
    raise ValueError(f'surgery.last_n {cfg.surgery.last_n} is not in 1..{blocks}: the image tower of '
                     f'{clip.arch.name} has {blocks} blocks')
  for key, value in (('temperature', cfg.temperature), ('surgery.prob_scale', cfg.surgery.prob_scale)):
    if not value > 0:
      raise ValueError(f'{key} {value} is not positive')
  if not cfg.map.sigma >= 0:
    raise ValueError(f'map.sigma {cfg.map.sigma} is not 0 or more')
