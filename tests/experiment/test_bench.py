"""What a benchmark measures, writes and refuses."""

import functools
import json

import jax
import numpy as np
import pytest
import small_experiments

from zsad_jax.configs import anomalyclip, clip, patchcore_clip, rwda, winclip
from zsad_jax.engine import runtime
from zsad_jax.experiment import bench, seeds
from zsad_jax.experiment.run import Run


@pytest.fixture
def config(tmp_path):
  """config(module, arg='demo', **changes) of a small benchmark."""
  return functools.partial(bench_config, tmp_path)


def bench_config(folder, module, arg='demo', **changes):
  keys = {'bench.images': 8, 'bench.pixels': 64, 'bench.repeats': 2}
  return small_experiments.config(module, folder, arg, **(keys | changes))


@pytest.fixture(scope='module')
def report(tmp_path_factory):
  """The report of a trained method on random weights in bfloat16; as run gives it, but with the compilation cache."""
  folder = tmp_path_factory.mktemp('bench')
  cfg = bench_config(folder, anomalyclip, **{'bench.random_weights': True, 'precision': 'bfloat16'})
  with runtime.compilations() as compiled:
    return bench.measure(cfg, folder, compiled)


@pytest.mark.slow
def test_the_report_states_what_was_measured(report):
  assert (report['images'], report['batch'], report['precision'], report['clip']) == (8, 4, 'bfloat16', 'tiny')
  assert report['config'] == 'AnomalyCLIP' and 'cpu' in report['device']
  text = bench.text(report)
  assert 'random weights: times are valid, scores are not' in text and report['device'] in text
  assert '8 images (drawn PNG files of 64 px); medians of 2' in text and 'published' not in text


@pytest.mark.slow
def test_rates_and_times_of_an_image_agree_and_lie_in_their_range(report):
  for part in ('end_to_end', 'encoder', 'predict'):
    timing = report[part]
    assert timing['images_per_s'] * timing['ms_per_image'] == pytest.approx(1e3)
    for key in ('images_per_s', 'ms_per_image'):
      low, high = timing[f'{key}_range']
      assert 0 < low <= timing[key] <= high
  assert report['end_to_end']['cold_seconds'] > 8 * report['end_to_end']['ms_per_image'] / 1e3


def test_programs_are_counted_and_an_epoch_follows_from_a_step(report):
  assert {name: row['programs'] for name, row in report['compiled'].items()} == dict(
    encoder=1, predict=1, encode_text=1, step=1)
  assert all(row['compile_seconds'] > 0 and row['traces'] == 1 for row in report['compiled'].values())
  assert report['programs'] >= 4 and report['memory']['peak_rss_bytes'] > 1e8
  step = report['training']['parts']['all']
  assert step['rows'] == 4
  assert report['training']['epoch_seconds'] == pytest.approx(-(-1725 // 4) * step['step_ms'] / 1e3)


@pytest.mark.slow
def test_it_writes_what_it_returns_compiles_from_scratch_and_times_no_training_if_there_is_none(tmp_path, config):
  cached = []
  listen = lambda event, **_: cached.append(event) if 'cache_hits' in event else None
  jax.monitoring.register_event_listener(listen)
  report = bench.run(config(patchcore_clip, **{'fewshot.shots': 2, 'bench.images': 1}), tmp_path)
  jax.monitoring.unregister_event_listener(listen)
  assert not cached and jax.config.jax_enable_compilation_cache
  assert json.loads((tmp_path / 'bench.json').read_text()) == report
  assert report['training'] is None and report['images'] == 1 and 'training: none' in bench.text(report)


@pytest.mark.slow
def test_a_training_on_texts_is_timed_on_as_many(config):
  run = Run.load(config(rwda, **{'sentences.pairs': 20, 'seeds': 2, 'train.batch': 8, 'fnn.hidden': (4,)}))
  timing = bench.training(seeds.of_run(run)[0], None, None, [])
  assert timing['of'] == 'an epoch of 20 groups of texts'
  assert timing['epoch_seconds'] == pytest.approx(3 * timing['parts']['all']['step_ms'] / 1e3)


def test_published_costs_are_shown_only_for_the_clip_they_were_measured_with(config):
  row = bench.published(config(anomalyclip, None))
  assert (row['images_per_s'], row['epoch_minutes']) == (8.92, 13.71) and 'RTX 3090' in row['source']
  assert bench.published(config(winclip, None))['images_per_s'] == 1.2
  assert bench.published(config(clip, 'ac')) is None  # of CLIP's pair of texts alone
  assert bench.published(config(anomalyclip)) is None  # of the embedded CLIP
  assert bench.published(config(patchcore_clip)) is None


def test_the_median_and_the_range_are_of_calls_after_the_first(monkeypatch):
  clock = iter(np.cumsum([0, 1, 0, 4, 0, 2]))
  monkeypatch.setattr(bench.time, 'perf_counter', lambda: float(next(clock)))
  calls = []
  assert bench.timed(lambda: calls.append(1), 2, 3) == {
    'images_per_s': 1.0, 'images_per_s_range': [0.5, 2.0], 'ms_per_image': 1e3, 'ms_per_image_range': [500.0, 2000.0]}
  assert len(calls) == 4


@pytest.mark.parametrize(('key', 'value', 'message'), [
  ('bench.images', 0, 'bench.images=0.* at least 1'),
  ('bench.repeats', 0, 'bench.repeats=0'),
  ('bench.pixels', 0, 'bench.pixels=0'),
  ('bench.source', 'web', "bench.source='web'.*drawn, target")])
def test_values_out_of_range_are_refused_first(tmp_path, config, key, value, message):
  with pytest.raises(ValueError, match=message):
    bench.run(config(clip, **{key: value}), tmp_path)
