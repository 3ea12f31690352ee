"""Kills a small run at random moments (kill -9), resumes it, and compares it with a run that nothing interrupted.

  python benchmarks/recovery.py [--kills=50] [--seed=0] [--phases=store,fit] [--folder=DIR]

A run stores features, trains AnomalyCLIP on the tiny CLIP, evaluates it, reports, and predicts a folder of images. The
kills take turns at these phases, each at a random moment of its phase. Compared byte by byte are the metrics, the
tables of categories and scores, the predictions, and every array of the last checkpoint: parameters, optimizer state,
random key and step.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

PHASES = ('store', 'fit', 'evaluate', 'report', 'predict')
COMPARED = ('metrics.json', 'per_category.csv', 'scores.csv', 'predictions.csv')


def draw(root: Path, categories: tuple[str, ...]) -> None:
  """Draws a folder in MVTec layout: noise, with a white square as defect."""
  rng = np.random.default_rng(len(categories))
  for category in categories:
    for kind in ('good', 'spot'):
      for i in range(4):
        pixels, mask = rng.integers(40, 120, (64, 64, 3)).astype(np.uint8), np.zeros((64, 64), np.uint8)
        if kind == 'spot':
          pixels[8:24, 10:30] = mask[8:24, 10:30] = 255
          mask_path = root / category / 'ground_truth' / kind / f'{i}_mask.png'
          mask_path.parent.mkdir(parents=True, exist_ok=True)
          Image.fromarray(mask).save(mask_path)
        path = root / category / 'test' / kind / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def work(folder: Path, sets: Path, phase: Any, starts: Any) -> None:
  """Runs an experiment and then a prediction like launch.py; `phase` and `starts`, shared, tell what began and when."""
  from absl import flags

  from zsad_jax import cli as launch
  from zsad_jax.engine import evaluate, features, train
  from zsad_jax.experiment import results
  from zsad_jax.predict import folder as folder_lib

  for number, (module, name) in enumerate((
      (features, 'fill'), (train, 'fit'), (evaluate, 'run'), (results, 'write'), (folder_lib, 'run'))):
    setattr(module, name, _recording(getattr(module, name), number, phase, starts))
  os.dup2(os.open(folder / 'log.txt', os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
  os.dup2(1, 2)
  words = ['launch.py', f'--config={ROOT}/configs/anomalyclip.py:demo', f'--workdir={folder / "work"}',
           f'--path={sets / "target"}', f'--config.machine.data_dir={folder / "data"}',
           f'--config.data.aux=folder:{sets / "aux"}', f'--config.data.target=folder:{sets / "target"}',
           '--config.image_size=56', '--config.train.epochs=4', '--config.train.batch=4',
           '--config.machine.encode_batch=2', '--config.machine.eval_batch=2', '--config.report.pictures=2']
  sys.argv = words  # where config flags look for the keys
  flags.FLAGS(words)
  for mode in ('run', 'predict'):
    flags.FLAGS.mode = mode
    launch.main(['launch.py'])


def _recording(function: Callable, number: int, phase: Any, starts: Any) -> Callable:
  """Returns `function`, which records that phase `number` began."""
  @functools.wraps(function)
  def run(*args, **options):
    phase.value = max(phase.value, number)  # later phases call functions of earlier ones again
    starts[number] = starts[number] or time.time()
    return function(*args, **options)

  return run


def start(context: Any, folder: Path, sets: Path) -> tuple[Any, Any, Any]:
  """Returns (process of a run, its current phase, when each phase began)."""
  folder.mkdir(parents=True, exist_ok=True)
  phase, starts = context.Value('i', -1), context.Array('d', len(PHASES))
  process = context.Process(target=work, args=(folder, sets, phase, starts))
  process.start()
  return process, phase, starts


def finish(context: Any, folder: Path, sets: Path) -> list[float]:
  """Runs, or resumes, to the end; returns the seconds of each phase."""
  process, _, starts = start(context, folder, sets)
  process.join()
  if process.exitcode:
    raise RuntimeError(f'exit code {process.exitcode}:\n{(folder / "log.txt").read_text()[-3000:]}')
  ends = [*list(starts)[1:], time.time()]
  return [end - begin for begin, end in zip(starts, ends)]


def results_of(folder: Path) -> dict[str, Any]:
  """Returns digests of everything that is compared, and the files that should not be there."""
  digests = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
             for path in sorted((folder / 'work').rglob('*')) if path.name in COMPARED}
  steps = folder / 'work' / 'checkpoints'
  digests['steps'] = sorted(path.name for path in steps.glob('*.manifest'))
  digests['arrays'] = _arrays(steps)
  temporary = [path for path in folder.rglob('*') if path.name.endswith('.tmp') or path.name == 'evaluating']
  return digests | {'temporary files': [str(path.relative_to(folder)) for path in temporary]}


def _arrays(directory: Path) -> str:
  """Digest of all arrays of the newest checkpoint, as orbax reads them."""
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


def trial(context: Any, folder: Path, sets: Path, whole: Path, number: int, after: float) -> int | None:
  """Kills a run `after` seconds into phase `number` and resumes it; returns the phase of the kill, None if too late."""
  # Compiled programs belong to the machine, not to the run. Stored features save the time of the first phase.
  shutil.copytree(whole / 'data', folder / 'data', ignore=None if number else shutil.ignore_patterns('features'))
  shutil.copytree(whole / '.compiled', folder / '.compiled')
  process, phase, _ = start(context, folder, sets)
  while phase.value < number and process.is_alive():
    time.sleep(.001)
  time.sleep(after)
  killed_in = phase.value
  process.kill()
  process.join()
  if process.exitcode != -signal.SIGKILL:
    return None
  finish(context, folder, sets)
  return killed_in


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--kills', type=int, default=50)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--phases', default=','.join(PHASES), help='comma-separated phases to kill in')
  parser.add_argument('--folder', help='parent of the temporary folder of the runs')
  args = parser.parse_args()
  phases = [PHASES.index(name) for name in args.phases.split(',')]
  context, rng = multiprocessing.get_context('forkserver'), random.Random(args.seed)
  context.set_forkserver_preload(['launch'])  # imported once for all processes
  with tempfile.TemporaryDirectory(dir=args.folder) as folder:
    folder = Path(folder)
    draw(folder / 'sets' / 'aux', ('tile',))
    draw(folder / 'sets' / 'target', ('wood', 'nut'))
    finish(context, folder / 'first', folder / 'sets')  # compiles
    shutil.copytree(folder / 'first' / '.compiled', folder / 'whole' / '.compiled')
    seconds = finish(context, folder / 'whole', folder / 'sets')
    whole = results_of(folder / 'whole')
    print('an uninterrupted run: ' + ', '.join(f'{name} {s:.1f} s' for name, s in zip(PHASES, seconds)), flush=True)
    kills, same, late = dict.fromkeys(PHASES, 0), 0, 0
    while sum(kills.values()) < args.kills:
      number = phases[(sum(kills.values()) + late) % len(phases)]
      one = folder / 'one'
      phase = trial(context, one, folder / 'sets', folder / 'whole', number, rng.uniform(0, seconds[number]))
      if phase is None:
        late += 1
      else:
        kills[PHASES[phase]] += 1
        results = results_of(one)
        same += results == whole
        differences = sorted(name for name in whole.keys() | results.keys() if whole.get(name) != results.get(name))
        print(f'kill {sum(kills.values())} in {PHASES[phase]}: '
              f'{"DIFFERENT: " + ", ".join(differences) if differences else "identical"}', flush=True)
      shutil.rmtree(one)
  print(f'{sum(kills.values())} kills ({", ".join(f"{name} {n}" for name, n in kills.items())}): {same} resumed to '
        'identical results')
  sys.exit(same < sum(kills.values()))


if __name__ == '__main__':
  main()
