"""Predicted memory of a run, from shapes before anything is allocated, held to machine.max_memory_gb.

Counted are the arrays whose size follows from the config and the data set: features in flight, few-shot references and
memory banks, distances to them, and the maps that exact pixel metrics keep. The program, weights and whatever else is
loaded come in as the current resident set. Not counted are the towers' own activations, which do not grow with a data
set; machine.encode_batch and train.batch bound them.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.clip import encoder
from zsad_jax.engine import runtime
from zsad_jax.experiment.run import Run

IN_FLIGHT = 5  # batches: two read ahead, the one that waits for the reader, the one in use, and its copy on the device
# Bytes per pixel of the largest category, and those of the metrics' temporaries, as benchmarks/memory.py measured them:
# every score once and half again while they are merged; to postprocess a category, its maps and masks twice as well.
STREAMED, POSTPROCESSED, TEMPORARIES = 6, 22, 150_000_000
MIB = 2 ** 20


class Part(NamedTuple):
  """One consumer of memory: its name, its size in bytes, and how to make it smaller (the end of a sentence)."""
  name: str
  bytes: int
  remedy: str


def fitted(run: Run, dataset: Any) -> Run:
  """Returns the run of an evaluation, with machine.knn_mib lowered to what machine.max_memory_gb leaves.

  Prints the prediction.

  Raises:
    ValueError: it would not fit; nothing has been allocated.
  """
  keys, rows = run.cfg.machine, run.place.rows(run.cfg.machine.eval_batch)
  parts = evaluation(run, dataset)
  per_image = distances(run)
  if not per_image:
    require(parts, keys.max_memory_gb)
    return run
  least, most = rows * per_image[0], rows * min(keys.knn_mib * MIB, per_image[1])
  room = keys.max_memory_gb * 1e9 - runtime.rss_bytes() - sum(part.bytes for part in parts)
  granted = most if not keys.max_memory_gb else min(max(room, least), most)
  require([*parts, Part('distances to references', int(granted),
                        'lower --config.machine.eval_batch or --config.fewshot.shots')], keys.max_memory_gb)
  return run if granted == most else run.with_overrides({'machine.knn_mib': granted / rows / MIB})


def evaluation(run: Run, dataset: Any) -> list[Part]:
  """Returns what an evaluation holds in addition to the distances to references."""
  sizes = np.bincount(dataset.category_index, minlength=1)
  largest, category = int(sizes.max()), dataset.categories[int(sizes.argmax())]
  rows, pixels = run.place.rows(run.cfg.machine.eval_batch), run.clip.image_size ** 2
  pictures = len(dataset.categories) * run.cfg.report.pictures
  parts = [_in_flight(run, rows, 'machine.eval_batch')]
  if run.method.traits.maps:
    maps = maps_bytes(largest, run.clip.image_size, run.method.postprocess_category is not None)
    parts.append(Part(
      f'maps of {largest:,} images of {category} and {pictures} pictures', maps + 4 * pictures * pixels,
      'lower --config.image_size, at which metrics are computed, or leave that category out with '
      '--config.data.target_categories'))
  if run.shots:
    references, bank = references_bytes(run, len(dataset.categories))
    copies = run.place.devices if jax.devices()[0].platform == 'cpu' else 1  # on the host
    parts.append(Part(f'{run.shots} references of each category', 2 * references + copies * bank,
                      'lower --config.fewshot.shots or evaluate fewer --config.data.target_categories'))
    parts.append(Part('memory banks of the images of a batch', 2 * rows * bank // len(dataset.categories),
                      'lower --config.machine.eval_batch'))
  return parts


def maps_bytes(images: int, size: int, postprocessed: bool) -> int:
  """Returns the bytes that exact pixel metrics of a category of `images` need at `size` px, streamed or all at once."""
  kept = images * size ** 2 * (POSTPROCESSED if postprocessed else STREAMED)
  return kept + min(kept, TEMPORARIES)


def require_training(run: Run) -> None:
  """Prints what a training on stored features holds of them; raises ValueError if it would not fit."""
  if not run.trains_on_texts:
    require([_in_flight(run, run.place.rows(run.cfg.train.batch), 'train.batch')], run.cfg.machine.max_memory_gb)


def references_bytes(run: Run, categories: int) -> tuple[int, int]:
  """Returns the bytes of all references' features, and of the memory bank made of them."""
  one = encoder.features_shape(run.clip, run.spec._replace(crops=0))
  is_shape = lambda x: isinstance(x, tuple) and not hasattr(x, '_fields')
  shaped = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct((categories, run.shots, *shape), jnp.float32), one, is_leaf=is_shape)
  bank = jax.eval_shape(lambda params, x: run.method.build_memory_bank(params, x, clip=run.clip, cfg=run.cfg),
                        run.clip.params, shaped)
  return _bytes(shaped), _bytes(bank)


def distances(run: Run) -> tuple[int, int] | None:
  """Returns the bytes of one image's distances to its references, for one patch and for all; None without distances."""
  if not (run.method.traits.nearest_neighbours and run.shots):
    return None
  one = encoder.features_shape(run.clip, run.spec._replace(crops=0))
  tokens = max([shape[0] for shape in (*one.taps.values(), *one.windows.values())], default=1)
  return 4 * run.shots * tokens, 4 * run.shots * tokens ** 2


def require(parts: Sequence[Part], max_gb: float, in_use: int | None = None) -> None:
  """Prints the sum of `parts`; raises ValueError if it and the bytes `in_use` exceed max_gb.

  Args:
    parts: what will be allocated.
    max_gb: in 1e9 bytes; 0 sets no limit.
    in_use: bytes; by default the current resident set.
  """
  in_use = runtime.rss_bytes() if in_use is None else in_use
  total = in_use + sum(part.bytes for part in parts)
  listed = ', '.join(f'{part.bytes / 1e9:.3g} GB {part.name}' for part in parts)
  print(f'memory: {total / 1e9:.3g} GB predicted: {in_use / 1e9:.3g} GB in use, {listed}', flush=True)
  if max_gb and total > max_gb * 1e9:
    largest = max(parts, key=lambda part: part.bytes)
    raise ValueError(f'{total / 1e9:.4g} GB of memory are needed, more than machine.max_memory_gb={max_gb:g}. The '
                     f'largest part is {largest.bytes / 1e9:.4g} GB of {largest.name}: {largest.remedy}; or raise '
                     f'--config.machine.max_memory_gb={math.ceil(total / 1e8) / 10:g}')


def _in_flight(run: Run, rows: int, key: str) -> Part:
  image = encoder.predicted_bytes(run.clip, run.spec) + run.clip.image_size ** 2  # the mask is unpacked
  return Part('features in flight', IN_FLIGHT * rows * image, f'lower --config.{key}')


def _bytes(tree: Any) -> int:
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
