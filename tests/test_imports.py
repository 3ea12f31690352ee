"""Holds the import table; a room is a folder or a top-level module of zsad_jax."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'zsad_jax'
MAY_IMPORT = {
  'spec': set(),
  'affine': {'losses', 'maps', 'spec'},
  'grouping': set(),
  'maps': set(),
  'losses': set(),
  'neighbours': set(),
  'multicrop': {'maps'},
  'windows': {'maps', 'neighbours'},
  'representatives': set(),
  'dual_path': {'maps', 'multicrop', 'spec'},
  'metrics': set(),
  'runtime': set(),
  'logs': {'runtime'},
  'progress': {'runtime'},
  'disk': {'checkpoint', 'generated', 'inputs', 'methods', 'train'},
  'models': {'maps', 'spec'},
  'encoder': {'models', 'runtime', 'spec'},
  'features': {'models', 'runtime', 'spec', 'encoder'},
  'methods': {'affine', 'dual_path', 'grouping', 'losses', 'maps', 'multicrop', 'neighbours', 'representatives',
              'spec', 'windows'},
  'data': set(),
  'report': set(),
  'checkpoint': {'runtime'},
  'train': {'runtime', 'checkpoint', 'features', 'encoder', 'logs', 'metrics', 'report', 'spec'},
  'evaluate': {'runtime', 'checkpoint', 'features', 'encoder', 'logs', 'metrics', 'progress', 'report', 'spec'},
  'generated': {'features', 'logs', 'report', 'runtime', 'train'},
  'inputs': {'data', 'encoder', 'features', 'methods', 'metrics', 'models', 'runtime'},
  'results': {'data', 'inputs', 'logs', 'metrics', 'report', 'runtime'},
  'inspection': {'features', 'inputs', 'models', 'report'},
  'budget': {'encoder', 'inputs', 'runtime'},
  'bench': {'data', 'encoder', 'evaluate', 'experiment', 'features', 'inputs', 'logs', 'methods', 'models', 'runtime',
            'train'},
  'export': {'experiment', 'generated', 'inputs', 'logs', 'methods', 'models'},
  'experiment': {'budget', 'data', 'disk', 'evaluate', 'features', 'generated', 'inputs', 'inspection', 'logs',
                 'methods', 'models', 'pretrain', 'progress', 'report', 'results', 'runtime', 'train'},
  'summary': {'logs', 'metrics', 'report', 'results'},
  'ablation': {'experiment', 'generated', 'inputs', 'logs', 'methods', 'progress', 'report', 'results'},
  'thresholds': {'metrics'},
  'scoring': {'evaluate', 'experiment', 'inputs', 'runtime', 'spec'},
  'calibration': {'experiment', 'features', 'inputs', 'runtime', 'scoring', 'thresholds'},
  'detector': {'calibration', 'checkpoint', 'data', 'encoder', 'experiment', 'features', 'generated', 'inputs',
               'methods', 'models', 'runtime', 'scoring', 'thresholds'},
  'drawing': {'calibration', 'detector', 'report', 'runtime'},
  'journal': {'runtime'},
  'predict': {'calibration', 'data', 'detector', 'drawing', 'journal', 'logs', 'report', 'runtime', 'thresholds'},
  'pretrain': {'models', 'runtime', 'checkpoint', 'logs', 'spec', 'losses', 'maps', 'metrics'},
}
FILES = sorted(p for p in PACKAGE.rglob('*.py') if p != PACKAGE / '__init__.py')


def imported(path):
  """Full dotted names of everything a file imports, `from a import b` as a.b."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}:{node.lineno}: relative import; write the full name'
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def room_of(path):
  return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_room_imports_only_what_it_may(path):
  room = room_of(path)
  assert room in MAY_IMPORT, f'{room} is not a room of the import table'
  ours = {n.split('.')[1] for n in imported(path) if n.startswith('zsad_jax.')}
  assert ours <= MAY_IMPORT[room] | {room}, f'{path.name} imports {ours - MAY_IMPORT[room] - {room}}'
  assert not {n for n in imported(path) if n.split('.')[0] in ('launch', 'configs')}


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_walls(path):
  names = imported(path)
  room = room_of(path)
  if room != 'models':
    assert not {n for n in names if n.startswith('flax')}, 'only models knows Flax'
  if room != 'checkpoint':
    assert not {n for n in names if n.startswith('orbax')}, 'only checkpoint knows orbax'
  assert not {n for n in names if n.startswith('absl.flags')}, 'flags stop at launch.py'
  assert not {n for n in names if n.split('.')[0] in ('pickle', 'tensorflow', 'torch')}
  assert path.stem not in ('utils', 'common', 'helpers', 'base')


def test_methods_do_not_import_each_other():
  names = {p.stem for p in (PACKAGE / 'methods').glob('*.py')} - {'__init__', 'prompts'}
  for path in (PACKAGE / 'methods').glob('*.py'):
    others = {n.split('.')[2] for n in imported(path) if n.startswith('zsad_jax.methods.')}
    assert not others & (names - {path.stem}), path


def test_configs_import_configs_only():
  for path in (ROOT / 'configs').rglob('*.py'):
    roots = {n.split('.')[0] for n in imported(path)}
    assert roots <= {'configs', 'ml_collections', 'pathlib'}, f'{path}: a config is data'
