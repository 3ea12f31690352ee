"""PaDiM's rules on CLIP features: a few-shot sanity row, not PaDiM, which stands on ResNet features.

At every place of the patch grid a Gaussian is fitted to the tokens of a few normal images, of three blocks of the
image tower, cut to a random subset of their dimensions; a patch's score is its Mahalanobis distance, the image's the
maximum of the finished map (PaDiM, arXiv 2011.08785). With K images a covariance S of d dimensions has rank K - 1 and
stands on eps I. It is never built: with X [K, d] the centred tokens and lambda = eps (K - 1),

  r^T (X^T X / (K - 1) + eps I)^-1 r = (|r - X^T a|^2 + lambda |a|^2) / eps,    a = (X X^T + lambda I)^-1 X r,

so that K x K is factored in place of d x d, and nothing cancels.

Memory: C N K (d + K) numbers of the references, and those of its category for each image of a batch on a device.
"""

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.clip.feature_spec import FeatureSpec, Tap, check_layers
from zsad_jax.ops import maps


def spec(clip, cfg):
  """Returns the FeatureSpec: patch tokens of cfg.layers as the blocks leave them."""
  check(clip, cfg)
  return FeatureSpec(clip.image_size, cls='', taps=tuple(Tap('clip', block) for block in cfg.layers), read='none',
              positions=cfg.positions)


def init(rng, clip, cfg):
  """Returns {}: nothing is learned."""
  del rng, clip, cfg
  return {}


def bank(learnable, frozen, categories, *, clip, cfg):
  """Returns {}: no text is read."""
  del learnable, frozen, categories, clip, cfg
  return {}


def memory(frozen, reference_features, *, clip, cfg):
  """Returns the Gaussian at every place: its mean [C, N, d], X as `centred` [C, N, K, d], and `factor` [C, N, K, K].

  factor is the lower Cholesky factor of X X^T + lambda I. With one image X is 0, where n - 1 would make the covariance
  0 / 0: S is eps I.
  """
  del frozen, clip
  tokens = jnp.swapaxes(_tokens(reference_features, cfg), 1, 2)  # [C, N, K, d]
  mean = tokens.mean(axis=2)
  centred = tokens - mean[:, :, None]
  gram = jnp.einsum('cnkd,cnjd->cnkj', centred, centred, precision='highest')
  shots = tokens.shape[2]
  return {'mean': mean, 'centred': centred,
          'factor': jnp.linalg.cholesky(gram + _ridge(shots, cfg) * jnp.eye(shots)[None, None])}


def predict(learnable, frozen, bank, memory, features, batch, *, clip, cfg):
  """Returns score [B] and map [B, R, R], Mahalanobis distances that are not bounded by 1.

  Raises:
    ValueError: without a memory.
  """
  del learnable, frozen, bank
  if memory is None:
    raise ValueError(f'fewshot.shots is {cfg.fewshot.shots}, but predict was given no memory of references')
  own = jax.tree.map(lambda x: jnp.take(x, batch['category'], axis=0), memory)  # [B, N, ...]
  distances = mahalanobis(_tokens(features, cfg) - own['mean'], own['centred'], own['factor'], cfg)
  found = maps.upsample_blur(maps.square(distances), clip.image_size, cfg.map.sigma)
  return {'score': found.max(axis=(1, 2)), 'map': found}


def mahalanobis(r, centred, factor, cfg):
  """Returns sqrt(r^T S^-1 r) [B, N] of r [B, N, d]; X [B, N, K, d] and its factor as in memory, S as above."""
  product = jnp.einsum('bnkd,bnd->bnk', centred, r, precision='highest')
  a = jax.scipy.linalg.cho_solve((factor, True), product[..., None])[..., 0]
  rest = r - jnp.einsum('bnkd,bnk->bnd', centred, a, precision='highest')
  square = jnp.sum(rest * rest, axis=-1) + _ridge(centred.shape[2], cfg) * jnp.sum(a * a, axis=-1)
  return jnp.sqrt(square / cfg.padim.eps)


def dimensions(width, cfg):
  """Returns which of `width` dimensions are kept, [d] sorted; the same for references and queries."""
  if cfg.padim.dims > width:
    raise ValueError(f'padim.dims {cfg.padim.dims} is more than the {width} dimensions of layers {tuple(cfg.layers)}')
  return np.sort(np.random.default_rng(cfg.padim.seed).permutation(width)[:cfg.padim.dims])


def check(clip, cfg):
  """Raises ValueError naming the first config key that is out of range."""
  check_layers(clip, cfg.layers)
  if cfg.fewshot.shots < 1:
    raise ValueError(f'fewshot.shots {cfg.fewshot.shots} is not 1 or more: without normal images there is no score')
  if cfg.padim.dims < 1:
    raise ValueError(f'padim.dims {cfg.padim.dims} is not 1 or more')
  dimensions(len(cfg.layers) * clip.arch.vision.width, cfg)
  if not cfg.padim.eps > 0:
    raise ValueError(f'padim.eps {cfg.padim.eps} is not positive')
  if not cfg.map.sigma >= 0:
    raise ValueError(f'map.sigma {cfg.map.sigma} is not 0 or more')


def _tokens(features, cfg):
  """[..., N, d] in the order of cfg.layers, cut to the kept dimensions."""
  every = jnp.concatenate([features.taps[Tap('clip', block).name].astype(jnp.float32) for block in cfg.layers], axis=-1)
  return every[..., dimensions(every.shape[-1], cfg)]


def _ridge(shots, cfg):
  """lambda; with one image, where X is 0, anything positive."""
  return cfg.padim.eps * max(shots - 1, 1)
