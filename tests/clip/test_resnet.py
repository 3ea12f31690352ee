"""CLIP's ResNets against recorded features of the released encoders: feature maps, attention pool, and its surgery."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import record_resnet
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from zsad_jax.clip import encoder, resnet
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import FeatureSpec, SideStream, Tap

pytestmark = pytest.mark.usefixtures('highest_precision')
DIMS, SIZE = record_resnet.SMALL, record_resnet.SIZE
MAPS = tuple(Tap('clip', block) for block in (1, 2, 3, 4))
POOLS = tuple(Tap('clip', 4, point, token) for point in resnet.POOLS for token in ('patches', 'cls'))
EVERYTHING = FeatureSpec(SIZE, taps=MAPS + POOLS, read='none')


def arch_of(dims):
  return clip_lib.Arch('small_resnet', dims.embed,
                   clip_lib.resnet_vision(dims.image_size, dims.width, dims.stages, 32 * dims.width // dims.heads),
                   clip_lib.Text(dims.context, dims.vocab, dims.text_width, dims.text_layers, dims.text_heads))


ARCH = arch_of(DIMS)


@pytest.fixture(scope='module')
def small():
  """A CLIP on the golden's weights, and its images."""
  arrays = record_resnet.weights(DIMS, np.random.RandomState(0))
  return clip_lib.from_state_dict(ARCH, arrays, image_size=SIZE), record_resnet.images(SIZE, np.random.RandomState(1))


@pytest.fixture(scope='module')
def golden():
  with np.load(record_resnet.HERE / 'resnet.npz') as file:
    return dict(file)


@pytest.fixture(scope='module')
def features(small):
  clip_, images = small
  return jax.tree.map(np.asarray, encoder.encode(clip_, EVERYTHING)(clip_.params, images))


@pytest.mark.slow
def test_feature_maps_equal_the_released_encoders(features, golden):
  for block in (1, 2, 3, 4):
    np.testing.assert_allclose(features.taps[f'clip/{block}/block'], golden[f'map{block}'], atol=1e-4)


@pytest.mark.parametrize('point, token, key', [
    ('pool', 'patches', 'pool'), ('pool', 'cls', 'pool'), ('pool_cosine', 'patches', 'surgery_new'),
    ('pool_cosine', 'cls', 'surgery_new'), ('pool_vv', 'patches', 'surgery_original'),
    ('pool_vv', 'cls', 'surgery_original')])
def test_every_row_of_the_pool_equals_the_released_encoders(features, golden, point, token, key):
  rows = slice(1) if token == 'cls' else slice(1, None)
  np.testing.assert_allclose(features.taps[Tap('clip', 4, point, token).name], golden[key][:, rows], atol=1e-4)


def test_the_class_feature_is_clips_and_not_the_surgerys(features, golden):
  np.testing.assert_allclose(features.cls, golden['pool'][:, 0], atol=1e-4)
  assert np.abs(features.cls - features.taps['clip/4/pool_vv/cls'][:, 0]).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize('positions, key', [('bicubic', 'bicubic'), ('bicubic_antialias', 'antialias')])
def test_positions_of_the_pool_are_resampled_as_the_spec_says(small, golden, positions, key):
  clip_, images = small
  encode = encoder.encode(clip_, FeatureSpec(SIZE, positions=positions))
  np.testing.assert_allclose(encode(clip_.params, images).cls, golden[key], atol=1e-4)
  assert np.abs(golden[key] - golden['pool'][:, 0]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('spec', [
    FeatureSpec(SIZE), EVERYTHING._replace(cls='', taps=POOLS[3:4]), EVERYTHING._replace(cls='', taps=MAPS[1:2])])
def test_other_taps_change_nothing(small, features, spec):
  clip_, images = small
  out = encoder.encode(clip_, spec)(clip_.params, images)
  assert (out.cls is None) == (spec.cls == '')
  if spec.cls:
    np.testing.assert_allclose(out.cls, features.cls, atol=1e-5)
  for name, tokens in out.taps.items():
    np.testing.assert_allclose(tokens, features.taps[name], atol=1e-5)


def test_batch_norm_uses_running_statistics_and_epsilon_1e_5():
  x = np.array([2.0, 3.0], np.float32).reshape(1, 1, 1, 2)
  weights = {'kernel': np.eye(2)[None, None], 'scale': [3, 1], 'bias': [0.5, 0], 'mean': [1, 3 - 1e-3], 'var': [4, 0]}
  weights = {name: np.float32(value) for name, value in weights.items()}
  y = resnet.Conv(2).apply({'params': weights}, x)
  np.testing.assert_allclose(y.ravel(), [2.0, 1e-3 / 1e-5 ** 0.5], rtol=1e-3)


@pytest.mark.slow
def test_the_statistics_of_a_batch_do_not_matter(small, features):
  clip_, images = small
  alone = encoder.encode(clip_, EVERYTHING)(clip_.params, images[1:])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[1:], atol=1e-5), alone, features)


