"""Colour scales, overlays and sheets: image, true mask and anomaly map side by side."""

import functools
import io
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import matplotlib.figure
import numpy as np
from matplotlib.backends import backend_agg
from PIL import Image

COLOURS = 'turbo'
# Percentiles of the pixels on either side of the threshold, and where they sit on the colour bar.
COLD, WARM = ((1, 0), (60, 0.15), (95, 0.35)), ((50, 0.75), (98, 1))
PERCENTILE = 98  # of all pixels, in place of a threshold that is not known
TRUTH = {1: 'anomalous', 0: 'normal', None: 'not known'}
CELL, GAP, LINE, TITLE, BAR, DPI = 210, 10, 24, 44, 88, 100  # of sheets, in pixels
TALLEST = 1.5  # height of a cell of a sheet, in widths; taller pictures are fitted into it
OUTLINE = (255, 0, 255)  # rare in photographs of parts, leaves and tissue


class Shown(NamedTuple):
  """One image as a sheet and a page show it.

  Attributes:
    image: PIL RGB.
    mask: [h, w] uint8 0/255, or None where the truth is not known.
    map: [R, R], or [h, w, 3] uint8 as it is drawn over the image already, or None of a method without maps.
    score: of the image; higher is more anomalous.
    label: 1 anomalous, 0 normal, None where the truth is not known.
    caption: what the image is called.
    category: '' for none.
  """
  image: Image.Image
  mask: np.ndarray | None
  map: np.ndarray | None
  score: float
  label: int | None
  caption: str
  category: str = ''


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
  return Scale(_distinct(values, 1), np.array([0, 0.5, 1]))


def _distinct(values, middle):
  """Ascending values parted by a hair where equal, going out from number `middle`: np.interp wants them distinct."""
  for i in range(middle + 1, len(values)):
    values[i] = max(values[i], np.nextafter(values[i - 1], np.inf))
  for i in range(middle - 1, -1, -1):
    values[i] = min(values[i], np.nextafter(values[i + 1], -np.inf))
  return values


def run_scale(maps: Sequence[np.ndarray], threshold: float | None = None, name: str = 'the threshold'
              ) -> tuple[Scale, str]:
  """(the Scale of a run's maps [R, R], what its middle is): the threshold of that name, where there is one.

  The values of maps are far from uniform: a scale linear in them would spend its colours on a few extreme pixels. On
  either side of the threshold a colour therefore says how rare a value is among the pixels of that side.
  """
  pixels = np.sort(np.concatenate([np.asarray(m, np.float32)[::2, ::2].ravel() for m in maps])).astype(np.float64)
  if threshold is None:
    threshold, name = float(np.percentile(pixels, PERCENTILE)), f'the {PERCENTILE:g}th percentile of the shown pixels'
  below, above = np.split(pixels, [np.searchsorted(pixels, threshold)])
  cold = np.percentile(below, [p for p, _ in COLD]) if below.size else np.full(len(COLD), threshold)
  warm = np.percentile(above, [p for p, _ in WARM]) if above.size else np.full(len(WARM), threshold)
  levels = [*(level for _, level in COLD), 0.5, *(level for _, level in WARM)]
  return Scale(_distinct(np.array([*cold, threshold, *warm]), len(COLD)), np.array(levels)), name


def overlay(image: Image.Image, anomaly_map: np.ndarray, scale: Scale, *, opacity=0.7):
  """The image [h, w, 3] uint8 with the map [R, R] over it at its own size, more opaque where it is higher."""
  heat = Image.fromarray(np.asarray(anomaly_map, np.float32)).resize(image.size, Image.Resampling.BILINEAR)
  tints = _tints()
  level = np.minimum(scale(np.asarray(heat)) * len(tints), len(tints) - 1).astype(np.uint8)
  tinted = Image.fromarray(level)
  tinted.putpalette(tints.tobytes())
  opaque = np.round(255 * opacity * (0.3 + 0.7 * np.linspace(0, 1, len(tints)))).astype(np.uint8)
  return np.asarray(Image.composite(tinted.convert('RGB'), image.convert('RGB'), Image.fromarray(opaque[level])))


