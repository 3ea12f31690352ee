r"""Speed of encoding WinCLIP's windows, compared with masked full sequences and with a loop in PyTorch.

  python benchmarks/winclip.py [--batch=4] [--runs=3] [--masked=12] [--looped=365]

ViT-B/16-plus-240 at 240 px, random weights of the real shapes, float32, all cores of this process for every contender.
An image has a class token, 196 windows of 2 x 2 patches and 169 of 3 x 3:
  zsad_jax          drops the other patches: 226 + 196 * 5 + 169 * 10 = 2896 tokens, in one jitted call
  masked, zsad_jax  a sequence of all 226 tokens per window, on the same blocks; no token attends to the other patches
  loop, PyTorch     drops the patches like zsad_jax; one forward pass of the whole batch per window
The contenders take turns; medians are reported, of wall time and of CPU time, which other work on the machine changes
less. For the two slow ones some of the windows are timed, spread over both sizes, and their time is scaled to all;
--masked and --looped say how many, and the table shows it.
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / 'tests'), str(Path(__file__).parent)]

from encoder import build, take_turns
from golden import record_clip, torch_winclip

from zsad_jax.clip import archs, block, encoder, vit
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import Features, FeatureSpec

SIZE, SIDES = 240, (2, 3)
WHOLE = FeatureSpec(SIZE, cls='ln_post_proj')


def spread_windows(count: int) -> tuple[list[np.ndarray], int]:
  """Returns (patches of `count` windows, evenly spread over both sizes, number of all windows)."""
  every = [window for side in SIDES for window in vit.window_table(SIZE // 16, side)]
  return [every[i] for i in np.linspace(0, len(every) - 1, count).round().astype(int)], len(every)


def windowed(clip: clip_lib.Clip, images: jax.Array) -> Callable[[], Features]:
  """Returns a call of the compiled encoder with windows."""
  encode = encoder.encode(clip, WHOLE._replace(windows=SIDES))
  compiled = encode.lower(clip.params, images).compile()
  return lambda: jax.block_until_ready(compiled(clip.params, images))


def masked(clip: clip_lib.Clip, images: jax.Array, windows: Sequence[np.ndarray]) -> Callable[[], jax.Array]:
  """Returns a call that gives [B, len(windows), E]: full sequences in which no token attends to patches outside."""
  arch = clip.arch
  v, tower = arch.vision, archs.vision_tower(arch, WHOLE)
  part = block.Block(v.width, v.heads, v.layers, arch.activation)
  visible = np.zeros((len(windows), (SIZE // v.patch) ** 2 + 1), bool)
  for row, window in zip(visible, windows):
    row[[0, *(window + 1)]] = True

  @jax.jit
  def encode(params, images, visible):
    bound = {'params': params['visual']}
    start = tower.apply(bound, images, method='embed')

    def step(row):
      def layer(x, weights):
        own = part.bind({'params': weights})
        q, k, v = own.qkv(x)
        mask = jnp.broadcast_to(row[None], (len(row), len(row)))
        return own.feed_forward(x + own.attention(x, q, k, v, mask=mask)), None

      x, _ = jax.lax.scan(layer, start, params['visual']['blocks'])
      return tower.apply(bound, x[:, 0], 'ln_post_proj', method='read')

    return jnp.moveaxis(jax.lax.map(step, visible), 0, 1)

  return lambda: jax.block_until_ready(encode(clip.params, images, jnp.asarray(visible)))


def looped(arrays: Mapping[str, np.ndarray], dims: record_clip.Dims, images: np.ndarray,
           windows: Sequence[np.ndarray], threads: int) -> Callable[[], np.ndarray] | None:
  """Returns a call that gives the same in PyTorch, with a forward pass per window; None without torch."""
  try:
    import torch
  except ImportError:
    return None
  torch.set_num_threads(threads)
  loop = torch_winclip.Official(arrays, dims, fused=True)

  def run():
    with torch.inference_mode():
      z = loop.tokens(images)
      subsets = (torch.index_select(z, 1, torch.tensor([0, *(window + 1)])) for window in windows)
      return torch.stack([loop.transform(tokens)[0] for tokens in subsets], 1).numpy()

  return run


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--batch', type=int, default=4, help='images per call')
  parser.add_argument('--runs', type=int, default=3, help='timed calls of each contender')
  parser.add_argument('--masked', type=int, default=12, help='windows timed as full sequences')
  parser.add_argument('--looped', type=int, default=365, help='windows timed in PyTorch')
  args = parser.parse_args()
  clip, arrays, dims = build(clip_lib.find('vit_b16_plus_240'), SIZE)
  images = jnp.asarray(np.random.default_rng(1).standard_normal((args.batch, SIZE, SIZE, 3), np.float32))
  threads = len(os.sched_getaffinity(0))

  few, total = spread_windows(args.masked)
  some, _ = spread_windows(args.looped)
  contenders = {'zsad_jax': windowed(clip, images), 'masked, zsad_jax': masked(clip, images, few)}
  shares = {'zsad_jax': 1, 'masked, zsad_jax': total / len(few)}
  loop = looped(arrays, dims, np.asarray(images), some, threads)
  if loop:
    contenders['loop, PyTorch'], shares['loop, PyTorch'] = loop, total / len(some)

  features = np.concatenate([contenders['zsad_jax']().windows[side] for side in SIDES], 1)
  spread = functools.partial(np.linspace, 0, total - 1)
  for name, count in (('masked, zsad_jax', len(few)), ('loop, PyTorch', len(some))):
    if name in contenders:
      difference = np.abs(features[:, spread(count).round().astype(int)] - np.asarray(contenders[name]())).max()
      print(f'{name}: features differ by at most {difference:.1e}')
  turns = take_turns(contenders, args.runs).items()
  seconds = {name: np.median(times, axis=0) * shares[name] for name, times in turns}  # wall, CPU
  timed = {'zsad_jax': total, 'masked, zsad_jax': len(few), 'loop, PyTorch': len(some)}
  print(f'\nvit_b16_plus_240 at {SIZE} px, batch {args.batch}, {total} windows per image, float32, {threads} threads, '
        f'{jax.devices()[0].device_kind}; load {os.getloadavg()[0]:.1f}, {time.strftime("%Y-%m-%d")}')
  print(f'{"":20}{"windows timed":>15}{"s/image":>10}{"images/s":>10}{"zsad_jax is":>16}'
        f'{"CPU-s/image":>13}{"of zsad_jax":>13}')
  for name, (wall, cpu) in seconds.items():
    speedup = '' if name == 'zsad_jax' else f'{wall / seconds["zsad_jax"][0]:.1f}x as fast'
    print(f'{name:20}{timed[name]:>15}{wall / args.batch:>10.2f}{args.batch / wall:>10.4f}{speedup:>16}'
          f'{cpu / args.batch:>13.2f}{cpu / seconds["zsad_jax"][1]:>13.1f}')


if __name__ == '__main__':
  main()
