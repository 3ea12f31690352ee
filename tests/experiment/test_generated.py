"""RWDA through whole experiments: sentences for images, two seeds as one training, a result each and their spread."""

import json

import jax
import ml_collections as mlc
import numpy as np
import pytest
from drawn_folders import draw

from zsad_jax import metrics
from zsad_jax.configs import rwda as config
from zsad_jax.engine import text_features, train
from zsad_jax.experiment import experiment, generated, setup
from zsad_jax.methods import rwda as method


def small(tmp, **changes):
  """The demo in small. Of biases before a norm, whose gradients are rounding, Adam's own eps would make whole steps."""
  c = config.get_config('demo')
  c.update_from_flattened_dict({
    'image_size': 56, 'seeds': 2, 'examples.pairs': 160, 'train.batch': 16, 'optim.lr': 5e-3, 'optim.eps': 1e-4,
    'machine.encode_batch': 4, 'machine.eval_batch': 4, 'machine.data_dir': str(tmp / 'data'),
    'data.target': f'folder:{tmp / "target"}'} | changes)
  return mlc.FrozenConfigDict(c)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  tmp = tmp_path_factory.mktemp('rwda')
  draw(tmp / 'target', {'wood': (90, 60, 30), 'metal_nut': (60, 60, 90)}, seed=1, train=3)
  return tmp


@pytest.fixture(scope='module')
def run(folders, tmp_path_factory):
  """(config, workdir, means) of one run that trained two seeds."""
  cfg, workdir = small(folders, **{'data.aux': f'folder:{folders / "target"}'}), tmp_path_factory.mktemp('work')
  return cfg, workdir, experiment.run(cfg, workdir, 'run')


def found(workdir, name, seed):
  return json.loads((workdir / 'results' / 'rwda' / name / f'seed{seed}' / 'metrics.json').read_text())


def test_every_seed_has_a_result_and_their_spread_comes_last(run):
  _, workdir, means = run
  folder = workdir / 'results' / 'rwda' / 'texts-to-target'
  assert sorted(p.name for p in folder.iterdir()) == ['seed0', 'seed1', 'seeds.json']
  own = [found(workdir, 'texts-to-target', seed) for seed in (0, 1)]
  assert [(r['protocol']['seed'], r['protocol']['selection'], r['protocol']['auxiliary']) for r in own] == [
    (seed, 'last epoch (2)', None) for seed in (0, 1)]
  values = [r['mean']['image_auroc']['value'] for r in own]
  made = json.loads((folder / 'seeds.json').read_text())
  assert made['seeds'] == [0, 1] and made['mean']['image_auroc']['values'] == values
  assert made['mean']['image_auroc']['value'] == pytest.approx(np.mean(values))
  assert made['mean']['image_auroc']['std'] == pytest.approx(abs(values[0] - values[1]) / 2)
  assert made['mean']['pixel_auroc']['value'] is None
  assert made['mean']['pixel_auroc']['reason'].endswith('the method makes no maps')
  assert means == {'last epoch (2)': made['mean']}
  manifest = json.loads((folder / 'seed1' / 'manifest.json').read_text())['config']
  assert (manifest['seed'], manifest['seeds'], manifest['fewshot']['seed']) == (1, 1, 1)
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert [line['epoch'] for line in lines] == [1, 2] and lines[1]['train/accuracy'] > lines[0]['train/accuracy']
  page = (folder / 'seed0' / 'index.html').read_text()
  assert 'trained on texts; no image was trained on' in page
  assert 'alt="input' in page and 'heat map' not in page


def test_evaluating_again_gives_the_same_and_encodes_nothing(run, capfd):
  cfg, workdir, means = run
  capfd.readouterr()
  assert experiment.run(cfg, workdir, 'evaluate') == means
  out, err = capfd.readouterr()
  assert 'encode' not in err and 'Seeds 0, 1: mean and standard deviation (n - 0)' in out


def test_learned_apart_a_seed_is_what_it_is_among_others_and_tells_new_sentences(run, tmp_path):
  cfg, workdir, _ = run
  clip = setup.load_clip(cfg, method)
  both = generated.trained(cfg, workdir, method, clip, experiment.identity(cfg, method, clip, None))
  alone = generated.of_seed(cfg, 1)
  experiment.run(alone, tmp_path, 'fit')
  own = generated.trained(alone, tmp_path, method, clip, experiment.identity(alone, method, clip, None))
  for among, by_itself in zip(jax.tree.leaves(both), jax.tree.leaves(own)):
    np.testing.assert_allclose(among[1], by_itself[0], atol=1e-4)
  said = method.examples(77, cfg=setup.with_changes(cfg, {'examples.pairs': 64}))
  new = text_features.store(tmp_path, said, clip, text_features.encoder(clip), max_gb=1).read(range(64))['texts']
  for seed in (0, 1):
    logits = np.asarray(method.network(jax.tree.map(lambda x, s=seed: x[s], both), new, cfg))
    assert metrics.auroc(np.tile([0, 1], 64), logits.ravel()) > 0.95


