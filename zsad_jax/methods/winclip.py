"""WinCLIP and WinCLIP+: windows of an image against two ensembles of texts, and against normal references.

Every square window of 2 x 2 and of 3 x 3 patches, stride 1, is encoded by itself: the other patches are dropped before
the first block. A window's score is the softmax of its cosines with the mean texts of the normal and the anomalous
state; a patch takes the harmonic mean over the windows that cover it, then over the window sizes and the image score
(WinCLIP, arXiv 2303.14814). WinCLIP+ adds half the cosine distance to the nearest feature of a few normal images,
for windows of both sizes and for patch tokens. Its authors released no code: formulas and defaults follow
Accurate-WinCLIP, on which anomalib's agrees. Image scores are of the whole image alone, as theirs: the paper's
multi-crop prediction, which it does not define, can be had as CLIP-AD describes its own (zsad_jax/ops/multicrop.py).
"""

import jax.numpy as jnp

from zsad_jax.clip.feature_spec import FeatureSpec, Tap
from zsad_jax.methods.parts import prompts
from zsad_jax.ops import maps, multicrop, windows

TEMPLATES = {'winclip22': prompts.WINCLIP_TEMPLATES, 'accurate21': prompts.ACCURATE_TEMPLATES}
COMBINE = ('mean', 'sum')


def spec(clip, cfg):
  """Returns the FeatureSpec: class token, also of crops, windows and, with references, the patch tokens of one block."""
  check(clip, cfg)
  whole = FeatureSpec(clip.image_size, cls='ln_post_proj', positions=cfg.positions, windows=tuple(cfg.windows),
               crops=multicrop.side(clip.image_size, cfg.multicrop))
  if not cfg.fewshot.shots:
    return whole
  tap = Tap('clip', cfg.fewshot.patch_block or clip.arch.vision.layers)
  return whole._replace(taps=(tap,), read='ln_post' if cfg.fewshot.patch_ln_post else 'none')


def init(rng, clip, cfg):
  """Returns {}: nothing is learned."""
  del rng, clip, cfg
  return {}


def bank(learnable, frozen, categories, *, clip, cfg):
  """Returns text features [C, 2, E], normal and anomalous; one pair for all where prompt.class_word is set."""
  del learnable
  names = (cfg.prompt.class_word,) if cfg.prompt.class_word else categories
  return prompts.ensemble(clip, frozen, names, prompts.WINCLIP_STATES, TEMPLATES[cfg.prompt.templates],
                          normalize_each=cfg.text.normalize_each, raw_names=cfg.prompt.raw_names)


def memory(frozen, reference_features, *, clip, cfg):
  """Returns every category's reference features, all images and places pooled; see windows.pooled."""
  del frozen, clip, cfg
  return windows.pooled(reference_features)


def predict(learnable, frozen, bank, memory, features, batch, *, clip, cfg):
  """Returns score [B] and map [B, R, R] at image_size.

  Zero-shot: the probability of the anomalous state, see multicrop.score, and M_0, the mean over window sizes and the
  whole image's probability. With references: half that score and half the maximum of M_ref, the mean of the three
  maps of distances, before it is upsampled; and the mean (or sum) of M_0 and M_ref.
  """
  del learnable, frozen
  pair = maps.of_category(bank, batch['category'])
  image = maps.states(features.cls[:, None], pair, cfg.temperature)[:, 0, 1]
  scales = [windows.cover_mean(maps.states(x, pair, cfg.temperature)[..., 1], clip.grid, side, cfg.mean.windows)
            for side, x in features.windows.items()]
  whole = jnp.broadcast_to(image[:, None, None], (len(image), clip.grid, clip.grid))
  text_map = windows.mean_map(jnp.stack([*scales, whole]), cfg.mean.scales)
  score = multicrop.score(features, pair, cfg.temperature, cfg.multicrop)
  if not cfg.fewshot.shots:
    return {'score': score, 'map': maps.upsample_blur(text_map, clip.image_size, cfg.map.sigma)}
  if memory is None:
    raise ValueError(f'fewshot.shots is {cfg.fewshot.shots}, but predict was given no memory of references')
  distance_map = windows.distances(memory, features, batch['category'], clip.grid, cfg.mean.windows, cfg.machine.knn_mib)
  both = text_map + distance_map
  fused = both / 2 if cfg.fewshot.combine == 'mean' else both
  return {'score': (score + distance_map.max((1, 2))) / 2,
          'map': maps.upsample_blur(fused, clip.image_size, cfg.map.sigma)}


def check(clip, cfg):
  """Raises ValueError naming the first config key that is out of range."""
  few = cfg.fewshot
  for key, value, known in (('prompt.templates', cfg.prompt.templates, tuple(TEMPLATES)),
                            ('mean.windows', cfg.mean.windows, windows.MEANS),
                            ('mean.scales', cfg.mean.scales, windows.MEANS),
                            ('fewshot.combine', few.combine, COMBINE)):
    if value not in known:
      raise ValueError(f'{key} {value!r} is not one of {", ".join(known)}')
  if not cfg.temperature > 0:
    raise ValueError(f'temperature {cfg.temperature} is not positive')
  if not cfg.map.sigma >= 0:
    raise ValueError(f'map.sigma {cfg.map.sigma} is not 0 or more')
  if len(set(cfg.windows)) < len(cfg.windows) or not all(1 <= side <= clip.grid for side in cfg.windows):
    raise ValueError(f'windows {tuple(cfg.windows)} are not different sizes in 1..{clip.grid}, the patches a side')
  if not cfg.machine.knn_mib > 0:
    raise ValueError(f'machine.knn_mib {cfg.machine.knn_mib} is not positive')
  if few.shots < 0:
    raise ValueError(f'fewshot.shots {few.shots} is negative; 0 is zero-shot')
  if not 0 <= few.patch_block <= clip.arch.vision.layers:
    raise ValueError(f'fewshot.patch_block {few.patch_block} is not in 1..{clip.arch.vision.layers}, nor 0, the last')
