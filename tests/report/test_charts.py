"""Charts: points match the axes, the SVG is well-formed, and extreme input can be plotted."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from zsad_jax import metrics
from zsad_jax.report import charts


def path(svg, name):
  points = re.search(f'class="{name}" d="M([^"]*?)Z?"', str(svg))[1]
  return np.array([[float(v) for v in point.split()] for point in points.split('L')])


def test_a_curve_spans_its_axes():
  svg = charts.curve('ROC <1>', [0, .5, 1], [0, 1, 1], x_label='a & b', y_label='c', chance=(0, 1))
  ElementTree.fromstring(svg)
  left, right, top, bottom = charts.LEFT, charts.WIDTH - charts.RIGHT, charts.TOP, charts.HEIGHT - charts.BOTTOM
  np.testing.assert_allclose(path(svg, 'curve'), [[left, bottom], [(left + right) / 2, top], [right, top]])
  np.testing.assert_allclose(path(svg, 'chance'), [[left, bottom], [right, top]])
  assert 'ROC &lt;1&gt;' in svg


def test_histograms_are_shares_of_their_own_class():
  bins = charts.Bins(np.array([0., 1, 2]), np.array([1, 3]), np.array([0, 50]))
  svg = charts.histogram('scores', bins, x_label='score', threshold=1.5)
  ElementTree.fromstring(svg)
  floor = charts.HEIGHT - charts.BOTTOM
  heights = floor - path(svg, 'normal')[[1, 3], 1]
  assert heights[1] == pytest.approx(3 * heights[0], abs=.3)
  assert path(svg, 'anomalous')[3, 1] < path(svg, 'normal')[3, 1]
  assert np.ptp(path(svg, 'threshold')[:, 0]) == 0


@pytest.mark.parametrize('bins', [
  charts.score_bins([.5, .5], [0, 1]), charts.score_bins([1e-9, 1e9], [1, 1]), charts.score_bins([-3.], [0]),
  charts.score_bins(np.nextafter(np.float32(.5), np.float32([0, 1])), [0, 1]), charts.score_bins([0, 0], [0, 1]),
  charts.score_bins([1e30, np.nextafter(1e30, 2e30)], [0, 1])])
def test_extreme_scores_can_be_plotted(bins):
  svg = charts.histogram('scores', bins, x_label='score', threshold=1e12)
  ElementTree.fromstring(svg)
  assert 'nan' not in svg and 'class="threshold"' not in svg
  assert np.all(np.diff(bins.edges) > 0) and bins.normal.sum() + bins.anomalous.sum() in (1, 2)


def test_a_category_has_the_charts_that_are_defined_for_it():
  row = {'pixel_auroc': metrics.Value(.5), 'pixel_ap': metrics.Value(.25), 'aupro': metrics.Value(None, 'no')}
  scores, labels = np.array([.1, .9]), np.array([0, 1])
  assert len(charts.category_charts(row, scores, labels)) == 1
  pixel = metrics.PixelMetrics()
  pixel.update(np.random.default_rng(0).random((2, 8, 8)), np.repeat([0, 1], 64).reshape(2, 8, 8))
  plots = charts.category_charts(row, scores, labels, pixel.curves(), pixel.histogram(), score=.5, pixel=.5, limit=.3)
  assert len(plots) == 5
  assert 'AP 25.0' in plots[3] and 'AUPRO -' in plots[4] and '>0.3<' in plots[4]
  for svg in plots:
    ElementTree.fromstring(svg)
