"""Image preprocessing: from a PIL image to the input of an image tower."""

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

  Images are resized by PIL, which antialiases and rounds to 8 bits in between, as in the official code. The function
  can be pickled, for worker processes.

  Args:
    arch: an architecture, or its name in archs.ARCHS, for mean, std and resize filter.
    image_size: R in pixels; None takes the pretrained size.
    mode: 'squash' resizes both axes to R, which changes the aspect ratio and cuts nothing off (AnomalyCLIP, arXiv
      2310.18961, official code); 'clip' resizes the shorter side to R and crops the centre (CLIP, arXiv
      2103.00020).

  Raises:
    ValueError: an unknown mode or filter, or a size below 1; when called, an image that is neither RGB nor L.
  """
  arch = archs.find(arch)
  size = arch.vision.image_size if image_size is None else image_size
  if size < 1:
    raise ValueError(f'image_size={size} must be at least 1')
  if mode not in MODES:
    raise ValueError(f'preprocessing mode={mode!r} is not one of {", ".join(MODES)}')
  if arch.resize not in FILTERS:
    raise ValueError(f'resize={arch.resize!r} of {arch.name} is not one of {", ".join(FILTERS)}')
  return functools.partial(_transform, size=size, mode=mode, resample=FILTERS[arch.resize],
                           mean=np.asarray(arch.mean, np.float32), std=np.asarray(arch.std, np.float32))


def _transform(image, *, size, mode, resample, mean, std):
  if image.mode not in ('RGB', 'L'):
    raise ValueError(f'the image has mode {image.mode}; it must be RGB or L. zsad_jax.data.images.read_rgb converts '
                     'transparency, palettes and 16-bit pixels')
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
