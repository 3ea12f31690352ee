"""Optimizers and learning-rate schedules: as configured, as PyTorch's, and checked key by key."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zsad_jax.engine import optimizers

OPTIM = {'lr': 1e-2, 'b1': .5, 'b2': .999}
SGD = {'name': 'sgd', 'lr': .002, 'momentum': .9, 'weight_decay': 5e-4}
COSINE = {'schedule': 'cosine', 'epochs': 15, 'warmup_epochs': 1, 'warmup_lr': 1e-5}
ADAMW = {'name': 'adamw', 'lr': 1e-3, 'b1': .9, 'b2': .999, 'weight_decay': 1e-4}
STEP = {'schedule': 'step', 'every': 1, 'gamma': .1}


@pytest.mark.parametrize('optim, message', [
  ({'lr': 1e-3}, 'optim.b1 is missing: adam .* needs b1, b2, lr$'),
  (OPTIM | {'weight_decay': 0.}, 'optim.weight_decay is not a key of adam .* takes b1, b2, eps, lr$'),
  (OPTIM | {'epochs': 3}, 'optim.epochs is not a key of adam'), (SGD | {'eps': 1e-8}, 'optim.eps is not a key of sgd'),
  (SGD | {'schedule': 'cosine'}, 'optim.epochs is missing: sgd .* needs .*warmup_epochs, warmup_lr'),
  (OPTIM | {'name': 'lion'}, "optim.name='lion' .* adam, adamw, sgd"),
  (OPTIM | {'schedule': 'linear'}, "optim.schedule='linear' .* constant, cosine, step"),
  (OPTIM | {'lr': 0.}, 'optim.lr=0.0 .* positive'), (OPTIM | {'eps': 0}, 'optim.eps=0 .* positive'),
  (OPTIM | {'b1': 1.}, r'optim.b1=1.0 .* in \[0, 1\)'), (OPTIM | {'b2': -.1}, r'optim.b2=-0.1 .* in \[0, 1\)'),
  (SGD | {'momentum': 1.}, r'optim.momentum=1.0 .* in \[0, 1\)'),
  (SGD | {'weight_decay': -1.}, 'optim.weight_decay=-1.0 .* at least 0'),
  (SGD | COSINE | {'warmup_epochs': -1}, 'optim.warmup_epochs=-1 .* at least 0'),
  (SGD | COSINE | {'epochs': 0}, 'optim.epochs=0 .* positive'),
  (ADAMW | STEP | {'every': 0}, 'optim.every=0 .* positive'),
  (ADAMW | STEP | {'gamma': 0.}, 'optim.gamma=0.0 .* positive')])
def test_optimizer_config_is_checked(optim, message):
  with pytest.raises(ValueError, match=message):
    optimizers.make_tx(optim)


def test_adam_betas_of_the_config_are_used():
  """Betas (0.5, 0.999): after gradients +g and -g a parameter moves from 0 to -6.667e-4, not to -9.474e-4."""
  tx, x = optimizers.make_tx({'lr': 1e-3, 'b1': .5, 'b2': .999}), jnp.float32(0)
  state = tx.init(x)
  for g in (.3, -.3):
    updates, state = tx.update(jnp.float32(g), state, x)
    x = x + updates
  np.testing.assert_allclose(x, -6.667e-4, atol=1e-7)


def test_adam_is_optax_adam():
  ours, theirs = optimizers.make_tx(OPTIM | {'eps': 1e-3}), optax.adam(1e-2, b1=.5, b2=.999, eps=1e-3)
  params, grads = jnp.full(3, 5.), jnp.arange(3.)
  np.testing.assert_array_equal(ours.update(grads, ours.init(params), params)[0],
                                theirs.update(grads, theirs.init(params), params)[0])
  assert jax.tree.structure(ours.init(params)) == jax.tree.structure(theirs.init(params))
  np.testing.assert_array_equal(optimizers.make_tx(OPTIM | {'name': 'adam'}).init(params)[0].mu, 0)


def test_weight_decay_of_adamw_is_decoupled_from_the_gradient():
  """A step without gradient shrinks the weights by lr * weight_decay, and by nothing else."""
  tx, params = optimizers.make_tx(ADAMW), jnp.full(3, 5.)
  updates, _ = tx.update(jnp.zeros(3), tx.init(params), params)
  np.testing.assert_allclose(updates, -1e-3 * 1e-4 * 5, rtol=1e-6)


def test_weight_decay_of_sgd_enters_the_momentum():
  tx, w, path = optimizers.make_tx(SGD | {'lr': .1}), jnp.float32(2.), []
  state = tx.init(w)
  for g in (1., 0.):
    updates, state = tx.update(jnp.float32(g), state, w)
    w = w + updates
    path.append(float(w))
  first = 1. + 5e-4 * 2
  second = .9 * first + 5e-4 * (2 - .1 * first)
  np.testing.assert_allclose(path, [2 - .1 * first, 2 - .1 * first - .1 * second], rtol=1e-6)


@pytest.mark.parametrize('optim, torch_class, options', [
  (SGD, 'SGD', {'momentum': .9, 'weight_decay': 5e-4}),
  (ADAMW, 'AdamW', {'betas': (.9, .999), 'weight_decay': 1e-4})], ids=['sgd', 'adamw'])
def test_optimizers_equal_those_of_pytorch(optim, torch_class, options, torch):
  grads = np.random.default_rng(3).normal(size=(6, 4)).astype(np.float32)
  theirs = torch.nn.Parameter(torch.full((4,), .7))
  optimizer = getattr(torch.optim, torch_class)([theirs], lr=optim['lr'], **options)
  tx, ours = optimizers.make_tx(optim), jnp.full(4, .7)
  state = tx.init(ours)
  for g in grads:
    theirs.grad = torch.tensor(g)
    optimizer.step()
    updates, state = tx.update(jnp.asarray(g), state, ours)
    ours = ours + updates
  np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=2e-6)


def test_cosine_is_the_schedule_of_coop():
  """Epoch 0: 1e-5; epoch k >= 1: 0.001 (1 + cos(pi (k - 1) / T))."""
  rate = jax.jit(optimizers.learning_rate(SGD | COSINE))
  rates = [float(rate(jnp.int32(k))) for k in range(15)]
  expected = [1e-5] + [.001 * (1 + np.cos(np.pi * (k - 1) / 15)) for k in range(1, 15)]
  np.testing.assert_allclose(rates, expected, rtol=1e-5)
  np.testing.assert_allclose([rates[1], rates[2], rates[14]], [.002, 1.978148e-3, 8.645454e-5], rtol=1e-5)
  assert float(rate(jnp.int32(16))) == 0  # it does not rise again


def test_cosine_after_warm_up_equals_that_of_pytorch(torch):
  optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=.002)
  successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
  rates = [1e-5, 1e-5]  # CoOp's wrapper starts the cosine after the warm-up
  for _ in range(7):
    rates.append(optimizer.param_groups[0]['lr'])
    optimizer.step()
    successor.step()
  ours = optimizers.learning_rate(SGD | COSINE | {'epochs': 9, 'warmup_epochs': 2})
  np.testing.assert_allclose([float(ours(k)) for k in range(9)], rates, rtol=1e-5)


def test_step_decay_and_constant_rate():
  rate = optimizers.learning_rate(ADAMW | STEP | {'every': 2})
  np.testing.assert_allclose([rate(k) for k in range(5)], [1e-3, 1e-3, 1e-4, 1e-4, 1e-5], rtol=1e-6)
  assert optimizers.learning_rate(OPTIM)(7) == OPTIM['lr']


def test_a_training_of_warm_up_alone_logs_a_warning(caplog):
  with caplog.at_level('WARNING'):
    rate = optimizers.learning_rate(SGD | COSINE | {'epochs': 1})
  assert 'epochs are warm-up' in caplog.text and '1e-05' in caplog.text
  np.testing.assert_allclose(rate(0), 1e-5)
