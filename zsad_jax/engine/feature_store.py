"""Rows of arrays on disk, written once, verified, read in any order.

A Store is a folder named by a hash of what its content depends on. It holds meta.json, which spells that out,
and shards of a fixed number of images. A shard is one file: the rows of each field, a JSON trailer (store,
shard number, image ids, sha256 of the rows) and a tail that finds and checks the trailer. Shards come into
being whole, by renaming; a killed run keeps the shards it finished.
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
from typing import NamedTuple

import jax
import ml_dtypes
import numpy as np
from absl import logging
from tqdm import tqdm

from zsad_jax.engine import runtime

TAIL = struct.Struct('<4sII')  # magic, bytes of the JSON trailer, crc32 of the trailer
MAGIC = b'zsf2'
# A kill loses a shard or two: bounded in images for slow towers, in bytes for memory.
SHARD_BYTES, SHARD_ROWS = 64 << 20, 64


class Field(NamedTuple):
  """What an image has in one array: shape and dtype; bfloat16 is given and read as float32."""
  shape: tuple[int, ...]
  dtype: str

  @property
  def stored(self) -> np.dtype:
    """The dtype on disk."""
    return np.dtype(np.uint16 if self.dtype == 'bfloat16' else self.dtype)

  @property
  def given(self) -> np.dtype:
    """The dtype that write takes and read returns."""
    return np.dtype(np.float32 if self.dtype == 'bfloat16' else self.dtype)

  @property
  def row_bytes(self) -> int:
    """Bytes an image takes."""
    return math.prod(self.shape) * self.stored.itemsize


class Store:
  """Rows of several fields for images 0 .. count - 1, on disk.

  Attributes:
    path: the folder.
    count: number of images.
    fields: {name: Field}.
    predicted_bytes: size of the complete store, without its JSON.
    shard_rows: images a shard.
    ids: the images' ids, None where not stored yet.
  """

  @classmethod
  def open(cls, root, *, key: Mapping, count: int, fields: Mapping[str, tuple], max_gb: float,
           shard_rows: int | None = None) -> 'Store':
    """Returns the store for `key` under folder `root`, with whatever of it is there already.

    Args:
      root: folder of all stores.
      key: what the rows depend on, JSON-able: sha256 of the weights, FeatureSpec, data fingerprint, preprocessing.
      count: number of images.
      fields: {name: (shape of one image's row, dtype)}.
      max_gb: the largest store that may be written, in 1e9 bytes.
      shard_rows: images a shard; by default what fits into 64 MiB, at most 64.

    Raises:
      ValueError: the complete store would be larger than max_gb; the folder holds another store; `key` is not
        JSON-able. Nothing has been written then.
      OSError: too little free space, no permission, a read-only or full disk.
    """
    fields = {name: Field(tuple(fields[name][0]), str(fields[name][1])) for name in sorted(fields)}
    row_bytes = sum(field.row_bytes for field in fields.values())
    shard_rows = shard_rows or max(1, min(SHARD_ROWS, SHARD_BYTES // row_bytes))
    meta = {'format': MAGIC.decode(), 'key': key, 'count': count, 'fields': fields, 'shard_rows': shard_rows}
    try:
      meta = json.dumps(meta, sort_keys=True, indent=1, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
      raise ValueError(f'the key of a feature store must be JSON-able: {error}') from error
    store = cls(Path(root).expanduser(), hashlib.sha256(meta).hexdigest(), count, fields, shard_rows)
    store._prepare(meta, max_gb)
    return store

  def __init__(self, root: Path, digest: str, count: int, fields: dict[str, Field], shard_rows: int):
    self.path, self._digest = root / digest[:16], digest
    self.count, self.fields, self.shard_rows = count, fields, shard_rows
    self._row_bytes = sum(field.row_bytes for field in fields.values())
    self._shards = -(-count // shard_rows)
    self.predicted_bytes = count * self._row_bytes
    self.ids: list[str | None] = [None] * count
    self._digests: dict[int, str] = {}  # sha256 of the rows of the shards that are there
    self._checked: set[int] = set()  # shards whose content this process has verified
    self._damaged: dict[int, tuple] = {}  # which file of a shard was found damaged
    self._pending: dict[int, tuple] = {}  # shards that write is collecting

  def _prepare(self, meta: bytes, max_gb: float):
    gb = self.predicted_bytes / 1e9
    about = self.path / 'meta.json'
    if about.exists() and about.read_bytes() != meta:
      raise ValueError(f'{about} describes another feature store than the one asked for, or was edited; '
                       'delete its folder to encode anew')
    self.refresh()
    if self.complete:
      return
    if gb > max_gb:
      raise ValueError(f'features of {self.count} images need {gb:.4g} GB, more than machine.max_feature_gb '
                       f'({max_gb:g}); raise it with --config.machine.max_feature_gb={math.ceil(gb)}, or halve the '
                       'size with --config.feature_dtype=bfloat16')
    self._require_space()
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      if jax.process_index() == 0 and not about.exists():
        runtime.write_atomic(about, meta)
    except OSError as error:
      raise OSError(error.errno, f'{error.strerror}; set --config.machine.feature_dir to a writable folder',
                    str(self.path)) from error

  def _require_space(self):
    there = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
    needed, free = self.missing_bytes, shutil.disk_usage(there).free
    if needed > free:
      raise OSError(errno.ENOSPC, f'the feature store needs {needed / 1e9:.4g} GB more, {free / 1e9:.4g} GB '
                    'are free; set --config.machine.feature_dir to a larger disk', str(self.path))

  @property
  def complete(self) -> bool:
    """Whether every image is stored."""
    return len(self._digests) == self._shards

  def missing(self) -> np.ndarray:
    """Returns the sorted indices of images that are not stored; shards are missing or there as a whole."""
    there = np.zeros(self._shards, bool)
    there[list(self._digests)] = True
    return np.flatnonzero(~np.repeat(there, self.shard_rows)[:self.count])

  @property
  def missing_bytes(self) -> int:
    """What the images take that are not stored."""
    return len(self.missing()) * self._row_bytes

  def _file(self, shard: int) -> Path:
    return self.path / f'{shard:05d}.shard'

  def _identity(self, shard: int) -> tuple | None:
    """Tells a shard's file from the one that replaces it; None where there is none."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
      about = self._file(shard).stat()
      return about.st_ino, about.st_mtime_ns

  def _span(self, shard: int) -> slice:
    """The shard's images."""
    return slice(shard * self.shard_rows, min(self.count, (shard + 1) * self.shard_rows))

  def _rows(self, shard: int) -> int:
    return self._span(shard).stop - self._span(shard).start

  def refresh(self):
    """Takes notice of shards that came since; damaged ones are warned about and count as missing."""
    for shard in range(self._shards):
      if shard not in self._digests and self._identity(shard) not in (None, self._damaged.get(shard)):
        try:
          self._digests[shard], self.ids[self._span(shard)] = self._trailer(shard)
        except ValueError as error:
          self._drop(shard, error)

  def _trailer(self, shard: int) -> tuple[str, list[str]]:
    """Digest and image ids of a shard, once its size and its place in this store are found right."""
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
      raise ValueError('checksum of its trailer')
    trailer = json.loads(text)
    if (trailer['store'], trailer['shard']) != (self._digest, shard):
      raise ValueError('it belongs elsewhere')
    return trailer['sha256'], trailer['ids']

  def _drop(self, shard: int, reason):
    logging.warning('%s is damaged (%s); its %d images will be encoded anew', self._file(shard), reason,
                    self._rows(shard))
    self._digests.pop(shard, None)
    self._damaged[shard] = self._identity(shard)
    self.ids[self._span(shard)] = [None] * self._rows(shard)

  def _check(self, shard: int) -> bool:
    """Whether the shard's content has its digest; read once a process."""
    if shard not in self._checked:
      left, digest = self._rows(shard) * self._row_bytes, hashlib.sha256()
      with open(self._file(shard), 'rb', buffering=0) as file:
        while left and (block := file.read(min(left, 1 << 20))):
          left -= len(block)
          digest.update(block)
      if left or digest.hexdigest() != self._digests[shard]:
        self._drop(shard, 'sha256 of its content')
        return False
      self._checked.add(shard)
    return True

  def verify(self):
    """Reads this process's shards that it has not yet read; damaged ones are warned about and count as missing."""
    unread = [shard for shard in sorted(set(self._digests) - self._checked) if self._own(shard)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing leaves Python's lock to the others
      for _ in tqdm(pool.map(self._check, unread), desc='verify features', total=len(unread), unit='shard', delay=2,
                    disable=jax.process_index() > 0):
        pass

  def _own(self, shard):
    """Whether this process, of those of one program, verifies and writes the shard; of an array of shards, which."""
    return shard % jax.process_count() == jax.process_index()

  def write(self, indices, rows: Mapping[str, np.ndarray], ids: Sequence[str]):
    """Takes rows of images `indices`; a shard is written once all its images came. Stored images are ignored.

    Rows wait in memory until then, so let them come shard by shard, as `missing` lists them.

    Raises:
      ValueError: other fields, shapes or dtypes than the store's; a value that is not finite.
      OSError: a full or read-only disk; what was stored before is kept.
    """
    if set(rows) != set(self.fields):
      raise ValueError(f'fields {sorted(rows)} given, the store has {sorted(self.fields)}')
    rows = {name: self._encoded(name, np.asarray(rows[name]), ids) for name in self.fields}
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

  def _encoded(self, name: str, array: np.ndarray, ids: Sequence[str]) -> np.ndarray:
    field = self.fields[name]
    if array.shape != (len(ids), *field.shape) or array.dtype != field.given:
      raise ValueError(f'{name}: {array.dtype} {array.shape} given, the store takes {field.given} '
                       f'{(len(ids), *field.shape)}')
    if array.dtype.kind == 'f' and not np.isfinite(array).all():
      bad = [name for name, row in zip(ids, array) if not np.isfinite(row).all()]
      raise ValueError(f'{name} is not finite for image {", ".join(bad)}')
    return array.astype(ml_dtypes.bfloat16).view(np.uint16) if field.dtype == 'bfloat16' else array

  def _empty(self, rows: int) -> dict[str, np.ndarray]:
    return {name: np.empty((rows, *field.shape), field.stored) for name, field in self.fields.items()}

  def _flush(self, shard: int):
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
      raise OSError(error.errno, f'{error.strerror}; {done} of {self.count} images are stored and kept; make '
                    'room and start again', error.filename) from error
    self._digests[shard], self.ids[self._span(shard)] = digest.hexdigest(), ids

  def fill(self, rows: Callable[[np.ndarray], Iterable[tuple]], *, unit: str = 'image') -> 'Store':
    """Returns this store, complete: what is there is verified, and only what is missing or damaged is made.

    The processes of one program share the work and must share the folder; another program waits its turn.

    Args:
      rows: indices -> arguments of write for all of them, in their order.
      unit: what a row is of, for the progress bar.

    Raises:
      RuntimeError: rows are still missing in the end.
      ValueError, OSError: see write.
    """
    first = jax.process_index() == 0
    self.verify()
    if not runtime.any_process(not self.complete):
      return self
    logging.info('feature store %s: %d images, %.4g GB when complete', self.path, self.count,
                 self.predicted_bytes / 1e9)
    with self.alone() if first else contextlib.nullcontext():
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
      del self._digests[shard]  # its process may have found it damaged and made it anew
    self.refresh()
    if not self.complete:
      raise RuntimeError(f'{len(self.missing())} {unit}s are still missing in {self.path}: the pipeline left '
                         'them out, or the processes of this program do not share the folder')
    return self

  def read(self, indices, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Returns {name: [len(indices), ...]} of stored images in any order; `names` picks fields.

    Raises:
      IndexError: an index out of range, or an image that is not stored.
      OSError: a shard is damaged; its images then count as missing.
    """
    indices = np.asarray(indices, np.int64)
    if len(indices) and (indices.min() < 0 or indices.max() >= self.count):
      raise IndexError(f'images {indices.min()}..{indices.max()} asked, the store has 0..{self.count - 1}')
    out = {name: np.empty((len(indices), *self.fields[name].shape), self.fields[name].stored)
           for name in (self.fields if names is None else names)}
    for shard in np.unique(indices // self.shard_rows).tolist():
      self._gather(shard, indices, out)
    return {name: array.view(ml_dtypes.bfloat16).astype(np.float32) if self.fields[name].dtype == 'bfloat16' else array
            for name, array in out.items()}

  def _gather(self, shard: int, indices: np.ndarray, out: dict[str, np.ndarray]):
    """Fills those rows of `out` that lie in one shard."""
    if shard not in self._digests:
      raise IndexError(f'images of {self._file(shard)} are not stored; fill the store first')
    if not self._check(shard):
      raise OSError(errno.EIO, 'damaged feature shard; start again to encode its images anew',
                    str(self._file(shard)))
    where = np.flatnonzero(indices // self.shard_rows == shard)
    # pread is as fast as a memory map, and pages of the file stay out of the resident set.
    with open(self._file(shard), 'rb', buffering=0) as file:
      offset = 0
      for name, field in self.fields.items():
        for i in where if name in out else ():
          row = offset + int(indices[i] % self.shard_rows) * field.row_bytes
          if os.preadv(file.fileno(), [out[name][i:i + 1].data], row) != field.row_bytes:
            raise OSError(errno.EIO, 'feature shard shrank while it was in use', str(self._file(shard)))
        offset += self._rows(shard) * field.row_bytes

  @contextlib.contextmanager
  def alone(self) -> Iterator[None]:
    """Waits for a process that fills this store, then keeps others out; clears away what kills left."""
    with open(self.path / 'fill.lock', 'w') as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        logging.warning('another process fills %s; waiting for it', self.path)
        fcntl.flock(file, fcntl.LOCK_EX)
      for stray in self.path.glob('.*.tmp'):
        stray.unlink()
      yield
