"""Several seeds of one experiment: each is what it is alone, has its own folder, and their spread is reported."""

import json
import shutil

import jax
import numpy as np
import pytest
from small_experiments import config

from zsad_jax import metrics
from zsad_jax.clip.model import Clip
from zsad_jax.configs import anomalyclip, clip, patchcore_clip, rwda
from zsad_jax.engine import runtime
from zsad_jax.experiment import experiment, seeds, setup
from zsad_jax.experiment.run import Run


def without_weights(cfg):
  method = setup.check(cfg)
  shell = setup.clip_without_weights(cfg, method)
  return Run(cfg, method, Clip(shell.arch, cfg.image_size, None), runtime.place(), setup.local_devices(cfg))


def numbers(cfg):
  """(seed, seed of references or None, seeds) of each run."""
  return [(run.cfg.seed, run.cfg.fewshot.seed if 'fewshot' in run.cfg else None, run.cfg.seeds)
          for run in seeds.of_run(without_weights(cfg))]


def test_seeds_count_up_and_each_draws_references_of_its_own(folders):
  assert numbers(config(anomalyclip, folders, seed=5, seeds=3)) == [(5, None, 1), (6, None, 1), (7, None, 1)]
  few = {'seed': 5, 'seeds': 2, 'fewshot.shots': 1, 'fewshot.seed': 8}
  assert numbers(config(patchcore_clip, folders, **few)) == [(5, 8, 1), (6, 9, 1)]


def test_one_run_stands_for_all_seeds_if_nothing_depends_on_them(folders):
  assert numbers(config(clip, folders, seed=5, seeds=3)) == [(5, None, 1)]
  assert numbers(config(rwda, folders, seed=5, seeds=3, score='clip')) == [(5, 0, 1)]
  assert len(numbers(config(rwda, folders, seed=5, seeds=3, score='sum'))) == 3


def test_only_several_seeds_have_folders_of_their_own(folders, tmp_path):
  run = without_weights(config(anomalyclip, folders, seed=5))
  assert seeds.folder(tmp_path, run, 1) == tmp_path
  assert seeds.folder(tmp_path, run, 2) == tmp_path / 'seed5'


def test_the_number_of_seeds_is_at_least_one(folders, tmp_path):
  with pytest.raises(ValueError, match=r'seeds=0.* at least 1'):
    experiment.run(config(clip, folders, seeds=0), tmp_path, 'run')


def test_spread_by_hand():
  values = {'a': (0.5, 0.7, 0.9), 'b': (0.5, None, 0.9)}
  summaries = [{m: {'value': row[i], 'reason': f'{m} {i}'} for m, row in values.items()} for i in range(3)]
  population, sample = (seeds.spread(summaries, ddof) for ddof in (0, 1))
  assert population['a']['value'] == pytest.approx(0.7)
  assert population['a']['std'] == pytest.approx(0.2 * np.sqrt(2 / 3)) and sample['a']['std'] == pytest.approx(0.2)
  assert population['b'] == {'value': None, 'std': None, 'values': [0.5, None, 0.9], 'reason': 'b 0'}
  assert seeds.spread(summaries[:1], 1)['a']['std'] is None and seeds.spread(summaries[:1], 0)['a']['std'] == 0


def small(folders, **changes):
  return config(rwda, folders, **{
    'seeds': 2, 'sentences.pairs': 160, 'train.batch': 16, 'optim.lr': 5e-3, 'multicrop.recipe': 'none',
    'report.pictures': 1, 'report.figures': False, **changes})


@pytest.fixture(scope='module')
def two_seeds(folders, tmp_path_factory):
  """(config, workdir, means) of RWDA trained and evaluated with two seeds."""
  cfg, workdir = small(folders, **{'data.aux': f'folder:{folders / "target"}'}), tmp_path_factory.mktemp('work')
  return cfg, workdir, experiment.run(cfg, workdir, 'run')


def read(workdir, name, seed):
  return json.loads((workdir / 'results' / 'rwda' / name / f'seed{seed}' / 'metrics.json').read_text())


