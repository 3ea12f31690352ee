r"""Weak scaling from one process to two on one machine, and how much their results differ.

  python benchmarks/scaling.py [--images=64] [--batch=8] [--steps=20] [--size=112] [--clip=tiny]

Every process is pinned to a core of its own (os.sched_setaffinity, as `taskset -c` does), also the single one, which
would otherwise use both. The work grows with the processes: each encodes as many images, and has as many rows of every
batch. Efficiency is the time of one process divided by that of two; 1 is perfect. Scoring is measured without reading
and metrics. Images are noise: costs do not depend on their content.
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

PHASES = {'encode': 'images', 'fit': 'batch', 'score': 'batch'}  # with the flag of its images per process


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--images', type=int, default=64, help='encoded by each process')
  parser.add_argument('--batch', type=int, default=8, help='rows of a batch for each process')
  parser.add_argument('--steps', type=int, default=20, help='steps of training and of scoring that are timed')
  parser.add_argument('--size', type=int, default=112, help='pixels per side')
  parser.add_argument('--clip', default='tiny', help='name or folder of the CLIP')
  parser.add_argument('--process', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.process:
    work(args, *map(int, args.process.split(',')))
    return
  cores = sorted(os.sched_getaffinity(0))
  if len(cores) < 2:
    sys.exit('this benchmark needs two cores')
  one, two = (launch(count, cores) for count in (1, 2))
  print(f'{args.clip} at {args.size} px, one core per process; ms per image with one and with two processes, '
        'efficiency, images/s of two')
  for phase, unit in PHASES.items():
    own, slow, fast = getattr(args, unit), one[phase], two[phase]
    print(f'{phase:9} {1e3 * slow / own:8.2f} {1e3 * fast / own / 2:8.2f} {slow / fast:6.2f} {2 * own / fast:9.1f}')
  print('largest difference between one process and two on the same images:')
  for name in ('features', 'params', 'scores'):
    print(f'{name:9} {max(abs(a - b) for a, b in zip(one[name], two[name], strict=True)):.2e}')


def launch(count: int, cores: list[int]) -> dict:
  """Runs `count` processes and returns the seconds and numbers that the first prints."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  processes = [subprocess.Popen([sys.executable, *sys.argv, f'--process={i},{count},{cores[i]},{port}'],
                                stdout=subprocess.PIPE, text=True) for i in range(count)]
  outputs = [process.communicate()[0] for process in processes]
  if any(process.returncode for process in processes):
    sys.exit(f'one of {count} processes failed')
  return json.loads(outputs[0].splitlines()[-1])


def work(args: argparse.Namespace, number: int, count: int, core: int, port: int) -> None:
  """Encodes, trains and scores as process `number` of `count` on one core; the first prints seconds and numbers."""
  os.sched_setaffinity(0, {core})
  import jax
  import ml_collections as mlc
  import numpy as np

  from zsad_jax.configs import anomalyclip
  from zsad_jax.engine import features, optimizers, runtime, train
  from zsad_jax.experiment.run import Run
  from zsad_jax.methods import Context

  runtime.initialize(count > 1, coordinator_address=f'localhost:{port}', num_processes=count, process_id=number)
  cfg = anomalyclip.get_config('demo')
  cfg.clip, cfg.image_size = args.clip, args.size
  run = Run.load(mlc.FrozenConfigDict(cfg))
  place, (encode, _) = run.place, run.encoder(run.spec)
  tx, loss_fn = optimizers.make_tx(run.cfg.optim), functools.partial(run.method.loss, clip=run.clip, cfg=run.cfg)
  step = train.make_step(loss_fn, tx, place.copy)
  initial = jax.jit(functools.partial(train.initial, tx=tx, seed=0), out_shardings=place.copy)
  params_before = jax.device_get(run.method.init(jax.random.key(1), run.clip, run.cfg))
  context = Context(runtime.weights(run.clip.params, place))
  images = np.random.default_rng(0).standard_normal((args.images, args.size, args.size, 3), np.float32)
  local = runtime.weights(run.clip.params, run.local)

  def encode_all():
    batches = ({'image': images[i:i + 4]} for i in range(0, args.images, 4))
    parts = [values for values, _ in features.encode_batches(batches, encode, local, place=run.local)]
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)

  def batch(rows):
    """(features, batch) on the devices: this process's share of `rows` images, the first half of them anomalous."""
    own = np.arange(rows)[runtime.share(rows)]
    masks = np.zeros((len(own), args.size, args.size), np.uint8)
    masks[own < rows // 2, 20:40, 20:40] = 1
    labels = {'mask': masks, 'label': np.int32(own < rows // 2), 'category': np.zeros(len(own), np.int32),
              'valid': np.ones(len(own), bool)}
    return runtime.globalize((jax.tree.map(lambda x: x[own % args.images], stored), labels), place.split)

  def train_on(data):
    state = initial(params_before)
    for _ in range(args.steps):
      state, metrics = step(state, context, *data)
    return jax.block_until_ready((state.params, metrics))[0]

  def score_on(data):
    values, labels = data
    visible = {'category': labels['category'], 'index': labels['category'], 'valid': labels['valid']}
    for _ in range(args.steps):
      prediction = jax.device_get(predict(values, visible))
    return prediction

  def seconds(function, *inputs):
    """Seconds of a second call, which compiles nothing; all processes start together."""
    function(*inputs)
    runtime.barrier('start')
    start = time.perf_counter()
    function(*inputs)
    runtime.barrier('end')
    return time.perf_counter() - start

  report = {'encode': seconds(encode_all)}
  stored = encode_all()
  grown, same = batch(args.batch * count), batch(2 * args.batch)  # as much work per process; the same for any count
  report['fit'] = seconds(train_on, grown) / args.steps
  params = train_on(same)
  predict = run.predictor(('object',)).bind(params)
  report['score'] = seconds(score_on, grown) / args.steps
  report |= {'features': np.asarray(stored.cls[:4], float).ravel().tolist(),
             'params': np.concatenate([np.asarray(x, float).ravel() for x in jax.tree.leaves(params)]).tolist(),
             'scores': np.asarray(score_on(same).score, float).tolist()}
  if number == 0:
    print(json.dumps(report))


if __name__ == '__main__':
  main()
