"""Commands of the documentation: accepted by the command line, or run in this process with smaller numbers."""

import contextlib
import functools
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import ml_collections as mlc
from absl import flags, logging
from absl.testing import flagsaver
from array_record.python import array_record_data_source  # noqa: F401 (its flags, or flagsaver would drop them)

from zsad_jax import cli
from zsad_jax.data import commands

ROOT = Path(__file__).parents[1]
OTHER_PROGRAMS = ('python3 -m venv', '. .venv/bin/activate', 'git clone', 'cd ', 'mkdir ', 'sha256sum ')
SIZES = {518: 70, 240: 80}  # pixels per side: five patches
ROWS, EPOCHS = 1, 2  # of a table; of training, if the CLIP is a stand-in
LIMITS = {'sentences.pairs': 64, 'seeds': 2, 'bench.images': 2, 'bench.repeats': 1, 'report.pictures': 2,
          'padim.dims': 50}
OUTPUTS = {'run': 'results/**/metrics.json', 'evaluate': 'results/**/metrics.json', 'report': 'report.md',
           'predict': 'predictions/predictions.csv', 'bench': 'bench.json', 'export': 'export/export.json'}
BENCHMARKS = {  # flags that make a script short; the last of two equal flags counts
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
LONG = ('recovery', 'scaling')  # scripts that start process after process


@contextlib.contextmanager
def flags_of(argv: Sequence[str]) -> Iterator[list[str]]:
  """Gives the command line's flags the values of a command, and yields the words that are not flags."""
  with flagsaver.flagsaver(), mock.patch.object(sys, 'argv', list(argv)):  # config flags look for their keys there
    flags.FLAGS.set_gnu_getopt(True)
    try:
      rest = cli.parse(argv)
    finally:
      flags.FLAGS.set_gnu_getopt(False)
    yield rest


def config_of(reference: str, words: Sequence[str] = ()) -> mlc.ConfigDict:
  """Returns the config of a name or path after `words` of the form key=value, as the command line reads them."""
  values = flags.FlagValues()
  cli.define_config(values)
  argv = ['launch.py', f'--config={reference}', *(f'--config.{word}' for word in words)]
  with mock.patch.object(sys, 'argv', argv):
    values(argv)
  return values.config


def arguments(line: str) -> list[str] | None:
  """Returns the words after `python launch.py` or `zsad`, with a number for each shell variable; None otherwise."""
  words = shlex.split(line)
  if words[:2] == ['python', 'launch.py'] or words[:1] == ['zsad']:
    return ['1' if word.startswith('$') else word.partition('=$')[0] + '=1' if '=$' in word else word
            for word in words[2 if words[0] == 'python' else 1:]]
  return None


@functools.cache
def problem(line: str) -> str:
  """Returns what is wrong with a line of shell, as far as that can be told without running it; '' if nothing is."""
  line = line.removeprefix('nice -n 19 ')
  words, own = shlex.split(line), arguments(line)
  if own is not None:
    return _refusal(own)
  if words[:2] == ['python', '-m']:
    exists = words[2] == 'pytest' or (ROOT / f'{words[2].replace(".", "/")}.py').is_file()
    return '' if exists else f'no module {words[2]}'
  if words[0] == 'python':
    if not (ROOT / words[1]).is_file():
      return f'no file {words[1]}'
    script = (ROOT / words[1]).read_text()
    unknown = [word for word in words[2:] if word.startswith('--') and f"'{word.partition('=')[0]}'" not in script]
    return f'{words[1]} has no {" ".join(unknown)}' if unknown else ''
  if words[:2] == ['pip', 'install']:
    exists = words[2:] == ['.'] or (words[2] == '-r' and (ROOT / words[3]).is_file())
    return '' if exists else 'no such requirements'
  return '' if line.startswith(OTHER_PROGRAMS) else 'no check for this program'


def _refusal(words):
  """Returns the message of the command line if it does not take these words."""
  def datasets(words):
    if words[:1] not in [[action] for action in commands.ACTIONS]:
      sys.exit(f'error: no command {words}')
    return 0

  with (mock.patch.object(cli, 'datasets', datasets), mock.patch.object(cli, 'report'), mock.patch.object(cli, '_join'),
        mock.patch.object(cli, '_locked', return_value=[])):
    try:
      with flags_of(['launch.py', *words]) as rest:
        cli.main(rest)
    except SystemExit as end:
      return str(end.code or '')
    except cli.app.UsageError as error:
      return str(error)
  return ''


def run(line: str, rows: int = ROWS) -> None:
  """Runs a command of this project, or a script, in the current folder; raises AssertionError if it fails.

  Args:
    line: as typed.
    rows: how many rows of a table are run.
  """
  try:
    own = arguments(line)
    if own is not None:
      _launch(['launch.py', *own], rows)
    else:
      program, script, *words = shlex.split(line)
      assert program == 'python', line
      _script(Path(script), [*words, *BENCHMARKS.get(Path(script).stem, '').split()])
  except SystemExit as end:
    assert not end.code, f'{line}\nended with {end.code}'


def _script(path, words):
  if path.stem == 'recovery':  # its processes import it again
    subprocess.run([sys.executable, str(path), *words], check=True)
    return
  verbosity = logging.get_verbosity()
  try:
    with mock.patch.object(sys, 'argv', [str(path), *words]), mock.patch.object(sys, 'path', [*sys.path]):
      runpy.run_path(str(path), run_name='__main__')
  finally:
    logging.set_verbosity(verbosity)


def _launch(argv, rows):
  with flags_of(argv) as rest:
    config, mode, workdir = cli.CONFIG.value, cli.MODE.value, Path(cli.WORKDIR.value or '.')
    if config is not None:
      shrink(config, rows)
    with mock.patch('zsad_jax.engine.runtime.compilation_cache'):  # the tests have theirs
      cli.main(rest)
  output = 'table.md' if config is not None and 'table' in config else OUTPUTS.get(mode)
  assert output is None or any(workdir.glob(output)), f'{" ".join(argv)} left no {workdir / output}'


def shrink(config: mlc.ConfigDict, rows: int = ROWS) -> None:
  """Makes a config's run short: smaller images, fewer epochs and texts, and the first rows of a table."""
  with config.unlocked():
    if 'table' in config:
      for name in sorted(config.table.rows)[rows:]:
        del config.table.rows[name]
      for row in config.table.rows.values():
        if 'config' in row:
          shrink(row.config)
  if config.get('clip') != 'tiny':
    config.image_size = SIZES.get(config.image_size, config.image_size)
    if 'epochs' in config.get('train', {}):
      config.train.epochs = min(config.train.epochs, EPOCHS)
    config.report.pictures = 0  # the demos have some
  for key, most in LIMITS.items():
    if has(config, key) and functools.reduce(getattr, key.split('.'), config) > most:
      config.update_from_flattened_dict({key: most})


def has(node, dotted: str) -> bool:
  """Returns whether a config has this key."""
  for part in dotted.split('.'):
    if not hasattr(node, 'keys') or part not in node:
      return False
    node = node[part]
  return True
