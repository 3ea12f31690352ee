"""Memory is predicted before it is allocated and held to a limit; programs are compiled once, and counted."""

import re

import jax
import numpy as np
import pytest
from drawn_folders import draw
from small_experiments import config

from zsad_jax.clip import encoder
from zsad_jax.clip import model as clip_lib
from zsad_jax.configs import anomalyclip, april_gan, patchcore_clip, rwda, sdp, winclip
from zsad_jax.engine import runtime
from zsad_jax.experiment import experiment, memory_budget
from zsad_jax.experiment.run import Run
from zsad_jax.methods.parts import prompts

SIZE = 56


@pytest.fixture(scope='module')
def clip():
  return clip_lib.load('tiny', image_size=SIZE)


class Images:
  """A data set of categories of these sizes, of which nothing is read."""

  def __init__(self, **counts):
    self.categories = tuple(counts)
    self.category_index = np.repeat(np.arange(len(counts)), list(counts.values()))


def by_name(parts, word):
  part, = (part for part in parts if word in part.name)
  return part


def test_maps_count_for_the_largest_category_and_more_if_it_is_postprocessed(clip, tmp_path):
  dataset = Images(bolt=30, wood=2000)
  for module, postprocessed in ((anomalyclip, False), (sdp, True)):
    run = Run.load(config(module, tmp_path, **{'report.pictures': 3}), clip)
    part = by_name(memory_budget.evaluation(run, dataset), 'maps')
    assert part.bytes == memory_budget.maps_bytes(2000, SIZE, postprocessed) + 4 * 6 * SIZE ** 2
    assert '2,000 images of wood' in part.name
  run = Run.load(config(rwda, tmp_path), clip)
  assert not [part for part in memory_budget.evaluation(run, dataset) if 'maps' in part.name]


# Measured by benchmarks/memory.py, postprocessed on 800 images.
@pytest.mark.parametrize(('postprocessed', 'measured'), [(False, 3.12), (True, 11.2)])
def test_maps_at_full_resolution_are_predicted_within_a_fifth_of_what_was_measured(postprocessed, measured):
  predicted = memory_budget.maps_bytes(2000, 518, postprocessed) / 1e9
  assert measured <= predicted <= 1.2 * measured


def test_features_in_flight_follow_the_batch(clip, tmp_path, monkeypatch):
  run = Run.load(config(anomalyclip, tmp_path, **{'machine.eval_batch': 16}), clip)
  row = encoder.predicted_bytes(clip, run.spec) + SIZE ** 2
  assert by_name(memory_budget.evaluation(run, Images(a=1)), 'in flight').bytes == 5 * 16 * row
  parts = []
  monkeypatch.setattr(memory_budget, 'require', lambda of, max_gb: parts.extend(of))
  memory_budget.require_training(run)
  assert [part.bytes for part in parts] == [5 * 4 * row]


@pytest.mark.parametrize(('module', 'arg'), [(patchcore_clip, 'demo'), (winclip, 'plus2')], ids=['bank', 'windows'])
def test_references_count_as_their_features_and_memory_bank(clip, tmp_path, module, arg):
  run = Run.load(config(module, tmp_path, arg, clip='tiny', **{'fewshot.shots': 2}), clip)
  dataset = Images(a=3, b=3, c=3)
  one = jax.eval_shape(lambda params, x: clip.image(params, x, run.spec), clip.params,
                       jax.ShapeDtypeStruct((6, SIZE, SIZE, 3), np.float32))
  shaped = jax.tree.map(lambda x: np.zeros((3, 2, *x.shape[1:]), x.dtype), one)
  bank = jax.eval_shape(lambda x: run.method.build_memory_bank(None, x, clip=clip, cfg=run.cfg), shaped)
  size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
  assert memory_budget.references_bytes(run, 3) == (size(shaped), size(bank))
  parts = memory_budget.evaluation(run, dataset)
  assert by_name(parts, '2 references').bytes == 2 * size(shaped) + size(bank)  # of one device
  assert by_name(parts, 'banks of the images').bytes == 2 * 4 * size(bank) // 3


