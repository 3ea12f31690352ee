"""Parity of the published CLIP ResNets with PyTorch at full size: feature maps, attention pool and its surgery.

Random weights, running statistics among them; 1e-4 on activations in float32. One architecture at a time is in memory.
"""

import jax
import numpy as np
import pytest
from golden import record_resnet

torch = pytest.importorskip('torch')

from zsad_jax.clip import encoder
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import FeatureSpec, Tap

pytestmark = pytest.mark.usefixtures('highest_precision')
POOL = {'pool': 'pool', 'pool_vv': 'surgery_original', 'pool_cosine': 'surgery_new'}


def full_size(name):
  """Returns the Dims of an architecture with a small text tower, which this test does not compare, and its Arch."""
  arch = clip_lib.ARCHS[name]
  v = arch.vision
  dims = record_resnet.Dims(v.image_size, v.width, v.stages, v.heads, arch.embed_dim)
  text = clip_lib.Text(dims.context, dims.vocab, dims.text_width, dims.text_layers, dims.text_heads)
  return dims, clip_lib.Arch(name, arch.embed_dim, v, text)


def released(official, images, positions='bilinear'):
  maps = official.maps(images)
  new, original = official.surgery(maps[-1], positions)
  return {'maps': [x.flatten(2).transpose(1, 2) for x in maps], 'pool': official.pool(maps[-1], positions),
          'surgery_new': new, 'surgery_original': original}


@pytest.mark.parametrize('name', ['rn50', 'rn101'])
def test_image_tower_at_full_size(name):
  dims, arch = full_size(name)
  arrays = record_resnet.weights(dims, np.random.RandomState(3))
  images = record_resnet.images(dims.image_size, np.random.RandomState(4), rows=1)
  with torch.no_grad():
    want = released(record_resnet.Official(arrays, dims), images)
  ours = clip_lib.from_state_dict(arch, arrays)
  taps = (*(Tap('clip', block) for block in (1, 2, 3, 4)), *(Tap('clip', 4, point) for point in POOL),
          Tap('clip', 4, 'pool_vv', 'cls'))
  out = encoder.encode(ours, FeatureSpec(dims.image_size, taps=taps, read='none'))(ours.params, images)
  for block, tokens in enumerate(want['maps'], 1):
    np.testing.assert_allclose(out.taps[f'clip/{block}/block'], tokens, atol=1e-4, err_msg=f'block {block}')
  for point, key in POOL.items():
    np.testing.assert_allclose(out.taps[f'clip/4/{point}'], want[key][:, 1:], atol=1e-4, err_msg=point)
  np.testing.assert_allclose(out.cls, want['pool'][:, 0], atol=1e-4)
  np.testing.assert_allclose(out.taps['clip/4/pool_vv/cls'], want['surgery_original'][:, :1], atol=1e-4)
  assert out.cls.shape == (1, dims.embed)


@pytest.mark.parametrize('positions', ['bilinear', 'bicubic_antialias', 'bicubic'])
@pytest.mark.parametrize('size', [32, 128])
def test_positions_resampled_as_torch_does(positions, size):
  dims = record_resnet.SMALL
  arrays = record_resnet.weights(dims, np.random.RandomState(3))
  images = record_resnet.images(size, np.random.RandomState(4))
  with torch.no_grad():
    want = released(record_resnet.Official(arrays, dims), images, positions)
  _, arch = full_size('rn50')
  vision = clip_lib.resnet_vision(dims.image_size, dims.width, dims.stages, 32 * dims.width // dims.heads)
  ours = clip_lib.from_state_dict(clip_lib.Arch('small', dims.embed, vision, arch.text), arrays)
  spec = FeatureSpec(size, taps=(Tap('clip', 4, 'pool_cosine'),), read='none', positions=positions)
  out = jax.jit(lambda params: ours.image(params, images, spec))(ours.params)
  np.testing.assert_allclose(out.cls, want['pool'][:, 0], atol=1e-4)
  np.testing.assert_allclose(out.taps['clip/4/pool_cosine'], want['surgery_new'][:, 1:], atol=1e-4)


def test_the_golden_file_is_up_to_date():
  with torch.no_grad(), np.load(record_resnet.HERE / 'resnet.npz') as golden:
    fresh = record_resnet.record()
    assert set(golden.files) == set(fresh)
    for key in golden.files:
      np.testing.assert_allclose(golden[key], fresh[key], atol=1e-5, err_msg=key)
