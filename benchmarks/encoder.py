r"""Speed of the image tower with a V-V stream, compared with a plain matrix product and with PyTorch.

  python benchmarks/encoder.py [--arch=vit_b16_plus_240,vit_l14_336] [--size=240,518] [--batch=1] [--runs=5]

All contenders have the same random weights, the same images and all cores of this process. They take turns within one
run, so that other work on the machine slows all of them alike; medians are reported. The PyTorch tower is a
transcription of the released AnomalyCLIP encoder (tests/golden/record_clip.py), with its explicit softmax and with
torch's fused attention kernel. Its lines are left out if torch is not installed.

Arithmetic is counted, not measured; with N tokens, width D, patch P, embedding E, two FLOPs per multiply-add:
  every block           24 N D^2 + 4 N^2 D     projections 4, feed-forward 8; attention map and its product with v
  V-V, blocks 6 on       2 N D^2 + 4 N^2 D     output projection again; attention map of its own
  ends            6 (N-1) P^2 D + 2 N D E      patch embedding; projections of patches and class token
Norms, softmax and GELU are not counted: time spent on them shows as a lower rate. In the last block zsad_jax updates
CLIP's own stream for the class token only, because nothing reads its patches there: its rate is computed from
18 (N-1) D^2 + 4 N (N-1) D fewer FLOPs, while images/s compares the same result.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / 'tests')]

from golden import record_clip

from zsad_jax.clip import encoder
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import FeatureSpec, SideStream, Tap

MATMUL, FIRST_BLOCK = 4096, 6


def flops(arch: clip_lib.Arch, size: int, *, skip_last: bool = False) -> int:
  """Returns the FLOPs of one image through the tower with its V-V stream, by the formula above."""
  v = arch.vision
  n, d = (size // v.patch) ** 2 + 1, v.width
  blocks = v.layers * (24 * n * d * d + 4 * n * n * d)
  side = (v.layers - FIRST_BLOCK + 1) * (2 * n * d * d + 4 * n * n * d)
  skipped = skip_last * (18 * (n - 1) * d * d + 4 * n * (n - 1) * d)
  return blocks - skipped + side + 6 * (n - 1) * v.patch ** 2 * d + 2 * n * d * arch.embed_dim


def build(arch: clip_lib.Arch, size: int) -> tuple[clip_lib.Clip, dict[str, np.ndarray], record_clip.Dims]:
  """Returns a Clip with random weights and almost no text tower, its weights under OpenAI's names, and its shapes."""
  v = arch.vision
  dims = record_clip.Dims(v.image_size, v.patch, v.width, v.layers, v.heads, context=8, vocab=8, text_width=8,
                          text_layers=1, text_heads=1, embed=arch.embed_dim, activation=arch.activation)
  arrays = record_clip.weights(dims, np.random.default_rng(0))
  arch = dataclasses.replace(arch, text=clip_lib.Text(8, 8, 8, 1, 1))
  return clip_lib.from_state_dict(arch, arrays, image_size=size), arrays, dims


def zsad_jax_contender(clip: clip_lib.Clip, images: np.ndarray) -> tuple[Callable[[], list], float]:
  """Returns (a call of the compiled encoder, seconds of tracing and compiling)."""
  spec = FeatureSpec(clip.image_size, taps=(Tap('vv', clip.arch.vision.layers),),
                     sides=(SideStream('vv', 'vv', FIRST_BLOCK),))
  params, images = jax.device_put((clip.params, images))
  start = time.perf_counter()
  compiled = encoder.encode(clip, spec).lower(params, images).compile()
  seconds = time.perf_counter() - start
  return lambda: jax.block_until_ready(jax.tree.leaves(compiled(params, images))), seconds


