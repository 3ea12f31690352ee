"""Command line: flags, modes, error messages and exit codes. The only module that reads flags.

Libraries are imported by the mode that needs them, so that `--help` and a mistyped flag are answered at once.
"""

import contextlib
import difflib
import logging as py_logging
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import ml_collections as mlc
from absl import app, flags, logging
from ml_collections import config_flags

import zsad_jax
from zsad_jax.experiment import config_files

HELP = """Zero-shot visual anomaly detection on a frozen CLIP.

  {program} --config=anomalyclip:demo --workdir=runs/demo
  {program} --config=anomalyclip --workdir=runs/visa-to-mvtec --config.machine.data_dir=/data
  {program} --config=anomalyclip --workdir=runs/visa-to-mvtec --mode=predict --path=PHOTOS
  {program} --config=tables/clip_ad_4_rvs:demo --workdir=runs/table4-demo
  {program} --mode=report --results runs/visa-to-mvtec runs/mvtec-to-visa
  {program} --mode=datasets list
  {program} --mode=datasets verify mvtec_ad visa --manual_dir=DOWNLOADS
  {program} --mode=datasets prepare mvtec_ad folder:MY_IMAGES --data_root=/data

Modes:
  run       fit, then evaluate (default)
  fit       train on the auxiliary data set, data.aux
  evaluate  evaluate the newest checkpoint of --workdir, or config.checkpoint, on data.target
  predict   score the images below --path, without labels; train first if --workdir has no finished checkpoint
  bench     measure how fast the config runs on this machine
  export    write the trained detector as a StableHLO program
  report    summarize all results below --results in tables
  datasets  "list" the published data sets, "verify NAME..." unpacked archives, "prepare NAME..." them for use;
            without names: data.aux and data.target of --config, or all that are unpacked

Flags:
"""
MODES = ('run', 'fit', 'evaluate', 'predict', 'bench', 'export', 'report', 'datasets')
SHARED_MODES = ('run', 'fit', 'evaluate', 'predict')  # modes that several processes can share
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: run the same command again


class _ConfigParser(flags.ArgumentParser):
  """Reads a config by name or path, and locks its keys."""

  def parse(self, argument):
    return config_files.read(argument).lock()

  def flag_type(self):
    return 'config'


def define_config(values: flags.FlagValues = flags.FLAGS) -> flags.FlagHolder:
  """Defines --config and, for each of its keys, --config.KEY."""
  holder = config_flags.DEFINE_config_file(
    'config', None, 'Name or path of a config, NAME[:VARIANT]; set any of its keys with --config.KEY=VALUE.',
    flag_values=values)
  values['config'].parser = _ConfigParser()
  return holder


CONFIG = define_config()
WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run: checkpoints, logs, results and pictures.')
MODE = flags.DEFINE_enum('mode', 'run', MODES, 'One of the modes above; default: run.')
PATH = flags.DEFINE_string('path', None, 'predict: an image, or a folder of images with all its subfolders.')
OUT = flags.DEFINE_string('out', None, 'predict: folder for tables and pictures; default: WORKDIR/predictions.')
RESULTS = flags.DEFINE_multi_string(
  'results', [], 'report: folders with results; default: --workdir, or runs. Writes report.md and report.csv to '
  '--workdir, or to the first folder.')
DATA_ROOT = flags.DEFINE_string('data_root', None, 'datasets: folder of prepared data sets; default: machine.data_dir.')
MANUAL_DIR = flags.DEFINE_string(
  'manual_dir', None, 'datasets: folder of unpacked archives; default: machine.manual_dir.')
DECODE = flags.DEFINE_bool('decode', True, 'datasets verify: decode every image; --nodecode compares names and counts.')
DISTRIBUTED = flags.DEFINE_bool(
  'distributed', False, 'Join the other processes of this run. SLURM, Open MPI, Kubernetes and Cloud TPU are '
  'recognized; elsewhere give --coordinator, --num_processes and --process_id.')
