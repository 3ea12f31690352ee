"""Tables of papers: their rows are configs that fit their architectures, and measured stands beside published."""

import importlib
import json
import re
from pathlib import Path

import ml_collections as mlc
import pytest
from drawn_folders import draw

from configs import tables
from configs.tables import clip_ad_4_rvs
from zsad_jax import ablation, experiment, inputs, methods, results
from zsad_jax.report import tables as report

ROOT = Path(__file__).parents[1]
FILES = sorted(p for p in (ROOT / 'configs' / 'tables').glob('*.py') if p.stem != '__init__')


def module(path):
  return importlib.import_module(f'configs.tables.{path.stem}')


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_every_row_fits_its_architecture_and_names_its_launch_line(path):
  made = module(path)
  for arg in (None, 'demo') if ':demo' in made.__doc__ else (None,):
    cfg = mlc.FrozenConfigDict(made.get_config(arg))
    assert len(cfg.table.rows) >= 2
    for row in cfg.table.rows.values():
      changed = ablation.configured(cfg, row)
      inputs.check(changed)
      inputs.shell(changed, methods.get(changed.method))
      assert 'table' not in changed and changed.label == row.label
      assert (arg == 'demo') == (changed.clip == 'tiny')
  assert f'launch.py --config=configs/tables/{path.name}' in made.__doc__


def published(path):
  cfg = mlc.FrozenConfigDict(module(path).get_config())
  return {row.label: results.published(ablation.configured(cfg, row)) for row in cfg.table.rows.values()}


def test_published_numbers_stand_in_their_own_columns():
  """In CLIP-AD's order F1-max comes before AP: SDP on MVTec AD has pixel F1-max 35.9 and AP 30.4 in every table."""
  want = dict(pixel_auroc=87.5, pixel_f1max=35.9, pixel_ap=30.4, aupro_seed200=75.3, image_auroc=90.9,
              image_f1max=91.9, image_ap=95.8)
  found = {path.stem: published(path) for path in FILES}
  assert found['clip_ad_4_rvs']['DBSCAN'] == found['clip_ad_5_taps']['SDP, all'] == want
  assert found['clip_ad_8_backbones']['SDP, ViT-B/16+'] == found['clip_ad_7_direct']['surgery, mvtec_ad'] == want
  sdp = importlib.import_module('configs.sdp').get_config()
  sdp.data.target = 'mvtec_ad'
  assert results.published(mlc.FrozenConfigDict(sdp)) == want
  plus = dict(pixel_auroc=91.2, pixel_f1max=40.0, pixel_ap=36.3, aupro_seed200=85.1, image_auroc=92.2,
              image_f1max=93.4, image_ap=96.6)
  assert found['clip_ad_5_taps']['SDP+, all'] == found['clip_ad_6_mappings']['1L'] == plus
  assert found['clip_ad_8_backbones']['SDP+, ViT-B/16+'] == plus
  assert found['clip_ad_4_rvs']['PCA of the textbook'] == {}  # a row of ours


def test_rows_of_table_7_are_measured_on_their_own_data_sets():
  found = published(ROOT / 'configs' / 'tables' / 'clip_ad_7_direct.py')
  assert found['direct, head_ct'] == dict(image_auroc=79.8, image_f1max=74.7, image_ap=81.2)
  assert found['direct, cvc_clinicdb'] == dict(pixel_auroc=35.3, pixel_f1max=16.8, pixel_ap=6.5, aupro_seed200=3.4)


def test_measured_beside_published():
  summary = {'image_auroc': {'value': 0.9125}, 'pixel_auroc': {'value': None}}
  text = report.beside([('a', summary, {'image_auroc': 90.9}), ('b', summary, {})], ['image_auroc', 'pixel_auroc'])
  assert text.splitlines() == ['|  | image auroc | pixel auroc |', '| --- | --- | --- |', '| a | 91.2 (90.9) | - |',
                               '| b | 91.2 | - |']


def small(tmp, rows):
  c = clip_ad_4_rvs.get_config('demo')
  c.update_from_flattened_dict({
    'image_size': 56, 'features.batch': 4, 'eval.batch': 4, 'eval.pictures': 0, 'data.root': str(tmp / 'data'),
    'data.target': f'folder:{tmp / "target"}'})
  return mlc.FrozenConfigDict(tables.table(c, 'Two rows', rows))


def test_a_row_is_an_experiment_in_a_folder_of_its_own(tmp_path, capsys):
  draw(tmp_path / 'target', {'wood': (90, 60, 30)})
  ablation.run(small(tmp_path, [tables.row('Mean, so', {'rvs.method': 'mean'}, (86.8,))]), tmp_path / 'work', 'run')
  text = (tmp_path / 'work' / 'table.md').read_text()
  assert text in capsys.readouterr().out
  assert re.search(r'^\| Mean, so \| [\d.]+ \|', text, re.M)
  assert '(86.8)' not in text  # published for other weights and data
  path, = (tmp_path / 'work' / 'Mean-so').glob('results/sdp/nothing-to-target/seed42/manifest.json')
  assert json.loads(path.read_text())['config']['rvs']['method'] == 'mean'


def test_rows_come_in_order_with_what_is_published_and_the_oracle_apart(tmp_path, monkeypatch):
  ran = []

  def run(cfg, workdir, mode):
    ran.append((cfg.rvs.method, workdir.name, mode))
    means = {m: {'value': len(ran) / 10} for m in cfg_table.table.metrics}
    oracle = {'oracle epoch 2 of 5 (selected on the target)': means} if len(ran) == 2 else {}
    return {'last epoch (5)': means} | oracle

  monkeypatch.setattr(experiment, 'run', run)
  c = clip_ad_4_rvs.get_config()
  c.data.target = 'mvtec_ad'
  cfg_table = mlc.FrozenConfigDict(tables.table(c, 'T', [
    tables.row('b', {'rvs.method': 'pca'}, (86.9,)), tables.row('a', {'rvs.method': 'mean'}, (86.8,))]))
  ablation.run(cfg_table, tmp_path, 'evaluate')
  assert ran == [('pca', 'b', 'evaluate'), ('mean', 'a', 'evaluate')]
  rows = [line.split(' | ')[:2] for line in (tmp_path / 'table.md').read_text().splitlines()[4:]]
  assert rows == [['| b', '10.0 (86.9)'], ['| a', '20.0 (86.8)'],
                  ['| a, oracle epoch 2 of 5 (selected on the target)', '20.0 (86.8)']]
  (tmp_path / 'table.md').unlink()
  monkeypatch.setattr(experiment, 'run', lambda *args: None)  # fit alone measures nothing
  ablation.run(cfg_table, tmp_path, 'fit')
  assert not (tmp_path / 'table.md').exists()


def test_a_row_that_does_not_fit_is_refused_before_the_first_runs(tmp_path):
  rows = [tables.row('good', {}), tables.row('bad', {'layers': (2, 7)})]
  with pytest.raises(ValueError, match=r'layers \(2, 7\) are not different blocks in 1\.\.6'):
    ablation.run(small(tmp_path, rows), tmp_path / 'work', 'run')
  assert not (tmp_path / 'work').exists()
  with pytest.raises(ValueError, match='two rows of the table have the same name'):
    ablation.run(small(tmp_path, rows[:1] * 2), tmp_path / 'work', 'run')
