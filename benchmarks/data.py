"""Speed and memory of preparing and reading images, compared with reading their files and decoding them with Pillow.

  python benchmarks/data.py [--images=400] [--long=12000] [--size=1024x768] [--kind=jpg] [--folder=DATASET]

Photographs of `size` are drawn and saved as `kind` in a temporary folder, half of them with a mask, or `--folder` is
read, in MVTec layout. Every reader sees the same images in the same order, with as many threads as there are cores
(the pipeline's own default for the last lines). Readers take turns, and the best of `--repeats` turns counts, since
other load only slows a reader down. Files come from the page cache. MiB/s refer to the images' files.

  prepare    all images to records on disk, training images and the index of the records included
  read       the bytes of the files
  decode     Pillow: the image to 8-bit RGB, its mask, if it has one, to grey
  transform  decode, and AnomalyCLIP's 518 px: bicubic resizing of the image, bilinear of the mask
  records    the prepared data set's records, image and mask decoded; compare with `decode`
  batches    the pipeline without a transform; compare with `decode`
  batches518 the pipeline as training and evaluation use it; compare with `transform`

Then batches are read epoch after epoch until `--long` images have passed, and every `--every` of them the memory of
this process is printed: what is resident and, if the C library tells, what of it is in use. The rest is code, and freed
memory that the C library keeps for the next arrays: it grows over the first thousands and then stays.
MALLOC_MMAP_THRESHOLD_=1048576 in the environment returns it at once, which takes time.

  python benchmarks/data.py --repeats=0 --size=200x200 --long=30000       shows the memory alone, sooner
"""

import argparse
import ctypes
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from absl import logging

from zsad_jax import data
from zsad_jax.clip import archs, preprocess
from zsad_jax.data import pipeline
from zsad_jax.data.layouts import mvtec

SIZE, BATCH = 518, 8
CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
COMPARED = {'records': 'decode', 'batches': 'decode', 'batches518': 'transform'}

Pair = tuple[Path, Path | None]  # image file, mask file


