"""The disk space of a run is predicted before it begins."""

import jax
import numpy as np
import pytest
from small_experiments import config

from zsad_jax.clip.model import Clip
from zsad_jax.configs import anomalyclip, rwda
from zsad_jax.engine import checkpoint, optimizers, runtime, train
from zsad_jax.experiment import disk_budget, setup
from zsad_jax.experiment.run import Run


def without_weights(cfg):
  method = setup.check(cfg)
  shell = setup.clip_without_weights(cfg, method)
  return Run(cfg, method, Clip(shell.arch, cfg.image_size, None), runtime.place(), setup.local_devices(cfg))


def test_checkpoints_of_all_epochs_still_to_come_are_counted(tmp_path):
  run = without_weights(config(anomalyclip, tmp_path, **{'train.epochs': 5}))
  one = disk_budget.checkpoint_bytes(run, tmp_path) / 5
  parameters = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(run.params_shape))
  assert 3 * parameters <= one < 3 * parameters + 100  # Adam keeps two moments; then step, key and count
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), run.params_shape)
  assert one == sum(x.nbytes for x in jax.tree.leaves(train.initial(zeros, optimizers.make_tx(run.cfg.optim), 0)))
  for step in (1, 2):
    checkpoint.save(tmp_path / 'checkpoints', step, {'w': np.zeros(1, np.float32)}, {})
  assert disk_budget.checkpoint_bytes(run, tmp_path) == 3 * one


def test_a_training_on_texts_saves_its_parameters_once(tmp_path):
  run = without_weights(config(rwda, tmp_path))
  assert disk_budget.checkpoint_bytes(run, tmp_path) == sum(
    x.size * x.dtype.itemsize for x in jax.tree.leaves(run.params_shape))


def test_a_full_disk_is_named_with_what_is_needed(tmp_path):
  disk_budget.check({tmp_path: 1, tmp_path / 'not' / 'there': 1})
  with pytest.raises(OSError, match=r'1e\+09 GB.*free.*--workdir'):
    disk_budget.check({tmp_path: 10 ** 18, tmp_path / 'not' / 'there': 1})
