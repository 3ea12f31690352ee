"""A Run: what its checkpoints are identified by, restoring, released parameters, features, memory banks, prediction."""

import json
import shutil

import jax
import ml_collections as mlc
import numpy as np
import pytest
from small_experiments import config

from zsad_jax import methods
from zsad_jax.clip.model import Clip
from zsad_jax.clip.weights import safetensors_files
from zsad_jax.configs import anomalyclip, april_gan, clip, common, patchcore_clip, rwda, sdp_plus
from zsad_jax.engine import runtime, train
from zsad_jax.experiment import config_files, experiment, seeds, setup
from zsad_jax.experiment.run import Run


@pytest.fixture(scope='module')
def trained(small_run):
  """(Run, auxiliary data set, workdir) of the finished small run."""
  run = Run.load(small_run.cfg)
  aux = setup.open_data(run.cfg, 'aux')
  return run.for_auxiliary(aux), aux, small_run.workdir


def without_weights(cfg):
  """A Run whose CLIP has no weights, for what depends on the config alone."""
  method = setup.check(cfg)
  shell = setup.clip_without_weights(cfg, method)
  return Run(cfg, method, Clip(shell.arch, cfg.image_size, None), runtime.place(), setup.local_devices(cfg))


@pytest.mark.slow
def test_checkpoints_are_identified_by_what_training_reads(trained):
  run, aux, _ = trained
  identity = lambda changes: run.with_overrides(changes).identity(aux)
  same = {'machine.data_dir': 'elsewhere', 'machine.eval_batch': 2, 'report.pictures': 5, 'report.tsne': True,
          'predict.fpr': .2, 'predict.object_name': 'bolt', 'bench.images': 3, 'export.batch': 3, 'seeds': 2,
          'label': 'other', 'data.target': 'visa', 'eval.aupr': 'trapezoid', 'eval.oracle_epoch': True,
          'map.sigma': 2., 'prompt.object_re': True, 'multicrop.recipe': 'ten', 'clip': 'another name', 'arch': 'x'}
  for key, value in same.items():
    assert identity({key: value}) == identity({}), key
  for key, value in {'seed': 5, 'optim.lr': .1, 'prompt.n_ctx': 8, 'prompt.state_word': 'broken', 'loss.focal': False,
                     'temperature': .1, 'image_size': 64, 'precision': 'bfloat16', 'feature_dtype': 'bfloat16'}.items():
    assert identity({key: value}) != identity({}), key
  assert json.loads(json.dumps(identity({})))['auxiliary data'] == aux.fingerprint


@pytest.mark.parametrize('name', methods.names())
def test_evaluation_keys_are_keys_and_training_does_not_depend_on_them(name):
  run = without_weights(config_files.load(name))
  keys = run.identity(None)
  for dotted in run.method.traits.evaluation_keys:
    node = keys
    *path, last = dotted.split('.')
    for part in path:
      node = node[part]
    assert last not in node, dotted
  assert keys['seed'] == run.cfg.seed and keys['method'] == name


def test_restoring_gives_what_training_returned(trained, tmp_path):
  run, aux, workdir = trained
  assert run.is_trained(workdir, aux) and not run.is_trained(tmp_path, aux)
  assert not run.with_overrides({'train.epochs': 3}).is_trained(workdir, aux)
  restored = run.restore(workdir, aux)
  for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(run.fit(workdir, aux)), strict=True):  # nothing is left
    np.testing.assert_array_equal(a, b)
  earlier = run.restore(workdir, aux, epoch=1)
  assert jax.tree.structure(earlier) == jax.tree.structure(restored)
  assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(earlier), jax.tree.leaves(restored)))
  with pytest.raises(FileNotFoundError, match='--mode=fit'):
    run.restore(tmp_path, aux)


