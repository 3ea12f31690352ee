"""CLIP and CLIP-AC: zero-shot anomaly detection by naming the two states, nothing learned.

An image is scored by the softmax of its cosines with the texts of the two states, a pixel by that of its patch; the
image tower is CLIP's own, class and patch tokens both read through ln_post and the projection. These are the
baselines of AnomalyCLIP (arXiv 2310.18961, sec. A.2): CLIP says "A photo of a normal [cls]" and "A photo of an
anomalous [cls]", CLIP-AC fills the ImageNet templates with "normal [cls]" and "anomalous [cls]".
"""

from zsad_jax.clip.feature_spec import FeatureSpec, Tap
from zsad_jax.methods.parts import prompts
from zsad_jax.ops import maps, multicrop

# {prompt.ensemble: (states, templates)}.
ENSEMBLES = {
  'pair': (tuple((text,) for text in prompts.CLIP_PAIR), ('{}',)),
  'imagenet': (prompts.CLIP_AC_STATES, prompts.IMAGENET_TEMPLATES),
  'compound': (prompts.COMPOUND_STATES, prompts.COMPOUND_TEMPLATES),
}
TOWERS = ('vit', 'resnet')


def spec(clip, cfg):
  """Returns the FeatureSpec: class token, also of crops, and last block's patch tokens, through ln_post and projection.

  Of a ResNet it is the class feature and what its attention pool gives for every place of the last map.
  """
  check(cfg)
  read = FeatureSpec(clip.image_size, cls='ln_post_proj', taps=(Tap('clip', clip.arch.vision.layers),),
              positions=cfg.positions, crops=multicrop.side(clip.image_size, cfg.multicrop))
  if clip.arch.vision.kind == 'resnet':
    read = read._replace(cls='proj', taps=(read.taps[0]._replace(point='pool'),), read='none')
  return read


def init(rng, clip, cfg):
  """Returns {}: nothing is learned."""
  del rng, clip, cfg
  return {}


def bank(learnable, frozen, categories, *, clip, cfg):
  """Returns text features [C, 2, E], normal and abnormal; one pair for all where prompt.class_word is set."""
  del learnable
  states, templates = ENSEMBLES[cfg.prompt.ensemble]
  names = (cfg.prompt.class_word,) if cfg.prompt.class_word else categories
  return prompts.ensemble(clip, frozen, names, states, templates)


def predict(learnable, frozen, bank, memory, features, batch, *, clip, cfg):
  """Returns score [B], the probability of the abnormal state (eq. 1; multicrop.score), and map [B, R, R]."""
  del learnable, memory
  temperature = prompts.temperature(frozen, cfg)
  pair = maps.of_category(bank, batch['category'])
  patches, = features.taps.values()
  score = multicrop.score(features, pair, temperature, cfg.multicrop)
  abnormal = maps.states(patches, pair, temperature)[..., 1]
  return {'score': score, 'map': maps.upsample_blur(maps.square(abnormal), clip.image_size, cfg.map.sigma)}


def check(cfg):
  """Raises ValueError naming the first config key that is out of range."""
  if cfg.prompt.ensemble not in ENSEMBLES:
    raise ValueError(f'prompt.ensemble {cfg.prompt.ensemble!r} is not one of {", ".join(ENSEMBLES)}')
  if not cfg.temperature > 0:
    raise ValueError(f'temperature {cfg.temperature} is not positive')
  if not cfg.map.sigma >= 0:
    raise ValueError(f'map.sigma {cfg.map.sigma} is not 0 or more')
