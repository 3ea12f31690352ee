"""The command as a user runs it: fit and evaluate on folders of pictures, what it writes, and what it refuses."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import ml_collections as mlc
import numpy as np
import pytest
from PIL import Image

import launch
from configs import anomalyclip, clip, common
from zsad_jax.models import files

ROOT = Path(__file__).parents[1]


def draw(root, categories, images=4, size=72, seed=0):
  """A folder in MVTec layout: noise in the category's colour, a bright square where it is damaged."""
  rng = np.random.default_rng(seed)
  for category, colour in categories.items():
    for split, kind, count in (('train', 'good', 1), ('test', 'good', images), ('test', 'spot', images)):
      for i in range(count):
        pixels = rng.integers(0, 60, (size, size, 3)) + np.array(colour)
        mask = np.zeros((size, size), np.uint8)
        if kind == 'spot':
          y, x = rng.integers(0, size - 20, 2)
          pixels[y:y + 20, x:x + 20] = 255
          mask[y:y + 20, x:x + 20] = 255
          truth = root / category / 'ground_truth' / kind / f'{i:03d}_mask.png'
          truth.parent.mkdir(parents=True, exist_ok=True)
          Image.fromarray(mask).save(truth)
        path = root / category / split / kind / f'{i:03d}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
  return root