COORDINATOR = flags.DEFINE_string('coordinator', None, 'distributed: HOST:PORT of process 0.')
NUM_PROCESSES = flags.DEFINE_integer('num_processes', None, 'distributed: number of processes.', 1)
PROCESS_ID = flags.DEFINE_integer('process_id', None, 'distributed: index of this process, from 0.', 0)
VERSION = flags.DEFINE_bool('version', False, 'Print the version and exit.')


def run() -> None:
  """Console entry: parses the command line, runs it and exits."""
  _show_progress()
  flags.FLAGS.set_gnu_getopt(True)  # flags may follow the names of data sets

  def one_line(argv):
    try:
      main(argv)
    except app.UsageError as error:  # absl would print all of the help
      sys.exit(f'error: {error}')

  try:
    app.run(one_line, flags_parser=parse)
  except BrokenPipeError:  # the reader of the output, such as head, has ended
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)


def main(argv: Sequence[str]) -> None:
  """Runs the command whose flags were parsed.

  Args:
    argv: the program's name and the words that are not flags.

  Raises:
    app.UsageError: flags are missing or do not go together.
    SystemExit: the command failed; the code or the message says how.
  """
  if VERSION.value:
    print(zsad_jax.__version__)
    return
  _check_processes()
  if MODE.value == 'datasets':
    sys.exit(datasets(argv[1:]))
  if MODE.value == 'report':
    report(argv[1:])
    return
  cfg, workdir = _inputs(argv)
  with _user_errors(workdir):
    if DISTRIBUTED.value:
      _join()
    failures = _locked(cfg, workdir)
    if failures:
      sys.exit(f'error: {len(failures)} rows of the table failed: {"; ".join(failures)}. Run the same command again to '
               'repeat only these rows.')


def _check_processes():
  if DISTRIBUTED.value and MODE.value not in SHARED_MODES:
    raise app.UsageError(f'--mode={MODE.value} is the work of one process: leave out --distributed')
  if not DISTRIBUTED.value and (COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value) != (None, None, None):
    raise app.UsageError('--coordinator, --num_processes and --process_id go with --distributed')


