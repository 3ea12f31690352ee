"""Every file is written through a temporary one and renamed, but for the few that are meant to grow or to be locked."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [ROOT / 'launch.py', *sorted((ROOT / 'zsad_jax').rglob('*.py'))]
WRITES = {'write_text', 'write_bytes', 'touch', 'savez', 'savez_compressed', 'save_file', 'imwrite', 'savefig',
          'tofile'}
ALLOWED = {
  # a temporary file, then renamed
  'zsad_jax/engine/runtime.py': {'write_atomic'}, 'zsad_jax/clip/weights/safetensors_files.py': {'write', '_write_digest'},
  'zsad_jax/data/dataset.py': {'_index'}, 'zsad_jax/data/shards.py': {'_write'},
  'zsad_jax/data/synthetic/pretraining.py': {'_write'},
  # locks, which hold nothing that matters; and lines that are added, of which a torn last one is dropped
  'zsad_jax/data/preparation.py': {'_alone'}, 'zsad_jax/engine/feature_store.py': {'alone'},
  'zsad_jax/engine/logs.py': {'lock', 'scalars'}, 'zsad_jax/predict/prediction_log.py': {'append'}, 'zsad_jax/tiny_clip/pretrain.py': {'fit'},
  # into memory
  'zsad_jax/predict/calibration.py': {'_npz'}, 'zsad_jax/predict/export.py': {'_npz'}, 'zsad_jax/engine/eval_cache.py': {'write'},
  'zsad_jax/report/heatmap.py': {'colour_bar'},
  'zsad_jax/report/diagnostic_figures.py': {'_png'},
}


def mode(call):
  """The mode that a call of open has; the method of a path takes it first."""
  position = 0 if isinstance(call.func, ast.Attribute) else 1
  given = [k.value for k in call.keywords if k.arg == 'mode'] + call.args[position:position + 1]
  return given[0].value if given and isinstance(given[0], ast.Constant) else 'r'


def writers(text):
  """Names of the functions that write files themselves."""
  found = set()

  def walk(node, function):
    for child in ast.iter_child_nodes(node):
      inner = child.name if isinstance(child, ast.FunctionDef) else function
      if isinstance(child, ast.Call):
        name = child.func.attr if isinstance(child.func, ast.Attribute) else getattr(child.func, 'id', '')
        if name in WRITES or (name == 'open' and set('wax+') & set(str(mode(child)))):
          found.add(inner)
      walk(child, inner)

  walk(ast.parse(text), '')
  return found


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_these_functions_write_files_themselves(path):
  assert writers(path.read_text()) == ALLOWED.get(str(path.relative_to(ROOT)), set())


def test_the_search_finds_what_it_looks_for():
  text = '''
def a(path):
  with open(path, 'wb') as file:
    file.write(b'')
def b(path): path.open('a')
def c(path): path.write_text('')
def d(path): open(path, 'rb'), path.open(), open(path), np.load(path)
def e(path): open(path, mode='r+')
'''
  assert writers(text) == {'a', 'b', 'c', 'e'}
