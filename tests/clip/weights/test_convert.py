"""The offline converter: torch checkpoints of every kind to safetensors, tensors unchanged, no code run."""

import argparse
import pickle
import subprocess
import sys
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.weights import convert, port, published, safetensors_files

MINI = clip_lib.Arch('mini', 12, clip_lib.Vision(24, 8, 20, 2, 4), clip_lib.Text(9, 31, 18, 3, 3))


@pytest.fixture(scope='module')
def params():
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float16).astype(np.float32),
                      clip_lib.template(MINI))


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
  """Returns f(tree, name) that makes a file whose content torch would read as `tree`, for tests without torch."""
  trees = {}

  def write(tree, name='a.pt'):
    path = tmp_path / name
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('m/data.pkl', repr(tree))
    trees[path] = tree
    return path

  monkeypatch.setattr(convert, '_read', lambda source, trusted: trees[source])
  return write


class Evil:
  """Writes a file when it is unpickled."""

  def __init__(self, target):
    self.target = target

  def __reduce__(self):
    return open, (str(self.target), 'w')


def tensors(params, naming='open_clip'):
  import torch
  return {k: torch.tensor(v).half() for k, v in port.to_state_dict(params, naming).items()}


def ported(path):
  return port.from_state_dict(safetensors_files.read(path), clip_lib.template(MINI), MINI)


def same(a, b):
  return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.mark.slow
@pytest.mark.parametrize('naming', ['open_clip', 'custom_text', 'huggingface'])
def test_clips_of_every_naming_are_recognised(tmp_path, params, checkpoint, naming):
  source = checkpoint(port.to_state_dict(params, naming))
  conversion = convert.convert(source, tmp_path / 'a.safetensors')
  assert naming in conversion.kind
  assert conversion.sha256 == safetensors_files.verify(tmp_path / 'a.safetensors')
  assert same(ported(tmp_path / 'a.safetensors'), params)
  metadata = safetensors_files.read_metadata(tmp_path / 'a.safetensors')
  assert metadata == {'source': 'a.pt', 'source_sha256': safetensors_files.sha256(source)}


def test_wrappers_of_training_checkpoints_are_removed(tmp_path, params, checkpoint):
  state = {f'module.{k}': v for k, v in port.to_state_dict(params).items()}
  source = checkpoint({'epoch': 32, 'name': 'run', 'state_dict': state, 'optimizer': {'lr': 1e-3}})
  convert.convert(source, tmp_path / 'a.safetensors')
  assert same(ported(tmp_path / 'a.safetensors'), params)


@pytest.mark.parametrize('wrapper, kind, state', [
  ('trainable_linearlayer', 'affine_layers', {'fc.0.weight': np.ones((4, 6)), 'fc.0.bias': np.ones(4)}),
  ('prompt_learner', 'anomalyclip_prompts', {'ctx_pos': np.ones((1, 1, 12, 16)), 'ids': np.arange(77)[None]})])
def test_trained_parameters_of_other_systems_are_recognised(tmp_path, checkpoint, wrapper, kind, state):
  conversion = convert.convert(checkpoint({wrapper: state}), tmp_path / 'a.safetensors')
  assert (conversion.kind, conversion.tensors) == (convert.WRAPPERS[wrapper][0], 2)
  arrays = safetensors_files.read(tmp_path / 'a.safetensors')
  assert arrays.keys() == state.keys()
  for name, value in state.items():
    np.testing.assert_array_equal(arrays[name], value)
  assert safetensors_files.read_metadata(tmp_path / 'a.safetensors')['kind'] == kind


def test_published_digests_name_the_weights(tmp_path, params, checkpoint, monkeypatch):
  source = checkpoint(port.to_state_dict(params), 'mini.pt')
  weights = published.Weights('someone/mini', 'mini.pt', safetensors_files.sha256(source)[:8], 'gelu')
  monkeypatch.setitem(published.PUBLISHED, 'mini', {'e32': weights})
  conversion = convert.convert(source, tmp_path / 'a.safetensors')
  assert conversion.kind.startswith('mini:e32, a CLIP')
  assert safetensors_files.read_metadata(tmp_path / 'a.safetensors')['weights'] == 'mini:e32'
  checkpoint(port.to_state_dict(params) | {'logit_scale': np.float32(1)}, 'mini.pt')
  monkeypatch.setattr(convert, '_read', lambda *args: pytest.fail('a file with a wrong digest was opened'))
  with pytest.raises(ValueError, match=rf'mini.pt is published with {weights.sha256}\.\.\.'):
    convert.convert(source, tmp_path / 'b.safetensors')
  assert not (tmp_path / 'b.safetensors').exists()


