"""The offline converter: torch checkpoints of every kind to safetensors, tensors unchanged, nothing run."""

import pickle
import subprocess
import sys
import zipfile

import jax
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


def tensors(params, naming='open_clip'):
  import torch
  return {k: torch.tensor(v).half() for k, v in port.to_state_dict(params, naming).items()}


def ported(path):
  return port.from_state_dict(safetensors_files.read(path), clip_lib.template(MINI), MINI)


def same(a, b):
  return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.mark.parametrize('naming', ['open_clip', 'custom_text', 'huggingface'])
def test_state_dicts(tmp_path, params, naming, torch):
  state = tensors(params, naming)
  torch.save(state, tmp_path / 'a.pt')
  done = convert.convert(tmp_path / 'a.pt', tmp_path / 'a.safetensors')
  assert naming in done.kind
  assert done.count == len(state)
  assert done.sha256 == safetensors_files.verify(tmp_path / 'a.safetensors')
  read = safetensors_files.read(tmp_path / 'a.safetensors')
  assert all(v.dtype == np.float16 for v in read.values())
  assert same(ported(tmp_path / 'a.safetensors'), params)
  about = safetensors_files.read_metadata(tmp_path / 'a.safetensors')
  assert about == {'source': 'a.pt', 'source_sha256': safetensors_files.sha256(tmp_path / 'a.pt')}


def test_training_checkpoint_of_open_clip(tmp_path, params, torch):
  state = {f'module.{k}': v for k, v in tensors(params).items()}
  torch.save({'epoch': 32, 'name': 'run', 'state_dict': state, 'optimizer': {'param_groups': [{'lr': 1e-3}]}},
             tmp_path / 'epoch_32.pt')
  convert.convert(tmp_path / 'epoch_32.pt', tmp_path / 'a.safetensors')
  assert same(ported(tmp_path / 'a.safetensors'), params)


def test_trained_affine_layers(tmp_path, torch):
  """As APRIL-GAN and CLIP-AD save them: torch.save({'trainable_linearlayer': ModuleList of Linear .state_dict()})."""
  layers = torch.nn.Module()
  layers.fc = torch.nn.ModuleList(torch.nn.Linear(6, 4) for _ in range(2))
  torch.save({'trainable_linearlayer': layers.state_dict()}, tmp_path / 'epoch_5.pth')
  done = convert.convert(tmp_path / 'epoch_5.pth', tmp_path / 'a.safetensors')
  assert (done.kind, done.count) == ('affine layers of APRIL-GAN or CLIP-AD', 4)
  read = safetensors_files.read(tmp_path / 'a.safetensors')
  assert set(read) == {'fc.0.weight', 'fc.0.bias', 'fc.1.weight', 'fc.1.bias'}
  np.testing.assert_array_equal(read['fc.1.weight'], layers.fc[1].weight.detach().numpy())
  assert safetensors_files.read_metadata(tmp_path / 'a.safetensors')['kind'] == 'affine_layers'


def test_a_torchscript_archive_as_openai_publishes_them(tmp_path, params, torch):
  state = tensors(params)

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
  torch.jit.trace(model, torch.zeros(1)).save(str(tmp_path / 'model.pt'))
  done = convert.convert(tmp_path / 'model.pt', tmp_path / 'a.safetensors')
  assert 'openai names' in done.kind
  assert same(ported(tmp_path / 'a.safetensors'), params)


def test_published_digests_name_the_weights(tmp_path, params, monkeypatch, torch):
  state = tensors(params)
  torch.save(state, tmp_path / 'mini.pt')
  entry = published.Weights('someone/mini', 'mini.pt', safetensors_files.sha256(tmp_path / 'mini.pt')[:8], 'gelu')
  monkeypatch.setitem(published.PUBLISHED, 'mini', {'e32': entry})
  done = convert.convert(tmp_path / 'mini.pt', tmp_path / 'a.safetensors')
  assert done.kind.startswith('mini:e32, a CLIP')
  assert safetensors_files.read_metadata(tmp_path / 'a.safetensors')['weights'] == 'mini:e32'
  state['logit_scale'] += 1
  torch.save(state, tmp_path / 'mini.pt')
  with pytest.raises(ValueError, match=rf'mini.pt is published with {entry.sha256}\.\.\.: it is damaged'):
    convert.convert(tmp_path / 'mini.pt', tmp_path / 'b.safetensors')
  assert not (tmp_path / 'b.safetensors').exists()


