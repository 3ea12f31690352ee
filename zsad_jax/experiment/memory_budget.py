"""What a run will hold in memory, known from shapes before anything is allocated, and held to config.machine.max_memory_gb.

Counted are the arrays whose size follows from the config and the data set: stored features under way, few-shot
references and banks, distances to them, and the maps that exact pixel metrics keep. The program, weights and whatever
else is there already come in as the resident set of now. Not counted are the towers' own activations, which do not
grow with a data set; machine.encode_batch and train.batch bound them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.clip import encoder
from zsad_jax.engine import runtime
from zsad_jax.experiment import setup

UNDER_WAY = 5  # batches: two read ahead, the one that waits for the reader, the one in use, and its copy on the device
# Bytes a pixel of the largest category, and those of the metrics' temporaries, as benchmarks/memory.py found them:
# every score once and half again while they are put together; to finish a category, its maps and masks twice as well.
STREAMED, FINISHED, TEMPORARIES = 6, 22, 150_000_000
MIB = 2 ** 20


class Part(NamedTuple):
  """One thing that takes memory: what it is, how many bytes, and what makes it smaller, as a sentence's end."""
  what: str
  bytes: int
  remedy: str


def fitted(cfg, method, clip, dataset, *, place: runtime.Placement):
  """Returns an evaluation's config with machine.knn_mib lowered to what cfg.machine.max_memory_gb leaves; prints what is predicted.

  Raises:
    ValueError: it would not fit; nothing has been allocated.
  """
  rows = place.rows(cfg.machine.eval_batch)
  parts = evaluation(cfg, method, clip, dataset, rows, _copies(place))
  compared = distances(cfg, method, clip)
  if not compared:
    require(parts, cfg.machine.max_memory_gb)
    return cfg
  least, most = rows * compared[0], rows * min(cfg.machine.knn_mib * MIB, compared[1])
  room = cfg.machine.max_memory_gb * 1e9 - runtime.rss_bytes() - sum(part.bytes for part in parts)
  given = most if not cfg.machine.max_memory_gb else min(max(room, least), most)
  require([*parts, Part('distances to references', int(given), 'lower --config.machine.eval_batch or fewshot.shots')],
          cfg.machine.max_memory_gb)
  return cfg if given == most else setup.with_changes(cfg, {'machine.knn_mib': given / rows / MIB})


def evaluation(cfg, method, clip, dataset, rows: int, copies: int = 1) -> list[Part]:
  """Returns what an evaluation holds beside the distances to references.

  Args:
    cfg, method, clip, dataset: of the evaluation.
    rows: images predicted at once.
    copies: how many times what every device needs is held on the host.
  """
  largest = int(np.bincount(dataset.category_index, minlength=1).max())
  shown = len(dataset.categories) * cfg.report.pictures
  parts = [_under_way(cfg, method, clip, rows, 'machine.eval_batch')]
  if getattr(method, 'MAPS', True):
    category = dataset.categories[int(np.bincount(dataset.category_index, minlength=1).argmax())]
    parts.append(Part(
      f'maps of {largest} images of {category} and {shown} pictures',
      maps_bytes(largest, clip.image_size, hasattr(method, 'finish')) + 4 * shown * clip.image_size ** 2,
      'lower --config.image_size, at which metrics are taken, or leave that category out with '
      '--config.data.target_categories'))
  if hasattr(method, 'memory') and cfg.fewshot.shots:
    references, bank = references_bytes(cfg, method, clip, len(dataset.categories))
    parts.append(Part(f'{cfg.fewshot.shots} references of each category', 2 * references + copies * bank,
                      'lower --config.fewshot.shots or evaluate fewer --config.data.target_categories'))
    parts.append(Part('banks of the images of a batch', 2 * rows * bank // len(dataset.categories),
                      'lower --config.machine.eval_batch'))
  return parts


def maps_bytes(images: int, size: int, finished: bool) -> int:
  """Returns what exact pixel metrics of a category of `images` take at `size` px, `finished` at once or streamed."""
  pixels = images * size ** 2
  kept = pixels * (FINISHED if finished else STREAMED)
  return kept + min(kept, TEMPORARIES)


def training(cfg, method, clip, place: runtime.Placement) -> list[Part]:
  """Returns what a training on stored features holds of them."""
  return [_under_way(cfg, method, clip, place.rows(cfg.train.batch), 'train.batch')]


def references_bytes(cfg, method, clip, categories: int) -> tuple[int, int]:
  """Returns the bytes of all references' features, and of what the method's `memory` makes of them."""
  one = encoder.features_shape(clip, method.spec(clip, cfg)._replace(crops=0))
  is_shape = lambda x: isinstance(x, tuple) and not hasattr(x, '_fields')
  shaped = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct((categories, cfg.fewshot.shots, *shape), jnp.float32), one, is_leaf=is_shape)
  made = jax.eval_shape(lambda frozen, x: method.memory(frozen, x, clip=clip, cfg=cfg), clip.params, shaped)
  return _bytes(shaped), _bytes(made)


def distances(cfg, method, clip) -> tuple[int, int] | None:
  """Returns bytes of one image's distances to its references, of one patch and of all; None where none are taken."""
  if 'padim' in cfg or not (hasattr(method, 'memory') and cfg.fewshot.shots):
    return None
  one = encoder.features_shape(clip, method.spec(clip, cfg)._replace(crops=0))
  tokens = max([shape[0] for shape in (*one.taps.values(), *one.windows.values())], default=1)
  return 4 * cfg.fewshot.shots * tokens, 4 * cfg.fewshot.shots * tokens ** 2


def require(parts: Sequence[Part], max_gb: float, in_use: int | None = None):
  """Prints what `parts` come to, and raises ValueError where they and what is `in_use` exceed max_gb, unless that is 0.

  Args:
    parts: what will be allocated.
    max_gb: 1e9 bytes.
    in_use: bytes; by default the resident set of now.
  """
  in_use = runtime.rss_bytes() if in_use is None else in_use
  total = in_use + sum(part.bytes for part in parts)
  listed = ', '.join(f'{part.bytes / 1e9:.3g} GB {part.what}' for part in parts)
  print(f'memory: {total / 1e9:.3g} GB predicted: {in_use / 1e9:.3g} GB in use, {listed}', flush=True)
  if max_gb and total > max_gb * 1e9:
    most = max(parts, key=lambda part: part.bytes)
    raise ValueError(f'{total / 1e9:.4g} GB of memory are needed, more than max_memory_gb ({max_gb:g}). The largest '
                     f'part is {most.bytes / 1e9:.4g} GB of {most.what}: {most.remedy}; or raise '
                     f'--config.machine.max_memory_gb={math.ceil(total / 1e8) / 10:g}')


def _under_way(cfg, method, clip, rows, key):
  spec = method.spec(clip, cfg)
  image = encoder.predicted_bytes(clip, spec) + clip.image_size ** 2  # the mask is unpacked
  return Part('features under way', UNDER_WAY * rows * image, f'lower --config.{key}')


def _copies(place):
  return place.devices if jax.devices()[0].platform == 'cpu' else 1


def _bytes(tree):
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
