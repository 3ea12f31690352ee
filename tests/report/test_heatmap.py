"""Heat maps: one colour scale around the threshold, overlays at the image's size, the colour bar."""

import io

import numpy as np
import pytest
from PIL import Image

from zsad_jax.report import heatmap


def test_an_overlay_has_the_size_of_its_image_and_warm_colours_for_high_values():
  image = Image.new('RGB', (40, 30), (128, 128, 128))
  hot = np.zeros((16, 16), np.float32)
  hot[:, 8:] = 1
  out = heatmap.overlay(image, hot, heatmap.threshold_scale(0, 0.5, 1))
  assert out.shape == (30, 40, 3)
  assert out.dtype == np.uint8
  red, blue = out[15, 35].astype(int), out[15, 4].astype(int)
  assert red[0] > red[2]
  assert blue[2] > blue[0]


@pytest.mark.parametrize('threshold', [0.01, 1, 40, 1e9])
def test_a_run_scale_has_cold_colours_below_the_threshold_and_warm_ones_above(threshold):
  maps = np.exp(4 * np.random.default_rng(0).standard_normal((4, 64, 64)))  # over many orders of magnitude
  scale = heatmap.run_scale(list(maps), threshold, 'this one')
  levels = scale(maps)
  assert scale.middle == 'this one' and scale(threshold) == 0.5
  warm, cold = levels[maps > threshold], levels[maps < threshold]
  assert np.all(warm > 0.5) and np.all(cold < 0.5)
  if warm.size:
    assert np.mean(warm < 0.75) == pytest.approx(0.5, abs=0.03)
  assert np.mean(cold < 0.15) == pytest.approx(0.6, abs=0.03)
  order = np.argsort(maps.ravel())
  assert np.all(np.diff(levels.ravel()[order]) >= 0)


def test_a_run_scale_without_a_threshold_has_a_percentile_in_the_middle():
  maps = [np.random.default_rng(0).random((64, 64))]
  scale = heatmap.run_scale(maps)
  assert '98th percentile' in scale.middle
  assert np.mean(scale(maps[0]) > 0.5) == pytest.approx(0.02, abs=0.005)


def test_a_constant_map_still_has_a_scale():
  levels = heatmap.run_scale([np.full((8, 8), 0.3)])(np.array([0.1, 0.5]))
  assert levels.tolist() == [0, 1]


def test_the_threshold_is_the_middle_of_the_colour_bar():
  scale = heatmap.threshold_scale(-2, 1, 2)
  assert scale(np.array([-9, -2, -0.5, 1, 1.5, 2, 9])).tolist() == [0, 0, 0.25, 0.5, 0.75, 1, 1]
  assert heatmap.threshold_scale(1, 1, 1)(np.array([0, 1, 2])).tolist() == [0, 0.5, 1]


@pytest.mark.parametrize('low, threshold, high', [(0, 2, 1), (1, 0, 2), (0, np.nan, 1), (0, 1, np.inf)])
def test_a_scale_out_of_order_is_rejected(low, threshold, high):
  with pytest.raises(ValueError, match='low <= threshold <= high'):
    heatmap.threshold_scale(low, threshold, high)


def test_colours_go_from_cold_to_warm():
  first, *_, last = heatmap.palette(9)
  assert len(heatmap.palette(9)) == 9 and all(c.startswith('#') and len(c) == 7 for c in (first, last))
  assert int(last[1:3], 16) > int(last[5:], 16)


def test_the_colour_bar_has_a_line_for_each_part_of_a_long_source():
  scale = heatmap.threshold_scale(0, 0.5, 1)
  short, long = (Image.open(io.BytesIO(heatmap.colour_bar(scale, source)))
                 for source in ('mine', 'of many images, ' * 12))
  assert (short.format, short.width, short.height) == ('PNG', 800, 130)
  assert long.width == 800 and long.height > short.height