def test_anomalyclip_prompts(tmp_path, torch):
  learner = {
      'ctx_pos': torch.randn(1, 1, 12, 16), 'ctx_neg': torch.randn(1, 1, 12, 16),
      'compound_prompts_text.0': torch.randn(4, 16), 'compound_prompts_text.7': torch.randn(4, 16),
      'compound_prompt_projections.0.weight': torch.randn(8, 16), 'token_prefix_pos': torch.randn(1, 1, 1, 16),
      'tokenized_prompts_pos': torch.arange(77)[None],
  }
  torch.save({'prompt_learner': learner}, tmp_path / 'epoch_15.pth')
  done = convert.convert(tmp_path / 'epoch_15.pth', tmp_path / 'prompts.safetensors')
  assert done.kind == 'AnomalyCLIP prompts'
  read = safetensors_files.read(tmp_path / 'prompts.safetensors')
  assert read.keys() == learner.keys()
  for name, value in learner.items():
    np.testing.assert_array_equal(read[name], value.numpy())
  assert safetensors_files.read_metadata(tmp_path / 'prompts.safetensors')['kind'] == 'anomalyclip_prompts'


def test_whole_modules_and_other_things_are_refused(tmp_path, torch):
  torch.save(torch.nn.Linear(2, 2), tmp_path / 'module.pt')
  with pytest.raises(ValueError, match=r'holds a pickled torch.nn.modules.linear.Linear, not .* save its state_dict'):
    convert.convert(tmp_path / 'module.pt', tmp_path / 'a.safetensors')
  torch.save(torch.zeros(3), tmp_path / 'tensor.pt')
  with pytest.raises(ValueError, match='holds a ndarray, not a dict'):
    convert.convert(tmp_path / 'tensor.pt', tmp_path / 'a.safetensors')
  torch.save({'encoder.weight': torch.zeros(3)}, tmp_path / 'other.pt')
  with pytest.raises(ValueError, match=r'other.pt: these arrays are named as in no CLIP'):
    convert.convert(tmp_path / 'other.pt', tmp_path / 'a.safetensors')
  torch.save({'prompt_learner': {}}, tmp_path / 'empty.pt')
  with pytest.raises(ValueError, match=r'empty.pt holds no tensors'):
    convert.convert(tmp_path / 'empty.pt', tmp_path / 'a.safetensors')
  with pytest.raises(ValueError, match=r'must end in \.safetensors, unlike .*a\.pt'):
    convert.convert(tmp_path / 'tensor.pt', tmp_path / 'a.pt')
  assert not (tmp_path / 'a.safetensors').exists()


def test_the_command(tmp_path, params, torch):
  state = tensors(params)
  torch.save(state, tmp_path / 'a.pt')
  command = [sys.executable, '-m', 'zsad_jax.clip.weights.convert']
  done = subprocess.run([*command, tmp_path / 'a.pt', tmp_path / 'a.safetensors'], capture_output=True, text=True,
                        timeout=120, check=True)
  assert f'sha256 {safetensors_files.sha256(tmp_path / "a.safetensors")}\n' in done.stdout
  assert '74 tensors' in done.stdout
  assert not done.stderr


def test_the_command_refuses_a_malicious_file_without_a_traceback(tmp_path, capsys):
  class Evil:
    def __reduce__(self):
      return open, (str(tmp_path / 'pwned'), 'w')

  with zipfile.ZipFile(tmp_path / 'evil.pt', 'w') as out:
    out.writestr('m/data.pkl', pickle.dumps(Evil(), protocol=2))
  assert convert.main([str(tmp_path / 'evil.pt'), str(tmp_path / 'a.safetensors')]) == 1
  assert capsys.readouterr().err.startswith('error: ')
  assert not (tmp_path / 'pwned').exists()
