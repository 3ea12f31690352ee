"""Overlay sheets: image, true mask and anomaly map side by side, one colour scale for the whole run."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import matplotlib.figure
import numpy as np
from PIL import Image

COLOURS = 'turbo'
# A level of the colour bar for each percentile: half of it for the upper tenth of all pixels.
PERCENTILES, LEVELS = (1, 50, 90, 95, 98, 99, 99.8), (0, 0.2, 0.5, 0.6, 0.75, 0.85, 1)
OUTLINE = (255, 0, 255)  # rare in photographs of parts, leaves and tissue


class Shown(NamedTuple):
  """One image on a sheet: PIL RGB image, mask [h, w] uint8 0/255, map [R, R], score, label, caption."""
  image: Image.Image
  mask: np.ndarray
  map: np.ndarray
  score: float
  label: int
  caption: str


class Scale(NamedTuple):
  """One colour scale for many maps: `values`, ascending, sit at `levels` of the colour bar; linear between them.

  The same colour means the same value in every picture of a run. A scale per image would paint the most ordinary
  noise of a normal one red.
  """
  values: np.ndarray
  levels: np.ndarray

  def __call__(self, anomaly_map: np.ndarray) -> np.ndarray:
    """Position on the colour bar in [0, 1] of every pixel."""
    return np.interp(anomaly_map, self.values, self.levels)


def threshold_scale(low: float, threshold: float, high: float) -> Scale:
  """The Scale with the threshold at the middle of the colour bar, `low` and below at its start, `high` at its end.

  What is called anomalous has the warm half of the colours, what is called normal the cold one.

  Raises:
    ValueError: one of the three is not finite, or they are out of order; equal ones are parted by a hair.
  """
  values = np.array([low, threshold, high], np.float64)
  if not np.all(np.isfinite(values)) or np.any(np.diff(values) < 0):
    raise ValueError(f'a colour scale needs finite low <= threshold <= high, not {low}, {threshold}, {high}')
  return Scale(_distinct(values), np.array([0, 0.5, 1]))


def _distinct(values):
  """Ascending values parted by a hair where equal, going out from the middle one: np.interp wants them distinct."""
  middle = len(values) // 2
  for i in range(middle + 1, len(values)):
    values[i] = max(values[i], np.nextafter(values[i - 1], np.inf))
  for i in range(middle - 1, -1, -1):
    values[i] = min(values[i], np.nextafter(values[i + 1], -np.inf))
  return values


def colour_scale(maps: Sequence[np.ndarray]) -> Scale:
  """The Scale of a run's maps [R, R]."""
  pixels = np.concatenate([np.asarray(m, np.float32)[::2, ::2].ravel() for m in maps])
  return Scale(_distinct(np.percentile(pixels, PERCENTILES).astype(np.float64)), np.array(LEVELS))


def overlay(image: Image.Image, anomaly_map: np.ndarray, scale: Scale, *, opacity=0.6):
  """The image [h, w, 3] uint8 with the map [R, R] over it at its own size, more opaque where it is higher."""
  heat = Image.fromarray(np.asarray(anomaly_map, np.float32)).resize(image.size, Image.Resampling.BILINEAR)
  level = scale(np.asarray(heat))[..., None]
  colour = matplotlib.colormaps[COLOURS](level[..., 0])[..., :3] * 255
  alpha = opacity * (0.35 + 0.65 * level)
  return (np.asarray(image, np.float32) * (1 - alpha) + colour * alpha).round().astype(np.uint8)


def outline(mask: np.ndarray) -> np.ndarray:
  """The boundary [h, w] bool of a mask [h, w]: its pixels with a 4-neighbour outside."""
  inside = np.pad(np.asarray(mask) > 0, 1)
  core = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
  return inside[1:-1, 1:-1] & ~core


def sheet(title: str, shown: Sequence[Shown], scale: Scale, *, columns=2) -> bytes:
  """PNG bytes of a contact sheet: per image the input with the true outline, the mask, the map over it."""
  rows = -(-len(shown) // columns)
  tallest = max(item.image.height / item.image.width for item in shown)
  size = 6.6 * columns, (2.05 * tallest + 0.3) * rows + 1.3
  figure = matplotlib.figure.Figure(figsize=size, dpi=100, layout='constrained')
  figure.suptitle(title, fontsize=13)
  axes = figure.subplots(rows, 3 * columns, squeeze=False)
  for axis in axes.flat:
    axis.axis('off')
  for k, item in enumerate(shown):
    trio = axes[k // columns, 3 * (k % columns):3 * (k % columns) + 3]
    marked = np.array(item.image)
    marked[outline(item.mask)] = OUTLINE
    for axis, picture in zip(trio, (marked, item.mask, overlay(item.image, item.map, scale))):
      axis.imshow(picture, cmap='gray', vmin=0, vmax=255)
    kind = 'anomalous' if item.label else 'normal'
    trio[0].set_title(item.caption, fontsize=8, loc='left')
    trio[1].set_title(f'truth: {kind}', fontsize=8)
    trio[2].set_title(f'score {item.score:.3f}', fontsize=8)
  bar = figure.colorbar(matplotlib.cm.ScalarMappable(cmap=COLOURS), ax=axes, orientation='horizontal',
                        fraction=0.03, aspect=60, pad=0.02)
  bar.set_ticks(LEVELS, labels=[f'{v:.2g}\n{p:g} %' for v, p in zip(scale.values, PERCENTILES)], fontsize=8)
  bar.set_label('anomaly map, and the share of the run\'s pixels below it: one scale for the whole run')
  out = io.BytesIO()
  figure.savefig(out, format='png')
  return out.getvalue()
