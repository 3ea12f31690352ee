r"""Cost of SDP's second stream and of SDP+'s training, compared with a plain encoder pass, at the published size.

  python benchmarks/sdp.py [--images=16] [--batch=4] [--epochs=5] [--clip=vit_b16_plus_240] [--size=240]

Weights are random, of the real shapes. A plain encoder pass reads the class token and the last patches of CLIP's own
stream. Passes take turns, so that other work on the machine slows all of them alike, and medians are reported. Costs
per image do not depend on the number of images.
"""

import argparse
import functools
import sys
import time
from pathlib import Path

import jax
import ml_collections as mlc
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from zsad_jax import methods
from zsad_jax.clip import encoder
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import Features, FeatureSpec, Tap
from zsad_jax.configs import sdp, sdp_plus
from zsad_jax.engine import optimizers, runtime, train
from zsad_jax.methods import Context


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--images', type=int, default=16, help='images per timing')
  parser.add_argument('--batch', type=int, default=4, help='images encoded at once')
  parser.add_argument('--epochs', type=int, default=5)
  parser.add_argument('--runs', type=int, default=5, help='timings of each kind')
  parser.add_argument('--clip', default='vit_b16_plus_240',
                      choices=sorted(name for name, arch in clip_lib.ARCHS.items() if arch.vision.kind == 'vit'))
  parser.add_argument('--size', type=int, default=240)
  args = parser.parse_args()

  init = jax.jit(lambda rng: clip_lib.init_params(args.clip, rng))
  params = jax.tree.map(np.asarray, init(jax.random.key(0, impl='rbg')))  # rbg compiles fast
  clip = clip_lib.build(args.clip, params, image_size=args.size)
  last = clip.arch.vision.layers
  cfgs = {}
  for module in (sdp, sdp_plus):
    c = module.get_config('demo' if args.clip == 'tiny' else None)
    c.image_size = args.size
    if args.clip != 'tiny':
      c.layers = tuple(last * quarter // 4 for quarter in range(1, 5))
    cfgs[c.method] = mlc.FrozenConfigDict(c)
  plain = FeatureSpec(args.size, cls='ln_post_proj', taps=(Tap('clip', last),))
  specs = {'plain': plain} | {name: methods.get(name).feature_spec(clip, cfg) for name, cfg in cfgs.items()}

  images = np.random.default_rng(0).standard_normal((args.images, args.size, args.size, 3), np.float32)
  starts = range(0, args.images - args.batch + 1, args.batch)
  encoders = {name: encoder.encode(clip, spec) for name, spec in specs.items()}
  seconds = {name: [] for name in specs}
  for turn in range(args.runs + 1):
    for name, encode in encoders.items():
      start = time.perf_counter()
      for at in starts:
        out = jax.block_until_ready(encode(clip.params, images[at:at + args.batch]))
      if turn:  # the first compiles
        seconds[name].append((time.perf_counter() - start) / (len(starts) * args.batch))
  per_image = {name: float(np.median(values)) for name, values in seconds.items()}

  per_step, size = step_seconds(clip, cfgs['sdp_plus'], out, args)
  training = args.epochs * per_step / size
  print(f'{args.clip} at {args.size} px, batch {args.batch}, medians of {args.runs}; {runtime.device_summary()}')
  for name, title in (('plain', 'plain encoder pass, one image'), ('sdp', "SDP's, one image"),
                      ('sdp_plus', "SDP+'s, one image")):
    print(f'{title:44s} {per_image[name]:9.4f} s')
  print(f'{"training step of SDP+, one image":44s} {per_step / size:9.4f} s   (batch {size})')
  print(f'{"SDP / plain":44s} {per_image["sdp"] / per_image["plain"]:9.3f}     goal: at most 1.2')
  print(f'{f"(SDP+ pass + {args.epochs} epochs) / SDP+ pass":44s} '
        f'{1 + training / per_image["sdp_plus"]:9.3f}     goal: at most 1.3')


def step_seconds(clip: clip_lib.Clip, cfg: mlc.FrozenConfigDict, features: Features, args: argparse.Namespace
                 ) -> tuple[float, int]:
  """Returns (median seconds of a training step, images per step), on `features` repeated to a batch."""
  method, size = methods.get('sdp_plus'), cfg.train.batch
  features = jax.device_put(jax.tree.map(lambda x: np.asarray(x)[np.resize(np.arange(len(x)), size)], features))
  masks = np.zeros((size, args.size, args.size), np.uint8)
  masks[::2, 50:90, 50:90] = 1
  batch = jax.device_put({'mask': masks, 'label': np.int32(np.arange(size) % 2 == 0),
                          'category': np.zeros(size, np.int32), 'valid': np.ones(size, bool)})
  text = np.random.default_rng(1).standard_normal((1, 2, clip.arch.embed_dim), np.float32)
  context = Context(text_features=jax.device_put(text / np.linalg.norm(text, axis=-1, keepdims=True)))
  step = train.make_step(functools.partial(method.loss, clip=clip, cfg=cfg), tx := optimizers.make_tx(cfg.optim))
  state, seconds = train.initial(method.init(jax.random.key(1), clip, cfg), tx, 0), []
  for _ in range(args.runs + 1):
    start = time.perf_counter()
    state, metrics = jax.block_until_ready(step(state, context, features, batch))
    seconds.append(time.perf_counter() - start)
  if not np.isfinite(metrics['loss']):
    raise FloatingPointError(f'the loss is {metrics["loss"]}')
  return float(np.median(seconds[1:])), size


if __name__ == '__main__':
  main()