@pytest.mark.slow
def test_every_seed_has_a_result_and_their_spread_is_returned(two_seeds):
  _, workdir, means = two_seeds
  folder = workdir / 'results' / 'rwda' / 'texts-to-target'
  assert sorted(path.name for path in folder.iterdir()) == ['seed0', 'seed1', 'seeds.json']
  own = [read(workdir, 'texts-to-target', seed) for seed in (0, 1)]
  assert [(r['protocol']['seed'], r['protocol']['selection'], r['protocol']['auxiliary']) for r in own] == [
    (seed, 'last (2)', None) for seed in (0, 1)]
  values = [r['mean']['image_auroc']['value'] for r in own]
  record = json.loads((folder / 'seeds.json').read_text())
  assert record['seeds'] == [0, 1] and record['std_ddof'] == 0
  spread = record['spread']['last (2)']
  assert spread['image_auroc']['values'] == values
  assert spread['image_auroc']['value'] == pytest.approx(np.mean(values))
  assert spread['image_auroc']['std'] == pytest.approx(abs(values[0] - values[1]) / 2)
  assert spread['pixel_auroc']['value'] is None and 'no maps' in spread['pixel_auroc']['reason']
  assert means == {'last (2)': spread}
  manifest = json.loads((folder / 'seed1' / 'manifest.json').read_text())['config']
  assert (manifest['seed'], manifest['seeds'], manifest['fewshot']['seed']) == (1, 1, 1)
  page = (folder / 'seed0' / 'index.html').read_text()
  assert 'trained on texts' in page and 'alt="input' in page and 'heat map' not in page


@pytest.mark.slow
def test_every_seed_keeps_its_checkpoint_and_means_by_epoch(two_seeds):
  _, workdir, _ = two_seeds
  assert not (workdir / 'checkpoints').exists()
  for name in ('seed0', 'seed1'):
    lines = [json.loads(line) for line in (workdir / name / 'metrics.jsonl').read_text().splitlines()]
    assert [(line['epoch'], line['step']) for line in lines] == [(1, 10), (2, 20)]
    assert lines[1]['train/accuracy'] > lines[0]['train/accuracy']
    assert [path.name for path in (workdir / name / 'checkpoints').glob('*.manifest')] == ['20.manifest']


@pytest.mark.slow
def test_evaluating_again_gives_the_same_and_encodes_nothing(two_seeds, capfd):
  cfg, workdir, means = two_seeds
  capfd.readouterr()
  assert experiment.run(setup.with_overrides(cfg, {'report.pictures': 0}), workdir, 'evaluate') == means
  out, err = capfd.readouterr()
  assert 'encode' not in err and 'Seeds 0, 1: mean and standard deviation (n - 0)' in out


@pytest.mark.slow
def test_a_seed_among_others_is_what_it_is_alone_and_judges_new_sentences(two_seeds, tmp_path):
  cfg, workdir, _ = two_seeds
  both = seeds.of_run(Run.load(cfg))
  alone = Run.load(setup.with_overrides(cfg, {'seeds': 1, 'seed': 1, 'fewshot.seed': 1}))
  assert seeds.of_run(alone) == [alone] and alone.cfg == both[1].cfg
  params = alone.fit(tmp_path, None)
  assert alone.is_trained(tmp_path, None) and (tmp_path / 'checkpoints').is_dir()
  for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(both[1].restore(workdir / 'seed1', None)), strict=True):
    np.testing.assert_array_equal(a, b)
  new = alone.with_overrides({'seed': 77, 'sentences.pairs': 64}).training_text_features()
  for run in both:
    trained = run.restore(workdir / f'seed{run.cfg.seed}', None)
    logits = list(run.method.hidden_layers(trained, new.reshape(128, -1), cfg=cfg).values())
    assert all(np.all(np.isfinite(layer)) for layer in logits)
    normal, anomalous = (np.asarray(logits[-1][half::2]) for half in (0, 1))
    axis = anomalous[:32].mean(0) - normal[:32].mean(0)  # separable along one line of the last hidden layer
    scores = np.concatenate([normal[32:] @ axis, anomalous[32:] @ axis])
    assert metrics.auroc(np.repeat([0, 1], 32), scores) > 0.95
  assert not np.array_equal(both[0].training_text_features(), both[1].training_text_features())


