"""Fit and evaluate on folders of images: what an experiment writes, and what it refuses."""

import csv
import functools
import json
import shutil
import types

import ml_collections as mlc
import pytest
from drawn_folders import draw
from PIL import Image
from small_experiments import config as small
from small_experiments import draw_folders

from zsad_jax.configs import anomalyclip, april_gan, clip, patchcore_clip, winclip
from zsad_jax.experiment import aggregate, experiment, results, setup
from zsad_jax.experiment.run import Run

config = functools.partial(small, anomalyclip)


@pytest.mark.slow
def test_the_report_shows_the_results_of_a_run(small_run, tmp_path):
  cfg, workdir = small_run
  aggregate.run([workdir], tmp_path)
  with (tmp_path / 'report.csv').open(newline='') as file:
    cell, = (row for row in csv.DictReader(file) if (row['category'], row['metric']) == ('', 'image_auroc'))
  mean = json.loads((small_run.results / 'metrics.json').read_text())['mean']['image_auroc']['value']
  assert float(cell['value']) == mean and float(cell['low']) <= mean <= float(cell['high'])  # so scores.csv fits
  assert (cell['trained_on'], cell['seeds']) == (cfg.data.aux, '3')
  scores = list(csv.DictReader((small_run.results / 'scores.csv').open(newline='')))
  assert len(scores) == 16 and scores[0].keys() == {'id', 'category', 'label', 'score'}


def test_a_run_writes_metrics_a_manifest_and_pictures(small_run):
  metrics = json.loads((small_run.results / 'metrics.json').read_text())
  assert metrics['protocol']['auxiliary']['categories'] == ['bolt', 'tile']
  assert metrics['protocol']['shared_images'] == {'count': 0, 'first': []}
  assert metrics['protocol']['target']['transparency'] == 'white' and not metrics['protocol']['allow_seen']
  assert metrics['counts']['wood'] == {'normal': 4, 'anomalous': 4, 'vanished': 0, 'contradicted': 0}
  assert 0 <= metrics['mean']['aupro']['value'] <= 1
  rows = list(csv.DictReader((small_run.results / 'per_category.csv').open()))
  assert [row['category'] for row in rows] == ['metal_nut', 'wood']
  assert float(rows[0]['aupro']) == metrics['per_category']['metal_nut']['aupro']['value']
  manifest = json.loads((small_run.results / 'manifest.json').read_text())
  assert manifest['config']['train']['epochs'] == 2
  assert len(manifest['weights_sha256']) == 64
  assert manifest['protocol'] == metrics['protocol']
  assert manifest['metric_resolution'] == 56
  for category in ('wood', 'metal_nut'):
    assert Image.open(small_run.results / 'pictures' / f'{category}.png').format == 'PNG'
  lines = [json.loads(line) for line in (small_run.workdir / 'metrics.jsonl').read_text().splitlines()]
  assert [line['epoch'] for line in lines] == [1, 2]
  page = (small_run.results / 'index.html').read_text()
  assert 'href="pictures/wood.png"' in page and 'images of target (' in page
  assert not list(small_run.workdir.rglob('*.tmp'))


@pytest.mark.slow
def test_evaluating_again_gives_the_same_numbers_and_encodes_nothing(small_run, tmp_path, capfd):
  shutil.copytree(small_run.workdir, tmp_path / 'work')
  capfd.readouterr()
  experiment.run(small_run.cfg, tmp_path / 'work', 'evaluate')
  path = small_run.results.relative_to(small_run.workdir) / 'metrics.json'
  assert json.loads((tmp_path / 'work' / path).read_text()) == json.loads((small_run.workdir / path).read_text())
  out, err = capfd.readouterr()
  assert 'metal_nut' in out and 'encode' not in err


def test_a_finished_run_is_not_trained_again(small_run):
  manifests = sorted((small_run.workdir / 'checkpoints').glob('*.manifest'))
  stamps = [path.stat().st_mtime_ns for path in manifests]
  experiment.run(small_run.cfg, small_run.workdir, 'fit')
  assert stamps and [path.stat().st_mtime_ns for path in manifests] == stamps


@pytest.mark.slow
@pytest.mark.parametrize(('mode', 'key', 'value'), [
  ('fit', 'seed', 4), ('evaluate', 'optim.lr', 0.5), ('evaluate', 'prompt.state_word', 'broken'),
  ('evaluate', 'data.aux_categories', 'tile')])
