"""RWDA's tables: published means stand in their own columns, next to the rows they were measured with."""

import importlib

import ml_collections as mlc
import pytest

from zsad_jax.experiment import results, sweep
from zsad_jax.report import tables


def published(name):
  cfg = mlc.FrozenConfigDict(importlib.import_module(f'zsad_jax.configs.tables.{name}').get_config())
  assert cfg.table.metrics == ('image_auroc', 'image_f1max', 'image_ap')
  return {row.name: row.published or results.published(row.cfg) for row in sweep.planned(cfg, {})}


def test_table_1():
  """Its order is AUROC, AUPR, F1-max."""
  found = published('rwda_1_main')
  assert len(found) == 44
  assert found['mvtec_ad: unknown, CLIP + ours'] == dict(image_auroc=92.2, image_ap=96.0, image_f1max=92.8)
  assert found['visa: known, CLIP'] == dict(image_auroc=76.3, image_ap=80.4, image_f1max=78.8)
  assert found['visa: 4 shots, CLIP + ours'] == dict(image_auroc=86.6, image_ap=88.4, image_f1max=84.5)
  assert found['mvtec_ad: 1 shot, WinCLIP'] == dict(image_auroc=93.1, image_ap=96.5, image_f1max=93.7)
  assert found['visa: 2 shots, PatchCore (published only)'] == dict(image_auroc=81.6, image_ap=84.8, image_f1max=82.5)
  assert found['mvtec_ad: 4 shots, RegAD (published only)'] == dict(image_auroc=88.2)


def test_table_4():
  found = published('rwda_4_sewer')
  assert found['CLIP'] == dict(image_auroc=79.1, image_ap=77.7, image_f1max=75.2)
  assert found['ours'] == dict(image_auroc=82.6, image_ap=81.0, image_f1max=77.4)


def test_tables_2_and_3_and_figure_4():
  two, three, four = map(published, ('rwda_2_multicrop', 'rwda_3_words', 'rwda_fig4_pairs'))
  assert two['CLIP, without crops'] == dict(image_auroc=89.8, image_ap=95.4, image_f1max=92.1)
  assert two['CLIP + ours, without crops'] == dict(image_ap=96.2)
  assert two['CLIP + ours, with crops']['image_auroc'] == 92.2
  assert two['WinCLIP, without crops'] == dict(image_auroc=90.8, image_ap=96.1, image_f1max=92.5)
  assert len(three) == 32 and three['a, a damaged, CLIP + ours'] == dict(image_auroc=92.2)
  assert three['a flawless, an anomalous, CLIP'] == dict(image_auroc=68.8)
  assert three['a good, a defective, CLIP + ours'] == dict(image_auroc=86.3)
  assert {row: bool(means) for row, means in four.items() if 'CLIP' in row} == {
    f'CLIP + ours, {n} pairs': n == 10000 for n in (2000, 5000, 10000, 20000, 50000)}


@pytest.mark.parametrize(('std', 'cell'), [(0.004, '91.2 ± 0.4 (92.2)'), (None, '91.2 (92.2)')])
def test_a_spread_over_seeds_is_shown(std, cell):
  summary = {'image_auroc': {'value': 0.9125, 'std': std}}
  text = tables.comparison([('a', summary, {'image_auroc': 92.2})], ['image_auroc'])
  assert text.splitlines()[-1] == f'| a | {cell} |'
