"""Parity with PyTorch: Hugging Face's CLIPModel in every published size, and the released AnomalyCLIP encoders.

Random weights; 1e-4 on activations in float32. One architecture at a time is in memory.
"""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip.test_vit import arch_of
from golden import record_clip

torch = pytest.importorskip('torch')

from zsad_jax.clip import archs
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import FeatureSpec, SideStream, Tap
from zsad_jax.clip.weights import port

pytestmark = pytest.mark.usefixtures('highest_precision')
FULL = [name for name, arch in clip_lib.ARCHS.items() if arch.vision.kind == 'vit' and name != 'tiny']
TEXTS = [49406, 320, 1125, 539, 320, 13568, 14115, 269, 49407]


def hugging_face(arch, seed=0):
  """Returns a CLIPModel with the shapes of `arch`, whose norms and biases are not just ones and zeros."""
  import transformers
  v, t = arch.vision, arch.text
  config = transformers.CLIPConfig(
      vision_config={
          'image_size': v.image_size, 'patch_size': v.patch, 'hidden_size': v.width, 'intermediate_size': 4 * v.width,
          'num_hidden_layers': v.layers, 'num_attention_heads': v.heads, 'hidden_act': arch.activation},
      text_config={
          'max_position_embeddings': t.context, 'vocab_size': t.vocab, 'hidden_size': t.width,
          'intermediate_size': 4 * t.width, 'num_hidden_layers': t.layers, 'num_attention_heads': t.heads,
          'hidden_act': arch.activation, 'eos_token_id': t.vocab - 1, 'bos_token_id': t.vocab - 2},
      projection_dim=arch.embed_dim)
  torch.manual_seed(seed)
  model = transformers.CLIPModel(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      if parameter.ndim == 1:
        parameter.add_(0.1 * torch.randn_like(parameter))
  return model


@pytest.fixture(scope='module', params=FULL)
def pair(request):
  """Returns a published architecture twice with the same weights: our Clip and Hugging Face's model."""
  arch = clip_lib.ARCHS[request.param]
  model = hugging_face(arch)
  arrays = {name: value.numpy() for name, value in model.state_dict().items()}
  params = port.from_state_dict(arrays, clip_lib.template(arch), arch)
  yield clip_lib.build(arch, params), model
  del arrays, params, model
  gc.collect()


def test_image_tower_block_by_block(pair):
  ours, model = pair
  v = ours.arch.vision
  images = np.random.default_rng(0).standard_normal((1, v.image_size, v.image_size, 3)).astype(np.float32)
  taps = tuple(Tap('clip', block) for block in range(1, v.layers + 1))
  spec = FeatureSpec(v.image_size, cls='ln_post_proj', taps=taps, read='none')
  out = jax.jit(lambda p, x: ours.image(p, x, spec))(ours.params, images)
  with torch.no_grad():
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    outputs = model.vision_model(pixels, output_hidden_states=True)
    feature = model.visual_projection(outputs.pooler_output)
  embedded = jax.jit(lambda p, x: archs.vision_tower(ours.arch, spec).apply({'params': p}, x, method='embed'))
  np.testing.assert_allclose(embedded(ours.params['visual'], images), outputs.hidden_states[0], atol=1e-4)
  for block, want in enumerate(outputs.hidden_states[1:], 1):
    np.testing.assert_allclose(out.taps[f'clip/{block}/block'], want[:, 1:], atol=1e-4, err_msg=f'block {block}')
  np.testing.assert_allclose(out.cls, feature, atol=1e-4)


def test_text_tower(pair):
  ours, model = pair
  ids = np.zeros((2, ours.arch.text.context), np.int32)
  ids[0, :len(TEXTS)], ids[1, :4] = TEXTS, TEXTS[:3] + TEXTS[-1:]
  with torch.no_grad():
    outputs = model.text_model(torch.from_numpy(ids).long())
    want = model.text_projection(outputs.pooler_output).numpy()
  run = jax.jit(lambda p, ids, eot: ours.text(p, ours.embed(p, ids), eot))
  for length in (ids.shape[1], len(TEXTS)):
    cut = ids[:, :length]
    np.testing.assert_allclose(run(ours.params, jnp.asarray(cut), ours.eot(cut)), want, atol=1e-4)


def test_positions_resampled_as_hugging_face_does():
  arch = clip_lib.Arch('small', 24, clip_lib.Vision(64, 16, 64, 2, 2), clip_lib.Text(8, 40, 32, 1, 2))
  model = hugging_face(arch)
  arrays = {name: value.numpy() for name, value in model.state_dict().items()}
  ours = clip_lib.from_state_dict(arch, arrays)
  for size in (112, 48):
    images = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)
    with torch.no_grad():
      pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
      want = model.visual_projection(model.vision_model(pixels, interpolate_pos_encoding=True).pooler_output)
    out = ours.image(ours.params, images, FeatureSpec(size, cls='ln_post_proj', positions='bicubic'))
    np.testing.assert_allclose(out.cls, want, atol=1e-4)


