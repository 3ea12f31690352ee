"""CLIP-AD's systems through whole experiments on folders of pictures: texts on the host, order, epochs chosen."""

import json

import ml_collections as mlc
import numpy as np
import pytest
from drawn_folders import draw

from zsad_jax.configs import sdp, sdp_plus
from zsad_jax.engine import train
from zsad_jax.experiment import experiment, setup
from zsad_jax.methods import sdp as sdp_method


def config(module, tmp, **changes):
  c = module.get_config('demo')
  c.update_from_flattened_dict({
    'image_size': 56, 'machine.encode_batch': 4, 'machine.eval_batch': 4, 'report.pictures': 0, 'train.batch': 4,
    'machine.data_dir': str(tmp / 'data'), 'data.aux': f'folder:{tmp / "aux"}', 'data.target': f'folder:{tmp / "target"}'}
    | changes)
  return mlc.FrozenConfigDict(c)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  tmp = tmp_path_factory.mktemp('clip-ad')
  draw(tmp / 'aux', {'tile': (100, 40, 40)}, images=3)
  draw(tmp / 'target', {'wood': (90, 60, 30)}, seed=1)
  return tmp


def found(folder):
  return json.loads((folder / 'metrics.json').read_text())


def test_sdp_learns_nothing_and_chooses_its_texts_on_the_host(folders, tmp_path, monkeypatch):
  given = []
  real = sdp_method.select

  def select(texts, dataset, *, cfg):
    given.append((dataset, [type(x) for x in texts], [x.shape for x in texts]))
    return real(texts, dataset, cfg=cfg)

  monkeypatch.setattr(sdp_method, 'select', select)
  means = experiment.run(config(sdp, folders), tmp_path, 'run')
  assert given == [(f'folder:{folders / "target"}', [np.ndarray] * 2, [(1, 198, 128), (1, 220, 128)])]
  result = found(tmp_path / 'results' / 'sdp' / 'nothing-to-target' / 'seed42')
  assert result['protocol']['selection'] == 'none' and list(means) == ['none']
  assert 0 <= result['mean']['aupro']['value'] <= 1


@pytest.fixture(scope='module')
def trained(folders, tmp_path_factory):
  """(config, workdir, means) of SDP+ trained for three epochs, the oracle's among the results."""
  orders, plan = [], train._plan
  cfg, workdir = config(sdp_plus, folders, **{'eval.oracle_epoch': True}), tmp_path_factory.mktemp('work')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train, '_plan', lambda *args: (orders.append(list(images)) or images for images in plan(*args)))
    means = experiment.run(cfg, workdir, 'run')
  return cfg, workdir, means, orders


def test_training_follows_the_data_sets_order(trained):
  assert trained[3] == [[0, 1, 2, 3], [4, 5]] * 3


def test_the_oracle_epoch_is_a_result_of_its_own_and_says_so(trained):
  _, workdir, means, _ = trained
  last = found(workdir / 'results' / 'sdp_plus' / 'aux-to-target' / 'seed42')
  oracle = found(workdir / 'results' / 'sdp_plus' / 'aux-to-target-oracle' / 'seed42')
  assert last['protocol']['selection'] == 'last epoch (3)'
  chosen = oracle['protocol']['selection']
  assert chosen.startswith('oracle epoch ') and chosen.endswith(' of 3 (selected on the target, by image AUROC)')
  assert oracle['mean']['image_auroc']['value'] >= last['mean']['image_auroc']['value']
  assert {key: mean['image_auroc'] for key, mean in means.items()} == {
    'last epoch (3)': last['mean']['image_auroc'], chosen: oracle['mean']['image_auroc']}


def test_the_oracle_takes_the_best_of_all_epochs_and_of_equal_ones_the_first(trained, monkeypatch):
  cfg, workdir, _, _ = trained
  method = experiment.methods.get('sdp_plus')
  clip, aux = setup.load_clip(cfg, method), setup.open_data(cfg, 'aux')

  class Result:
    def __init__(self, value, learnable=None):
      self.summary, self.learnable = {'image_auroc': {'value': value, 'reason': 'no normal images'}}, learnable

  def oracle(values, last):
    left = list(values)
    return experiment.oracle(cfg, workdir, method, clip, aux, lambda learnable: Result(left.pop(), learnable),
                             Result(last))

  epoch, best = oracle([0.6, 0.9], 0.8)
  assert epoch == 2
  steps = 2  # an epoch
  want = train.learned(workdir, experiment.learned_shapes(cfg, method, clip), train.make_tx(cfg.optim), 2 * steps)
  np.testing.assert_array_equal(best.learnable['block2']['affine1']['bias'], want['block2']['affine1']['bias'])
  assert oracle([0.8, 0.8], 0.8)[0] == 1 and oracle([0.6, 0.7], 0.8)[0] == 3
  with pytest.raises(ValueError, match=r'chooses by image AUROC, which folder:.* leaves undefined: no normal images'):
    oracle([0.6, 0.7], None)


def test_one_training_serves_every_way_to_smooth_and_to_score(trained):
  cfg, workdir, _, _ = trained
  changed = mlc.ConfigDict(cfg.to_dict())
  changed.update_from_flattened_dict({'map.sigma': 0.0, 'score_norm': 'none', 'eval.oracle_epoch': False})
  means = experiment.run(mlc.FrozenConfigDict(changed), workdir, 'evaluate')
  assert list(means) == ['last epoch (3)']


def test_without_a_training_there_is_no_epoch_to_choose(folders, tmp_path):
  with pytest.raises(ValueError, match=r'eval.oracle_epoch is True, but nothing was trained here'):
    experiment.run(config(sdp, folders, **{'eval.oracle_epoch': True}), tmp_path, 'run')
