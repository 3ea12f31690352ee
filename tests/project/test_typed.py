"""Every command of the pages is run as typed, in the order of its page, on stand-ins for what cannot be had here.

Smaller are images, epochs, numbers of sentences and timings, and a table has its first rows (tests/typed.py);
`--exhaustive` keeps all rows, and runs the scripts of typed.SLOW and the commands of the docstrings of configs too,
which takes hours.
"""

import re

import jax
import pages
import pytest
import stand_ins
import typed

# Who runs the others.
ELSEWHERE = {
  'README.md': ('python3 -m venv', '. .venv/bin/activate', 'pip install', 'python -m pytest'),  # .ci/run, as they stand
  'docs/adding-a-method.md': ('python ',), 'docs/adding-data.md': ('python ',),  # tests/test_docs.py, with their files
  'docs/cluster.md': ('python launch.py --config=configs/anomalyclip.py:demo',),  # tests/test_processes.py
}
# How many launches outside blocks of bash are not run for these pages: one that a block has too, three that want a
# scheduler, and one of days. tests/test_docs.py holds their words.
NOT_HERE = {'docs/adding-a-method.md': 1, 'docs/cluster.md': 3, 'checkpoints/tiny/README.md': 1}


@pytest.fixture(scope='module', autouse=True)
def checkout(tmp_path_factory, request):
  """The current folder is a checkout with stand-ins in it."""
  with pytest.MonkeyPatch.context() as patch:
    stand_ins.checkout(patch, tmp_path_factory.mktemp('checkout'), whole=request.config.getoption('exhaustive'))
    jax.config.update('jax_disable_most_optimizations', True)  # compiling is what takes long
    yield
    jax.config.update('jax_disable_most_optimizations', False)


def kept(request):
  """How many rows of a table are run."""
  return 1000 if request.config.getoption('exhaustive') else typed.ROWS


def in_prose(page):
  """The commands of a page outside its blocks of bash, in this order: of launch.py, of benchmarks."""
  launches = [' '.join(['python launch.py', *words]) for words in pages.launches(page)]
  if pages.name(page) in NOT_HERE:
    assert len(launches) == NOT_HERE[pages.name(page)]
    launches = []
  return launches + pages.scripts(page)


def slow(line):
  return any(name in line for name in typed.SLOW)


@pytest.mark.parametrize('page', pages.PAGES, ids=pages.name)
def test_every_command_runs(page, request):
  typed_here = [line for line in pages.commands(page) if not line.startswith(ELSEWHERE.get(pages.name(page), ()))]
  for line in typed_here + in_prose(page):
    if not slow(line):
      typed.run(line, kept(request))
  for language, body in pages.blocks(page):
    if language == 'python' and 'zsad_jax.load(' in body:
      exec(compile(body, page.name, 'exec'), {})


def test_the_python_example_runs(capsys):
  page = pages.ROOT / 'docs' / 'in-python.md'
  code, = (body for language, body in pages.blocks(page) if language == 'python' and 'train.fit' in body)
  exec(compile(code, page.name, 'exec'), {})
  values = dict(re.findall(r'(image AUROC|pixel AUPRO) ([\d.]+)', capsys.readouterr().out))
  assert 0 <= float(values['image AUROC']) <= 1
  assert 0 <= float(values['pixel AUPRO']) <= 1


@pytest.mark.exhaustive
@pytest.mark.parametrize('line', [line for page in pages.PAGES for line in in_prose(page) if slow(line)])
def test_every_slow_command_runs(line):
  typed.run(line)


@pytest.mark.exhaustive
@pytest.mark.parametrize('path', [path for path in pages.WITH_COMMANDS if path.parent.name != 'benchmarks'
                                  and path.stem not in ('launch', 'pretrain_tiny')], ids=pages.name)
def test_every_command_of_a_config_runs(path, request, tmp_path, monkeypatch):
  stand_ins.other_sets(monkeypatch, tmp_path)
  for line in pages.docstring_commands(path):
    typed.run(line, kept(request))
