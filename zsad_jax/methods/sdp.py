"""SDP of CLIP-AD: staged dual paths and representative texts, without training (arXiv 2311.00453).

A second stream of the image tower, which adds up V-V attention stage by stage, is compared with one vector for
"normal" and one for "abnormal" texts, so that what both have in common is subtracted. The stages' maps add up and are
smoothed (parts/dual_path.py). Either vector is the mean of the largest cluster of some two hundred texts, or another
representative of them (parts/representative_vectors.py). The image score is CLIP's probability and the map's maximum.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from zsad_jax.clip.feature_spec import Features, FeatureSpec
from zsad_jax.methods import Batch, Clip, Config, Context, Params, Prediction, Traits
from zsad_jax.methods.parts import dual_path, prompts, representative_vectors
from zsad_jax.ops import maps

TRAITS = Traits(towers=('vit', 'resnet'))
BOUNDS = {**dual_path.BOUNDS, **representative_vectors.BOUNDS}


def feature_spec(clip: Clip, cfg: Config) -> FeatureSpec:
  """Returns the FeatureSpec: CLIP's class token and, for every stage, the second stream's patches and a class token."""
  return dual_path.feature_spec(clip, cfg)


def encode_text(params: Params, clip_params: Any, names: Sequence[str], *, clip: Clip,
                cfg: Config) -> tuple[jax.Array, ...]:
  """Returns the features of all texts, normal [C, n, E] and abnormal [C, m, E]."""
  del params
  return prompts.clip_ad(clip, clip_params, names, cfg.data.target, words=cfg.rvs.extra_states,
                         raw_names=cfg.prompt.raw_names)


def reduce_text_features(text_features: Any, dataset: str, *, cfg: Config) -> np.ndarray:
  """Returns text features [C, 2, E], the representatives of the normal and of the abnormal texts."""
  return representative_vectors.represent_states(text_features, cfg.rvs, dataset)


def predict(params: Params, context: Context, features: Features, batch: Batch, *, clip: Clip,
            cfg: Config) -> Prediction:
  """Returns the stages' sum, upsampled and smoothed, as the map, and the image score of dual_path.predict."""
  del params
  vision, text = clip.arch.vision, maps.of_category(context.text_features, batch['category'])
  smoothed = maps.upsample_blur(dual_path.similarity(features, text, vision, cfg), clip.image_size, cfg.map.sigma)
  return dual_path.predict(features, text, smoothed, vision, cfg)


def single_image_overrides(cfg: Config) -> Mapping[str, Any]:
  """Returns the key that scores an image without others; see dual_path."""
  return dual_path.single_image_overrides(cfg)


def postprocess_category(prediction: Prediction, *, cfg: Config) -> Prediction:
  """Returns the Prediction with the image score of a category; see dual_path."""
  return dual_path.postprocess_category(prediction, cfg)
