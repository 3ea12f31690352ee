"""Fit and evaluate on folders of pictures: what an experiment writes, and what it refuses."""

import csv
import json
import shutil
import types

import ml_collections as mlc
import numpy as np
import pytest
from drawn_folders import draw
from PIL import Image

from zsad_jax import data
from zsad_jax.clip.weights import safetensors_files
from zsad_jax.configs import anomalyclip, april_gan, clip, patchcore_clip, winclip
from zsad_jax.data import few_shot_references
from zsad_jax.experiment import aggregate, experiment, results, setup


def config(tmp, **changes):
  """The demo config on two drawn folders, small and short."""
  c = anomalyclip.get_config('demo')
  c.update_from_flattened_dict({
    'image_size': 56, 'seed': 3, 'train.epochs': 2, 'train.batch': 4, 'machine.encode_batch': 4, 'machine.eval_batch': 4,
    'report.pictures': 2, 'machine.data_dir': str(tmp / 'data'), 'data.aux': f'folder:{tmp / "aux"}',
    'data.target': f'folder:{tmp / "target"}'} | changes)
  return mlc.FrozenConfigDict(c)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """One finished run: (config, workdir, its results folder)."""
  tmp = tmp_path_factory.mktemp('run')
  draw(tmp / 'aux', {'tile': (100, 40, 40), 'bolt': (40, 100, 40)})
  draw(tmp / 'target', {'wood': (90, 60, 30), 'metal_nut': (60, 60, 90)}, seed=1)
  cfg, workdir = config(tmp), tmp / 'work'
  workdir.mkdir()
  experiment.run(cfg, workdir, 'run')
  return cfg, workdir, workdir / 'results' / 'anomalyclip' / 'aux-to-target' / 'seed3'


def test_the_report_shows_what_a_run_leaves(run, tmp_path):
  cfg, workdir, results = run
  aggregate.run([workdir], tmp_path)
  with (tmp_path / 'report.csv').open(newline='') as file:
    cell, = (row for row in csv.DictReader(file) if (row['category'], row['metric']) == ('', 'image_auroc'))
  mean = json.loads((results / 'metrics.json').read_text())['mean']['image_auroc']['value']
  assert float(cell['value']) == mean and float(cell['low']) <= mean <= float(cell['high'])  # so scores.csv fits
  assert (cell['trained_on'], cell['seeds']) == (cfg.data.aux, '3')
  scores = list(csv.DictReader((results / 'scores.csv').open(newline='')))
  assert len(scores) == 16 and scores[0].keys() == {'id', 'category', 'label', 'score'}


def test_writes_results_a_manifest_and_pictures(run):
  _cfg, workdir, results = run
  metrics = json.loads((results / 'metrics.json').read_text())
  assert metrics['protocol']['auxiliary']['categories'] == ['bolt', 'tile']
  assert metrics['protocol']['shared_images'] == {'count': 0, 'first': []}
  assert metrics['protocol']['target']['transparency'] == 'white' and not metrics['protocol']['allow_seen']
  assert metrics['counts']['wood'] == {'normal': 4, 'anomalous': 4, 'vanished': 0, 'contradicted': 0}
  assert 0 <= metrics['mean']['aupro']['value'] <= 1
  rows = list(csv.DictReader((results / 'per_category.csv').open()))
  assert [row['category'] for row in rows] == ['metal_nut', 'wood']
  assert float(rows[0]['aupro']) == metrics['per_category']['metal_nut']['aupro']['value']
  manifest = json.loads((results / 'manifest.json').read_text())
  assert manifest['config']['train']['epochs'] == 2
  assert len(manifest['weights_sha256']) == 64
  assert manifest['protocol'] == metrics['protocol']
  assert manifest['metric_resolution'] == 56
  for category in ('wood', 'metal_nut'):
    assert Image.open(results / 'pictures' / f'{category}.png').format == 'PNG'
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert [line['epoch'] for line in lines] == [1, 2]
  page = (results / 'index.html').read_text()
  assert 'href="pictures/wood.png"' in page and 'images of target (' in page
  assert not list(workdir.rglob('*.tmp'))


def test_evaluating_again_gives_the_same_numbers_and_encodes_nothing(run, capfd):
  cfg, workdir, results = run
  before = json.loads((results / 'metrics.json').read_text())
  capfd.readouterr()
  experiment.run(cfg, workdir, 'evaluate')
  assert json.loads((results / 'metrics.json').read_text()) == before
  out, err = capfd.readouterr()
  assert 'metal_nut' in out
  assert 'encode' not in err


