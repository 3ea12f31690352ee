"""Several runs trained as one, and statistics that no gradient reaches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.engine import runtime, train

SGD = {'name': 'sgd', 'lr': 0.1, 'momentum': 0.9, 'weight_decay': 0.01}
ADAMW = {'name': 'adamw', 'lr': 0.1, 'b1': 0.9, 'b2': 0.999, 'weight_decay': 0.5}
DATA = np.random.default_rng(0).normal(size=(10, 3, 2)).astype(np.float32)  # rows, runs, channels
SEEDS = (4, 5, 6)


def loss(learnable, frozen, features, batch, rng):
  """A noisy distance from the rows, whose running mean is kept."""
  noise = jax.random.normal(rng, features.shape)
  off = (features + noise - learnable['w'][None]) * batch['valid'][:, None]
  mean = jnp.sum(features * batch['valid'][:, None], 0) / jnp.sum(batch['valid'])
  kept = learnable['statistics']['mean']
  metrics = {'statistics': {'mean': 0.5 * kept + 0.5 * mean}, 'first': features[0, 0]}
  return jnp.mean(off ** 2) + 0 * jnp.sum(kept), metrics


def start(runs=()):
  return {'w': np.zeros((*runs, 2), np.float32), 'statistics': {'mean': np.zeros((*runs, 2), np.float32)}}


def fit(seed, learnable, read, optim=SGD, **kwargs):
  place = runtime.place(jax.devices()[:1])
  return train.fit(loss, train.make_tx(optim), learnable, {}, read, 10, epochs=2, batch=4, seed=seed, place=place,
                   shuffle=False, **kwargs)


def test_several_runs_at_once_are_each_what_it_is_alone():
  together = fit(SEEDS, start((3,)), lambda rows: (DATA[rows], {}))
  for run, seed in enumerate(SEEDS):
    alone = fit(seed, start(), lambda rows, run=run: (DATA[rows, run], {}))
    assert jax.tree.map(np.shape, alone) == {'w': (2,), 'statistics': {'mean': (2,)}}
    for one, other in zip(jax.tree.leaves(jax.tree.map(lambda x, run=run: x[run], together)), jax.tree.leaves(alone)):
      np.testing.assert_allclose(one, other, atol=1e-6)
  assert len({float(x) for x in together['w'][:, 0]}) == 3


def test_several_runs_go_on_where_they_stopped_and_log_their_mean(tmp_path):
  read = lambda rows: (DATA[rows], {})
  whole = fit(SEEDS, start((3,)), read, workdir=tmp_path / 'whole')
  found = train.learned(tmp_path / 'whole', start((3,)), train.make_tx(SGD), seed=SEEDS)
  np.testing.assert_array_equal(found['w'], whole['w'])
  half = train.learned(tmp_path / 'whole', start((3,)), train.make_tx(SGD), 3, seed=SEEDS)
  assert not np.allclose(half['w'], whole['w'])
  (tmp_path / 'whole' / 'checkpoints' / '6.manifest').unlink()  # as if the last epoch had been cut short
  again = fit(SEEDS, start((3,)), read, workdir=tmp_path / 'whole')
  np.testing.assert_array_equal(again['w'], whole['w'])
  with pytest.raises(ValueError, match=r'another run: seed is \[4, 5, 6\] there, \[4, 5, 7\] here'):
    fit((4, 5, 7), start((3,)), read, workdir=tmp_path / 'whole')
  tx = train.make_tx(SGD)
  step = train.make_step(loss, tx, several=True)
  _, metrics = step(train.initial(start((3,)), tx, SEEDS), {}, DATA[:4], {'valid': np.ones(4, bool)})
  assert float(metrics['first']) == pytest.approx(DATA[0, :, 0].mean(), abs=1e-6) and metrics['loss'].shape == ()


def test_several_runs_have_no_one_order():
  with pytest.raises(ValueError, match='several seeds have no one order'):
    train.fit(loss, train.make_tx(SGD), start((3,)), {}, None, 10, epochs=1, batch=4, seed=SEEDS)


def test_statistics_are_moved_by_the_loss_alone():
  """AdamW decays every other array; the last batch of an epoch has two rows, the others four."""
  learned = fit(4, start(), lambda rows: (DATA[rows, 0], {}), ADAMW)
  mean = np.zeros(2)
  for _ in range(2):
    for rows in (slice(0, 4), slice(4, 8), slice(8, 10)):
      mean = 0.5 * mean + 0.5 * DATA[rows, 0].mean(0)
  np.testing.assert_allclose(learned['statistics']['mean'], mean, atol=1e-6)
  state = train.initial(start(), train.make_tx(ADAMW), 0)
  paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt)]
  assert any("'w'" in path for path in paths) and not any('statistics' in path for path in paths)


def test_adamw_decays_apart_from_the_gradient():
  """With no gradient one step takes lr * weight_decay of the weights, and nothing more."""
  tx = train.make_tx(ADAMW)
  step = train.make_step(lambda learnable, *_: (0.0 * jnp.sum(learnable['w']), {}), tx)
  state, _ = step(train.initial({'w': np.array([2., -4.], np.float32)}, tx, 0), {}, DATA[:4], {})
  np.testing.assert_allclose(state.learnable['w'], [2 * (1 - 0.1 * 0.5), -4 * (1 - 0.1 * 0.5)], rtol=1e-6)
