"""Every test sees eight CPU devices, strict rank promotion and parsed absl flags."""

import jax
import pytest
from absl import flags


def pytest_configure(config):
  del config
  flags.FLAGS.mark_as_parsed()  # grain reads absl flags
  jax.config.update('jax_num_cpu_devices', 8)
  jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture
def highest_precision():
  """Full fp32 matrix products, as parity on an accelerator needs."""
  with jax.default_matmul_precision('highest'):
    yield
