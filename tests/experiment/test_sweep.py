"""Tables of papers: every row is a whole config that fits its architecture; measured means stand next to published."""

import importlib
import json
import re

import ml_collections as mlc
import pytest
from small_experiments import config

from zsad_jax.configs import sdp, tables
from zsad_jax.configs.tables import clip_ad_4_rvs
from zsad_jax.engine import eval_cache, runtime
from zsad_jax.experiment import config_files, experiment, results, sweep
from zsad_jax.report import tables as report

FILES = sorted(path for path in (config_files.FOLDER / 'tables').glob('*.py') if path.stem != '__init__')
NUMBERED = {'anomalyclip': (1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 13, 14), 'rwda': range(1, 5), 'clip_ad': range(1, 9),
            'fuzzyclip': range(1, 10)}


def module(name):
  return importlib.import_module(f'zsad_jax.configs.tables.{name}')


def planned(name, arg=None, overrides=None):
  """The rows of a table by the name of its file."""
  return sweep.planned(mlc.FrozenConfigDict(module(name).get_config(arg)), overrides or {})


@pytest.mark.slow
def test_every_row_is_a_whole_config_that_fits_its_architecture():
  for name in (path.stem for path in FILES):
    doc = module(name).__doc__
    assert f'--config=configs/tables/{name}.py' in doc or f'--config=tables/{name}' in doc, name
    for arg in (None, 'demo') if ':demo' in doc else (None,):
      check_rows(name, arg)
    if ':demo' not in doc:
      with pytest.raises(ValueError, match='unknown variant :demo'):
        module(name).get_config('demo')


def check_rows(name, arg):
  rows = planned(name, arg)  # which refuses rows of one name
  runs = [row for row in rows if row.cfg is not None]
  assert len(runs) >= 2 and not sweep.check(rows), name
  for row in runs:
    assert 'table' not in row.cfg and row.cfg.label.endswith(row.label), (name, row.name)
    assert set(row.cfg.keys()) >= set(config_files.load(row.cfg.method).keys()) - {'published'}, (name, row.name)
    assert (arg == 'demo') == (row.cfg.clip == 'tiny'), (name, row.name)
    assert row.column in ('', row.cfg.data.target), (name, row.name)
    assert arg != 'demo' or not results.published(row.cfg), (name, row.name)
  quoted = [row for row in rows if row.cfg is None]
  assert all('(published only)' in row.label and row.published and arg != 'demo' for row in quoted), name


@pytest.mark.slow
def test_every_numbered_table_has_a_file():
  for paper, numbers in NUMBERED.items():
    for number in numbers:
      path, = (path for path in FILES if path.stem.startswith(f'{paper}_{number}_'))
      assert f'table {number}' in module(path.stem).get_config().table.title


def of(name):
  """{row: published means} of a table."""
  return {row.name: row.published or results.published(row.cfg) for row in planned(name)}


def test_published_numbers_stand_in_their_own_columns():
  """In CLIP-AD's order F1-max comes before AP: SDP on MVTec AD has pixel F1-max 35.9 and AP 30.4 in every table."""
  want = dict(pixel_auroc=87.5, pixel_f1max=35.9, pixel_ap=30.4, aupro_200=75.3, image_auroc=90.9,
              image_f1max=91.9, image_ap=95.8)
  found = {name: of(name) for name in ('clip_ad_4_rvs', 'clip_ad_5_taps', 'clip_ad_6_mappings', 'clip_ad_7_direct',
                                       'clip_ad_8_backbones')}
  assert found['clip_ad_4_rvs']['DBSCAN'] == found['clip_ad_5_taps']['SDP, all'] == want
  assert found['clip_ad_8_backbones']['SDP, ViT-B/16+'] == found['clip_ad_7_direct']['mvtec_ad: surgery'] == want
  alone = sdp.get_config()
  alone.data.target = 'mvtec_ad'
  assert results.published(mlc.FrozenConfigDict(alone)) == want
  plus = dict(pixel_auroc=91.2, pixel_f1max=40.0, pixel_ap=36.3, aupro_200=85.1, image_auroc=92.2,
              image_f1max=93.4, image_ap=96.6)
  assert found['clip_ad_5_taps']['SDP+, all'] == found['clip_ad_6_mappings']['1L'] == plus
  assert found['clip_ad_8_backbones']['SDP+, ViT-B/16+'] == plus
  assert found['clip_ad_4_rvs']['PCA of the textbook'] == {}  # a row of ours


