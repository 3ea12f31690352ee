"""Porting of state dicts: exact both ways in every naming, and one error that lists everything that does not fit."""

import json
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from golden import record_resnet

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.weights import port

GOLDEN = Path(__file__).parents[2] / 'golden'
# Every size differs from every other, so that a transposed tensor cannot pass by its shape.
MINI = clip_lib.Arch('mini', 12, clip_lib.Vision(24, 8, 20, 2, 4), clip_lib.Text(9, 31, 18, 3, 3))


@pytest.fixture(scope='module')
def template():
  return clip_lib.template(MINI)


@pytest.fixture(scope='module')
def params(template):
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), template)


def equal(a, b):
  return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.mark.parametrize('naming', port.NAMINGS)
def test_round_trip_is_exact(params, template, naming):
  arrays = port.to_state_dict(params, naming)
  ported = port.from_state_dict(arrays, template, MINI)
  assert equal(ported, params)
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(ported))
  again = port.to_state_dict(ported, naming)
  assert again.keys() == arrays.keys()
  assert all(np.array_equal(arrays[k], again[k]) and again[k].flags.c_contiguous for k in arrays)
  assert port.naming(arrays) == ('open_clip' if naming == 'openai' else naming)


@pytest.mark.slow
def test_names_and_shapes_equal_open_clips():
  record = json.loads((GOLDEN / 'open_clip_keys.json').read_text())['state_dict']
  arrays = {k: np.broadcast_to(np.float32(0), shape) for k, shape in record.items()}
  assert port.fits(arrays) == ['vit_b16_plus_240']
  prefixes = ('text_projection', 'positional_embedding', 'token_embedding', 'transformer', 'ln_final')
  custom = {f'text.{k}' if k.startswith(prefixes) else k: v for k, v in arrays.items()}
  assert port.naming(custom) == 'custom_text'
  assert port.fits(custom) == ['vit_b16_plus_240']


@pytest.mark.parametrize('name', ['vit_b32', 'vit_b16', 'vit_l14', 'vit_l14_336'])
def test_names_and_shapes_equal_hugging_faces(name, torch):
  import transformers
  arch = clip_lib.ARCHS[name]
  vision, text = arch.vision, arch.text
  with torch.device('meta'):
    model = transformers.CLIPModel(transformers.CLIPConfig(
        projection_dim=arch.embed_dim,
        vision_config=dict(hidden_size=vision.width, intermediate_size=4 * vision.width,
                           num_hidden_layers=vision.layers, num_attention_heads=vision.heads,
                           image_size=vision.image_size, patch_size=vision.patch),
        text_config=dict(hidden_size=text.width, intermediate_size=4 * text.width,
                         num_hidden_layers=text.layers, num_attention_heads=text.heads)))
  arrays = {k: np.broadcast_to(np.float32(0), tuple(v.shape)) for k, v in model.state_dict().items()}
  assert port.naming(arrays) == 'huggingface'
  assert port.fits(arrays) == [name]


def test_packed_projection_splits_as_torch_splits_it(params, template):
  arrays = port.to_state_dict(params, 'open_clip')
  qkv = arrays['visual.transformer.resblocks.1.attn.in_proj_weight']
  assert qkv.shape == (60, 20)
  ported = port.from_state_dict(arrays, template, MINI)['visual']['blocks']['attn']
  np.testing.assert_array_equal(ported['qkv']['kernel'][1], qkv.reshape(3, 4, 5, 20).transpose(3, 0, 1, 2))
  out = arrays['visual.transformer.resblocks.1.attn.out_proj.weight']
  np.testing.assert_array_equal(ported['out']['kernel'][1], out.T.reshape(4, 5, 20))
  separate = port.to_state_dict(params, 'huggingface')
  parts = [separate[f'vision_model.encoder.layers.1.self_attn.{x}_proj.weight'] for x in 'qkv']
  np.testing.assert_array_equal(np.concatenate(parts), qkv)
  np.testing.assert_array_equal(separate['text_projection.weight'], arrays['text_projection'].T)


