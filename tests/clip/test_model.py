"""Architectures, parameter trees, loading from a folder, and parameters that `build` refuses."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip.test_vit import arch_of
from golden import record_clip

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import FeatureSpec
from zsad_jax.clip.weights import arch_config, port, safetensors_files

DIMS = record_clip.Dims()
ARCH = arch_of(DIMS)
FAST = jax.random.key(0, impl='rbg')  # compiles faster than the default


def size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope='module')
def params():
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda s: 0.1 * rng.standard_normal(s.shape, np.float32), clip_lib.template(ARCH))


@pytest.mark.slow
@pytest.mark.parametrize('name, vision, text, total', [
    ('vit_b16', 86_192_640, 63_428_096, 149_620_737),
    ('vit_b16_plus_240', 117_213_824, 91_163_520, 208_377_345),
    ('vit_l14', 303_966_208, 123_650_304, 427_616_513),
    ('vit_l14_336', 304_293_888, 123_650_304, 427_944_193)])
def test_parameter_counts_are_the_published_ones(name, vision, text, total):
  tree = clip_lib.template(name)
  assert (size(tree['visual']), size(tree['text']), size(tree)) == (vision, text, total)


@pytest.mark.parametrize('name', clip_lib.ARCHS)
def test_architectures_are_consistent(name):
  arch = clip_lib.ARCHS[name]
  assert arch.name == name and arch.vision.image_size % arch.vision.patch == 0
  vision, text = arch.vision, arch.text
  for width, heads in ((vision.channels(vision.layers), vision.heads), (text.width, text.heads)):
    assert width == heads * (32 if name == 'tiny' else 64)
  assert arch.activation == ('gelu' if name == 'vit_b16_plus_240' else 'quick_gelu')


def test_tree_is_the_documented_one():
  v, t = ARCH.vision, ARCH.text
  d, w, n, m = v.width, t.width, v.layers, t.layers

  def blocks(width, layers, heads):
    head = width // heads
    return {
        'ln_1': {'scale': (layers, width), 'bias': (layers, width)},
        'attn': {'qkv': {'kernel': (layers, width, 3, heads, head), 'bias': (layers, 3, heads, head)},
                 'out': {'kernel': (layers, heads, head, width), 'bias': (layers, width)}},
        'ln_2': {'scale': (layers, width), 'bias': (layers, width)},
        'mlp': {'c_fc': {'kernel': (layers, width, 4 * width), 'bias': (layers, 4 * width)},
                'c_proj': {'kernel': (layers, 4 * width, width), 'bias': (layers, width)}}}
  norm = lambda width: {'scale': (width,), 'bias': (width,)}
  assert jax.tree.map(lambda leaf: leaf.shape, clip_lib.template(ARCH)) == {
      'visual': {'class_embedding': (d,), 'positional_embedding': (17, d), 'patch_embed': {'kernel': (8, 8, 3, d)},
                 'ln_pre': norm(d), 'ln_post': norm(d), 'proj': {'kernel': (d, ARCH.embed_dim)},
                 'blocks': blocks(d, n, v.heads)},
      'text': {'token_embedding': {'embedding': (t.vocab, w)}, 'positional_embedding': (t.context, w),
               'ln_final': norm(w), 'text_projection': {'kernel': (w, ARCH.embed_dim)},
               'blocks': blocks(w, m, t.heads)},
      'logit_scale': ()}
  assert {leaf.dtype for leaf in jax.tree.leaves(clip_lib.template(ARCH))} == {np.dtype(np.float32)}


@pytest.mark.slow
def test_random_parameters_have_clips_scales():
  params = jax.jit(lambda rng: clip_lib.init_params(ARCH, rng))(FAST)
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, clip_lib.template(ARCH))
  np.testing.assert_allclose(params['logit_scale'], 2.6593, atol=1e-4)
  t = ARCH.text
  stds = {('attn', 'qkv'): t.width ** -0.5, ('attn', 'out'): (2 * t.layers * t.width) ** -0.5,
          ('mlp', 'c_fc'): (2 * t.width) ** -0.5, ('mlp', 'c_proj'): (2 * t.layers * t.width) ** -0.5}
  for (part, name), std in stds.items():
    leaf = params['text']['blocks'][part][name]
    np.testing.assert_allclose(leaf['kernel'].std(), std, rtol=0.05)
    assert not leaf['bias'].any()
    assert np.abs(leaf['kernel'][0] - leaf['kernel'][1]).max() > std, 'layers must differ'
  np.testing.assert_allclose(params['text']['token_embedding']['embedding'].std(), 0.02, rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize('naming', port.NAMINGS)
def test_every_naming_gives_the_same_features(params, naming):
  want = clip_lib.build(ARCH, params)
  got = clip_lib.from_state_dict(ARCH, port.to_state_dict(params, naming))
  images = np.random.default_rng(1).standard_normal((1, 32, 32, 3)).astype(np.float32)
  encode = jax.jit(lambda params: want.image(params, images, FeatureSpec(32)).cls)
  np.testing.assert_array_equal(encode(want.params), encode(got.params))
  assert got.fingerprint == port.digest(params) and want.fingerprint == ''


def write_folder(folder, arch, params):
  safetensors_files.write(folder / 'model.safetensors', port.to_state_dict(params, 'open_clip'))
  (folder / 'config.json').write_text(json.dumps(arch_config.to_json(arch)))


@pytest.mark.slow
def test_load_reads_a_folder(tmp_path):
  """A folder with weights and config.json, as a trained CLIP is written."""
  arch = dataclasses.replace(ARCH, text=dataclasses.replace(ARCH.text, vocab=49408))
  params = jax.jit(lambda rng: clip_lib.init_params(arch, rng))(FAST)
  write_folder(tmp_path, arch, params)
  loaded = clip_lib.load(tmp_path, image_size=40, cache_dir=tmp_path / 'cache', offline=True)
  assert loaded.arch == arch and loaded.image_size == 40 and loaded.grid == 5
  assert len(loaded.fingerprint) == 64
  assert jax.tree.all(jax.tree.map(np.array_equal, loaded.params, params))


def test_a_tokenizer_with_more_tokens_than_the_tower_embeds_is_refused(params, tmp_path):
  write_folder(tmp_path, ARCH, params)  # no tokenizer of its own, so CLIP's
  with pytest.raises(ValueError, match=r'tokenizer of .* has 49408 tokens, .*embeds 40'):
    clip_lib.load(tmp_path, cache_dir=tmp_path / 'cache', offline=True)


def test_weights_are_on_the_device_once(params):
  """A numpy tree would be copied to the device at every call, for a fifth of a small tower's time."""
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(clip_lib.build(ARCH, params).params))


