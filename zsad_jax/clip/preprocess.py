"""From a PIL image to the input of an image tower."""

import functools
from collections.abc import Callable

import numpy as np
from PIL import Image

from zsad_jax.clip import archs

FILTERS = {'bicubic': Image.Resampling.BICUBIC, 'bilinear': Image.Resampling.BILINEAR}
MODES = ('squash', 'clip')


def image_transform(arch: archs.Arch | str, image_size: int | None = None,
                    mode: str = 'squash') -> Callable[[Image.Image], np.ndarray]:
  """Returns a function from a PIL image (mode RGB or L) to [R, R, 3] float32, normalised as in training.

  Resizing is PIL's, which widens the filter when it shrinks and rounds to 8 bits in between, as the official
  code's is. The function can be pickled.

  Args:
    arch: a record or a name of archs.ARCHS; gives the mean, std and resize filter.
    image_size: R; None takes the pretrained size.
    mode: 'squash' resizes both axes to R, the aspect ratio is lost and nothing is cut off (AnomalyCLIP, arXiv
      2310.18961, official code); 'clip' resizes the shorter side to R and crops the centre (CLIP, arXiv
      2103.00020).

  Raises:
    ValueError: an unknown mode or filter, or a size below 1; later, an image of another mode.
  """
  arch = archs.find(arch)
  size = arch.vision.image_size if image_size is None else image_size
  if size < 1:
    raise ValueError(f'image_size must be at least 1, not {size}')
  if mode not in MODES:
    raise ValueError(f'unknown preprocessing {mode!r}, not one of {", ".join(MODES)}')
  if arch.resize not in FILTERS:
    raise ValueError(f'unknown resize filter {arch.resize!r} of {arch.name}, not one of {", ".join(FILTERS)}')
  return functools.partial(_transform, size=size, mode=mode, resample=FILTERS[arch.resize],
                           mean=np.float32(arch.mean), std=np.float32(arch.std))


def _transform(image, *, size, mode, resample, mean, std):
  if image.mode not in ('RGB', 'L'):
    raise ValueError(f'an image of mode {image.mode}, not RGB or L: transparency, palettes and 16 bits need '
                     'a rule, so open images with zsad_jax.data, which has one')
  if mode == 'squash':
    image = image.resize((size, size), resample)
  else:
    image = _crop(_shorter_side(image, size, resample), size)
  pixels = np.asarray(image.convert('RGB'), np.float32) / np.float32(255)
  return (pixels - mean) / std


def _shorter_side(image, size, resample):
  width, height = image.size
  if width <= height:
    return image.resize((size, int(size * height / width)), resample)
  return image.resize((int(size * width / height), size), resample)


def _crop(image, size):
  width, height = image.size
  left, top = round((width - size) / 2), round((height - size) / 2)
  return image.crop((left, top, left + size, top + size))
