"""SPADE's rules on CLIP features: a few-shot sanity row, not SPADE, which uses WideResNet-50 features.

An image's score is the mean Euclidean distance of its class token to those of the nearest normal images; a patch's,
the distance of its tokens in three blocks of the image tower to the nearest among all patches of these images
(SPADE, arXiv 2005.02357). The class token is CLIP's own pooled feature and replaces the average of the last stage.

Memory, in addition to the references' C K N sum(W) numbers: those of the nearest images once more and the distances of
one image's patches to them within machine.knn_mib MiB, both times the images of a batch on a device.
"""

import jax
import jax.numpy as jnp

from zsad_jax.clip.feature_spec import Features, FeatureSpec, Tap, check_layers
from zsad_jax.methods import Batch, Clip, Config, Context, Params, Prediction, Traits
from zsad_jax.methods.parts.bounds import AT_LEAST_ONE, NOT_NEGATIVE, Range
from zsad_jax.ops import maps, neighbours

TRAITS = Traits(nearest_neighbours=True)
BOUNDS = {
  'fewshot.shots': Range(1, reason='since scores are distances to normal images'),
  'spade.neighbours': AT_LEAST_ONE,
  'map.sigma': NOT_NEGATIVE,
}


def feature_spec(clip: Clip, cfg: Config) -> FeatureSpec:
  """Returns CLIP's class token, and the raw patch tokens of the blocks in cfg.layers."""
  check_layers(clip, cfg.layers)
  return FeatureSpec(clip.image_size, cls='ln_post_proj', taps=tuple(Tap('clip', block) for block in cfg.layers),
                     read='none', positions=cfg.positions)


def build_memory_bank(clip_params: Params, reference_features: Features, *,
                      clip: Clip, cfg: Config) -> dict[str, jax.Array]:
  """Returns {'cls': [C, K, E], 'patches': [C, K, N, sum W]} of the references."""
  del clip_params, clip
  return {'cls': reference_features.cls.astype(jnp.float32), 'patches': _patches(reference_features, cfg)}


def predict(params: Params, context: Context, features: Features, batch: Batch, *,
            clip: Clip, cfg: Config) -> Prediction:
  """Returns score [B] and map [B, R, R], distances that are not bounded by 1."""
  del params
  bank = context.memory_bank
  shots, patches = bank['cls'].shape[1], bank['patches']
  images = min(cfg.spade.neighbours, shots)
  distances, nearest = neighbours.nearest_by_category(
    features.cls[:, None], bank['cls'], batch['category'], k=images, metric='euclidean')
  chunk = neighbours.chunk_rows(images * patches.shape[2], cfg.machine.knn_mib)

  def of_image(queries, category, indices):
    rows = patches[category, indices].reshape(-1, patches.shape[-1])
    return neighbours.nearest(queries, rows, metric='euclidean', chunk=chunk)[0][:, 0]

  patch_distances = jax.vmap(of_image)(_patches(features, cfg), batch['category'], nearest[:, 0])  # [B, N]
  return Prediction(distances[:, 0].mean(axis=1),
                    maps.upsample_blur(maps.square(patch_distances), clip.image_size, cfg.map.sigma))


def _patches(features, cfg):
  """[..., N, sum W] in the order of cfg.layers."""
  return jnp.concatenate([features.taps[Tap('clip', block).name].astype(jnp.float32) for block in cfg.layers], axis=-1)
