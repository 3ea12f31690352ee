"""Heat maps: the colour scale of anomaly maps, the overlay on an image, and the colour bar."""

import functools
import io
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import matplotlib.figure
import numpy as np
from PIL import Image

COLOURS = 'turbo'
# (percentile of the pixels on one side of the threshold, its position on the colour bar)
BELOW, ABOVE = ((1, 0), (60, 0.15), (95, 0.35)), ((50, 0.75), (98, 1))
PERCENTILE = 98  # of all pixels, if no threshold is known


class Scale(NamedTuple):
  """One colour scale for many anomaly maps; linear between the values.

  The same colour means the same value in all images of a run. With a scale for each image, the most ordinary noise of
  a normal image would be red.

  Attributes:
    values: [K] float64, ascending.
    levels: [K] positions of the values on the colour bar, in [0, 1].
    middle: name of the value at level 0.5.
  """
  values: np.ndarray
  levels: np.ndarray
  middle: str = 'the threshold'

  def __call__(self, anomaly_map: np.ndarray) -> np.ndarray:
    """Returns the position of every pixel on the colour bar, in [0, 1]."""
    return np.interp(anomaly_map, self.values, self.levels)


def threshold_scale(low: float, threshold: float, high: float, middle: str = 'the threshold') -> Scale:
  """Returns the Scale whose warm half means anomalous and whose cold half means normal.

  Args:
    low: value at the start of the colour bar, and below.
    threshold: value at its middle. Equal values are moved apart by the smallest possible step.
    high: value at its end, and above.
    middle: name of the threshold.

  Raises:
    ValueError: a value is not finite, or they are not in ascending order.
  """
  values = np.array([low, threshold, high], np.float64)
  if not np.all(np.isfinite(values)) or np.any(np.diff(values) < 0):
    raise ValueError(f'a colour scale needs finite values low <= threshold <= high; got {low}, {threshold}, {high}')
  return Scale(_strictly_ascending(values, 1), np.array([0, 0.5, 1]), middle)


def run_scale(maps: Sequence[np.ndarray], threshold: float | None = None, middle: str = 'the threshold') -> Scale:
  """Returns the Scale of a run's anomaly maps, with the threshold in the middle.

  The values of maps are far from uniform: a scale linear in them would spend its colours on a few extreme pixels. On
  either side of the threshold a colour therefore shows how rare a value is among the pixels of that side.

  Args:
    maps: [R, R] each.
    threshold: pixel threshold; None for a percentile of all pixels.
    middle: name of the threshold.
  """
  pixels = np.sort(np.concatenate([np.asarray(m, np.float32)[::2, ::2].ravel() for m in maps])).astype(np.float64)
  if threshold is None:
    threshold, middle = float(np.percentile(pixels, PERCENTILE)), f'the {PERCENTILE:g}th percentile of these pixels'
  below, above = np.split(pixels, [np.searchsorted(pixels, threshold)])
  cold = np.percentile(below, [p for p, _ in BELOW]) if below.size else np.full(len(BELOW), threshold)
  warm = np.percentile(above, [p for p, _ in ABOVE]) if above.size else np.full(len(ABOVE), threshold)
  levels = [*(level for _, level in BELOW), 0.5, *(level for _, level in ABOVE)]
  return Scale(_strictly_ascending(np.array([*cold, threshold, *warm]), len(BELOW)), np.array(levels), middle)


def _strictly_ascending(values: np.ndarray, fixed: int) -> np.ndarray:
  """Moves equal values apart, outwards from values[fixed], because np.interp needs distinct ones."""
  for i in range(fixed + 1, len(values)):
    values[i] = max(values[i], np.nextafter(values[i - 1], np.inf))
  for i in range(fixed - 1, -1, -1):
    values[i] = min(values[i], np.nextafter(values[i + 1], -np.inf))
  return values


def overlay(image: Image.Image, anomaly_map: np.ndarray, scale: Scale, *, opacity: float = 0.7) -> np.ndarray:
  """Returns the image with the heat map over it, [h, w, 3] uint8 at the image's own size.

  Args:
    image: PIL image of any mode.
    anomaly_map: [R, R], stretched to the image.
    scale: colours of the map's values.
    opacity: of the hottest colour; colder ones are more transparent.
  """
  heat = Image.fromarray(np.asarray(anomaly_map, np.float32)).resize(image.size, Image.Resampling.BILINEAR)
  table = _colour_table()
  index = np.minimum(scale(np.asarray(heat)) * len(table), len(table) - 1).astype(np.uint8)
  coloured = Image.fromarray(index)
  coloured.putpalette(table.tobytes())
  alpha = np.round(255 * opacity * (0.3 + 0.7 * np.linspace(0, 1, len(table)))).astype(np.uint8)
  return np.asarray(Image.composite(coloured.convert('RGB'), image.convert('RGB'), Image.fromarray(alpha[index])))


@functools.cache
def _colour_table() -> np.ndarray:
  """Returns the colours [256, 3] uint8 of the colour bar."""
  return matplotlib.colormaps[COLOURS](np.arange(256), bytes=True)[:, :3]


def palette(count: int) -> list[str]:
  """Returns `count` colours from the start to the end of the colour bar, as #rrggbb."""
  return [matplotlib.colors.to_hex(c) for c in matplotlib.colormaps[COLOURS](np.linspace(0, 1, count))]


def colour_bar(scale: Scale, source: str) -> bytes:
  """Returns the colour bar of a `threshold_scale` as PNG bytes, for overlays that are files of their own.

  Args:
    scale: low, threshold and high at the levels 0, 0.5 and 1.
    source: origin of the threshold.
  """
  title = textwrap.wrap(f'anomaly map; threshold: {source}', 100)  # wider lines would be cut off
  figure = matplotlib.figure.Figure(figsize=(8, 1.15 + .15 * len(title)), dpi=100, layout='constrained')
  axis = figure.subplots()
  axis.imshow(np.linspace(0, 1, 512)[None], aspect='auto', cmap=COLOURS, extent=(0, 1, 0, 1))
  axis.set_yticks([])
  meanings = ('and below', 'threshold', 'and above')
  axis.set_xticks(scale.levels, [f'{value:.4g}\n{meaning}' for value, meaning in zip(scale.values, meanings)])
  axis.set_title('\n'.join(title), fontsize=9)
  out = io.BytesIO()
  figure.savefig(out, format='png')
  return out.getvalue()
