"""The report on results: what is averaged and what is not, what is left out, and that cells are the results' values."""

import csv
import json
import os

import numpy as np
import pytest

from zsad_jax import metrics
from zsad_jax.configs import anomalyclip, common, patchcore_clip, sdp_plus
from zsad_jax.experiment import aggregate, results
from zsad_jax.report import run_tables, tables

NO_MASKS = metrics.Value(None, 'no masks')


def write(folder, *, seed=0, shift=1.0, target='things', config=None, selection='last (15)', pixel=None,
          auxiliary='visa', method='anomalyclip', one_class=()):
  """A result as results.write leaves it: two categories of 12 images, the anomalous ones scored `shift` higher."""
  place = folder / f'seed{seed}'
  place.mkdir(parents=True)
  rng = np.random.default_rng(seed)
  labels = np.repeat([0, 1], 6)
  scores = {c: rng.normal(size=12) + shift * labels for c in ('bolt', 'wood')}
  truth = {c: np.zeros(12, int) if c in one_class else labels for c in scores}
  rows = {c: metrics.evaluate_category(truth[c], scores[c]) for c in scores}
  for at, (row, masked) in enumerate(zip(rows.values(), pixel or (None, None))):
    row |= dict.fromkeys(metrics.PIXEL_METRICS, NO_MASKS if masked is None else metrics.Value(masked + at / 100))
  plain = (config or anomalyclip.get_config()).to_dict() | {'seed': seed}
  plain['data']['target'] = target
  described = lambda name: {'name': name, 'split': 'test', 'categories': ['bolt', 'wood'], 'normal': 12,
                            'anomalous': 12, 'fingerprint': f'print of {name}'}
  protocol = {'auxiliary': auxiliary and described(auxiliary), 'target': described(target), 'selection': selection,
              'seed': seed, 'checkpoint': None, 'shared_images': {'count': 0, 'first': []}}
  (place / 'metrics.json').write_text(json.dumps({
    'protocol': protocol, 'mean': metrics.summarise(rows),
    'counts': {c: {'normal': int(sum(truth[c] == 0)), 'anomalous': int(sum(truth[c]))} for c in rows},
    'per_category': {c: {m: v._asdict() for m, v in row.items()} for c, row in rows.items()}}))
  (place / 'manifest.json').write_text(json.dumps({
    'config': plain | {'method': method}, 'weights_sha256': 'abc', 'metric_resolution': plain['image_size'],
    'git': 'rev', 'zsad_jax': '0'}))
  ids = [f'{c}/{i}' for c in scores for i in range(12)]
  (place / 'scores.csv').write_text(tables.scores_csv(
    ids, np.repeat(list(scores), 12), np.concatenate(list(truth.values())), np.concatenate(list(scores.values()))))
  return place


def lines(folder):
  return [line for line in (folder / 'report.md').read_text().splitlines() if line.startswith('| ')]


def cells(folder, **wanted):
  with (folder / 'report.csv').open(newline='') as file:
    return [row for row in csv.DictReader(file) if wanted.items() <= row.items()]


def test_seeds_of_one_experiment_are_one_row_with_its_spread_and_interval(tmp_path, capsys):
  places = [write(tmp_path / 'run' / 'results', seed=seed, target='mvtec_ad', pixel=(0.6, 0.7)) for seed in (0, 1, 2)]
  aggregate.run([tmp_path], tmp_path)
  values = [json.loads((p / 'metrics.json').read_text())['mean']['image_auroc']['value'] for p in places]
  cell, = cells(tmp_path, category='', metric='image_auroc')
  assert float(cell['value']) == pytest.approx(np.mean(values), abs=1e-12)
  assert float(cell['std']) == pytest.approx(np.std(values, ddof=1), abs=1e-12)
  assert float(cell['low']) < float(cell['value']) < float(cell['high'])
  assert (cell['seeds'], cell['published'], cell['image_size'], cell['selection']) == (
    '0, 1, 2', '0.915', '518', 'last (15)')
  head, _, row = lines(tmp_path)
  assert head.split(' | ')[5] == 'Image AUROC'
  assert row.startswith('| AnomalyCLIP | visa | 518 | last (15) | 0, 1, 2 |')
  value, std, low, high = (100 * float(cell[k]) for k in ('value', 'std', 'low', 'high'))
  assert f'| {value:.1f} ± {std:.1f} [{low:.1f}, {high:.1f}] (91.5) |' in row
  pixel, = cells(tmp_path, category='', metric='pixel_auroc')  # 0.60 and 0.71 of the two categories
  assert (float(pixel['low']), float(pixel['high'])) == (pytest.approx(0.60), pytest.approx(0.71))
  assert len(cells(tmp_path, category='bolt')) == len(metrics.METRICS)
  assert (tmp_path / 'report.md').read_text() in capsys.readouterr().out