def test_checkpoints_of_another_training_are_refused(small_run, mode, key, value):
  with pytest.raises(ValueError, match=r'another run.*another workdir'):
    experiment.run(setup.with_overrides(small_run.cfg, {key: value}), small_run.workdir, mode)


@pytest.mark.slow
def test_one_training_serves_every_value_of_the_evaluation_keys(small_run, tmp_path, capfd):
  shutil.copytree(small_run.workdir, tmp_path / 'work')
  cfg = setup.with_overrides(small_run.cfg, {'map.sigma': 2.0, 'prompt.object_re': True, 'report.pictures': 0})
  assert list(experiment.run(cfg, tmp_path / 'work', 'evaluate')) == ['last (2)']
  assert 'encode' not in capfd.readouterr().err


@pytest.mark.slow
def test_crops_are_encoded_of_the_target_alone(small_run, tmp_path):
  shutil.copytree(small_run.workdir, tmp_path / 'work')
  cfg = setup.with_overrides(small_run.cfg, {
    'multicrop.recipe': 'clip_ad', 'report.pictures': 0, 'machine.feature_dir': str(tmp_path / 'features')})
  assert list(experiment.run(cfg, tmp_path / 'work', 'evaluate')) == ['last (2)']
  keys = [json.loads(path.read_text())['key'] for path in tmp_path.glob('features/*/meta.json')]
  assert sorted('crops=64' in key['spec'] for key in keys) == [False, True]  # both of the target


def test_the_oracle_epoch_is_a_result_of_its_own_and_is_called_so(small_run, tmp_path):
  shutil.copytree(small_run.workdir, tmp_path / 'work')
  cfg = setup.with_overrides(small_run.cfg, {'eval.oracle_epoch': True, 'report.pictures': 0})
  means = experiment.run(cfg, tmp_path / 'work', 'evaluate')
  folder = tmp_path / 'work' / 'results' / 'anomalyclip'
  last, oracle = (json.loads((folder / name / 'seed3' / 'metrics.json').read_text())
                  for name in ('aux-to-target', 'aux-to-target-oracle'))
  assert last['protocol']['selection'] == 'last (2)'
  selection = oracle['protocol']['selection']
  assert selection.startswith('oracle: ') and ' of 2' in selection and 'on the target' in selection
  assert oracle['mean']['image_auroc']['value'] >= last['mean']['image_auroc']['value']
  assert {key: mean['image_auroc'] for key, mean in means.items()} == {
    'last (2)': last['mean']['image_auroc'], selection: oracle['mean']['image_auroc']}


def test_the_oracle_takes_the_best_of_all_epochs_and_the_first_of_equal_ones(small_run):
  run = Run.load(setup.with_overrides(small_run.cfg, {'train.epochs': 3}))

  def oracle(values, last):
    left, restored = list(values), []
    patch.setattr(Run, 'restore', lambda self, folder, aux, epoch: restored.append(epoch) or epoch)
    result = lambda value, params=None: types.SimpleNamespace(
      summary={'image_auroc': {'value': value, 'reason': 'no normal images'}}, params=params)
    epoch, best = experiment._oracle(run, small_run.workdir, None, lambda params: result(left.pop(0), params),
                                     result(last))
    assert restored == [1, 2] and best.params in (epoch, None)
    return epoch

  with pytest.MonkeyPatch.context() as patch:
    assert oracle([0.6, 0.9], 0.8) == 2
    assert oracle([0.8, 0.8], 0.8) == 1 and oracle([0.6, 0.7], 0.8) == 3
    with pytest.raises(ValueError, match=r'eval\.oracle_epoch=True.*undefined on folder:.*no normal images'):
      oracle([0.6, 0.7], None)


def test_without_a_training_there_is_no_oracle_epoch(folders, tmp_path):
  with pytest.raises(ValueError, match=r'eval\.oracle_epoch=True.*nothing was trained'):
    experiment.run(small(clip, folders, **{'eval.oracle_epoch': True}), tmp_path, 'run')


def test_evaluating_without_a_checkpoint_names_the_modes_that_train(small_run, tmp_path):
  with pytest.raises(FileNotFoundError, match='--mode=fit'):
    experiment.run(small_run.cfg, tmp_path, 'evaluate')


