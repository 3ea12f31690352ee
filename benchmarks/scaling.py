r"""Weak scaling from one process to two on this machine, and how far apart their numbers are.

  python benchmarks/scaling.py [--images=64] [--batch=8] [--steps=20] [--size=112] [--clip=tiny]

Every process is pinned to a core of its own (os.sched_setaffinity, as `taskset -c` does), and so is the lone one, which
would otherwise use both. The work grows with the processes: each encodes as many images, and a batch has as many rows
for each. Efficiency is the time of one process over that of two; 1 is perfect. Scoring is without reading and metrics.
Images are noise: costs do not depend on what is seen.
"""

import argparse
import functools
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

PHASES = {'encode': 'images', 'fit': 'batch', 'score': 'batch'}  # and how many images a process takes each time


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--images', type=int, default=64, help='encoded by each process')
  parser.add_argument('--batch', type=int, default=8, help='rows of a batch for each process')
  parser.add_argument('--steps', type=int, default=20, help='steps of training and of scoring that are timed')
  parser.add_argument('--size', type=int, default=112, help='pixels a side')
  parser.add_argument('--clip', default='tiny', help='name or folder of the CLIP')
  parser.add_argument('--process', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.process:
    return work(args, *map(int, args.process.split(',')))
  cores = sorted(os.sched_getaffinity(0))
  if len(cores) < 2:
    sys.exit('this needs two cores')
  one, two = (launch(count, cores) for count in (1, 2))
  print(f'{args.clip} at {args.size} px, a core a process; ms an image with one, with two, efficiency, images/s of two')
  for phase, unit in PHASES.items():
    own, slow, fast = getattr(args, unit), one[phase], two[phase]
    print(f'{phase:9} {1e3 * slow / own:8.2f} {1e3 * fast / own / 2:8.2f} {slow / fast:6.2f} {2 * own / fast:9.1f}')
  print('largest difference on the same images, one process and two:')
  for name in ('features', 'learned', 'scores'):
    print(f'{name:9} {max(abs(a - b) for a, b in zip(one[name], two[name], strict=True)):.2e}')
  return None


def launch(count, cores):
  """What the first of `count` processes says of its work."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  processes = [subprocess.Popen([sys.executable, *sys.argv, f'--process={i},{count},{cores[i]},{port}'],
                                stdout=subprocess.PIPE, text=True) for i in range(count)]
  said = [process.communicate()[0] for process in processes]
  if any(process.returncode for process in processes):
    sys.exit(f'a process of {count} failed')
  return json.loads(said[0].splitlines()[-1])


def work(args, number, count, core, port):
  """Encodes, trains and evaluates as process `number` of `count` on one core; the first prints seconds and numbers."""
  os.sched_setaffinity(0, {core})
  import jax
  import ml_collections as mlc
  import numpy as np

  from zsad_jax import methods
  from zsad_jax.clip import encoder
  from zsad_jax.clip import model as clip_lib
  from zsad_jax.configs import anomalyclip
  from zsad_jax.engine import evaluate, features, runtime, train

  runtime.initialize(count > 1, coordinator_address=f'localhost:{port}', num_processes=count, process_id=number)
  cfg = anomalyclip.get_config('demo')
  cfg.clip, cfg.image_size = args.clip, args.size
  cfg = mlc.FrozenConfigDict(cfg)
  method, clip, place = methods.get(cfg.method), clip_lib.load(args.clip, image_size=args.size), runtime.place()
  encode, tx = encoder.encode(clip, method.spec(clip, cfg)), train.make_tx(cfg.optim)
  step = train.make_step(functools.partial(method.loss, clip=clip, cfg=cfg), tx, place.copy)
  predict = evaluate.make_predict(method, clip, cfg, place=place)
  frozen = runtime.weights(clip.params, place)
  images = np.random.default_rng(0).standard_normal((args.images, args.size, args.size, 3), np.float32)
  local = runtime.weights(clip.params, runtime.place(jax.local_devices()))

  def encoded():
    batches = ({'image': images[i:i + 4]} for i in range(0, args.images, 4))
    return jax.tree.map(lambda *x: np.concatenate(x), *(found for found, _ in features.encode_batches(
      batches, encode, local)))

  def batch(rows):
    """(features, batch) on the devices: this process's share of `rows` images, the first half of them anomalous."""
    own = np.arange(rows)[runtime.share(rows)]
    masks = np.zeros((len(own), args.size, args.size), np.uint8)
    masks[own < rows // 2, 20:40, 20:40] = 1
    known = {'mask': masks, 'label': np.int32(own < rows // 2), 'category': np.zeros(len(own), np.int32),
             'valid': np.ones(len(own), bool)}
    return runtime.globalize((jax.tree.map(lambda x: x[own % args.images], stored), known), place.split)

  def train_on(data):
    state = jax.jit(functools.partial(train.initial, tx=tx, seed=0), out_shardings=place.copy)(
      jax.device_get(method.init(jax.random.key(1), clip, cfg)))
    for _ in range(args.steps):
      state, metrics = step(state, frozen, *data)
    return jax.block_until_ready((state.learnable, metrics))[0]

  def score_on(data):
    values, known = data
    given = {'category': known['category'], 'index': known['category'], 'valid': known['valid']}
    for _ in range(args.steps):
      out = jax.device_get(predict(learned, frozen, bank, None, values, given))
    return out

  def seconds(function, *given):
    """Of a second call, which compiles nothing, by a clock that all processes start together."""
    function(*given)
    runtime.barrier('start')
    start = time.perf_counter()
    function(*given)
    runtime.barrier('end')
    return time.perf_counter() - start

  said = {'encode': seconds(encoded)}
  stored = encoded()
  grown, same = batch(args.batch * count), batch(2 * args.batch)
  said['fit'] = seconds(train_on, grown) / args.steps
  learned = train_on(same)
  bank = jax.jit(functools.partial(method.bank, categories=('object',), clip=clip, cfg=cfg), out_shardings=place.copy)(
    learned, frozen)
  said['score'] = seconds(score_on, grown) / args.steps
  said |= {'features': np.asarray(stored.cls[:4], float).ravel().tolist(),
           'learned': np.concatenate([np.asarray(x, float).ravel() for x in jax.tree.leaves(learned)]).tolist(),
           'scores': np.asarray(score_on(same)['score'], float).tolist()}
  if number == 0:
    print(json.dumps(said))


if __name__ == '__main__':
  main()