def _inputs(argv) -> tuple[mlc.FrozenConfigDict, Path]:
  """Returns the config and the workdir of a command on one config; raises UsageError if something is missing."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected argument {argv[1]!r}; flags start with --, such as --config.seed=1')
  if CONFIG.value is None:
    raise app.UsageError('--config is missing; give a name or a path, such as --config=anomalyclip:demo. --help lists '
                         'all flags')
  cfg = mlc.FrozenConfigDict(CONFIG.value)
  if not WORKDIR.value:
    raise app.UsageError('--workdir is missing; name a folder for this run, such as --workdir=runs/demo')
  if MODE.value in ('predict', 'bench', 'export') and ('table' in cfg or 'method' not in cfg):
    raise app.UsageError(f'--mode={MODE.value} needs the config of one method, such as --config=anomalyclip:demo')
  if MODE.value == 'predict' and not PATH.value:
    raise app.UsageError('--path is missing; name an image or a folder of images, such as --path=PHOTOS')
  return cfg, Path(WORKDIR.value)


def _locked(cfg, workdir) -> list[str]:
  """Runs the mode with the workdir to itself; returns the rows of a table that failed."""
  from zsad_jax.engine import logs, runtime

  _hide_progress_of_tfds()
  logs.probe(workdir)
  with logs.lock(workdir), runtime.preemption():
    runtime.compilation_cache(workdir.parent / '.compiled')
    failures = _run_mode(cfg, workdir)
    runtime.barrier('end')  # a process that ends takes the others along
  return failures


def _run_mode(cfg, workdir) -> list[str]:
  from zsad_jax.engine import runtime
  from zsad_jax.experiment import bench, experiment, sweep
  from zsad_jax.predict import export, folder

  if MODE.value == 'predict':
    assert PATH.value  # by _inputs
    folder.run(cfg, workdir, PATH.value, OUT.value)
  elif MODE.value in ('bench', 'export'):
    with runtime.stopping_at_once():
      (bench if MODE.value == 'bench' else export).run(cfg, workdir)
  elif 'table' in cfg:
    return sweep.run(cfg, workdir, MODE.value, config_flags.get_override_values(flags.FLAGS['config']))
  else:
    experiment.run(cfg, workdir, MODE.value)
  return []


@contextlib.contextmanager
def _user_errors(workdir: Path) -> Iterator[None]:
  """User errors: print one line and save the traceback to a file."""
  from zsad_jax.engine import runtime

  try:
    yield
  except runtime.Preempted as stopped:
    print(f'{stopped}; run the same command again to resume', file=sys.stderr)
    sys.exit(EXIT_PREEMPTED)
  except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
    index = _process_index() if DISTRIBUTED.value else None
    trace = workdir / f'error{"" if index is None else f"-{index}"}.txt'
    with contextlib.suppress(OSError):
      runtime.write_atomic(trace, traceback.format_exc().encode())
    _fail(f'error: {"" if index is None else f"process {index}: "}{error}\n(traceback: {trace})')


def _join():
  """Joins the other processes of this run. Only the first one prints."""
  from zsad_jax.engine import runtime

  try:
    runtime.initialize(True, coordinator_address=COORDINATOR.value, num_processes=NUM_PROCESSES.value,
                       process_id=PROCESS_ID.value)
  except ValueError as error:
    raise ValueError(f'--distributed: {error} JAX recognizes no cluster here; give --coordinator=HOST:PORT, '
                     '--num_processes and --process_id') from error
  if _process_index() > 0:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    logging.set_verbosity(logging.WARNING)
  sys.excepthook = lambda *error: _fail(''.join(traceback.format_exception(*error)))


def _process_index() -> int:
  import jax
  return jax.process_index()


def _fail(text):
  """Exits with a message. One of several processes exits at once, since the others wait and fail once it is gone."""
  if DISTRIBUTED.value:
    print(text, file=sys.stderr, flush=True)
    os._exit(1)
  sys.exit(text)


def datasets(words: Sequence[str]) -> int:
  """Lists, verifies or prepares data sets as the command's words say; returns the exit code."""
  from zsad_jax.configs import common
  from zsad_jax.data import commands

  _hide_progress_of_tfds()
  own, keys = CONFIG.value or {}, common.base()
  keys.update({group: own[group] for group in ('data', 'machine') if group in own})
  manual = MANUAL_DIR.value or keys.machine.manual_dir
  place = commands.Place(Path(DATA_ROOT.value or keys.machine.data_dir), Path(manual) if manual else None,
                         keys.data.exif, keys.data.transparency)
  names = [keys.data.aux, keys.data.target] if 'data' in own else []
  code = 0
  try:
    for text, good in commands.run(words, place, names=names, decode=DECODE.value):
      print(text, flush=True)
      code |= not good
  except ValueError as error:
    sys.exit(f'error: {error}')
  return code


def report(words: Sequence[str]) -> None:
  """Reports on the results below the folders that --results and the command's words name."""
  from zsad_jax.experiment import aggregate

  folders = [*RESULTS.value, *words] or [WORKDIR.value or 'runs']
  try:
    aggregate.run(folders, Path(WORKDIR.value or folders[0]))
  except (ValueError, OSError) as error:
    sys.exit(f'error: {error}')


def parse(argv: Sequence[str]) -> list[str]:
  """Parses all flags and returns the other words; a mistake is one line, with the nearest name.

  Raises:
    SystemExit: --help was printed, or a flag, key, variant or value is wrong.
  """
  if {'--help', '-help', '--helpshort', '-h', '-?'} & set(argv):
    print(usage(argv[0]))
    sys.exit()
  try:
    return flags.FLAGS(argv)
  except flags.UnrecognizedFlagError as error:
    sys.exit(f'error: {_unknown_flag(error.flagname)}')
  except flags.IllegalFlagValueError as error:
    sys.exit(f'error: {_illegal_value(str(error))}')
  except (flags.Error, OSError) as error:
    early = re.match(r'Found --(config\.[\w.]+)', str(error))
    sys.exit(f'error: {_unknown_flag(early[1]) if early else error}')
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    sys.exit(f'error: {_unknown_key(argv, error)}')


