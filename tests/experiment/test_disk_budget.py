"""What a run will write, before it does."""

from types import SimpleNamespace

import jax
import ml_collections as mlc
import numpy as np

from zsad_jax.configs import anomalyclip
from zsad_jax.engine import checkpoint, train
from zsad_jax.experiment import disk_budget


def test_checkpoints_of_all_epochs_still_to_come(tmp_path):
  c = anomalyclip.get_config('demo')
  c.train.epochs = 5
  cfg, shapes = mlc.FrozenConfigDict(c), {'w': jax.ShapeDtypeStruct((1000,), np.float32)}
  one = disk_budget.saved(cfg, tmp_path, SimpleNamespace(), shapes) / 5
  assert 3 * 4000 <= one < 3 * 4000 + 100  # parameters and Adam's two moments; step, key and count
  state = train.initial({'w': np.zeros(1000, np.float32)}, train.make_tx(cfg.optim), 0)
  assert one == sum(x.nbytes for x in jax.tree.leaves(state))
  for step in (1, 2):
    checkpoint.save(tmp_path / 'checkpoints', step, {'w': np.zeros(1, np.float32)}, {})
  assert disk_budget.saved(cfg, tmp_path, SimpleNamespace(), shapes) == 3 * one
