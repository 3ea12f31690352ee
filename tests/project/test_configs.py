"""Configs: found by name or path, hashable, labelled, and without a key that nothing reads."""

import importlib
import re
from pathlib import Path

import ml_collections as mlc
import pytest

from zsad_jax.experiment import config_files

ROOT = Path(__file__).parents[2]
FILES = sorted(p for p in (ROOT / 'configs').glob('*.py') if p.stem not in ('__init__', 'common'))
METHODS = [p for p in FILES if p.stem != 'pretrain_tiny']


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_loads_hashes_and_names_its_launch_line(path):
  module = importlib.import_module(f'zsad_jax.configs.{path.stem}')
  assert hash(config_files.load(path.stem)) == hash(mlc.FrozenConfigDict(module.get_config()))
  assert f'launch.py --config=configs/{path.stem}.py' in module.__doc__


@pytest.mark.parametrize('path', METHODS, ids=lambda p: p.stem)
def test_the_demo_changes_values_and_adds_no_keys(path):
  module = importlib.import_module(f'zsad_jax.configs.{path.stem}')
  full, demo = ({k: type(v) for k, v in _flat(module.get_config(arg)).items()} for arg in (None, 'demo'))
  assert full == demo


@pytest.mark.slow
@pytest.mark.parametrize('path', METHODS, ids=lambda p: p.stem)
def test_every_key_is_read_somewhere(path):
  module = importlib.import_module(f'zsad_jax.configs.{path.stem}')
  code = '\n'.join(p.read_text() for p in (ROOT / 'zsad_jax').rglob('*.py'))
  keys = {k for k in _flat(module.get_config()) if not k.startswith('published.')}
  unread = [k for k in keys if not re.search(rf'\b{k.rsplit(".", 1)[-1]}\b', code)]
  assert not unread


def test_every_system_has_a_label_of_its_own():
  labels = [config_files.load(path.stem).label for path in METHODS]
  labels += [config_files.load(name).label for name in ('clip:ac', 'winclip:plus')]
  assert len(set(labels)) == len(labels)
  assert not {path.stem for path in METHODS} & set(labels), 'a label is the name of the papers, not of the module'


def test_names_are_those_of_the_files():
  tables = sorted(p.stem for p in (ROOT / 'configs' / 'tables').glob('*.py') if p.stem != '__init__')
  assert config_files.names() == (*(path.stem for path in FILES), *(f'tables/{stem}' for stem in tables))


@pytest.mark.parametrize('reference', ['clip', 'clip:demo', 'tables/clip_ad_4_rvs:demo'])
def test_a_config_is_the_same_by_name_and_by_path_in_every_folder(reference, tmp_path, monkeypatch):
  name, colon, variant = reference.partition(':')
  by_name = config_files.load(reference)
  assert config_files.load(f'{ROOT}/configs/{name}.py{colon}{variant}') == by_name
  monkeypatch.chdir(tmp_path)
  assert config_files.load(f'configs/{name}.py{colon}{variant}') == by_name  # as pages of the documentation type it


def test_a_file_of_the_current_folder_wins_over_a_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'clip.py').write_text('import ml_collections as mlc\n'
                                    'def get_config(variant=None): return mlc.ConfigDict({"method": variant})\n')
  assert config_files.load('clip.py:mine').method == 'mine'
  assert config_files.load(Path('clip.py')).method is None
  assert config_files.load('clip').method == 'clip'


def test_a_config_itself_is_frozen():
  assert config_files.load({'method': 'clip'}) == mlc.FrozenConfigDict({'method': 'clip'})


@pytest.mark.parametrize(('reference', 'kind', 'message'), [
  ('wincilp', ValueError, "'wincilp'; did you mean winclip"),
  ('configs/wincilp.py', FileNotFoundError, 'configs/wincilp.py does not exist; did you mean winclip'),
  ('nothing/like/it.py', FileNotFoundError, 'nothing/like/it.py does not exist; choose one of anomalyclip, .*clip'),
  ('winclip:plsu', ValueError, ':plsu; .* :plus, :plus2'),
  ('common', ValueError, 'unknown config'),
  (str(Path(__file__)), ValueError, 'no function get_config')])
def test_unknown_configs_get_the_nearest_name(reference, kind, message):
  with pytest.raises(kind, match=message):
    config_files.load(reference)


def _flat(config, prefix=''):
  out = {}
  for key, value in config.items():
    out |= _flat(value, f'{prefix}{key}.') if isinstance(value, mlc.ConfigDict) else {prefix + key: value}
  return out