def test_distances_are_computed_in_smaller_chunks_if_memory_is_short(clip, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(runtime, 'rss_bytes', lambda: 10 ** 9)
  run, dataset = Run.load(config(patchcore_clip, tmp_path, **{'fewshot.shots': 4}), clip), Images(a=9)
  assert memory_budget.fitted(run, dataset) is run
  parts = memory_budget.evaluation(run, dataset)
  patch, image = memory_budget.distances(run)
  assert (patch, image) == (4 * 4 * 49, 4 * 4 * 49 ** 2)
  fixed = 1e9 + sum(part.bytes for part in parts)
  limited = lambda spare: run.with_overrides({'machine.max_memory_gb': (fixed + spare) / 1e9})
  assert memory_budget.fitted(limited(4 * image + 10), dataset).cfg.machine.knn_mib == run.cfg.machine.knn_mib
  half = memory_budget.fitted(limited(2 * image), dataset).cfg.machine.knn_mib
  assert half * 2 ** 20 == pytest.approx(image / 2, rel=1e-3)
  capsys.readouterr()
  with pytest.raises(ValueError, match=r'GB of memory are needed, more than machine\.max_memory_gb='):
    memory_budget.fitted(limited(0), dataset)
  assert re.match(r'memory: \S+ GB predicted: 1 GB in use, .* features in flight', capsys.readouterr().out)


def test_the_largest_part_and_its_remedy_are_named(capsys):
  parts = [memory_budget.Part('maps', 3 * 10 ** 9, 'lower --config.image_size'),
           memory_budget.Part('banks', 10 ** 9, 'lower shots')]
  memory_budget.require(parts, 0, in_use=10 ** 9)
  memory_budget.require(parts, 5, in_use=10 ** 9)
  assert capsys.readouterr().out.count('memory: 5 GB predicted: 1 GB in use, 3 GB maps, 1 GB banks') == 2
  message = (r'5 GB of memory .*machine\.max_memory_gb=4\.9.*3 GB of maps.*--config\.image_size.*'
             r'--config\.machine\.max_memory_gb=5')
  with pytest.raises(ValueError, match=message):
    memory_budget.require(parts, 4.9, in_use=10 ** 9)


@pytest.mark.parametrize('mode', ['fit', 'evaluate'])
def test_a_run_beyond_the_limit_stops_before_anything_is_encoded(folders, tmp_path, mode):
  module = anomalyclip if mode == 'fit' else patchcore_clip
  cfg = config(module, folders, **{'machine.max_memory_gb': 0.01, 'machine.feature_dir': str(tmp_path / 'features')})
  with pytest.raises(ValueError, match=r'more than machine\.max_memory_gb=0\.01'):
    experiment.run(cfg, tmp_path / 'work', mode)
  assert not list(tmp_path.rglob('*.shard'))


@pytest.mark.slow
def test_several_categories_of_odd_sizes_are_one_program_and_so_are_all_steps(tmp_path, monkeypatch):
  draw(tmp_path / 'aux', {'tile': (100, 40, 40)}, images=3)
  draw(tmp_path / 'target', {'wood': (90, 60, 30), 'nut': (60, 60, 90)}, images=3, seed=1)
  draw(tmp_path / 'target', {'odd': (50, 90, 90)}, images=1, seed=2)
  whole = prompts.compose
  monkeypatch.setattr(prompts, 'compose', lambda *args, **options: whole(*args, **options)[:4])  # of hundreds of texts
  with runtime.compilations() as compiled:
    experiment.run(config(april_gan, tmp_path), tmp_path / 'work', 'run')
  assert compiled.programs['predict'] == compiled.programs['step'] == 1
  assert compiled.traces['predict'] == compiled.traces['step'] == 1
  assert compiled.programs['encoder'] == 2  # of each data set


def test_compilations_are_counted_by_name_until_the_block_ends():
  def squared(x):
    return x * x

  jitted = jax.jit(squared)
  with runtime.compilations() as compiled:
    for n in (3, 3, 4):
      jitted(np.ones(n))
  jitted(np.ones(5))
  assert compiled.programs['squared'] == compiled.traces['squared'] == 2
  assert compiled.compile_seconds['squared'] > 0 and compiled.trace_seconds['squared'] > 0


def test_the_resident_set_is_the_current_one():
  before = runtime.rss_bytes()
  block = np.ones(40 << 20, np.uint8)
  assert 30 << 20 < runtime.rss_bytes() - before < 60 << 20 and runtime.peak_rss_bytes() >= before
  del block
  assert runtime.rss_bytes() - before < 20 << 20


def test_a_negative_limit_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r'machine\.max_memory_gb=-1'):
    experiment.run(config(anomalyclip, tmp_path, **{'machine.max_memory_gb': -1.0}), tmp_path, 'run')
