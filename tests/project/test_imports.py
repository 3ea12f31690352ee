"""Imports flow one way: a room of zsad_jax imports only the rooms that the table names."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / 'zsad_jax'
MAY_IMPORT = {
  'clip': (),
  'ops': (),
  'metrics': (),
  'report': (),
  'data': (),
  'methods': ('clip.feature_spec', 'ops'),
  'engine': ('clip', 'metrics'),
  'tiny_clip': ('clip', 'ops', 'metrics', 'engine'),
  'experiment': ('clip', 'ops', 'metrics', 'report', 'data', 'methods', 'engine', 'tiny_clip'),
  'predict': ('clip', 'ops', 'metrics', 'report', 'data', 'methods', 'engine', 'experiment'),
}
DOORS = ('__init__', '__main__', 'cli')  # modules at the top level: the Python API and the command line
ONLY_IN = {'flax': ('clip',), 'orbax': ('engine/checkpoint.py',), 'absl.flags': ('cli.py',),
           'torch': ('clip/weights/convert.py',)}
NOWHERE = ('pickle', 'tensorflow', 'launch', 'configs')


def files():
  return sorted(path for path in PACKAGE.rglob('*.py'))


def imported(path):
  """Dotted names of everything a file imports, `from a import b` as a.b."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}:{node.lineno}: relative import; write the full name'
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def starts(name, prefixes):
  return any(name == prefix or name.startswith(prefix + '.') for prefix in prefixes)


def test_rooms_import_what_the_table_allows():
  wrong = []
  for path in files():
    room = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
    if room in DOORS:
      continue
    assert room in MAY_IMPORT, f'{path}: {room} is not a room of the table'
    ours = {name.removeprefix('zsad_jax.') for name in imported(path) if name.startswith('zsad_jax.')}
    allowed = (room, '__version__', *MAY_IMPORT[room])
    wrong += [f'{path.relative_to(ROOT)} imports {name}' for name in ours if not starts(name, allowed)]
  assert not wrong, '\n'.join(wrong)


def test_libraries_stay_behind_their_walls():
  wrong = []
  for path in files():
    place = path.relative_to(PACKAGE).as_posix()
    for name in imported(path):
      fenced = [fence for fence in ONLY_IN if starts(name, (fence,))]
      if starts(name, NOWHERE) or any(not place.startswith(ONLY_IN[fence]) for fence in fenced):
        wrong.append(f'{path.relative_to(ROOT)} imports {name}')
  assert not wrong, '\n'.join(wrong)


def test_methods_do_not_import_each_other():
  names = {path.stem for path in (PACKAGE / 'methods').glob('*.py')} - {'__init__'}
  for path in (PACKAGE / 'methods').glob('*.py'):
    others = {name.split('.')[2] for name in imported(path) if name.startswith('zsad_jax.methods.')}
    assert not others & (names - {path.stem}), path


def test_configs_are_data():
  for path in (ROOT / 'configs').rglob('*.py'):
    for name in imported(path):
      assert starts(name, ('configs', 'zsad_jax.configs', 'ml_collections', 'pathlib')), f'{path} imports {name}'


def test_no_module_has_a_name_that_says_nothing():
  assert not [path for path in files() if path.stem in ('utils', 'common', 'helpers', 'base')
              and 'configs' not in path.parts]