def test_rows_of_table_7_are_measured_on_their_own_data_sets():
  found = of('clip_ad_7_direct')
  assert found['head_ct: direct'] == dict(image_auroc=79.8, image_f1max=74.7, image_ap=81.2)
  assert found['cvc_clinicdb: direct'] == dict(pixel_auroc=35.3, pixel_f1max=16.8, pixel_ap=6.5, aupro_200=3.4)


def test_nothing_is_published_for_another_resolution():
  rows = {row.name: row.cfg for row in planned('clip_ad_1_industrial')}
  other = {row.name: row.cfg for row in planned('clip_ad_1_industrial', overrides={'image_size': 480})}
  assert results.published(rows['visa: SDP']) and rows['visa: AnomalyCLIP'].image_size == 238
  assert results.published(rows['visa: AnomalyCLIP'])
  for name in ('visa: SDP', 'visa: AnomalyCLIP'):
    assert other[name].image_size == 480 and not results.published(other[name])


@pytest.mark.slow
def test_spot_cells():
  """Each paper has an order of columns of its own; an unknown cell is no number at all."""
  one, two, three = map(of, ('anomalyclip_1_industrial', 'anomalyclip_2_medical', 'anomalyclip_3_medical_tuned'))
  assert one['btad: VAND'] == dict(pixel_auroc=60.8, aupro_200=25.0, image_auroc=73.6, image_ap=68.6)
  assert one['dtd_synthetic: CoOp'] == {} and one['dagm2007: AnomalyCLIP']['image_ap'] == 92.3
  assert two['covid19_radiography: CoOp'] == dict(image_auroc=25.3, image_ap=9.2)
  assert two['tn3k: AnomalyCLIP'] == dict(pixel_auroc=81.5, aupro_200=50.4)
  assert three['kvasir_seg: VAND'] == dict(pixel_auroc=87.6, aupro_200=39.3)
  assert of('anomalyclip_5_losses')['visa: neither loss (published only)']['image_auroc'] == 61.1
  seven, ten = of('anomalyclip_7_without'), of('anomalyclip_10_attention')
  assert seven['visa: without T1'] == seven['visa: without T1, four layers'] == ten['visa: Q-K']
  assert of('anomalyclip_13_words_industrial')['mvtec_ad: defective'] == dict(aupro_200=81.7, image_auroc=91.4)
  ad, fuzzy = of('clip_ad_1_industrial'), of('fuzzyclip_2_main')
  saa = dict(aupro_200=42.8, pixel_ap=28.8, pixel_f1max=37.8, image_auroc=63.1, image_ap=81.4, image_f1max=87.0)
  assert fuzzy['mvtec_ad: SAA+ (published only)'] == saa
  assert ad['mvtec_ad: SAA+ (published only)'] == saa | dict(pixel_auroc=73.2)
  for target in ('mvtec_ad', 'visa'):
    for system in ('WinCLIP', 'SDP+', 'CLIP Surgery'):
      assert fuzzy[f'{target}: {system}'].items() <= ad[f'{target}: {system}'].items()
  assert of('clip_ad_3_medical_pixels')['isic2016: SDP+']['pixel_ap'] == 88.1
  assert of('fuzzyclip_3_industrial')['mpdd: FuzzyCLIP']['image_ap'] == 76.2
  six = of('fuzzyclip_6_groups')
  assert six['kolektor_sdd: VisA, k = 2'] == dict(aupro_200=88.0, pixel_ap=22.1, pixel_f1max=35.4)
  assert six['btad: MVTec AD and DAGM, k = 3 (published only)']['pixel_f1max'] == 51.6
  assert six['mvtec_ad: VisA, k = 1'] == of('fuzzyclip_4_prompts')['mvtec_ad: stacked']


def test_a_row_of_another_method_is_that_methods_config():
  rows = {row.name: row.cfg for row in planned('anomalyclip_1_industrial')}
  for system, name, aux in (('WinCLIP', 'winclip', 'visa'), ('CoOp', 'coop', 'visa'), ('CLIP', 'clip', 'visa')):
    want = config_files.read(name)
    want.data.aux, want.data.target = aux, 'mvtec_ad'
    row = rows[f'mvtec_ad: {system}'].to_dict()
    assert {k: v for k, v in row.items() if k not in ('label', 'published')} == {
      k: v for k, v in want.to_dict().items() if k not in ('label', 'published')}
  assert (rows['visa: VAND'].train.epochs, rows['visa: VAND'].mosaic, rows['mvtec_ad: VAND'].mosaic) == (3, 0.2, 0.0)


