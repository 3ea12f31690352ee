"""One device and eight give the same: features, training, evaluation, whole and sharded weights."""

import json
import warnings

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np
import pytest
import test_checkpoint
import test_evaluate
import test_features
import test_text_features
import test_train
from drawn_folders import draw

from zsad_jax.clip import encoder
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import FeatureSpec, SideStream, Tap
from zsad_jax.configs import anomalyclip
from zsad_jax.engine import checkpoint, runtime, text_features
from zsad_jax.engine import features as features_lib
from zsad_jax.experiment import experiment, results

pytestmark = [pytest.mark.devices8, pytest.mark.skipif(
  jax.device_count() < 8, reason='needs eight devices: --devices=8')]
ONE, EIGHT, SHARDED = runtime.place(jax.devices()[:1]), runtime.place(), runtime.place(sharded=True)
SPEC = FeatureSpec(64, taps=(Tap('vv', 6), Tap('clip', 3)), sides=(SideStream('vv', 'vv', 3),))


@pytest.fixture(scope='module')
def clip():
  return clip_lib.load('tiny', image_size=64)


@pytest.fixture(scope='module')
def encode(clip):
  return encoder.encode(clip, SPEC)


def test_place_splits_rows_and_copies_trees():
  assert EIGHT.devices == 8
  rows = jax.device_put(np.arange(16.), EIGHT.split)
  assert [shard.data.shape for shard in rows.addressable_shards] == [(2,)] * 8
  assert jax.device_put(np.arange(3.), EIGHT.copy).is_fully_replicated
  assert runtime.place(jax.devices()[:3]).devices == 3


def test_globalize_keeps_values_and_splits_rows():
  image = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
  out = runtime.globalize({'image': image, 'cls': None}, EIGHT.split)
  assert out['image'].sharding == EIGHT.split and out['cls'] is None
  np.testing.assert_array_equal(out['image'], image)


def test_the_placement_of_a_step_stays_the_same():
  step = jax.jit(lambda w, x: w + jnp.mean(x, 0), out_shardings=EIGHT.copy)
  w = jax.device_put(np.zeros(3, np.float32), EIGHT.copy)
  for _ in range(3):
    w = step(w, runtime.globalize(np.ones((8, 3), np.float32), EIGHT.split))
  assert step._cache_size() == 1


def test_checkpoints_take_the_placement_of_the_template(tmp_path):
  state = test_checkpoint.state
  checkpoint.save(tmp_path, 1, jax.device_put(state(5), EIGHT.copy), {})
  shapes = jax.eval_shape(lambda: state(0))
  for template, devices in ((shapes, 8), (jax.device_put(state(0), jax.devices()[2]), 1),
                            (jax.device_put(state(0), EIGHT.copy), 8)):
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      restored = checkpoint.restore(tmp_path, template)[0]
    test_checkpoint.assert_same(restored, state(5))
    assert all(len(leaf.devices()) == devices for leaf in jax.tree.leaves(restored))


def images(count):
  return np.random.default_rng(0).normal(size=(count, 64, 64, 3)).astype(np.float32)


def encoded(encode, clip, place, count, size):
  """Features of `count` images, in batches of `size`, the last one shorter."""
  batches = ({'image': images(count)[start:start + size]} for start in range(0, count, size))
  parts = [values for values, _ in features_lib.encode_batches(batches, encode, clip.params, place=place)]
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)


@pytest.mark.parametrize('place', [EIGHT, SHARDED], ids=['copies', 'sharded'])
@pytest.mark.parametrize('count, size', [(8, 8), (9, 8)], ids=['whole', 'last batch of one'])
def test_features_of_one_device_and_eight_agree(clip, encode, place, count, size):
  one, eight = (encoded(encode, clip, where, count, size) for where in (ONE, place))
  for here, there in zip(jax.tree.leaves(one), jax.tree.leaves(eight)):
    assert here.shape == there.shape and len(here) == count
    np.testing.assert_allclose(here / np.abs(here).max(), there / np.abs(here).max(), atol=1e-5)


def test_stored_features_of_eight_devices_equal_those_without_a_store(tmp_path):
  test_features.require_the_same_from_a_store(tmp_path, EIGHT)


def test_text_features_of_one_device_and_eight_agree(clip, tmp_path):
  pairs = test_text_features.PAIRS
  one, eight = (text_features.store(tmp_path / name, pairs, clip, max_gb=1, place=place).read(range(len(pairs)))
                for name, place in (('one', ONE), ('eight', EIGHT)))
  np.testing.assert_allclose(eight['texts'], one['texts'], atol=2e-5)


def bytes_on_first_device(tree):
  return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def test_sharded_weights_take_about_an_eighth(clip):
  whole, sharded = runtime.weights(clip.params, EIGHT), runtime.weights(clip.params, SHARDED)
  total = sum(leaf.nbytes for leaf in jax.tree.leaves(clip.params))
  small = sum(leaf.nbytes for leaf in jax.tree.leaves(clip.params) if leaf.size < runtime.SMALL)
  assert bytes_on_first_device(whole) == total
  assert bytes_on_first_device(sharded) == small + (total - small) // 8 < total / 5
  for here, there in zip(jax.tree.leaves(whole), jax.tree.leaves(sharded)):
    np.testing.assert_array_equal(here, there)


