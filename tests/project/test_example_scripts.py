"""The scripts in examples/: they run, write their picture, and show what the run on the same data measured."""

import importlib.util
import json

import pytest
from pages import ROOT
from PIL import Image

pytestmark = pytest.mark.slow


def example(name):
  """examples/NAME.py as a module."""
  spec = importlib.util.spec_from_file_location(f'_{name}', ROOT / 'examples' / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture(autouse=True)
def unchanged_path(monkeypatch):
  """Takes back what scripts put on the path."""
  monkeypatch.syspath_prepend(ROOT)


def test_the_minimal_example_trains_evaluates_and_draws(demo_run, tmp_path, capsys):
  result = example('anomalyclip_minimal').main(
    epochs=2, root=demo_run.cfg.machine.data_dir, picture=str(tmp_path / 'map.png'))
  assert Image.open(tmp_path / 'map.png').size == (448, 448)
  measured = json.loads((demo_run.results / 'metrics.json').read_text())
  assert [*result.rows] == [*measured['per_category']]
  assert result.summary['pixel_auroc']['value'] == pytest.approx(measured['mean']['pixel_auroc']['value'], abs=.03)
  assert 'cable' in capsys.readouterr().out


def test_the_strip_shows_every_category_of_the_target(demo_run, tmp_path, monkeypatch, capsys):
  script = example('result_strip')
  monkeypatch.setattr('sys.argv', [
    'result_strip.py', f'--workdir={demo_run.workdir}', f'--data_dir={demo_run.cfg.machine.data_dir}',
    f'--out={tmp_path / "images" / "strip.png"}'])
  script.main()
  strip = Image.open(tmp_path / 'images' / 'strip.png')
  assert strip.width == script.MARGIN + 6 * (script.CELL + script.GAP)
  assert f'{strip.width}x{strip.height}' in capsys.readouterr().out
