"""CLIP and CLIP-AC: training-free zero-shot anomaly detection by naming the two states.

The score of an image is the softmax of its cosines with the texts of the two states, that of a pixel the same for its
patch; the image tower is CLIP's own, class and patch tokens both read through ln_post and the projection. These are the
baselines of AnomalyCLIP (arXiv 2310.18961, sec. A.2): CLIP says "A photo of a normal [cls]" and "A photo of an
anomalous [cls]", CLIP-AC fills the ImageNet templates with "normal [cls]" and "anomalous [cls]".
"""

from collections.abc import Sequence

import jax

from zsad_jax.clip.feature_spec import Features, FeatureSpec, Tap
from zsad_jax.methods import Batch, Clip, Config, Context, Params, Prediction, Traits
from zsad_jax.methods.parts import prompts
from zsad_jax.methods.parts.bounds import NOT_NEGATIVE, POSITIVE, OneOf
from zsad_jax.ops import maps, multicrop

# {prompt.ensemble: (states, templates)}.
ENSEMBLES = {
  'pair': (tuple((text,) for text in prompts.CLIP_PAIR), ('{}',)),
  'imagenet': (prompts.CLIP_AC_STATES, prompts.IMAGENET_TEMPLATES),
  'compound': (prompts.COMPOUND_STATES, prompts.COMPOUND_TEMPLATES),
}

TRAITS = Traits(towers=('vit', 'resnet'))
BOUNDS = {'prompt.ensemble': OneOf(tuple(ENSEMBLES)), 'temperature': POSITIVE, 'map.sigma': NOT_NEGATIVE}


def feature_spec(clip: Clip, cfg: Config) -> FeatureSpec:
  """Returns the class token, also of crops, and the last block's patch tokens, through ln_post and projection.

  For a ResNet: the class feature and the output of its attention pool at every position of the last feature map.
  """
  whole = FeatureSpec(clip.image_size, cls='ln_post_proj', taps=(Tap('clip', clip.arch.vision.layers),),
                      positions=cfg.positions, crops=multicrop.side(clip.image_size, cfg.multicrop))
  if clip.arch.vision.kind == 'resnet':
    whole = whole._replace(cls='proj', taps=(whole.taps[0]._replace(point='pool'),), read='none')
  return whole


def encode_text(params: Params, clip_params: Params, names: Sequence[str], *, clip: Clip, cfg: Config) -> jax.Array:
  """Returns text features [C, 2, E], normal and abnormal; one pair for all categories if prompt.class_word is set."""
  del params
  states, templates = ENSEMBLES[cfg.prompt.ensemble]
  return prompts.ensemble(clip, clip_params, (cfg.prompt.class_word,) if cfg.prompt.class_word else names,
                          states, templates)


def predict(params: Params, context: Context, features: Features, batch: Batch, *,
            clip: Clip, cfg: Config) -> Prediction:
  """Returns score [B], the probability of the abnormal state (eq. 1; multicrop.score), and map [B, R, R]."""
  del params
  temperature = prompts.temperature(context.clip_params, cfg)
  pair = maps.of_category(context.text_features, batch['category'])
  patches, = features.taps.values()
  score = multicrop.score(features, pair, temperature, cfg.multicrop)
  abnormal = maps.states(patches, pair, temperature)[..., 1]
  return Prediction(score, maps.upsample_blur(maps.square(abnormal), clip.image_size, cfg.map.sigma))