def test_other_configs_are_never_averaged_and_their_rows_name_the_keys_that_differ(tmp_path):
  other = anomalyclip.get_config()
  other.optim.lr = 3e-4
  write(tmp_path / 'a', seed=0)
  write(tmp_path / 'b', seed=1, config=other)
  moved = anomalyclip.get_config()
  moved.machine.data_dir, moved.machine.eval_batch, moved.eval.std_ddof = '/elsewhere', 1, 0  # change no run
  write(tmp_path / 'c', seed=1, config=moved)
  aggregate.run([tmp_path], tmp_path)
  rows = [line.split(' | ') for line in lines(tmp_path)[2:]]
  assert sorted((row[0], row[4]) for row in rows) == [
    ('| AnomalyCLIP [optim.lr=0.0003]', '1'), ('| AnomalyCLIP [optim.lr=0.001]', '0, 1')]


def test_untrained_results_are_one_experiment_whatever_their_training_keys(tmp_path):
  other = anomalyclip.get_config()
  other.data.aux, other.train.epochs = 'mvtec_ad', 3
  write(tmp_path / 'a', seed=0, selection='none', auxiliary=None)
  write(tmp_path / 'b', seed=1, selection='none', auxiliary=None, config=other)
  aggregate.run([tmp_path], tmp_path)
  assert [line.split(' | ')[:5] for line in lines(tmp_path)[2:]] == [
    ['| AnomalyCLIP', 'nothing', '518', 'none', '0, 1']]


def test_targets_are_separate_oracles_are_marked_and_resolutions_named(tmp_path):
  write(tmp_path / 'a', target='one')
  plus = sdp_plus.get_config()
  write(tmp_path / 'b', target='one', config=plus, method='sdp_plus')
  write(tmp_path / 'b-oracle', target='one', config=plus, method='sdp_plus',
        selection='oracle: 2 of 5, the best on the target by Image AUROC')
  write(tmp_path / 'c', target='two')
  aggregate.run([tmp_path], tmp_path)
  text = (tmp_path / 'report.md').read_text()
  assert text.index('## one, split test') < text.index('## two, split test')
  assert '| SDP+ | visa | 240 |' in text and '| SDP+ (oracle) | visa | 240 | oracle: 2 of 5' in text
  assert 'SDP+ (oracle): the epoch was chosen on these test images' in text
  assert 'Rows differ in resolution (240, 518 px)' in text.split('## two')[0]
  assert 'resolution' not in text.split('## two')[1]


def test_undefined_cells_say_why(tmp_path):
  write(tmp_path / 'a', one_class=('wood',))
  write(tmp_path / 'b', one_class=('bolt', 'wood'), config=sdp_plus.get_config(), method='sdp_plus')
  aggregate.run([tmp_path], tmp_path)
  text = (tmp_path / 'report.md').read_text()
  assert '| SDP+ | visa | 240 | last (15) | 0 | n/a (no anomalous images) |' in text
  assert '- Pixel AUROC, Pixel AP, Pixel F1-max, AUPRO, AUPRO-200: n/a (no masks) for every row.' in text
  assert 'Pixel AUROC |' not in text
  assert ('- AnomalyCLIP: Image AUROC, Image AP, Image F1-max: means over 1 of 2 categories; wood: no anomalous '
          'images.') in text
  assert cells(tmp_path, category='wood', metric='image_ap')[0]['reason'] == 'no anomalous images'


