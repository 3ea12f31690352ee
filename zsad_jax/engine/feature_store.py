"""Feature store: rows of arrays on disk, written once, verified, and read in any order.

A Store is a folder named by a hash of everything that its content depends on. It holds meta.json, which spells that
out, and shards of a fixed number of images. A shard is one file: the rows of each field, a JSON trailer (store, shard
number, image ids, sha256 of the rows) and a tail that locates and checks the trailer. Shards are written atomically,
so an interrupted run keeps those that it finished.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from absl import logging
from tqdm import tqdm

from zsad_jax.engine import runtime

TAIL = struct.Struct('<4sII')  # magic, bytes of the JSON trailer, crc32 of the trailer
MAGIC = b'zsf2'
# Limits of a shard. A kill loses a shard or two: few images bound the time lost, few bytes the memory.
SHARD_BYTES, SHARD_ROWS = 64 << 20, 64


class Field(NamedTuple):
  """Shape and dtype of one image's row in an array; bfloat16 is written from and read as float32."""
  shape: tuple[int, ...]
  dtype: str

  @property
  def disk_dtype(self) -> np.dtype:
    """The dtype on disk."""
    return np.dtype(np.uint16 if self.dtype == 'bfloat16' else self.dtype)

  @property
  def memory_dtype(self) -> np.dtype:
    """The dtype that `write` takes and `read` returns."""
    return np.dtype(np.float32 if self.dtype == 'bfloat16' else self.dtype)

  @property
  def row_bytes(self) -> int:
    """Bytes per image on disk."""
    return math.prod(self.shape) * self.disk_dtype.itemsize


