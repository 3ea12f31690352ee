"""What a run will write, known from shapes before it begins, and held to what the disks have free."""

import collections
import errno
import functools
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax

from zsad_jax import methods
from zsad_jax.engine import checkpoint, train
from zsad_jax.experiment import generated, setup

REST = 100 << 20  # numbers, tables, pictures, unfinished evaluations and the program's own files


def require(cfg, workdir, method, clip, aux, target, learnable):
  """Prints what the run will write and returns when the disks have room for it.

  Args:
    cfg: its config, checked.
    workdir: its folder.
    method, clip: what it runs.
    aux, target: the data sets whose features it stores, None for none.
    learnable: shapes of what it learns; None where it does not train, or cannot know yet what it will.

  Raises:
    ValueError: a feature store would be larger than machine.max_feature_gb.
    OSError: a disk has too little room; says how much is needed where. Nothing has been encoded or trained.
  """
  stores = {}
  for dataset, crops in ((aux, False), (target, True)):
    for store in [] if dataset is None else setup.stores(cfg, method, clip, dataset, crops):
      stores[store.path] = store.missing_bytes
  checkpoints = 0 if learnable is None else saved(cfg, workdir, method, learnable)
  print(f'disk: {sum(stores.values()) / 1e9:.3g} GB of features still to be stored, {checkpoints / 1e9:.3g} GB of '
        'checkpoints', flush=True)
  check({**stores, Path(workdir): checkpoints + REST})


def saved(cfg, workdir, method, learnable) -> int:
  """Returns the bytes of the checkpoints of all epochs that are still to come."""
  total = 0
  stages = [methods.WHOLE] if hasattr(method, 'examples') else methods.stages(method, cfg)
  if hasattr(method, 'examples'):  # shapes of one seed
    learnable = jax.tree.map(lambda x: jax.ShapeDtypeStruct((cfg.seeds, *x.shape), x.dtype), learnable)
  for stage in stages:
    recipe = setup.with_changes(cfg, stage.changes)
    seed = generated.seeds(cfg) if hasattr(method, 'examples') else cfg.seed
    state = jax.eval_shape(functools.partial(train.initial, tx=train.make_tx(recipe.optim), seed=seed),
                           stage.part(learnable))
    done = len(checkpoint.steps(Path(workdir) / stage.name / 'checkpoints'))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    total += max(0, recipe.train.epochs - done) * size
  return total


def check(needs: Mapping[Path, int]):
  """Raises OSError where a disk has less free than what {folder: bytes} is to be written to its folders."""
  disks = collections.defaultdict(list)
  for folder in needs:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    disks[there.stat().st_dev].append((folder, there))
  for folders in disks.values():
    needed, free = sum(needs[folder] for folder, _ in folders), shutil.disk_usage(folders[0][1]).free
    if needed > free:
      told = ', '.join(f'{needs[folder] / 1e9:.3g} GB in {folder}' for folder, _ in folders)
      raise OSError(errno.ENOSPC, f'this run will write {needed / 1e9:.3g} GB ({told}), but {free / 1e9:.3g} GB are '
                    'free; make room, or choose another --workdir or --config.machine.feature_dir', str(folders[0][0]))