def test_clip_hashes_by_identity(params):
  a, b = clip_lib.build(ARCH, params), clip_lib.build(ARCH, params)
  assert a != b and len({a, b}) == 2
  with pytest.raises(dataclasses.FrozenInstanceError):
    a.image_size = 48


def test_tokenize(params):
  class Letters:
    def encode(self, texts, context):
      out = np.zeros((len(texts), context), np.int32)
      for row, text in zip(out, texts):
        row[:len(text)] = [ord(c) for c in text]
      return out

  ids = clip_lib.build(ARCH, params, tokenizer=Letters()).tokenize(('ab', 'z'))
  assert ids.shape == (2, 16) and ids.dtype == np.int32 and ids[0, :3].tolist() == [97, 98, 0]
  with pytest.raises(ValueError, match=r'CLIP \(small\) has no tokenizer; .*tokenizer='):
    clip_lib.build(ARCH, params).tokenize(['a'])


def test_embed_adds_no_positions(params):
  ids = np.array([[3, 1]])
  out = clip_lib.build(ARCH, params).embed(params, ids)
  np.testing.assert_array_equal(out[0], params['text']['token_embedding']['embedding'][[3, 1]])


def test_build_lists_every_leaf_that_does_not_fit(params):
  broken = jax.tree.map(lambda x: x, params)
  del broken['visual']['proj']
  broken['text']['extra'] = np.zeros(3)
  broken['visual']['positional_embedding'] = np.zeros((10, 64))
  with pytest.raises(ValueError, match='parameters do not fit small: ') as error:
    clip_lib.build(ARCH, broken)
  for part in ('1 missing (visual/proj/kernel [64, 24])', '1 extra (text/extra [3])',
               'visual/positional_embedding is [10, 64], not [17, 64]'):
    assert part in str(error.value)


@pytest.mark.parametrize('size', [0, -8, 36])
def test_build_refuses_sizes_off_the_patch_grid(params, size):
  with pytest.raises(ValueError, match=f'image_size={size} is not a positive multiple of 8'):
    clip_lib.build(ARCH, params, image_size=size)


def test_unknown_architectures_are_refused():
  with pytest.raises(ValueError, match="unknown architecture 'vit_b17'; known: vit_b32, vit_b16"):
    clip_lib.template('vit_b17')
  other = dataclasses.replace(ARCH, vision=dataclasses.replace(ARCH.vision, kind='swin'))
  with pytest.raises(ValueError, match=r"vision\.kind='swin' of small is not one of vit, resnet"):
    clip_lib.template(other)
