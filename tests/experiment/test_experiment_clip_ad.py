"""CLIP-AD's systems in whole experiments: text features reduced on the host, order of training."""

import json

import numpy as np
import pytest
from small_experiments import config

from zsad_jax import methods
from zsad_jax.configs import sdp, sdp_plus
from zsad_jax.engine import train
from zsad_jax.experiment import experiment, setup

pytestmark = pytest.mark.slow  # hundreds of texts go through the text tower


def test_sdp_trains_nothing_and_reduces_its_text_features_on_the_host(folders, tmp_path, monkeypatch):
  calls, get = [], methods.get

  def reduce(text_features, dataset, *, cfg):
    calls.append((dataset, [type(x) for x in text_features], [x.shape for x in text_features]))
    return get('sdp').reduce_text_features(text_features, dataset, cfg=cfg)

  monkeypatch.setattr(methods, 'get', lambda name: get(name)._replace(reduce_text_features=reduce))
  means = experiment.run(config(sdp, folders, **{'data.target_categories': 'wood'}), tmp_path, 'run')
  assert calls == [(f'folder:{folders / "target"}', [np.ndarray] * 2, [(1, 198, 128), (1, 220, 128)])]
  path = tmp_path / 'results' / 'sdp' / 'nothing-to-target' / 'seed42' / 'metrics.json'
  result = json.loads(path.read_text())
  assert result['protocol']['selection'] == 'none' and list(means) == ['none']
  assert 0 <= result['mean']['aupro']['value'] <= 1


@pytest.fixture(scope='module')
def trained(folders, tmp_path_factory):
  """(config, workdir, means, batches of every step) of SDP+ after two epochs."""
  steps, batches = [], train._batches
  cfg = config(sdp_plus, folders, **{
    'data.aux_categories': 'tile', 'train.batch': 5})
  workdir = tmp_path_factory.mktemp('work')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train, '_batches', lambda *args: (steps.append(list(step)) or step for step in batches(*args)))
    means = experiment.run(cfg, workdir, 'run')
  return cfg, workdir, means, steps


def test_without_shuffling_training_follows_the_data_sets_order(trained):
  assert trained[3] == [[0, 1, 2, 3, 4], [5, 6, 7]] * 2


def test_one_training_serves_every_smoothing_and_score(trained):
  cfg, workdir, _, _ = trained
  changes = {'map.sigma': 0.0, 'score_norm': 'none'}
  assert list(experiment.run(setup.with_overrides(cfg, changes), workdir, 'evaluate')) == ['last (2)']