def test_of_two_results_of_one_seed_the_newer_is_used(tmp_path, caplog):
  old, new = write(tmp_path / 'old', shift=0.0), write(tmp_path / 'new', shift=5.0)
  os.utime(old / 'metrics.json', (1, 1))
  aggregate.run([tmp_path], tmp_path)
  assert float(cells(tmp_path, category='', metric='image_auroc')[0]['value']) > 0.95
  note = f'{old}: left out, because {new} is newer and has the same config and seed'
  assert note in caplog.text and note in (tmp_path / 'report.md').read_text()


@pytest.mark.parametrize('damage', [
  lambda p: (p / 'metrics.json').write_text('{"mean":'), lambda p: (p / 'metrics.json').write_text('[]'),
  lambda p: (p / 'manifest.json').unlink(), lambda p: (p / 'manifest.json').write_text('{"config": {}}'),
  lambda p: (p / 'metrics.json').write_text((p / 'metrics.json').read_text().replace('"value": 0', '"value": 7')),
])
def test_damaged_and_foreign_results_are_named_and_left_out(tmp_path, caplog, damage):
  write(tmp_path / 'good')
  damage(write(tmp_path / 'bad', seed=1))
  aggregate.run([tmp_path], tmp_path)
  assert f'{tmp_path / "bad" / "seed1"} is left out: it is damaged or not a result' in caplog.text
  assert cells(tmp_path, category='', metric='image_auroc')[0]['seeds'] == '0'


@pytest.mark.parametrize('damage', [
  lambda text: text.replace(',1,', ',7,', 1), lambda text: text.replace(',1,', ',1,-', 5),
  lambda text: 'id,score\na,1\n', lambda text: text.rsplit('\n', 4)[0],
])
def test_scores_that_do_not_fit_the_metrics_are_not_used(tmp_path, caplog, damage):
  path = write(tmp_path / 'run') / 'scores.csv'
  path.write_text(damage(path.read_text()))
  aggregate.run([tmp_path], tmp_path)
  assert f'{path} is not used' in caplog.text
  cell, = cells(tmp_path, category='', metric='image_auroc')
  assert cell['value'] and not cell['low']


def test_folders_without_results_are_refused(tmp_path):
  with pytest.raises(ValueError, match=r'no results below .*--results'):
    aggregate.run([tmp_path], tmp_path)
  with pytest.raises(ValueError, match='runz is not a folder'):
    aggregate.run(['runz'], tmp_path)


def test_the_names_of_rows_distinguish_weights():
  def run(weights):
    return run_tables.RunResult('p', 'sdp', 'SDP', 1, {'a': 1}, (0,), {'name': 't', 'split': 'test', 'categories': [],
                      'fingerprint': ''}, 'nothing', (weights, 'none'), 240, 'none', 0, '', {}, {}, None, {}, 0.0)
  (rows,), notes = run_tables.group_runs([run('12345678-a'), run('abcdefgh-b')])
  assert [name for name, _ in rows] == ['SDP, 1 shot [weights 12345678, auxiliary data none]',
                                        'SDP, 1 shot [weights abcdefgh, auxiliary data none]'] and not notes


def test_a_recipe_has_everything_that_results_depend_on_and_may_leave_out_seeds():
  recipe = results.recipe(common.base())
  assert set(recipe) == {
    'seed', 'clip', 'arch', 'checkpoint', 'image_size', 'precision', 'data.aux', 'data.target', 'data.split',
    'data.aux_categories', 'data.target_categories', 'object_names', 'data.transparency', 'data.on_bad', 'data.exif',
    'data.allow_seen', 'train.epochs', 'train.batch', 'train.shuffle', 'feature_dtype', 'eval.fpr_limit',
    'eval.aupr', 'eval.oracle_epoch', 'eval.std_ddof'}
  c = common.base()
  c.seed, c.machine.data_dir = 5, 'elsewhere'
  assert results.recipe(c, seeds=False) == results.recipe(common.base(), seeds=False)
  assert results.recipe(c) != recipe
  few = patchcore_clip.get_config()
  assert {'seed', 'fewshot.seed'} == results.recipe(few).keys() - results.recipe(few, seeds=False).keys()
