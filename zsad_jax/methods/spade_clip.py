"""SPADE's rules on CLIP features: a few-shot sanity row, not SPADE, which stands on WideResNet-50 features.

An image's score is the mean Euclidean distance of its class token to those of the nearest normal images; a patch's,
the distance of its tokens in three blocks of the image tower to the nearest among all patches of these images
(SPADE, arXiv 2005.02357). The class token is CLIP's own pooled feature and stands for the average of the last stage.

Memory, beside the references' C K N sum(W) numbers: those of the nearest images once more and the distances of one
image's patches to them within machine.knn_mib MiB, both times the images of a batch on a device.
"""

import jax
import jax.numpy as jnp

from zsad_jax.clip.feature_spec import FeatureSpec, Tap, check_layers
from zsad_jax.ops import maps, neighbours


def spec(clip, cfg):
  """Returns the FeatureSpec: CLIP's class token, and patch tokens of cfg.layers as the blocks leave them."""
  check(clip, cfg)
  return FeatureSpec(clip.image_size, cls='ln_post_proj', taps=tuple(Tap('clip', block) for block in cfg.layers),
              read='none', positions=cfg.positions)


def init(rng, clip, cfg):
  """Returns {}: nothing is learned."""
  del rng, clip, cfg
  return {}


def bank(learnable, frozen, categories, *, clip, cfg):
  """Returns {}: no text is read."""
  del learnable, frozen, categories, clip, cfg
  return {}


def memory(frozen, reference_features, *, clip, cfg):
  """Returns {'cls': [C, K, E], 'patches': [C, K, N, sum W]} of the references."""
  del frozen, clip
  return {'cls': reference_features.cls.astype(jnp.float32), 'patches': _patches(reference_features, cfg)}


def predict(learnable, frozen, bank, memory, features, batch, *, clip, cfg):
  """Returns score [B] and map [B, R, R], distances that are not bounded by 1.

  Raises:
    ValueError: without a memory.
  """
  del learnable, frozen, bank
  if memory is None:
    raise ValueError(f'fewshot.shots is {cfg.fewshot.shots}, but predict was given no memory of references')
  shots, patches = memory['cls'].shape[1], memory['patches']
  images = min(cfg.spade.neighbours, shots)
  distances, nearest = neighbours.nearest_by_category(
    features.cls[:, None], memory['cls'], batch['category'], k=images, metric='euclidean')
  chunk = neighbours.chunk_rows(images * patches.shape[2], cfg.machine.knn_mib)

  def of_image(queries, category, chosen):
    rows = patches[category, chosen].reshape(-1, patches.shape[-1])
    return neighbours.nearest(queries, rows, metric='euclidean', chunk=chunk)[0][:, 0]

  found = jax.vmap(of_image)(_patches(features, cfg), batch['category'], nearest[:, 0])  # [B, N]
  return {'score': distances[:, 0].mean(axis=1),
          'map': maps.upsample_blur(maps.square(found), clip.image_size, cfg.map.sigma)}


def check(clip, cfg):
  """Raises ValueError naming the first config key that is out of range."""
  check_layers(clip, cfg.layers)
  if cfg.fewshot.shots < 1:
    raise ValueError(f'fewshot.shots {cfg.fewshot.shots} is not 1 or more: without normal images there is no score')
  if cfg.spade.neighbours < 1:
    raise ValueError(f'spade.neighbours {cfg.spade.neighbours} is not 1 or more')
  if not cfg.map.sigma >= 0:
    raise ValueError(f'map.sigma {cfg.map.sigma} is not 0 or more')
  if not cfg.machine.knn_mib > 0:
    raise ValueError(f'machine.knn_mib {cfg.machine.knn_mib} is not positive')


def _patches(features, cfg):
  """[..., N, sum W] in the order of cfg.layers."""
  return jnp.concatenate([features.taps[Tap('clip', block).name].astype(jnp.float32) for block in cfg.layers], axis=-1)