def config(tmp, **changes):
  """The demo config on two drawn folders, small and short."""
  c = anomalyclip.get_config('demo')
  c.update_from_flattened_dict({
    'image_size': 56, 'seed': 3, 'train.epochs': 2, 'train.batch': 4, 'features.batch': 4, 'eval.batch': 4,
    'eval.pictures': 2, 'data.root': str(tmp / 'data'), 'data.aux': f'folder:{tmp / "aux"}',
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
  launch.run(cfg, workdir, 'run')
  return cfg, workdir, workdir / 'results' / 'anomalyclip' / 'aux-to-target' / 'seed3'


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
  assert 'src="pictures/wood.png"' in page and 'images of target (' in page
  assert not list(workdir.rglob('*.tmp'))


def test_evaluating_again_gives_the_same_numbers_and_encodes_nothing(run, capfd):
  cfg, workdir, results = run
  before = json.loads((results / 'metrics.json').read_text())
  capfd.readouterr()
  launch.run(cfg, workdir, 'evaluate')
  assert json.loads((results / 'metrics.json').read_text()) == before
  out, err = capfd.readouterr()
  assert 'metal_nut' in out
  assert 'encode' not in err


def test_a_finished_run_is_not_trained_again(run, capfd):
  cfg, workdir, _ = run
  learned = sorted((workdir / 'checkpoints').glob('*.manifest'))
  stamps = [p.stat().st_mtime_ns for p in learned]
  launch.run(cfg, workdir, 'fit')
  assert [p.stat().st_mtime_ns for p in learned] == stamps


def test_another_recipe_in_the_same_workdir_is_refused(run):
  cfg, workdir, _ = run
  changed = mlc.ConfigDict(cfg.to_dict())
  changed.seed = 4
  with pytest.raises(ValueError, match='another run'):
    launch.run(mlc.FrozenConfigDict(changed), workdir, 'fit')


@pytest.mark.parametrize(('key', 'value'), [
  ('optim.lr', 0.5), ('prompt.state_word', 'broken'), ('data.aux_categories', 'tile')])
def test_prompts_of_another_recipe_are_not_evaluated_under_this_one(run, key, value):
  cfg, workdir, _ = run
  changed = mlc.ConfigDict(cfg.to_dict())
  changed.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match='another run'):
    launch.run(mlc.FrozenConfigDict(changed), workdir, 'evaluate')


def test_one_training_serves_every_value_of_the_evaluation_keys(run, tmp_path):
  cfg, workdir, _ = run
  shutil.copytree(workdir, tmp_path / 'work')
  changed = mlc.ConfigDict(cfg.to_dict())
  changed.update_from_flattened_dict({'map.sigma': 2.0, 'prompt.object_re': True, 'eval.pictures': 0})
  launch.run(mlc.FrozenConfigDict(changed), tmp_path / 'work', 'evaluate')


def test_evaluate_without_a_checkpoint_says_how_to_get_one(run, tmp_path):
  with pytest.raises(FileNotFoundError, match='--mode=fit'):
    launch.run(run[0], tmp_path, 'evaluate')


def test_official_prompts_evaluate_without_training(run, tmp_path):
  cfg = run[0]
  rng = np.random.default_rng(0)
  arrays = {name: rng.normal(0, 0.02, (1, 1, 12, 128)).astype(np.float32) for name in ('ctx_pos', 'ctx_neg')}
  arrays |= {f'compound_prompts_text.{i}': rng.normal(0, 0.02, (4, 128)).astype(np.float32) for i in range(3)}
  files.write_safetensors(tmp_path / 'prompts.safetensors', arrays)
  changed = mlc.ConfigDict(cfg.to_dict())
  changed.checkpoint = str(tmp_path / 'prompts.safetensors')
  launch.run(mlc.FrozenConfigDict(changed), tmp_path, 'run')
  found = json.loads((tmp_path / 'results/anomalyclip/nothing-to-target/seed3/metrics.json').read_text())
  assert found['protocol']['auxiliary'] is None
  assert found['protocol']['checkpoint'].endswith('prompts.safetensors')


@pytest.mark.parametrize(('transparency', 'pixel'), [
  ('default', (255, 255, 255)), ('white', (255, 255, 255)), ('drop', (10, 20, 30))])
def test_transparency_is_a_switch_of_the_config(tmp_path, transparency, pixel):
  draw(tmp_path / 'target', {'wood': (90, 60, 30)})
  clear = Image.new('RGBA', (72, 72), (10, 20, 30, 0))
  clear.save(tmp_path / 'target' / 'wood' / 'test' / 'good' / '000.png')
  dataset = launch.open_data(config(tmp_path, **{'data.transparency': transparency}), 'target')
  assert dataset[dataset.ids.index('wood/test/good/000')]['image'].getpixel((0, 0)) == pixel


def test_switches_that_leave_nothing_to_learn_evaluate_untrained(run, tmp_path):
  changed = mlc.ConfigDict(run[0].to_dict())
  changed.update_from_flattened_dict(
    {'t2_object_agnostic': False, 't2_off': 'no_context', 't3_text_tuning': False, 'seed': 5})
  launch.run(mlc.FrozenConfigDict(changed), tmp_path, 'run')
  found = json.loads((tmp_path / 'results/anomalyclip/nothing-to-target/seed5/metrics.json').read_text())
  assert found['protocol']['selection'] == 'none'
  assert not (tmp_path / 'checkpoints').exists()


def test_without_the_store_the_numbers_are_the_same_and_the_disk_stays_empty(run, tmp_path):
  cfg, _, results = run
  changed = mlc.ConfigDict(cfg.to_dict())
  changed.features.store = False
  changed.features.dir = str(tmp_path / 'features')
  launch.run(mlc.FrozenConfigDict(changed), tmp_path / 'work', 'run')
  assert not (tmp_path / 'features').exists()
  again = json.loads((tmp_path / 'work/results/anomalyclip/aux-to-target/seed3/metrics.json').read_text())
  before = json.loads((results / 'metrics.json').read_text())
  for metric, mean in before['mean'].items():
    assert again['mean'][metric]['value'] == pytest.approx(mean['value'], abs=2e-3), metric


@pytest.mark.parametrize(('key', 'value', 'message'), [
  ('train.epochs', 0, 'train.epochs is 0; it must be at least 1'),
  ('train.batch', -1, 'train.batch is -1'),
  ('eval.fpr_limit', 1.5, r'eval.fpr_limit is 1.5; it must lie in \(0, 1\]'),
  ('features.max_gb', 0.0, 'features.max_gb is 0'),
  ('features.storage', 'fp8', "features.storage is 'fp8'.*float32, bfloat16"),
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
    launch.run(config(tmp_path, **{key: value}), tmp_path, 'run')


def test_training_and_testing_on_the_same_categories_is_refused(tmp_path):
  same = {'data.aux': 'visa', 'data.target': 'visa', 'data.manual_dir': str(tmp_path)}
  for changes, message in (
      ({}, 'share every category.*allow_seen'),
      ({'data.aux_categories': 'pcb1,pcb2', 'data.target_categories': 'pcb1'}, 'share pcb1'),
      ({'data.aux': 'colon_ad', 'data.target': 'cvc_colondb'}, 'colon_ad contains cvc_colondb')):
    with pytest.raises(ValueError, match=message):
      launch.run(config(tmp_path, **(same | changes)), tmp_path, 'run')
  for changes in ({'data.aux_categories': 'pcb1', 'data.target_categories': 'pcb2'}, {'data.allow_seen': True}):
    with pytest.raises(FileNotFoundError, match='VisA must be downloaded'):      # past the guard
      launch.run(config(tmp_path, **same, **changes), tmp_path, 'run')


def test_an_untrained_method_may_be_evaluated_on_what_would_be_trained_on(tmp_path):
  c = clip.get_config('demo')
  c.update_from_flattened_dict({'data.root': str(tmp_path), 'data.aux': 'visa', 'data.target': 'visa'})
  with pytest.raises(FileNotFoundError, match='VisA must be downloaded'):
    launch.run(mlc.FrozenConfigDict(c), tmp_path, 'run')


def test_shared_images_are_refused_before_training_unless_allowed(tmp_path, monkeypatch):
  draw(tmp_path / 'aux', {'bolt': (40, 100, 40)})
  draw(tmp_path / 'target', {'wood': (90, 60, 30)}, seed=1)
  shutil.copy(tmp_path / 'aux' / 'bolt' / 'test' / 'good' / '001.png',
              tmp_path / 'target' / 'wood' / 'test' / 'good' / '003.png')
  trained = []
  monkeypatch.setattr(launch, 'fit', lambda *args: trained.append(args))
  monkeypatch.setattr(launch, 'trained', lambda *args: None)
  monkeypatch.setattr(launch, 'evaluate_target', lambda *args: None)
  for mode in ('run', 'evaluate'):
    with pytest.raises(ValueError, match=r'1 of the 8 images of target .* bolt/test/good/001 = wood/test/good/003'):
      launch.run(config(tmp_path), tmp_path, mode)
  assert not trained
  launch.run(config(tmp_path, **{'data.allow_seen': True}), tmp_path, 'run')
  assert len(trained) == 1


def test_pictured_takes_half_anomalous_and_fills_up_where_a_class_is_short():
  class Set:
    categories = ('a', 'b')
    category_index = np.repeat([0, 1], [20, 5])
    labels = np.array([0] * 10 + [1] * 10 + [0, 1, 1, 1, 1])

  chosen = launch.pictured(Set, 6)
  assert len(chosen) == len(set(chosen))
  first = [i for i in chosen if i < 20]
  assert len(first) == 6
  assert Set.labels[first].sum() == 3
  assert len(chosen) - len(first) == 5  # all that category b has
  assert launch.pictured(Set, 0) == []


def command(*args, cwd=ROOT):
  return subprocess.run([sys.executable, str(ROOT / 'launch.py'), *map(str, args)], cwd=cwd, capture_output=True,
                        text=True, check=False)


@pytest.mark.parametrize(('args', 'message'), [
  (['--config.prompt.dept=3'], "error: config: unknown key 'dept'; did you mean 'depth'?"),
  (['--config.train.epochs=many'], '--config.train.epochs=many'),
  (['--mode=train'], 'run|fit|evaluate|datasets'),
  ([], '--workdir is missing'),
])
def test_mistyped_flags_are_one_line(args, message):
  done = command('--config=configs/anomalyclip.py:demo', *args)
  assert done.returncode != 0
  assert message in done.stdout + done.stderr
  assert 'Traceback' not in done.stderr


def test_an_unusable_workdir_is_refused_first(tmp_path):
  (tmp_path / 'file').write_text('')
  done = command('--config=configs/anomalyclip.py:demo', f'--workdir={tmp_path / "file" / "work"}')
  assert done.returncode != 0
  assert 'cannot write to the workdir' in done.stderr


def test_datasets_need_no_config_and_take_options_anywhere(tmp_path):
  draw(tmp_path / 'mine', {'bolt': (40, 100, 40)}, images=1)
  done = command('--mode=datasets', 'prepare', f'folder:{tmp_path}/mine', 'visa', f'--data_root={tmp_path}')
  assert done.returncode == 1
  assert f'prepared: folder:{tmp_path}/mine; failed: visa' in done.stdout and 'VisA_20220922.tar' in done.stdout
  assert 'Traceback' not in done.stderr


def test_datasets_of_a_config_are_verified_without_being_named(tmp_path):
  done = command('--config=configs/anomalyclip.py', '--mode=datasets', 'verify', f'--manual_dir={tmp_path}',
                 f'--config.data.target=folder:{draw(tmp_path / "mine", {"bolt": (40, 100, 40)}, images=1)}')
  assert done.returncode == 1
  assert 'visa: no category folder such as' in done.stdout and 'mine: complete' in done.stdout


def test_data_sets_are_listed(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert launch.datasets(['list']) == 0
  assert 'MVTec AD' in capsys.readouterr().out


def test_mistyped_data_set_commands_are_one_line():
  with pytest.raises(SystemExit, match=r"^error: no command 'chekc'; say list, verify or prepare[^\n]*$"):
    launch.datasets(['chekc'])


def test_common_choice_names_the_variants():
  with pytest.raises(ValueError, match='unknown variant :dmo; this config has :demo'):
    common.choice('dmo', 'demo')
  assert common.choice(None, 'demo') == ''
