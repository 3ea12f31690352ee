"""Safetensors files on disk: read, written whole or not at all, and held to their sha256."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from absl import logging

METADATA = 'zsad_jax'  # one key: the format writes several in random order, and bytes should not differ
PICKLES = ('.pt', '.pth', '.bin', '.ckpt', '.pkl', '.pickle')


def read_safetensors(path) -> dict[str, np.ndarray]:
  """Returns the arrays of a .safetensors file by name, in the dtypes they are stored in (bfloat16 included).

  Raises:
    FileNotFoundError: no such file.
    ValueError: a pickle, or a file that is truncated or no safetensors file at all; the message names it.
  """
  with _opened(path) as f:
    return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118  (not a dict)


def read_metadata(path) -> dict[str, str]:
  """Returns the metadata that write_safetensors put in a file, {} for others' files; raises as reading does."""
  with _opened(path) as f:
    return json.loads((f.metadata() or {}).get(METADATA, '{}'))


def write_safetensors(path, arrays: Mapping[str, np.ndarray],
                      metadata: Mapping[str, str] | None = None) -> str:
  """Writes arrays as a .safetensors file, whole or not at all, with its digest beside it; returns the sha256.

  The same arrays and metadata give the same bytes.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(f'{path.name}.{os.getpid()}.tmp')
  # The serializer copies memory in order and looks at no strides: a transposed view would be scrambled.
  arrays = {k: np.asarray(v, order='C') for k, v in arrays.items()}
  try:
    part.touch()
    mode = part.stat().st_mode  # the serializer makes files that only their owner may read
    safetensors.numpy.save_file(arrays, part, {METADATA: json.dumps(metadata or {}, sort_keys=True)})
    part.chmod(mode)
    digest = sha256(part)
    # A kill between the next three steps leaves a file without a record, never one with a wrong record.
    record_path(path).unlink(missing_ok=True)
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)
  _write_record(record_path(path), path.name, digest)
  return digest


def sha256(path) -> str:
  """Returns the sha256 of a file in hex."""
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def record_path(path) -> Path:
  """Returns where the digest of `path` is kept: `<path>.sha256`, in sha256sum's format."""
  return Path(f'{path}.sha256')


def recorded(path) -> str:
  """Returns the sha256 in a .sha256 file, '' where there is no file; raises ValueError if it holds none."""
  path = Path(path)
  if not path.exists():
    return ''
  word = (path.read_text().split() or [''])[0].lower()
  if len(word) != 64 or set(word) - set('0123456789abcdef'):
    raise ValueError(f'{path} holds no sha256; delete it to have the digest recorded anew')
  return word


def verify(path, cache_dir=None) -> str:
  """Returns the sha256 of `path`, held to the digest recorded at its first use, or recorded now.

  The whole file is hashed every time (1.7 GB take about two seconds): a digest remembered by size and date
  would miss a flipped bit. The record lies beside the file, or under `cache_dir` if that place is read-only.

  Raises:
    ValueError: the file is not the one recorded; the message names both digests and what to do. Or it is
      truncated or no safetensors file, and then nothing is recorded.
  """
  path = Path(path)
  digest = sha256(path)
  places = [record_path(path)]
  if cache_dir is not None:
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    places.append(Path(cache_dir) / 'sha256' / f'{path.name}.{key}.sha256')
  for place in places:
    if known := recorded(place):
      if known != digest:
        raise ValueError(
            f'{path} has sha256 {digest}, but {known} is recorded in {place}: the file is damaged or another '
            'one. Fetch it again, or, if you replaced it on purpose, delete the record')
      return digest
  read_metadata(path)  # a truncated file is no first use
  for place in places:
    if _write_record(place, path.name, digest):
      return digest
  logging.warning('%s has sha256 %s, which could not be recorded in %s', path, digest,
                  ' or '.join(map(str, places)))
  return digest


def refuse_pickle(path):
  """Raises ValueError that names the converter's command for a file that Python would have to unpickle."""
  path = Path(path)
  raise ValueError(
      f'{path} is a pickled checkpoint, which can run code when it is opened, so it is never loaded. '
      f'Convert it once:\n  python -m zsad_jax.clip.weights.convert {path} {path.with_suffix(".safetensors")}')


def _opened(path):
  path = Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'no weights file {path}')
  with open(path, 'rb') as f:
    start = f.read(4)
  if path.suffix in PICKLES or start[:2] == b'PK' or (start[:1] == b'\x80' and start[1:2] in b'\2\3\4\5'):
    refuse_pickle(path)
  try:
    return safetensors.safe_open(path, 'np')
  except safetensors.SafetensorError as error:
    raise ValueError(
        f'{path} ({path.stat().st_size} bytes) is truncated or no safetensors file: {error}. '
        'Fetch it again') from error


def _write_record(place, name, digest):
  part = place.with_name(f'{place.name}.{os.getpid()}.tmp')
  try:
    place.parent.mkdir(parents=True, exist_ok=True)
    part.write_text(f'{digest}  {name}\n')
    os.replace(part, place)
  except OSError:  # a read-only place; the caller has another, or says so
    return False
  return True
