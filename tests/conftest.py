"""Every test sees one CPU device (--devices=8 for those marked devices8), strict rank promotion, parsed absl flags."""

import fcntl
import os
import types
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections as mlc
import pytest
from absl import flags
from hypothesis import settings
from stand_ins import one_device

from zsad_jax.configs import anomalyclip
from zsad_jax.engine import runtime

settings.register_profile('everyday', max_examples=20, deadline=None)
settings.register_profile('ci', max_examples=100, deadline=None)
settings.load_profile('everyday')


def pytest_addoption(parser):
  parser.addoption('--exhaustive', action='store_true',
                   help='keep tests marked exhaustive when -m selects them; tests of commands then run whole tables')
  parser.addoption('--devices', type=int, default=1, help='CPU devices that every test sees')


def pytest_configure(config):
  flags.FLAGS.mark_as_parsed()  # as after absl's app.run
  jax.config.update('jax_num_cpu_devices', config.getoption('devices'))
  jax.config.update('jax_numpy_rank_promotion', 'raise')
  # Most of the time goes into compiling the same small programs in every worker and every run.
  runtime.compilation_cache(Path(__file__).parents[1] / '.pytest_cache' / 'compiled')
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.05)


def pytest_collection_modifyitems(config, items):
  if not config.getoption('exhaustive'):
    items[:] = [item for item in items if 'exhaustive' not in item.keywords]
  for item in items:
    if 'torch' in item.fixturenames or isinstance(getattr(item.module, 'torch', None), types.ModuleType):
      item.add_marker('parity')


@pytest.fixture
def torch():
  """PyTorch, which the tests that are held against it skip without."""
  return pytest.importorskip('torch')


@pytest.fixture
def highest_precision():
  """Full fp32 matrix products, as parity on an accelerator needs."""
  with jax.default_matmul_precision('highest'):
    yield


class DemoRun(NamedTuple):
  """A finished run of `anomalyclip:demo`: its config and workdir. Only read the workdir, or copy it first."""
  cfg: mlc.FrozenConfigDict
  workdir: Path

  @property
  def results(self) -> Path:
    return self.workdir / 'results' / 'anomalyclip' / 'synthetic_aux-to-synthetic_target' / 'seed111'


@pytest.fixture(scope='session')
def demo_run(tmp_path_factory):
  """The DemoRun of this session, on one device; the first worker that needs it runs it for all."""
  from zsad_jax.experiment import experiment

  base = tmp_path_factory.getbasetemp()
  folder = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) / 'demo'
  folder.mkdir(exist_ok=True)
  c = anomalyclip.get_config('demo')
  c.machine.data_dir = str(folder / 'data')
  run = DemoRun(mlc.FrozenConfigDict(c), folder / 'work')
  with (folder / 'lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (run.results / 'metrics.json').exists():
      with pytest.MonkeyPatch.context() as patch:
        one_device(patch)
        experiment.run(run.cfg, run.workdir, 'run')
  return run
