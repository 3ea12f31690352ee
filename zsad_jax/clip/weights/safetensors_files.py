"""Safetensors files: atomic writes, and a sha256 that is recorded next to each file and checked at every load."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np
import safetensors
import safetensors.numpy
from absl import logging

METADATA = 'zsad_jax'  # a single key: the format writes several in random order, which would change the digest
PICKLES = ('.pt', '.pth', '.bin', '.ckpt', '.pkl', '.pickle')


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Returns the arrays of a .safetensors file by name, in their stored dtypes, bfloat16 included.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: a pickle, or a file that is truncated or not a safetensors file.
  """
  with _open(path) as f:
    return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118  (not a dict)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
  """Returns the metadata that `write` stored in a file, {} for files of other programs; raises as `read` does."""
  with _open(path) as f:
    return json.loads((f.metadata() or {}).get(METADATA, '{}'))


def write(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray],
          metadata: Mapping[str, str] | None = None) -> str:
  """Writes arrays as a .safetensors file, atomically, and its digest next to it. Equal input gives equal bytes.

  Args:
    path: the file to write; its folder is created if necessary.
    arrays: {name: array}.
    metadata: {key: text} to store in the file.

  Returns:
    The sha256 of the file in hex.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  # The serializer copies raw memory and ignores strides, which would scramble a transposed view.
  arrays = {k: np.asarray(v, order='C') for k, v in arrays.items()}
  try:
    part.touch()
    mode = part.stat().st_mode  # the serializer makes files that only their owner may read
    safetensors.numpy.save_file(arrays, part, {METADATA: json.dumps(metadata or {}, sort_keys=True)})
    part.chmod(mode)
    digest = sha256(part)
    # A kill between the next three steps leaves a file without a digest, never one with a wrong digest.
    digest_path(path).unlink(missing_ok=True)
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)
  _write_digest(digest_path(path), path.name, digest)
  return digest


def sha256(path: str | os.PathLike[str]) -> str:
  """Returns the sha256 of a file in hex."""
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def digest_path(path: str | os.PathLike[str]) -> Path:
  """Returns the file that records the digest of `path`: `<path>.sha256`, in sha256sum's format."""
  return Path(f'{path}.sha256')


def read_digest(path: str | os.PathLike[str]) -> str:
  """Returns the sha256 in a .sha256 file, '' if there is no such file; raises ValueError if it holds none."""
  path = Path(path)
  if not path.exists():
    return ''
  word = (path.read_text().split() or [''])[0].lower()
  if len(word) != 64 or set(word) - set('0123456789abcdef'):
    raise ValueError(f'{path} does not contain a sha256; delete it to record the digest again')
  return word


def verify(path: str | os.PathLike[str], cache_dir: str | os.PathLike[str] | None = None) -> str:
  """Returns the sha256 of `path` after comparing it with the digest recorded at first use, or recording it now.

  The whole file is hashed every time (1.7 GB take about two seconds), because a digest remembered by size and date
  would miss a flipped bit.

  Args:
    path: a .safetensors file.
    cache_dir: folder for the digest if the file's own folder is read-only.

  Raises:
    ValueError: a file whose digest is not the recorded one, or that is truncated or not a safetensors file; the latter
      is never recorded.
  """
  path = Path(path)
  digest = sha256(path)
  places = [digest_path(path)]
  if cache_dir is not None:
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    places.append(Path(cache_dir) / 'sha256' / f'{path.name}.{key}.sha256')
  for place in places:
    if expected := read_digest(place):
      if expected != digest:
        raise ValueError(
            f'{path} has sha256 {digest}, but {expected} is recorded in {place}: the file is damaged or another '
            'one. Fetch it again, or delete the record if you replaced the file on purpose')
      return digest
  read_metadata(path)  # refuses a truncated file before its digest is recorded
  for place in places:
    if _write_digest(place, path.name, digest):
      return digest
  logging.warning('the sha256 %s of %s could not be recorded in %s', digest, path, ' or '.join(map(str, places)))
  return digest


def refuse_pickle(path: str | os.PathLike[str]) -> NoReturn:
  """Raises ValueError with the converter's command, for a file that Python would have to unpickle."""
  path = Path(path)
  raise ValueError(
      f'{path} is a pickled checkpoint, which can run code when it is opened, so it is never loaded. '
      f'Convert it once:\n  python -m zsad_jax.clip.weights.convert {path} {path.with_suffix(".safetensors")}')


def _open(path):
  path = Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'the weights file {path} does not exist')
  with path.open('rb') as f:
    start = f.read(4)
  if path.suffix in PICKLES or start[:2] == b'PK' or (start[:1] == b'\x80' and start[1:2] in b'\2\3\4\5'):
    refuse_pickle(path)
  try:
    return safetensors.safe_open(path, 'np')
  except safetensors.SafetensorError as error:
    raise ValueError(
        f'{path} ({path.stat().st_size:,} bytes) is truncated or not a safetensors file: {error}. '
        'Fetch it again') from error


def _write_digest(place, name, digest):
  """Records a digest; returns whether the place could be written to."""
  part = place.with_name(f'{place.name}.{os.getpid()}.tmp')
  try:
    place.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(f'{digest}  {name}\n')
    os.replace(part, place)
  except OSError:
    return False
  return True
