"""Files are written to a temporary file and renamed, except those that grow or serve as locks."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / 'zsad_jax'
WRITES = {'write_text', 'write_bytes', 'touch', 'savez', 'savez_compressed', 'save_file', 'imwrite', 'savefig',
          'tofile'}
ALLOWED = {
  # to a temporary file, which is then renamed
  'clip/weights/safetensors_files.py': {'write', '_write_digest'},
  'data/dataset.py': {'_load_index'},
  'data/shards.py': {'_write'},
  'data/synthetic/pretraining.py': {'_write'},
  'engine/runtime.py': {'write_atomic'},
  # locks, whose content does not matter, and files that grow by lines, of which a torn last one is dropped
  'data/preparation.py': {'_lock'},
  'engine/feature_store.py': {'locked'},
  'engine/logs.py': {'lock', 'scalars'},
  'predict/prediction_log.py': {'append'},
  'tiny_clip/pretrain.py': {'fit'},
  # to memory
  'engine/eval_cache.py': {'write'},
  'predict/calibration.py': {'_npz'},
  'predict/export.py': {'_npz'},
  'report/diagnostic_figures.py': {'_png'},
  'report/heatmap.py': {'colour_bar'},
}


def mode(call):
  """Returns the mode of a call of open(path, mode) or path.open(mode)."""
  position = 0 if isinstance(call.func, ast.Attribute) else 1
  modes = [k.value for k in call.keywords if k.arg == 'mode'] + call.args[position:position + 1]
  return modes[0].value if modes and isinstance(modes[0], ast.Constant) else 'r'


def writers(text):
  """Returns the names of the functions that write files themselves."""
  functions = set()

  def walk(node, function):
    for child in ast.iter_child_nodes(node):
      inner = child.name if isinstance(child, ast.FunctionDef) else function
      if isinstance(child, ast.Call):
        name = child.func.attr if isinstance(child.func, ast.Attribute) else getattr(child.func, 'id', '')
        if name in WRITES or (name == 'open' and set('wax+') & set(str(mode(child)))):
          functions.add(inner)
      walk(child, inner)

  walk(ast.parse(text), '')
  return functions


def test_only_these_functions_write_files_themselves():
  functions = {path.relative_to(PACKAGE).as_posix(): writers(path.read_text()) for path in PACKAGE.rglob('*.py')}
  assert {path: names for path, names in functions.items() if names} == ALLOWED


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