@pytest.mark.parametrize(('key', 'value'), [('words.anomalous', 'a broken'), ('examples.alphabet', 36), ('seeds', 3)])
def test_what_another_recipe_learned_is_not_evaluated(run, key, value):
  cfg, workdir, _ = run
  changed = setup.with_changes(cfg, {key: value})
  with pytest.raises(ValueError, match=r'another run|does not fit'):
    experiment.run(changed, workdir, 'evaluate')


def test_one_training_serves_both_scores_and_known_objects(run):
  cfg, workdir, means = run
  changed = setup.with_changes(cfg, {'score': 'fnn', 'prompt.class_word': '', 'multicrop.recipe': 'none'})
  other = experiment.run(changed, workdir, 'evaluate')
  assert list(other) == list(means) and other != means


def test_the_guide_prompts_alone_learn_nothing(run, tmp_path):
  means = experiment.run(setup.with_changes(run[0], {'score': 'clip'}), tmp_path, 'run')
  assert list(means) == ['none'] and found(tmp_path, 'nothing-to-target', 0)['protocol']['selection'] == 'none'
  assert not (tmp_path / 'checkpoints').exists()


def test_every_seed_draws_references_of_its_own(run):
  cfg, workdir, _ = run
  changed = setup.with_changes(cfg, {'fewshot.shots': 1, 'fewshot.seed': 5, 'prompt.class_word': ''})
  experiment.run(changed, workdir, 'evaluate')
  drawn = [found(workdir, 'texts-to-target-1shot', seed)['protocol']['references'] for seed in (0, 1)]
  assert all(len(ids) == 1 and ids[0].startswith(f'{c}/train/good/') for row in drawn for c, ids in row.items())
  assert drawn[0] != drawn[1]


def test_without_a_checkpoint_it_says_how_to_get_one(run, tmp_path):
  with pytest.raises(FileNotFoundError, match='--mode=fit'):
    experiment.run(run[0], tmp_path, 'evaluate')


def test_no_epoch_is_chosen_among_several_seeds(folders, tmp_path):
  with pytest.raises(ValueError, match=r'eval\.oracle_epoch is True, but several seeds'):
    experiment.run(small(folders, **{'eval.oracle_epoch': True}), tmp_path, 'run')


class Numbered:
  """A store whose rows say which seed and pair and member they are."""
  count = 10

  def __init__(self, seed):
    self.seed = seed

  def read(self, indices):
    return {'texts': np.stack([[(self.seed, i, member) for member in (0, 1)] for i in indices])}


def test_pairs_stay_together_and_every_seed_has_its_own_order(monkeypatch, tmp_path):
  monkeypatch.setattr(text_features, 'store', lambda root, groups, *rest, **options: Numbered(int(groups[0][0])))
  said = type('Said', (), {'examples': staticmethod(lambda seed, *, cfg: [(str(seed), '')])})
  cfg = small(tmp_path, seed=4)
  read, count = generated.reader(cfg, said, None)
  assert count == 10
  for epoch in (0, 1):
    got = np.concatenate([read(np.arange(start, stop) + 10 * epoch)[0] for start, stop in ((0, 4), (4, 8), (8, 10))])
    assert got.shape == (10, 2, 2, 3)  # pairs, seeds, members
    for column, seed in enumerate((4, 5)):
      assert (got[:, column, :, 0] == seed).all() and (got[:, column, :, 2] == [0, 1]).all()
      assert (got[:, column, 0, 1] == got[:, column, 1, 1]).all()
      np.testing.assert_array_equal(got[:, column, 0, 1], train.order(seed, epoch, 10))
  one, _ = generated.reader(generated.of_seed(cfg, 1), said, None)
  np.testing.assert_array_equal(one(np.array([10, 13]))[0][:, 0], read(np.array([10, 13]))[0][:, 1])


def test_spread_by_hand():
  values = {'a': (0.5, 0.7, 0.9), 'b': (0.5, None, 0.9)}
  summaries = [{m: {'value': row[i], 'reason': f'{m} {i}'} for m, row in values.items()} for i in range(3)]
  population, sample = (generated.spread(summaries, ddof) for ddof in (0, 1))
  assert population['a']['value'] == pytest.approx(0.7)
  assert population['a']['std'] == pytest.approx(0.2 * np.sqrt(2 / 3)) and sample['a']['std'] == pytest.approx(0.2)
  assert population['b'] == {'value': None, 'std': None, 'values': [0.5, None, 0.9], 'reason': 'b 0'}
  assert generated.spread(summaries[:1], 1)['a']['std'] is None and generated.spread(summaries[:1], 0)['a']['std'] == 0
