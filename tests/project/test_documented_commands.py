"""Commands of the pages run as typed: a few on the shared demo, all of them (slow) on stand-ins for what is not here.

The slow tests shorten runs (command_lines.shrink) and keep a table's first row. With `--exhaustive -m exhaustive` whole
tables, the scripts of command_lines.LONG and the commands of the configs' docstrings run too, which takes hours.
"""

import json
import shutil

import command_lines
import jax
import pages
import pytest
import stand_ins

# Commands that other tests run.
ELSEWHERE = {
  'README.md': ('python3 -m venv', '. .venv/bin/activate', 'pip install', 'python -m pytest'),  # .ci/run
  'docs/adding-a-method.md': ('python ',), 'docs/adding-data.md': ('python ',),  # test_docs.py, with the pages' files
  'docs/cluster.md': ('python launch.py --config=configs/anomalyclip.py:demo',),  # tests/engine/test_processes.py
}
# Pages whose commands outside of bash blocks are accepted (test_docs.py), but not run.
ONLY_PARSED = {
  'docs/adding-a-method.md': 'the docstring of its config repeats a command',
  'docs/cluster.md': 'three need a scheduler',
  'checkpoints/tiny/README.md': 'the pretraining takes hours',
}


# On the demo that the tests share


@pytest.fixture(scope='module')
def demo_checkout(demo_run, tmp_path_factory):
  """The current folder is a checkout in which the demo has run and five images are to be predicted."""
  folder = tmp_path_factory.mktemp('demo_checkout')
  with pytest.MonkeyPatch.context() as patch:
    stand_ins.links(folder)
    stand_ins.pictures(folder)
    stand_ins.one_device(patch)
    (folder / 'data').symlink_to(demo_run.cfg.machine.data_dir)
    shutil.copytree(demo_run.workdir, folder / 'runs' / 'demo')
    patch.chdir(folder)
    yield folder


def documented(*parts):
  """The command of the README with these parts."""
  line, = (line for line in pages.commands(pages.ROOT / 'README.md') if all(part in line for part in parts))
  return line


@pytest.mark.slow
def test_the_readmes_prediction_runs_on_the_finished_demo(demo_checkout):
  command_lines.run(documented('--mode=predict'))
  rows = [json.loads(line) for line in (demo_checkout / 'runs/demo/predictions/predictions.jsonl').open()]
  assert len(rows) == 3 and not any(row['error'] for row in rows)


@pytest.mark.slow
def test_the_readmes_python_example_runs_on_the_finished_demo(demo_checkout, capsys):
  code, = (body for language, body in pages.blocks(pages.ROOT / 'README.md') if language == 'python')
  exec(compile(code, 'README.md', 'exec'), {})
  assert '(48, 48)' in capsys.readouterr().out  # the size of the image


@pytest.mark.slow
def test_the_readmes_table_and_report_run_on_the_finished_demo(demo_checkout):
  command_lines.run(f'{documented("configs/tables/")} --config.data.target_categories=leaf', rows=1)
  command_lines.run(documented('--mode=report'))
  report = (demo_checkout / 'runs' / 'report' / 'report.md').read_text()
  assert 'AnomalyCLIP' in report and 'SDP' in report


def test_the_readmes_list_of_data_sets_is_printed(demo_checkout, capsys):
  command_lines.run(documented('datasets list'))
  assert 'MVTec AD' in capsys.readouterr().out


# On stand-ins


@pytest.fixture(scope='module')
def checkout(tmp_path_factory, request):
  """The current folder is a checkout with stand-ins in it, and the demo in runs/demo, which many pages use."""
  with pytest.MonkeyPatch.context() as patch:
    stand_ins.checkout(patch, tmp_path_factory.mktemp('checkout'), whole=request.config.getoption('exhaustive'))
    jax.config.update('jax_disable_most_optimizations', True)  # compiling takes longest
    command_lines.run('python launch.py --config=configs/anomalyclip.py:demo --workdir=runs/demo')
    yield
    jax.config.update('jax_disable_most_optimizations', False)


def rows(request):
  """Number of rows of a table to run."""
  return 1000 if request.config.getoption('exhaustive') else command_lines.ROWS


def other_commands(page):
  """The commands of a page outside of bash blocks that can be run here."""
  lines = pages.other_commands(page)
  return [line for line in lines if pages.name(page) not in ONLY_PARSED or 'benchmarks/' in line]


def is_long(line):
  return any(f'benchmarks/{name}.py' in line for name in command_lines.LONG)


@pytest.mark.slow
@pytest.mark.parametrize('page', pages.PAGES, ids=pages.name)
def test_every_command_runs(page, checkout, request):
  lines = [line for line in pages.commands(page) if not line.startswith(ELSEWHERE.get(pages.name(page), ()))]
  for line in lines + other_commands(page):
    if not is_long(line):
      command_lines.run(line, rows(request))
  names = {}
  for language, body in pages.blocks(page):
    if language == 'python' and any(f'import {module}' in body for module in ('zsad_jax', 'config_files')):
      exec(compile(body, page.name, 'exec'), names)


@pytest.mark.exhaustive
@pytest.mark.parametrize('line', [line for page in pages.PAGES for line in other_commands(page) if is_long(line)])
def test_every_long_command_runs(line, checkout):
  command_lines.run(line)


@pytest.mark.exhaustive
@pytest.mark.parametrize('path', [path for path in pages.SOURCES if 'configs' in path.parts
                                  and path.stem != 'pretrain_tiny'], ids=pages.name)
def test_every_command_of_a_config_runs(path, checkout, request, tmp_path, monkeypatch):
  stand_ins.other_sets(monkeypatch, tmp_path)
  for line in pages.docstring_commands(path):
    command_lines.run(line, rows(request))
