"""Speed and memory of preparing and reading images, beside reading their files and decoding them with Pillow.

  python benchmarks/data.py [--images=400] [--long=12000] [--size=1024x768] [--kind=jpg] [--folder=DATASET]

Photographs of `size` are drawn and saved as `kind` in a temporary folder, half of them with a mask, or `--folder` is
read, in MVTec layout. Every reader sees the same images in the same order, with as many threads as there are cores
(the pipeline's own default for the last lines), in turns, and the best of `--repeats` turns counts, as whatever else
the machine does only slows a reader down. Files come from the page cache. MiB/s are of the images' files.

  prepare    everything to records on disk, training images and the index of the records included
  read       the bytes of the files
  decode     Pillow: the image to 8-bit RGB, its mask, where it has one, to grey
  transform  decode, and AnomalyCLIP's 518 px: bicubic resizing of the image, bilinear of the mask
  records    the prepared data set's records, image and mask decoded, to be held against `decode`
  batches    the pipeline without a transform, to be held against `decode`
  batches518 the pipeline as training and evaluation use it, to be held against `transform`

Then batches are read as a training reads them, epoch after epoch, until `--long` images have passed, and every
`--every` of them the memory of this process is printed: what is resident, and, where the C library tells, what of it is
in use. The rest is code, and freed memory that the C library keeps for the next arrays: it grows over the first
thousands and then stays. MALLOC_MMAP_THRESHOLD_=1048576 in the environment has it given back at once, which takes time.

  python benchmarks/data.py --repeats=0 --size=200x200 --long=30000       shows the memory alone, sooner
"""

import argparse
import ctypes
import os
import shutil
import sys
import tempfile
import time
from concurrent import futures
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

import grain  # noqa: F401, the pipeline imports it late and that takes seconds
from absl import flags, logging

from zsad_jax import data
from zsad_jax.clip import model, preprocess
from zsad_jax.data import folder, pipeline

SIZE, BATCH = 518, 8
CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def draw(root, count, size, kind):
  """Photographs with the detail of real ones, every other with a defect and its mask, in MVTec layout."""
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


def threaded(function, items):
  """Calls function(item) of all on as many threads as there are cores."""
  with futures.ThreadPoolExecutor(CORES) as pool:
    for done in pool.map(function, items):
      del done


def nothing(image):
  """A transform of a decoded image that takes no time."""
  del image
  return np.zeros((8, 8, 3), np.float32)


def decode(pair):
  """The RGB image and the grey mask, or None, of two files."""
  with Image.open(pair[0]) as image:
    image = image.convert('RGB')
  if pair[1] is None:
    return image, None
  with Image.open(pair[1]) as mask:
    return image, mask.convert('L')


def readers(dataset, found, transform):
  """{name: function that reads every image once}; `found` holds (image file, mask file or None) in record order."""

  def both(pair):
    image, mask = decode(pair)
    mask = np.zeros((SIZE, SIZE), np.uint8) if mask is None else pipeline.resize_mask(np.asarray(mask), SIZE)
    return transform(image), mask

  def batches(function, mask_size):
    for batch in data.batches(dataset, transform=function, mask_size=mask_size, batch_size=BATCH):
      del batch

  return {
    'read': lambda: threaded(lambda pair: pair[0].read_bytes(), found),
    'decode': lambda: threaded(decode, found),
    'transform': lambda: threaded(both, found),
    'records': lambda: threaded(dataset.__getitem__, range(len(dataset))),
    'batches': lambda: batches(nothing, 8),
    'batches518': lambda: batches(transform, SIZE)}


def rss():
  """Resident memory of this process in MiB."""
  pages = int(Path('/proc/self/statm').read_text(encoding='utf-8').split()[1])
  return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


class Mallinfo(ctypes.Structure):
  """glibc's struct mallinfo2: the fifth number is what was mapped for large arrays, the eighth all that is in use."""
  _fields_ = [('numbers', ctypes.c_size_t * 10)]


def in_use():
  """What was allocated from the C library and not freed, in MiB; None where it does not tell."""
  told = getattr(ctypes.CDLL(None), 'mallinfo2', None)
  if told is None:
    return None
  told.restype = Mallinfo
  numbers = told().numbers
  return (numbers[4] + numbers[7]) / 2**20


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--images', type=int, default=400)
  parser.add_argument('--long', type=int, default=12000, help='images to read while the memory is watched; 0 = none')
  parser.add_argument('--every', type=int, default=1000, help='images between two figures of memory')
  parser.add_argument('--size', default='1024x768')
  parser.add_argument('--kind', default='jpg', choices=('jpg', 'png'))
  parser.add_argument('--repeats', type=int, default=3)
  parser.add_argument('--folder', type=Path, default=None, help='images in MVTec layout, in place of drawn ones')
  args = parser.parse_args()
  flags.FLAGS.mark_as_parsed()  # grain reads absl flags
  logging.set_verbosity(logging.ERROR)
  scratch = Path(tempfile.mkdtemp())
  try:
    raw = args.folder
    if raw is None:
      raw = scratch / 'raw'
      draw(raw, args.images, tuple(int(n) for n in args.size.split('x')), args.kind)
    measure(raw, scratch / 'data', args.repeats)
    if args.long:
      watch(data.load(f'folder:{raw}', root=scratch / 'data'), args.long, args.every)
  finally:
    shutil.rmtree(scratch)


def measure(raw, root, repeats):
  """Prints the table of one folder of images."""
  items = [item for item in folder.walk(raw).items if item.split == 'test']
  start = time.perf_counter()
  dataset = data.load(f'folder:{raw}', root=root)
  everything = folder.walk(raw).items
  taken = {'prepare': time.perf_counter() - start}
  mib = sum(item.image.stat().st_size for item in items) / 2**20
  whole = sum(item.image.stat().st_size for item in everything) / 2**20
  functions = readers(dataset, [(item.image, item.mask) for item in items], transform())
  for _ in range(repeats):
    for name, function in functions.items():
      start = time.perf_counter()
      function()
      taken[name] = min(time.perf_counter() - start, taken.get(name, np.inf))
  print(f'{len(items)} images, {mib:.0f} MiB, {CORES} cores\n{"":12}{"images/s":>10}{"MiB/s":>10}   of')
  for name, seconds in taken.items():
    count, size = (len(everything), whole) if name == 'prepare' else (len(items), mib)
    against = {'records': 'decode', 'batches': 'decode', 'batches518': 'transform'}.get(name)
    share = f'   {100 * taken[against] / seconds:.0f} % of {against}' if against else ''
    print(f'{name:12}{count / seconds:10.1f}{size / seconds:10.1f}{share}', flush=True)


def transform():
  """AnomalyCLIP's transform of an image."""
  return preprocess.image_transform(model.ARCHS['vit_l14_336'], SIZE)


def watch(dataset, long, every):
  """Prints the memory of this process while `long` images are read in shuffled epochs."""
  print(f'{"images":>10}{"resident MiB":>14}{"in use MiB":>12}')
  report(0)
  batches = data.batches(dataset, transform=transform(), mask_size=SIZE, batch_size=BATCH, seed=0,
                         epochs=-(-long // len(dataset)))
  done = 0
  for batch in batches:
    before, done = done, done + int(batch['valid'].sum())
    if done // every > before // every:
      report(done)


def report(done):
  """Prints a line of `watch`."""
  used = in_use()
  print(f'{done:10}{rss():14.1f}' + ('' if used is None else f'{used:12.1f}'), flush=True)


if __name__ == '__main__':
  main()
