"""Curves and histograms as inline SVG, in the colours of the page around them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup, escape
from matplotlib import ticker
from numpy.typing import ArrayLike

from zsad_jax.report import headings, tables

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 240, 176, 44, 10, 22, 34
DIGITS = 1  # decimals of a coordinate

Axis = Callable[[ArrayLike], np.ndarray]  # values -> SVG coordinates


class Bins(NamedTuple):
  """Counts between `edges` [n + 1]: `normal` and `anomalous` [n]. A metrics.Histogram has the same fields."""
  edges: np.ndarray
  normal: np.ndarray
  anomalous: np.ndarray


def curve(title: str, x: ArrayLike, y: ArrayLike, *, x_label: str, y_label: str, x_end: float = 1.0,
          chance: tuple[float, float] | None = None) -> Markup:
  """Returns the SVG of a curve in [0, x_end] x [0, 1].

  Args:
    title: heading, also the text for screen readers.
    x, y: points [K].
    x_label, y_label: of the axes.
    x_end: end of the x axis.
    chance: (y at 0, y at x_end) of the dashed line of a guessing detector; None for no line.
  """
  across, up = _axis(0, x_end, LEFT, WIDTH - RIGHT), _axis(0, 1, HEIGHT - BOTTOM, TOP)
  parts = [_frame(title, x_label, y_label, [(v, f'{v:g}') for v in (0, x_end / 2, x_end)],
                  [(v, f'{v:g}') for v in (0, 0.5, 1)], across, up)]
  if chance is not None:
    parts.append(f'<path class="chance" d="{_path(across([0, x_end]), up(chance))}"/>')
  parts.append(f'<path class="curve" d="{_path(across(x), up(y))}"/>')
  return _svg(title, parts)


def histogram(title: str, bins: Bins, *, x_label: str, threshold: float | None = None) -> Markup:
  """Returns the SVG of two overlaid histograms, in shares of each class, with the threshold as a dashed line."""
  shares = [counts / max(counts.sum(), 1) for counts in (bins.normal, bins.anomalous)]
  top = max(share.max() for share in shares)
  low, high = float(bins.edges[0]), float(bins.edges[-1])
  across, up = _axis(low, high, LEFT, WIDTH - RIGHT), _axis(0, top * 1.04, HEIGHT - BOTTOM, TOP)
  x_ticks = [v for v in ticker.MaxNLocator(3).tick_values(low, high) if low <= v <= high]
  y_ticks = [v for v in ticker.MaxNLocator(2).tick_values(0, top) if v <= top]
  parts = [_frame(title, x_label, 'share of class', [(v, f'{v:.6g}') for v in x_ticks],
                  [(v, f'{100 * v:g}%') for v in y_ticks], across, up)]
  for name, share in zip(('normal', 'anomalous'), shares):
    x = np.repeat(across(bins.edges), 2)
    y = np.concatenate([[up(0)], np.repeat(up(share), 2), [up(0)]])
    parts.append(f'<path class="{name}" d="{_path(x, y)}Z"/>')
  if threshold is not None and low <= threshold <= high:
    parts.append(f'<path class="threshold" d="{_path(across([threshold] * 2), np.array([TOP, HEIGHT - BOTTOM]))}"/>')
  return _svg(title, parts)


def category_charts(row: Mapping[str, Any], scores: np.ndarray, labels: np.ndarray, curves: Any = None,
                    pixels: Any = None, *, score: float | None = None, pixel: float | None = None,
                    limit: float = 0.3) -> list[Markup]:
  """Returns the charts of one category: histograms of image and pixel scores, and pixel ROC, PR and PRO curves.

  Args:
    row: {metric: Value} for the titles.
    scores, labels: [n], of the category's images.
    curves, pixels: metrics.Curves and metrics.Histogram of its pixels, or None.
    score, pixel: thresholds of images and pixels, or None.
    limit: largest false-positive rate of AUPRO.
  """
  charts = [histogram('Image scores', score_bins(scores, labels), x_label='image score', threshold=score)]
  if pixels is not None:
    charts.append(histogram('Pixel scores', pixels, x_label='pixel score', threshold=pixel))
  if curves is not None:
    title = lambda metric: f'{headings.metric(metric)} {tables.percent(row[metric].value) if metric in row else "-"}'
    share = curves.positives / (curves.positives + curves.negatives)
    charts += [
      curve(title('pixel_auroc'), *curves.roc(), x_label='false-positive rate', y_label='recall', chance=(0, 1)),
      curve(title('pixel_ap'), *curves.pr(), x_label='recall', y_label='precision', chance=(share, share)),
      curve(title('aupro'), *curves.pro_curve(limit), x_label='false-positive rate', y_label='per-region overlap',
            x_end=limit, chance=(0, limit))]
  return charts


def score_bins(scores: ArrayLike, labels: ArrayLike, count: int = 24) -> Bins:
  """Returns the histogram of a category's image scores [n] with labels [n]."""
  scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
  low, high, largest = scores.min(), scores.max(), np.abs(scores).max()
  if high - low <= 1e-9 * largest:  # equal up to rounding: too narrow for distinct edges
    low, high = low - max(.5, 1e-9 * largest), high + max(.5, 1e-9 * largest)
  edges = np.linspace(low, high, count + 1)
  return Bins(edges, *(np.histogram(scores[labels == label], edges)[0] for label in (0, 1)))


def _axis(low: float, high: float, start: float, end: float) -> Axis:
  return lambda values: start + (np.asarray(values, np.float64) - low) * (end - start) / (high - low)


def _path(x: np.ndarray, y: np.ndarray) -> str:
  points = (f'{a:.{DIGITS}f} {b:.{DIGITS}f}' for a, b in zip(x, y))
  return 'M' + 'L'.join(points)


def _frame(title: str, x_label: str, y_label: str, x_ticks: Sequence, y_ticks: Sequence, across: Axis, up: Axis) -> str:
  bottom, middle = HEIGHT - BOTTOM, (LEFT + WIDTH - RIGHT) / 2
  parts = [f'<text class="name" x="{LEFT}" y="14">{escape(title)}</text>',
           f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>']
  parts += [f'<text x="{across(v):.1f}" y="{bottom + 13}" text-anchor="middle">{label}</text>' for v, label in x_ticks]
  parts += [f'<text x="{LEFT - 4}" y="{up(v) + 4:.1f}" text-anchor="end">{label}</text>' for v, label in y_ticks]
  parts += [f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>',
            f'<text text-anchor="middle" transform="translate(12 {(TOP + bottom) / 2}) rotate(-90)">{escape(y_label)}'
            '</text>']
  return ''.join(parts)


def _svg(title: str, parts: Sequence[str]) -> Markup:
  return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>')
