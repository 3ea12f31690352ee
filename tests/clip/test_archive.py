"""The reader of torch archives: the same tensors as torch reads, and nothing run."""

import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from zsad_jax.clip.weights import archive


def pack(path, obj_bytes, storages=(), byteorder=b'little'):
  with zipfile.ZipFile(path, 'w') as out:
    out.writestr('m/data.pkl', obj_bytes)
    out.writestr('m/byteorder', byteorder)
    for key, data in storages:
      out.writestr(f'm/data/{key}', data)
  return path


def tensor_pickle(kind='FloatStorage', numel=4, offset=0, shape=(2, 2), strides=(2, 1)):
  """Opcodes of {'w': tensor} as torch writes them, with sizes of our choice."""
  ints = lambda xs: b'(' + b''.join(b'J' + int(x).to_bytes(4, 'little', signed=True) for x in xs) + b't'
  return (b'\x80\x02}X\x01\0\0\0w' + b'ctorch._utils\n_rebuild_tensor_v2\n(('
          + b'X\x07\0\0\0storage' + f'ctorch\n{kind}\n'.encode() + b'X\x01\0\0\x000X\x03\0\0\0cpu'
          + b'J' + numel.to_bytes(4, 'little') + b'tQ' + b'J' + int(offset).to_bytes(4, 'little', signed=True)
          + ints(shape) + ints(strides) + b'\x89ccollections\nOrderedDict\n)Rt' + b'Rs.')


FOUR = np.arange(4, dtype=np.float32)


def test_reads_a_tensor_without_torch(tmp_path):
  path = pack(tmp_path / 'a.pt', tensor_pickle(strides=(1, 2)), [('0', FOUR.tobytes())])
  np.testing.assert_array_equal(archive.read(path)['w'], [[0, 2], [1, 3]])


@pytest.mark.parametrize('change, message', [
    (dict(shape=(3, 2)), 'size of buffer'), (dict(offset=1), 'size of buffer'),
    (dict(strides=(-2, 1)), 'strides'), (dict(offset=-1), 'offset -1'), (dict(shape=(-2, 2)), 'shape'),
    (dict(strides=(2,)), 'strides'), (dict(kind='QInt8Storage'), 'a tensor of QInt8Storage'),
])
def test_windows_outside_the_bytes_are_refused(tmp_path, change, message):
  path = pack(tmp_path / 'a.pt', tensor_pickle(**change), [('0', FOUR.tobytes())])
  with pytest.raises(ValueError, match=rf'a\.pt cannot be read: .*({message})'):
    archive.read(path)


def test_nothing_is_run(tmp_path):
  class Evil:
    def __reduce__(self):
      return open, (str(tmp_path / 'pwned'), 'w')

  path = pack(tmp_path / 'a.pt', pickle.dumps({'w': Evil(), 'n': 3}, protocol=2))
  read = archive.read(path)
  assert not (tmp_path / 'pwned').exists()
  assert isinstance(read['w'], archive.Built)
  assert read['n'] == 3
  assert archive.flatten(read) == {}


@pytest.mark.parametrize('data, message', [
    (b'', 'cannot be read'), (b'\x80\x02}', 'ends too early|cannot be read'), (b'\x80\x022.', 'opcode DUP'),
    (b'\x80\x02Qgarbage', 'cannot be read'), (b'\x80\x02]q\0h\0a.', 'nest more than 100 deep'),
])
def test_damaged_opcodes(tmp_path, data, message):
  with pytest.raises(ValueError, match=message):
    archive.read(pack(tmp_path / 'a.pt', data))


def test_files_that_are_no_archive(tmp_path):
  with pytest.raises(FileNotFoundError, match='no file'):
    archive.read(tmp_path / 'gone.pt')
  old = tmp_path / 'old.pt'
  old.write_bytes(pickle.dumps({'w': 1}))
  with pytest.raises(ValueError, match=r'no torch archive.*weights_only=True'):
    archive.read(old)
  with zipfile.ZipFile(tmp_path / 'z.pt', 'w') as out:
    out.writestr('readme.txt', 'hello')
  with pytest.raises(ValueError, match=r'has no data\.pkl'):
    archive.read(tmp_path / 'z.pt')
  with pytest.raises(ValueError, match='big-endian'):
    archive.read(pack(tmp_path / 'b.pt', tensor_pickle(), [('0', FOUR.tobytes())], b'big'))


def test_a_flipped_bit_in_a_tensor_is_found(tmp_path):
  path = pack(tmp_path / 'a.pt', tensor_pickle(), [('0', FOUR.tobytes())])
  data = path.read_bytes()
  at = data.index(FOUR.tobytes())
  path.write_bytes(data[:at + 5] + bytes([data[at + 5] ^ 1]) + data[at + 6:])
  with pytest.raises(ValueError, match='CRC'):
    archive.read(path)


def test_reads_what_torch_writes(tmp_path, torch):
  base = torch.arange(24.).reshape(2, 3, 4)
  state = {
      'plain': base, 'view': base.transpose(0, 2)[1:], 'half': base.half(), 'bf16': base.bfloat16(),
      'ids': torch.arange(5), 'bool': torch.tensor([True, False]), 'scalar': torch.tensor(2.5),
      'empty': torch.zeros(0, 3), 'parameter': torch.nn.Parameter(base),
      'nested': [1, 'x', None, (1.5, {'deep': torch.ones(2)})], 'double': base.double(),
  }
  torch.save(state, tmp_path / 'a.pt')
  read = archive.read(tmp_path / 'a.pt')
  assert read['bf16'].dtype == ml_dtypes.bfloat16
  for name in ('plain', 'view', 'half', 'ids', 'bool', 'scalar', 'empty', 'parameter', 'double'):
    expected = state[name].detach().numpy()
    assert read[name].dtype == expected.dtype
    np.testing.assert_array_equal(read[name], expected)
  np.testing.assert_array_equal(read['bf16'].astype(np.float32), base.numpy())
  np.testing.assert_array_equal(read['nested'][3][1]['deep'], [1, 1])
  assert read['nested'][:3] == [1, 'x', None]


def test_reads_a_module_state_and_a_torchscript_archive_alike(tmp_path, torch):
  module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)).half()
  module.register_buffer('vocab_size', torch.tensor(7))
  torch.save(module.state_dict(), tmp_path / 'state.pt')
  traced = torch.jit.trace(module.float(), torch.zeros(1, 3), check_trace=False)
  traced.half().save(str(tmp_path / 'script.pt'))
  state = archive.flatten(archive.read(tmp_path / 'state.pt'))
  script = archive.flatten(archive.read(tmp_path / 'script.pt'))
  assert state.keys() == script.keys() == module.state_dict().keys()
  for name, value in module.half().state_dict().items():
    np.testing.assert_array_equal(state[name], value.numpy())
    np.testing.assert_array_equal(script[name], value.numpy())


def test_reads_a_training_checkpoint(tmp_path, torch):
  import argparse
  module = torch.nn.Linear(3, 4)
  optimizer = torch.optim.Adam(module.parameters())
  module(torch.ones(1, 3)).sum().backward()
  optimizer.step()
  torch.save({'epoch': 5, 'args': argparse.Namespace(lr=1e-3), 'state_dict': module.state_dict(),
              'optimizer': optimizer.state_dict(), 'loss': np.float64(0.5)}, tmp_path / 'a.pt')
  read = archive.read(tmp_path / 'a.pt')
  np.testing.assert_array_equal(read['state_dict']['weight'], module.weight.detach().numpy())
  assert read['epoch'] == 5
  assert isinstance(read['args'], archive.Built)
