"""Resume cache of an evaluation: the results of finished categories, so that an interrupted evaluation can resume.

Each category is one file: a sha256, then a zip of plain arrays, the first of which is JSON that describes the others.
Files are written atomically; the category of a damaged file is evaluated again.
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
PRESENTATION = ('experiment/sweep.py', 'experiment/aggregate.py', 'report')  # sources that change no measured number


class EvalCache:
  """Results of the finished categories of one evaluation.

  Attributes:
    folder: <workdir>/evaluating/<hash of the identity>.
  """

  def __init__(self, workdir: Path | str, identity: Mapping[str, Any], records: Sequence[type] = ()):
    """Opens the cache.

    Args:
      workdir: folder of the run.
      identity: everything that the numbers depend on, JSON-able: config, digests of parameters, weights, data and
        program.
      records: NamedTuple classes that values may contain.
    """
    self._identity = json.dumps(identity, sort_keys=True, indent=1)
    self.folder = Path(workdir) / FOLDER / hashlib.sha256(self._identity.encode()).hexdigest()[:16]
    self._records = {record.__name__: record for record in records}

  def read(self, category: int) -> Any:
    """Returns the value that was written for this category; None, on all processes, if it is missing on any."""
    path = self._file(category)
    value = self._read_file(path) if path.exists() else None
    return None if runtime.any_process(value is None) else value

  def write(self, category: int, value: Any) -> None:
    """Writes `value`, of dicts, lists, arrays, numbers, strings, None and the records; only the first process writes.

    Raises:
      TypeError: `value` contains another type.
      OSError: a full or read-only disk.
    """
    if jax.process_index() > 0:
      return
    arrays: list[np.ndarray] = []
    buffer = io.BytesIO()
    description = json.dumps(_packed(value, arrays, self._records)).encode()
    np.savez(buffer, np.frombuffer(description, np.uint8), *arrays)
    if not self.folder.exists():
      self.folder.mkdir(parents=True)
      runtime.write_atomic(self.folder / 'identity.json', self._identity.encode())
    data = buffer.getvalue()
    runtime.write_atomic(self._file(category), hashlib.sha256(data).hexdigest().encode(), b'\n', data)

  def _file(self, category: int) -> Path:
    return self.folder / f'{category}.result'

  def _read_file(self, path: Path) -> Any:
    digest, _, data = path.read_bytes().partition(b'\n')
    if hashlib.sha256(data).hexdigest().encode() != digest:
      logging.warning('%s is damaged; its category is evaluated again', path)
      return None
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
      description, *arrays = (file[f'arr_{i}'] for i in range(len(file.files)))
    return _unpacked(json.loads(description.tobytes()), arrays, self._records)


def sources() -> str:
  """Returns a digest of the package's sources: another version of the program may give other numbers."""
  root, digest = Path(__file__).parents[1], hashlib.sha256()
  for path in sorted(root.rglob('*.py')):
    name = path.relative_to(root)
    if not name.as_posix().startswith(PRESENTATION):
      digest.update(f'{name.as_posix()}\0'.encode() + path.read_bytes() + b'\0')
  return digest.hexdigest()


def clear(workdir: Path | str) -> None:
  """Removes the caches of all evaluations in `workdir`; call it when their results are written."""
  if jax.process_index() == 0:
    shutil.rmtree(Path(workdir) / FOLDER, ignore_errors=True)


def _packed(value: Any, arrays: list[np.ndarray], records: Mapping[str, type]) -> list:
  """Returns the value as nested [kind, content] pairs for JSON, and appends its arrays to `arrays`."""
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
  raise TypeError(f'the evaluation cache cannot hold a {name}; pass its class in records if it is a NamedTuple')


def _unpacked(packed: list, arrays: Sequence[np.ndarray], records: Mapping[str, type]) -> Any:
  """Returns the value of `_packed`."""
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
