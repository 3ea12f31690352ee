"""An experiment whose method is trained in parts: which images each sees, where each is kept, and going on."""

import json

import ml_collections as mlc
import numpy as np
import pytest
from drawn_folders import draw

from zsad_jax.configs import fuzzyclip
from zsad_jax.engine import train
from zsad_jax.experiment import experiment, setup
from zsad_jax.methods import fuzzyclip as method

FEW = ((('{}',), ('damaged {}',)), ('a photo of a {}.', '{}.'))


def config(tmp, **changes):
  c = fuzzyclip.get_config('demo')
  c.update_from_flattened_dict({
    'image_size': 32, 'layers': (6,), 'csp.k': 2, 'rpl.epochs': 2, 'rpl.batch': 6, 'rpl.lr': 0.01, 'train.epochs': 1,
    'train.batch': 4, 'machine.encode_batch': 4, 'machine.eval_batch': 4, 'report.pictures': 0, 'machine.data_dir': str(tmp / 'data'),
    'data.aux': f'folder:{tmp / "aux"}', 'data.target': f'folder:{tmp / "target"}'} | changes)
  return mlc.FrozenConfigDict(c)


@pytest.fixture(scope='module', autouse=True)
def few():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(method.ENSEMBLES, 'april', FEW)
    yield


class Run:
  """A finished run, and what train.fit was asked for in it."""

  def __init__(self, tmp):
    draw(tmp / 'aux', {'bolt': (100, 40, 40), 'carpet': (40, 100, 40), 'nut': (40, 40, 90)}, images=2)
    draw(tmp / 'target', {'wood': (90, 60, 30)}, images=2, seed=1)
    self.cfg, self.workdir, self.calls, fit = config(tmp), tmp / 'work', [], train.fit
    self.workdir.mkdir()

    def spy(loss, tx, learnable, frozen, read, count, **rest):
      _, batch = read(np.arange(count))
      self.calls.append((tuple(learnable), sorted(batch['category']), rest['epochs'], rest['batch']))
      return fit(loss, tx, learnable, frozen, read, count, **rest)

    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(train, 'fit', spy)
      # Three points of which the first and the last are one group.
      patch.setattr(method, '_points', lambda *_: np.array([[1., 0, 0], [0, 1, 0], [1, .1, 0]]))
      experiment.run(self.cfg, self.workdir, 'run')
    self.results = json.loads(next(self.workdir.glob('results/fuzzyclip/*/seed111/metrics.json')).read_text())


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return Run(tmp_path_factory.mktemp('run'))


def test_each_part_is_trained_on_its_own_images_under_its_own_recipe(run):
  assert run.calls == [(('efa0',), [0] * 4 + [2] * 4, 1, 4), (('efa1',), [1] * 4, 1, 4),
                       (('rpl0',), [0] * 4 + [1] * 4 + [2] * 4, 2, 6)]
  manifest = json.loads(next(run.workdir.glob('results/fuzzyclip/*/seed111/manifest.json')).read_text())
  assert manifest['config']['csp']['groups'] == [0, 1, 0]
  assert manifest['config']['prompt']['categories'] == ['bolt', 'carpet', 'nut']


def test_each_part_keeps_its_checkpoints_and_numbers_in_a_folder_of_its_own(run):
  lines = {name: [json.loads(line) for line in (run.workdir / name / 'metrics.jsonl').read_text().splitlines()]
           for name in ('efa0', 'efa1', 'rpl0')}
  assert {name: [line['step'] for line in found] for name, found in lines.items()} == {
    'efa0': [2], 'efa1': [1], 'rpl0': [2, 4]}
  assert {'train/loss_focal', 'train/loss_dice'} <= lines['efa1'][0].keys()
  assert lines['rpl0'][0]['train/loss_text'] / lines['rpl0'][0]['train/loss_cls'] > 1e-3
  assert not (run.workdir / 'checkpoints').exists() and (run.workdir / 'rpl0' / 'checkpoints').is_dir()


def test_what_was_trained_is_evaluated_again_from_its_checkpoints(run, capfd, monkeypatch):
  monkeypatch.setattr(method, '_points', lambda *_: np.array([[1., 0, 0], [0, 1, 0], [1, .1, 0]]))
  monkeypatch.setattr(train, 'make_step', None)  # would fail if anything were trained
  experiment.run(run.cfg, run.workdir, 'evaluate')
  assert json.loads(next(run.workdir.glob('results/*/*/seed111/metrics.json')).read_text()) == run.results
  assert 'encode' not in capfd.readouterr().err


def test_other_groups_are_another_training(run, monkeypatch):
  monkeypatch.setattr(method, '_points', lambda *_: np.array([[1., 0, 0], [0, 1, 0], [0, 1, .1]]))
  with pytest.raises(ValueError, match=r'efa0.* is of another run: csp is '):
    experiment.run(run.cfg, run.workdir, 'evaluate')


def test_a_missing_part_is_named(run, tmp_path):
  with pytest.raises(FileNotFoundError, match=r'efa0.checkpoints; train first'):
    experiment.run(run.cfg, tmp_path, 'evaluate')


def test_parts_have_no_epochs_in_common_to_choose_from(tmp_path):
  with pytest.raises(ValueError, match='the parts of fuzzyclip are trained one after another'):
    experiment.run(config(tmp_path, **{'eval.oracle_epoch': True}), tmp_path, 'run')


def test_means_of_class_tokens_are_each_categorys(run):
  cfg = run.cfg
  tower, dataset = setup.load_clip(cfg, method), setup.open_data(cfg, 'aux')
  load = setup.reader(cfg, method, tower, dataset)
  tokens = np.stack([load(np.array([i]))[0].cls[0] for i in range(len(dataset))])
  units = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
  for normalize, rows in ((False, tokens), (True, units)):
    found = setup.class_means(cfg, method, tower, dataset, normalize=normalize)
    np.testing.assert_allclose(found, rows.reshape(3, 4, -1).mean(1), atol=1e-6)
  images = setup.with_changes(cfg, {'csp.points': 'image_mean', 'csp.k': 0})
  changed = experiment.settled(experiment.with_aux_names(images, dataset), method, tower, dataset)
  assert len(changed.csp.groups) == 3


def test_mosaics_of_a_part_are_of_its_own_categories(run, tmp_path, monkeypatch):
  read = []

  def spy(loss, tx, learnable, frozen, load, count, **rest):
    read.append(load(np.arange(count * rest['epochs'])[::count // 4])[1])
    assert rest['fresh']
    return learnable

  monkeypatch.setattr(train, 'fit', spy)
  monkeypatch.setattr(method, '_points', lambda *_: np.array([[1., 0, 0], [0, 1, 0], [1, .1, 0]]))
  experiment.run(setup.with_changes(run.cfg, {'mosaic': 1.0, 'train.epochs': 2}), tmp_path, 'fit')
  assert [sorted(set(batch['category'].tolist())) for batch in read] == [[0, 2], [1], [0, 1, 2]]
  assert all('+' in name for batch in read for name in batch['id'])