@functools.cache
def _tints():
  """The colours [256, 3] uint8 of the colour bar."""
  return matplotlib.colormaps[COLOURS](np.arange(256), bytes=True)[:, :3]


def outline(mask: np.ndarray) -> np.ndarray:
  """The boundary [h, w] bool of a mask [h, w]: its pixels with a 4-neighbour outside."""
  inside = np.pad(np.asarray(mask) > 0, 1)
  core = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
  return inside[1:-1, 1:-1] & ~core


def sheet(title: str, shown: Sequence[Shown], scale: Scale, middle: str, *, columns=2) -> bytes:
  """PNG bytes of a contact sheet: per image the input with the true outline, the mask, the map over it.

  Args:
    title: above all.
    shown: images with a map.
    scale: of all sheets of a run.
    middle: what value is at the middle of the colour bar.
    columns: images beside each other.
  """
  columns = min(columns, len(shown))
  box = CELL, round(CELL * min(max(item.image.height / item.image.width for item in shown), TALLEST))
  size = 3 * columns * (CELL + GAP) + GAP, TITLE + -(-len(shown) // columns) * (box[1] + LINE) + BAR
  pasted = []
  figure = matplotlib.figure.Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
  place = lambda x, y: dict(x=x / size[0], y=1 - y / size[1], va='bottom')
  figure.text(**place(size[0] / 2, TITLE - LINE / 2), s=title, ha='center', fontsize=13)
  for k, item in enumerate(shown):
    top = TITLE + k // columns * (box[1] + LINE) + LINE
    small = _within(item, box)
    drawn = marked(small), small.mask, overlay(small.image, small.map, scale)
    told = _short(item.caption), f'truth: {TRUTH[item.label]}', f'score {item.score:.3g}'
    for n, (picture, text) in enumerate(zip(drawn, told)):
      left = GAP + (3 * (k % columns) + n) * (CELL + GAP)
      figure.text(**place(left, top - 3), s=text, fontsize=8)
      if picture is not None:
        pasted.append((Image.fromarray(picture), (left, top)))
  axis = figure.add_axes((0.2, (BAR - LINE) / size[1], 0.6, 12 / size[1]))
  bar = figure.colorbar(matplotlib.cm.ScalarMappable(cmap=COLOURS), cax=axis, orientation='horizontal')
  bar.set_ticks(scale.levels, labels=[f'{value:.3g}' for value in scale.values], fontsize=8)
  bar.set_label(f'anomaly map: one scale for the whole run,\nwith {middle} in the middle', fontsize=9)
  canvas = backend_agg.FigureCanvasAgg(figure)
  canvas.draw()
  whole = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert('RGB')
  for picture, corner in pasted:  # not by matplotlib, which takes six times as long
    whole.paste(picture, corner)
  out = io.BytesIO()
  whole.save(out, 'png', compress_level=4)
  return out.getvalue()


def _within(item, box):
  """An item whose image and mask fit into a box (width, height); what is marked stays marked, however small."""
  scale = min(box[0] / item.image.width, box[1] / item.image.height)
  size = max(1, round(item.image.width * scale)), max(1, round(item.image.height * scale))
  mask = item.mask
  if mask is not None:
    filled = Image.fromarray((np.asarray(mask) > 0).astype(np.float32)).resize(size, Image.Resampling.BOX)
    mask = (np.asarray(filled) > 0).astype(np.uint8) * np.uint8(255)
  return item._replace(image=item.image.resize(size, Image.Resampling.BICUBIC), mask=mask)


def marked(item: Shown) -> np.ndarray:
  """The image [h, w, 3] uint8 of an item with the outline of its mask, where it has one."""
  out = np.array(item.image)
  if item.mask is not None:
    out[outline(item.mask)] = OUTLINE
  return out


def colours(count: int) -> list[str]:
  """`count` colours of the colour bar, from its start to its end, as #rrggbb."""
  return [matplotlib.colors.to_hex(c) for c in matplotlib.colormaps[COLOURS](np.linspace(0, 1, count))]


def _short(text, longest=42):
  return text if len(text) <= longest else f'...{text[3 - longest:]}'
