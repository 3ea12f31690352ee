"""Optimizers and learning-rate schedules from a config's `optim`."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from absl import logging

# The keys of each optimizer and of each schedule in addition to lr, name and schedule.
OPTIMIZERS = {'adam': ('b1', 'b2'), 'adamw': ('b1', 'b2', 'weight_decay'), 'sgd': ('momentum', 'weight_decay')}
SCHEDULES = {'constant': (), 'cosine': ('epochs', 'warmup_epochs', 'warmup_lr'), 'step': ('every', 'gamma')}
OPTIONAL = {'adam': ('eps',), 'adamw': ('eps',), 'sgd': ()}  # eps is 1e-8 by default


def make_tx(optim: Mapping) -> optax.GradientTransformation:
  """Returns the optimizer that a config's `optim` describes.

  Its state does not depend on the schedule, which learns the epoch from train.make_step.

  Args:
    optim: lr; name, by default 'adam', with the keys of OPTIMIZERS; schedule, by default 'constant', with the keys of
      SCHEDULES (see learning_rate). 'sgd' is PyTorch's: g + weight_decay p enters buffer = momentum buffer + g.
      'adamw' decays every array apart from its gradient.

  Raises:
    ValueError: a key is missing, unknown or out of range.
  """
  rate = learning_rate(optim)
  name, weight_decay = optim.get('name', 'adam'), optim.get('weight_decay', 0.)
  if name == 'sgd':
    parts = [optax.add_decayed_weights(weight_decay), optax.trace(optim['momentum'])]
  else:
    parts = [optax.scale_by_adam(optim['b1'], optim['b2'], optim.get('eps', 1e-8))]
    parts += [optax.add_decayed_weights(weight_decay)] if name == 'adamw' else []
  constant = optim.get('schedule', 'constant') == 'constant'
  return optax.chain(*parts, optax.scale_by_learning_rate(optim['lr']) if constant else _scale_by_epoch(rate))


def learning_rate(optim: Mapping) -> Callable:
  """Returns epoch (from 0) -> learning rate, as a config's `optim` describes it.

  constant: lr.
  cosine: warmup_lr for warmup_epochs, then lr / 2 (1 + cos(pi k / epochs)) with k epochs since. This is CoOp's
    schedule (arXiv 2109.01134): k never reaches `epochs`, the total, so the last rate is above 0.
  step: lr gamma^(epoch // every).

  Raises:
    ValueError: a key is missing, unknown or out of range.
  """
  _check(optim)
  optim = dict(optim)
  lr, kind = optim['lr'], optim.get('schedule', 'constant')
  if kind == 'constant':
    return lambda epoch: lr
  if kind == 'step':
    return lambda epoch: lr * optim['gamma'] ** (epoch // optim['every'])
  epochs, warmup = optim['epochs'], optim['warmup_epochs']
  if warmup >= epochs:
    logging.warning('all %d epochs are warm-up, at a learning rate of %g', epochs, optim['warmup_lr'])

  def cosine(epoch):
    progress = jnp.clip((epoch - warmup) / epochs, 0, 1)
    return jnp.where(epoch < warmup, optim['warmup_lr'], lr / 2 * (1 + jnp.cos(jnp.pi * progress)))

  return cosine


def _scale_by_epoch(rate: Callable) -> optax.GradientTransformationExtraArgs:
  """Turns directions into updates of size rate(epoch)."""
  def update(updates, state, params=None, *, epoch=None, **others):
    del params, others
    if epoch is None:
      raise ValueError('the learning rate depends on the epoch: give make_step steps_per_epoch')
    return jax.tree.map(lambda u: -jnp.asarray(rate(epoch), u.dtype) * u, updates), state

  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _check(optim: Mapping):
  """Raises ValueError naming the first key of `optim` that is missing, unknown or out of range."""
  name, schedule = optim.get('name', 'adam'), optim.get('schedule', 'constant')
  for key, value, allowed in (('name', name, OPTIMIZERS), ('schedule', schedule, SCHEDULES)):
    if value not in allowed:
      raise ValueError(f'optim.{key}={value!r} is not allowed; it must be one of {", ".join(allowed)}')
  required = {'lr', *OPTIMIZERS[name], *SCHEDULES[schedule]}
  present = set(optim) - {'name', 'schedule'}
  if missing := required - present:
    raise ValueError(f'optim.{min(missing)} is missing: {name} with a {schedule} learning rate needs '
                     f'{", ".join(sorted(required))}')
  if unknown := present - required - set(OPTIONAL[name]):
    raise ValueError(f'optim.{min(unknown)} is not a key of {name} with a {schedule} learning rate, which takes '
                     f'{", ".join(sorted(required | set(OPTIONAL[name])))}')
  for keys, allowed, text in ((('lr', 'eps', 'epochs', 'warmup_lr', 'every', 'gamma'), lambda x: x > 0, 'positive'),
                              (('b1', 'b2', 'momentum'), lambda x: 0 <= x < 1, 'in [0, 1)'),
                              (('weight_decay', 'warmup_epochs'), lambda x: x >= 0, 'at least 0')):
    for key in keys:
      if key in optim and not allowed(optim[key]):
        raise ValueError(f'optim.{key}={optim[key]} is not allowed; it must be {text}')
