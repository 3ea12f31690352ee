"""The command as a user types it: its flags, its modes, and what it refuses."""

import subprocess
import sys
import types
from pathlib import Path

import pytest
import typed
from drawn_folders import draw

import launch
from zsad_jax.configs import common
from zsad_jax.configs.tables import clip_ad_4_rvs

ROOT = Path(__file__).parents[2]


def run(*words):
  """Runs launch.py with these words in this process; returns its exit code or last message."""
  try:
    with typed.parsed(['launch.py', *map(str, words)]) as rest:
      launch.main(rest)
  except SystemExit as end:
    return end.code
  return 0


@pytest.mark.parametrize(('words', 'message'), [
  (['--config.prompt.dept=3'], "error: config: unknown key 'dept'; did you mean 'depth'?"),
  ([], '--workdir is missing'),
])
def test_what_is_refused_has_no_traceback(words, message):
  done = subprocess.run([sys.executable, 'launch.py', '--config=configs/anomalyclip.py:demo', *words], cwd=ROOT,
                        capture_output=True, text=True, check=False)
  assert done.returncode == 1
  assert message in done.stdout + done.stderr
  assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(('word', 'message'), [
  ('--config.train.epochs=many', '--config.train.epochs=many'),
  ('--mode=train', 'run|fit|evaluate|predict|bench|export'),
])
def test_mistyped_values_are_named(word, message, monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  assert run('--config=configs/anomalyclip.py:demo', word) == 1
  said = ''.join(capsys.readouterr())
  assert message in said and 'Traceback' not in said


def test_an_unusable_workdir_is_refused_first(tmp_path, monkeypatch):
  (tmp_path / 'file').write_text('')
  monkeypatch.chdir(ROOT)
  said = run('--config=configs/anomalyclip.py:demo', f'--workdir={tmp_path / "file" / "work"}')
  assert 'cannot write to the workdir' in said


def test_datasets_need_no_config_and_take_options_anywhere(tmp_path, capsys):
  draw(tmp_path / 'mine', {'bolt': (40, 100, 40)}, images=1)
  assert run('--mode=datasets', 'prepare', f'folder:{tmp_path}/mine', 'visa', f'--data_root={tmp_path}') == 1
  said = capsys.readouterr().out
  assert f'prepared: folder:{tmp_path}/mine; failed: visa' in said and 'VisA_20220922.tar' in said


def test_datasets_of_a_config_are_verified_without_being_named(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(ROOT)
  assert run('--config=configs/anomalyclip.py', '--mode=datasets', 'verify', f'--manual_dir={tmp_path}',
             f'--config.data.target=folder:{draw(tmp_path / "mine", {"bolt": (40, 100, 40)}, images=1)}') == 1
  said = capsys.readouterr().out
  assert 'visa: no category folder such as' in said and 'mine: complete' in said


def test_data_sets_are_listed(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert launch.datasets(['list']) == 0
  assert 'MVTec AD' in capsys.readouterr().out


def test_a_report_without_results_is_one_line(tmp_path):
  with pytest.raises(SystemExit, match=r'^error: no results below .*; evaluate something first[^\n]*$'):
    launch.report([str(tmp_path)])


def test_a_table_of_which_rows_failed_says_so_by_its_exit_code(tmp_path, monkeypatch):
  flag = lambda value: types.SimpleNamespace(value=value)
  for name, value in (('CONFIG', clip_ad_4_rvs.get_config('demo')), ('WORKDIR', str(tmp_path)), ('MODE', 'run')):
    monkeypatch.setattr(launch, name, flag(value))
  monkeypatch.setattr(launch.runtime, 'compilation_cache', lambda path: None)
  monkeypatch.setattr(launch.ablation, 'run', lambda cfg, workdir, mode: ['Mean', 'KDE'])
  with pytest.raises(SystemExit, match=r"^error: 2 of the table's rows failed: Mean; KDE\. The same command tries"):
    launch.main(['launch.py'])
  monkeypatch.setattr(launch.ablation, 'run', lambda cfg, workdir, mode: [])
  launch.main(['launch.py'])


def test_mistyped_data_set_commands_are_one_line():
  with pytest.raises(SystemExit, match=r"^error: no command 'chekc'; say list, verify or prepare[^\n]*$"):
    launch.datasets(['chekc'])


def test_common_choice_names_the_variants():
  with pytest.raises(ValueError, match='unknown variant :dmo; this config has :demo'):
    common.choice('dmo', 'demo')
  assert common.choice(None, 'demo') == ''