@pytest.mark.slow
def test_an_interrupted_training_resumes_bit_for_bit(trained, tmp_path):
  run, aux, workdir = trained
  shutil.copytree(workdir / 'checkpoints', tmp_path / 'checkpoints')
  for path in (tmp_path / 'checkpoints').glob('8*'):  # the second epoch's
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  assert not run.is_trained(tmp_path, aux)
  for a, b in zip(jax.tree.leaves(run.fit(tmp_path, aux)), jax.tree.leaves(run.restore(workdir, aux)), strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_released_checkpoint_takes_the_place_of_training(small_run, tmp_path):
  rng = np.random.default_rng(0)
  arrays = {name: rng.normal(0, 0.02, (1, 1, 12, 128)).astype(np.float32) for name in ('ctx_pos', 'ctx_neg')}
  arrays |= {f'compound_prompts_text.{i}': rng.normal(0, 0.02, (4, 128)).astype(np.float32) for i in range(3)}
  safetensors_files.write(tmp_path / 'prompts.safetensors', arrays)
  run = Run.load(setup.with_overrides(small_run.cfg, {'checkpoint': str(tmp_path / 'prompts.safetensors'),
                                                      'report.pictures': 0}))
  assert not run.trains and seeds.of_run(run.with_overrides({'seeds': 3})) == [run]
  params = run.restore(None, None)
  np.testing.assert_array_equal(params['ctx_pos'], arrays['ctx_pos'][0, 0])
  np.testing.assert_array_equal(params['deep'][2], arrays['compound_prompts_text.2'])
  experiment.run(run.cfg, tmp_path, 'run')
  path, = tmp_path.glob('results/anomalyclip/nothing-to-target/seed3/metrics.json')
  protocol = json.loads(path.read_text())['protocol']
  assert protocol['auxiliary'] is None and protocol['checkpoint'].endswith('prompts.safetensors')
  arrays.pop('ctx_neg')
  safetensors_files.write(tmp_path / 'prompts.safetensors', arrays)
  with pytest.raises(ValueError, match='ctx_neg'):
    run.restore(None, None)


def test_what_a_config_trains_on_follows_from_its_method_and_keys():
  facts = lambda module, **changes: (lambda run: (run.trains, run.trains_on_texts, run.shots))(
    without_weights(mlc.FrozenConfigDict(changed(module, changes))))
  assert facts(anomalyclip) == (True, False, 0)
  assert facts(anomalyclip, checkpoint='file') == (False, False, 0)
  assert facts(clip) == (False, False, 0)
  assert facts(rwda) == (True, True, 0)
  assert facts(rwda, score='clip') == (False, True, 0)
  assert facts(patchcore_clip, **{'fewshot.shots': 2}) == (False, False, 2)
  assert facts(april_gan, **{'fewshot.shots': 1}) == (True, False, 1)


def changed(module, changes):
  c = module.get_config('demo')
  c.update_from_flattened_dict(changes)
  return c


@pytest.mark.slow
def test_features_are_the_same_from_the_store_and_past_it(trained, tmp_path, capsys):
  run, aux, _ = trained
  indices = np.array([3, 0, 5])
  stored, batch = run.reader(aux)(indices)
  store, = run.stores(aux)
  assert store.missing_bytes == 0 and 'not stored' not in capsys.readouterr().out
  past = run.with_overrides({'machine.feature_dir': str(tmp_path)})
  values, same = past.reader(aux, stored=False)(indices)
  assert not list(tmp_path.iterdir()) and not past._feature_dir.startswith('data')
  for a, b in zip(jax.tree.leaves(stored), jax.tree.leaves(values), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)
  for key in ('label', 'category', 'mask', 'has_mask'):
    np.testing.assert_array_equal(batch[key], same[key])
  np.testing.assert_array_equal(batch['label'], aux.labels[indices])


def test_reading_past_the_store_is_announced(trained, capsys):
  run, aux, _ = trained
  keys = {'machine.store_features': False}
  assert run.with_overrides(keys).stores(aux) == []
  run.with_overrides(keys).reader(aux)
  assert 'features of aux are not stored' in capsys.readouterr().out


def test_crops_have_a_store_of_their_own(trained):
  run, aux, _ = trained
  cropped = run.with_overrides({'multicrop.recipe': 'clip_ad'})
  whole, crops = cropped.stores(aux)
  assert whole.path == run.stores(aux)[0].path != crops.path
  assert [store.path for store in cropped.stores(aux, crops=False)] == [whole.path]


def test_object_names_follow_the_auxiliary_data_set(trained):
  run, aux, _ = trained
  assert run.cfg.prompt.categories == ('bolt', 'tile') and run.for_auxiliary(None) is run
  kept = run.with_overrides({'prompt.categories': ('thing',)})
  assert kept.for_auxiliary(aux).cfg.prompt.categories == ('thing',)


def test_class_means_are_of_each_categorys_class_tokens(trained):
  run, aux, _ = trained
  load = run.reader(aux)
  tokens = np.stack([load(np.array([i]))[0].cls[0] for i in range(len(aux))])
  units = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
  for normalize, rows in ((False, tokens), (True, units)):
    np.testing.assert_allclose(run.class_means(aux, normalize=normalize), rows.reshape(2, 8, -1).mean(1), atol=1e-6)


def test_the_memory_bank_is_of_the_drawn_references(folders):
  run = Run.load(config(patchcore_clip, folders, **{'fewshot.shots': 2}))
  dataset, indices = run.references()
  bank, ids = run.reference_bank()
  assert ids == {c: [dataset.ids[i] for i in row] for c, row in zip(dataset.categories, indices)}
  assert {x.shape[0] for x in jax.tree.leaves(bank)} == {2}
  zero_shot = Run.load(config(clip, folders))
  assert zero_shot.references() == zero_shot.reference_bank() == (None, None)


@pytest.mark.slow
def test_a_predictor_is_compiled_once_for_all_parameters(trained):
  run, aux, workdir = trained
  values, batch = run.reader(aux)(np.arange(4))
  visible = {'category': batch['category'], 'index': np.arange(4, dtype=np.int32), 'valid': np.ones(4, bool)}
  predictor = run.predictor(setup.object_names(run.cfg, aux))
  with runtime.compilations() as compiled:
    last, first = (predictor.bind(params)(values, visible)
                   for params in (run.restore(workdir, aux), run.restore(workdir, aux, epoch=1)))
  assert compiled.traces['predict'] == compiled.traces['encode_text'] == 1
  assert last.score.shape == (4,) and last.map.shape == (4, 56, 56)
  assert np.abs(np.asarray(last.score) - np.asarray(first.score)).max() > 1e-6


def test_overrides_keep_the_weights(trained):
  run, _, _ = trained
  other = run.with_overrides({'map.sigma': 0.})
  assert other.clip is run.clip and other.cfg.map.sigma == 0 and run.with_overrides({}) is run


def test_the_recipe_is_of_the_configs_keys(folders):
  run = without_weights(config(sdp_plus, folders, **{'seed': 7, 'train.shuffle': False}))
  assert run.recipe == train.Recipe(epochs=2, batch=4, seed=7, shuffle=False)
  assert common.base().train.epochs == 15
