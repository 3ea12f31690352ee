"""What a run leaves in its workdir: numbers as JSON lines and for TensorBoard, whole files, a lock."""

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

import jax
import numpy as np

from zsad_jax.engine import runtime


def write_atomic(path, data: bytes | str):
  """Writes `data` (text as UTF-8) to `path`, making its folder; a kill leaves the old content or the new.

  Of several processes only the first writes.

  Raises:
    OSError: disk full, read-only, no permission; the old content is intact.
  """
  if jax.process_index() > 0:
    return
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  runtime.write_atomic(path, data.encode() if isinstance(data, str) else data)


def write_json(path, obj):
  """Writes `obj` to `path` as `write_atomic` does; raises ValueError for NaN and infinity (give None)."""
  try:
    text = json.dumps(obj, indent=2, allow_nan=False, ensure_ascii=False)
  except ValueError as error:
    raise ValueError(f'{path}: {error}; an undefined number is written as null, with a reason') from error
  write_atomic(path, text + '\n')


def probe(workdir, free_bytes: int = 100 << 20):
  """Finds out at the start whether `workdir` can take a run's files; makes it where it is missing.

  Of several processes the first does so.

  Raises:
    OSError: read-only, no permission, not a folder, or less than `free_bytes` free; it says which.
  """
  if jax.process_index() > 0:
    return
  workdir = Path(workdir)
  try:
    write_atomic(workdir / '.probe', b'probe')
    (workdir / '.probe').unlink()
  except OSError as error:
    raise OSError(error.errno, f'cannot write to the workdir ({os.strerror(error.errno)}); choose another '
                  '--workdir', str(workdir)) from error
  free = shutil.disk_usage(workdir).free
  if free < free_bytes:
    raise OSError(errno.ENOSPC, f'{free / 1e6:.0f} MB are free in the workdir, {free_bytes / 1e6:.0f} MB are '
                  'needed; make room or choose another --workdir', str(workdir))


@contextlib.contextmanager
def lock(workdir) -> Iterator[None]:
  """Holds `workdir` for this run until the end of the with block, or of the process however it ends.

  Of several processes the first does so.

  Raises:
    RuntimeError: another run holds it.
  """
  if jax.process_index() > 0:
    yield
    return
  with open(Path(workdir) / 'lock', 'a+', encoding='utf-8') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      raise RuntimeError(f'{workdir} is in use by another run ({file.read().strip()}); wait for it or choose '
                         'another --workdir') from None
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
    file.flush()
    yield


def summary(values: Mapping) -> str:
  """Returns numbers as one line: 'loss 0.1234  images_per_s 12.3', None as 'n/a'."""
  return '  '.join(f'{name} {"n/a" if value is None else format(float(value), ".4g")}'
                   for name, value in values.items())


def writer(workdir) -> contextlib.AbstractContextManager:
  """Returns a Writer to enter; of several processes the first has one, the others have None."""
  return Writer(workdir) if jax.process_index() == 0 else contextlib.nullcontext()


class Writer:
  """Numbers of a run in <workdir>/metrics.jsonl, one line a call; numbers, text and images in TensorBoard.

  A run that resumes says with `rewind` where it starts, so that no step stands in the file twice.
  """

  def __init__(self, workdir):
    self._workdir = Path(workdir)
    self._path = self._workdir / 'metrics.jsonl'
    self._board, self._purge = None, None
    self._workdir.mkdir(parents=True, exist_ok=True)
    self._written: set[tuple[int, str]] = set()
    self._rewrite(lambda line: line)

  def _rewrite(self, change: Callable[[dict], dict | None]):
    """Passes every line through `change` (None drops it), and drops a last line that a kill cut short."""
    before = self._path.read_bytes() if self._path.exists() else b''
    lines = [json.loads(line) for line in before.split(b'\n')[:-1]]
    lines = [line for line in map(change, lines) if line and line.keys() > {'step'}]
    after = ''.join(json.dumps(line) + '\n' for line in lines).encode()
    if after != before:
      write_atomic(self._path, after)
    self._written = {(line['step'], name) for line in lines for name in line}

  @property
  def board(self):
    """The TensorBoard writer, made at first use."""
    if self._board is None:
      import tensorboardX  # it imports PyTorch where that is installed; a run without numbers need not wait

      # The suffix: event files are named by the second, and a second one of that name would replace the first.
      self._board = tensorboardX.SummaryWriter(str(self._workdir / 'tensorboard'), purge_step=self._purge,
                                               filename_suffix=f'.{time.time_ns()}')
    return self._board

  def rewind(self, step: int):
    """Forgets what was written for steps after `step`."""
    self._rewrite(lambda line: line if line['step'] <= step else None)
    self._purge = step + 1

  def scalars(self, step: int, values: Mapping):
    """Writes {name: number or None} for `step`; a name written before at this step gets the new value.

    Raises:
      ValueError: NaN or infinity, with the name.
    """
    values = {name: value if value is None or isinstance(value, int) else float(value)
              for name, value in values.items()}
    for name, value in values.items():
      if value is not None and not math.isfinite(value):
        raise ValueError(f'{name} is {value} at step {step}; an undefined number is written as None')
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

  def text(self, step: int, name: str, text: str):
    """Writes Markdown text to TensorBoard."""
    self.board.add_text(name, text, step)

  def images(self, step: int, name: str, images: np.ndarray):
    """Writes images [B, H, W, 3] uint8 to TensorBoard."""
    self.board.add_images(name, images, step, dataformats='NHWC')

  def close(self):
    """Closes the TensorBoard file; metrics.jsonl is complete after every call."""
    if self._board is not None:
      self._board.close()

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, *_):
    self.close()
