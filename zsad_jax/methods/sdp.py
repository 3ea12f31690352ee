"""SDP of CLIP-AD: staged dual paths and representative texts, nothing learned (arXiv 2311.00453).

A second stream of the image tower, which adds up V-V attention stage by stage, is compared with one vector for
"normal" and one for "abnormal" texts, so that what both have in common is subtracted; the stages' maps add up and
are smoothed (zsad_jax/methods/parts/dual_path.py). Either vector is the mean of the largest cluster of some two hundred texts, or
another representative of them (zsad_jax/methods/parts/representative_vectors.py). The image score is CLIP's probability and the map's
maximum.
"""

from zsad_jax.methods.parts import dual_path, prompts, representative_vectors
from zsad_jax.ops import maps

TOWERS = ('vit', 'resnet')


def spec(clip, cfg):
  """Returns the FeatureSpec: CLIP's class token, and of every stage the second stream's patches and CLIP's class token."""
  representative_vectors.check(cfg.rvs)
  return dual_path.spec(clip, cfg)


def init(rng, clip, cfg):
  """Returns {}: nothing is learned."""
  del rng, clip, cfg
  return {}


def bank(learnable, frozen, categories, *, clip, cfg):
  """Returns the features of all texts, normal [C, n, E] and abnormal [C, m, E]."""
  del learnable
  return prompts.clip_ad(clip, frozen, categories, cfg.data.target, words=cfg.rvs.extra_states,
                         raw_names=cfg.prompt.raw_names)


def select(texts, dataset, *, cfg):
  """Returns text features [C, 2, E], the representatives of the normal and of the abnormal texts."""
  return representative_vectors.pairs(texts, cfg.rvs, dataset)


def predict(learnable, frozen, bank, memory, features, batch, *, clip, cfg):
  """Returns score [B], and map [B, R, R] at image_size: the stages' sum, upsampled and smoothed.

  The score is the abnormal texts' probability for the deepest stage's class token, to which the map's maximum is
  added here with score_norm 'none', and by `finish` with 'class_minmax'.
  """
  del learnable, frozen, memory
  vision, text = clip.arch.vision, maps.of_category(bank, batch['category'])
  stages = dual_path.similarity(features, text, vision, cfg)
  smoothed = maps.upsample_blur(stages, clip.image_size, cfg.map.sigma)
  probability = dual_path.probability(features, text, vision, cfg)
  return {'score': dual_path.score(probability, smoothed, cfg), 'map': smoothed}


def alone(cfg):
  """Returns the change of the config that scores an image by itself."""
  return dual_path.alone(cfg)


def finish(outputs, *, cfg):
  """Returns outputs with the image score of a category; see dual_path.score."""
  return dual_path.finish(outputs, cfg)
