"""Small medical data sets as their archives hold them; the white block of an image is the anomaly."""

import struct

import numpy as np
from PIL import Image
from small_sets import write

SIZE = (48, 32)


def block(i):
  """The marked box of image i: all different, and off the 8-pixel grid of JPEG."""
  return (3 + 2 * i, 5, 21 + 2 * i, 18 + i)


def marks(i, size=SIZE):
  """bool [h, w]: the marked pixels of image i."""
  mask = np.zeros(size[::-1], bool)
  left, top, right, bottom = block(i)
  mask[top:bottom, left:right] = True
  return mask


def scan(i=None, mode='RGB', size=SIZE):
  """A dark image, marked like image i, or not marked if i is None."""
  pixels = np.full(size[::-1], 20, np.uint8)
  if i is None:
    pixels[::3, ::2] = 60
  else:
    pixels[marks(i, size)] = 230
  return Image.fromarray(pixels).convert(mode)


def outline(i, mode='L'):
  """The mask of image i."""
  return Image.fromarray(marks(i).astype(np.uint8) * np.uint8(255)).convert(mode)


def write_pairs(root, images, masks, stems, mask_mode='L'):
  """Writes marked images and their masks; `images` and `masks` are paths with {} for the stem."""
  for i, stem in enumerate(stems):
    write(root / images.format(stem), scan(i))
    write(root / masks.format(stem), outline(i, mask_mode))


def write_plain(folder, names, i=None, mode='RGB'):
  """Writes one image, marked like image i or not, under several names, each in another size."""
  for n, name in enumerate(names):
    write(folder / name, scan(i, mode, (SIZE[0] + n, SIZE[1])))


def colour_tiff(pixels, photometric=1):
  """The bytes of a TIFF of uint8 [h, w, 3] that declares its three samples greyscale, as those of CVC-ClinicDB do."""
  height, width, _ = pixels.shape
  data = pixels.tobytes()
  start, depths = 16, 8  # offsets of the pixels and of the three bit depths
  tags = [(256, 1, width), (257, 1, height), (258, 3, depths), (259, 1, 1), (262, 1, photometric), (273, 1, start),
          (277, 1, 3), (278, 1, height), (279, 1, len(data))]
  entries = b''.join(struct.pack('<HHII', tag, 3 if tag == 258 else 4, *rest) for tag, *rest in tags)
  return (struct.pack('<2sHI3H2x', b'II', 42, start + len(data), 8, 8, 8) + data
          + struct.pack('<H', len(tags)) + entries + bytes(4))
