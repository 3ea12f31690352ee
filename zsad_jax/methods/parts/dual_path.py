"""CLIP-AD's dual path: where it reads an image tower, and the map and score that come of it (arXiv 2311.00453).

Beside CLIP's own stream h runs a second one, n, which within each quarter of the blocks adds up the attention of
values with values, read from h, and starts from zero in the next quarter. At the end of a quarter the patches of n
and the class token of h go through feature surgery (maps.surgery), and the quarters' maps add up. The formulas are
the released code's; the paper's eq. 8 and 9 count one block twice.
"""

from typing import NamedTuple

import jax.numpy as jnp

from zsad_jax.clip.feature_spec import FeatureSpec, SideStream, Tap, check_layers
from zsad_jax.ops import maps, multicrop

PATHS = ('surgery', 'direct')
SCORE_NORMS = ('class_minmax', 'none', 'no_map')


class Stage(NamedTuple):
  """Where one map is read: patches, and the class token that weighs the texts, None for CLIP's own."""
  patches: Tap
  cls: Tap | None


def stages(vision, cfg):
  """Returns the Stages that the config's `layers`, `stage`, `tap_alias` and `path` say, in order of depth.

  With path 'direct' it is one: CLIP's own patches at the end. So it is with a ResNet, whose surgery is in its
  attention pool alone.

  With tap_alias they are those of the released code, which keeps a block's output by reference while the next block
  adds its attention to it in place. CLIP's stream, read at any block but the last, is then m = h + attention of the
  next block, and the second stream is that of the end of its quarter.
  """
  last = vision.layers
  if vision.kind == 'resnet':
    points = ('pool', None) if cfg.path == 'direct' else ('pool_cosine', 'pool_vv')
    return (Stage(Tap('clip', last, points[0]), points[1] and Tap('clip', last, points[1], 'cls')),)
  if cfg.path == 'direct':
    return (Stage(Tap('clip', last), None),)
  length = stage_length(vision, cfg)
  end = lambda block: min(-(-block // length) * length, last) if cfg.tap_alias else block
  return tuple(Stage(Tap('sdp', end(block)), None if block == last else kept(vision, cfg, block, token='cls'))
               for block in sorted(cfg.layers))


def kept(vision, cfg, block, **changes):
  """Returns the Tap of CLIP's own stream after `block`, as the released code keeps it; see stages."""
  own = Tap('clip', block)
  if cfg.tap_alias and vision.kind == 'vit' and block < vision.layers:
    own = Tap('clip', block + 1, 'attention')
  return own._replace(**changes)


def spec(clip, cfg, taps=()):
  """Returns the FeatureSpec that reads the class token, the stages and the further `taps`, which say how they are read."""
  vision = clip.arch.vision
  check(clip, cfg)
  resnet = vision.kind == 'resnet'
  every = [tap for stage in stages(vision, cfg) for tap in stage if tap is not None]
  sides = () if resnet else (SideStream('sdp', 'vv', first_block=1, residual_base=cfg.surgery.residual_base,
                                  reset_every=stage_length(vision, cfg)),)
  return FeatureSpec(clip.image_size, cls='proj' if resnet else 'ln_post_proj', taps=tuple(dict.fromkeys([*every, *taps])),
              sides=sides if cfg.path == 'surgery' else (), read='none' if resnet else 'ln_post_proj',
              positions=cfg.positions, crops=multicrop.side(clip.image_size, cfg.multicrop))


def similarity(features, text, vision, cfg):
  """Returns the abnormal text's similarity at every patch, [B, G, G]: 0 is as normal as abnormal.

  The sum over the stages of maps.surgery; with path 'direct' half the difference of the two cosines, which is the
  same with equal weights of the texts.

  Args:
    features: what `spec` reads.
    text: [2, E] or [B, 2, E], L2-normalised, normal then abnormal.
    vision: shape of the image tower.
    cfg: the config.
  """
  total = 0
  for stage in stages(vision, cfg):
    patches = _unit(features.taps[stage.patches.name])
    if cfg.path == 'direct':
      cosines = maps.logits(patches, text, 1.0)
      total += (cosines[..., 1] - cosines[..., 0]) / 2
    else:
      total += maps.surgery(patches, _unit(_class(features, stage)), text, cfg.surgery.prob_scale)[..., 1]
  return maps.square(total)


def probability(features, text, vision, cfg):
  """Returns the probability of the abnormal text, [B], for the class token of the deepest stage (multicrop.score)."""
  cls = _class(features, stages(vision, cfg)[-1])
  return multicrop.score(features._replace(cls=cls), text, cfg.temperature, cfg.multicrop)


def score(probability, smoothed, cfg):
  """Returns predict's score [B]: with score_norm 'none' the probability and the map's maximum, else the former.

  The sum of both is the paper's (sec. 3.1), and needs no other image. The released code stretches either to 0..1 over
  the images of the category first, which is for `finish` to do. With 'no_map' the probability is all (suppl. D).
  """
  return probability + smoothed.max((1, 2)) if cfg.score_norm == 'none' else probability


def alone(cfg):
  """Returns the change of the config that scores an image by itself: the paper's plain sum."""
  return {'score_norm': 'none'} if cfg.score_norm == 'class_minmax' else {}


def finish(outputs, cfg):
  """Returns the outputs of one category, numpy arrays, with the score that score_norm says; see score."""
  if cfg.score_norm != 'class_minmax':
    return outputs
  return {**outputs, 'score': maps.stretch(outputs['score']) + maps.stretch(outputs['map'].max((1, 2)))}


def stage_length(vision, cfg):
  """Returns how many blocks a stage has: `stage`, or for 0 a quarter of the blocks."""
  return cfg.stage or vision.layers // 4


def check(clip, cfg):
  """Raises ValueError naming the first config key that is out of range."""
  vision, last = clip.arch.vision, clip.arch.vision.layers
  check_layers(clip, cfg.layers)
  if vision.kind == 'vit' and (cfg.stage < 0 or last % (cfg.stage or 4)):
    raise ValueError(f'stage {cfg.stage} is no number of blocks that divides the {last} of {clip.arch.name}; 0 is a '
                     'quarter of them, where there is one')
  for key, value, allowed in (('path', cfg.path, PATHS), ('score_norm', cfg.score_norm, SCORE_NORMS)):
    if value not in allowed:
      raise ValueError(f'{key} {value!r} is not one of {", ".join(allowed)}')
  for key, value in (('temperature', cfg.temperature), ('surgery.prob_scale', cfg.surgery.prob_scale)):
    if not value > 0:
      raise ValueError(f'{key} {value} is not positive')
  if not cfg.map.sigma >= 0:
    raise ValueError(f'map.sigma {cfg.map.sigma} is not 0 or more')
  if cfg.multicrop.recipe != 'none' and stages(vision, cfg)[-1].cls is not None:
    raise ValueError(f'multicrop.recipe {cfg.multicrop.recipe!r}: crops are scored by CLIP\'s own class token, and '
                     'under these layers and this path the whole image is not')


def _class(features, stage):
  return features.cls if stage.cls is None else features.taps[stage.cls.name][:, 0]


def _unit(x):
  return maps.normalize(x.astype(jnp.float32))
