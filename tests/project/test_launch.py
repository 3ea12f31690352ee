"""The command line: flags, modes, configs by name, what is refused, and exit codes."""

import subprocess
import sys
import types
from pathlib import Path

import command_lines
import pytest
from drawn_folders import draw

import zsad_jax
from zsad_jax import cli
from zsad_jax.configs import common
from zsad_jax.configs.tables import clip_ad_4_rvs
from zsad_jax.engine import runtime
from zsad_jax.experiment import sweep

ROOT = Path(__file__).parents[2]


def run(*words):
  """Runs the command with these words in this process; returns its exit code or last message."""
  try:
    with command_lines.flags_of(['launch.py', *map(str, words)]) as rest:
      cli.main(rest)
  except SystemExit as end:
    return end.code or 0
  except cli.app.UsageError as error:
    return f'error: {error}'
  return 0


@pytest.fixture
def flag_values(monkeypatch):
  """set(NAME=value, ...) gives flags of the command a value."""
  def set_values(**values):
    for name, value in values.items():
      monkeypatch.setattr(cli, name, types.SimpleNamespace(value=value))
  return set_values


def command(*words):
  """Runs the command in a process of its own."""
  return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize('program', [['launch.py'], ['-m', 'zsad_jax']])
def test_a_user_error_is_one_line_without_a_traceback(program):
  process = command(*program, '--config=anomalyclip:demo')
  assert process.returncode == 1 and process.stdout == ''
  assert process.stderr.startswith('error: --workdir is missing') and process.stderr.count('\n') == 1


def test_help_is_short_and_starts_with_the_usual_commands():
  lines = command('launch.py', '--help').stdout.splitlines()
  assert len(lines) < 60 and max(map(len, lines)) <= 120
  assert '  python launch.py --config=anomalyclip:demo --workdir=runs/demo' in lines[:4]
  flags = [line.split()[0].lstrip('-') for line in lines if line.startswith('  --')]
  assert flags[:3] == ['config', 'workdir', 'mode']
  assert set(flags) == {flag.name for flag in cli._own_flags()}
  assert all(any(line.startswith(f'  {mode} ') for line in lines) for mode in cli.MODES)


def test_the_version_needs_no_other_flag(capsys):
  assert run('--version') == 0
  assert capsys.readouterr().out == f'{zsad_jax.__version__}\n'


@pytest.mark.parametrize(('words', 'parts'), [
  (['--config=anomalyclp:demo'], ["'anomalyclp'", 'did you mean anomalyclip?']),
  (['--config=clip_ad_4_rvs'], ['did you mean tables/clip_ad_4_rvs?']),
  (['--config=configs/anomalyclp.py'], ['configs/anomalyclp.py does not exist', 'did you mean anomalyclip?']),
  (['--config=quux'], ["'quux'", 'winclip', '.py file']),
  (['--config=anomalyclip:dmo'], [':dmo', ':demo']),
  (['--config=pretrain_tiny:demo'], [':demo', 'none']),
  (['--config=clip:demo', '--config.trian.epochs=3'], ['config.trian.epochs', 'did you mean --config.train.epochs?']),
  (['--config=clip:demo', '--config.epochs=3'], ['config.epochs', 'did you mean --config.train.epochs?']),
  (['--config=clip:demo', '--config.quux=3'], ['unknown key --config.quux of clip:demo']),
  (['--config=clip:demo', '--config.train.epochs=many'], ['--config.train.epochs=many', 'integer']),
  (['--config=clip:demo', '--config.train.shuffle=many'], ['--config.train.shuffle=many', 'true or false']),
  (['--config.seed=1', '--config=clip:demo'], ['--config.seed', 'put --config=NAME first']),
  (['--config.seed=1'], ['--config.seed', 'put --config=NAME first']),
  (['--config=clip:demo', '--workdri=x'], ['--workdri', 'did you mean --workdir?']),
  (['--config=clip:demo', '--quux'], ['--quux', '--help']),
  (['--config=clip:demo', '--mode=train'], ['--mode=train', 'fit|evaluate']),
  (['--workdir=x'], ['--config is missing', '--config=anomalyclip:demo']),
  (['--config=clip:demo'], ['--workdir is missing', '--workdir=runs/demo']),
  (['--config=clip:demo', '--workdir=x', 'y'], ["unexpected argument 'y'"]),
  (['--config=clip:demo', '--workdir=x', '--mode=predict'], ['--path is missing', '--path=PHOTOS']),
  (['--config=tables/clip_ad_4_rvs:demo', '--workdir=x', '--mode=bench'], ['--mode=bench', 'one method']),
])
def test_mistakes_are_named_with_their_remedy(words, parts):
  message = run(*words)
  assert message.startswith('error: ') and '\n' not in message
  assert not [part for part in parts if part not in message], message