def test_one_attention_block_computes_what_torch_computes(params, torch):
  arrays = {k.removeprefix('transformer.resblocks.2.attn.'): torch.tensor(v)
            for k, v in port.to_state_dict(params).items() if k.startswith('transformer.resblocks.2.attn.')}
  module = torch.nn.MultiheadAttention(18, 3, batch_first=True)
  module.load_state_dict(arrays)
  x = np.random.default_rng(1).standard_normal((1, 5, 18)).astype(np.float32)
  expected = module(*[torch.tensor(x)] * 3)[0].detach().numpy()
  attn = jax.tree.map(lambda leaf: leaf[2], params['text']['blocks']['attn'])
  q, k, v = np.einsum('bnd,dchk->cbnhk', x, attn['qkv']['kernel']) + attn['qkv']['bias'][:, None, None]
  weight = jax.nn.softmax(np.einsum('bnhk,bmhk->bhnm', q, k) / np.sqrt(6), axis=-1)
  mixed = np.einsum('bhnm,bmhk->bnhk', weight, v)
  result = np.einsum('bnhk,hkd->bnd', mixed, attn['out']['kernel']) + attn['out']['bias']
  np.testing.assert_allclose(result, expected, atol=1e-4)


def test_wrappers_and_buffers_are_removed(params, template):
  arrays = port.to_state_dict(params)
  extra = {'input_resolution': np.array(24), 'context_length': np.array(9), 'vocab_size': np.array(31)}
  assert port.naming(arrays | extra) == 'openai'
  wrapped = {'epoch': 3, 'state_dict': {f'module.{k}': v for k, v in (arrays | extra).items()}}
  assert equal(port.from_state_dict(wrapped, template, MINI), params)
  hf = port.to_state_dict(params, 'huggingface') | {'text_model.embeddings.position_ids': np.arange(9)[None]}
  assert equal(port.from_state_dict(hf, template, MINI), params)


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened_exactly(params, template, dtype):
  arrays = {k: v.astype(dtype) for k, v in port.to_state_dict(params).items()}
  ported = port.from_state_dict(arrays, template, MINI)
  expected = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(np.float32), params)
  assert equal(ported, expected)


RESNET = record_resnet.SMALL


@pytest.fixture(scope='module')
def resnet():
  """Returns a small architecture, its template, and the arrays of the transcription under OpenAI's names."""
  vision = clip_lib.resnet_vision(RESNET.image_size, RESNET.width, RESNET.stages)
  text = clip_lib.Text(RESNET.context, RESNET.vocab, RESNET.text_width, RESNET.text_layers, RESNET.text_heads)
  arch = clip_lib.Arch('small_resnet', RESNET.embed, vision, text)
  return arch, clip_lib.template(arch), record_resnet.weights(RESNET, np.random.RandomState(0))


@pytest.mark.slow
@pytest.mark.parametrize('naming', ['open_clip', 'custom_text'])
def test_round_trip_of_resnets_is_exact(resnet, naming):
  arch, template, arrays = resnet
  ported = port.from_state_dict(arrays, template, arch)
  again = port.to_state_dict(ported, naming)
  assert port.naming(again) == naming
  assert equal(port.from_state_dict(again, template, arch), ported)
  counters = {k for k in arrays if k.endswith('num_batches_tracked')}
  assert len(counters) == 3 + 3 * sum(RESNET.stages) + 4
  if naming == 'open_clip':
    assert again.keys() == arrays.keys() - counters
    assert all(np.array_equal(arrays[k], again[k]) for k in again)


def test_tensors_of_resnets_are_transposed(resnet):
  arch, template, arrays = resnet
  visual = port.from_state_dict(arrays, template, arch)['visual']
  third = jax.tree.map(lambda leaf: leaf[1], visual['layer3']['rest'])
  np.testing.assert_array_equal(third['conv2']['kernel'][2, 0], arrays['visual.layer3.2.conv2.weight'][..., 2, 0].T)
  np.testing.assert_array_equal(third['conv3']['mean'], arrays['visual.layer3.2.bn3.running_mean'])
  shortcut = visual['layer2']['first']['downsample']
  np.testing.assert_array_equal(shortcut['kernel'][0, 0], arrays['visual.layer2.0.downsample.0.weight'][..., 0, 0].T)
  np.testing.assert_array_equal(shortcut['var'], arrays['visual.layer2.0.downsample.1.running_var'])
  np.testing.assert_array_equal(visual['attnpool']['c_proj']['kernel'], arrays['visual.attnpool.c_proj.weight'].T)


@pytest.mark.slow
def test_a_resnets_missing_statistics_are_named(resnet):
  arch, template, arrays = resnet
  arrays = {k: v for k, v in arrays.items() if k != 'visual.layer4.0.bn3.running_var'}
  with pytest.raises(ValueError, match=r'do not fit small_resnet: 1 missing \(visual\.layer4\.0\.bn3\.running_var '):
    port.from_state_dict(arrays, template, arch)


