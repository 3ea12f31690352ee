"""Curves and histograms as inline SVG, which take the colours of the page they stand on."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape
from matplotlib import ticker

from zsad_jax.report import tables

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 240, 176, 44, 10, 22, 34
DIGITS = 1  # of a coordinate, behind the point


class Bins(NamedTuple):
  """Counts between `edges` [n + 1]; normal, anomalous [n]. A metrics.Histogram is one."""
  edges: np.ndarray
  normal: np.ndarray
  anomalous: np.ndarray


def curve(title: str, x, y, *, x_label: str, y_label: str, x_end: float = 1.0, guess=None) -> Markup:
  """SVG of a curve in [0, x_end] x [0, 1].

  Args:
    title: above it, in words that stand for the picture too.
    x, y: points [K].
    x_label, y_label: of the axes.
    x_end: where the x axis ends.
    guess: ends (y at 0, y at x_end) of the dashed line of a detector that guesses, or None.
  """
  across, up = _axis(0, x_end, LEFT, WIDTH - RIGHT), _axis(0, 1, HEIGHT - BOTTOM, TOP)
  parts = [_frame(title, x_label, y_label, [(v, f'{v:g}') for v in (0, x_end / 2, x_end)],
                  [(v, f'{v:g}') for v in (0, 0.5, 1)], across, up)]
  if guess is not None:
    parts.append(f'<path class="chance" d="{_path(across([0, x_end]), up(guess))}"/>')
  parts.append(f'<path class="curve" d="{_path(across(x), up(y))}"/>')
  return _svg(title, parts)


def histogram(title: str, steps: Bins, *, x_label: str, threshold: float | None = None) -> Markup:
  """SVG of two histograms over each other, each as shares of its own class; a threshold is a dashed line."""
  shares = [counts / max(counts.sum(), 1) for counts in (steps.normal, steps.anomalous)]
  top = max(share.max() for share in shares)
  low, high = float(steps.edges[0]), float(steps.edges[-1])
  across, up = _axis(low, high, LEFT, WIDTH - RIGHT), _axis(0, top * 1.04, HEIGHT - BOTTOM, TOP)
  ticks = [v for v in ticker.MaxNLocator(3).tick_values(low, high) if low <= v <= high]
  heights = [v for v in ticker.MaxNLocator(2).tick_values(0, top) if v <= top]
  parts = [_frame(title, x_label, 'share of its class', [(v, f'{v:.6g}') for v in ticks],
                  [(v, f'{100 * v:g}%') for v in heights], across, up)]
  for name, share in zip(('normal', 'anomalous'), shares):
    x = np.repeat(across(steps.edges), 2)
    y = np.concatenate([[up(0)], np.repeat(up(share), 2), [up(0)]])
    parts.append(f'<path class="{name}" d="{_path(x, y)}Z"/>')
  if threshold is not None and low <= threshold <= high:
    parts.append(f'<path class="threshold" d="{_path(across([threshold] * 2), np.array([TOP, HEIGHT - BOTTOM]))}"/>')
  return _svg(title, parts)


def category_charts(row: Mapping, scores, labels, curves=None, pixels=None, *, score=None, pixel=None,
         limit: float = 0.3) -> list:
  """The charts of one category: histograms of image and pixel scores, ROC, precision-recall and PRO curves of pixels.

  Args:
      row: {metric: Value}, of which the charts' titles tell.
    scores, labels: [n] of its images.
    curves, pixels: metrics.Curves and metrics.Histogram of its pixels, or None.
    score, pixel: thresholds of image scores and of pixels, or None.
    limit: the false-positive rate that AUPRO ends at.
  """
  said = lambda metric: tables.percent(row[metric].value) if metric in row else '-'
  found = [histogram('image scores', score_bins(scores, labels), x_label='score of an image',
                            threshold=score)]
  if pixels is not None:
    found.append(histogram('pixel scores', pixels, x_label='anomaly map', threshold=pixel))
  if curves is not None:
    share = curves.positives / (curves.positives + curves.negatives)
    found += [
      curve(f'pixel ROC, AUROC {said("pixel_auroc")}', *curves.roc(), x_label='false-positive rate',
                   y_label='recall', guess=(0, 1)),
      curve(f'pixel PR, AP {said("pixel_ap")}', *curves.pr(), x_label='recall', y_label='precision',
                   guess=(share, share)),
      curve(f'PRO, AUPRO {said("aupro")}', *curves.pro_curve(limit), x_label='false-positive rate',
                   y_label='per-region overlap', x_end=limit, guess=(0, limit))]
  return found


def score_bins(scores, labels, bins: int = 24) -> Bins:
  """The Bins of a category's image scores [n] with labels [n]."""
  scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
  low, high, largest = scores.min(), scores.max(), np.abs(scores).max()
  if high - low <= 1e-9 * largest:  # all one score, but for rounding: too narrow for bins
    low, high = low - max(.5, 1e-9 * largest), high + max(.5, 1e-9 * largest)
  edges = np.linspace(low, high, bins + 1)
  return Bins(edges, *(np.histogram(scores[labels == label], edges)[0] for label in (0, 1)))


def _axis(low, high, start, end):
  return lambda values: start + (np.asarray(values, np.float64) - low) * (end - start) / (high - low)


def _path(x, y) -> str:
  points = (f'{a:.{DIGITS}f} {b:.{DIGITS}f}' for a, b in zip(x, y))
  return 'M' + 'L'.join(points)


def _frame(title, x_label, y_label, x_ticks: Sequence, y_ticks: Sequence, across, up) -> str:
  bottom, middle = HEIGHT - BOTTOM, (LEFT + WIDTH - RIGHT) / 2
  parts = [f'<text class="name" x="{LEFT}" y="14">{escape(title)}</text>',
           f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>']
  parts += [f'<text x="{across(v):.1f}" y="{bottom + 13}" text-anchor="middle">{label}</text>' for v, label in x_ticks]
  parts += [f'<text x="{LEFT - 4}" y="{up(v) + 4:.1f}" text-anchor="end">{label}</text>' for v, label in y_ticks]
  parts += [f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>',
            f'<text text-anchor="middle" transform="translate(12 {(TOP + bottom) / 2}) rotate(-90)">{escape(y_label)}'
            '</text>']
  return ''.join(parts)


def _svg(title, parts) -> Markup:
  return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>')