@pytest.mark.slow
def test_overrides_apply_to_every_row_that_has_the_key():
  overrides = {'machine.data_dir': 'elsewhere', 'seed': 7, 'train.epochs': 2, 'optim.schedule': 'constant',
               'table.title': 'other'}
  before, after = (planned('anomalyclip_1_industrial', overrides=keys) for keys in ({}, overrides))
  assert [row.name for row in before] == [row.name for row in after]
  with_schedule = 0
  for old, new in zip(before, after, strict=True):
    if old.cfg is None:
      assert new == old
      continue
    assert (new.cfg.machine.data_dir, new.cfg.seed, new.cfg.train.epochs) == ('elsewhere', 7, 2)
    has = 'schedule' in old.cfg.get('optim', {})
    assert new.cfg.get('optim', {}).get('schedule') == ('constant' if has else None)
    with_schedule += has
    assert new.cfg.prompt == old.cfg.prompt and new.cfg.data == old.cfg.data
  assert 0 < with_schedule < len(after)
  coop = next(row.cfg for row in after if row.cfg is not None and row.cfg.method == 'coop')
  assert coop.optim.epochs == 2  # its schedule follows the number of epochs


def test_an_override_that_no_row_has_is_refused():
  with pytest.raises(ValueError, match=r'--config\.local_layers .*no row'):
    planned('clip_ad_4_rvs', overrides={'local_layers': (1,)})


def test_measured_beside_published():
  summary = {'image_auroc': {'value': 0.9125}, 'pixel_auroc': {'value': None}}
  text = report.comparison([('a', summary, {'image_auroc': 90.9}), ('b', summary, {}), ('c', '', {'image_auroc': 1.0}),
                        ('d', 'error', {'pixel_auroc': 2.0})], ['image_auroc', 'pixel_auroc'])
  assert text.splitlines() == ['|  | Image AUROC | Pixel AUROC |', '| --- | --- | --- |', '| a | 91.2 (90.9) | - |',
                               '| b | 91.2 | - |', '| c | (1.0) |  |', '| d | error | error (2.0) |']


def small(folders, rows):
  """The config of a table of these rows, SDP's demo on the drawn folders."""
  c = mlc.ConfigDict(config(sdp, folders).to_dict())
  return mlc.FrozenConfigDict(tables.table(c, 'Two rows', rows))


@pytest.mark.slow
def test_a_row_is_an_experiment_in_a_folder_of_its_own(folders, tmp_path, capsys):
  cfg = small(folders, [tables.row('Mean, so', {'rvs.method': 'mean'}, (86.8,))])
  sweep.run(cfg, tmp_path, 'run', {'data.target_categories': 'wood'})
  text = (tmp_path / 'table.md').read_text()
  assert text in capsys.readouterr().out
  assert re.search(r'^\| Mean, so \| [\d.]+ \|', text, re.M)
  assert '(86.8)' not in text  # published for other weights and data
  path, = (tmp_path / 'Mean-so').glob('results/sdp/nothing-to-target/seed42/manifest.json')
  manifest = json.loads(path.read_text())['config']
  assert (manifest['rvs']['method'], manifest['data']['target_categories']) == ('mean', 'wood')


def faked(monkeypatch, answers=None):
  """experiment.run that notes what it was asked for and measures 0.1, 0.2, ...; or gives (or raises) `answers`."""
  ran = []

  def run(cfg, workdir, mode):
    label = cfg.label.rpartition(', ')[2]
    ran.append((label, cfg.data.target, cfg.seed, workdir.name, mode))
    answer = answers.get(label) if answers else None
    if isinstance(answer, BaseException):
      raise answer
    means = {m: {'value': len(ran) / 10, 'reason': ''} for m in tables.PIXEL + tables.IMAGE}
    return {'last (5)': means} | ({answer: means} if answer else {})

  monkeypatch.setattr(experiment, 'run', run)
  return ran


def two_rows(**changes):
  c = clip_ad_4_rvs.get_config()
  c.data.target = 'mvtec_ad'
  c.update_from_flattened_dict(changes)
  return mlc.FrozenConfigDict(tables.table(c, 'T', [
    tables.row('b', {'rvs.method': 'pca'}, (86.9,)), tables.row('a', {'rvs.method': 'mean'}, (86.8,))]))


