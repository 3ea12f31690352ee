"""Speed of the feature store and of checkpoints, at the size of ViT-L/14-336 at 518 px with one tap.

  python benchmarks/store.py [--images=64] [--repeats=5] [--folder=DIR]

Medians. Reads come from the page cache, as from the second epoch on if the store fits into memory.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from zsad_jax.clip.feature_spec import Features
from zsad_jax.engine import checkpoint, features, optimizers, train
from zsad_jax.engine.feature_store import Store

SIZE, PATCHES, EMBED = 518, 37 * 37, 768
SHAPES = Features(jax.ShapeDtypeStruct((1, EMBED), np.float32),
                  {'vv/24/block': jax.ShapeDtypeStruct((1, PATCHES, EMBED), np.float32)})
PARAMS = {'context': (2, 12, 768), 'deep': (8, 4, 768)}  # shapes of AnomalyCLIP's trainable parameters

Row = tuple[str, float, float]  # what is timed, seconds, 1e9 bytes


def median_seconds(function: Callable[[int], object], repeats: int) -> float:
  """Returns the median seconds of function(repeat)."""
  durations = []
  for repeat in range(repeats):
    start = time.perf_counter()
    function(repeat)
    durations.append(time.perf_counter() - start)
  return statistics.median(durations)


def store_rows(folder: Path, images: int, repeats: int, storage: str) -> Iterator[Row]:
  """Yields the table's rows of one storage dtype."""
  rng = np.random.default_rng(0)
  rows = {'cls': rng.normal(size=(images, EMBED)).astype(np.float32),
          'taps/vv/24/block': rng.normal(size=(images, PATCHES, EMBED)).astype(np.float32),
          'mask': rng.integers(0, 256, (images, SIZE, -(-SIZE // 8))).astype(np.uint8),
          'has_mask': np.ones(images, bool), 'label': np.zeros(images, np.int32),
          'category': np.zeros(images, np.int32)}
  ids, stores = [f'bottle/{i:03d}' for i in range(images)], []

  def open_store(repeat):
    return Store.open(folder, key={'repeat': repeat, 'storage': storage}, count=images, max_gb=100,
                      fields=features.fields(SHAPES, SIZE, storage))

  def write(repeat):
    store = open_store(repeat)
    for start in range(0, images, 8):
      part = slice(start, start + 8)
      store.write(range(start, min(start + 8, images)), {name: array[part] for name, array in rows.items()}, ids[part])
    stores.append(store)

  gb = open_store(0).predicted_bytes / 1e9
  yield f'write, {storage}', median_seconds(write, repeats), gb
  yield f'open and verify, {storage}', median_seconds(lambda repeat: open_store(repeat).verify(), repeats), gb
  store, batch = stores[0], min(8, images)
  store.verify()
  order = rng.permutation(images)
  yield (f'load a shuffled batch of {batch}, {storage}',
         median_seconds(lambda repeat: features.load(store, np.roll(order, -batch * repeat)[:batch]), 4 * repeats),
         gb * batch / images)


def checkpoint_rows(folder: Path, repeats: int) -> Iterator[Row]:
  """Yields the table's rows of saving and restoring AnomalyCLIP's parameters with their optimizer state."""
  params = {name: jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
            for name, shape in PARAMS.items()}
  state = train.initial(params, optimizers.make_tx({'lr': 1e-3, 'b1': .5, 'b2': .999}), 0)
  gb = 3 * sum(x.nbytes for x in jax.tree.leaves(params)) / 1e9
  save = lambda repeat: checkpoint.save(folder, repeat + 1, state, {})
  yield 'save a checkpoint', median_seconds(save, 4 * repeats), gb
  yield 'restore a checkpoint', median_seconds(lambda _: checkpoint.restore(folder, state), 4 * repeats), gb


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--images', type=int, default=64)
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--folder', type=Path, default=None, help='where to write; by default a temporary folder')
  args = parser.parse_args()
  folder = Path(tempfile.mkdtemp(dir=args.folder))
  try:
    print(f'{"":42}{"ms":>9}{"MB":>9}{"MB/s":>9}')
    for storage in features.STORAGE:
      for name, seconds, gb in store_rows(folder / 'features', args.images, args.repeats, storage):
        print(f'{name:42}{1e3 * seconds:9.1f}{1e3 * gb:9.1f}{1e3 * gb / seconds:9.0f}')
    for name, seconds, gb in checkpoint_rows(folder / 'checkpoints', args.repeats):
      print(f'{name:42}{1e3 * seconds:9.1f}{1e3 * gb:9.1f}{1e3 * gb / seconds:9.0f}')
  finally:
    shutil.rmtree(folder)


if __name__ == '__main__':
  main()
