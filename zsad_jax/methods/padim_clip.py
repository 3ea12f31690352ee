"""PaDiM's rules on CLIP features: a few-shot sanity row, not PaDiM, which uses ResNet features.

At every place of the patch grid a Gaussian is fitted to the tokens of a few normal images, of three blocks of the
image tower, restricted to a random subset of their dimensions; a patch's score is its Mahalanobis distance, the image's
the maximum of the smoothed map (PaDiM, arXiv 2011.08785). With K images a covariance S of d dimensions has rank K - 1
and is regularised by eps I. It is never formed: with X [K, d] the centred tokens and lambda = eps (K - 1),

  r^T (X^T X / (K - 1) + eps I)^-1 r = (|r - X^T a|^2 + lambda |a|^2) / eps,    a = (X X^T + lambda I)^-1 X r,

so that K x K is factored in place of d x d, and nothing cancels.

Memory: C N K (d + K) numbers of the references, and those of its category for each image of a batch on a device.
"""

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.clip.feature_spec import Features, FeatureSpec, Tap, check_layers
from zsad_jax.methods import Batch, Clip, Config, Context, Params, Prediction
from zsad_jax.methods.parts import bounds
from zsad_jax.methods.parts.bounds import NOT_NEGATIVE, POSITIVE, Range
from zsad_jax.ops import maps

BOUNDS = {
  'fewshot.shots': Range(1, reason='since scores are distances to normal images'),
  'padim.eps': POSITIVE,
  'map.sigma': NOT_NEGATIVE,
}


def feature_spec(clip: Clip, cfg: Config) -> FeatureSpec:
  """Returns the raw patch tokens of the blocks in cfg.layers."""
  check_layers(clip, cfg.layers)
  width = len(cfg.layers) * clip.arch.vision.width
  bounds.check(cfg, {'padim.dims': Range(1, width, reason=f'the dimensions of layers={tuple(cfg.layers)}')})
  return FeatureSpec(clip.image_size, cls='', taps=tuple(Tap('clip', block) for block in cfg.layers), read='none',
                     positions=cfg.positions)


def build_memory_bank(clip_params: Params, reference_features: Features, *,
                      clip: Clip, cfg: Config) -> dict[str, jax.Array]:
  """Returns the Gaussian at every place: its mean [C, N, d], X as `centred` [C, N, K, d], and `factor` [C, N, K, K].

  factor is the lower Cholesky factor of X X^T + lambda I. With one image X is 0, and the covariance, which dividing by
  K - 1 would make 0 / 0, is eps I.
  """
  del clip_params, clip
  tokens = jnp.swapaxes(_tokens(reference_features, cfg), 1, 2)  # [C, N, K, d]
  mean = tokens.mean(axis=2)
  centred = tokens - mean[:, :, None]
  gram = jnp.einsum('cnkd,cnjd->cnkj', centred, centred, precision='highest')
  shots = tokens.shape[2]
  return {'mean': mean, 'centred': centred,
          'factor': jnp.linalg.cholesky(gram + _ridge(shots, cfg) * jnp.eye(shots)[None, None])}


def predict(params: Params, context: Context, features: Features, batch: Batch, *,
            clip: Clip, cfg: Config) -> Prediction:
  """Returns score [B] and map [B, R, R], Mahalanobis distances that are not bounded by 1."""
  del params
  own = jax.tree.map(lambda x: jnp.take(x, batch['category'], axis=0), context.memory_bank)  # [B, N, ...]
  distances = _mahalanobis(_tokens(features, cfg) - own['mean'], own['centred'], own['factor'], cfg)
  smoothed = maps.upsample_blur(maps.square(distances), clip.image_size, cfg.map.sigma)
  return Prediction(smoothed.max(axis=(1, 2)), smoothed)


def _mahalanobis(r, centred, factor, cfg):
  """sqrt(r^T S^-1 r) [B, N] of r [B, N, d]; X [B, N, K, d] and its factor as in build_memory_bank, S as above."""
  product = jnp.einsum('bnkd,bnd->bnk', centred, r, precision='highest')
  a = jax.scipy.linalg.cho_solve((factor, True), product[..., None])[..., 0]
  rest = r - jnp.einsum('bnkd,bnk->bnd', centred, a, precision='highest')
  square = jnp.sum(rest * rest, axis=-1) + _ridge(centred.shape[2], cfg) * jnp.sum(a * a, axis=-1)
  return jnp.sqrt(square / cfg.padim.eps)


def _dimensions(width, cfg):
  """The kept dimensions among `width`, [d] sorted; the same for references and queries."""
  return np.sort(np.random.default_rng(cfg.padim.seed).permutation(width)[:cfg.padim.dims])


def _tokens(features, cfg):
  """[..., N, d] in the order of cfg.layers, restricted to the kept dimensions."""
  every = jnp.concatenate([features.taps[Tap('clip', block).name].astype(jnp.float32) for block in cfg.layers], axis=-1)
  return every[..., _dimensions(every.shape[-1], cfg)]


def _ridge(shots, cfg):
  """lambda; with one image, whose X is 0, anything positive."""
  return cfg.padim.eps * max(shots - 1, 1)
