"""Verified checkpoints: orbax writes the arrays, and a manifest next to them lists what they must be.

Step 216 is the folder 216 and the file 216.manifest: a sha256, then JSON. The manifest is written last and atomically,
so a step without one was cut short by a kill. It holds the sha256 of every file, because orbax does not notice flipped
bits, and dtype and shape of every array, because orbax casts silently.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging
from orbax.checkpoint import v1 as ocp

from zsad_jax.engine import runtime


def save(directory: Path | str, step: int, state: Any, extra: Mapping[str, Any]) -> None:
  """Writes `state` as checkpoint `step`, replacing one of the same step; it is on disk when this returns.

  Args:
    directory: folder of the run's checkpoints; created if it is missing.
    step: number of updates done.
    state: tree of arrays, among them typed PRNG keys; never CLIP's weights.
    extra: what else is needed to resume (identity, epoch, sums), JSON-able.

  Raises:
    OSError: disk full, read-only, no permission; earlier checkpoints are intact.
  """
  directory = Path(directory).absolute()
  path, manifest = directory / str(step), _manifest(directory, step)
  if jax.process_index() == 0:
    directory.mkdir(parents=True, exist_ok=True)
    manifest.unlink(missing_ok=True)
    _remove_incomplete(directory)
  runtime.barrier('checkpoint: cleared')
  try:
    with _quiet():
      ocp.save_checkpointables(path, {'state': state})
  except ValueError as error:
    code = re.search(r"os_error_code='(\d+)'", str(error))  # how orbax reports a full or read-only disk
    if not code:
      raise
    _remove_incomplete(directory)
    number = int(code[1])
    raise OSError(number, f'{os.strerror(number)}; earlier checkpoints are intact', str(path)) from error
  runtime.barrier('checkpoint: saved')
  if jax.process_index() == 0:
    body = {'step': step, 'extra': dict(extra), 'arrays': _arrays(state), 'files': _files(path)}
    text = json.dumps(body, allow_nan=False).encode()
    runtime.write_atomic(manifest, hashlib.sha256(text).hexdigest().encode(), b'\n', text)
  runtime.barrier('checkpoint: done')


def restore(directory: Path | str, template: Any, step: int | None = None) -> tuple[Any, dict[str, Any], int] | None:
  """Returns (state, extra, step) of the newest intact checkpoint, or of `step`; None if there is no checkpoint.

  A damaged checkpoint is skipped with a warning for the one before it. Nothing is ever cast or reshaped.

  Args:
    directory: folder of the run's checkpoints.
    template: state of the same structure, arrays or shapes. Restored arrays are placed like its arrays, and on every
      device if it has only shapes.
    step: the checkpoint to restore; by default the newest.

  Raises:
    FileNotFoundError: there is no checkpoint `step`.
    ValueError: all checkpoints, or `step`, are damaged; its arrays are not those of `template`, with the first path
      that differs.
  """
  directory = Path(directory).absolute()
  available = steps(directory)
  if step is not None and step not in available:
    listed = ', '.join(map(str, available)) or 'none'
    raise FileNotFoundError(f'{directory} has no checkpoint of step {step}; steps with a checkpoint: {listed}')
  for candidate in reversed(available) if step is None else (step,):
    try:
      body = _verified(directory, candidate)
    except ValueError as error:
      logging.warning('checkpoint %s is damaged (%s)', directory / str(candidate), error)
      continue
    _require_same(body['arrays'], _arrays(template), directory / str(candidate))
    with _quiet():
      state = ocp.load_checkpointables(directory / str(candidate), {'state': _placed(template)})['state']
    return state, body['extra'], candidate
  if available:
    which = 'every checkpoint' if step is None else f'checkpoint {step}'
    raise ValueError(f'{which} in {directory} is damaged; delete the folder to train from scratch')
  return None


def steps(directory: Path | str) -> list[int]:
  """Returns the steps with a complete checkpoint, sorted."""
  return sorted(int(path.stem) for path in Path(directory).glob('*.manifest'))


def latest(directory: Path | str) -> int | None:
  """Returns the newest step with a complete checkpoint, or None."""
  return max(steps(directory), default=None)


def _manifest(directory: Path, step: int) -> Path:
  return directory / f'{step}.manifest'


def _remove_incomplete(directory: Path) -> None:
  """Removes what a kill left behind: steps without a manifest, temporary files of orbax and of this module."""
  complete = {str(step) for step in steps(directory)}
  for path in directory.iterdir():
    if path.is_dir() and path.name.split('.')[0].isdigit() and path.name not in complete:
      shutil.rmtree(path)
    elif path.suffix == '.tmp':
      path.unlink()


def _verified(directory: Path, step: int) -> dict:
  """The step's manifest; raises ValueError if it or a file that it lists is missing or was changed."""
  manifest = _manifest(directory, step)
  digest, _, text = manifest.read_bytes().partition(b'\n')
  if hashlib.sha256(text).hexdigest().encode() != digest:
    raise ValueError(f'{manifest.name} was changed')
  body, files = json.loads(text), _files(directory / str(step))
  for file in sorted(body['files'].keys() | files.keys()):
    if files.get(file) != body['files'].get(file):
      raise ValueError(f'{file} is missing' if file not in files else f'{file} was changed')
  return body


def _files(path: Path) -> dict[str, str]:
  """{name: sha256} of the files under `path`."""
  return {file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
          for file in sorted(path.rglob('*')) if file.is_file()}


def _arrays(state: Any) -> dict[str, list]:
  """{path: [dtype, shape]} of the leaves."""
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): [str(leaf.dtype), list(leaf.shape)]
          for path, leaf in leaves}


def _require_same(saved: Mapping[str, list], wanted: Mapping[str, list], path: Path) -> None:
  for name in sorted(saved.keys() | wanted.keys()):
    if saved.get(name) != wanted.get(name):
      raise ValueError(f'checkpoint {path} does not fit this run: {name} is {_description(saved.get(name))} there and '
                       f'{_description(wanted.get(name))} here; it was trained with another config')


def _placed(template: Any) -> Any:
  """The template as shapes that all have a sharding; without one, orbax takes that of the machine that saved."""
  everywhere = runtime.place().copy
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=getattr(x, 'sharding', None) or everywhere), template)


def _description(array: list | None) -> str:
  return f'{array[0]}{array[1]}' if array else 'absent'


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps orbax's progress messages out of the log; its warnings pass."""
  def passes(record):
    return record.levelno >= logging.converter.STANDARD_WARNING or 'orbax' not in record.pathname

  logger = logging.get_absl_logger()
  logger.addFilter(passes)
  try:
    yield
  finally:
    logger.removeFilter(passes)