@pytest.mark.parametrize('activation', ['quick_gelu', 'gelu'])
@pytest.mark.parametrize('first_block, ffn', [(1, False), (3, False), (3, True), (5, False)])
def test_released_image_encoder(activation, first_block, ffn):
  dims = record_clip.Dims(activation=activation)
  arrays = record_clip.weights(dims, np.random.RandomState(5))
  images, _, _ = record_clip.inputs(dims, np.random.RandomState(6), rows=3)
  official = record_clip.Official(arrays, dims)
  with torch.no_grad():
    start, original, surgical, cls = official.image(images, first_block, ffn)
    read = [official.read_patches(tokens) for tokens in surgical]
  ours = clip_lib.from_state_dict(arch_of(dims), arrays)
  sides = (SideStream('vv', 'vv', first_block, ffn=ffn),)
  blocks = range(1, dims.layers + 1)
  spec = FeatureSpec(record_clip.SIZE, taps=tuple(Tap('vv', block) for block in blocks), sides=sides)
  out = jax.jit(lambda p, x: ours.image(p, x, spec))(ours.params, images)
  np.testing.assert_allclose(out.cls, cls, atol=1e-4)
  for block, want in zip(blocks, read):
    np.testing.assert_allclose(out.taps[f'vv/{block}/block'], want, atol=1e-4)
  assert len(original) == dims.layers and start.shape == original[0].shape


@pytest.mark.parametrize('depth', [0, 1, 3])
def test_released_text_encoder(depth):
  dims = record_clip.Dims()
  arrays = record_clip.weights(dims, np.random.RandomState(5))
  _, ids, deep = record_clip.inputs(dims, np.random.RandomState(6), rows=3)
  with torch.no_grad():
    want, _ = record_clip.Official(arrays, dims).text(ids, list(deep[:depth]))
  ours = clip_lib.from_state_dict(arch_of(dims), arrays)
  halved = deep[:depth].astype(np.float16).astype(np.float32) if depth else None
  out = ours.text(ours.params, ours.embed(ours.params, ids), ours.eot(ids), deep=halved)
  np.testing.assert_allclose(out, want, atol=1e-4)


def test_golden_files_are_up_to_date():
  with torch.no_grad():
    for name, dims in record_clip.RECORDS.items():
      with np.load(record_clip.HERE / f'clip_{name}.npz') as golden:
        fresh = record_clip.record(dims)
        for key in golden.files:
          value = torch.stack(fresh[key]) if isinstance(fresh[key], list) else fresh[key]
          np.testing.assert_allclose(golden[key], value, atol=1e-5, err_msg=key)


def test_fused_kernel_equals_the_explicit_softmax():
  """The benchmark's fused form of PyTorch computes the same."""
  dims = record_clip.Dims()
  arrays = record_clip.weights(dims, np.random.RandomState(5))
  images, _, _ = record_clip.inputs(dims, np.random.RandomState(6))
  with torch.no_grad():
    plain, fused = (record_clip.Official(arrays, dims, fused=fused).image(images) for fused in (False, True))
  np.testing.assert_allclose(fused[2][-1], plain[2][-1], atol=1e-4)
