"""Configs of experiments that take seconds: a method's demo at 56 px on two drawn folders."""

import ml_collections as mlc
from drawn_folders import draw


def draw_folders(folder):
  """Draws the auxiliary data set `aux` and the target `target` below `folder`; returns it."""
  draw(folder / 'aux', {'tile': (100, 40, 40), 'bolt': (40, 100, 40)})
  draw(folder / 'target', {'wood': (90, 60, 30), 'metal_nut': (60, 60, 90)}, seed=1, train=3)
  return folder


def config(module, folder, arg='demo', **changes):
  """Returns the config of a module, by default its demo, on the folders below `folder`, with dotted keys changed."""
  c = module.get_config(arg)
  c.update_from_flattened_dict({
    'image_size': 56, 'train.epochs': 2, 'train.batch': 4, 'machine.encode_batch': 4, 'machine.eval_batch': 4,
    'report.pictures': 0, 'machine.data_dir': str(folder / 'data'), 'data.aux': f'folder:{folder / "aux"}',
    'data.target': f'folder:{folder / "target"}'} | changes)
  return mlc.FrozenConfigDict(c)
