"""What a benchmark measures, writes and refuses."""

import json

import jax
import ml_collections as mlc
import numpy as np
import pytest

from zsad_jax import methods
from zsad_jax.configs import anomalyclip, clip, patchcore_clip, rwda, winclip
from zsad_jax.engine import runtime
from zsad_jax.experiment import bench, setup


def config(module, arg='demo', **changes):
  c = module.get_config(arg)
  c.update_from_flattened_dict({
    'image_size': 56, 'machine.encode_batch': 4, 'machine.eval_batch': 4, 'train.batch': 4, 'bench.images': 8, 'bench.pixels': 64,
    'bench.repeats': 2} | changes)
  return mlc.FrozenConfigDict(c)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """The report of a method that is trained, on random weights in bfloat16; of run but for the compilation cache."""
  cfg = config(anomalyclip, **{'bench.random_weights': True, 'precision': 'bfloat16'})
  with runtime.compilations() as compiled:
    return bench.measure(cfg, tmp_path_factory.mktemp('bench'), compiled)


def test_the_report_says_what_it_is_of(trained):
  assert (trained['images'], trained['batch'], trained['precision'], trained['clip']) == (8, 8, 'bfloat16', 'tiny')
  assert f'{jax.device_count()} x cpu' in trained['device']
  said = bench.text(trained)
  assert 'with random weights: times hold, scores mean nothing' in said and trained['device'] in said
  assert '8 images (drawn PNG files of 64 px); medians of 2' in said and 'published' not in said


def test_rates_and_times_of_an_image_agree_and_lie_in_their_range(trained):
  for part in ('end_to_end', 'encoder', 'predict'):
    found = trained[part]
    assert found['images_per_s'] * found['ms_per_image'] == pytest.approx(1e3)
    for key in ('images_per_s', 'ms_per_image'):
      low, high = found[f'{key}_range']
      assert 0 < low <= found[key] <= high
  # Decoding, the image tower and the method cannot be faster together than either alone, which is steady enough.
  assert trained['end_to_end']['images_per_s'] < 1.5 * trained['encoder']['images_per_s']
  assert trained['end_to_end']['cold_seconds'] > 8 * trained['end_to_end']['ms_per_image'] / 1e3


def test_programs_are_counted_and_an_epoch_follows_from_a_step(trained):
  report = trained
  assert {name: row['programs'] for name, row in report['compiled'].items()} == dict(
    encoder=1, predict=1, bank=1, step=1)
  assert all(row['compile_seconds'] > 0 and row['traces'] == 1 for row in report['compiled'].values())
  assert report['programs'] >= 4 and report['memory']['peak_rss_bytes'] > 1e8
  step = report['training']['parts']['all']
  assert step['rows'] == 8  # of the eight devices, one each
  assert report['training']['epoch_seconds'] == pytest.approx(-(-1725 // 8) * step['step_ms'] / 1e3)


def test_it_writes_what_it_returns_compiles_anew_and_learns_nothing_where_there_is_nothing(tmp_path):
  cfg = config(patchcore_clip, **{'fewshot.shots': 2, 'bench.images': 1})
  cached = []
  listen = lambda event, **_: cached.append(event) if 'cache_hits' in event else None
  jax.monitoring.register_event_listener(listen)
  report = bench.run(cfg, tmp_path)
  jax.monitoring.unregister_event_listener(listen)
  assert not cached and jax.config.jax_enable_compilation_cache
  assert json.loads((tmp_path / 'bench.json').read_text()) == report
  assert report['training'] is None and report['images'] == 1 and 'nothing is learned' in bench.text(report)


def test_a_method_that_learns_from_texts_is_timed_on_as_many(tmp_path):
  cfg = config(rwda, **{'sentences.pairs': 20, 'seeds': 2, 'train.batch': 8, 'fnn.hidden': (4,)})
  method = methods.get('rwda')
  made = setup.load_clip(cfg, method)
  found = bench.training(cfg, method, made, None, None, [], runtime.place())
  assert found['of'] == 'an epoch of 20 groups of texts, 2 seeds at once'
  assert found['epoch_seconds'] == pytest.approx(3 * found['parts']['all']['step_ms'] / 1e3)


def test_published_costs_stand_beside_the_clip_they_were_measured_with():
  row = bench.published(config(anomalyclip, None))
  assert (row['images_per_s'], row['epoch_minutes']) == (8.92, 13.71) and 'RTX 3090' in row['source']
  assert bench.published(config(winclip, None))['images_per_s'] == 1.2
  assert bench.published(config(clip, 'ac')) is None  # of CLIP's pair of texts alone
  assert bench.published(config(anomalyclip)) is None  # of the embedded CLIP
  assert bench.published(config(patchcore_clip)) is None


def test_the_median_and_the_range_are_of_calls_after_the_first(monkeypatch):
  clock = iter(np.cumsum([0, 1, 0, 4, 0, 2]))
  monkeypatch.setattr(bench.time, 'perf_counter', lambda: float(next(clock)))
  called = []
  assert bench.timed(lambda: called.append(1), 2, 3) == {
    'images_per_s': 1.0, 'images_per_s_range': [0.5, 2.0], 'ms_per_image': 1e3, 'ms_per_image_range': [500.0, 2000.0]}
  assert len(called) == 4


@pytest.mark.parametrize(('key', 'value', 'message'), [
  ('bench.images', 0, 'bench.images is 0; it must be at least 1'),
  ('bench.repeats', 0, 'bench.repeats is 0'),
  ('bench.pixels', 0, 'bench.pixels is 0'),
  ('bench.source', 'web', "bench.source is 'web'; it must be one of drawn, target")])
def test_values_out_of_range_are_refused_first(tmp_path, key, value, message):
  with pytest.raises(ValueError, match=message):
    bench.run(config(clip, **{key: value}), tmp_path)
