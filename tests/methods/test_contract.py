"""The Method record: what from_module refuses, and that every method's module fits the record and its config."""

import importlib
import inspect
import types
import typing

import pytest

from zsad_jax import methods
from zsad_jax.methods.parts import bounds

METHODS = [methods.get(name) for name in methods.names()]


def config_of(method):
  return importlib.import_module(f'zsad_jax.configs.{method.name}').get_config()


def module_of(**functions):
  """A module 'some_method' with these public functions."""
  module = types.ModuleType('zsad_jax.methods.some_method')
  for name, function in functions.items():
    function = types.FunctionType(function.__code__, vars(module), name)
    function.__module__ = module.__name__
    setattr(module, name, function)
  return module


def defined(method):
  """{field: (function, Protocol)} of the functions that the module of a method defines."""
  fields = {}
  for field, kind in typing.get_type_hints(methods.Method).items():
    function = method._asdict()[field]
    if inspect.isfunction(function) and function.__module__.startswith('zsad_jax.methods.'):
      fields[field] = function, next(t for t in (*typing.get_args(kind), kind) if inspect.isclass(t))
  return fields


def check_functions(method):
  """Asserts that a method's functions take what the record says, and have docstrings."""
  shape = lambda function: [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]
  for field, (function, protocol) in defined(method).items():
    assert shape(function) == shape(protocol.__call__)[1:], f'{method.name}.{field}'
    assert function.__doc__, f'{method.name}.{field} has no docstring'


def nothing():
  pass


# from_module


def test_public_functions_and_constants_become_fields_and_private_functions_do_not():
  module = module_of(feature_spec=nothing, predict=nothing, _helper=nothing)
  module.TRAITS, module.BOUNDS = methods.Traits(maps=False), {'temperature': bounds.POSITIVE}
  method = methods.from_module(module)
  assert method.name == 'some_method' and method.predict is module.predict
  assert (method.traits, method.bounds) == (module.TRAITS, module.BOUNDS)
  assert method.loss is None and method.init(None, None, None) == {}


def test_imported_functions_are_not_taken_for_those_of_the_method():
  module = module_of(feature_spec=nothing, predict=nothing)
  module.imported = nothing  # defined in this file
  assert methods.from_module(module).predict is module.predict


@pytest.mark.parametrize('functions, message', [
  (('feature_spec', 'predict', 'predicts'), r"predicts\(\).*not a field of Method \(did you mean 'predict'\?\)"),
  (('feature_spec', 'predict', 'build_memory_banks'), "did you mean 'build_memory_bank'"),
  (('feature_spec', 'predict', 'helper'), 'name helpers with a leading underscore'),
  (('feature_spec', 'predict', 'traits'), r'traits\(\), which is not a field of Method'),
  (('feature_spec',), r'does not define predict\(\)'),
  (('predict',), r'does not define feature_spec\(\)'),
  (('feature_spec', 'predict', 'loss'), r'loss\(\) without init\(\)'),
  (('feature_spec', 'predict', 'train'), r'train\(\) without training_texts\(\)'),
  (('feature_spec', 'predict', 'training_texts'), r'training_texts\(\) without train\(\)'),
  (('feature_spec', 'predict', 'postprocess_category'), r'category\(\) without single_image_overrides\(\)')])
def test_modules_that_do_not_fit_the_record_are_refused(functions, message):
  with pytest.raises(ValueError, match=message):
    methods.from_module(module_of(**dict.fromkeys(functions, nothing)))


# Names and towers


def test_methods_are_found_by_their_files():
  assert 'anomalyclip' in methods.names() and 'parts' not in methods.names()
  assert methods.get('anomalyclip') is methods.get('anomalyclip')
  assert methods.get('anomalyclip').name == 'anomalyclip'


def test_an_unknown_method_is_refused_with_the_nearest_name():
  with pytest.raises(ValueError, match=r"unknown method 'anomaly_clip' \(did you mean 'anomalyclip'\?\)"):
    methods.get('anomaly_clip')
  with pytest.raises(ValueError, match='unknown method'):
    methods.get('parts')


def test_a_tower_that_a_method_cannot_read_is_refused_with_methods_that_can():
  arch = types.SimpleNamespace(name='rn50', vision=types.SimpleNamespace(kind='resnet'))
  methods.check_tower(methods.get('clip'), arch)
  with pytest.raises(ValueError, match=r'anomalyclip cannot read rn50, whose image tower is a resnet.*\bclip\b'):
    methods.check_tower(methods.get('anomalyclip'), arch)


# Every method


def test_functions_take_what_the_record_says():
  for method in METHODS:
    check_functions(method)


def test_a_function_that_takes_something_else_is_noticed():
  def predict(params, context, features, batch, clip, cfg):
    """clip and cfg are not keyword-only."""
  predict.__module__ = 'zsad_jax.methods.some_method'
  with pytest.raises(AssertionError, match='predict'):
    check_functions(methods.get('clip')._replace(predict=predict))


def test_modules_name_their_paper():
  for method in METHODS:
    assert 'arXiv' in inspect.getmodule(method.predict).__doc__, method.name


def test_a_method_with_a_memory_bank_has_keys_for_its_references():
  for method in METHODS:
    config = config_of(method)
    assert (method.build_memory_bank is not None) == ('fewshot' in config), method.name
    if 'fewshot' in config:
      assert {key: type(config.fewshot[key]) for key in ('shots', 'seed', 'replacement')} == dict(
        shots=int, seed=int, replacement=bool)


def test_traits_name_known_towers_and_keys_of_the_config():
  for method in METHODS:
    assert method.traits.towers and set(method.traits.towers) <= {'vit', 'resnet'}, method.name
    for key in method.traits.evaluation_keys:
      bounds.value_of(config_of(method), key)


def test_bounds_allow_the_defaults_of_the_config():
  for method in METHODS:
    bounds.check(config_of(method), method.bounds)


# Bounds


@pytest.mark.parametrize('bound, allowed, refused', [
  (bounds.POSITIVE, (1e-9, 3), (0, -1., float('nan'), float('inf'), True, '1')),
  (bounds.NOT_NEGATIVE, (0, 0., 2), (-1e-9, float('nan'))),
  (bounds.Range(0, 1, open_high=True), (0, .999), (1, 1., -1)),
  (bounds.ODD, (1, 3), (0, 2, -1, 3.)),
  (bounds.OneOf(('a', 1)), ('a', 1), ('b', True, 1.))])
def test_bounds_allow_and_refuse(bound, allowed, refused):
  assert all(bound.allows(value) for value in allowed)
  assert not any(bound.allows(value) for value in refused)


def test_a_bound_that_is_broken_names_key_value_limits_and_their_reason():
  limits = {'a.b': bounds.AT_LEAST_ONE, 'a.c': bounds.Range(1, 6, reason='the blocks of tiny')}
  bounds.check({'a': {'b': 1, 'c': 6}}, limits)
  with pytest.raises(ValueError, match=r'a\.c=7 is not allowed; it must be in \[1, 6\], the blocks of tiny'):
    bounds.check({'a': {'b': 1, 'c': 7}}, limits)
