"""Every method keeps the contract of zsad_jax/methods/__init__.py."""

import functools
import importlib
import inspect

import pytest

from zsad_jax import methods


def parameters(function):
  """Names in order, with '*' where keyword-only arguments begin."""
  names = []
  for p in inspect.signature(function).parameters.values():
    assert p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.default is p.empty, p
    if p.kind == p.KEYWORD_ONLY and '*' not in names:
      names.append('*')
    names.append(p.name)
  return tuple(names)


def test_methods_are_found_by_their_files():
  assert 'anomalyclip' in methods.names()
  assert 'prompts' not in methods.names()
  assert methods.get('anomalyclip').__name__ == 'zsad_jax.methods.anomalyclip'


@pytest.mark.parametrize('name', methods.names())
def test_signatures(name):
  module = methods.get(name)
  for function, expected in methods.REQUIRED.items():
    assert parameters(getattr(module, function)) == expected, f'{name}.{function}'
  for function, expected in methods.OPTIONAL.items():
    if hasattr(module, function):
      assert parameters(getattr(module, function)) == expected, f'{name}.{function}'


@pytest.mark.parametrize('name', methods.names())
def test_docstrings_say_what_is_returned_and_whose_method_it_is(name):
  module = methods.get(name)
  assert 'arXiv' in module.__doc__
  for function in methods.REQUIRED.keys() | methods.OPTIONAL.keys():
    if hasattr(module, function):
      assert getattr(module, function).__doc__.startswith('Returns'), f'{name}.{function}'


@pytest.mark.parametrize('name', methods.names())
def test_a_method_with_a_memory_says_how_many_references_and_how_they_are_drawn(name):
  config = importlib.import_module(f'zsad_jax.configs.{name}').get_config()
  assert hasattr(methods.get(name), 'memory') == ('fewshot' in config)
  if 'fewshot' in config:
    assert {key: type(config.fewshot[key]) for key in ('shots', 'seed', 'replacement')} == dict(
      shots=int, seed=int, replacement=bool)


@pytest.mark.parametrize('name', methods.names())
def test_evaluation_keys_are_keys_of_the_config(name):
  config = importlib.import_module(f'zsad_jax.configs.{name}').get_config()
  for key in getattr(methods.get(name), 'EVALUATION_KEYS', ()):
    functools.reduce(lambda node, part: node[part], key.split('.'), config)


def test_unknown_method_is_refused_with_the_nearest_name():
  with pytest.raises(ValueError, match=r"unknown method 'anomaly_clip' \(did you mean 'anomalyclip'\?\)"):
    methods.get('anomaly_clip')
  with pytest.raises(ValueError, match='unknown method'):
    methods.get('prompts')