def lines_of(workdir):
  return [line for line in (workdir / 'table.md').read_text().splitlines() if line.startswith('| ')]


def test_rows_come_in_order_with_what_is_published_and_the_oracle_apart(tmp_path, monkeypatch):
  oracle = 'oracle: 2 of 5, the best on the target'
  ran = faked(monkeypatch, {'a': oracle})
  assert sweep.run(two_rows(), tmp_path, 'evaluate') == []
  assert ran == [('b', 'mvtec_ad', 42, 'b', 'evaluate'), ('a', 'mvtec_ad', 42, 'a', 'evaluate')]
  rows = [line.split(' | ')[:2] for line in lines_of(tmp_path)[2:]]
  assert rows == [['| b', '10.0 (86.9)'], ['| a', '20.0 (86.8)'], [f'| a, {oracle}', '20.0 (86.8)']]
  monkeypatch.setattr(experiment, 'run', lambda *args: None)  # fit alone measures nothing
  sweep.run(two_rows(), tmp_path / 'fit', 'fit')
  assert not list((tmp_path / 'fit').rglob('row.json'))


def test_a_measured_row_is_not_run_again_unless_its_config_or_the_sources_changed(tmp_path, monkeypatch, capsys):
  ran = faked(monkeypatch)
  sweep.run(two_rows(), tmp_path, 'run')
  before = (tmp_path / 'table.md').read_text()
  moved = {'machine.data_dir': 'moved', 'machine.eval_batch': 3, 'report.pictures': 1}  # no number depends on these
  sweep.run(two_rows(**moved), tmp_path, 'run')
  sweep.run(two_rows(), tmp_path, 'run', moved)
  assert len(ran) == 2 and (tmp_path / 'table.md').read_text() == before
  assert 'measured before' in capsys.readouterr().out
  sweep.run(two_rows(), tmp_path, 'run', {'map.sigma': 2.0})
  assert len(ran) == 4 and 'but config changed since' in capsys.readouterr().out
  monkeypatch.setattr(eval_cache, 'sources', lambda: 'others')
  sweep.run(two_rows(**{'map.sigma': 2.0}), tmp_path, 'run')
  assert len(ran) == 6 and 'but sources changed since' in capsys.readouterr().out


@pytest.mark.parametrize('text', ['{"identity"', '[]', '{"identity": 3, "means": {}}'])
def test_a_damaged_record_is_named_and_measured_again(tmp_path, monkeypatch, caplog, text):
  ran = faked(monkeypatch)
  sweep.run(two_rows(), tmp_path, 'run')
  (tmp_path / 'b' / 'row.json').write_text(text)
  sweep.run(two_rows(), tmp_path, 'run')
  assert [label for label, *_ in ran] == ['b', 'a', 'b'] and f'{tmp_path / "b" / "row.json"} is damaged' in caplog.text


def test_a_row_that_fails_is_a_row_with_its_error_and_is_tried_again(tmp_path, monkeypatch, capsys):
  ran = faked(monkeypatch, {'b': FileNotFoundError('no weights here')})
  assert sweep.run(two_rows(), tmp_path, 'run') == ['b']
  text = (tmp_path / 'table.md').read_text()
  assert '| b | error (86.9) | error |' in text and '| a | 20.0 (86.8) |' in text
  assert f'b: error: no weights here (traceback: {tmp_path / "b" / "error.txt"})' in text
  assert 'FileNotFoundError' in (tmp_path / 'b' / 'error.txt').read_text()
  ran.clear()
  monkeypatch.undo()
  ran = faked(monkeypatch)
  assert sweep.run(two_rows(), tmp_path, 'run') == []
  assert [label for label, *_ in ran] == ['b'] and not (tmp_path / 'b' / 'error.txt').exists()


@pytest.mark.parametrize('error', [runtime.Preempted('asked to stop'), KeyError('a mistake')])
def test_a_request_to_stop_and_a_mistake_in_the_program_end_the_table(tmp_path, monkeypatch, error):
  ran = faked(monkeypatch, {'a': error})
  with pytest.raises(type(error)):
    sweep.run(two_rows(), tmp_path, 'run')
  assert len(lines_of(tmp_path)) == 3  # what there was is written
  monkeypatch.undo()
  ran = faked(monkeypatch)
  sweep.run(two_rows(), tmp_path, 'run')
  assert [label for label, *_ in ran] == ['a']