class Store:
  """Rows of several fields for images 0 .. count - 1, on disk.

  Attributes:
    path: the folder.
    count: number of images.
    fields: {name: Field}.
    predicted_bytes: size of the complete store, without its JSON.
    shard_rows: images per shard.
    ids: ids of the images, None for those that are not stored yet.
  """

  @classmethod
  def open(cls, root: Path | str, *, key: Mapping[str, Any], count: int, fields: Mapping[str, tuple], max_gb: float,
           shard_rows: int | None = None) -> 'Store':
    """Returns the store for `key` in the folder `root`, with the shards that exist already.

    Args:
      root: folder of all stores.
      key: what the rows depend on, JSON-able: sha256 of the weights, FeatureSpec, data fingerprint, preprocessing.
      count: number of images.
      fields: {name: (shape of one image's row, dtype)}.
      max_gb: the largest store that may be written, in 1e9 bytes.
      shard_rows: images per shard; by default as many as fit into 64 MiB, at most 64.

    Raises:
      ValueError: the complete store would be larger than max_gb; the folder holds another store; `key` is not
        JSON-able. Nothing is written.
      OSError: too little free space, no permission, a read-only or full disk.
    """
    records = {name: Field(tuple(fields[name][0]), str(fields[name][1])) for name in sorted(fields)}
    row_bytes = sum(field.row_bytes for field in records.values())
    shard_rows = shard_rows or max(1, min(SHARD_ROWS, SHARD_BYTES // row_bytes))
    content = {'format': MAGIC.decode(), 'key': key, 'count': count, 'fields': records, 'shard_rows': shard_rows}
    try:
      meta = json.dumps(content, sort_keys=True, indent=1, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
      raise ValueError(f'the key of a feature store must be JSON-able: {error}') from error
    store = cls(Path(root).expanduser(), hashlib.sha256(meta).hexdigest(), count, records, shard_rows)
    store._prepare(meta, max_gb)
    return store

  def __init__(self, root: Path, digest: str, count: int, fields: dict[str, Field], shard_rows: int):
    self.path, self._digest = root / digest[:16], digest
    self.count, self.fields, self.shard_rows = count, fields, shard_rows
    self._row_bytes = sum(field.row_bytes for field in fields.values())
    self._shards = -(-count // shard_rows)
    self.predicted_bytes = count * self._row_bytes
    self.ids: list[str | None] = [None] * count
    self._digests: dict[int, str] = {}  # sha256 of the rows of each stored shard
    self._verified: set[int] = set()  # shards whose content this process has verified
    self._damaged: dict[int, tuple | None] = {}  # identities of damaged files by shard, see _file_identity
    self._pending: dict[int, tuple] = {}  # shards of which `write` has some rows

  def _prepare(self, meta: bytes, max_gb: float) -> None:
    gb = self.predicted_bytes / 1e9
    meta_path = self.path / 'meta.json'
    if meta_path.exists() and meta_path.read_bytes() != meta:
      raise ValueError(f'{meta_path} describes another feature store or was edited; delete its folder to encode the '
                       'images again')
    self.refresh()
    if self.complete:
      return
    if gb > max_gb:
      raise ValueError(f'features of {self.count:,} images need {gb:.4g} GB, but machine.max_feature_gb={max_gb:g}; '
                       f'raise it with --config.machine.max_feature_gb={math.ceil(gb)}, or halve the size with '
                       '--config.feature_dtype=bfloat16')
    self._require_space()
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      if jax.process_index() == 0 and not meta_path.exists():
        runtime.write_atomic(meta_path, meta)
    except OSError as error:
      raise OSError(error.errno, f'{error.strerror}; set --config.machine.feature_dir to a writable folder',
                    str(self.path)) from error

  def _require_space(self) -> None:
    existing = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
    needed, free = self.missing_bytes, shutil.disk_usage(existing).free
    if needed > free:
      raise OSError(errno.ENOSPC, f'the feature store needs {needed / 1e9:.4g} GB more, but {free / 1e9:.4g} GB are '
                    'free; set --config.machine.feature_dir to a folder on a larger disk', str(self.path))

  @property
  def complete(self) -> bool:
    """Whether every image is stored."""
    return len(self._digests) == self._shards

  def missing(self) -> np.ndarray:
    """Returns the sorted indices of images that are not stored; shards are stored or missing as a whole."""
    stored = np.zeros(self._shards, bool)
    stored[list(self._digests)] = True
    return np.flatnonzero(~np.repeat(stored, self.shard_rows)[:self.count])

  @property
  def missing_bytes(self) -> int:
    """Bytes of the images that are not stored."""
    return len(self.missing()) * self._row_bytes

  def _file(self, shard: int) -> Path:
    return self.path / f'{shard:05d}.shard'

  def _file_identity(self, shard: int) -> tuple | None:
    """Distinguishes a shard's file from one that replaces it; None if there is no file."""
    try:
      status = self._file(shard).stat()
    except (FileNotFoundError, NotADirectoryError):
      return None
    return status.st_ino, status.st_mtime_ns

  def _span(self, shard: int) -> slice:
    """Indices of the shard's images."""
    return slice(shard * self.shard_rows, min(self.count, (shard + 1) * self.shard_rows))

  def _rows(self, shard: int) -> int:
    return self._span(shard).stop - self._span(shard).start

  def refresh(self) -> None:
    """Looks for new shards; logs a warning for damaged ones, which count as missing."""
    for shard in range(self._shards):
      if shard not in self._digests and self._file_identity(shard) not in (None, self._damaged.get(shard)):
        try:
          self._digests[shard], self.ids[self._span(shard)] = self._trailer(shard)
        except ValueError as error:
          self._drop(shard, error)

  def _trailer(self, shard: int) -> tuple[str, list[str]]:
    """(digest, image ids) of a shard; raises ValueError if its size, trailer or place in this store is wrong."""
    payload = self._rows(shard) * self._row_bytes
    with open(self._file(shard), 'rb') as file:
      size = file.seek(0, os.SEEK_END)
      file.seek(max(0, size - TAIL.size))
      tail = file.read()
      if len(tail) < TAIL.size or not tail.startswith(MAGIC):
        raise ValueError('truncated')
      _, length, crc = TAIL.unpack(tail)
      if size != payload + length + TAIL.size:
        raise ValueError('wrong size')
      file.seek(payload)
      text = file.read(length)
    if zlib.crc32(text) != crc:
      raise ValueError('its trailer has another checksum')
    trailer = json.loads(text)
    if (trailer['store'], trailer['shard']) != (self._digest, shard):
      raise ValueError('it belongs to another place or store')
    return trailer['sha256'], trailer['ids']

  def _drop(self, shard: int, reason: Any) -> None:
    logging.warning('%s is damaged (%s); its %d images will be encoded again', self._file(shard), reason,
                    self._rows(shard))
    self._digests.pop(shard, None)
    self._damaged[shard] = self._file_identity(shard)
    self.ids[self._span(shard)] = [None] * self._rows(shard)

  def _verify_shard(self, shard: int) -> bool:
    """Whether the shard's content has its digest; a process reads every shard once."""
    if shard not in self._verified:
      left, digest = self._rows(shard) * self._row_bytes, hashlib.sha256()
      with open(self._file(shard), 'rb', buffering=0) as file:
        while left and (block := file.read(min(left, 1 << 20))):
          left -= len(block)
          digest.update(block)
      if left or digest.hexdigest() != self._digests[shard]:
        self._drop(shard, 'its content has another sha256')
        return False
      self._verified.add(shard)
    return True

  def verify(self) -> None:
    """Verifies this process's share of the stored shards; logs a warning for damaged ones, which count as missing."""
    unread = [shard for shard in sorted(set(self._digests) - self._verified) if self._own(shard)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases the GIL
      for _ in tqdm(pool.map(self._verify_shard, unread), desc='verify features', total=len(unread), unit='shard',
                    delay=2, disable=jax.process_index() > 0):
        pass

  def _own(self, shard: Any) -> Any:
    """Whether this process verifies and writes the shard; elementwise for an array of shards."""
    return shard % jax.process_count() == jax.process_index()

  def write(self, indices: Sequence[int] | np.ndarray, rows: Mapping[str, np.ndarray], ids: Sequence[str]) -> None:
    """Adds the rows of images `indices`; those of stored images are ignored.

    A shard is written when it has the rows of all its images. Until then they are in memory, so pass images shard by
    shard, in the order of `missing`.

    Args:
      indices: n images.
      rows: {name of each field: [n, ...]}.
      ids: ids of the images.

    Raises:
      ValueError: other fields, shapes or dtypes than the store's; a value that is not finite.
      OSError: a full or read-only disk; stored shards are kept.
    """
    if set(rows) != set(self.fields):
      raise ValueError(f'the fields are {sorted(rows)}; the store takes {sorted(self.fields)}')
    rows = {name: self._converted(name, np.asarray(rows[name]), ids) for name in self.fields}
    for at, index in enumerate(map(int, indices)):
      shard, slot = divmod(index, self.shard_rows)
      if shard in self._digests:
        continue
      if shard not in self._pending:
        self._pending[shard] = self._empty(self._rows(shard)), [None] * self._rows(shard)
      arrays, names = self._pending[shard]
      for name, array in arrays.items():
        array[slot] = rows[name][at]
      names[slot] = ids[at]
      if None not in names:
        self._flush(shard)

  def _converted(self, name: str, array: np.ndarray, ids: Sequence[str]) -> np.ndarray:
    field = self.fields[name]
    if array.shape != (len(ids), *field.shape) or array.dtype != field.memory_dtype:
      raise ValueError(f'{name} is {array.dtype} {array.shape}; the store takes {field.memory_dtype} '
                       f'{(len(ids), *field.shape)}')
    if array.dtype.kind == 'f' and not np.isfinite(array).all():
      bad = [name for name, row in zip(ids, array) if not np.isfinite(row).all()]
      raise ValueError(f'{name} is NaN or infinite for {", ".join(bad)}')
    return array.astype(ml_dtypes.bfloat16).view(np.uint16) if field.dtype == 'bfloat16' else array

  def _empty(self, rows: int) -> dict[str, np.ndarray]:
    return {name: np.empty((rows, *field.shape), field.disk_dtype) for name, field in self.fields.items()}

  def _flush(self, shard: int) -> None:
    arrays, ids = self._pending.pop(shard)
    digest = hashlib.sha256()
    for array in arrays.values():
      digest.update(array)
    text = json.dumps({'store': self._digest, 'shard': shard, 'sha256': digest.hexdigest(), 'ids': ids}).encode()
    tail = TAIL.pack(MAGIC, len(text), zlib.crc32(text))
    try:
      runtime.write_atomic(self._file(shard), *arrays.values(), text, tail)
    except OSError as error:
      done = self.count - len(self.missing())
      raise OSError(error.errno, f'{error.strerror}; {done:,} of {self.count:,} images are stored; free some space and '
                    'start again to resume', error.filename) from error
    self._digests[shard], self.ids[self._span(shard)] = digest.hexdigest(), ids

  def fill(self, rows: Callable[[np.ndarray], Iterable[tuple]], *, unit: str = 'image') -> 'Store':
    """Returns this store, complete: verifies the shards that exist and writes only missing or damaged ones.

    The processes of one program share the work and must share the folder; another program waits.

    Args:
      rows: indices -> arguments of `write` for all of them, in this order.
      unit: name of what a row describes, for the progress bar.

    Raises:
      RuntimeError: rows are still missing at the end.
      ValueError, OSError: see `write`.
      runtime.Preempted: the run was asked to stop; finished shards are kept.
    """
    first = jax.process_index() == 0
    self.verify()
    if not runtime.any_process(not self.complete):
      return self
    logging.info('feature store %s: %d %ss, %.4g GB when complete', self.path, self.count, unit,
                 self.predicted_bytes / 1e9)
    with self.locked() if first else contextlib.nullcontext():
      runtime.barrier('features: fill')
      self.refresh()
      missing = self.missing()
      missing = missing[self._own(missing // self.shard_rows)]
      with tqdm(total=len(missing), desc='encode', unit=unit, disable=not (first and len(missing))) as bar:
        for indices, arrays, ids in rows(missing) if len(missing) else ():
          self.write(indices, arrays, ids)
          bar.update(len(indices))
          if runtime.preempted():
            break
      if runtime.any_process(runtime.preempted()):
        raise runtime.Preempted(f'asked to stop; finished shards of {self.path} are kept')
    for shard in [shard for shard in self._digests if not self._own(shard)]:
      del self._digests[shard]  # its process may have written it again
    self.refresh()
    if not self.complete:
      raise RuntimeError(f'{len(self.missing()):,} {unit}s are still missing in {self.path}: the pipeline left them '
                         'out, or the processes of this program do not share the folder')
    return self

  def read(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
    """Returns {name of each field: [len(indices), ...]} of stored images, in any order.

    Raises:
      IndexError: an index is out of range, or its image is not stored.
      OSError: a shard is damaged; its images count as missing from now on.
    """
    indices = np.asarray(indices, np.int64)
    if len(indices) and (indices.min() < 0 or indices.max() >= self.count):
      raise IndexError(f'images {indices.min()}..{indices.max()} are not all in the store, which has '
                       f'0..{self.count - 1}')
    out = self._empty(len(indices))
    for shard in np.unique(indices // self.shard_rows).tolist():
      self._read_shard(shard, indices, out)
    return {name: array.view(ml_dtypes.bfloat16).astype(np.float32) if self.fields[name].dtype == 'bfloat16' else array
            for name, array in out.items()}

  def _read_shard(self, shard: int, indices: np.ndarray, out: dict[str, np.ndarray]) -> None:
    """Fills the rows of `out` whose images are in this shard."""
    if shard not in self._digests:
      raise IndexError(f'images of {self._file(shard)} are not stored; fill the store first')
    if not self._verify_shard(shard):
      raise OSError(errno.EIO, 'damaged feature shard; start again to encode its images again',
                    str(self._file(shard)))
    members = np.flatnonzero(indices // self.shard_rows == shard)
    # pread is as fast as a memory map, and pages of the file do not count in the resident set.
    with open(self._file(shard), 'rb', buffering=0) as file:
      offset = 0
      for name, field in self.fields.items():
        for i in members:
          row = offset + int(indices[i] % self.shard_rows) * field.row_bytes
          if os.preadv(file.fileno(), [out[name][i:i + 1].data], row) != field.row_bytes:
            raise OSError(errno.EIO, 'the feature shard became shorter while it was read', str(self._file(shard)))
        offset += self._rows(shard) * field.row_bytes

  @contextlib.contextmanager
  def locked(self) -> Iterator[None]:
    """Locks the store against other programs that fill it, waiting for one; removes files left by kills."""
    with open(self.path / 'fill.lock', 'w') as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        logging.warning('another process is filling %s; waiting for it', self.path)
        fcntl.flock(file, fcntl.LOCK_EX)
      for stray in self.path.glob('.*.tmp'):
        stray.unlink()
      yield