@pytest.mark.parametrize(('transparency', 'pixel'), [
  ('default', (255, 255, 255)), ('white', (255, 255, 255)), ('drop', (10, 20, 30))])
def test_transparency_is_a_key_of_the_config(tmp_path, transparency, pixel):
  draw(tmp_path / 'target', {'wood': (90, 60, 30)})
  clear = Image.new('RGBA', (72, 72), (10, 20, 30, 0))
  clear.save(tmp_path / 'target' / 'wood' / 'test' / 'good' / '000.png')
  dataset = setup.open_data(config(tmp_path, **{'data.transparency': transparency}), 'target')
  assert dataset[dataset.ids.index('wood/test/good/000')]['image'].getpixel((0, 0)) == pixel


@pytest.mark.slow
def test_switches_without_trainable_parameters_evaluate_untrained(small_run, tmp_path):
  cfg = setup.with_overrides(small_run.cfg, {
    't2_object_agnostic': False, 't2_off': 'no_context', 't3_text_tuning': False, 'seed': 5, 'report.pictures': 0})
  experiment.run(cfg, tmp_path, 'run')
  metrics = json.loads((tmp_path / 'results/anomalyclip/nothing-to-target/seed5/metrics.json').read_text())
  assert metrics['protocol']['selection'] == 'none'
  assert not (tmp_path / 'checkpoints').exists()


@pytest.mark.slow
def test_without_the_store_the_numbers_are_the_same_and_nothing_is_stored(small_run, tmp_path, capfd):
  cfg = setup.with_overrides(small_run.cfg, {
    'machine.store_features': False, 'machine.feature_dir': str(tmp_path / 'features'), 'report.pictures': 0})
  means, = experiment.run(cfg, tmp_path / 'work', 'run').values()
  assert not (tmp_path / 'features').exists()
  assert 'features of aux are not stored' in capfd.readouterr().out
  stored = json.loads((small_run.results / 'metrics.json').read_text())['mean']
  for metric, mean in stored.items():
    assert means[metric]['value'] == pytest.approx(mean['value'], abs=2e-3), metric


@pytest.mark.parametrize(('key', 'value', 'message'), [
  ('train.epochs', 0, 'train.epochs=0.* at least 1'),
  ('train.batch', -1, 'train.batch=-1'),
  ('eval.fpr_limit', 1.5, r'eval.fpr_limit=1.5.*\(0, 1\]'),
  ('machine.max_feature_gb', 0.0, 'machine.max_feature_gb=0.*positive'),
  ('feature_dtype', 'fp8', "feature_dtype='fp8'.*float32, bfloat16"),
  ('data.transparency', 'black', "data.transparency='black'.*default, white, drop"),
  ('data.exif', 'turn', "data.exif='turn'.*ignore, apply"),
  ('data.on_bad', 'drop', "data.on_bad='drop'.*error, skip"),
  ('image_size', 57, 'image_size=57 .*multiple of the patch size 8'),
  ('local_layers', (7,), r'local_layers=\(7,\).*\[1, 6\]'),
  ('dpam.first_block', 0, r'dpam.first_block=0.*'),
  ('prompt.deep_len', 13, 'prompt.deep_len=13'),
  ('prompt.depth', 5, 'prompt.depth=5'),
  ('report.attention', -1, 'report.attention=-1'),
  ('method', 'anomalyclp', "unknown method 'anomalyclp'.*did you mean 'anomalyclip'"),
  ('clip', 'vit_l14_363', 'did you mean vit_l14_336'),
])
def test_values_out_of_range_are_refused_before_data_and_weights(tmp_path, key, value, message):
  with pytest.raises(ValueError, match=message):
    experiment.run(config(tmp_path, **{key: value}), tmp_path, 'run')


def test_training_and_testing_on_the_same_categories_is_refused(tmp_path):
  same = {'data.aux': 'visa', 'data.target': 'visa', 'machine.manual_dir': str(tmp_path)}
  for changes, message in (
      ({}, 'share every category.*allow_seen'),
      ({'data.aux_categories': 'pcb1,pcb2', 'data.target_categories': 'pcb1'}, 'share pcb1'),
      ({'data.aux': 'colon_ad', 'data.target': 'cvc_colondb'}, 'colon_ad contains cvc_colondb')):
    with pytest.raises(ValueError, match=message):
      experiment.run(config(tmp_path, **(same | changes)), tmp_path, 'run')
  for changes in ({'data.aux_categories': 'pcb1', 'data.target_categories': 'pcb2'}, {'data.allow_seen': True}):
    with pytest.raises(FileNotFoundError, match='VisA'):  # past the guard
      experiment.run(config(tmp_path, **same, **changes), tmp_path, 'run')