def test_an_unusable_workdir_is_refused_first(tmp_path):
  (tmp_path / 'file').write_text('')
  message = run('--config=anomalyclip:demo', f'--workdir={tmp_path / "file" / "work"}')
  assert 'cannot write to the workdir' in message


def test_datasets_need_no_config_and_take_flags_anywhere(tmp_path, capsys):
  draw(tmp_path / 'mine', {'bolt': (40, 100, 40)}, images=1)
  assert run('--mode=datasets', 'prepare', f'folder:{tmp_path}/mine', 'visa', f'--data_root={tmp_path}') == 1
  out = capsys.readouterr().out
  assert f'prepared: folder:{tmp_path}/mine; failed: visa' in out and 'VisA_20220922.tar' in out


def test_datasets_of_a_config_are_verified_without_being_named(tmp_path, capsys):
  assert run('--config=anomalyclip', '--mode=datasets', 'verify', f'--manual_dir={tmp_path}',
             f'--config.data.target=folder:{draw(tmp_path / "mine", {"bolt": (40, 100, 40)}, images=1)}') == 1
  out = capsys.readouterr().out
  assert 'visa: no category folder such as' in out and 'mine: complete' in out


def test_data_sets_are_listed(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert cli.datasets(['list']) == 0
  assert 'MVTec AD' in capsys.readouterr().out


def test_data_sets_are_looked_for_in_the_folders_of_the_config(monkeypatch):
  places = []
  monkeypatch.setattr('zsad_jax.data.commands.run', lambda words, place, **options: places.append(place) or ())
  assert run('--mode=datasets', '--config=clip:demo', '--config.machine.data_dir=/somewhere', 'list') == 0
  assert run('--mode=datasets', '--config=clip:demo', '--data_root=/elsewhere', 'list') == 0
  assert [str(place[0]) for place in places] == ['/somewhere', '/elsewhere']


def test_mistyped_data_set_commands_are_one_line():
  with pytest.raises(SystemExit, match=r"^error: .*'chekc'.* list, verify or prepare[^\n]*$"):
    cli.datasets(['chekc'])


def test_a_report_without_results_is_one_line(tmp_path):
  with pytest.raises(SystemExit, match=r'^error: no results below [^\n]*--results$'):
    cli.report([str(tmp_path)])


def test_the_rows_of_a_table_that_failed_are_in_the_exit_message(tmp_path, monkeypatch, flag_values):
  flag_values(CONFIG=clip_ad_4_rvs.get_config('demo'), WORKDIR=str(tmp_path))
  monkeypatch.setattr(runtime, 'compilation_cache', lambda path: None)
  monkeypatch.setattr(cli.config_flags, 'get_override_values', lambda flag: {})
  monkeypatch.setattr(sweep, 'run', lambda *args: ['Mean', 'KDE'])
  with pytest.raises(SystemExit, match=r'^error: 2 rows of the table failed: Mean; KDE\. .*same command'):
    cli.main(['launch.py'])
  monkeypatch.setattr(sweep, 'run', lambda *args: [])
  cli.main(['launch.py'])


def test_a_table_gets_the_keys_set_on_the_command_line(tmp_path, monkeypatch):
  overrides = []
  monkeypatch.setattr(runtime, 'compilation_cache', lambda path: None)
  monkeypatch.setattr(sweep, 'run', lambda cfg, workdir, mode, keys: overrides.append(keys) or [])
  assert run('--config=tables/clip_ad_4_rvs:demo', f'--workdir={tmp_path}', '--config.seed=7',
             '--config.layers=(2,3)', '--config.map.sigma=2') == 0
  assert overrides == [{'seed': 7, 'layers': (2, 3), 'map.sigma': 2.0}]


def test_common_choice_names_the_variants():
  with pytest.raises(ValueError, match='unknown variant :dmo; this config has :demo'):
    common.choice('dmo', 'demo')
  assert common.choice(None, 'demo') == ''
