"""The installed package: what the wheel holds, and that it works outside the checkout, as a wheel and editable."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

import zsad_jax

ROOT = Path(__file__).parents[2]
SOURCES = ('pyproject.toml', 'README.md', 'LICENSE', 'requirements.txt', 'requirements-test.txt',
           'requirements-cuda.txt', 'requirements-parity.txt', 'zsad_jax', 'configs', 'checkpoints')
PIP = ('--quiet', '--no-deps', '--no-build-isolation', '--no-index', '--disable-pip-version-check')


class Installation(NamedTuple):
  """An installation of the package, whose dependencies are those of the running Python.

  Attributes:
    python: interpreter that finds it.
    command: its console script.
    env: environment variables of both.
    home: folder of the package.
  """
  python: Path
  command: Path
  env: dict
  home: Path


def run(*words, **options):
  process = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, **options)
  assert process.returncode == 0, f'{words}\n{process.stdout}\n{process.stderr}'
  return process.stdout


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
  """A copy of the checkout, so that no stale build is packed, with weights that a user put into it."""
  folder = tmp_path_factory.mktemp('sources')
  for name in SOURCES:
    if (ROOT / name).is_dir():
      shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__'))
    else:
      shutil.copy(ROOT / name, folder / name)
  mine = folder / 'checkpoints' / 'mine'
  mine.mkdir()
  for name in ('model.safetensors', 'config.json', 'README.md', 'vocabulary.txt.gz'):
    (mine / name).write_text('')
    (folder / 'checkpoints' / f'my-{name}').write_text('')
  return folder


@pytest.fixture(scope='module')
def wheel(sources, tmp_path_factory):
  folder = tmp_path_factory.mktemp('wheel')
  run(sys.executable, '-m', 'pip', 'wheel', *PIP, f'--wheel-dir={folder}', sources)
  return next(folder.glob('*.whl'))


@pytest.fixture(scope='module')
def from_wheel(wheel, tmp_path_factory):
  target = tmp_path_factory.mktemp('target')
  run(sys.executable, '-m', 'pip', 'install', *PIP, f'--target={target}', wheel)
  return Installation(Path(sys.executable), target / 'bin' / 'zsad', {**os.environ, 'PYTHONPATH': str(target)},
                   target / 'zsad_jax')


@pytest.fixture(scope='module')
def editable(sources, tmp_path_factory):
  folder = tmp_path_factory.mktemp('editable')
  venv.create(folder, symlinks=True)
  site = next(folder.glob('lib/python*/site-packages'))
  (site / 'running.pth').write_text(sysconfig.get_path('purelib'))
  python = folder / 'bin' / 'python'
  run(sys.executable, '-m', 'pip', f'--python={python}', 'install', *PIP, '-e', sources)
  return Installation(python, folder / 'bin' / 'zsad', dict(os.environ), sources / 'zsad_jax')


@pytest.fixture(params=['from_wheel', 'editable'])
def installation(request):
  return request.getfixturevalue(request.param)


@pytest.mark.slow
def test_the_wheel_holds_the_whole_package_and_no_weights_of_the_user(wheel):
  content = {'zsad_jax/checkpoints/README.md'}
  for folder in (ROOT / 'zsad_jax', ROOT / 'configs', ROOT / 'checkpoints' / 'tiny'):
    inside = '' if folder.name == 'zsad_jax' else 'zsad_jax/'
    content |= {inside + path.relative_to(ROOT).as_posix() for path in folder.rglob('*')
               if path.is_file() and '__pycache__' not in path.parts}
  with zipfile.ZipFile(wheel) as file:
    holds = {name for name in file.namelist() if '.dist-info/' not in name}
  assert holds == content


@pytest.mark.slow
def test_it_runs_from_another_folder(installation, tmp_path):
  program = lambda *words: run(installation.python, *words, env=installation.env, cwd=tmp_path)
  python = lambda code: program('-c', code)
  zsad = lambda *words: program(installation.command, *words)
  assert Path(python('import zsad_jax; print(zsad_jax.__path__[0])').strip()) == installation.home
  assert zsad('--version') == program('-m', 'zsad_jax', '--version') == f'{zsad_jax.__version__}\n'
  assert 'MVTec AD' in zsad('--mode=datasets', 'list')
  assert 'unknown config' not in zsad('--config=tables/clip_ad_4_rvs:demo', '--mode=datasets', 'list')
  score = python('''
import numpy as np, zsad_jax
detector = zsad_jax.load('clip:demo', changes={'predict.threshold': '0.5', 'predict.pixel_threshold': '0.5'})
print(*(round(one.score, 3) for one in detector.predict([np.zeros((64, 64, 3), np.uint8)])))
''')
  assert 0 <= float(score) <= 1


def test_importing_the_package_imports_no_library():
  code = 'import sys, zsad_jax; print(sorted({"jax", "flax", "tensorflow_datasets", "absl"} & set(sys.modules)))'
  assert run(sys.executable, '-c', code, cwd=ROOT) == '[]\n'


def test_the_python_api_is_listed_and_typed():
  assert set(zsad_jax.__all__) == {'Detector', 'Prediction', '__version__', 'load'} <= set(dir(zsad_jax))
  assert (ROOT / 'zsad_jax' / 'py.typed').is_file()
  with pytest.raises(AttributeError, match='laod'):
    zsad_jax.laod  # noqa: B018
