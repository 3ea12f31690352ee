"""Runs commands of the pages: launch.py and the scripts of benchmarks, in this process, with smaller numbers."""

import contextlib
import functools
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import grain  # noqa: F401 (defines flags, which flagsaver would take for the command's own and drop)
import pages
from absl import flags, logging
from absl.testing import flagsaver

from zsad_jax import cli as launch

SIZES = {518: 70, 240: 80}  # pixels a side: five patches
ROWS, EPOCHS = 1, 2  # of a table; of training where the CLIP is a stand-in
KEYS = {'sentences.pairs': 64, 'seeds': 2, 'bench.images': 2, 'bench.repeats': 1, 'report.pictures': 2, 'padim.dims': 50}
LEFT = {'run': 'results/**/metrics.json', 'evaluate': 'results/**/metrics.json', 'report': 'report.md',
        'predict': 'predictions/predictions.csv', 'bench': 'bench.json', 'export': 'export/export.json'}
SCRIPTS = {  # what makes them short; the last of two equal flags counts
  'data': '--images=8 --long=16 --every=8 --repeats=1 --size=64x48',
  'encoder': '--arch=vit_b16_plus_240 --size=80 --runs=1',
  'memory': '--images=16 --size=64 --categories=2',
  'metrics': '--maps=8 --size=48 --runs=1',
  'predict': '--images=4 --long=0',
  'recovery': '--kills=1 --phases=fit',
  'rwda': '--texts=8 --pairs=64 --runs=1',
  'scaling': '--images=2 --batch=2 --steps=1 --size=56',
  'sdp': '--images=4 --batch=2 --epochs=1 --runs=1 --size=80',
  'store': '--images=2 --repeats=1',
  'systems': '--seeds=1 --rows=clip,anomalyclip',
  'thresholds': '--methods=clip',
  'training': '--images=2 --batch=2 --epochs=1 --steps=1 --size=70',
  'winclip': '--runs=1 --masked=2 --looped=2',
}
SLOW = ('recovery', 'scaling')  # scripts that start process after process


def run(line: str, rows: int = ROWS) -> None:
  """Runs `python launch.py ...` or `python benchmarks/....py ...` in the current folder; raises where it fails.

  Args:
    line: as typed.
    rows: how many of a table are kept.
  """
  program, script, *words = shlex.split(line)
  assert program == 'python', line
  try:
    if script == 'launch.py':
      _launch([script, *words], rows)
    elif script.endswith('recovery.py'):  # whose processes import it anew
      subprocess.run([sys.executable, script, *words, *SCRIPTS['recovery'].split()], check=True)
    else:
      argv, verbosity = [script, *words, *SCRIPTS[Path(script).stem].split()], logging.get_verbosity()
      try:
        with mock.patch.object(sys, 'argv', argv), mock.patch.object(sys, 'path', [*sys.path]):
          runpy.run_path(script, run_name='__main__')
      finally:
        logging.set_verbosity(verbosity)
  except SystemExit as end:
    assert not end.code, f'{line}\nended with {end.code}'


def _launch(argv, rows):
  with parsed(argv) as rest:
    config, mode, workdir = launch.CONFIG.value, launch.MODE.value, Path(launch.WORKDIR.value or '.')
    if config is not None:
      _smaller(config, rows)
    with mock.patch('zsad_jax.engine.runtime.compilation_cache'):  # the tests have theirs
      launch.main(rest)
  left = 'table.md' if config is not None and 'table' in config else LEFT.get(mode)
  assert left is None or any(workdir.glob(left)), f'{" ".join(argv)} left no {workdir / left}'


@contextlib.contextmanager
def parsed(argv):
  """Gives launch.py's flags the values of a command, as it does itself, and yields the other words."""
  with flagsaver.flagsaver(), mock.patch.object(sys, 'argv', argv):  # config flags look for their keys there
    flags.FLAGS.set_gnu_getopt(True)
    try:
      rest = launch.parse(argv)
    finally:
      flags.FLAGS.set_gnu_getopt(False)
    yield rest


def _smaller(config, rows):
  if config.get('clip') != 'tiny':
    config.image_size = SIZES.get(config.image_size, config.image_size)
    if 'epochs' in config.get('train', {}):
      config.train.epochs = min(config.train.epochs, EPOCHS)
    config.report.pictures = 0  # the demos have some
  for key, most in KEYS.items():
    if pages.has(config, key) and functools.reduce(getattr, key.split('.'), config) > most:
      config.update_from_flattened_dict({key: most})
  if 'table' in config:
    with config.unlocked():
      for name in sorted(config.table.rows)[rows:]:
        del config.table.rows[name]
