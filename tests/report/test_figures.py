"""The pictures: sizes, the outline, one colour scale, and a sheet that opens."""

import io

import numpy as np
from PIL import Image

from zsad_jax.report import figures


def blob(size=32):
  mask = np.zeros((size, size), np.uint8)
  mask[8:16, 8:20] = 255
  return mask


def test_outline_is_the_boundary_inside_the_mask():
  edge = figures.outline(blob())
  assert edge.sum() == 2 * 8 + 2 * 12 - 4
  assert not edge[10, 10]
  assert edge[8, 8]
  assert figures.outline(np.full((4, 4), 255)).sum() == 12  # the image border counts as boundary


def test_overlay_has_the_images_own_size_and_marks_high_values():
  image = Image.new('RGB', (40, 30), (128, 128, 128))
  hot = np.zeros((16, 16), np.float32)
  hot[:, 8:] = 1
  out = figures.overlay(image, hot, 0.0, 1.0)
  assert out.shape == (30, 40, 3)
  assert out.dtype == np.uint8
  red, blue = out[15, 35].astype(int), out[15, 4].astype(int)
  assert red[0] > red[2]
  assert blue[2] > blue[0]


def test_one_range_for_all_maps():
  low, high = figures.colour_range([np.zeros((64, 64)), np.full((64, 64), 0.5)])
  assert (low, high) == (0.0, 0.5)
  assert figures.colour_range([np.ones((8, 8))])[1] > 1  # a constant map still has a scale


def test_sheet_is_a_png_with_every_image():
  noise = np.random.default_rng(0).random((16, 16))
  item = figures.Shown(Image.new('RGB', (32, 32)), blob(), noise, 0.7, 1, 'a/b')
  png = figures.sheet('bolt', [item] * 3, 0.0, 1.0)
  picture = Image.open(io.BytesIO(png))
  assert picture.format == 'PNG'
  assert picture.width > 1000
