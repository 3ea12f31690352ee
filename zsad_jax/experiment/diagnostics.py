"""Optional diagnostic figures: t-SNE of embeddings and attention maps."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from zsad_jax import data
from zsad_jax.clip import preprocess
from zsad_jax.experiment import setup
from zsad_jax.experiment.run import Run
from zsad_jax.methods import Params
from zsad_jax.report import diagnostic_figures

IMAGES, GROUPS = 1000, 250  # of a target and of training texts that a t-SNE shows, at most
EXAMPLES = 4  # images whose attention is drawn

Figure = tuple[bytes, str]  # PNG and caption


def figures(run: Run, params: Params, dataset: data.Dataset) -> dict[str, Figure]:
  """Returns {name: (PNG, caption)} of the figures that the config's `report` asks for."""
  drawings = {}
  if run.cfg.report.tsne:
    drawings['t-sne'] = tsne(run, params, dataset)
  if run.cfg.report.attention:
    drawings['attention'] = attention(run, dataset)
  return drawings


def tsne(run: Run, params: Params, dataset: data.Dataset) -> Figure:
  """t-SNE of the target's class tokens and of the texts they are compared with, or of a network's hidden layers.

  For a method with hidden layers the texts are those it was trained on, as in RWDA (arXiv 2308.11119, sec. 4.5).
  """
  images = _image_points(run, dataset)
  if run.method.hidden_layers is not None and params:
    texts = _training_text_points(run)
    panels = {'embeddings': [texts, images]}
    layers = [run.method.hidden_layers(params, points.values, cfg=run.cfg) for points in (texts, images)]
    for name in layers[0]:
      panels[name] = [points._replace(values=np.asarray(values[name]))
                      for points, values in zip((texts, images), layers)]
    what = 'generated sentences and images, as CLIP embeds them, and the hidden layers of the network'
  else:
    compared = _text_points(run, params, dataset)
    panels = {'class tokens and texts' if compared else 'class tokens': [images, *compared]}
    what = 'class tokens of images' + (', and the texts they are compared with' if compared else
                                       '; this method has no single text per state and category')
  return diagnostic_figures.tsne(f't-SNE on {dataset.name}', panels, run.cfg.seed), (
    f't-SNE of {what}. Near points are similar; distances between groups, and their sizes, mean little. CLIP embeds '
    'images and texts apart from each other, so compare like with like.')


def attention(run: Run, dataset: data.Dataset) -> Figure:
  """Attention of the block report.attention, for the first anomalous images of different categories."""
  spec, number, clip = run.spec, run.cfg.report.attention, run.clip
  transform = preprocess.image_transform(clip.arch, clip.image_size)
  read = jax.jit(functools.partial(clip.attention, spec=spec, number=number))
  items = []
  for index in _first_anomalous(dataset):
    record = dataset[index]
    weights = jax.device_get(read(clip.params, transform(record['image'])[None]))
    items.append(diagnostic_figures.Attention(
      record['image'], {mode: w[0, 1:, 1:] for mode, w in weights.items()}, query_patch(record['mask'], clip.grid),
      f'{dataset.categories[dataset.category_index[index]]}: {record["defect_type"]}'))
  title = f'Attention of patches in block {number} of {clip.arch.name}, mean over heads'
  return diagnostic_figures.attention(title, items), (
    f'Attention of one patch (outlined) to all others in block {number}, and of all patches to one another as a '
    'matrix, with queries, keys or values compared with themselves in place of queries with keys (AnomalyCLIP, arXiv '
    '2310.18961, fig. 3). Each picture has its own scale.')


def query_patch(mask: np.ndarray, grid: int) -> tuple[int, int]:
  """Returns the patch (row, column) of a grid that holds most of the mask [h, w]; the middle one if it is empty."""
  rows, columns = np.nonzero(mask)
  if not rows.size:
    return grid // 2, grid // 2
  patches = rows * grid // mask.shape[0] * grid + columns * grid // mask.shape[1]
  row, column = divmod(int(np.bincount(patches).argmax()), grid)
  return row, column


def _first_anomalous(dataset: data.Dataset) -> Sequence[int]:
  """Indices of the first anomalous image of each of the first categories, or of their first image."""
  first = []
  for number in range(len(dataset.categories)):
    members = np.flatnonzero(dataset.category_index == number)
    if len(members):
      first.append(int(max(members, key=lambda i: (dataset.labels[i], -i))))
  return first[:EXAMPLES]


def _image_points(run: Run, dataset: data.Dataset) -> diagnostic_figures.Points:
  """Class tokens of up to IMAGES images, spread over the data set."""
  indices = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), IMAGES)).astype(int))
  return diagnostic_figures.Points('image', run.class_tokens(dataset, indices), dataset.labels[indices])


def _training_text_points(run: Run) -> diagnostic_figures.Points:
  """Embeddings of the first training texts, normal and anomalous in turn."""
  text = run.training_text_features()[:GROUPS].astype(np.float32)
  return diagnostic_figures.Points('generated sentence', text.reshape(-1, text.shape[-1]),
                                   np.tile(np.arange(2), len(text)))


def _text_points(run: Run, params: Params, dataset: data.Dataset) -> list[diagnostic_figures.Points]:
  """A method's text features [C, 2, E] as points; [] if they have another form."""
  encode = functools.partial(run.method.encode_text, names=setup.object_names(run.cfg, dataset), clip=run.clip,
                             cfg=run.cfg)
  text: Any = jax.jit(encode)(params, run.clip.params)
  if not isinstance(text, jax.Array) or text.ndim != 3 or text.shape[1:] != (2, run.clip.arch.embed_dim):
    return []
  return [diagnostic_figures.Points('text', np.asarray(text, np.float32).reshape(-1, text.shape[-1]),
                                    np.tile(np.arange(2), len(text)))]
