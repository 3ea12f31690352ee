"""The README: short, its two commands first, and a table of systems that is whole and states the published numbers.

Its links, paths, keys and commands are tested with those of all pages in test_docs.py and test_documented_commands.py.
"""

import re

import command_lines
import pages
from PIL import Image

from zsad_jax import methods
from zsad_jax.configs import anomalyclip

PAGE = pages.ROOT / 'README.md'
TEXT = PAGE.read_text()
SYSTEMS, = (table for table in pages.tables(TEXT) if table.header[0] == 'system')


def configs_of(row):
  return re.findall(r'configs/(\w+)\.py', row[-1])


def test_it_is_short():
  assert len(TEXT.split()) <= 1200


def test_it_starts_with_a_picture_and_two_commands():
  start = TEXT.partition('\n## ')[0]
  picture, = re.findall(r'!\[[^\]]+\]\(([^)]+)\)', start)
  assert Image.open(pages.ROOT / picture).width > 500
  demo, tests = re.search(r'```bash\n(.*?)```', start, re.S)[1].splitlines()
  assert 'python launch.py --config=configs/anomalyclip.py:demo' in demo
  assert tests.endswith('python -m pytest')


def test_the_table_of_systems_names_the_config_of_every_method():
  assert sorted(name for row in SYSTEMS.rows for name in configs_of(row)) == methods.names()


def test_published_numbers_are_those_of_a_config_of_the_row():
  targets = {'MVTec AD': 'mvtec_ad', 'VisA': 'visa'}
  columns = {SYSTEMS.header.index(title): target for title, target in targets.items()}

  def numbers(name):
    published = pages.config(name).get('published', {})
    of = lambda target: [published.get(target, {}).get(metric, '-') for metric in ('image_auroc', 'pixel_auroc')]
    return {i: of(target) for i, target in columns.items()}

  for row in SYSTEMS.rows:
    cells = {i: [float(cell) if cell != '-' else cell for cell in re.split(r' *\\\| *', row[i])] for i in columns}
    cells = {i: values if len(values) > 1 else ['-', '-'] for i, values in cells.items()}
    assert cells in [numbers(name) for name in configs_of(row)], row[0]


def test_every_ablation_of_the_config_is_a_change_it_takes():
  rows = re.findall(r'((?:[a-z_0-9.]+=[\w.,()]+ ?)+)', anomalyclip.__doc__.split('ablations', 1)[1])
  assert len(rows) > 8
  for setting in re.findall(r'[a-z_0-9.]+=[\w.(),]+?(?=[ ,;]|$)', ' '.join(rows)):
    command_lines.config_of('anomalyclip', [setting])
