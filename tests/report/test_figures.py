"""The pictures: sizes, the outline, one colour scale, and a sheet that opens."""

import io

import numpy as np
import pytest
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
  out = figures.overlay(image, hot, figures.threshold_scale(0, 0.5, 1))
  assert out.shape == (30, 40, 3)
  assert out.dtype == np.uint8
  red, blue = out[15, 35].astype(int), out[15, 4].astype(int)
  assert red[0] > red[2]
  assert blue[2] > blue[0]


@pytest.mark.parametrize('threshold', [0.01, 1, 40, 1e9])
def test_one_scale_for_all_maps_gives_both_sides_of_the_threshold_their_colours(threshold):
  maps = np.exp(4 * np.random.default_rng(0).standard_normal((4, 64, 64)))  # over many orders of magnitude
  scale, middle = figures.run_scale(list(maps), threshold, 'this one')
  levels = scale(maps)
  assert middle == 'this one' and scale(threshold) == 0.5
  warm, cold = levels[maps > threshold], levels[maps < threshold]
  assert np.all(warm > 0.5) and np.all(cold < 0.5)
  if warm.size:
    assert np.mean(warm < 0.75) == pytest.approx(0.5, abs=0.03)
  assert np.mean(cold < 0.15) == pytest.approx(0.6, abs=0.03)
  order = np.argsort(maps.ravel())
  assert np.all(np.diff(levels.ravel()[order]) >= 0)


def test_a_run_without_a_threshold_has_a_stated_percentile_in_the_middle():
  maps = [np.random.default_rng(0).random((64, 64))]
  scale, middle = figures.run_scale(maps)
  assert middle == 'the 98th percentile of the shown pixels'
  assert np.mean(scale(maps[0]) > 0.5) == pytest.approx(0.02, abs=0.005)


def test_a_constant_map_still_has_a_scale():
  levels = figures.run_scale([np.full((8, 8), 0.3)])[0](np.array([0.1, 0.5]))
  assert levels.tolist() == [0, 1]


def test_the_threshold_is_the_middle_of_the_colour_bar():
  scale = figures.threshold_scale(-2, 1, 2)
  assert scale(np.array([-9, -2, -0.5, 1, 1.5, 2, 9])).tolist() == [0, 0, 0.25, 0.5, 0.75, 1, 1]
  assert figures.threshold_scale(1, 1, 1)(np.array([0, 1, 2])).tolist() == [0, 0.5, 1]


@pytest.mark.parametrize('low, threshold, high', [(0, 2, 1), (1, 0, 2), (0, np.nan, 1), (0, 1, np.inf)])
def test_a_scale_out_of_order_is_refused(low, threshold, high):
  with pytest.raises(ValueError, match='low <= threshold <= high'):
    figures.threshold_scale(low, threshold, high)


def test_sheet_is_a_png_with_every_image():
  noise = np.random.default_rng(0).random((16, 16))
  known = figures.Shown(Image.new('RGB', (32, 32)), blob(), noise, 0.7, 1, 'a/b')
  unknown = known._replace(mask=None, label=None, caption='x' * 300)
  scale, middle = figures.run_scale([noise])
  picture = Image.open(io.BytesIO(figures.sheet('bolt', [known, unknown, known], scale, middle)))
  assert picture.format == 'PNG'
  assert 1000 < picture.width < 1500


def test_the_smallest_defect_of_a_large_picture_stays_marked():
  mask = np.zeros((3000, 2000), np.uint8)
  mask[1200, 700] = 255
  item = figures.Shown(Image.new('RGB', (2000, 3000)), mask, np.zeros((8, 8)), 0.5, 1, 'a')
  sheet = figures.sheet('bolt', [item], *figures.run_scale([np.arange(4.0).reshape(2, 2)]))
  drawn = np.asarray(Image.open(io.BytesIO(sheet)))
  assert (drawn == figures.OUTLINE).all(-1).any()  # around it in the image
  top, left = figures.TITLE + figures.LINE, 2 * figures.GAP + figures.CELL
  cell = drawn[top:top + 315, left:left + figures.CELL]  # of the mask
  assert 1 <= (cell == 255).all(-1).sum() <= 4 and np.unique(cell).tolist() == [0, 255]


def test_a_very_tall_picture_does_not_stretch_its_sheet():
  item = figures.Shown(Image.new('RGB', (20, 2000)), None, np.zeros((8, 8)), 0.5, None, 'a')
  sheet = figures.sheet('bolt', [item], *figures.run_scale([np.arange(4.0).reshape(2, 2)]))
  assert Image.open(io.BytesIO(sheet)).height < 500


def test_colours_go_from_cold_to_warm():
  first, *_, last = figures.colours(9)
  assert len(figures.colours(9)) == 9 and all(c.startswith('#') and len(c) == 7 for c in (first, last))
  assert int(last[1:3], 16) > int(last[5:], 16)