@pytest.mark.parametrize(('key', 'value'), [
  ('words.anomalous', 'a broken'), ('sentences.alphabet', 36), ('train.epochs', 3)])
def test_checkpoints_of_another_training_are_refused(two_seeds, key, value):
  cfg, workdir, _ = two_seeds
  with pytest.raises(ValueError, match=r'another run.*another workdir'):
    experiment.run(setup.with_overrides(cfg, {key: value}), workdir, 'evaluate')


@pytest.mark.slow
def test_one_training_serves_both_scores_and_known_objects(two_seeds, tmp_path):
  cfg, workdir, means = two_seeds
  shutil.copytree(workdir, tmp_path / 'work')
  changes = {'score': 'fnn', 'prompt.class_word': '', 'report.pictures': 0}
  assert list(experiment.run(setup.with_overrides(cfg, changes), tmp_path / 'work', 'evaluate')) == list(means)
  before, after = ((folder / 'results' / 'rwda' / 'texts-to-target' / 'seed1' / 'scores.csv').read_text()
                   for folder in (workdir, tmp_path / 'work'))
  assert before != after and len(before.splitlines()) == len(after.splitlines())


def test_the_guide_prompts_alone_train_nothing_and_run_once(two_seeds, tmp_path):
  cfg = setup.with_overrides(two_seeds[0], {'score': 'clip', 'report.pictures': 0})
  means = experiment.run(cfg, tmp_path, 'run')
  assert list(means) == ['none'] and read(tmp_path, 'nothing-to-target', 0)['protocol']['selection'] == 'none'
  assert sorted(path.name for path in (tmp_path / 'results' / 'rwda' / 'nothing-to-target').iterdir()) == ['seed0']
  assert not list(tmp_path.rglob('checkpoints'))


@pytest.mark.slow
def test_every_seed_draws_references_of_its_own(two_seeds):
  cfg, workdir, _ = two_seeds
  changes = {'fewshot.shots': 1, 'fewshot.seed': 5, 'prompt.class_word': '', 'report.pictures': 0}
  experiment.run(setup.with_overrides(cfg, changes), workdir, 'evaluate')
  drawn = [read(workdir, 'texts-to-target-1shot', seed)['protocol']['references'] for seed in (0, 1)]
  assert all(len(ids) == 1 and ids[0].startswith(f'{c}/train/good/') for row in drawn for c, ids in row.items())
  assert drawn[0] != drawn[1]


def test_without_a_checkpoint_the_modes_that_train_are_named(two_seeds, tmp_path):
  with pytest.raises(FileNotFoundError, match='--mode=fit'):
    experiment.run(two_seeds[0], tmp_path, 'evaluate')


def test_training_on_texts_has_no_oracle_epoch(folders, tmp_path):
  with pytest.raises(ValueError, match=r'eval\.oracle_epoch=True.*rwda'):
    experiment.run(small(folders, **{'eval.oracle_epoch': True}), tmp_path, 'run')


@pytest.mark.slow
def test_two_seeds_of_a_training_on_images_are_those_of_two_runs(folders, tmp_path):
  both = experiment.run(config(anomalyclip, folders, seed=3, seeds=2), tmp_path / 'both', 'run')['last (2)']
  alone = [experiment.run(config(anomalyclip, folders, seed=seed), tmp_path / f'{seed}', 'run')['last (2)']
           for seed in (3, 4)]
  assert both['image_auroc']['values'] == [means['image_auroc']['value'] for means in alone]
  assert both['image_auroc']['std'] == pytest.approx(np.std(both['image_auroc']['values'], ddof=1))
  assert (tmp_path / 'both' / 'seed4' / 'checkpoints').is_dir() and (tmp_path / '4' / 'checkpoints').is_dir()
