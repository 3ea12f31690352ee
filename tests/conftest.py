"""Every test sees eight CPU devices, strict rank promotion and parsed absl flags."""

import types
from pathlib import Path

import jax
import pytest
from absl import flags

from zsad_jax.engine import runtime


def pytest_addoption(parser):
  parser.addoption('--exhaustive', action='store_true',
                   help='also what is marked so, in an hour or two; tests/test_typed.py then runs whole tables')


def pytest_configure(config):
  del config
  flags.FLAGS.mark_as_parsed()  # grain reads absl flags
  jax.config.update('jax_num_cpu_devices', 8)
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
