"""Small data sets on disk: black images whose white block is the defect, so the pixels determine the mask."""

import numpy as np
from PIL import Image

SIZE = (30, 18)  # width, height: not square, so that a swapped axis shows


def picture(block=None, size=SIZE, mode='RGB'):
  """A black image with a white block (left, top, right, bottom), or with faint texture if `block` is None."""
  pixels = np.zeros(size[::-1], np.uint8)
  if block is None:
    pixels[::3, ::2] = 40
  else:
    left, top, right, bottom = block
    pixels[top:bottom, left:right] = 255
  return Image.fromarray(pixels).convert(mode)


def write(path, image):
  path.parent.mkdir(parents=True, exist_ok=True)
  image.save(path)
  return path


def write_category(folder, defects, *, train=2, good=2, mode='RGB', size=SIZE):
  """Writes one category in MVTec layout; `defects` is {defect: number of images}."""
  for split, n in (('train', train), ('test', good)):
    for i in range(n):
      write(folder / split / 'good' / f'{i:03}.png', picture(mode=mode, size=size))
  for defect, n in defects.items():
    for i in range(n):
      block = (2 + i, 1, 12 + i, 7)
      write(folder / 'test' / defect / f'{i:03}.png', picture(block, size, mode))
      write(folder / 'ground_truth' / defect / f'{i:03}_mask.png', picture(block, size, 'L'))


def assert_aligned(record):
  """Asserts that the mask is white exactly where the image is, and that normal images have no white."""
  white = np.asarray(record['image'].convert('L')) > 127
  np.testing.assert_array_equal(record['mask'], white * np.uint8(255))
  assert white.any() == bool(record['label']) and record['has_mask']
