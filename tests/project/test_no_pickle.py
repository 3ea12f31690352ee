"""Nothing that can run code is read at run time: no unpickling under any of its names."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [ROOT / 'launch.py', *sorted((ROOT / 'zsad_jax').rglob('*.py')), *sorted((ROOT / 'configs').rglob('*.py'))]
MODULES = {'pickle', 'cPickle', 'cloudpickle', 'dill', 'joblib', 'marshal', 'shelve', 'torch'}
RUNNING = {'eval', 'exec'}


def imports(tree):
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name.split('.')[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield node.module.split('.')[0]


def calls(tree):
  """(text of what is called, the call)."""
  return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def offences(text):
  tree = ast.parse(text)
  found = sorted(MODULES & set(imports(tree)))
  for name, call in calls(tree):
    options = {k.arg: ast.unparse(k.value) for k in call.keywords}
    if name in ('np.load', 'numpy.load', 'np.fromfile', 'np.lib.format.read_array'):
      found += [] if options.get('allow_pickle') == 'False' else [f'{name} without allow_pickle=False']
    elif name in RUNNING or name in ('torch.load', 'yaml.load') or options.get('allow_pickle') == 'True':
      found.append(name)
  return found


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_reads_pickles_or_runs_text(path):
  assert offences(path.read_text()) == []


@pytest.mark.parametrize(('text', 'found'), [
  ('import pickle', ['pickle']), ('from joblib import load', ['joblib']), ('import torch.nn', ['torch']),
  ('np.load(path)', ['np.load without allow_pickle=False']), ('np.load(path, allow_pickle=False)', []),
  ('np.load(p, allow_pickle=True)', ['np.load without allow_pickle=False']), ('eval(text)', ['eval']),
  ('model.eval()', []), ('yaml.load(text)', ['yaml.load'])])
def test_the_search_finds_what_it_looks_for(text, found):
  assert offences(text) == found
