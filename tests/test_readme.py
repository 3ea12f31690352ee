"""The page on Python runs, README's table is whole, what docstrings of configs and scripts say to type can be typed.

What README and the other pages name is held in tests/test_docs.py.
"""

import importlib
import re

import pages
import pytest
from pages import ROOT

from configs import anomalyclip
from zsad_jax import methods

README = (ROOT / 'README.md').read_text()
EXAMPLE = ROOT / 'docs' / 'in-python.md'


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  code, = (body for language, body in pages.blocks(EXAMPLE) if language == 'python' and 'train.fit' in body)
  exec(compile(code, EXAMPLE.name, 'exec'), {})
  out = capsys.readouterr().out
  values = dict(re.findall(r'(image AUROC|pixel AUPRO) ([\d.]+)', out))
  assert 0 <= float(values['image AUROC']) <= 1
  assert 0 <= float(values['pixel AUPRO']) <= 1


@pytest.mark.parametrize('path', pages.WITH_COMMANDS, ids=pages.name)
def test_commands_of_docstrings_are_ones_that_the_program_takes(path):
  for line in pages.docstring_commands(path):
    pages.check_command(line)


def test_every_ablation_row_of_the_config_is_a_change_it_takes():
  rows = re.findall(r'((?:[a-z_0-9.]+=[\w.,()]+ ?)+)', anomalyclip.__doc__.split('ablations', 1)[1])
  assert len(rows) > 8
  for setting in re.findall(r'[a-z_0-9.]+=[\w.(),]+?(?=[ ,;]|$)', ' '.join(rows)):
    pages.parsed('configs/anomalyclip.py', [setting])


def test_methods_in_the_table_exist():
  for name in methods.names():
    assert importlib.import_module(f'configs.{name}').get_config().method == name
    assert f'configs/{name}.py' in README
