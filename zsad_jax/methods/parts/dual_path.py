"""CLIP-AD's staged dual path: where it reads the image tower, its map and its score (arXiv 2311.00453).

Next to CLIP's own stream h runs a second one, n. Within each quarter of the blocks it adds up the attention of values
with values, read from h, and it starts from zero in the next quarter. At the end of a quarter the patches of n and the
class token of h go through feature surgery (maps.surgery), and the quarters' maps add up. The formulas are those of the
released code; the paper's eq. 8 and 9 count one block twice.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.clip.feature_spec import Features, FeatureSpec, SideStream, Tap, check_layers
from zsad_jax.methods import Clip, Config, Prediction
from zsad_jax.methods.parts.bounds import NOT_NEGATIVE, POSITIVE, OneOf
from zsad_jax.ops import maps, multicrop

BOUNDS = {
  'stage': NOT_NEGATIVE, 'path': OneOf(('surgery', 'direct')), 'temperature': POSITIVE,
  'score_norm': OneOf(('class_minmax', 'none', 'no_map')), 'surgery.prob_scale': POSITIVE, 'map.sigma': NOT_NEGATIVE,
}


class Stage(NamedTuple):
  """Where one map is read: the patches, and the class token that weighs the texts, None for CLIP's own."""
  patches: Tap
  cls: Tap | None


