r"""Trains and evaluates zero-shot anomaly detectors and shows data sets; the only reader of command-line flags.

  python launch.py --config=configs/anomalyclip.py:demo --workdir=runs/demo
  python launch.py --config=configs/anomalyclip.py --workdir=runs/visa-to-mvtec --config.machine.data_dir=/data
  python launch.py --config=configs/anomalyclip.py --workdir=runs/visa-to-mvtec --mode=evaluate
  python launch.py --config=configs/anomalyclip.py:demo --workdir=runs/demo --mode=predict --path=PHOTOS
  python launch.py --config=configs/anomalyclip.py:demo --workdir=runs/demo --mode=bench
  python launch.py --config=configs/anomalyclip.py:demo --workdir=runs/demo --mode=export
  python launch.py --config=configs/tables/clip_ad_4_rvs.py:demo --workdir=runs/table4-demo
  python launch.py --mode=report --results runs/visa-to-mvtec runs/mvtec-to-visa
  python launch.py --mode=datasets list
  python launch.py --mode=datasets verify mvtec_ad visa --manual_dir=DOWNLOADS
  python launch.py --mode=datasets prepare mvtec_ad folder:MY_IMAGES --data_root=/data
"""

import contextlib
import logging as py_logging
import os
import re
import sys
import traceback
from pathlib import Path

import jax
import ml_collections as mlc
import tensorflow_datasets as tfds
from absl import app, flags, logging
from ml_collections import config_flags

from zsad_jax.configs import common
from zsad_jax.data import commands
from zsad_jax.engine import logs, runtime
from zsad_jax.experiment import aggregate, bench, experiment, sweep
from zsad_jax.predict import export, folder

CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'configs/METHOD.py[:variant]; set any key with --config.KEY=VALUE.', lock_config=True)
WORKDIR = flags.DEFINE_string('workdir', None, 'Checkpoints, logs, results and pictures of this run.')
MODE = flags.DEFINE_enum(
  'mode', 'run', ('run', 'fit', 'evaluate', 'predict', 'bench', 'export', 'report', 'datasets'),
  'run: fit, then evaluate. fit: train on data.aux. evaluate: the newest checkpoint of --workdir (or '
  'config.checkpoint) on data.target. predict: the pictures below --path, without labels, with what --workdir has '
  'learned (trained first where nothing has been). bench: how fast the config runs here. export: what --workdir has '
  'learned as a StableHLO program. report: all results below --results as tables. datasets: "list" the published '
  'data sets, "verify NAME..." their unpacked folders against what was published, or "prepare NAME..." them. Without '
  'names: data.aux and data.target of --config, or all that are unpacked.')
PATH = flags.DEFINE_string('path', None, 'predict: a folder of pictures, walked with all below it, or one file.')
OUT = flags.DEFINE_string('out', None, 'predict: where tables and pictures go; by default WORKDIR/predictions.')
RESULTS = flags.DEFINE_multi_string(
  'results', [], 'report: a folder with results below it, more may follow; by default --workdir, or runs. report.md '
  'and report.csv go to --workdir, or to the first folder.')
DATA_ROOT = flags.DEFINE_string('data_root', None, 'datasets: folder of prepared data sets, in place of machine.data_dir.')
MANUAL_DIR = flags.DEFINE_string('manual_dir', None, 'datasets: folder of unpacked ones, in place of machine.manual_dir.')
DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'Work as one of the processes of this run. SLURM, Open MPI, Kubernetes and Cloud TPU tell '
  'which; elsewhere --coordinator, --num_processes and --process_id do.')
COORDINATOR = flags.DEFINE_string('coordinator', None, 'distributed: HOST:PORT at which process 0 can be reached.')
NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'distributed: how many processes there are.', 1)
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'distributed: number of this one, from 0.', 0)
DECODE = flags.DEFINE_bool('decode', True, 'datasets verify: decode every image; --nodecode compares names and counts.')

TOGETHER = ('run', 'fit', 'evaluate', 'predict')  # modes that several processes can share
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: run the same command again


