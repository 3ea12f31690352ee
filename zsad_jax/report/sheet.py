"""Sheets of images as PNG: input, ground-truth mask and heat map side by side, on one colour scale."""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np
from matplotlib.backends import backend_agg
from PIL import Image

from zsad_jax.report import gallery, heatmap

CELL, GAP, LINE, TITLE, BAR, DPI = 210, 10, 24, 44, 88, 100  # in pixels
TALLEST = 1.5  # largest height of a cell, in widths; taller images are fitted into it


def by_category(dataset: Any, indices: Sequence[int], scores: np.ndarray, maps: Mapping[int, np.ndarray],
                scale: heatmap.Scale) -> Iterator[tuple[str, bytes]]:
  """Yields (category, PNG bytes of its sheet) for every category that has an image with a map.

  Args:
    dataset, indices, scores, maps: as for `gallery.examples`.
    scale: colours, the same on all sheets.
  """
  for number, category in enumerate(dataset.categories):
    members = [i for i in indices if dataset.category_index[i] == number and i in maps]
    if members:
      items = list(gallery.examples(dataset, members, scores, maps))
      yield category, render(f'{dataset.name}: {category}', items, scale)


def render(title: str, items: Sequence[gallery.Example], scale: heatmap.Scale, *, columns: int = 2) -> bytes:
  """Returns one sheet as PNG bytes: of each image the input with the defect outlined, the mask and the heat map.

  Args:
    title: heading.
    items: images, with a map unless its place stays empty.
    scale: colours of the maps.
    columns: images in a row.
  """
  columns = min(columns, len(items))
  cell = CELL, round(CELL * min(max(item.image.height / item.image.width for item in items), TALLEST))
  size = 3 * columns * (CELL + GAP) + GAP, TITLE + -(-len(items) // columns) * (cell[1] + LINE) + BAR
  pictures = []
  figure = matplotlib.figure.Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI)
  position = lambda x, y: dict(x=x / size[0], y=1 - y / size[1], va='bottom')
  figure.text(**position(size[0] / 2, TITLE - LINE / 2), s=title, ha='center', fontsize=13)
  for k, item in enumerate(items):
    top = TITLE + k // columns * (cell[1] + LINE) + LINE
    small = _fitted(item, cell)
    heat = None if small.map is None else heatmap.overlay(small.image, small.map, scale)
    pixels = gallery.with_outline(small), small.mask, heat
    texts = _shortened(item.caption), f'ground truth: {gallery.GROUND_TRUTH[item.label]}', f'score {item.score:.3g}'
    for n, (panel, text) in enumerate(zip(pixels, texts)):
      left = GAP + (3 * (k % columns) + n) * (CELL + GAP)
      figure.text(**position(left, top - 3), s=text, fontsize=8)
      if panel is not None:
        pictures.append((Image.fromarray(panel), (left, top)))
  _add_colour_bar(figure, scale, size)
  canvas = backend_agg.FigureCanvasAgg(figure)
  canvas.draw()
  page = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert('RGB')
  for picture, corner in pictures:  # pasted with PIL, which is six times as fast as matplotlib
    page.paste(picture, corner)
  out = io.BytesIO()
  page.save(out, 'png', compress_level=4)
  return out.getvalue()


def _add_colour_bar(figure, scale: heatmap.Scale, size: tuple[int, int]) -> None:
  axis = figure.add_axes((0.2, (BAR - LINE) / size[1], 0.6, 12 / size[1]))
  bar = figure.colorbar(matplotlib.cm.ScalarMappable(cmap=heatmap.COLOURS), cax=axis, orientation='horizontal')
  bar.set_ticks(scale.levels, labels=[f'{value:.3g}' for value in scale.values], fontsize=8)
  bar.set_label(f'anomaly map: one scale for the whole run,\nwith {scale.middle} in the middle', fontsize=9)


def _fitted(item: gallery.Example, cell: tuple[int, int]) -> gallery.Example:
  """Returns the example with image and mask fitted into a cell (width, height); the smallest defect stays visible."""
  scale = min(cell[0] / item.image.width, cell[1] / item.image.height)
  size = max(1, round(item.image.width * scale)), max(1, round(item.image.height * scale))
  mask = item.mask
  if mask is not None:
    share = Image.fromarray((np.asarray(mask) > 0).astype(np.float32)).resize(size, Image.Resampling.BOX)
    mask = (np.asarray(share) > 0).astype(np.uint8) * np.uint8(255)
  return item._replace(image=item.image.resize(size, Image.Resampling.BICUBIC), mask=mask)


def _shortened(text: str, longest: int = 42) -> str:
  return text if len(text) <= longest else f'...{text[3 - longest:]}'
