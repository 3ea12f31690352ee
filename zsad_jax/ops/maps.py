"""From similarities to anomaly maps: softmax, bilinear upsampling, Gaussian smoothing.

Both resamplings are fixed linear maps along each axis, whose weights are made in numpy while tracing. Every
function keeps the dtype of its input and computes in float32 or wider.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def normalize(x, axis=-1):
  """Returns x divided by its L2 norm along `axis`; a zero vector stays zero, with a finite gradient."""
  y = x.astype(_wide(x.dtype))
  square = jnp.sum(y * y, axis=axis, keepdims=True)
  return (y * jax.lax.rsqrt(jnp.maximum(square, 1e-24))).astype(x.dtype)


def logits(features, text, temperature):
  """Returns f . t / temperature, [B, N, S], of features [B, N, E] and text features [S, E] or [B, S, E]."""
  letters = 'bne,se->bns' if text.ndim == 2 else 'bne,bse->bns'
  return jnp.einsum(letters, features, text, precision='highest') / temperature


def similarity(features, text, temperature):
  """Returns the probability of each state, [B, N, S]: a softmax over S of cosines divided by `temperature`.

  AnomalyCLIP, arXiv 2310.18961, eq. 1. Both inputs come L2-normalised; see logits for their shapes.
  """
  return jax.nn.softmax(logits(features, text, temperature), axis=-1)


def states(features, text, temperature):
  """Returns similarity of features [B, N, E] that are neither normalised nor float32 yet."""
  return similarity(normalize(features.astype(jnp.float32)), text, temperature)


def surgery(features, cls, text, scale):
  """Returns CLIP Surgery's similarity, [B, N, S], in which what all texts have in common has been cut out.

  w_t cos(f, t) less its mean over the texts, with w = softmax(scale cos(cls, t)) over its mean (arXiv 2304.05653,
  "feature surgery"). Written out that is a sum over channels of f * t * w_t less its mean over t, [B, N, S, E]
  numbers, of which only the sums are used. Not a probability: it may be negative.

  Args:
    features: [B, N, E], L2-normalised, as are the others.
    cls: [B, E], the class token.
    text: [S, E] or [B, S, E].
    scale: 2 in CLIP Surgery's code, 1 in CLIP-AD's.
  """
  weights = text.shape[-2] * jax.nn.softmax(scale * logits(cls[:, None], text, 1.0), axis=-1)  # [B, 1, S]
  weighted = weights * logits(features, text, 1.0)
  return weighted - weighted.mean(axis=-1, keepdims=True)


def of_category(text, category):
  """Returns the text features [B, S, E] of each image's category [B] from [C, S, E]; [S, E] where C is 1."""
  return text[0] if text.shape[0] == 1 else jnp.take(text, category, axis=0)


def stretch(values):
  """Returns values [n], a numpy array, moved and scaled to 0..1; 0 where all are equal."""
  low, high = values.min(), values.max()
  return (values - low) / (high - low) if high > low else np.zeros_like(values)


def square(tokens):
  """Returns patch tokens [B, N, ...] as a row-major grid [B, G, G, ...]; raises ValueError unless N = G^2."""
  grid = round(tokens.shape[1] ** 0.5)
  if grid * grid != tokens.shape[1]:
    raise ValueError(f'{tokens.shape[1]} patch tokens make no square grid; is the class token among them?')
  return tokens.reshape(tokens.shape[0], grid, grid, *tokens.shape[2:])


def upsample(x, size, *, align_corners=False):
  """Returns x [B, G, G, ...] as [B, size, size, ...]: bilinear, no antialiasing, also where the grid shrinks.

  torch's F.interpolate(mode='bilinear'): half-pixel centres or, with align_corners, the outer pixels of both grids
  on one another (APRIL-GAN's code, arXiv 2305.17382).
  """
  return _both_axes(_bilinear_matrix(size, x.shape[1], align_corners), x)


@functools.partial(jax.jit, static_argnames=('sigma', 'truncate'))
def gaussian(maps, sigma, truncate=4.0):
  """Returns maps [B, R, R] smoothed as scipy.ndimage.gaussian_filter(map, sigma, truncate=truncate) does.

  Half-sample symmetric borders, int(truncate * sigma + 0.5) taps to either side. sigma 0 leaves maps alone.
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


def upsample_blur(x, size, sigma, truncate=4.0):
  """Returns gaussian(upsample(x, size), sigma), [B, size, size], of maps x [B, G, G] in two small products.

  Upsampling then smoothing is one matrix [size, G] along each axis; nothing is smoothed at full size.
  """
  matrix = _bilinear_matrix(size, x.shape[1])
  if sigma:
    matrix = _gaussian_matrix(size, sigma, truncate) @ matrix
  return _both_axes(matrix, x)


def _both_axes(matrix, x):
  """Applies matrix [R, G] along axes 1 and 2 of x [B, G, G, ...]."""
  wide = _wide(x.dtype)
  matrix = jnp.asarray(matrix, wide)
  y = jnp.einsum('ry,byx...,sx->brs...', matrix, x.astype(wide), matrix, precision='highest')
  return y.astype(x.dtype)


def _bilinear_matrix(size, grid, align_corners=False):
  """Returns [size, grid] weights; row r weighs the two neighbours of output pixel r.

  The source coordinate is float32, at half-pixel centres one fused multiply and subtract, as torch computes it: its
  weights are up to 3e-6 off the exact ones.
  """
  if align_corners:
    source = np.arange(size, dtype=np.float32) * np.float32((grid - 1) / max(size - 1, 1))
  else:
    source = np.float32((np.arange(size) + 0.5) * np.float64(np.float32(grid / size)) - 0.5)
  source = np.clip(source.astype(np.float64), 0, grid - 1)
  low = np.floor(source).astype(int)
  matrix = np.zeros((size, grid))
  np.add.at(matrix, (np.arange(size), low), 1 - (source - low))
  np.add.at(matrix, (np.arange(size), np.minimum(low + 1, grid - 1)), source - low)
  return matrix


def _gaussian_matrix(size, sigma, truncate):
  """Returns [size, size] float64: smoothing with the border reflected in."""
  taps = _taps(sigma, truncate)
  reflected = np.pad(np.arange(size), len(taps) // 2, 'symmetric')
  columns = np.lib.stride_tricks.sliding_window_view(reflected, len(taps))  # [size, taps]
  matrix = np.zeros((size, size))
  np.add.at(matrix, (np.arange(size)[:, None], columns), taps[None])
  return matrix


def _taps(sigma, truncate):
  if sigma < 0:
    raise ValueError(f'sigma {sigma} of the Gaussian is negative')
  radius = int(truncate * sigma + 0.5)
  taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
  return taps / taps.sum()


def _wide(dtype):
  return jnp.promote_types(dtype, jnp.float32)
