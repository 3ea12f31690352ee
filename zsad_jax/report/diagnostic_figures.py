"""Diagnostic figures as PNG: t-SNE of embeddings, and attention maps of patches."""

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import matplotlib.figure
import numpy as np
from PIL import Image

CLASSES = (('normal', '#2f7fc1'), ('anomalous', '#c8402f'))  # distinct for colour-blind readers
MODES = {'qk': 'Q-K, as in CLIP', 'qq': 'Q-Q', 'kk': 'K-K', 'vv': 'V-V'}
FEW = 50  # kinds of fewer points get large markers


class Points(NamedTuple):
  """Embeddings of one kind, such as images or texts.

  Attributes:
    name: of the kind.
    values: [n, W].
    labels: [n], 0 normal and 1 anomalous.
  """
  name: str
  values: np.ndarray
  labels: np.ndarray


class Attention(NamedTuple):
  """Attention maps of one image.

  Attributes:
    image: PIL RGB.
    maps: {mode: weights [N, N] from every patch to every patch}, for all MODES.
    patch: (row, column) of the patch whose attention is shown.
    caption: of the image.
  """
  image: Image.Image
  maps: Mapping[str, np.ndarray]
  patch: tuple[int, int]
  caption: str


def plane(values: np.ndarray, seed: int) -> np.ndarray:
  """Returns the t-SNE coordinates [n, 2] of embeddings [n, W], compared by direction; reproducible for a seed."""
  from sklearn import manifold  # importing it takes a second, and it is seldom needed

  values = np.asarray(values, np.float64)
  values = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
  perplexity = min(30, (len(values) - 1) / 3)
  return manifold.TSNE(perplexity=perplexity, init='pca', random_state=seed).fit_transform(values)


def tsne(title: str, panels: Mapping[str, Sequence[Points]], seed: int) -> bytes:
  """Returns a figure with one t-SNE per panel as PNG bytes.

  Args:
    title: of the figure.
    panels: {heading: kinds of points that share one t-SNE}.
    seed: of the t-SNE.
  """
  columns = min(len(panels), 2)
  rows = -(-len(panels) // columns)
  figure = matplotlib.figure.Figure(figsize=(5.4 * columns, 5 * rows + .8), dpi=100, layout='constrained')
  figure.suptitle(title, fontsize=12)
  axes = figure.subplots(rows, columns, squeeze=False)
  for axis in axes.flat:
    axis.set_axis_off()
  for axis, (heading, kinds) in zip(axes.flat, panels.items()):
    axis.set_axis_on()
    axis.set(title=heading, xticks=[], yticks=[])
    _scatter(axis, kinds, plane(np.concatenate([kind.values for kind in kinds]), seed))
  handles, names = axes[0, 0].get_legend_handles_labels()
  figure.legend(handles, names, loc='outside lower center', ncols=2 * columns, fontsize=9, frameon=False)
  return _png(figure)


def _scatter(axis, kinds: Sequence[Points], coordinates: np.ndarray) -> None:
  ends = np.cumsum([len(kind.values) for kind in kinds])
  for kind, points, marker in zip(kinds, np.split(coordinates, ends[:-1]), 'o^*s'):
    few = len(points) < FEW
    for label, (word, colour) in enumerate(CLASSES):
      members = points[np.asarray(kind.labels) == label]
      axis.scatter(*members.T, s=130 if few else 16, marker=marker, color=colour, alpha=1 if few else .55,
                   edgecolors='black' if few else 'none', linewidths=.8, zorder=2 + few, label=f'{kind.name}, {word}')


def attention(title: str, items: Sequence[Attention]) -> bytes:
  """Returns a figure of attention maps as PNG bytes.

  Each image has a row with the attention of its outlined patch in each mode, and below it a row with the weights of all
  patches as matrices. Every map runs from 0 to its own maximum (a matrix: to its 99.5th percentile), because the modes
  differ in where the weight lies.
  """
  figure = matplotlib.figure.Figure(figsize=(2.5 * 5, 5.4 * len(items) + .5), dpi=80, layout='constrained')
  figure.suptitle(title, fontsize=13)
  axes = figure.subplots(2 * len(items), 1 + len(MODES), squeeze=False)
  for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
  for (upper, lower), item in zip(axes.reshape(len(items), 2, -1), items):
    grid = round(len(next(iter(item.maps.values()))) ** .5)
    (row, column), (width, height) = item.patch, item.image.size
    upper[0].imshow(item.image)
    upper[0].add_patch(matplotlib.patches.Rectangle(
      (column * width / grid, row * height / grid), width / grid, height / grid, fill=False, edgecolor='magenta', lw=2))
    upper[0].set_title(item.caption, fontsize=9)
    lower[0].set_axis_off()
    for mode, over_image, matrix in zip(MODES, upper[1:], lower[1:]):
      weights = np.asarray(item.maps[mode])
      of_patch = weights[row * grid + column].reshape(grid, grid)
      over_image.imshow(item.image.convert('L'), cmap='gray')
      over_image.imshow(of_patch, cmap='inferno', alpha=.65, vmin=0, extent=(0, width, height, 0),
                        interpolation='nearest')
      over_image.set_title(f'{MODES[mode]}: outlined patch', fontsize=9)
      matrix.imshow(weights, cmap='inferno', vmin=0, vmax=max(np.percentile(weights, 99.5), 1e-12))
      matrix.set_title('all patches', fontsize=9)
  return _png(figure)


def _png(figure: matplotlib.figure.Figure) -> bytes:
  out = io.BytesIO()
  figure.savefig(out, format='png')
  return out.getvalue()
