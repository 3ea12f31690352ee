"""Peak memory of an evaluation at full resolution, compared with the prediction of experiment/memory_budget.py.

  python benchmarks/memory.py [--images=2000] [--size=518] [--categories=10] [--postprocess]

Runs the real evaluation loop and its exact metrics on random maps: every tenth image has a defect of 64 x 64 px. No
image tower runs, so the peak is the memory that an evaluation needs in addition to it. --postprocess keeps a whole
category, as for methods whose scores depend on all of its images.
"""

import argparse
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1])]

from zsad_jax.clip.feature_spec import Features
from zsad_jax.engine import evaluate, runtime
from zsad_jax.experiment import memory_budget
from zsad_jax.methods import Prediction
from zsad_jax.report import headings

BATCH = 8


class RandomDataset:
  """The index of `count` images in `categories` categories of nearly equal size."""

  def __init__(self, count: int, categories: int):
    self.name, self.ids = 'random', [str(i) for i in range(count)]
    self.categories = tuple(f'category{c}' for c in range(categories))
    self.category_index = np.arange(count) * categories // count
    self.labels = (np.arange(count) % 10 == 0).astype(np.int32)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--images', type=int, default=2000)
  parser.add_argument('--size', type=int, default=518)
  parser.add_argument('--categories', type=int, default=10)
  parser.add_argument('--postprocess', action='store_true')
  args = parser.parse_args()
  dataset, size, place = RandomDataset(args.images, args.categories), args.size, runtime.place()

  def load(indices):
    mask = np.zeros((len(indices), size, size), np.uint8)
    label = dataset.labels[indices]
    mask[label == 1, :64, :64] = 1
    batch = {'category': dataset.category_index[indices].astype(np.int32), 'index': np.asarray(indices, np.int32),
             'label': label, 'mask': mask, 'has_mask': np.ones(len(indices), bool)}
    return Features(mask[:, ::16, ::16].astype(np.float32), {}), batch

  @jax.jit
  def predict(features, batch):
    draw = lambda index: jax.random.uniform(jax.random.fold_in(jax.random.key(0), index), (size, size))
    maps = jax.vmap(draw)(batch['index']) + features.cls.max((1, 2))[:, None, None] / 2
    return Prediction(maps.max((1, 2)), maps)

  rows = place.rows(BATCH)
  jax.block_until_ready(predict(*jax.device_put(load(np.arange(rows)), place.split)))
  before, largest = runtime.rss_bytes(), int(np.bincount(dataset.category_index).max())
  maps = memory_budget.maps_bytes(largest, size, args.postprocess)
  in_flight = memory_budget.IN_FLIGHT * rows * size ** 2
  start = time.perf_counter()
  result = evaluate.run(predict, load, dataset, batch=BATCH, place=place,
                        postprocess=(lambda prediction: prediction) if args.postprocess else None)
  seconds = time.perf_counter() - start
  print(f'{args.images:,} images of {size} px in {args.categories} categories, the largest with {largest:,}'
        f'{", postprocessed" if args.postprocess else ""}: {seconds:.0f} s')
  print(f'before {before / 1e9:.2f} GB; predicted {(before + maps + in_flight) / 1e9:.2f} GB, of which maps '
        f'{maps / 1e9:.2f} GB; measured peak {runtime.peak_rss_bytes() / 1e9:.2f} GB')
  print(', '.join(f'{headings.metric(name)} {mean["value"]:.4f}' for name, mean in result.summary.items()))


if __name__ == '__main__':
  main()