def usage(program: str) -> str:
  """Returns the text of --help: the usual commands, the modes and the flags, of which the first matter most."""
  command = {'launch.py': 'python launch.py', '__main__.py': 'python -m zsad_jax'}.get(Path(program).name, 'zsad')
  lines = [HELP.format(program=command).rstrip()]
  for flag in _own_flags():
    text = re.sub(r'^<.*?>: |;\s+repeat this option.*', '', flag.help)  # added by absl
    lines.append(textwrap.fill(text, 116, initial_indent=f'  --{flag.name:15}', subsequent_indent=' ' * 19))
  return '\n'.join(lines)


def _own_flags():
  return [flag for flag in flags.FLAGS.get_key_flags_for_module(sys.modules[__name__])
          if not flag.name.startswith('config.')]


def _unknown_flag(name):
  if name.startswith('config.'):
    return f'--{name} has no --config before it; put --config=NAME first'
  near = difflib.get_close_matches(name, [flag.name for flag in _own_flags()], 1)
  return f'unknown flag --{name}; ' + (f'did you mean --{near[0]}?' if near else '--help lists all flags')


def _illegal_value(text):
  """Says what is allowed, from absl's message `flag --NAME=VALUE: REASON`."""
  name, value, reason = re.fullmatch(r'flag --([\w.]+)=(.*?): (.*)', text, re.S).groups()
  if name == 'config':
    return reason
  parser = flags.FLAGS[name].parser
  kind = 'true or false' if isinstance(parser, flags.BooleanParser) else parser.syntactic_help
  return f'--{name}={value} is not {kind}' if kind else f'--{name}={value}: {reason}'


def _unknown_key(argv, error):
  """Names the first --config.KEY that the config does not have, and the nearest key that it has."""
  words = [word.partition('=') for word in argv]
  reference = next((value or argv[i + 1] for i, (flag, _, value) in enumerate(words) if flag.lstrip('-') == 'config'))
  keys = _keys(config_files.read(reference))
  for flag, _, _ in words:
    key = re.sub(r'^--?(no)?config\.', '', flag)
    if key != flag and key not in keys:
      same = [other for other in keys if other.rpartition('.')[2] == key.rpartition('.')[2]]
      near = same or difflib.get_close_matches(key, keys, 1)
      return f'unknown key --config.{key}' + (f'; did you mean --config.{near[0]}?' if near else f' of {reference}')
  return f'config: {error}'


def _keys(config, prefix=''):
  """Dotted names of all keys and groups."""
  names = []
  for key, value in config.items():
    names += [prefix + key, *(_keys(value, f'{prefix}{key}.') if isinstance(value, mlc.ConfigDict) else ())]
  return names


class _Plain(py_logging.Formatter):
  """Messages as they are; warnings and errors say so."""

  def format(self, record):
    text = record.getMessage()
    return text if record.levelno < py_logging.WARNING else f'{record.levelname.lower()}: {text}'


def _show_progress():
  """Shows the package's own progress lines, and warnings and errors of all libraries."""
  package = f'{Path(__file__).parent}/'
  handler = logging.get_absl_handler()
  handler.addFilter(lambda record: record.levelno >= py_logging.WARNING or record.pathname.startswith(package))
  handler.setFormatter(_Plain())
  logging.set_verbosity(logging.INFO)
  os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')  # PyTorch is missing, and nothing here needs it


def _hide_progress_of_tfds():
  import tensorflow_datasets as tfds
  tfds.disable_progress_bar()  # zsad_jax.data has its own, with the time that is left
