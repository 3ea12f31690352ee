"""README's table of systems is whole; what docstrings of configs and scripts say to type can be typed.

What README and the other pages name is held in tests/test_docs.py, and their commands in tests/test_typed.py.
"""

import importlib
import re

import pages
import pytest
from pages import ROOT

from zsad_jax import methods
from zsad_jax.configs import anomalyclip

README = (ROOT / 'README.md').read_text()


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
    assert importlib.import_module(f'zsad_jax.configs.{name}').get_config().method == name
    assert f'configs/{name}.py' in README
