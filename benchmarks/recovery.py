"""kill -9 at random moments of a small run, resumed to its end: is the result that of a run that nothing interrupted?

  python benchmarks/recovery.py [--kills=50] [--seed=0] [--phases=store,fit] [--folder=DIR]

A run stores features, fits AnomalyCLIP on the tiny CLIP, evaluates it, reports, and predicts a folder of pictures.
The kills take turns at these phases, each at a random moment of its phase. Compared byte by byte are the metrics, the
tables of categories and scores, the predictions, and every array of the last checkpoint: parameters, optimizer, key
and step.
"""

import argparse
import functools
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

PHASES = ('store', 'fit', 'evaluate', 'report', 'predict')
COMPARED = ('metrics.json', 'per_category.csv', 'scores.csv', 'predictions.csv')


def draw(root, categories):
  """A folder in MVTec layout: noise, with a white square where it is damaged."""
  rng = np.random.default_rng(len(categories))
  for category in categories:
    for kind in ('good', 'spot'):
      for i in range(4):
        pixels, mask = rng.integers(40, 120, (64, 64, 3)).astype(np.uint8), np.zeros((64, 64), np.uint8)
        if kind == 'spot':
          pixels[8:24, 10:30] = mask[8:24, 10:30] = 255
          truth = root / category / 'ground_truth' / kind / f'{i}_mask.png'
          truth.parent.mkdir(parents=True, exist_ok=True)
          Image.fromarray(mask).save(truth)
        path = root / category / 'test' / kind / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def work(folder, sets, phase, mark):
  """The run, and then the prediction, as launch.py does them; tells through `mark` when each phase began."""
  from absl import flags

  from zsad_jax import cli as launch
  from zsad_jax.engine import evaluate, features, train
  from zsad_jax.experiment import results
  from zsad_jax.predict import folder

  for number, (module, name) in enumerate((
      (features, 'fill'), (train, 'fit'), (evaluate, 'run'), (results, 'write'), (folder, 'run'))):
    setattr(module, name, _marked(getattr(module, name), number, phase, mark))
  os.dup2(os.open(folder / 'log.txt', os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
  os.dup2(1, 2)
  words = ['launch.py', f'--config={ROOT}/configs/anomalyclip.py:demo', f'--workdir={folder / "work"}',
           f'--path={sets / "target"}', f'--config.machine.data_dir={folder / "data"}',
           f'--config.data.aux=folder:{sets / "aux"}', f'--config.data.target=folder:{sets / "target"}',
           '--config.image_size=56', '--config.train.epochs=4', '--config.train.batch=4', '--config.machine.encode_batch=2',
           '--config.machine.eval_batch=2', '--config.report.pictures=2']
  sys.argv = words  # where config flags look for the keys
  flags.FLAGS(words)
  for mode in ('run', 'predict'):
    flags.FLAGS.mode = mode
    launch.main(['launch.py'])


def _marked(function, number, phase, mark):
  @functools.wraps(function)
  def run(*args, **options):
    phase.value = max(phase.value, number)  # fitting reads the store, and predicting loads what was fitted
    mark[number] = mark[number] or time.time()
    return function(*args, **options)

  return run


def start(context, folder, sets):
  """(process, the phase it is in, when each phase began)."""
  folder.mkdir(parents=True, exist_ok=True)
  phase, mark = context.Value('i', -1), context.Array('d', len(PHASES))
  process = context.Process(target=work, args=(folder, sets, phase, mark))
  process.start()
  return process, phase, mark


def finish(context, folder, sets):
  """Runs to the end; returns the seconds that each phase took."""
  process, _, mark = start(context, folder, sets)
  process.join()
  if process.exitcode:
    raise RuntimeError(f'exit code {process.exitcode}:\n{(folder / "log.txt").read_text()[-3000:]}')
  ends = [*list(mark)[1:], time.time()]
  return [end - begin for begin, end in zip(mark, ends)]


def found(folder):
  """{what: digest} of all that is compared."""
  digests = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
             for path in sorted((folder / 'work').rglob('*')) if path.name in COMPARED}
  steps = folder / 'work' / 'checkpoints'
  digests['steps'] = sorted(path.name for path in steps.glob('*.manifest'))
  digests['arrays'] = _arrays(steps)
  left = [path for path in folder.rglob('*') if path.name.endswith('.tmp') or path.name == 'evaluating']
  return digests | {'left behind': [str(path.relative_to(folder)) for path in left]}


def _arrays(directory):
  """Digest of every array of the newest checkpoint, as orbax has it."""
  import jax
  from orbax.checkpoint import v1 as ocp

  newest = max(int(path.stem) for path in directory.glob('*.manifest'))
  state = ocp.load_checkpointables(directory.absolute() / str(newest))['state']
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    array = np.asarray(jax.random.key_data(leaf) if key else leaf)
    digest.update(f'{jax.tree_util.keystr(path)} {array.dtype} {array.shape}'.encode() + array.tobytes())
  return digest.hexdigest()


def trial(context, folder, sets, whole, chosen, after):
  """Kills a run `after` seconds into a phase and resumes it; returns the phase it died in, None if it was too late."""
  # Compiled programs are the machine's, not the run's; features there beforehand leave the time for later phases.
  shutil.copytree(whole / 'data', folder / 'data', ignore=None if chosen else shutil.ignore_patterns('features'))
  shutil.copytree(whole / '.compiled', folder / '.compiled')
  process, phase, _ = start(context, folder, sets)
  while phase.value < chosen and process.is_alive():
    time.sleep(.001)
  time.sleep(after)
  died = phase.value
  process.kill()
  process.join()
  if process.exitcode != -signal.SIGKILL:
    return None
  finish(context, folder, sets)
  return died


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--kills', type=int, default=50)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--phases', default=','.join(PHASES), help='those to kill in')
  parser.add_argument('--folder', help='where the runs go; by default a temporary folder')
  args = parser.parse_args()
  phases = [PHASES.index(name) for name in args.phases.split(',')]
  context, rng = multiprocessing.get_context('forkserver'), random.Random(args.seed)
  context.set_forkserver_preload(['launch'])  # imported once; the backend starts anew in every process
  with tempfile.TemporaryDirectory(dir=args.folder) as folder:
    folder = Path(folder)
    draw(folder / 'sets' / 'aux', ('tile',))
    draw(folder / 'sets' / 'target', ('wood', 'nut'))
    finish(context, folder / 'first', folder / 'sets')  # compiles
    shutil.copytree(folder / 'first' / '.compiled', folder / 'whole' / '.compiled')
    seconds = finish(context, folder / 'whole', folder / 'sets')
    whole = found(folder / 'whole')
    print('an uninterrupted run: ' + ', '.join(f'{name} {s:.1f} s' for name, s in zip(PHASES, seconds)), flush=True)
    killed, same, late = dict.fromkeys(PHASES, 0), 0, 0
    while sum(killed.values()) < args.kills:
      chosen = phases[(sum(killed.values()) + late) % len(phases)]
      one = folder / 'one'
      died = trial(context, one, folder / 'sets', folder / 'whole', chosen, rng.uniform(0, seconds[chosen]))
      if died is None:
        late += 1
      else:
        killed[PHASES[died]] += 1
        again = found(one)
        same += again == whole
        differing = [name for name in whole.keys() | again.keys() if whole.get(name) != again.get(name)]
        print(f'kill {sum(killed.values())} in {PHASES[died]}: ' + ('identical' if not differing else
              f'DIFFERENT: {", ".join(sorted(differing))}'), flush=True)
      shutil.rmtree(one)
  print(f'{sum(killed.values())} kills ({", ".join(f"{name} {n}" for name, n in killed.items())}): {same} resumed to '
        'the identical result')
  sys.exit(same < sum(killed.values()))


if __name__ == '__main__':
  main()