def test_columns_share_what_is_trained_and_stand_apart(tmp_path, monkeypatch):
  ran = faked(monkeypatch)
  cfg = importlib.import_module('zsad_jax.configs.tables.anomalyclip_13_words_industrial').get_config()
  sweep.run(mlc.FrozenConfigDict(cfg), tmp_path, 'run')
  assert len(ran) == 15
  assert {(target, folder) for label, target, _, folder, _ in ran if label == 'flawed'} == {
    ('mvtec_ad', 'flawed-from-visa'), ('visa', 'flawed-from-mvtec_ad'), ('btad', 'flawed-from-mvtec_ad')}
  assert {p.name for p in (tmp_path / 'flawed-from-mvtec_ad').iterdir()} == {'row-visa.json', 'row-btad.json'}
  text = (tmp_path / 'table.md').read_text()
  assert [line for line in text.splitlines() if line in ('mvtec_ad', 'visa', 'btad')] == ['mvtec_ad', 'visa', 'btad']


def test_a_caption_states_data_weights_and_training_and_labels_name_the_system():
  configs = lambda *args: [row.cfg for row in planned(*args) if row.cfg is not None]
  one = configs('anomalyclip_1_industrial')
  assert sweep.caption(one[:6]) == (
    'On mvtec_ad, split test; CLIP vit_l14_336 at 518 px, vit_b16_plus_240:laion400m_e31 at 240 px; trained on visa.')
  assert sweep.caption(configs('clip_ad_7_direct', 'demo')) == (
    'On synthetic_target, split test; CLIP tiny at 112 px; training-free.')
  assert sweep.caption(configs('rwda_4_sewer')).endswith('trained on texts.')
  assert [cfg.label for cfg in one[:4]] == ['CLIP', 'CLIP-AC', 'WinCLIP', 'APRIL-GAN, VAND']
  assert configs('clip_ad_7_direct', 'demo')[0].label == 'SDP, direct'


def test_several_seeds_of_a_row_are_shown_with_their_spread_and_are_measured_again_if_their_number_changes(
    tmp_path, monkeypatch):
  counts = []

  def run(cfg, workdir, mode):
    counts.append(cfg.seeds)
    return {'last (5)': {m: {'value': .15, 'std': .0707, 'reason': ''} for m in tables.PIXEL + tables.IMAGE}}

  monkeypatch.setattr(experiment, 'run', run)
  for seeds in (2, 2, 3):
    sweep.run(two_rows(), tmp_path, 'run', {'seeds': seeds})
  assert counts == [2, 2, 3, 3]
  assert lines_of(tmp_path)[2].startswith('| b | 15.0 ± 7.1 (86.9) |')


def test_errors_of_all_rows_are_raised_before_the_first_runs_and_those_of_single_rows_shown(
    folders, tmp_path, monkeypatch):
  ran = faked(monkeypatch)
  rows = [tables.row('good', {}), tables.row('bad', {'layers': (2, 7)})]
  with pytest.raises(ValueError, match=r'two rows.*good'):
    sweep.run(small(folders, rows[:1] * 2), tmp_path / 'work', 'run')
  with pytest.raises(ValueError, match=r'layers.*\(2, 7\)'):
    sweep.run(small(folders, rows[1:]), tmp_path / 'work', 'run')
  with pytest.raises(ValueError, match=r"row 'odd' changes rvs\.metod.* sdp"):
    sweep.run(small(folders, [tables.row('odd', {'rvs.metod': 'pca'})]), tmp_path / 'work', 'run')
  assert not (tmp_path / 'work').exists() and not ran
  assert sweep.run(small(folders, rows), tmp_path / 'work', 'run') == ['bad']
  assert [label for label, *_ in ran] == ['good']
  assert re.search(r'bad: error: .*\(2, 7\)', (tmp_path / 'work' / 'table.md').read_text())


def test_undefined_metrics_say_why_and_empty_columns_are_left_out():
  row = sweep.Row('a', '', 'a', None, {})
  lines = [sweep.Line(row, 'a', {'x': {'value': None, 'reason': 'no masks'}, 'y': {'value': 0.5, 'reason': ''}}, {}),
           sweep.Line(row, 'b', None, {})]
  assert sweep.shown_metrics(lines, ('x', 'y')) == ['y'] and sweep.shown_metrics(lines[1:], ('x', 'y')) == ['x', 'y']
  assert sweep.undefined(lines) == ['Undefined: x (no masks)']
