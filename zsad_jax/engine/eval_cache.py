"""What an evaluation has found so far, category by category, so that a run cut short goes on where it was.

A category is one file: a sha256, then a zip of plain arrays, one of which is JSON that says what they are. It comes
into being whole, by renaming; a damaged one is evaluated anew.
"""

import hashlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging

from zsad_jax.engine import runtime

FOLDER = 'evaluating'
SHOWING = ('experiment/sweep.py', 'experiment/aggregate.py', 'report')  # sources that no measured number depends on


class EvalCache:
  """The finished categories of one evaluation, in a folder named by a hash of what its numbers depend on.

  Attributes:
    folder: where they are.
  """

  def __init__(self, workdir, identity: Mapping, records: Sequence[type] = ()):
    """Opens what is there.

    Args:
      workdir: of the run; the folder lies in <workdir>/evaluating.
      identity: what decides the numbers, JSON-able: config, digests of what was learned, weights, data and program.
      records: the NamedTuple classes that values may hold.
    """
    self._identity = json.dumps(identity, sort_keys=True, indent=1)
    self.folder = Path(workdir) / FOLDER / hashlib.sha256(self._identity.encode()).hexdigest()[:16]
    self._records = {record.__name__: record for record in records}

  def read(self, category: int) -> Any:
    """Returns what `write` was given for this category on every process of the program; None where it was not."""
    path = self._file(category)
    found = self._opened(path) if path.exists() else None
    if runtime.any_process(found is None):
      return None
    return found

  def write(self, category: int, value):
    """Keeps `value` for this category: dicts, lists, arrays, numbers, texts, None and the records; process 0 writes.

    Raises:
      TypeError: something else in it.
      OSError: a full or read-only disk.
    """
    if jax.process_index():
      return
    arrays, data = [], io.BytesIO()
    about = json.dumps(_packed(value, arrays, self._records)).encode()
    np.savez(data, np.frombuffer(about, np.uint8), *arrays)
    if not self.folder.exists():
      self.folder.mkdir(parents=True)
      runtime.write_atomic(self.folder / 'identity.json', self._identity.encode())
    data = data.getvalue()
    runtime.write_atomic(self._file(category), hashlib.sha256(data).hexdigest().encode(), b'\n', data)

  def _file(self, category: int) -> Path:
    return self.folder / f'{category}.found'

  def _opened(self, path: Path):
    seal, _, data = path.read_bytes().partition(b'\n')
    if hashlib.sha256(data).hexdigest().encode() != seal:
      logging.warning('%s is damaged; its category is evaluated anew', path)
      return None
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
      about, *arrays = (file[f'arr_{i}'] for i in range(len(file.files)))
    return _unpacked(json.loads(about.tobytes()), arrays, self._records)


def sources() -> str:
  """Digest of the sources that numbers come from: results of other sources may be other results."""
  root, digest = Path(__file__).parents[1], hashlib.sha256()
  for path in sorted(root.rglob('*.py')):
    name = path.relative_to(root)
    if not name.as_posix().startswith(SHOWING):
      digest.update(f'{name.as_posix()}\0'.encode() + path.read_bytes() + b'\0')
  return digest.hexdigest()


def clear(workdir):
  """Removes what evaluations in `workdir` have kept, once their results are written."""
  if jax.process_index() == 0:
    shutil.rmtree(Path(workdir) / FOLDER, ignore_errors=True)


def _packed(value, arrays: list, records: Mapping[str, type]):
  """The value as JSON of [kind, content] pairs; its arrays are appended to `arrays`."""
  again = lambda values: [_packed(v, arrays, records) for v in values]
  if isinstance(value, np.generic):
    value = np.asarray(value)
  if isinstance(value, np.ndarray) and value.dtype.kind in 'biuf':
    arrays.append(value)
    return ['array', len(arrays) - 1]
  if value is None or type(value) in (bool, int, float, str):
    return ['plain', value]
  if type(value) is dict:
    return ['dict', [again(pair) for pair in value.items()]]
  if type(value) in (list, tuple):
    return [type(value).__name__, again(value)]
  name = type(value).__name__
  if records.get(name) is type(value):
    return [name, again(value)]
  raise TypeError(f'cannot keep a {name} of an evaluation')


def _unpacked(packed: list, arrays: Sequence[np.ndarray], records: Mapping[str, type]):
  kind, content = packed
  again = lambda values: [_unpacked(v, arrays, records) for v in values]
  if kind == 'plain':
    return content
  if kind == 'array':
    return arrays[content]
  if kind == 'dict':
    return dict(again(pair) for pair in content)
  if kind in ('list', 'tuple'):
    return {'list': list, 'tuple': tuple}[kind](again(content))
  return records[kind](*again(content))
