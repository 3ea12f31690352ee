"""What the tests of several methods share: configs with a few changed keys, and the checks of a run's setup."""

import functools

import ml_collections as mlc

from zsad_jax import methods
from zsad_jax.methods.parts import bounds


def with_keys(config, **changes):
  """A config, frozen, with dotted keys changed, which are written as part__key."""
  for key, value in changes.items():
    *path, last = key.split('__')
    setattr(functools.reduce(getattr, path, config), last, value)
  return mlc.FrozenConfigDict(config)


def check(module, clip, cfg):
  """Checks a config as a run's setup does before weights are read."""
  method = methods.from_module(module)
  bounds.check(cfg, method.bounds)
  method.feature_spec(clip, cfg)
