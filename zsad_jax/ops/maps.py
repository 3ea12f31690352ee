"""From similarities to anomaly maps: softmax, bilinear upsampling, Gaussian smoothing.

Upsampling and smoothing are fixed linear maps along each axis; numpy computes their weights while tracing. Resampling
functions keep the dtype of their input and compute in float32 or wider.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


def normalize(x: jax.Array, axis: int = -1) -> jax.Array:
  """Returns x divided by its L2 norm along `axis`; a zero vector stays zero, with a finite gradient."""
  y = x.astype(_wide(x.dtype))
  square = jnp.sum(y * y, axis=axis, keepdims=True)
  return (y * jax.lax.rsqrt(jnp.maximum(square, 1e-24))).astype(x.dtype)


def logits(features: jax.Array, text: jax.Array, temperature: float | jax.Array) -> jax.Array:
  """Returns f . t / temperature, [B, N, S].

  Args:
    features: [B, N, E].
    text: text features of S states, [S, E] or [B, S, E].
    temperature: scalar.
  """
  letters = 'bne,se->bns' if text.ndim == 2 else 'bne,bse->bns'
  return jnp.einsum(letters, features, text, precision='highest') / temperature


def similarity(features: jax.Array, text: jax.Array, temperature: float | jax.Array) -> jax.Array:
  """Returns the probability of each state, [B, N, S]: a softmax over S of cosines divided by `temperature`.

  AnomalyCLIP, arXiv 2310.18961, eq. 1. Arguments as for `logits`, with both inputs L2-normalised.
  """
  return jax.nn.softmax(logits(features, text, temperature), axis=-1)


def states(features: jax.Array, text: jax.Array, temperature: float | jax.Array) -> jax.Array:
  """Returns `similarity` of features [B, N, E] of any norm and dtype, after normalising them in float32."""
  return similarity(normalize(features.astype(jnp.float32)), text, temperature)


def surgery(features: jax.Array, cls: jax.Array, text: jax.Array, scale: float) -> jax.Array:
  """Returns CLIP Surgery's similarity, [B, N, S], without the part that all texts share.

  w_t cos(f, t) minus its mean over the texts, with w = softmax(scale cos(cls, t)) divided by its mean ("feature
  surgery", arXiv 2304.05653). The paper sums f * t * w_t minus its mean over t over the channels, which needs [B, N, S,
  E] numbers; the sums alone suffice. Not a probability: it may be negative.

  Args:
    features: [B, N, E], L2-normalised, as are cls and text.
    cls: [B, E], class tokens.
    text: [S, E] or [B, S, E], text features.
    scale: 2 in CLIP Surgery's code, 1 in CLIP-AD's.
  """
  weights = text.shape[-2] * jax.nn.softmax(scale * logits(cls[:, None], text, 1.0), axis=-1)  # [B, 1, S]
  weighted = weights * logits(features, text, 1.0)
  return weighted - weighted.mean(axis=-1, keepdims=True)


def of_category(text: jax.Array, category: jax.Array) -> jax.Array:
  """Returns the text features [B, S, E] of each image's category [B] from [C, S, E]; [S, E] if C is 1."""
  return text[0] if text.shape[0] == 1 else jnp.take(text, category, axis=0)


def stretch(values: np.ndarray) -> np.ndarray:
  """Returns values [n] shifted and scaled to [0, 1]; 0 if all are equal."""
  low, high = values.min(), values.max()
  return (values - low) / (high - low) if high > low else np.zeros_like(values)


def square(tokens: jax.Array) -> jax.Array:
  """Returns patch tokens [B, N, ...] as a row-major grid [B, G, G, ...]; raises ValueError unless N = G^2."""
  grid = round(tokens.shape[1] ** 0.5)
  if grid * grid != tokens.shape[1]:
    raise ValueError(f'{tokens.shape[1]} patch tokens do not form a square grid; leave out the class token')
  return tokens.reshape(tokens.shape[0], grid, grid, *tokens.shape[2:])


def upsample(x: jax.Array, size: int, *, align_corners: bool = False) -> jax.Array:
  """Resizes maps bilinearly without antialiasing, as torch's F.interpolate(mode='bilinear').

  Args:
    x: [B, G, G, ...].
    size: pixels per side of the result, which may be smaller than G.
    align_corners: False for half-pixel centres; True puts the corner pixels of both grids on each other (APRIL-GAN's
      code, arXiv 2305.17382).

  Returns:
    [B, size, size, ...].
  """
  return _both_axes(_bilinear_matrix(size, x.shape[1], align_corners), x)


