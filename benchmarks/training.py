r"""Cost of AnomalyCLIP's training on stored features, compared with encoding the images, at the published size.

  python benchmarks/training.py [--images=8] [--batch=8] [--epochs=15] [--clip=vit_l14_336] [--size=518]

Weights are random, of the real shapes; the text tower and the losses run as in a real training. Costs per image do not
depend on the number of images, so those of a data set follow by multiplication.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from zsad_jax import methods
from zsad_jax.clip import encoder, tokenizer
from zsad_jax.clip import model as clip_lib
from zsad_jax.configs import anomalyclip
from zsad_jax.engine import optimizers, runtime, train
from zsad_jax.methods import Context


def median_seconds(function: Callable, runs: int) -> float:
  """Returns the median seconds of `runs` calls after one that compiles."""
  seconds = []
  for _ in range(runs + 1):
    start = time.perf_counter()
    jax.block_until_ready(function())
    seconds.append(time.perf_counter() - start)
  return float(np.median(seconds[1:]))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--images', type=int, default=8, help='images encoded for the timing')
  parser.add_argument('--batch', type=int, default=8, help='training batch')
  parser.add_argument('--epochs', type=int, default=15)
  parser.add_argument('--clip', default='vit_l14_336', choices=sorted(clip_lib.ARCHS))
  parser.add_argument('--size', type=int, default=518)
  parser.add_argument('--steps', type=int, default=5, help='training steps timed')
  args = parser.parse_args()

  init = jax.jit(lambda rng: clip_lib.init_params(args.clip, rng))
  params = jax.tree.map(np.asarray, init(jax.random.key(0, impl='rbg')))  # rbg compiles fast
  clip = clip_lib.build(args.clip, params, image_size=args.size, tokenizer=tokenizer.load(None))
  cfg = anomalyclip.get_config()
  last = clip.arch.vision.layers
  cfg.local_layers, cfg.dpam.first_block, cfg.image_size = (last,), min(6, last), args.size
  cfg = mlc.FrozenConfigDict(cfg)
  method = methods.get(cfg.method)
  encode = encoder.encode(clip, method.feature_spec(clip, cfg))
  clip_params = jax.device_put(clip.params)

  rng = np.random.default_rng(0)
  images = rng.standard_normal((args.images, args.size, args.size, 3), np.float32)
  jax.block_until_ready(encode(clip_params, images[:1]))
  start = time.perf_counter()
  parts = [jax.block_until_ready(encode(clip_params, images[i:i + 1])) for i in range(args.images)]
  per_image = (time.perf_counter() - start) / args.images

  stack = jax.tree.map(lambda *x: np.concatenate(x), *jax.device_get(parts))
  rows = np.resize(np.arange(args.images), args.batch)
  features = jax.device_put(jax.tree.map(lambda x: x[rows], stack))
  masks = np.zeros((args.batch, args.size, args.size), np.uint8)
  masks[::2, 100:150, 100:150] = 1
  batch = jax.device_put({'mask': masks, 'label': np.int32(np.arange(args.batch) % 2 == 0),
                          'category': np.zeros(args.batch, np.int32), 'valid': np.ones(args.batch, bool)})
  step = train.make_step(functools.partial(method.loss, clip=clip, cfg=cfg), tx := optimizers.make_tx(cfg.optim))
  state = train.initial(method.init(jax.random.key(1), clip, cfg), tx, 0)

  def once():
    nonlocal state
    state, metrics = step(state, Context(clip_params), features, batch)
    assert jnp.isfinite(metrics['loss'])
    return metrics

  train_image = median_seconds(once, args.steps) / args.batch
  cached, again = per_image + args.epochs * train_image, args.epochs * (per_image + train_image)
  print(f'{args.clip} at {args.size} px, batch {args.batch}, {runtime.device_summary()}')
  print(f'encoder, one image                       {per_image:9.3f} s   (mean of {args.images})')
  print(f'training step, one image                 {train_image:9.3f} s   (median of {args.steps} steps)')
  print(f'{args.epochs} epochs of training / one encoder pass {args.epochs * train_image / per_image:9.3f}')
  print(f'encode once and train, / one encoder pass {cached / per_image:8.3f}')
  print(f're-encoding each epoch / encoding once    {again / cached:8.2f}')
  print(f'peak resident memory                      {runtime.peak_rss_bytes() / 1e9:8.2f} GB')


if __name__ == '__main__':
  main()
