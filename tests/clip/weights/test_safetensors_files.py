"""Safetensors files: atomic writes, recorded digests, and damaged files and pickles that are refused."""

import errno
import os
import pickle

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from zsad_jax.clip.weights import safetensors_files


@pytest.fixture
def path(tmp_path):
  path = tmp_path / 'model.safetensors'
  safetensors_files.write(path, {'a': np.arange(6, dtype=np.float32).reshape(2, 3)}, {'weights': 'x'})
  return path


def test_round_trip_of_every_dtype_view_and_scalar(tmp_path):
  table = np.arange(12, dtype=np.float32).reshape(3, 4)
  arrays = {'t': table.T, 'strided': table[:, ::2], 'half': table.astype(np.float16), 'scalar': np.float32(2.5),
            'bf16': table.astype(ml_dtypes.bfloat16), 'ids': np.arange(3), 'empty': np.zeros((0, 2), np.float32)}
  path = tmp_path / 'deep' / 'a.safetensors'
  digest = safetensors_files.write(path, arrays, {'k': 'v'})
  back = safetensors_files.read(path)
  assert back.keys() == arrays.keys()
  for name, array in arrays.items():
    assert back[name].dtype == np.asarray(array).dtype
    np.testing.assert_array_equal(back[name], array)
  assert safetensors_files.read_metadata(path) == {'k': 'v'}
  assert digest == safetensors_files.sha256(path)
  (tmp_path / 'plain').touch()
  assert path.stat().st_mode == (tmp_path / 'plain').stat().st_mode
  assert (tmp_path / 'deep' / 'a.safetensors.sha256').read_text() == f'{digest}  a.safetensors\n'


def test_equal_arrays_give_equal_bytes(tmp_path):
  arrays = {name: np.full(3, i, np.float32) for i, name in enumerate('abcdefgh')}
  metadata = {key: key for key in 'ijklmnop'}
  reverse = lambda record: dict(reversed(record.items()))
  first = safetensors_files.write(tmp_path / 'first.safetensors', arrays, metadata)
  assert safetensors_files.write(tmp_path / 'second.safetensors', reverse(arrays), reverse(metadata)) == first


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
  before = path.read_bytes()

  def fail(arrays, part, metadata):
    part.write_bytes(b'half')
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(safetensors.numpy, 'save_file', fail)
  with pytest.raises(OSError, match='No space left'):
    safetensors_files.write(path, {'a': np.zeros(3, np.float32)})
  assert path.read_bytes() == before
  assert safetensors_files.verify(path) == safetensors_files.sha256(path)
  assert sorted(p.name for p in path.parent.iterdir()) == ['model.safetensors', 'model.safetensors.sha256']


def test_a_kill_between_file_and_digest_is_not_a_mismatch(path, monkeypatch):
  monkeypatch.setattr(safetensors_files, '_write_digest', lambda *args: None)
  safetensors_files.write(path, {'a': np.zeros(3, np.float32)})
  monkeypatch.undo()
  assert safetensors_files.verify(path) == safetensors_files.read_digest(safetensors_files.digest_path(path))


def test_first_use_records_the_digest_and_later_uses_detect_a_flipped_bit(path):
  safetensors_files.digest_path(path).unlink()
  digest = safetensors_files.verify(path)
  assert safetensors_files.read_digest(safetensors_files.digest_path(path)) == digest
  data = bytearray(path.read_bytes())
  data[-3] ^= 1
  stat = path.stat()
  path.write_bytes(data)
  os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  changed = safetensors_files.sha256(path)
  with pytest.raises(ValueError, match=rf'has sha256 {changed}, but {digest} is recorded in .*Fetch'):
    safetensors_files.verify(path)


def test_a_truncated_file_is_not_recorded(path):
  safetensors_files.digest_path(path).unlink()
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(ValueError, match=r'is truncated or not a safetensors file'):
    safetensors_files.verify(path)
  assert not safetensors_files.digest_path(path).exists()


def test_digests_of_read_only_folders_are_recorded_in_the_cache(path, tmp_path, monkeypatch):
  safetensors_files.digest_path(path).unlink()
  real = safetensors_files.Path.write_text

  def read_only(self, *args, **kwargs):
    if self.parent == path.parent:
      raise OSError(errno.EROFS, 'Read-only file system')
    return real(self, *args, **kwargs)

  monkeypatch.setattr(safetensors_files.Path, 'write_text', read_only)
  cache = tmp_path / 'cache'
  digest = safetensors_files.verify(path, cache)
  assert not safetensors_files.digest_path(path).exists()
  assert [safetensors_files.read_digest(p) for p in cache.rglob('*.sha256')] == [digest]
  path.write_bytes(path.read_bytes() + b'\0')
  with pytest.raises(ValueError, match=r'recorded in .*cache'):
    safetensors_files.verify(path, cache)


def test_a_digest_that_cannot_be_recorded_is_a_warning(path, monkeypatch, caplog):
  safetensors_files.digest_path(path).unlink()
  monkeypatch.setattr(safetensors_files, '_write_digest', lambda *args: False)
  with caplog.at_level('WARNING', logger='absl'):
    safetensors_files.verify(path)
  assert 'could not be recorded' in caplog.text


def test_a_broken_digest_file_is_refused(path):
  safetensors_files.digest_path(path).write_text('nonsense\n')
  with pytest.raises(ValueError, match='does not contain a sha256; delete it'):
    safetensors_files.verify(path)


@pytest.mark.parametrize('keep', [0, 5, 40, -1])
def test_truncated_files_are_refused(path, keep):
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(ValueError, match=r'model.safetensors \([\d,]+ bytes\) is truncated'):
    safetensors_files.read(path)


def test_missing_files_are_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'weights file .*gone.safetensors does not exist'):
    safetensors_files.read(tmp_path / 'gone.safetensors')


class Evil:
  """Writes a file when it is unpickled."""

  def __init__(self, target):
    self.target = target

  def __reduce__(self):
    return open, (self.target, 'w')


@pytest.mark.parametrize('name', ['weights.pt', 'pytorch_model.bin', 'disguised.safetensors'])
def test_pickles_are_refused_and_never_opened(tmp_path, name):
  path = tmp_path / name
  path.write_bytes(pickle.dumps(Evil(str(tmp_path / 'pwned'))))
  with pytest.raises(ValueError, match=rf'never loaded.*\n .*weights.convert .*{name} '):
    safetensors_files.read(path)
  assert not (tmp_path / 'pwned').exists()
