"""Figures of what a model sees: embeddings in the plane, and what patches attend to."""

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
import matplotlib.figure
import numpy as np
from PIL import Image

TRUTH = (('normal', '#2f7fc1'), ('anomalous', '#c8402f'))  # colour-blind people tell these two
MODES = {'qk': 'Q-K, as in CLIP', 'qq': 'Q-Q', 'kk': 'K-K', 'vv': 'V-V'}


class Points(NamedTuple):
  """Embeddings [n, W] of one kind, of which each is normal (0) or anomalous (1): `name`, `values`, `labels` [n]."""
  name: str
  values: np.ndarray
  labels: np.ndarray


class Attention(NamedTuple):
  """PIL image, {mode: weights [N, N] of its patches}, the patch (row, column) that is asked, and a caption."""
  image: Image.Image
  maps: Mapping[str, np.ndarray]
  patch: tuple[int, int]
  caption: str


def plane(values: np.ndarray, seed: int) -> np.ndarray:
  """t-SNE [n, 2] of embeddings [n, W], which count by their directions; the same for the same seed."""
  from sklearn import manifold  # it takes a second to import, and is seldom needed

  values = np.asarray(values, np.float64)
  values = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
  perplexity = min(30, (len(values) - 1) / 3)
  return manifold.TSNE(perplexity=perplexity, init='pca', random_state=seed).fit_transform(values)


def tsne(title: str, panels: Mapping[str, Sequence[Points]], seed: int) -> bytes:
  """PNG bytes of one t-SNE a panel, {heading: kinds of points that are laid out together}."""
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
    places = plane(np.concatenate([kind.values for kind in kinds]), seed)
    ends = np.cumsum([len(kind.values) for kind in kinds])
    for kind, at, marker in zip(kinds, np.split(places, ends[:-1]), 'o^*s'):
      few = len(at) < 50
      for label, (word, colour) in enumerate(TRUTH):
        chosen = at[np.asarray(kind.labels) == label]
        axis.scatter(*chosen.T, s=130 if few else 16, marker=marker, color=colour, alpha=1 if few else .55,
                     edgecolors='black' if few else 'none', linewidths=.8, zorder=2 + few, label=f'{kind.name}, {word}')
  handles, names = axes[0, 0].get_legend_handles_labels()
  figure.legend(handles, names, loc='outside lower center', ncols=4, fontsize=9, frameon=False)
  return _png(figure)


def attention(title: str, items: Sequence[Attention]) -> bytes:
  """PNG bytes: per image what the marked patch attends to in each mode, and below it all patches' weights as a matrix.

  Every picture goes from no weight to its own largest one (a matrix: to its 99.5th percentile): what differs between
  modes is where the weight lies.
  """
  figure = matplotlib.figure.Figure(figsize=(2.5 * 5, 5.4 * len(items) + .5), dpi=80, layout='constrained')
  figure.suptitle(title, fontsize=13)
  axes = figure.subplots(2 * len(items), 1 + len(MODES), squeeze=False)
  for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
  for (over, below), item in zip(axes.reshape(len(items), 2, -1), items):
    grid = round(len(next(iter(item.maps.values()))) ** .5)
    (row, column), (width, height) = item.patch, item.image.size
    over[0].imshow(item.image)
    over[0].add_patch(matplotlib.patches.Rectangle(
      (column * width / grid, row * height / grid), width / grid, height / grid, fill=False, edgecolor='magenta', lw=2))
    over[0].set_title(item.caption, fontsize=9)
    below[0].set_axis_off()
    for mode, above, matrix in zip(MODES, over[1:], below[1:]):
      weights = np.asarray(item.maps[mode])
      seen = weights[row * grid + column].reshape(grid, grid)
      above.imshow(item.image.convert('L'), cmap='gray')
      above.imshow(seen, cmap='inferno', alpha=.65, vmin=0, extent=(0, width, height, 0), interpolation='nearest')
      above.set_title(f'{MODES[mode]}: the marked patch', fontsize=9)
      matrix.imshow(weights, cmap='inferno', vmin=0, vmax=max(np.percentile(weights, 99.5), 1e-12))
      matrix.set_title('all patches', fontsize=9)
  return _png(figure)


def _png(figure) -> bytes:
  out = io.BytesIO()
  figure.savefig(out, format='png')
  return out.getvalue()
