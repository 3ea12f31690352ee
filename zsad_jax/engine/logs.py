"""The workdir: metrics as JSON lines and for TensorBoard, atomic writes, a lock."""

import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from zsad_jax.engine import runtime


def write_atomic(path: Path | str, data: bytes | str) -> None:
  """Writes `data` (text as UTF-8) to `path` and creates its folder; a kill leaves the old content or the new.

  Only the first of several processes writes.

  Raises:
    OSError: disk full, read-only, no permission; the old content is intact.
  """
  if jax.process_index() > 0:
    return
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  runtime.write_atomic(path, data.encode() if isinstance(data, str) else data)


def write_json(path: Path | str, obj: Any) -> None:
  """Writes `obj` to `path` as `write_atomic` does; raises ValueError for NaN and infinity: pass None instead."""
  try:
    text = json.dumps(obj, indent=2, allow_nan=False, ensure_ascii=False)
  except ValueError as error:
    raise ValueError(f'{path}: {error}; write null and a reason for an undefined number') from error
  write_atomic(path, text + '\n')


def probe(workdir: Path | str, free_bytes: int = 100 << 20) -> None:
  """Checks before a run that its files can be written to `workdir`, which is created if it is missing.

  Only the first of several processes checks.

  Raises:
    OSError: read-only, no permission, not a folder, or less than `free_bytes` free; says which.
  """
  if jax.process_index() > 0:
    return
  workdir = Path(workdir)
  try:
    write_atomic(workdir / '.probe', b'probe')
    (workdir / '.probe').unlink()
  except OSError as error:
    raise OSError(error.errno, f'cannot write to the workdir ({error.strerror}); choose another --workdir',
                  str(workdir)) from error
  free = shutil.disk_usage(workdir).free
  if free < free_bytes:
    raise OSError(errno.ENOSPC, f'{free / 1e6:,.0f} MB are free in the workdir, but {free_bytes / 1e6:,.0f} MB are '
                  'needed; free some space or choose another --workdir', str(workdir))


@contextlib.contextmanager
def lock(workdir: Path | str) -> Iterator[None]:
  """Locks `workdir` for this run until the with block ends, or the process, in whatever way.

  Only the first of several processes locks it.

  Raises:
    RuntimeError: another run has locked it.
  """
  if jax.process_index() > 0:
    yield
    return
  with open(Path(workdir) / 'lock', 'a+', encoding='utf-8') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      raise RuntimeError(f'{workdir} is in use by another run ({file.read().strip()}); wait until it ends or choose '
                         'another --workdir') from None
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
    file.flush()
    yield


def summary(values: Mapping) -> str:
  """Returns numbers as one line, such as 'loss 0.1234  images_per_s 12.3'; None becomes 'n/a'."""
  return '  '.join(f'{name} {"n/a" if value is None else format(float(value), ".4g")}'
                   for name, value in values.items())


def writer(workdir: Path | str) -> 'contextlib.AbstractContextManager[Writer | None]':
  """Returns a context manager that gives a Writer, or None in all of several processes but the first."""
  return Writer(workdir) if jax.process_index() == 0 else contextlib.nullcontext()


class Writer:
  """Writes a run's metrics to <workdir>/metrics.jsonl, one line per call, and for TensorBoard.

  A resumed run calls `rewind` first, so that no step is written twice.
  """

  def __init__(self, workdir: Path | str):
    self._workdir = Path(workdir)
    self._path = self._workdir / 'metrics.jsonl'
    self._board: Any = None
    self._purge: int | None = None  # TensorBoard hides what earlier files hold from this step on
    self._workdir.mkdir(parents=True, exist_ok=True)
    self._written: set[tuple[int, str]] = set()
    self._rewrite(lambda line: line)

  def _rewrite(self, change: Callable[[dict], dict | None]) -> None:
    """Applies `change` to every line, None drops it; also drops a last line that a kill cut short."""
    before = self._path.read_bytes() if self._path.exists() else b''
    lines = [json.loads(line) for line in before.split(b'\n')[:-1]]
    lines = [line for line in map(change, lines) if line and line.keys() > {'step'}]
    after = ''.join(json.dumps(line) + '\n' for line in lines).encode()
    if after != before:
      write_atomic(self._path, after)
    self._written = {(line['step'], name) for line in lines for name in line}

  @property
  def board(self) -> Any:
    """The TensorBoard writer, opened at first use."""
    if self._board is None:
      import tensorboardX  # imports PyTorch if that is installed, which a run without metrics should not wait for

      # The suffix: event files are named by the second, and another one of the same name would replace the first.
      self._board = tensorboardX.SummaryWriter(str(self._workdir / 'tensorboard'), purge_step=self._purge,
                                               filename_suffix=f'.{time.time_ns()}')
    return self._board

  def rewind(self, step: int) -> None:
    """Deletes everything written for steps after `step`."""
    self._rewrite(lambda line: line if line['step'] <= step else None)
    self._purge = step + 1

  def scalars(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes {name: number or None} for `step`; replaces a value written before under the same name and step.

    Raises:
      ValueError: a value is NaN or infinite; names it.
    """
    values = {name: value if value is None or isinstance(value, int) else float(value)
              for name, value in values.items()}
    for name, value in values.items():
      if value is not None and not math.isfinite(value):
        raise ValueError(f'{name} is {value} at step {step}; pass None for an undefined number')
    names = {(step, name) for name in values}
    if names & self._written:
      self._rewrite(lambda line: line if line['step'] != step else
                    {name: value for name, value in line.items() if name not in values})
    self._written |= names
    with open(self._path, 'a', encoding='utf-8') as file:
      file.write(json.dumps({'step': step, **values}) + '\n')
    for name, value in values.items():
      if value is not None:
        self.board.add_scalar(name, value, step)
    self.board.flush()

  def close(self) -> None:
    """Closes the TensorBoard file; metrics.jsonl is complete after every call of `scalars`."""
    if self._board is not None:
      self._board.close()

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()