@pytest.mark.parametrize('tree, message', [
  ({'encoder.weight': np.zeros(3)}, r'a\.pt: these arrays do not have the names of a CLIP.*encoder\.weight'),
  ({'prompt_learner': {}}, r'a\.pt has no tensors'), ({'epoch': 3}, r'a\.pt has no tensors')])
def test_checkpoints_without_known_tensors_are_refused(tmp_path, checkpoint, tree, message):
  with pytest.raises(ValueError, match=message):
    convert.convert(checkpoint(tree), tmp_path / 'a.safetensors')
  assert not (tmp_path / 'a.safetensors').exists()


def test_the_output_must_be_a_safetensors_file(tmp_path):
  with pytest.raises(ValueError, match=r'a\.pt must end in \.safetensors'):
    convert.convert(tmp_path / 'tensor.pt', tmp_path / 'a.pt')


@pytest.mark.parametrize('content, message', [
  (b'<html>quota exceeded</html>', 'is not a torch checkpoint'), (b'', 'is not a torch checkpoint'),
  (b'PK\3\4half', 'is a truncated zip archive')])
def test_files_that_are_not_checkpoints_are_refused_without_torch(tmp_path, monkeypatch, content, message):
  monkeypatch.setitem(sys.modules, 'torch', None)
  (tmp_path / 'a.pt').write_bytes(content)
  with pytest.raises(ValueError, match=rf'a\.pt {message}'):
    convert.convert(tmp_path / 'a.pt', tmp_path / 'a.safetensors')
  with zipfile.ZipFile(tmp_path / 'z.pt', 'w') as archive:
    archive.writestr('readme.txt', 'hello')
  with pytest.raises(ValueError, match=r'z\.pt is a zip archive, .* no data\.pkl'):
    convert.convert(tmp_path / 'z.pt', tmp_path / 'a.safetensors')
  with pytest.raises(FileNotFoundError, match=r'gone\.pt'):
    convert.convert(tmp_path / 'gone.pt', tmp_path / 'a.safetensors')


def test_a_missing_torch_is_one_line_with_the_install_command(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'torch', None)
  (tmp_path / 'a.pt').write_bytes(pickle.dumps({}))
  assert convert.main([str(tmp_path / 'a.pt'), str(tmp_path / 'a.safetensors')]) == 1
  error = capsys.readouterr().err
  assert error.startswith('error: ') and 'pip install torch' in error and error.count('\n') == 1


def test_tensors_keep_values_dtypes_and_names(tmp_path, torch):
  base = torch.arange(24.).reshape(2, 3, 4)
  state = {
      'plain': base, 'view': base.transpose(0, 2)[1:], 'half': base.half(), 'bf16': base.bfloat16(),
      'ids': torch.arange(5), 'bool': torch.tensor([True, False]), 'scalar': torch.tensor(2.5),
      'bf16_scalar': torch.tensor(2.5).bfloat16(), 'empty': torch.zeros(0, 3), 'double': base.double(),
      'parameter': torch.nn.Parameter(base), 'nested': {'deep': torch.ones(2)}}
  torch.save({'prompt_learner': state | {'epoch': 3, 'list': [1, 'x', None]}}, tmp_path / 'a.pt')
  convert.convert(tmp_path / 'a.pt', tmp_path / 'a.safetensors')
  arrays = safetensors_files.read(tmp_path / 'a.safetensors')
  assert set(arrays) == {*state, 'nested.deep'} - {'nested'}
  for name in ('plain', 'view', 'half', 'ids', 'bool', 'scalar', 'empty', 'double', 'parameter'):
    expected = state[name].detach().numpy()
    assert arrays[name].dtype == expected.dtype
    np.testing.assert_array_equal(arrays[name], expected)
  assert arrays['bf16'].dtype == arrays['bf16_scalar'].dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(arrays['bf16'].astype(np.float32), base.numpy())
  np.testing.assert_array_equal(arrays['nested.deep'], [1, 1])


def test_half_precision_clips_are_converted_exactly(tmp_path, params, torch):
  state = tensors(params)
  torch.save(state, tmp_path / 'a.pt')
  conversion = convert.convert(tmp_path / 'a.pt', tmp_path / 'a.safetensors')
  assert conversion.tensors == len(state)
  assert all(v.dtype == np.float16 for v in safetensors_files.read(tmp_path / 'a.safetensors').values())
  assert same(ported(tmp_path / 'a.safetensors'), params)