@pytest.mark.devices8
def test_one_device_or_eight(small):
  clip_, _ = small
  images = record_resnet.images(64, np.random.RandomState(2), rows=8)
  encode = encoder.encode(clip_, EVERYTHING._replace(image_size=64))
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  split = encode(jax.device_put(clip_.params, NamedSharding(mesh, P())),
                 jax.device_put(images, NamedSharding(mesh, P('data'))))
  assert all(leaf.sharding.spec[0] == 'data' for leaf in jax.tree.leaves(split))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), split, encode(clip_.params, images))


@pytest.mark.slow
def test_bfloat16_weights_give_bfloat16_features(small, features):
  """Tolerance of bfloat16: cosine 0.99 with the float32 features."""
  clip_, images = small
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), clip_.params)
  out = encoder.encode(clip_, EVERYTHING)(half, images)
  for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(features)):
    assert a.dtype == jnp.bfloat16
    a = np.asarray(a, np.float32)
    cosine = (a * b).sum((1, -1)) / np.linalg.norm(a, axis=(1, -1)) / np.linalg.norm(b, axis=(1, -1)) \
        if a.ndim == 3 else (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert cosine.min() > 0.99


@pytest.mark.slow
def test_shapes_and_bytes_are_predicted(small):
  clip_, images = small
  spec = EVERYTHING._replace(crops=SIZE + 32)
  out = jax.eval_shape(encoder.encode(clip_, spec), clip_.params, images)
  crops = jax.eval_shape(encoder.encode_crops(clip_, spec), clip_.params, np.zeros((2, SIZE + 32, SIZE + 32, 3)))
  out = out._replace(crops=crops.crops)
  assert jax.tree.map(lambda x: x.shape[1:], out) == encoder.features_shape(clip_, spec)
  assert encoder.predicted_bytes(clip_, spec) == 4 * sum(leaf.size for leaf in jax.tree.leaves(out)) // len(images)


def test_published_sizes():
  """Stages have 56, 28, 14 and 7 positions per side; the pool has 49 tokens as wide as the embedding."""
  shell = clip_lib.Clip(clip_lib.ARCHS['rn101'], 224, params=None)
  shapes = encoder.features_shape(shell, FeatureSpec(224, taps=MAPS + POOLS[4:], read='none'))
  assert shapes.cls == (512,) and shell.grid == 7
  assert [*shapes.taps.values()] == [
      (3136, 256), (784, 512), (196, 1024), (49, 2048), (49, 512), (1, 512)]


READ = dict(read='none')


@pytest.mark.parametrize('spec, message', [
    (FeatureSpec(100), r'spec\.image_size=100 .*multiple of 32'), (FeatureSpec(0), r'spec\.image_size=0 '),
    (FeatureSpec(64, cls='ln_post_proj'), r"spec\.cls='ln_post_proj' is not one of proj, ''"),
    (FeatureSpec(64, positions='nearest'), r"spec\.positions='nearest' is not one of"),
    (FeatureSpec(64, sides=(SideStream('vv'),)), r"spec\.sides=\['vv'\] .*no side streams; use taps at"),
    (FeatureSpec(64, windows=(2,)), r'spec\.windows=\(2,\) is not supported'),
    (FeatureSpec(64, taps=MAPS), r"spec\.taps\[0\] has read='ln_post_proj'.*read='none'"),
    (FeatureSpec(64, taps=(Tap('clip', 4, 'pool', read='proj'),), **READ), r"spec\.taps\[0\] has read='proj'.*'none'"),
    (FeatureSpec(64, taps=(Tap('vv', 4),), **READ), r"spec\.taps\[0\]\.stream='vv' is not clip"),
    (FeatureSpec(64, taps=(Tap('clip', 5),), **READ), r'spec\.taps\[0\]\.block=5 .*\[1, 4\]'),
    (FeatureSpec(64, taps=(MAPS[0], Tap('clip', 4, 'attention')), **READ), r"taps\[1\]\.point='attention' is not one"),
    (FeatureSpec(64, taps=(Tap('clip', 3, 'pool'),), **READ), r"taps\[0\]\.point='pool' .*block 4 alone, not at 3"),
    (FeatureSpec(64, taps=(Tap('clip', 4, 'block', 'cls'),), **READ), r"spec\.taps\[0\]\.token='cls' .* 'block'"),
    (FeatureSpec(64, taps=(Tap('clip', 4, 'pool', 'all'),), **READ), r"spec\.taps\[0\]\.token='all' is not one of"),
    (FeatureSpec(64, taps=(MAPS[0], MAPS[0]), **READ), r'spec\.taps .*twice'),
    (FeatureSpec(64, crops=32), r'spec\.crops=32 .*spec\.image_size=64'),
])
def test_bad_specs_are_refused_before_anything_runs(spec, message):
  shell = clip_lib.Clip(ARCH, 64, params=None)
  for refuse in (encoder.validate, encoder.encode, encoder.features_shape, encoder.predicted_bytes):
    with pytest.raises(ValueError, match=message):
      refuse(shell, spec)


@pytest.mark.parametrize('point', resnet.POOLS)
def test_a_vision_transformer_has_no_pool(point):
  shell = clip_lib.Clip(clip_lib.ARCHS['tiny'], 64, params=None)
  message = rf"spec\.taps\[1\]\.point='{point}' is in the attention pool of a ResNet, but tiny is"
  with pytest.raises(ValueError, match=message):
    encoder.validate(shell, FeatureSpec(64, taps=(Tap('clip', 1), Tap('clip', 4, point))))
  with pytest.raises(ValueError, match=message):
    shell.image({'visual': {}}, np.zeros((1, 64, 64, 3)), FeatureSpec(64, taps=(Tap('clip', 1), Tap('clip', 4, point))))


def test_images_of_another_size_are_refused(small):
  clip_, images = small
  with pytest.raises(ValueError, match=r'\(2, 96, 96, 3\); spec\.image_size=64 needs \[B, 64, 64, 3\]'):
    clip_.image(clip_.params, images, FeatureSpec(64))


def test_build_refuses_sizes_off_the_grid(small):
  with pytest.raises(ValueError, match='image_size=100 is not a positive multiple of 32'):
    clip_lib.build(ARCH, small[0].params, image_size=100)


@pytest.mark.parametrize('changes, message', [
    ({'kind': 'convnext'}, r"vision\.kind='convnext' of small_resnet is not one of vit, resnet"),
    ({'kind': 'vit'}, r'vision\.stages=\(1, 2, 3, 1\) of small_resnet .*vision\.kind is vit'),
    ({'stages': (1, 2, 3)}, r'vision\.stages=\(1, 2, 3\) .*4 stages'),
    ({'stages': (1, 0, 3, 1)}, r'vision\.stages=\(1, 0, 3, 1\) .*at least one bottleneck'),
    ({'patch': 16}, r'vision\.patch=16.*patch 32'), ({'layers': 7}, r'vision\.layers=7.*4 layers'),
    ({'heads': 3}, r'vision\.heads=3 of small_resnet must divide 256'),
])
def test_impossible_resnets_are_refused(changes, message):
  arch = dataclasses.replace(ARCH, vision=dataclasses.replace(ARCH.vision, **changes))
  with pytest.raises(ValueError, match=message):
    clip_lib.template(arch)


@pytest.mark.slow
@pytest.mark.parametrize('name, vision, total', [('rn50', 38_316_896, 102_007_137), ('rn101', 56_259_936, 119_688_033)])
def test_parameter_counts_are_the_published_ones(name, vision, total):
  """Torch does not count running statistics as parameters."""
  leaves = jax.tree_util.tree_leaves_with_path(clip_lib.template(name))
  sizes = {jax.tree_util.keystr(path, simple=True, separator='/'): leaf.size for path, leaf in leaves}
  counted = {path: size for path, size in sizes.items() if not path.endswith(('/mean', '/var'))}
  assert sum(size for path, size in counted.items() if path.startswith('visual/')) == vision
  assert sum(counted.values()) == total


@pytest.mark.slow
def test_random_parameters_have_clips_scales():
  arch = dataclasses.replace(ARCH, vision=clip_lib.resnet_vision(64, 16, (1, 3, 1, 1)))
  rng = jax.random.key(0, impl='rbg')  # compiles faster than the default
  params = jax.jit(lambda rng: clip_lib.init_params(arch, rng))(rng)
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, clip_lib.template(arch))
  visual = params['visual']
  pool = visual['attnpool']
  for name in ('q_proj', 'k_proj', 'v_proj', 'c_proj'):
    np.testing.assert_allclose(pool[name]['kernel'].std(), 512 ** -0.5, rtol=0.05)
    assert 0.8 < np.abs(pool[name]['bias']).max() * 512 ** 0.5 <= 1
  np.testing.assert_allclose(pool['positional_embedding'].std(), 512 ** -0.5, rtol=0.1)
  for stage in ('layer1', 'layer2', 'layer3', 'layer4'):
    for part in visual[stage].values():
      assert not part['conv3']['scale'].any() and (part['conv2']['scale'] == 1).all()
      kernel = part['conv2']['kernel']
      bound = (9 * kernel.shape[-2]) ** -0.5
      assert 0.95 * bound < np.abs(kernel).max() <= bound
      np.testing.assert_allclose(kernel.std(), bound / 3 ** 0.5, rtol=0.05)
    assert (visual[stage]['first']['downsample']['scale'] == 1).all()
  kernels = visual['layer2']['rest']['conv1']['kernel']
  assert np.abs(kernels[0] - kernels[1]).max() > 0.01, 'bottlenecks must differ'
  assert not visual['conv1']['mean'].any() and (visual['conv1']['var'] == 1).all()
