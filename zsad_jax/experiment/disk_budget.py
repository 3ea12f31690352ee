"""Predicted disk space of a run, from shapes before it begins, held to what the disks have free."""

import collections
import errno
import functools
import shutil
from collections.abc import Mapping
from pathlib import Path

import jax

from zsad_jax import data
from zsad_jax.engine import checkpoint, optimizers, train
from zsad_jax.experiment.run import Run

REST = 100 << 20  # numbers, tables, pictures, unfinished evaluations and the program's own files


def require(run: Run, workdir: Path, aux: data.Dataset | None, target: data.Dataset | None, *, trains: bool) -> None:
  """Prints what the run will write; returns if the disks have room for it.

  Args:
    run: before anything is encoded.
    workdir: folder of its checkpoints.
    aux, target: data sets whose features it stores; None for none.
    trains: whether it writes checkpoints.

  Raises:
    ValueError: a feature store would exceed machine.max_feature_gb.
    OSError: a disk has too little room; says how much is needed where. Nothing has been encoded or trained.
  """
  stores = {}
  for dataset, crops in ((aux, False), (target, True)):
    for store in [] if dataset is None else run.stores(dataset, crops=crops):
      stores[store.path] = store.missing_bytes
  checkpoints = checkpoint_bytes(run, workdir) if trains else 0
  print(f'disk: {sum(stores.values()) / 1e9:.3g} GB of features to store, {checkpoints / 1e9:.3g} GB of checkpoints',
        flush=True)
  check({**stores, Path(workdir): checkpoints + REST})


def checkpoint_bytes(run: Run, workdir: Path) -> int:
  """Returns the bytes of the checkpoints of all epochs that are still to come."""
  shapes = run.params_shape
  if run.trains_on_texts:
    return _bytes(shapes)
  total = 0
  for stage in run.method.stages(run.cfg):
    cfg = run.with_overrides(stage.overrides).cfg
    make = functools.partial(train.initial, tx=optimizers.make_tx(cfg.optim), seed=cfg.seed)
    done = len(checkpoint.steps(train.checkpoint_folder(Path(workdir) / stage.name)))
    total += max(0, cfg.train.epochs - done) * _bytes(jax.eval_shape(make, stage.part(shapes)))
  return total


def check(needs: Mapping[Path, int]) -> None:
  """Raises OSError if a disk has less free than the bytes {folder: bytes} to be written to its folders."""
  disks = collections.defaultdict(list)
  for folder in needs:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    disks[existing.stat().st_dev].append((folder, existing))
  for folders in disks.values():
    needed, free = sum(needs[folder] for folder, _ in folders), shutil.disk_usage(folders[0][1]).free
    if needed > free:
      listed = ', '.join(f'{needs[folder] / 1e9:.3g} GB in {folder}' for folder, _ in folders)
      raise OSError(errno.ENOSPC, f'this run will write {needed / 1e9:.3g} GB ({listed}), but only {free / 1e9:.3g} GB '
                    'are free; free some space, or choose another --workdir or --config.machine.feature_dir',
                    str(folders[0][0]))


def _bytes(tree) -> int:
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
