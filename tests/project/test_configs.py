"""Every config loads, states what it is, and holds no key that nothing reads."""

import importlib
import re
from pathlib import Path

import ml_collections as mlc
import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(p for p in (ROOT / 'configs').glob('*.py') if p.stem not in ('__init__', 'common'))
METHODS = [p for p in FILES if p.stem != 'pretrain_tiny']


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_loads_hashes_and_names_its_launch_line(path):
  module = importlib.import_module(f'zsad_jax.configs.{path.stem}')
  frozen = mlc.FrozenConfigDict(module.get_config())
  assert hash(frozen) == hash(mlc.FrozenConfigDict(module.get_config()))
  assert f'launch.py --config=configs/{path.stem}.py' in module.__doc__


@pytest.mark.parametrize('path', METHODS, ids=lambda p: p.stem)
def test_the_demo_changes_values_and_adds_no_keys(path):
  module = importlib.import_module(f'zsad_jax.configs.{path.stem}')
  full, demo = ({k: type(v) for k, v in _flat(module.get_config(arg)).items()} for arg in (None, 'demo'))
  assert full == demo


@pytest.mark.parametrize('path', METHODS, ids=lambda p: p.stem)
def test_every_key_is_read_somewhere(path):
  module = importlib.import_module(f'zsad_jax.configs.{path.stem}')
  code = '\n'.join(p.read_text() for p in [ROOT / 'launch.py', *(ROOT / 'zsad_jax').rglob('*.py')])
  keys = {k for k in _flat(module.get_config()) if not k.startswith('published.')}
  unread = [k for k in keys if not re.search(rf'\b{k.rsplit(".", 1)[-1]}\b', code)]
  assert not unread


def _flat(config, prefix=''):
  out = {}
  for key, value in config.items():
    out |= _flat(value, f'{prefix}{key}.') if isinstance(value, mlc.ConfigDict) else {prefix + key: value}
  return out