@functools.partial(jax.jit, static_argnames=('sigma', 'truncate'))
def gaussian(maps: jax.Array, sigma: float, truncate: float = 4.0) -> jax.Array:
  """Smooths maps [B, R, R] as scipy.ndimage.gaussian_filter(map, sigma, truncate=truncate).

  Args:
    maps: [B, R, R].
    sigma: standard deviation in pixels; 0 returns the maps unchanged.
    truncate: the filter has int(truncate * sigma + 0.5) taps on either side; borders are half-sample symmetric.
  """
  if not sigma:
    return maps
  taps = _taps(sigma, truncate)
  y = maps.astype(_wide(maps.dtype))
  # Shifted slices fuse into one pass: on a CPU 5x faster than dense products, 13x faster than a convolution.
  for axis in (1, 2):
    radius, size = len(taps) // 2, y.shape[axis]
    padded = jnp.pad(y, [(0, 0)] * axis + [(radius, radius)] + [(0, 0)] * (2 - axis), mode='symmetric')
    y = sum(jax.lax.slice_in_dim(padded, i, i + size, axis=axis) * y.dtype.type(w)
            for i, w in enumerate(taps))
  return y.astype(maps.dtype)


def upsample_blur(x: jax.Array, size: int, sigma: float, truncate: float = 4.0) -> jax.Array:
  """Returns gaussian(upsample(x, size), sigma), [B, size, size], in two small matrix products.

  Upsampling and smoothing together are one matrix [size, G] along each axis, so nothing is smoothed at full size.

  Args:
    x: [B, G, G].
    size, sigma, truncate: as for `upsample` and `gaussian`.
  """
  matrix = _bilinear_matrix(size, x.shape[1])
  if sigma:
    matrix = _gaussian_matrix(size, sigma, truncate) @ matrix
  return _both_axes(matrix, x)


def _both_axes(matrix: np.ndarray, x: jax.Array) -> jax.Array:
  """Applies matrix [R, G] along axes 1 and 2 of x [B, G, G, ...]."""
  wide = _wide(x.dtype)
  weights = jnp.asarray(matrix, wide)
  y = jnp.einsum('ry,byx...,sx->brs...', weights, x.astype(wide), weights, precision='highest')
  return y.astype(x.dtype)


def _bilinear_matrix(size: int, grid: int, align_corners: bool = False) -> np.ndarray:
  """Returns the weights [size, grid] of the input pixels next to each output pixel.

  The source coordinate is float32 and, for half-pixel centres, one fused multiply and subtract, as torch computes it:
  its weights differ from the exact ones by up to 3e-6.
  """
  if align_corners:
    source = np.arange(size, dtype=np.float32) * np.float32((grid - 1) / max(size - 1, 1))
  else:
    source = ((np.arange(size) + 0.5) * np.float64(np.float32(grid / size)) - 0.5).astype(np.float32)
  source = np.clip(source.astype(np.float64), 0, grid - 1)
  low = np.floor(source).astype(int)
  matrix = np.zeros((size, grid))
  np.add.at(matrix, (np.arange(size), low), 1 - (source - low))
  np.add.at(matrix, (np.arange(size), np.minimum(low + 1, grid - 1)), source - low)
  return matrix


def _gaussian_matrix(size: int, sigma: float, truncate: float) -> np.ndarray:
  """Returns the weights [size, size] float64 of smoothing with reflected borders."""
  taps = _taps(sigma, truncate)
  reflected = np.pad(np.arange(size), len(taps) // 2, 'symmetric')
  columns = np.lib.stride_tricks.sliding_window_view(reflected, len(taps))  # [size, taps]
  matrix = np.zeros((size, size))
  np.add.at(matrix, (np.arange(size)[:, None], columns), taps[None])
  return matrix


def _taps(sigma: float, truncate: float) -> np.ndarray:
  if sigma < 0:
    raise ValueError(f'sigma={sigma} of the Gaussian is negative; it must be at least 0')
  radius = int(truncate * sigma + 0.5)
  taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
  return taps / taps.sum()


def _wide(dtype: DTypeLike) -> jnp.dtype:
  return jnp.promote_types(dtype, jnp.float32)
