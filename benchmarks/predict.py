r"""Measures how fast images are predicted, next to the encoder alone; peak memory; seconds to the first overlay.

  python benchmarks/predict.py [--images=200] [--long=2000] [--size=640x480] [--config=clip:demo]
  python benchmarks/predict.py --images=16 --long=0 --config=clip --clip=vit_b16_plus_240 --px=240

JPEG files are drawn first. Rates are of whole runs in this process with a loaded detector, the second of two. Memory is
the peak of a separate process for each number of images. The first overlay is timed from the start of the command, with
nothing trained, prepared or compiled, and again when all of that exists. With --clip weights are random, of that
architecture at --px; with --long=0 only the rates are measured.
"""

import argparse
import contextlib
import io
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import zsad_jax
from zsad_jax.engine import runtime
from zsad_jax.experiment import bench, config_files, setup
from zsad_jax.predict import detector, folder

FIXED = {'predict.threshold': '0.5', 'predict.pixel_threshold': '0.5'}  # needs no auxiliary data set
NOTHING = {'predict.maps': 'none', 'predict.masks': False, 'predict.overlays': False}


def draw(folder, count, size):
  """Writes `count` JPEG files of smooth colours with some noise, about as large as those of photographs."""
  rng = np.random.default_rng(0)
  folder.mkdir(parents=True)
  for i in range(count):
    coarse = Image.fromarray(rng.integers(0, 255, (12, 16, 3)).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse, np.int16) + rng.integers(-12, 12, (size[1], size[0], 1))
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f'{i:05d}.jpg', quality=90)
  return folder


def seconds(function):
  """Returns the seconds of the second of two calls."""
  for _ in range(2):
    start = time.perf_counter()
    function()
  return time.perf_counter() - start


def rates(args, photos, work):
  """Prints images/s of the encoder, of scores alone, and of the command with and without files."""
  count, sized = args.images, {'clip': args.clip, 'image_size': args.px} if args.clip else {}
  with mock.patch.object(setup, 'load_clip', bench.random_clip if args.clip else setup.load_clip):
    loaded = zsad_jax.load(args.config, work, FIXED | sized)
  run, batch = loaded.run, loaded.cfg.predict.batch
  encode, side = run.encoder(run.spec._replace(crops=0))
  images = np.zeros((batch, side, side, 3), np.float32)

  def encode_all():
    for _ in range(count // batch):
      jax.block_until_ready(encode(run.clip.params, images))

  files = sorted(photos.iterdir())[:count]
  numbers = iter(range(99))

  def command(changes):
    loaded.run = run.with_overrides(changes)
    with contextlib.redirect_stdout(io.StringIO()), mock.patch.object(detector, 'load', lambda *_: loaded):
      folder.run(loaded.cfg, work, photos, work / f'out{next(numbers)}')

  alone = count / seconds(encode_all)
  print(f'encoder alone, batch {batch}: {alone:.3g} images/s')
  for name, call in (('scores and maps, in Python', lambda: sum(1 for _ in loaded.stream(files))),
                     ('the command, tables and page only', lambda: command(NOTHING)),
                     ('the command with maps, masks and overlays', lambda: command({}))):
    rate = count / seconds(call)
    print(f'{name}: {rate:.3g} images/s, {rate / alone:.2f} of the encoder', flush=True)


def child(args):
  """Predicts and prints the peak memory of this process."""
  cfg = setup.with_overrides(config_files.load(args.config), FIXED)
  with tempfile.TemporaryDirectory() as folder:
    folder.run(cfg, args.work, args.child, folder)
  print(f'peak {runtime.peak_rss_bytes() / 2**20:.0f}')


def memory(args, photos, count, work):
  """Returns the peak MiB of a process that predicts the first `count` photos."""
  process = subprocess.run([sys.executable, __file__, f'--config={args.config}', f'--work={work}',
                            f'--child={first(photos, count, work / f"photos{count}")}'],
                           capture_output=True, text=True, check=True)
  return process.stdout.split()[-1]


def first(photos, count, folder):
  """Links the first `count` photos into a new folder and returns it."""
  folder.mkdir()
  for file in sorted(photos.iterdir())[:count]:
    (folder / file.name).hardlink_to(file)
  return folder


def first_overlay(photos, folder, root, out):
  """Returns the seconds from starting the demo of AnomalyCLIP to its first overlay, and to its end."""
  start = time.perf_counter()
  process = subprocess.Popen(
    [sys.executable, str(ROOT / 'launch.py'), '--mode=predict', '--config=configs/anomalyclip.py:demo',
     f'--config.machine.data_dir={root}', f'--workdir={folder}', f'--path={photos}', f'--out={out}'],
    cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  while not any(out.glob('overlays/*.png')):
    if process.poll() is not None and not any(out.glob('overlays/*.png')):
      raise RuntimeError('the command ended without an overlay')
    time.sleep(0.05)
  overlay = time.perf_counter() - start
  process.wait()
  return overlay, time.perf_counter() - start


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--images', type=int, default=200)
  parser.add_argument('--long', type=int, default=2000, help='images of the run whose memory is compared')
  parser.add_argument('--size', default='640x480')
  parser.add_argument('--config', default='clip:demo', help='of a method without training')
  parser.add_argument('--clip', default='', help='architecture of random weights; those of --config by default')
  parser.add_argument('--px', type=int, default=240, help='image_size with --clip')
  parser.add_argument('--child', help=argparse.SUPPRESS)
  parser.add_argument('--work', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    child(args)
    return
  with tempfile.TemporaryDirectory() as folder:
    work = Path(folder)
    photos = draw(work / 'photos', max(args.long, args.images), tuple(map(int, args.size.split('x'))))
    few = draw(work / 'few', 8, tuple(map(int, args.size.split('x'))))
    print(f'{args.config}, JPEG files of {args.size}; {runtime.device_summary()}', flush=True)
    rates(args, first(photos, args.images, work / 'some'), work)
    if not args.long:
      return
    for count in (args.images, args.long):
      print(f'peak memory, {count} images: {memory(args, photos, count, work)} MiB', flush=True)
    for number, name in enumerate(('from scratch', 'trained and compiled')):
      overlay, end = first_overlay(few, work / 'runs' / 'demo', work / 'data', work / f'out-demo{number}')
      print(f'first overlay of 8, {name}: {overlay:.1f} s; all: {end:.1f} s', flush=True)


if __name__ == '__main__':
  main()
