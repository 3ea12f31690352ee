"""Small drawn folders and one finished small run, shared by the tests of a worker."""

from pathlib import Path
from typing import NamedTuple

import ml_collections as mlc
import pytest
import small_experiments
from stand_ins import one_device

from zsad_jax.configs import anomalyclip
from zsad_jax.experiment import experiment


@pytest.fixture(scope='module', autouse=True)
def on_one_device():
  """Runs on one of the tests' devices; tests/engine holds several against one."""
  with pytest.MonkeyPatch.context() as patch:
    one_device(patch)
    yield


@pytest.fixture(scope='session')
def folders(tmp_path_factory):
  """A folder with the data sets `aux` and `target`, and `data` for what is prepared from them."""
  return small_experiments.draw_folders(tmp_path_factory.mktemp('folders'))


class SmallRun(NamedTuple):
  """A finished run of AnomalyCLIP on the drawn folders. Only read its workdir, or copy it first."""
  cfg: mlc.FrozenConfigDict
  workdir: Path

  @property
  def results(self) -> Path:
    return self.workdir / 'results' / 'anomalyclip' / 'aux-to-target' / 'seed3'


@pytest.fixture(scope='session')
def small_run(folders, tmp_path_factory):
  """The SmallRun of this worker."""
  run = SmallRun(small_experiments.config(anomalyclip, folders, **{'seed': 3, 'report.pictures': 2}),
                 tmp_path_factory.mktemp('small_run'))
  with pytest.MonkeyPatch.context() as patch:
    one_device(patch)
    experiment.run(run.cfg, run.workdir, 'run')
  return run