def torchscript(torch, state):
  """Returns a traced module with the tensors of a state dict and OpenAI's three scalars."""
  def module(prefix):
    result = torch.nn.Module()
    for name, value in state.items():
      head, _, rest = name.removeprefix(prefix).partition('.')
      if not name.startswith(prefix) or not head:
        continue
      if rest and not hasattr(result, head):
        result.add_module(head, module(f'{prefix}{head}.'))
      elif not rest:
        result.register_parameter(head, torch.nn.Parameter(value))
    return result

  model = module('')
  for name, value in (('input_resolution', 24), ('context_length', 9), ('vocab_size', 31)):
    model.register_buffer(name, torch.tensor(value))
  model.forward = lambda x: x
  return torch.jit.trace(model, torch.zeros(1))


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_torchscript_archives_are_opened_only_with_a_published_digest(tmp_path, params, torch, monkeypatch):
  source = tmp_path / 'mini.pt'
  torchscript(torch, tensors(params)).save(str(source))
  with pytest.raises(ValueError, match=r'mini\.pt is a TorchScript archive .*state_dict'):
    convert.convert(source, tmp_path / 'a.safetensors')
  weights = published.Weights('someone/mini', 'mini.pt', safetensors_files.sha256(source), 'quick_gelu')
  monkeypatch.setitem(published.PUBLISHED, 'mini', {'openai': weights})
  conversion = convert.convert(source, tmp_path / 'a.safetensors')
  assert conversion.kind.startswith('mini:openai') and 'openai names' in conversion.kind
  assert same(ported(tmp_path / 'a.safetensors'), params)


def test_other_objects_than_tensors_are_refused(tmp_path, torch):
  torch.save(torch.nn.Linear(2, 2), tmp_path / 'module.pt')
  torch.save({'args': argparse.Namespace(lr=1e-3), 'state_dict': {}}, tmp_path / 'args.pt')
  torch.save(torch.zeros(3), tmp_path / 'tensor.pt')
  for name in ('module', 'args', 'tensor'):
    with pytest.raises(ValueError, match=rf'{name}\.pt .*state_dict'):
      convert.convert(tmp_path / f'{name}.pt', tmp_path / 'a.safetensors')
  assert not (tmp_path / 'a.safetensors').exists()


def test_malicious_files_run_nothing_and_give_no_traceback(tmp_path, capsys, torch):
  with zipfile.ZipFile(tmp_path / 'zip.pt', 'w') as out:
    out.writestr('m/data.pkl', pickle.dumps(Evil(tmp_path / 'ran'), protocol=2))
  (tmp_path / 'legacy.pt').write_bytes(pickle.dumps(Evil(tmp_path / 'ran'), protocol=2))
  torch.save({'state_dict': {'w': torch.zeros(2)}, 'evil': Evil(tmp_path / 'ran')}, tmp_path / 'hidden.pt')
  for name in ('zip.pt', 'legacy.pt', 'hidden.pt'):
    assert convert.main([str(tmp_path / name), str(tmp_path / 'a.safetensors')]) == 1
    assert capsys.readouterr().err.startswith('error: ')
  assert not (tmp_path / 'ran').exists()


def test_a_flipped_bit_in_a_tensor_is_an_error(tmp_path):
  values = np.arange(64, dtype=np.float32).tobytes()
  with zipfile.ZipFile(tmp_path / 'a.pt', 'w') as archive:
    archive.writestr('m/data.pkl', pickle.dumps({}))
    archive.writestr('m/data/0', values)
  data = bytearray((tmp_path / 'a.pt').read_bytes())
  data[bytes(data).index(values) + 5] ^= 1
  (tmp_path / 'a.pt').write_bytes(data)
  with pytest.raises(ValueError, match=r'a\.pt is damaged'):
    convert.convert(tmp_path / 'a.pt', tmp_path / 'a.safetensors')


def test_the_command_reports_the_digests(tmp_path, params, torch):
  torch.save(tensors(params), tmp_path / 'a.pt')
  command = [sys.executable, '-m', 'zsad_jax.clip.weights.convert']
  process = subprocess.run([*command, tmp_path / 'a.pt', tmp_path / 'a.safetensors'], capture_output=True, text=True,
                           timeout=300, check=True)
  assert f'sha256 {safetensors_files.sha256(tmp_path / "a.safetensors")}\n' in process.stdout
  assert '74 tensors' in process.stdout
  assert not process.stderr
