"""A drawn auxiliary data set, and configs of detectors that load in seconds."""

import ml_collections as mlc
import pytest
from drawn_folders import draw

from zsad_jax.configs import clip


@pytest.fixture(scope='session')
def drawn(tmp_path_factory):
  """A folder with the auxiliary data set `aux`, and `data` for what is prepared from it."""
  folder = tmp_path_factory.mktemp('drawn')
  draw(folder / 'aux', {'tile': (100, 40, 40), 'bolt': (40, 100, 40)}, images=6)
  return folder


@pytest.fixture(scope='session')
def small(drawn):
  """small(module, **changes) -> config: a method's demo at 56 px on the drawn data set, with dotted keys changed."""
  def config(module=clip, **changes):
    c = module.get_config('demo')
    c.update_from_flattened_dict({
      'image_size': 56, 'machine.encode_batch': 8, 'machine.eval_batch': 8, 'predict.batch': 8,
      'machine.data_dir': str(drawn / 'data'), 'data.aux': f'folder:{drawn / "aux"}'} | changes)
    return mlc.FrozenConfigDict(c)

  return config
