r"""Peak memory of an evaluation at full resolution, beside what zsad_jax/experiment/memory_budget.py predicts.

  python benchmarks/memory.py [--images=2000] [--size=518] [--categories=10] [--finish]

The real evaluation loop and its exact metrics on made-up maps: every tenth image has a defect of 64 x 64 px, and no
image tower runs, so that the figure is what an evaluation holds beside it. With --finish a category is finished at
once, as methods whose score needs all of its images do.
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

BATCH = 8


class Made:
  """A data set of `count` images in as many categories, nearly alike in size, of which only the index is kept."""

  def __init__(self, count, categories):
    self.name, self.ids = 'made', [str(i) for i in range(count)]
    self.categories = tuple(f'category{c}' for c in range(categories))
    self.category_index = np.arange(count) * categories // count
    self.labels = (np.arange(count) % 10 == 0).astype(np.int32)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--images', type=int, default=2000)
  parser.add_argument('--size', type=int, default=518)
  parser.add_argument('--categories', type=int, default=10)
  parser.add_argument('--finish', action='store_true')
  args = parser.parse_args()
  dataset, size, place = Made(args.images, args.categories), args.size, runtime.place()

  def load(indices):
    mask = np.zeros((len(indices), size, size), np.uint8)
    label = dataset.labels[indices]
    mask[label == 1, :64, :64] = 1
    known = {'category': dataset.category_index[indices].astype(np.int32), 'index': np.asarray(indices, np.int32),
             'label': label, 'mask': mask, 'has_mask': np.ones(len(indices), bool)}
    return Features(mask[:, ::16, ::16].astype(np.float32), {}), known

  @jax.jit
  def predict(features, batch):
    draw = lambda index: jax.random.uniform(jax.random.fold_in(jax.random.key(0), index), (size, size))
    maps = jax.vmap(draw)(batch['index']) + features.cls.max((1, 2))[:, None, None] / 2
    return {'score': maps.max((1, 2)), 'map': maps}

  jax.block_until_ready(predict(*jax.device_put(load(np.arange(place.rows(BATCH))), place.split)))
  before, largest = runtime.rss_bytes(), int(np.bincount(dataset.category_index).max())
  maps = memory_budget.maps_bytes(largest, size, args.finish)
  under_way = memory_budget.UNDER_WAY * place.rows(BATCH) * size ** 2
  start = time.perf_counter()
  result = evaluate.run(predict, load, dataset, batch=BATCH, place=place,
                        finish=(lambda outputs: outputs) if args.finish else None)
  seconds = time.perf_counter() - start
  print(f'{args.images} images of {size} px in {args.categories} categories, the largest of {largest}'
        f'{", finished at once" if args.finish else ""}: {seconds:.0f} s')
  print(f'before {before / 1e9:.2f} GB; predicted {(before + maps + under_way) / 1e9:.2f} GB, of which maps '
        f'{maps / 1e9:.2f}; measured peak {runtime.peak_rss_bytes() / 1e9:.2f} GB')
  print(', '.join(f'{name} {about["value"]:.4f}' for name, about in result.summary.items()))


if __name__ == '__main__':
  main()