def torch_contenders(arrays: Mapping[str, np.ndarray], dims: record_clip.Dims, images: np.ndarray, threads: int
                     ) -> dict[str, Callable[[], list]]:
  """Returns calls of PyTorch's towers by name; {} without torch."""
  try:
    import torch
  except ImportError:
    return {}
  torch.set_num_threads(threads)

  def run(official):
    with torch.inference_mode():
      _, _, surgical, cls = official.image(images, FIRST_BLOCK)
      return [cls.numpy(), official.read_patches(surgical[-1]).numpy()]

  forms = {name: record_clip.Official(arrays, dims, fused=fused)
           for name, fused in (('PyTorch, explicit softmax', False), ('PyTorch, fused attention', True))}
  return {name: lambda official=official: run(official) for name, official in forms.items()}


def take_turns(contenders: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, np.ndarray]:
  """Returns {name: [runs, 2] wall and CPU seconds}, after one call of each that does not count."""
  seconds = {name: [] for name in contenders}
  for turn in range(runs + 1):
    for name, function in contenders.items():
      wall, cpu = time.perf_counter(), time.process_time()
      function()
      if turn:
        seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
  return {name: np.array(times) for name, times in seconds.items()}


def measure(arch: clip_lib.Arch, size: int, batch: int, runs: int) -> None:
  """Prints the table of one architecture."""
  clip, arrays, dims = build(arch, size)
  images = np.random.default_rng(1).standard_normal((batch, size, size, 3), np.float32)
  threads = len(os.sched_getaffinity(0))
  encode, compile_seconds = zsad_jax_contender(clip, images)
  square = jnp.ones((MATMUL, MATMUL))
  product = jax.jit(jnp.dot)
  contenders = {'zsad_jax': encode} | torch_contenders(arrays, dims, images, threads)
  names = list(contenders)
  outputs = [function() for function in contenders.values()]
  contenders['plain matmul'] = lambda: product(square, square).block_until_ready()
  seconds = take_turns(contenders, runs)
  work = {name: batch * flops(arch, size, skip_last=name == 'zsad_jax') for name in names}
  work['plain matmul'] = 2 * MATMUL ** 3
  rate = {name: np.median(work[name] / times, axis=0) / 1e9 for name, times in seconds.items()}
  print(f'\n{arch.name} at {size} px, batch {batch}, V-V from block {FIRST_BLOCK}, float32, {threads} threads, '
        f'{flops(arch, size) / 1e9:.0f} GFLOP per image')
  print(f'{"":27}{"images/s":>10}{"GFLOP/s":>10}{"of matmul":>11}{"GFLOP/CPU-s":>13}{"of matmul":>11}')
  for name, times in seconds.items():
    images_per_second = f'{batch / np.median(times[:, 0]):.3f}' if name in names else ''
    share = rate[name] / rate['plain matmul']
    print(f'{name:27}{images_per_second:>10}{rate[name][0]:>10.1f}{share[0]:>11.2f}{rate[name][1]:>13.1f}'
          f'{share[1]:>11.2f}')
  print(f'trace and compile {compile_seconds:.1f} s')
  for name, output in zip(names[1:], outputs[1:]):
    difference = max(float(np.abs(a - b).max()) for a, b in zip(outputs[0], output))
    print(f'{name}: features differ by at most {difference:.1e}; zsad_jax is '
          f'{np.median(seconds[name][:, 0] / seconds["zsad_jax"][:, 0]):.2f}x as fast')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--arch', default='vit_b16_plus_240,vit_l14_336', help='comma-separated architectures')
  parser.add_argument('--size', default='240,518', help='image size of each, a multiple of its patch size')
  parser.add_argument('--batch', type=int, default=1, help='images per call')
  parser.add_argument('--runs', type=int, default=5, help='timed calls of each contender')
  args = parser.parse_args()
  names, sizes = args.arch.split(','), [int(size) for size in args.size.split(',')]
  if len(names) != len(sizes):
    parser.error(f'--arch has {len(names)} architectures, but --size has {len(sizes)} sizes')
  for name, size in zip(names, sizes):
    measure(clip_lib.find(name), size, args.batch, args.runs)


if __name__ == '__main__':
  main()
