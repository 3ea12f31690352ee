"""One device and eight are the same: features, training, evaluation, whole weights and weights in parts."""

import json

import jax
import ml_collections as mlc
import numpy as np
import pytest
from drawn_folders import draw

from zsad_jax.clip import encoder
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import FeatureSpec, SideStream, Tap
from zsad_jax.configs import anomalyclip
from zsad_jax.engine import features, runtime
from zsad_jax.experiment import experiment, results

ONE, EIGHT, PARTS = runtime.place(jax.devices()[:1]), runtime.place(), runtime.place(sharded=True)
SPEC = FeatureSpec(64, taps=(Tap('vv', 6), Tap('clip', 3)), sides=(SideStream('vv', 'vv', 3),))


@pytest.fixture(scope='module')
def clip():
  return clip_lib.load('tiny', image_size=64)


@pytest.fixture(scope='module')
def encode(clip):
  return encoder.encode(clip, SPEC)


def images(count):
  return np.random.default_rng(0).normal(size=(count, 64, 64, 3)).astype(np.float32)


def encoded(encode, clip, place, count, size):
  """Features of `count` images, in batches of `size`, the last one shorter."""
  batches = ({'image': images(count)[start:start + size]} for start in range(0, count, size))
  parts = [values for values, _ in features.encode_batches(batches, encode, clip.params, place=place)]
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)


@pytest.mark.parametrize('place', [EIGHT, PARTS], ids=['copies', 'parts'])
@pytest.mark.parametrize('count, size', [(8, 8), (9, 8)], ids=['whole', 'last batch of one'])
def test_features_of_one_device_and_eight_agree(clip, encode, place, count, size):
  one, eight = (encoded(encode, clip, where, count, size) for where in (ONE, place))
  for here, there in zip(jax.tree.leaves(one), jax.tree.leaves(eight)):
    assert here.shape == there.shape and len(here) == count
    np.testing.assert_allclose(here / np.abs(here).max(), there / np.abs(here).max(), atol=1e-5)


def on_first(tree):
  return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def test_weights_in_parts_take_about_an_eighth(clip):
  whole, parts = runtime.weights(clip.params, EIGHT), runtime.weights(clip.params, PARTS)
  small = sum(leaf.nbytes for leaf in jax.tree.leaves(clip.params) if leaf.size < runtime.PART)
  assert on_first(whole) == sum(leaf.nbytes for leaf in jax.tree.leaves(clip.params))
  assert on_first(parts) == small + (on_first(whole) - small) // 8 < on_first(whole) / 5
  for here, there in zip(jax.tree.leaves(whole), jax.tree.leaves(parts)):
    np.testing.assert_array_equal(here, there)


def test_a_program_on_parts_never_gathers_all_weights(clip, encode):
  compiled = encode.lower(runtime.weights(clip.params, PARTS), jax.device_put(images(8), PARTS.split)).compile()
  needed = compiled.memory_analysis()
  visual = sum(leaf.nbytes for leaf in jax.tree.leaves(clip.params['visual']))
  assert needed.argument_size_in_bytes < visual / 4 and needed.temp_size_in_bytes < visual


def test_an_axis_that_the_devices_do_not_divide_is_left_whole():
  place = runtime.place(jax.devices()[:3], sharded=True)
  tree = {'cut': np.zeros((256, 300), np.float32), 'whole': np.zeros((256, 512), np.float32)}
  laid = runtime.weights(tree, place)
  assert [shard.data.shape for shard in laid['cut'].addressable_shards] == [(256, 100)] * 3
  assert laid['whole'].is_fully_replicated


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """Six images of each of two things to learn from, ten and two of two others to evaluate."""
  tmp = tmp_path_factory.mktemp('folders')
  draw(tmp / 'aux', {'tile': (100, 40, 40), 'bolt': (40, 100, 40)}, images=3)
  draw(tmp / 'target', {'wood': (90, 60, 30)}, images=5, seed=1)
  draw(tmp / 'target', {'nut': (60, 60, 90)}, images=1, seed=2)
  return tmp


def run(folders, monkeypatch, name, place, **changes):
  """(losses by step, evaluate.Result) of an experiment on the devices of `place`."""
  found, whole = [], runtime.place
  devices = place.split.mesh.devices.tolist()
  monkeypatch.setattr(runtime, 'place', lambda _=None, **options: whole(devices, **options))
  monkeypatch.setattr(results, 'write', lambda *args, **_: found.append(args[6]))
  cfg = anomalyclip.get_config('demo')
  cfg.update_from_flattened_dict({
    'image_size': 64, 'train.epochs': 3, 'train.batch': 11, 'machine.encode_batch': 4, 'machine.eval_batch': 3, 'report.pictures': 0,
    'prompt.depth': 2, 'prompt.n_ctx': 4, 'machine.shard_weights': place.sharded, 'machine.data_dir': str(folders / name),
    'data.aux': f'folder:{folders / "aux"}', 'data.target': f'folder:{folders / "target"}'} | changes)
  workdir = folders / f'{name}-work'
  workdir.mkdir()
  experiment.run(mlc.FrozenConfigDict(cfg), workdir, 'run')
  monkeypatch.undo()
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return [line['train/loss'] for line in lines], found[0]


@pytest.fixture(scope='module')
def one(folders):
  with pytest.MonkeyPatch.context() as patch:
    return run(folders, patch, 'one', ONE)


@pytest.mark.parametrize('name, place, changes', [
  ('eight', EIGHT, {}), ('parts, past the store', PARTS, {'machine.store_features': False})])
def test_an_experiment_on_one_device_and_on_eight_agree(folders, one, monkeypatch, name, place, changes):
  """Batches of 11, the last of an epoch one of 1; categories of 10 and 2 in batches of 3 or 8."""
  (losses, single), (own_losses, result) = one, run(folders, monkeypatch, name, place, **changes)
  np.testing.assert_allclose(own_losses, losses, atol=1e-5)
  np.testing.assert_allclose(result.scores, single.scores, atol=1e-5)
  assert result.counts == single.counts
  for metric, mean in single.summary.items():
    if metric != 'aupro_200':  # its 200 thresholds move with the highest score
      assert result.summary[metric]['value'] == pytest.approx(mean['value'], abs=1e-5), metric


def test_shares_of_processes_lie_side_by_side(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 3)
  shares = []
  for number in range(3):
    monkeypatch.setattr(jax, 'process_index', lambda number=number: number)
    shares += range(12)[runtime.share(12)]
  assert shares == list(range(12))