def test_a_program_on_sharded_weights_never_gathers_them_all(clip, encode):
  compiled = encode.lower(runtime.weights(clip.params, SHARDED), jax.device_put(images(8), SHARDED.split)).compile()
  needed = compiled.memory_analysis()
  visual = sum(leaf.nbytes for leaf in jax.tree.leaves(clip.params['visual']))
  assert needed.argument_size_in_bytes < visual / 4 and needed.temp_size_in_bytes < visual


def test_arrays_that_the_devices_do_not_divide_stay_whole():
  place = runtime.place(jax.devices()[:3], sharded=True)
  tree = {'cut': np.zeros((256, 300), np.float32), 'whole': np.zeros((256, 512), np.float32)}
  placed = runtime.weights(tree, place)
  assert [shard.data.shape for shard in placed['cut'].addressable_shards] == [(256, 100)] * 3
  assert placed['whole'].is_fully_replicated


@pytest.mark.parametrize('batch', [8, 3])
def test_training_on_one_device_and_eight_agree(batch):
  np.testing.assert_allclose(test_train.fit(place=EIGHT, batch=batch), test_train.fit(batch=batch), atol=1e-5)


def test_a_step_on_eight_devices_is_traced_once_for_full_and_partial_batches():
  traces = []

  def counted(*args):
    traces.append(args)
    return test_train.loss(*args)

  test_train.fit(loss=counted, place=EIGHT)
  assert len(traces) == 1


@pytest.mark.parametrize('batch', [1, 4, 32])
def test_metrics_on_eight_devices_equal_those_of_the_whole_category_at_once(batch):
  test_evaluate.require_metrics_at_once(batch, devices=8)


@pytest.mark.parametrize('batch, devices', [(4, 8), (5, 3)])
def test_devices_change_no_metric(batch, devices):
  dataset, load, *_ = test_evaluate.toy((7, 2, 9))
  one, several = (test_evaluate.run(dataset, load, batch=b, devices=d) for b, d in ((1, 1), (batch, devices)))
  np.testing.assert_allclose(several.scores, one.scores, atol=1e-5)
  assert several.rows == one.rows and several.counts == one.counts


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Six images of each of two auxiliary categories; target categories of ten images and of two."""
  tmp = tmp_path_factory.mktemp('folders')
  draw(tmp / 'aux', {'tile': (100, 40, 40), 'bolt': (40, 100, 40)}, images=3)
  draw(tmp / 'target', {'wood': (90, 60, 30)}, images=5, seed=1)
  draw(tmp / 'target', {'nut': (60, 60, 90)}, images=1, seed=2)
  return tmp


def run(folders, monkeypatch, name, place, **overrides):
  """(losses by epoch, evaluate.Result) of an experiment on the devices of `place`."""
  evaluations, default = [], runtime.place
  devices = place.split.mesh.devices.tolist()
  monkeypatch.setattr(runtime, 'place', lambda _=None, **options: default(devices, **options))
  monkeypatch.setattr(results, 'write', lambda run, workdir, evaluation: evaluations.append(evaluation))
  cfg = anomalyclip.get_config('demo')
  cfg.update_from_flattened_dict({
    'image_size': 64, 'train.epochs': 3, 'train.batch': 11, 'prompt.depth': 2, 'prompt.n_ctx': 4, 'report.pictures': 0,
    'machine.encode_batch': 4, 'machine.eval_batch': 3, 'machine.shard_weights': place.sharded,
    'machine.data_dir': str(folders / name), 'data.aux': f'folder:{folders / "aux"}',
    'data.target': f'folder:{folders / "target"}'} | overrides)
  workdir = folders / f'{name}-work'
  workdir.mkdir()
  experiment.run(mlc.FrozenConfigDict(cfg), workdir, 'run')
  monkeypatch.undo()
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [line['train/loss'] for line in lines], evaluations[0].result


@pytest.fixture(scope='module')
def one(folders):
  with pytest.MonkeyPatch.context() as patch:
    return run(folders, patch, 'one', ONE)


@pytest.mark.parametrize('name, place, overrides', [
  ('eight', EIGHT, {}), ('sharded, without a store', SHARDED, {'machine.store_features': False})])
def test_an_experiment_on_one_device_and_on_eight_agree(folders, one, monkeypatch, name, place, overrides):
  """Batches of 11, the last of an epoch one of 1; categories of 10 and 2 in batches of 3 or 8."""
  (losses, single), (own_losses, result) = one, run(folders, monkeypatch, name, place, **overrides)
  np.testing.assert_allclose(own_losses, losses, atol=1e-5)
  np.testing.assert_allclose(result.scores, single.scores, atol=1e-5)
  assert result.counts == single.counts
  for metric, mean in single.summary.items():
    if metric != 'aupro_200':  # its 200 thresholds move with the highest score
      assert result.summary[metric]['value'] == pytest.approx(mean['value'], abs=1e-5), metric
