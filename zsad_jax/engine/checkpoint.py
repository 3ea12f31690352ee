"""Checkpoints of what a run learns: orbax writes the arrays, a manifest beside them says what must be there.

Step 216 is the folder 216 and the file 216.manifest: a sha256, then JSON. The manifest comes last and in one
piece, so a step without one was cut short by a kill. It holds the sha256 of every file, because orbax reads
flipped bits without a word, and dtype and shape of every array, because orbax casts without a word.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
from absl import logging
from orbax.checkpoint import v1 as ocp

from zsad_jax.engine import runtime


def save(directory, step: int, state, extra: Mapping, *, keep: int | None = None):
  """Writes `state` as checkpoint `step`, replacing one of that step; returns when it is on disk.

  Args:
    directory: folder of the run's checkpoints, made where missing.
    step: number of updates done.
    state: pytree of arrays, typed PRNG keys allowed; only what is learned, never frozen weights.
    extra: what else resuming needs (epoch, sums, config), JSON-able.
    keep: how many checkpoints remain, the newest; None all.

  Raises:
    OSError: disk full, read-only, no permission; earlier checkpoints are intact.
  """
  directory = Path(directory).absolute()
  path, manifest = directory / str(step), _manifest(directory, step)
  if jax.process_index() == 0:
    directory.mkdir(parents=True, exist_ok=True)
    manifest.unlink(missing_ok=True)
    _sweep(directory)
  runtime.barrier('checkpoint: swept')
  try:
    with _quiet():
      ocp.save_checkpointables(path, {'state': state})
  except ValueError as error:
    code = re.search(r"os_error_code='(\d+)'", str(error))  # orbax's word for a full or read-only disk
    if not code:
      raise
    _sweep(directory)
    number = int(code[1])
    raise OSError(number, f'{os.strerror(number)}; earlier checkpoints are intact', str(path)) from error
  runtime.barrier('checkpoint: saved')
  if jax.process_index() == 0:
    body = {'step': step, 'extra': dict(extra), 'arrays': _arrays(state), 'files': _files(path)}
    text = json.dumps(body, allow_nan=False).encode()
    runtime.write_atomic(manifest, hashlib.sha256(text).hexdigest().encode(), b'\n', text)
    for old in steps(directory)[:-keep] if keep else ():
      _manifest(directory, old).unlink()
      shutil.rmtree(directory / str(old), ignore_errors=True)
  runtime.barrier('checkpoint: done')


def restore(directory, template, step: int | None = None):
  """Returns (state, extra, step) of the newest intact checkpoint, or of `step`; None where there is none.

  A damaged checkpoint is passed over for the one before, with a warning; nothing is ever cast or reshaped.

  Args:
    directory: folder of the run's checkpoints.
    template: state of the same structure, arrays or shapes; the restored arrays take its placement, and go to
      every device where it has none.
    step: the checkpoint to restore; by default the newest.

  Raises:
    FileNotFoundError: there is no checkpoint `step`.
    ValueError: all checkpoints, or the one asked for, are damaged; or its arrays are not those of `template`,
      with the first differing path.
  """
  directory = Path(directory).absolute()
  found = steps(directory)
  if step is not None and step not in found:
    raise FileNotFoundError(f'no checkpoint {step} in {directory}; there are {found or "none"}')
  for candidate in reversed(found) if step is None else (step,):
    try:
      body = _verified(directory, candidate)
    except ValueError as error:
      logging.warning('checkpoint %s is damaged (%s)', directory / str(candidate), error)
      continue
    _require_same(body['arrays'], _arrays(template), directory / str(candidate))
    with _quiet():
      state = ocp.load_checkpointables(directory / str(candidate), {'state': _placed(template)})['state']
    return state, body['extra'], candidate
  if found:
    raise ValueError(f'every checkpoint asked for in {directory} is damaged; delete them to start anew')
  return None


def steps(directory) -> list[int]:
  """Returns the sorted steps that were saved completely."""
  return sorted(int(path.stem) for path in Path(directory).glob('*.manifest'))


def latest(directory) -> int | None:
  """Returns the newest step that was saved completely, or None."""
  return max(steps(directory), default=None)


def _manifest(directory: Path, step: int) -> Path:
  return directory / f'{step}.manifest'


def _sweep(directory: Path):
  """Removes what kills left: steps without a manifest, orbax's and our own temporary files."""
  done = {str(step) for step in steps(directory)}
  for path in directory.iterdir():
    if path.is_dir() and path.name.split('.')[0].isdigit() and path.name not in done:
      shutil.rmtree(path)
    elif path.suffix == '.tmp':
      path.unlink()


def _verified(directory: Path, step: int) -> dict:
  """The step's manifest, once it and every file it lists are found unchanged; else ValueError says which."""
  path, manifest = directory / str(step), _manifest(directory, step)
  seal, _, text = manifest.read_bytes().partition(b'\n')
  if hashlib.sha256(text).hexdigest().encode() != seal:
    raise ValueError(f'{manifest.name} was changed')
  body, there = json.loads(text), _files(path)
  for file in sorted(body['files'].keys() | there.keys()):
    if there.get(file) != body['files'].get(file):
      raise ValueError(f'{file} is missing' if file not in there else f'{file} was changed')
  return body


def _files(path: Path) -> dict[str, str]:
  """{name: sha256} of the files under `path`."""
  return {file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
          for file in sorted(path.rglob('*')) if file.is_file()}


def _arrays(state) -> dict[str, list]:
  """{path: [dtype, shape]} of the leaves."""
  leaves = jax.tree_util.tree_leaves_with_path(state)
  return {jax.tree_util.keystr(path, simple=True, separator='/'): [str(leaf.dtype), list(leaf.shape)]
          for path, leaf in leaves}


def _require_same(saved: dict, wanted: dict, path: Path):
  for name in sorted(saved.keys() | wanted.keys()):
    if saved.get(name) != wanted.get(name):
      raise ValueError(f'checkpoint {path} does not fit: {name} is {_described(saved.get(name))} there and '
                       f'{_described(wanted.get(name))} here; it was trained with another config')


def _placed(template):
  """The template as shapes that all have a sharding; otherwise orbax takes that of the machine that saved."""
  everywhere = runtime.place().copy
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=getattr(x, 'sharding', None) or everywhere), template)


def _described(array) -> str:
  return f'{array[0]}{array[1]}' if array else 'absent'


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps orbax's progress notes out of the log; its warnings pass."""
  def passes(record):
    return record.levelno >= logging.converter.STANDARD_WARNING or 'orbax' not in record.pathname

  logger = logging.get_absl_logger()
  logger.addFilter(passes)
  try:
    yield
  finally:
    logger.removeFilter(passes)