def test_a_finished_run_is_not_trained_again(run, capfd):
  cfg, workdir, _ = run
  learned = sorted((workdir / 'checkpoints').glob('*.manifest'))
  stamps = [p.stat().st_mtime_ns for p in learned]
  experiment.run(cfg, workdir, 'fit')
  assert [p.stat().st_mtime_ns for p in learned] == stamps


def test_another_recipe_in_the_same_workdir_is_refused(run):
  cfg, workdir, _ = run
  changed = mlc.ConfigDict(cfg.to_dict())
  changed.seed = 4
  with pytest.raises(ValueError, match='another run'):
    experiment.run(mlc.FrozenConfigDict(changed), workdir, 'fit')


@pytest.mark.parametrize(('key', 'value'), [
  ('optim.lr', 0.5), ('prompt.state_word', 'broken'), ('data.aux_categories', 'tile')])
def test_prompts_of_another_recipe_are_not_evaluated_under_this_one(run, key, value):
  cfg, workdir, _ = run
  changed = mlc.ConfigDict(cfg.to_dict())
  changed.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match='another run'):
    experiment.run(mlc.FrozenConfigDict(changed), workdir, 'evaluate')


def test_one_training_serves_every_value_of_the_evaluation_keys(run, tmp_path):
  cfg, workdir, _ = run
  shutil.copytree(workdir, tmp_path / 'work')
  changed = mlc.ConfigDict(cfg.to_dict())
  changed.update_from_flattened_dict(
    {'map.sigma': 2.0, 'prompt.object_re': True, 'multicrop.recipe': 'clip_ad', 'report.pictures': 0})
  experiment.run(mlc.FrozenConfigDict(changed), tmp_path / 'work', 'evaluate')
  keys = [json.loads(p.read_text())['key'] for p in workdir.parent.glob('data/features/*/meta.json')]
  assert len(keys) == 3, [(key['spec'], key['data'][:6]) for key in keys]
  assert sum('crops=64' in key['spec'] for key in keys) == 1  # none of the auxiliary images


def test_evaluate_without_a_checkpoint_says_how_to_get_one(run, tmp_path):
  with pytest.raises(FileNotFoundError, match='--mode=fit'):
    experiment.run(run[0], tmp_path, 'evaluate')


def test_official_prompts_evaluate_without_training(run, tmp_path):
  cfg = run[0]
  rng = np.random.default_rng(0)
  arrays = {name: rng.normal(0, 0.02, (1, 1, 12, 128)).astype(np.float32) for name in ('ctx_pos', 'ctx_neg')}
  arrays |= {f'compound_prompts_text.{i}': rng.normal(0, 0.02, (4, 128)).astype(np.float32) for i in range(3)}
  safetensors_files.write(tmp_path / 'prompts.safetensors', arrays)
  changed = mlc.ConfigDict(cfg.to_dict())
  changed.checkpoint = str(tmp_path / 'prompts.safetensors')
  experiment.run(mlc.FrozenConfigDict(changed), tmp_path, 'run')
  found = json.loads((tmp_path / 'results/anomalyclip/nothing-to-target/seed3/metrics.json').read_text())
  assert found['protocol']['auxiliary'] is None
  assert found['protocol']['checkpoint'].endswith('prompts.safetensors')


@pytest.mark.parametrize(('transparency', 'pixel'), [
  ('default', (255, 255, 255)), ('white', (255, 255, 255)), ('drop', (10, 20, 30))])
def test_transparency_is_a_switch_of_the_config(tmp_path, transparency, pixel):
  draw(tmp_path / 'target', {'wood': (90, 60, 30)})
  clear = Image.new('RGBA', (72, 72), (10, 20, 30, 0))
  clear.save(tmp_path / 'target' / 'wood' / 'test' / 'good' / '000.png')
  dataset = setup.open_data(config(tmp_path, **{'data.transparency': transparency}), 'target')
  assert dataset[dataset.ids.index('wood/test/good/000')]['image'].getpixel((0, 0)) == pixel


def test_switches_that_leave_nothing_to_learn_evaluate_untrained(run, tmp_path):
  changed = mlc.ConfigDict(run[0].to_dict())
  changed.update_from_flattened_dict(
    {'t2_object_agnostic': False, 't2_off': 'no_context', 't3_text_tuning': False, 'seed': 5})
  experiment.run(mlc.FrozenConfigDict(changed), tmp_path, 'run')
  found = json.loads((tmp_path / 'results/anomalyclip/nothing-to-target/seed5/metrics.json').read_text())
  assert found['protocol']['selection'] == 'none'
  assert not (tmp_path / 'checkpoints').exists()