def stages(vision: Any, cfg: Config) -> tuple[Stage, ...]:
  """Returns the Stages of the config's `layers`, `stage`, `tap_alias` and `path`, in order of depth.

  With path 'direct' there is one: CLIP's own patches at the end. A ResNet has one too, since its surgery is in its
  attention pool alone.

  With tap_alias they are those of the released code, which keeps a block's output by reference while the next block
  adds its attention to it in place. CLIP's stream, read at any block but the last, is then m = h + attention of the
  next block, and the second stream is that of the end of its quarter.
  """
  last = vision.layers
  if vision.kind == 'resnet':
    if cfg.path == 'direct':
      return (Stage(Tap('clip', last, 'pool'), None),)
    return (Stage(Tap('clip', last, 'pool_cosine'), Tap('clip', last, 'pool_vv', 'cls')),)
  if cfg.path == 'direct':
    return (Stage(Tap('clip', last), None),)
  length = stage_length(vision, cfg)
  end = lambda block: min(-(-block // length) * length, last) if cfg.tap_alias else block
  return tuple(Stage(Tap('sdp', end(block)), None if block == last else own_tap(vision, cfg, block, token='cls'))
               for block in sorted(cfg.layers))


def own_tap(vision: Any, cfg: Config, block: int, **changes: Any) -> Tap:
  """Returns the Tap of CLIP's own stream after `block`, as the released code reads it; see stages."""
  own = Tap('clip', block)
  if cfg.tap_alias and vision.kind == 'vit' and block < vision.layers:
    own = Tap('clip', block + 1, 'attention')
  return own._replace(**changes)


def feature_spec(clip: Clip, cfg: Config, taps: Iterable[Tap] = ()) -> FeatureSpec:
  """Returns the FeatureSpec of the class token, the stages and further `taps`, whose `read` is set.

  Raises:
    ValueError: `layers`, `stage` or `multicrop` do not fit the architecture.
  """
  vision = clip.arch.vision
  _check_architecture(clip, cfg)
  resnet = vision.kind == 'resnet'
  stage_taps = [tap for stage in stages(vision, cfg) for tap in stage if tap is not None]
  sides = () if resnet or cfg.path == 'direct' else (
    SideStream('sdp', 'vv', first_block=1, residual_base=cfg.surgery.residual_base,
               reset_every=stage_length(vision, cfg)),)
  return FeatureSpec(clip.image_size, cls='proj' if resnet else 'ln_post_proj',
                     taps=tuple(dict.fromkeys([*stage_taps, *taps])), sides=sides,
                     read='none' if resnet else 'ln_post_proj', positions=cfg.positions,
                     crops=multicrop.side(clip.image_size, cfg.multicrop))


def similarity(features: Features, text: jax.Array, vision: Any, cfg: Config) -> jax.Array:
  """Returns the abnormal text's similarity at every patch, [B, G, G]; at 0 a patch is as near to either text.

  The sum over the stages of maps.surgery. With path 'direct' it is half the difference of the two cosines, which is
  the same with equal weights of the texts.

  Args:
    features: read by `feature_spec`.
    text: [2, E] or [B, 2, E], L2-normalised, normal then abnormal.
    vision: shape of the image tower.
    cfg: the config.
  """
  total: Any = 0
  for stage in stages(vision, cfg):
    patches = _unit(features.taps[stage.patches.name])
    if cfg.path == 'direct':
      cosines = maps.logits(patches, text, 1.0)
      total += (cosines[..., 1] - cosines[..., 0]) / 2
    else:
      total += maps.surgery(patches, _unit(_class(features, stage)), text, cfg.surgery.prob_scale)[..., 1]
  return maps.square(total)


def probability(features: Features, text: jax.Array, vision: Any, cfg: Config) -> jax.Array:
  """Returns the probability [B] of the abnormal text for the class token of the deepest stage; see multicrop.score."""
  cls = _class(features, stages(vision, cfg)[-1])
  return multicrop.score(features._replace(cls=cls), text, cfg.temperature, cfg.multicrop)


def predict(features: Features, text: jax.Array, smoothed: jax.Array, vision: Any, cfg: Config) -> Prediction:
  """Returns the Prediction of a batch: the smoothed map [B, R, R] and the image score.

  With score_norm 'none' the score is the paper's, the sum of the probability and the map's maximum (sec. 3.1), and
  needs no other image. The released code stretches either to 0..1 over the images of the category first, which
  `postprocess_category` does. With 'no_map' the score is the probability (suppl. D).
  """
  score = probability(features, text, vision, cfg)
  return Prediction(score + smoothed.max((1, 2)) if cfg.score_norm == 'none' else score, smoothed)


def single_image_overrides(cfg: Config) -> Mapping[str, Any]:
  """Returns the key that scores an image without others: the paper's plain sum."""
  return {'score_norm': 'none'} if cfg.score_norm == 'class_minmax' else {}


def postprocess_category(prediction: Prediction, cfg: Config) -> Prediction:
  """Returns the Prediction of one category, numpy arrays, with its final score; see `predict`."""
  if cfg.score_norm != 'class_minmax':
    return prediction
  probability, peak = np.asarray(prediction.score), np.asarray(prediction.map).max((1, 2))
  return prediction._replace(score=maps.stretch(probability) + maps.stretch(peak))


def stage_length(vision: Any, cfg: Config) -> int:
  """Returns how many blocks a stage has: `stage`, or a quarter of the blocks if it is 0."""
  return cfg.stage or vision.layers // 4


def _check_architecture(clip: Clip, cfg: Config):
  vision = clip.arch.vision
  check_layers(clip, cfg.layers)
  if vision.kind == 'vit' and vision.layers % (cfg.stage or 4):
    raise ValueError(f'stage={cfg.stage} must divide the number of blocks of {clip.arch.name} ({vision.layers}); '
                     '0 stands for a quarter of them, if that is a whole number')
  if cfg.multicrop.recipe != 'none' and stages(vision, cfg)[-1].cls is not None:
    raise ValueError(f'multicrop.recipe={cfg.multicrop.recipe!r} scores crops by CLIP\'s own class token, but with '
                     f'layers={tuple(cfg.layers)} and path={cfg.path!r} the whole image is not; set '
                     f"multicrop.recipe='none' or include the last block, {vision.layers}")


def _class(features, stage):
  return features.cls if stage.cls is None else features.taps[stage.cls.name][:, 0]


def _unit(x):
  return maps.normalize(x.astype(jnp.float32))
