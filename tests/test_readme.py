"""README and the configs' docstrings tell the truth: their code runs, their keys and files exist."""

import importlib
import re
from pathlib import Path

import pytest

from configs import anomalyclip
from zsad_jax import methods

ROOT = Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
KEYS = anomalyclip.get_config()


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  (code,) = re.findall(r'```python\n(.*?)```', README, re.S)
  exec(compile(code, 'README.md', 'exec'), {})
  out = capsys.readouterr().out
  values = dict(re.findall(r'(image AUROC|pixel AUPRO) ([\d.]+)', out))
  assert 0 <= float(values['image AUROC']) <= 1
  assert 0 <= float(values['pixel AUPRO']) <= 1


@pytest.mark.parametrize('text', [README, (ROOT / 'checkpoints' / 'README.md').read_text(), anomalyclip.__doc__],
                         ids=['README', 'checkpoints', 'anomalyclip'])
def test_every_config_key_that_is_named_exists(text):
  named = set(re.findall(r'--config\.([a-z_0-9.]+)=', text)) - {'seed'}
  assert named
  for dotted in named:
    node = KEYS
    for part in dotted.split('.'):
      assert part in node, f'--config.{dotted}'
      node = node[part]


def test_every_file_and_folder_that_is_named_exists():
  for path in re.findall(r'[`(]((?:configs|checkpoints|benchmarks|zsad_jax|\.ci)/[\w./]+)[`)]', README):
    assert (ROOT / path.rstrip('/')).exists(), path


def test_every_ablation_row_of_the_config_is_a_change_it_takes():
  rows = re.findall(r'((?:[a-z_0-9.]+=[\w.,()]+ ?)+)', anomalyclip.__doc__.split('ablations', 1)[1])
  assert len(rows) > 8
  for key, value in re.findall(r'([a-z_0-9.]+)=([\w.(),]+?)(?=[ ,;]|$)', ' '.join(rows)):
    node = KEYS
    for part in key.split('.'):
      assert part in node, f'{key}={value}'
      node = node[part]


def test_methods_in_the_table_exist():
  for name in methods.names():
    assert importlib.import_module(f'configs.{name}').get_config().method == name
    assert f'configs/{name}.py' in README