def draw(root: Path, count: int, size: tuple[int, int], kind: str) -> None:
  """Draws photographs with the detail of real ones, every other with a defect and its mask, in MVTec layout."""
  rng = np.random.default_rng(0)
  width, height = size
  for i in range(count):
    coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8))
    pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) * 0.8 + rng.normal(20, 6, (height, width, 1))
    name, mask = 'good', np.zeros((height, width), np.uint8)
    if i % 2:
      name, top, left = 'spot', *(int(rng.integers(0, n // 2)) for n in (height, width))
      mask[top:top + height // 8, left:left + width // 8] = 255
      pixels[mask > 0] = 255
      path = root / 'part' / 'ground_truth' / name / f'{i:05}_mask.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(mask).save(path)
    path = root / 'part' / 'test' / name / f'{i:05}.{kind}'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def run_threaded(function: Callable, items: Iterable) -> None:
  """Calls function(item) of all items on as many threads as there are cores."""
  with futures.ThreadPoolExecutor(CORES) as pool:
    for result in pool.map(function, items):
      del result


def no_transform(image: Image.Image) -> np.ndarray:
  """Returns an array at no cost."""
  del image
  return np.zeros((8, 8, 3), np.float32)


def decode(pair: Pair) -> tuple[Image.Image, Image.Image | None]:
  """Returns the RGB image and the grey mask, if any, of two files."""
  with Image.open(pair[0]) as image:
    image = image.convert('RGB')
  if pair[1] is None:
    return image, None
  with Image.open(pair[1]) as mask:
    return image, mask.convert('L')


def readers(dataset: data.Dataset, pairs: Sequence[Pair], transform: Callable) -> dict[str, Callable[[], None]]:
  """Returns {name: function that reads every image once}; `pairs` are in the order of the records."""

  def decode_and_transform(pair):
    image, mask = decode(pair)
    mask = np.zeros((SIZE, SIZE), np.uint8) if mask is None else pipeline.resize_mask(np.asarray(mask), SIZE)
    return transform(image), mask

  def read_batches(function, mask_size):
    for batch in data.batches(dataset, transform=function, mask_size=mask_size, batch_size=BATCH):
      del batch

  return {
    'read': lambda: run_threaded(lambda pair: pair[0].read_bytes(), pairs),
    'decode': lambda: run_threaded(decode, pairs),
    'transform': lambda: run_threaded(decode_and_transform, pairs),
    'records': lambda: run_threaded(dataset.__getitem__, range(len(dataset))),
    'batches': lambda: read_batches(no_transform, 8),
    'batches518': lambda: read_batches(transform, SIZE)}


def resident_mib() -> float:
  """Returns the resident memory of this process in MiB."""
  pages = int(Path('/proc/self/statm').read_text(encoding='utf-8').split()[1])
  return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


class Mallinfo(ctypes.Structure):
  """glibc's struct mallinfo2: the fifth number is memory mapped for large arrays, the eighth other memory in use."""
  _fields_ = [('numbers', ctypes.c_size_t * 10)]


def used_mib() -> float | None:
  """Returns what was allocated from the C library and not freed, in MiB; None if it does not tell."""
  mallinfo = getattr(ctypes.CDLL(None), 'mallinfo2', None)
  if mallinfo is None:
    return None
  mallinfo.restype = Mallinfo
  numbers = mallinfo().numbers
  return (numbers[4] + numbers[7]) / 2**20


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--images', type=int, default=400)
  parser.add_argument('--long', type=int, default=12000, help='images to read while memory is watched; 0 = none')
  parser.add_argument('--every', type=int, default=1000, help='images between two figures of memory')
  parser.add_argument('--size', default='1024x768')
  parser.add_argument('--kind', default='jpg', choices=('jpg', 'png'))
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--folder', type=Path, default=None, help='images in MVTec layout, instead of drawn ones')
  args = parser.parse_args()
  logging.set_verbosity(logging.ERROR)
  scratch = Path(tempfile.mkdtemp())
  try:
    raw = args.folder
    if raw is None:
      raw = scratch / 'raw'
      draw(raw, args.images, tuple(int(n) for n in args.size.split('x')), args.kind)
    measure(raw, scratch / 'data', args.repeats)
    if args.long:
      watch_memory(data.load(f'folder:{raw}', root=scratch / 'data'), args.long, args.every)
  finally:
    shutil.rmtree(scratch)


def measure(raw: Path, root: Path, repeats: int) -> None:
  """Prints the table of one folder of images."""
  start = time.perf_counter()
  dataset = data.load(f'folder:{raw}', root=root)
  seconds = {'prepare': time.perf_counter() - start}
  items = mvtec.scan(raw).items
  test = [item for item in items if item.split == 'test']
  mib, test_mib = (sum(item.image.stat().st_size for item in some) / 2**20 for some in (items, test))
  functions = readers(dataset, [(item.image, item.mask) for item in test], transform())
  for _ in range(repeats):
    for name, function in functions.items():
      start = time.perf_counter()
      function()
      seconds[name] = min(time.perf_counter() - start, seconds.get(name, np.inf))
  print(f'{len(test):,} images, {test_mib:,.0f} MiB, {CORES} cores\n{"":12}{"images/s":>10}{"MiB/s":>10}   of')
  for name, duration in seconds.items():
    count, size = (len(items), mib) if name == 'prepare' else (len(test), test_mib)
    other = COMPARED.get(name)
    share = f'   {100 * seconds[other] / duration:.0f} % of {other}' if other else ''
    print(f'{name:12}{count / duration:10.1f}{size / duration:10.1f}{share}', flush=True)


def transform() -> Callable:
  """Returns AnomalyCLIP's transform of an image."""
  return preprocess.image_transform(archs.ARCHS['vit_l14_336'], SIZE)


def watch_memory(dataset: data.Dataset, images: int, every: int) -> None:
  """Prints the memory of this process while `images` images are read in shuffled epochs."""
  print(f'{"images":>10}{"resident MiB":>14}{"in use MiB":>12}')
  print_memory(0)
  done = 0
  for batch in data.batches(dataset, transform=transform(), mask_size=SIZE, batch_size=BATCH, seed=0,
                            epochs=-(-images // len(dataset))):
    before, done = done, done + int(batch['valid'].sum())
    if done // every > before // every:
      print_memory(done)


def print_memory(done: int) -> None:
  """Prints a line of `watch_memory`."""
  used = used_mib()
  print(f'{done:10}{resident_mib():14.1f}' + ('' if used is None else f'{used:12.1f}'), flush=True)


if __name__ == '__main__':
  main()
