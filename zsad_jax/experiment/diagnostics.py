"""What a run is asked to draw beside its maps: embeddings in the plane, and attention in four modes."""

import functools

import jax
import numpy as np

from zsad_jax.clip import preprocess
from zsad_jax.engine import features, text_features
from zsad_jax.experiment import setup
from zsad_jax.report import diagnostic_figures

IMAGES, GROUPS = 1000, 250  # of a target and of generated texts that are laid out in the plane, at most
EXAMPLES = 4  # images whose attention is drawn


def check(cfg, method, clip):
  """Raises ValueError where the config asks for a figure that there cannot be."""
  blocks, number, kind = clip.arch.vision.layers, cfg.report.attention, clip.arch.vision.kind
  if number and kind != 'vit':
    raise ValueError(f'report.attention is {number}, but {clip.arch.name} is no vision transformer')
  if not 0 <= number <= blocks:
    raise ValueError(f'report.attention is {number}; blocks of {clip.arch.name} are 1..{blocks}, and 0 draws none')
  if cfg.report.tsne and not method.spec(clip, cfg).cls:
    raise ValueError(f'report.tsne is True, but {cfg.method} reads no class token')


def figures(cfg, method, clip, learnable, dataset) -> dict[str, tuple[bytes, str]]:
  """Returns {name: (PNG, sentence on it)} of what the config asks for."""
  made = {}
  if cfg.report.tsne:
    made['t-sne'] = tsne(cfg, method, clip, learnable, dataset)
  if cfg.report.attention:
    made['attention'] = attention(cfg, method, clip, dataset)
  return made


def tsne(cfg, method, clip, learnable, dataset):
  """Class tokens of the target and the texts that they are compared with; the method's hidden layers, where it has any.

  With hidden layers the texts are those it learned from, as in RWDA (arXiv 2308.11119, sec. 4.5).
  """
  images = _images(cfg, method, clip, dataset)
  if hasattr(method, 'hidden'):
    told = _told(cfg, method, clip)
    panels, words = {'embeddings': [told, images]}, 'generated sentences and images, as CLIP embeds them'
    layers = [dict(method.hidden(learnable, kind.values, cfg=cfg)) for kind in (told, images)]
    for (name, of_texts), of_images in zip(layers[0].items(), layers[1].values()):
      panels[name] = [told._replace(values=np.asarray(of_texts)), images._replace(values=np.asarray(of_images))]
    words += ', and what the layers of the network make of them' if layers[0] else ''
  else:
    found = _bank(cfg, method, clip, learnable, dataset)
    panels = {'class tokens and texts' if found else 'class tokens': [images, *found]}
    words = 'class tokens of images' + (', and the texts they are compared with' if found else
                                        '; this method has no single text a state and category to show')
  title = f't-SNE on {dataset.name}'
  return diagnostic_figures.tsne(title, panels, cfg.seed), (
    f't-SNE of {words}. Near is similar; distances between groups, and their sizes, mean little. Images and texts lie '
    'apart in CLIP, so compare like with like.')


def attention(cfg, method, clip, dataset):
  """What patches attend to in block report.attention, on the first anomalous images of different categories."""
  spec, number, transform = method.spec(clip, cfg), cfg.report.attention, preprocess.image_transform(
    clip.arch, clip.image_size)
  read = jax.jit(functools.partial(clip.attention, spec=spec, number=number))
  items = []
  for index in _examples(dataset):
    record = dataset[index]
    found = jax.device_get(read(clip.params, transform(record['image'])[None]))
    items.append(diagnostic_figures.Attention(
      record['image'], {mode: weights[0, 1:, 1:] for mode, weights in found.items()},
      asked(record['mask'], clip.grid), f'{dataset.categories[dataset.category_index[index]]}: '
                                        f'{record["defect_type"]}'))
  title = f'Attention of patches in block {number} of {clip.arch.name}, mean over heads'
  return diagnostic_figures.attention(title, items), (
    f'What one patch (outlined) reads of the others in block {number}, and all patches of one another as a matrix, '
    'when queries, keys or values are compared with themselves in place of queries with keys (AnomalyCLIP, arXiv '
    '2310.18961, fig. 3). Each picture has its own scale.')


def asked(mask, grid: int) -> tuple[int, int]:
  """The patch (row, column) of a grid that holds most of the mask [h, w]; the middle one where it is empty."""
  rows, columns = np.nonzero(mask)
  if not rows.size:
    return grid // 2, grid // 2
  patches = rows * grid // mask.shape[0] * grid + columns * grid // mask.shape[1]
  return tuple(int(v) for v in divmod(np.bincount(patches).argmax(), grid))


def _examples(dataset):
  """Indices of the first anomalous image of each of the first categories, or of the first image without any."""
  first = []
  for number in range(len(dataset.categories)):
    members = np.flatnonzero(dataset.category_index == number)
    if len(members):
      first.append(int(max(members, key=lambda i: (dataset.labels[i], -i))))
  return first[:EXAMPLES]


def _images(cfg, method, clip, dataset):
  """Class tokens of up to IMAGES images, spread over the data set."""
  chosen = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), IMAGES)).astype(int))
  load, size, tokens = setup.reader(cfg, method, clip, dataset, crops=False), cfg.machine.encode_batch, []
  for start in range(0, len(chosen), size):
    rows, valid = features.padded(chosen[start:start + size], size)
    tokens.append(np.asarray(load(rows)[0].cls, np.float32)[valid])
  return diagnostic_figures.Points('image', np.concatenate(tokens), dataset.labels[chosen])


def _told(cfg, method, clip):
  """Embeddings of the first generated texts of this seed, normal and anomalous in turn."""
  groups = method.examples(cfg.seed, cfg=cfg)
  store = text_features.store(cfg.machine.feature_dir or f'{cfg.machine.data_dir}/features', groups, clip, text_features.encoder(clip),
                      max_gb=cfg.machine.max_feature_gb)
  found = np.asarray(store.read(np.arange(min(len(groups), GROUPS)))['texts'], np.float32)
  return diagnostic_figures.Points('generated sentence', found.reshape(-1, found.shape[-1]), np.tile(np.arange(2), len(found)))


def _bank(cfg, method, clip, learnable, dataset):
  """[Points] of a method's text features [C, 2, E], [] where its bank is something else."""
  found = jax.jit(functools.partial(method.bank, categories=setup.names(cfg, dataset), clip=clip, cfg=cfg))(
    {} if hasattr(method, 'select') else learnable, clip.params)
  if getattr(found, 'ndim', 0) != 3 or found.shape[1:] != (2, clip.arch.embed_dim):
    return []
  return [diagnostic_figures.Points('text', np.asarray(found, np.float32).reshape(-1, found.shape[-1]),
                        np.tile(np.arange(2), len(found)))]