def test_a_training_free_method_may_be_evaluated_on_the_auxiliary_data_set(tmp_path):
  cfg = small(clip, tmp_path, **{'data.aux': 'visa', 'data.target': 'visa'})
  with pytest.raises(FileNotFoundError, match='VisA'):
    experiment.run(cfg, tmp_path, 'run')


def test_shared_images_are_refused_before_training_unless_allowed(tmp_path, monkeypatch):
  draw_folders(tmp_path)
  shutil.copy(tmp_path / 'aux' / 'bolt' / 'test' / 'good' / '001.png',
              tmp_path / 'target' / 'wood' / 'test' / 'good' / '003.png')
  fitted = []
  monkeypatch.setattr(Run, 'fit', lambda self, workdir, aux: fitted.append(workdir))
  monkeypatch.setattr(Run, 'restore', lambda self, workdir, aux: {})
  monkeypatch.setattr(experiment, 'evaluate_target', lambda *args: {})
  for mode in ('run', 'evaluate'):
    with pytest.raises(ValueError, match=r'1 of the 16 images of target .*bolt/test/good/001.*wood/test/good/003'):
      experiment.run(config(tmp_path), tmp_path, mode)
  assert not fitted
  experiment.run(config(tmp_path, **{'data.allow_seen': True}), tmp_path, 'run')
  assert fitted == [tmp_path]


@pytest.mark.parametrize('module', [pytest.param(winclip, marks=pytest.mark.slow), patchcore_clip])
def test_references_are_normal_training_images_and_are_named_in_the_result(folders, tmp_path, module):
  experiment.run(small(module, folders, **{'fewshot.shots': 2, 'seed': 4}), tmp_path, 'run')
  path, = tmp_path.glob('results/*/nothing-to-target-2shot/seed4/metrics.json')
  references = json.loads(path.read_text())['protocol']['references']
  assert set(references) == {'metal_nut', 'wood'}
  for category, ids in references.items():
    assert len(set(ids)) == 2 and all(i.startswith(f'{category}/train/good/') for i in ids)


def test_more_references_than_there_are_is_an_error(folders, tmp_path):
  with pytest.raises(ValueError, match=r'fewshot\.shots.*4.*metal_nut.*3 normal'):
    experiment.run(small(patchcore_clip, folders, **{'fewshot.shots': 4}), tmp_path, 'run')


def test_a_negative_number_of_references_is_refused_first(tmp_path):
  with pytest.raises(ValueError, match=r'fewshot\.shots=-1.*at least 0'):
    experiment.run(small(winclip, tmp_path, **{'fewshot.shots': -1}), tmp_path, 'run')


@pytest.mark.slow
def test_april_gan_trains_on_mosaics_and_postprocesses_each_category(folders, tmp_path, capfd):
  cfg = small(april_gan, folders, **{'fewshot.shots': 1, 'mosaic': .5, 'seed': 1, 'data.aux_categories': 'bolt'})
  experiment.run(cfg, tmp_path, 'run')
  assert 'every epoch runs the image tower' in capfd.readouterr().out
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert [line['epoch'] for line in lines] == [1, 2]
  assert (tmp_path / 'results/april_gan/aux-to-target-1shot/seed1/metrics.json').exists()


@pytest.mark.parametrize(('arg', 'changes', 'auroc'), [
  ('plus2', {}, 94.4), ('plus2', {'fewshot.shots': 4}, None), (None, {}, 91.8), (None, {'clip': 'vit_l14_336'}, None)])
def test_published_means_are_shown_only_for_the_setup_they_were_measured_with(arg, changes, auroc):
  c = winclip.get_config(arg)
  c.update_from_flattened_dict({'data.target': 'mvtec_ad', **changes})
  means = results.published(mlc.FrozenConfigDict(c))
  assert means is None if auroc is None else means['image_auroc'] == auroc


def test_a_checkpoint_of_a_method_without_released_ones_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"checkpoint='x\.safetensors'.*clip has no released checkpoints"):
    experiment.run(small(clip, tmp_path, checkpoint='x.safetensors'), tmp_path, 'run')