def test_without_the_store_the_numbers_are_the_same_and_the_disk_stays_empty(run, tmp_path, capfd):
  cfg, _, results = run
  changed = mlc.ConfigDict(cfg.to_dict())
  changed.machine.store_features = False
  changed.machine.feature_dir = str(tmp_path / 'features')
  experiment.run(mlc.FrozenConfigDict(changed), tmp_path / 'work', 'run')
  assert not (tmp_path / 'features').exists()
  assert 'features of aux are not stored' in capfd.readouterr().out
  again = json.loads((tmp_path / 'work/results/anomalyclip/aux-to-target/seed3/metrics.json').read_text())
  before = json.loads((results / 'metrics.json').read_text())
  for metric, mean in before['mean'].items():
    assert again['mean'][metric]['value'] == pytest.approx(mean['value'], abs=2e-3), metric


@pytest.mark.parametrize(('key', 'value', 'message'), [
  ('train.epochs', 0, 'train.epochs is 0; it must be at least 1'),
  ('train.batch', -1, 'train.batch is -1'),
  ('eval.fpr_limit', 1.5, r'eval.fpr_limit is 1.5; it must lie in \(0, 1\]'),
  ('machine.max_feature_gb', 0.0, 'machine.max_feature_gb is 0'),
  ('feature_dtype', 'fp8', "feature_dtype is 'fp8'.*float32, bfloat16"),
  ('data.transparency', 'black', "data.transparency is 'black'.*default, white, drop"),
  ('data.exif', 'turn', "data.exif is 'turn'.*ignore, apply"),
  ('image_size', 57, 'image_size 57 .*multiple of the patch size 8'),
  ('local_layers', (7,), r'local_layers 7 is not in 1\.\.6'),
  ('dpam.first_block', 0, r'dpam.first_block 0 is not in 1\.\.6'),
  ('prompt.deep_len', 13, r'prompt.deep_len \(L\) 13'),
  ('prompt.depth', 5, r'prompt.depth \(M\) 5'),
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
    with pytest.raises(FileNotFoundError, match='VisA must be downloaded'):      # past the guard
      experiment.run(config(tmp_path, **same, **changes), tmp_path, 'run')


def test_an_untrained_method_may_be_evaluated_on_what_would_be_trained_on(tmp_path):
  c = clip.get_config('demo')
  c.update_from_flattened_dict({'machine.data_dir': str(tmp_path), 'data.aux': 'visa', 'data.target': 'visa'})
  with pytest.raises(FileNotFoundError, match='VisA must be downloaded'):
    experiment.run(mlc.FrozenConfigDict(c), tmp_path, 'run')


def test_shared_images_are_refused_before_training_unless_allowed(tmp_path, monkeypatch):
  draw(tmp_path / 'aux', {'bolt': (40, 100, 40)})
  draw(tmp_path / 'target', {'wood': (90, 60, 30)}, seed=1)
  shutil.copy(tmp_path / 'aux' / 'bolt' / 'test' / 'good' / '001.png',
              tmp_path / 'target' / 'wood' / 'test' / 'good' / '003.png')
  trained = []
  monkeypatch.setattr(experiment, 'fit', lambda *args: trained.append(args))
  monkeypatch.setattr(experiment, 'trained', lambda *args: None)
  monkeypatch.setattr(experiment, 'evaluate_target', lambda *args: None)
  for mode in ('run', 'evaluate'):
    with pytest.raises(ValueError, match=r'1 of the 8 images of target .* bolt/test/good/001 = wood/test/good/003'):
      experiment.run(config(tmp_path), tmp_path, mode)
  assert not trained
  experiment.run(config(tmp_path, **{'data.allow_seen': True}), tmp_path, 'run')
  assert len(trained) == 1


def small(module, tmp, arg='demo', **changes):
  """A config's demo on two drawn folders."""
  c = module.get_config(arg)
  c.update_from_flattened_dict({
    'image_size': 56, 'machine.encode_batch': 4, 'machine.eval_batch': 4, 'report.pictures': 0, 'machine.data_dir': str(tmp / 'data'),
    'data.aux': f'folder:{tmp / "aux"}', 'data.target': f'folder:{tmp / "target"}'} | changes)
  return mlc.FrozenConfigDict(c)


@pytest.fixture
def folders(tmp_path):
  draw(tmp_path / 'aux', {'tile': (100, 40, 40)})
  draw(tmp_path / 'target', {'wood': (90, 60, 30), 'metal_nut': (60, 60, 90)}, seed=1, train=3)
  return tmp_path


@pytest.mark.parametrize('module', [winclip, patchcore_clip], ids=lambda m: m.__name__)
def test_references_are_normal_training_images_and_are_named_in_the_result(folders, module):
  cfg = small(module, folders, **{'fewshot.shots': 2, 'seed': 4})
  experiment.run(cfg, folders / 'work', 'run')
  path, = folders.glob('work/results/*/nothing-to-target-2shot/seed4/metrics.json')
  found = json.loads(path.read_text())['protocol']['references']
  assert set(found) == {'metal_nut', 'wood'}
  for category, ids in found.items():
    assert len(set(ids)) == 2 and all(i.startswith(f'{category}/train/good/') for i in ids)


def test_more_references_than_there_are_is_an_error(folders):
  with pytest.raises(ValueError, match=r"fewshot\.shots is 4, but metal_nut has 3 normal images in split 'train'"):
    experiment.run(small(patchcore_clip, folders, **{'fewshot.shots': 4}), folders / 'work', 'run')


def test_a_negative_number_of_references_is_refused_first(tmp_path):
  with pytest.raises(ValueError, match=r'fewshot\.shots is -1; it must be at least 0'):
    experiment.run(small(winclip, tmp_path, **{'fewshot.shots': -1}), tmp_path, 'run')


def test_references_are_drawn_by_seed_and_category(folders):
  whole = data.load(f'folder:{folders}/target', root=folders / 'data', split='train')
  part = data.load(f'folder:{folders}/target', root=folders / 'data', split='train', categories=('wood',))
  drawn = few_shot_references.draw(whole, 2, seed=0)
  assert drawn.shape == (2, 2) and (whole.category_index[drawn] == [[0], [1]]).all()
  np.testing.assert_array_equal(few_shot_references.draw(whole, 2, seed=0), drawn)
  assert [part.ids[i] for i in few_shot_references.draw(part, 2, seed=0)[0]] == [whole.ids[i] for i in drawn[1]]
  assert len({tuple(few_shot_references.draw(whole, 2, seed=s)[0]) for s in range(20)}) == 3
  assert few_shot_references.draw(whole, 50, seed=0, replacement=True).shape == (2, 50)


def test_april_gan_trains_with_mosaics_and_finishes_per_category(folders, capfd):
  cfg = small(april_gan, folders, **{'train.epochs': 2, 'train.batch': 4, 'fewshot.shots': 1, 'mosaic': .5, 'seed': 1})
  experiment.run(cfg, folders / 'work', 'run')
  assert 'every epoch runs the image tower' in capfd.readouterr().out
  lines = [json.loads(line) for line in (folders / 'work/metrics.jsonl').read_text().splitlines()]
  assert [line['epoch'] for line in lines] == [1, 2]
  assert (folders / 'work/results/april_gan/aux-to-target-1shot/seed1/metrics.json').exists()


def test_a_method_may_ask_for_another_activation(folders):
  cfg = small(april_gan, folders)
  method = experiment.methods.get('april_gan')
  for act in ('gelu', 'quick_gelu'):
    changed = mlc.ConfigDict(cfg.to_dict())
    changed.act = act
    assert setup.load_clip(mlc.FrozenConfigDict(changed), method).arch.activation == act


def test_names_of_published_sets_are_those_of_folders_unless_the_catalogue_is_asked():
  visa = types.SimpleNamespace(name='visa', categories=('pcb1', 'pipe_fryum'),
                               object_names={'pcb1': 'printed circuit board', 'pipe_fryum': 'pipe fryum'})
  cfg = mlc.FrozenConfigDict(clip.get_config())
  assert setup.names(cfg, visa) == ('pcb1', 'pipe fryum')
  asked = setup.with_changes(cfg, {'object_names': 'catalogue'})
  assert setup.names(asked, visa) == ('printed circuit board', 'pipe fryum')


def test_names_are_spoken_or_raw(folders):
  dataset = data.load(f'folder:{folders}/target', root=folders / 'data')
  assert setup.names(small(clip, folders), dataset) == ('metal nut', 'wood')
  assert setup.names(small(winclip, folders), dataset) == ('metal_nut', 'wood')


@pytest.mark.parametrize(('arg', 'changes', 'auroc'), [
  ('plus2', {}, 94.4), ('plus2', {'fewshot.shots': 4}, None), (None, {}, 91.8), (None, {'clip': 'vit_l14_336'}, None)])
def test_published_numbers_stand_beside_what_they_were_measured_with(arg, changes, auroc):
  c = winclip.get_config(arg)
  c.update_from_flattened_dict({'data.target': 'mvtec_ad', **changes})
  found = results.published(mlc.FrozenConfigDict(c))
  assert found is None if auroc is None else found['image_auroc'] == auroc


def test_a_checkpoint_of_a_method_without_one_is_refused(folders):
  with pytest.raises(ValueError, match=r"checkpoint is .x\.safetensors., but no trained parts of clip are published"):
    experiment.run(small(clip, folders, checkpoint='x.safetensors'), folders / 'work', 'run')