def test_resnets_have_no_names_at_hugging_face(params, resnet):
  arch, template, arrays = resnet
  with pytest.raises(ValueError, match='Hugging Face has no names for a CLIP with a ResNet'):
    port.to_state_dict(port.from_state_dict(arrays, template, arch), 'huggingface')
  with pytest.raises(ValueError, match='Hugging Face has no names for a CLIP with a ResNet'):
    port.from_state_dict(port.to_state_dict(params, 'huggingface'), template, arch)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['rn50', 'rn101'])
def test_resnets_are_recognised_by_their_shapes(name):
  arch = clip_lib.ARCHS[name]
  v = arch.vision
  dims = record_resnet.Dims(v.image_size, v.width, v.stages, v.heads, arch.embed_dim, 77, 49408, 512, 12, 8)

  class Zeros:
    def standard_normal(self, shape):
      return np.broadcast_to(np.float32(0), shape)

    def random_sample(self, size):
      return np.zeros(size, np.float32)

  assert port.fits(record_resnet.weights(dims, Zeros())) == [name]


def test_every_difference_is_in_one_error(params, template):
  arrays = port.to_state_dict(params)
  del arrays['visual.proj'], arrays['ln_final.bias']
  arrays['visual.attnpool.q_proj.weight'] = np.zeros((2, 3), np.float32)
  arrays['transformer.resblocks.0.mlp.c_fc.weight'] = arrays['transformer.resblocks.0.mlp.c_fc.weight'].T
  with pytest.raises(ValueError, match='do not fit mini') as error:
    port.from_state_dict(arrays, template, MINI)
  message = str(error.value)
  assert '2 missing (ln_final.bias [18], visual.proj [20, 12])' in message
  assert '1 extra (visual.attnpool.q_proj.weight [2, 3])' in message
  assert '1 of another shape (transformer.resblocks.0.mlp.c_fc.weight is [18, 72], not [72, 18])' in message


def test_the_architecture_that_would_fit_is_named():
  tiny = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), clip_lib.template('tiny'))
  arrays = port.to_state_dict(tiny, 'huggingface')
  with pytest.raises(ValueError, match=r'do not fit vit_b16: \d+ missing .*These arrays fit tiny\.'):
    port.from_state_dict(arrays, clip_lib.template('vit_b16'), clip_lib.ARCHS['vit_b16'])


def test_long_lists_are_cut(params, template):
  arrays = {k: v for k, v in port.to_state_dict(params).items() if 'resblocks.1' not in k}
  with pytest.raises(ValueError) as error:
    port.from_state_dict(arrays, template, MINI)
  message = str(error.value)
  assert message.startswith('weights (open_clip names) do not fit mini: 24 missing (')
  assert message.count('resblocks.1') == 10
  assert message.endswith(', ...).')


@pytest.mark.parametrize('value, message', [
    (np.zeros((20, 12), np.int8), 'must be floating-point: visual.proj is int8'),
    (np.full((20, 12), np.nan, np.float32), 'visual.proj has values that are not finite'),
])
def test_bad_values_are_refused(params, template, value, message):
  with pytest.raises(ValueError, match=message):
    port.from_state_dict(port.to_state_dict(params) | {'visual.proj': value}, template, MINI)


def test_unknown_namings_are_refused(params, template):
  with pytest.raises(ValueError, match=r'do not have the names of a CLIP .* encoder.weight'):
    port.from_state_dict({'encoder.weight': np.zeros(3)}, template, MINI)
  with pytest.raises(ValueError, match='there are none'):
    port.naming({})
  with pytest.raises(ValueError, match=r"naming='hugingface'.*did you mean 'huggingface'"):
    port.to_state_dict(params, 'hugingface')


def test_digest_depends_on_every_value_and_shape(params):
  first = port.digest(params)
  assert first == port.digest(jax.tree.map(jax.numpy.asarray, params))
  assert len(first) == 64
  changed = jax.tree.map(np.copy, params)
  changed['text']['blocks']['ln_1']['bias'][2, 17] += 1e-6
  assert port.digest(changed) != first
  reshaped = params | {'logit_scale': params['logit_scale'].reshape(1)}
  assert port.digest(reshaped) != first
