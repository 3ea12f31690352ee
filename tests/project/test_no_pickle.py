"""No file that can run code is read: no unpickling under any of its names. The converter reads tensors of PyTorch."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (ROOT / 'zsad_jax', ROOT / 'configs')
MODULES = {'pickle', 'cPickle', 'cloudpickle', 'dill', 'joblib', 'marshal', 'shelve', 'torch'}
READERS = {'np.load', 'numpy.load', 'np.fromfile', 'np.lib.format.read_array'}
BANNED = {'eval', 'exec', 'yaml.load'}
CONVERTER = ROOT / 'zsad_jax' / 'clip' / 'weights' / 'convert.py'  # may import torch


def offences(text):
  """The banned imports and calls of a module's text."""
  names, nodes = [], list(ast.walk(ast.parse(text)))
  for node in nodes:
    if isinstance(node, ast.Import):
      names += [alias.name.split('.')[0] for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names.append(node.module.split('.')[0])
  banned = sorted(MODULES & set(names))
  for call in (node for node in nodes if isinstance(node, ast.Call)):
    name, options = ast.unparse(call.func), {k.arg: ast.unparse(k.value) for k in call.keywords}
    if name in READERS and options.get('allow_pickle') != 'False':
      banned.append(f'{name} without allow_pickle=False')
    elif name == 'torch.load' and options.get('weights_only') != 'True':
      banned.append(f'{name} without weights_only=True')
    elif name in BANNED or (name not in READERS and options.get('allow_pickle') == 'True'):
      banned.append(name)
  return banned


@pytest.mark.slow
def test_no_file_reads_pickles_or_runs_text():
  paths = [ROOT / 'launch.py', *(path for folder in FOLDERS for path in sorted(folder.rglob('*.py')))]
  assert len(paths) > 100
  banned = {path: set(offences(path.read_text())) - ({'torch'} if path == CONVERTER else set()) for path in paths}
  assert {str(path): names for path, names in banned.items() if names} == {}


@pytest.mark.parametrize(('text', 'names'), [
  ('import pickle', ['pickle']), ('from joblib import load', ['joblib']), ('import torch.nn', ['torch']),
  ('np.load(path)', ['np.load without allow_pickle=False']), ('np.load(path, allow_pickle=False)', []),
  ('np.load(p, allow_pickle=True)', ['np.load without allow_pickle=False']), ('eval(text)', ['eval']),
  ('torch.load(path)', ['torch.load without weights_only=True']), ('torch.load(path, weights_only=True)', []),
  ('model.eval()', []), ('yaml.load(text)', ['yaml.load']), ('read(p, allow_pickle=True)', ['read'])])
def test_the_search_finds_what_it_looks_for(text, names):
  assert offences(text) == names
