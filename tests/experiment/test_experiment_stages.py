"""An experiment whose method is trained in stages: the images of each, where each is kept, and resuming."""

import json
from typing import NamedTuple

import ml_collections as mlc
import numpy as np
import pytest
import small_experiments
from drawn_folders import draw

from zsad_jax.configs import fuzzyclip
from zsad_jax.engine import train
from zsad_jax.experiment import experiment, setup
from zsad_jax.experiment.run import Run
from zsad_jax.methods import fuzzyclip as method

FEW = ((('{}',), ('damaged {}',)), ('a photo of a {}.', '{}.'))
GROUPS = np.array([[1., 0, 0], [0, 1, 0], [1, .1, 0]])  # the first point and the last are one group


@pytest.fixture(scope='module', autouse=True)
def few_texts():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(method.ENSEMBLES, 'april', FEW)
    yield


@pytest.fixture
def grouped(monkeypatch):
  monkeypatch.setattr(method, '_points', lambda *_: GROUPS)


class Staged(NamedTuple):
  """A finished run, and (parts of params, categories of the images, epochs, batch) of every stage."""
  cfg: mlc.FrozenConfigDict
  workdir: object
  stages: list
  metrics: dict


def config(folder, **changes):
  return small_experiments.config(fuzzyclip, folder, **{
    'image_size': 32, 'layers': (6,), 'csp.k': 2, 'rpl.epochs': 2, 'rpl.batch': 6, 'rpl.lr': 0.01, 'train.epochs': 1,
    **changes})


@pytest.fixture(scope='module')
def staged(tmp_path_factory):
  folder, stages, fit = tmp_path_factory.mktemp('staged'), [], train.fit
  draw(folder / 'aux', {'bolt': (100, 40, 40), 'carpet': (40, 100, 40), 'nut': (40, 40, 90)}, images=2)
  draw(folder / 'target', {'wood': (90, 60, 30)}, images=2, seed=1)
  cfg, workdir = config(folder), folder / 'work'

  def spy(loss_fn, tx, params, context, source, recipe, *rest):
    _, batch = source.read(np.arange(source.count))
    stages.append((tuple(params), sorted(batch['category']), recipe.epochs, recipe.batch))
    return fit(loss_fn, tx, params, context, source, recipe, *rest)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train, 'fit', spy)
    patch.setattr(method, '_points', lambda *_: GROUPS)
    experiment.run(cfg, workdir, 'run')
  path, = workdir.glob('results/fuzzyclip/*/seed111/metrics.json')
  return Staged(cfg, workdir, stages, json.loads(path.read_text()))


@pytest.mark.slow
def test_each_stage_is_trained_on_its_own_images_under_its_own_recipe(staged):
  assert staged.stages == [(('efa0',), [0] * 4 + [2] * 4, 1, 4), (('efa1',), [1] * 4, 1, 4),
                           (('rpl0',), [0] * 4 + [1] * 4 + [2] * 4, 2, 6)]
  manifest = json.loads(next(staged.workdir.glob('results/fuzzyclip/*/seed111/manifest.json')).read_text())
  assert manifest['config']['csp']['groups'] == [0, 1, 0]
  assert manifest['config']['prompt']['categories'] == ['bolt', 'carpet', 'nut']


@pytest.mark.slow
def test_each_stage_keeps_its_checkpoints_and_means_in_a_folder_of_its_own(staged):
  lines = {name: [json.loads(line) for line in (staged.workdir / name / 'metrics.jsonl').read_text().splitlines()]
           for name in ('efa0', 'efa1', 'rpl0')}
  assert {name: [line['step'] for line in rows] for name, rows in lines.items()} == {
    'efa0': [2], 'efa1': [1], 'rpl0': [2, 4]}
  assert {'train/loss_focal', 'train/loss_dice'} <= lines['efa1'][0].keys()
  assert lines['rpl0'][0]['train/loss_text'] / lines['rpl0'][0]['train/loss_cls'] > 1e-3
  assert not (staged.workdir / 'checkpoints').exists() and (staged.workdir / 'rpl0' / 'checkpoints').is_dir()


@pytest.mark.slow
def test_a_finished_training_is_evaluated_again_from_its_checkpoints(staged, grouped, capfd, monkeypatch):
  monkeypatch.setattr(train, 'make_step', None)  # would fail if anything were trained
  run, aux = Run.load(staged.cfg), setup.open_data(staged.cfg, 'aux')
  assert run.for_auxiliary(aux).is_trained(staged.workdir, aux)
  experiment.run(staged.cfg, staged.workdir, 'evaluate')
  path, = staged.workdir.glob('results/*/*/seed111/metrics.json')
  assert json.loads(path.read_text()) == staged.metrics
  assert 'encode' not in capfd.readouterr().err


def test_other_groups_are_another_training(staged, monkeypatch):
  monkeypatch.setattr(method, '_points', lambda *_: np.array([[1., 0, 0], [0, 1, 0], [0, 1, .1]]))
  with pytest.raises(ValueError, match=r'efa0.* another run: csp is '):
    experiment.run(staged.cfg, staged.workdir, 'evaluate')


def test_a_missing_stage_is_named(staged, grouped, tmp_path):
  with pytest.raises(FileNotFoundError, match=r'efa0.checkpoints; train first'):
    experiment.run(staged.cfg, tmp_path, 'evaluate')


def test_stages_share_no_epochs_to_choose_from(tmp_path):
  with pytest.raises(ValueError, match=r'eval\.oracle_epoch=True.*fuzzyclip.*separately'):
    experiment.run(config(tmp_path, **{'eval.oracle_epoch': True}), tmp_path, 'run')


def test_groups_may_follow_from_the_images_of_the_auxiliary_data_set(staged):
  run = Run.load(setup.with_overrides(staged.cfg, {'csp.points': 'image_mean', 'csp.k': 0}))
  assert len(run.for_auxiliary(setup.open_data(run.cfg, 'aux')).cfg.csp.groups) == 3


@pytest.mark.slow
def test_mosaics_of_a_stage_are_of_its_own_categories(staged, grouped, tmp_path, monkeypatch):
  batches = []

  def spy(loss_fn, tx, params, context, source, recipe, *rest):
    assert source.new_every_epoch
    batches.append(source.read(np.arange(source.count * recipe.epochs)[::source.count // 4])[1])
    return params

  monkeypatch.setattr(train, 'fit', spy)
  experiment.run(setup.with_overrides(staged.cfg, {'mosaic': 1.0, 'train.epochs': 2}), tmp_path, 'fit')
  assert [sorted(set(batch['category'].tolist())) for batch in batches] == [[0, 2], [1], [0, 1, 2]]
  assert all('+' in name for batch in batches for name in batch['id'])