def main(argv):
  if DISTRIBUTED.value and MODE.value not in TOGETHER:
    raise app.UsageError(f'--mode={MODE.value} is the work of one process: leave out --distributed')
  if not DISTRIBUTED.value and (COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value) != (None, None, None):
    raise app.UsageError('--coordinator, --num_processes and --process_id go with --distributed')
  if MODE.value == 'datasets':
    sys.exit(datasets(argv[1:]))
  if MODE.value == 'report':
    sys.exit(report(argv[1:]))
  if len(argv) > 1:
    raise app.UsageError(f'unexpected argument {argv[1]!r}; options start with --, such as --config.seed=1')
  if CONFIG.value is None:
    raise app.UsageError('--config is missing; try --config=configs/anomalyclip.py:demo')
  cfg = mlc.FrozenConfigDict(CONFIG.value)
  if not WORKDIR.value:
    raise app.UsageError('--workdir is missing; name a folder for this run, such as --workdir=runs/demo')
  if MODE.value in ('predict', 'bench', 'export') and ('table' in cfg or 'method' not in cfg):
    raise app.UsageError(f'--mode={MODE.value} takes the config of one method, such as configs/anomalyclip.py:demo')
  if MODE.value == 'predict' and not PATH.value:
    raise app.UsageError('--path is missing; name the folder of your pictures, such as --path=PHOTOS')
  workdir = Path(WORKDIR.value)
  try:
    if DISTRIBUTED.value:
      _join()
    logs.probe(workdir)
    with logs.lock(workdir), runtime.preemption():
      runtime.compilation_cache(workdir.parent / '.compiled')
      if MODE.value == 'predict':
        folder.run(cfg, workdir, PATH.value, OUT.value)
      elif MODE.value in ('bench', 'export'):
        with runtime.stopping_at_once():
          (bench if MODE.value == 'bench' else export).run(cfg, workdir)
      else:
        failed = (sweep if 'table' in cfg else experiment).run(cfg, workdir, MODE.value)
      runtime.barrier('end')  # a process that ends takes the others along
      if 'table' in cfg and failed:
        sys.exit(f'error: {len(failed)} of the table\'s rows failed: {"; ".join(failed)}. The same command tries them '
                 'again, and only them.')
  except runtime.Preempted as stopped:
    print(f'{stopped}; the same command goes on from there', file=sys.stderr)
    sys.exit(EXIT_PREEMPTED)
  except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
    # A wrong key, file or number is the user's to mend: one message, and the traceback for those who want it.
    trace = workdir / f'error{f"-{jax.process_index()}" if DISTRIBUTED.value else ""}.txt'
    with contextlib.suppress(OSError):
      runtime.write_atomic(trace, traceback.format_exc().encode())
    who = f'process {jax.process_index()}: ' if DISTRIBUTED.value else ''
    _fail(f'error: {who}{error}\n(traceback: {trace})')


def _join():
  """Joins the other processes of this run, of which the first alone tells what it does."""
  try:
    runtime.initialize(True, coordinator_address=COORDINATOR.value, num_processes=NUM_PROCESSES.value,
                       process_id=PROCESS_ID.value)
  except ValueError as error:
    raise ValueError(f'--distributed: {error} No cluster that JAX knows says so here; give --coordinator=HOST:PORT, '
                     '--num_processes and --process_id') from error
  if jax.process_index() > 0:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    logging.set_verbosity(logging.WARNING)
  sys.excepthook = lambda *error: _fail(''.join(traceback.format_exception(*error)))


def _fail(text):
  """Ends this process; one of several without a farewell, since the others wait elsewhere and fail once it is gone."""
  if DISTRIBUTED.value:
    print(text, file=sys.stderr, flush=True)
    os._exit(1)
  sys.exit(text)


def datasets(words):
  """Lists, verifies or prepares data sets as the command's words say; returns the exit code."""
  given = {} if CONFIG.value is None else CONFIG.value.get('data', {})
  keys = {**common.base().data, **given}
  place = commands.Place(DATA_ROOT.value or keys['root'], MANUAL_DIR.value or keys['manual_dir'] or None,
                         keys['exif'], keys['transparency'])
  code = 0
  try:
    for text, good in commands.run(words, place, names=[given[k] for k in ('aux', 'target') if k in given],
                                   decode=DECODE.value):
      print(text, flush=True)
      code |= not good
  except ValueError as error:
    sys.exit(f'error: {error}')
  return code


def report(words):
  """Reports on the results below the folders that --results and the command's words name."""
  folders = [*RESULTS.value, *words] or [WORKDIR.value or 'runs']
  try:
    aggregate.run(folders, Path(WORKDIR.value or folders[0]))
  except (ValueError, OSError) as error:
    sys.exit(f'error: {error}')


def _parse(argv):
  """absl's flag parsing, with an unknown config key or variant as one line and the nearest name."""
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    text = str(error)
    if near := re.search(r'Did you mean "(.+)" instead of "(.+)"', text):
      text = f'unknown key {near[2]!r}; did you mean {near[1]!r}?'
    sys.exit(f'error: config: {text}')


class _Plain(py_logging.Formatter):
  """Messages as they are; warnings and errors say so."""

  def format(self, record):
    text = record.getMessage()
    return text if record.levelno < py_logging.WARNING else f'{record.levelname.lower()}: {text}'


def _show_progress():
  """Lets our own progress lines through, and of every library what is a warning or worse."""
  ours = f'{Path(__file__).parent}/zsad_jax/'
  handler = logging.get_absl_handler()
  handler.addFilter(lambda record: record.levelno >= py_logging.WARNING or record.pathname.startswith(ours))
  handler.setFormatter(_Plain())
  logging.set_verbosity(logging.INFO)
  os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')  # that PyTorch is missing, which nothing here needs
  tfds.disable_progress_bar()  # the data room has bars of its own, with an ETA


if __name__ == '__main__':
  _show_progress()
  flags.FLAGS.set_gnu_getopt(True)  # options may follow the names of data sets
  app.run(main, flags_parser=_parse)
