"""The encoder: predicted sizes, crops, independence of the rows of a batch, and specs that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image, ImageOps

from zsad_jax.clip import encoder, preprocess, vit
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import FeatureSpec, SideStream, Tap

ARCH = clip_lib.Arch('small', 12, clip_lib.Vision(32, 8, 16, 4, 2), clip_lib.Text(8, 9, 8, 2, 2))
SIDES = (SideStream('vv', 'vv', 2), SideStream('qq', 'qq', 3, residual_base=False))
SPEC = FeatureSpec(48, taps=(Tap('vv', 4), Tap('qq', 3), Tap('clip', 2, 'attention')), sides=SIDES)
WINDOWS = FeatureSpec(48, cls='ln_post_proj', windows=(2, 3))


@pytest.fixture(scope='module')
def small():
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape, np.float32), clip_lib.template(ARCH))
  return clip_lib.build(ARCH, params, image_size=48)


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(1).standard_normal((8, 48, 48, 3)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize('spec', [
    SPEC, SPEC._replace(cls=''), SPEC._replace(read='none'), SPEC._replace(taps=()),
    SPEC._replace(cls='ln_post_proj', read='ln_post'), SPEC._replace(windows=(3, 1))])
def test_shapes_and_bytes_are_predicted(small, images, spec):
  out = jax.eval_shape(encoder.encode(small, spec), small.params, images)
  assert jax.tree.map(lambda x: x.shape[1:], out) == encoder.features_shape(small, spec)
  stored = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(out)) // len(images)
  assert encoder.predicted_bytes(small, spec) == stored
  assert encoder.predicted_bytes(small, spec, jnp.bfloat16) == stored // 2


@pytest.mark.slow
@pytest.mark.parametrize('cls', ['proj', 'ln_post_proj'])
def test_shape_and_bytes_of_crops_are_predicted(small, cls):
  spec = SPEC._replace(cls=cls, crops=54)
  out = jax.eval_shape(encoder.encode_crops(small, spec), small.params, np.zeros((8, 54, 54, 3), np.float32))
  assert jax.tree.map(lambda x: x.shape, out) == (None, {}, {}, (8, 10, 12))
  assert encoder.features_shape(small, spec) == encoder.features_shape(small, SPEC._replace(cls=cls))._replace(
    crops=(10, 12))
  plain = encoder.predicted_bytes(small, spec._replace(crops=0))
  assert encoder.predicted_bytes(small, spec) == plain + 4 * 10 * 12


def pillow_crops(image, size):
  """Returns the corners and the centre, row-major, then their mirror images, cropped by Pillow."""
  end, centre = image.width - size, round((image.width - size) / 2)
  crops = [image.crop((x, y, x + size, y + size)) for x, y in
         ((0, 0), (end, 0), (0, end), (end, end), (centre, centre))]
  return crops + [ImageOps.mirror(crop) for crop in crops]


@pytest.mark.slow
@pytest.mark.parametrize('side', [48, 53, 80])
def test_crops_equal_those_of_pillow(small, side):
  pictures = [Image.fromarray(x) for x in np.random.default_rng(side).integers(0, 256, (2, 70, 90, 3), np.uint8)]
  larger = np.stack([preprocess.image_transform(ARCH, side)(picture) for picture in pictures])
  features = encoder.encode_crops(small, SPEC._replace(cls='ln_post_proj', crops=side))(small.params, larger)
  assert features.cls is None and features.taps == {}
  normalise = preprocess.image_transform(ARCH, 48)  # the crops have this size already
  resized = [picture.resize((side, side), Image.Resampling.BICUBIC) for picture in pictures]
  crops = np.stack([normalise(crop) for picture in resized for crop in pillow_crops(picture, 48)])
  whole = encoder.encode(small, FeatureSpec(48, cls='ln_post_proj'))
  want = np.asarray(whole(small.params, crops).cls).reshape(2, 10, 12)
  np.testing.assert_allclose(features.crops, want, atol=2e-5)
  apart = np.abs(want[:, :, None] - want[:, None]).max(-1) > 1e-3  # [2, 10, 10]: all, or the two mirror images
  assert apart.sum((1, 2)).tolist() == [90 if side > 48 else 50] * 2


@pytest.mark.slow
def test_crops_of_a_mirror_image_change_places(small):
  image = np.random.default_rng(3).standard_normal((1, 54, 54, 3)).astype(np.float32)
  both = np.concatenate([image, image[:, :, ::-1], (image + image[:, :, ::-1]) / 2])
  one, other, symmetric = np.asarray(encoder.encode_crops(small, SPEC._replace(crops=54))(small.params, both).crops)
  np.testing.assert_allclose(other, one[[6, 5, 8, 7, 9, 1, 0, 3, 2, 4]], atol=1e-5)
  np.testing.assert_allclose(symmetric[:5], symmetric[[6, 5, 8, 7, 9]], atol=1e-5)
  assert np.abs(one[:5] - one[[6, 5, 8, 7, 9]]).max() > 1e-3


@pytest.mark.slow
def test_crops_need_the_memory_of_one_pass(small):
  def size(encode, side):
    images = jax.ShapeDtypeStruct((16, side, side, 3), np.float32)
    return encode.lower(small.params, images).compile().memory_analysis().temp_size_in_bytes

  crops, whole = encoder.encode_crops(small, FeatureSpec(48, crops=54)), encoder.encode(small, FeatureSpec(48))
  assert size(crops, 54) < 1.5 * size(whole, 48)


def test_published_size_in_bytes():
  """MVTec AD's 1725 images at one layer of ViT-L/14-336 take about 6.8 GiB."""
  big = clip_lib.Clip(clip_lib.ARCHS['vit_l14_336'], 518, params=None)
  spec = FeatureSpec(518, taps=(Tap('vv', 24),), sides=(SideStream('vv'),))
  assert encoder.predicted_bytes(big, spec) == 4 * (768 + 1369 * 768)
  plus = clip_lib.Clip(clip_lib.ARCHS['vit_b16_plus_240'], 240, params=None)
  assert encoder.predicted_bytes(plus, WINDOWS._replace(image_size=240)) == 4 * 640 * (1 + 196 + 169)


@pytest.mark.slow
def test_other_rows_of_the_batch_do_not_matter(small, images):
  encode = encoder.encode(small, SPEC)
  whole = encode(small.params, images)
  for rows in ([0], [5, 2, 7]):
    part = encode(small.params, images[rows])
    for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(whole)):
      np.testing.assert_allclose(a, np.asarray(b)[rows], atol=1e-5)


@pytest.mark.devices8
@pytest.mark.parametrize('spec', [SPEC, WINDOWS._replace(windows=(3,))], ids=['taps', 'windows'])
def test_one_device_or_eight(small, images, spec, monkeypatch):
  monkeypatch.setattr(vit, '_WINDOW_TOKENS_CPU', 300)  # several passes over the windows
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  params = jax.device_put(small.params, NamedSharding(mesh, P()))
  encode = encoder.encode(small, spec)
  split = encode(params, jax.device_put(images, NamedSharding(mesh, P('data'))))
  assert all(leaf.sharding.spec[0] == 'data' for leaf in jax.tree.leaves(split))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), split, encode(small.params, images))


@pytest.mark.devices8
def test_crops_on_one_device_or_eight(small):
  images = np.random.default_rng(4).standard_normal((8, 54, 54, 3)).astype(np.float32)
  mesh = jax.make_mesh((8,), ('data',), axis_types=(AxisType.Auto,))
  params = jax.device_put(small.params, NamedSharding(mesh, P()))
  encode = encoder.encode_crops(small, SPEC._replace(crops=54))
  split = encode(params, jax.device_put(images, NamedSharding(mesh, P('data')))).crops
  assert split.sharding.spec[0] == 'data'
  np.testing.assert_allclose(split, encode(small.params, images).crops, atol=1e-5)


@pytest.mark.slow
def test_weights_are_arguments(small, images):
  """A compiled encoder uses the weights of its argument and has none of its own."""
  encode = encoder.encode(small, SPEC)
  lines = encode.lower(small.params, images).as_text().splitlines()
  assert max(map(len, lines)) < 5000, 'a captured array would be one long line'
  zeros = encode(jax.tree.map(np.zeros_like, small.params), images)
  assert not any(leaf.any() for leaf in jax.tree.leaves(zeros))


@pytest.mark.slow
def test_bfloat16_weights_give_bfloat16_features(small, images):
  """Tolerance of bfloat16: cosine 0.995 with the float32 features."""
  half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), small.params)
  encode = encoder.encode(small, SPEC)
  for a, b in zip(jax.tree.leaves(encode(half, images)), jax.tree.leaves(encode(small.params, images))):
    assert a.dtype == jnp.bfloat16
    a = np.asarray(a, np.float32)
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert cosine.min() > 0.995


@pytest.mark.parametrize('spec, message', [
    (SPEC._replace(image_size=50), r'spec\.image_size=50 .*patch size 8; use 48 or 56'),
    (SPEC._replace(image_size=0), r'spec\.image_size=0 .*use 8'),
    (SPEC._replace(cls='mean'), r"spec\.cls='mean' is not one of proj, ln_post_proj, ''"),
    (SPEC._replace(read='pre'), r"spec\.read='pre' is not one of"),
    (SPEC._replace(positions='nearest'), r"spec\.positions='nearest' is not one of"),
    (SPEC._replace(taps=(Tap('vv', 5),)), r'spec\.taps\[0\]\.block=5 .*\[1, 4\]'),
    (SPEC._replace(taps=(Tap('clip', 1), Tap('clip', 0))), r'spec\.taps\[1\]\.block=0 .*\[1, 4\]'),
    (SPEC._replace(taps=(Tap('kk', 3),)), r"spec\.taps\[0\]\.stream='kk' is not one of clip, vv, qq"),
    (SPEC._replace(taps=(Tap('vv', 3, 'mlp'),)), r"spec\.taps\[0\]\.point='mlp' is not one of"),
    (SPEC._replace(taps=(Tap('vv', 3), Tap('vv', 3))), r'spec\.taps .*twice'),
    (SPEC._replace(sides=(SIDES[0], SIDES[0])), r"spec\.sides\[0\]\.name='vv' is taken"),
    (SPEC._replace(sides=(SideStream('clip'),)), r"spec\.sides\[0\]\.name='clip' is taken"),
    (SPEC._replace(sides=(SideStream('vv', 'kq'),)), r"spec\.sides\[0\]\.mode='kq' is not one of"),
    (SPEC._replace(sides=(SideStream('vv'),)), r'spec\.sides\[0\]\.first_block=6 .*\[1, 4\]'),
    (SPEC._replace(sides=(SideStream('vv', first_block=0),)), r'spec\.sides\[0\]\.first_block=0 .*\[1, 4\]'),
    (SPEC._replace(sides=(SideStream('vv', first_block=1, reset_every=-1),)), r'spec\.sides\[0\]\.reset_every=-1'),
    (SPEC._replace(windows=(2, 7)), r'spec\.windows\[1\]=7 .*\[1, 6\]'),
    (SPEC._replace(windows=(0,)), r'spec\.windows\[0\]=0 .*\[1, 6\]'),
    (SPEC._replace(windows=(2, 2)), r'spec\.windows=\(2, 2\) .*twice'),
])
def test_bad_specs_are_refused_before_anything_runs(small, spec, message):
  shell = clip_lib.Clip(ARCH, 48, params=None)
  for refuse in (encoder.validate, encoder.encode, encoder.features_shape, encoder.predicted_bytes):
    with pytest.raises(ValueError, match=message):
      refuse(shell, spec)
  with pytest.raises(ValueError, match=message):
    small.image(small.params, np.zeros((1, spec.image_size, spec.image_size, 3), np.float32), spec)


@pytest.mark.parametrize('spec, message', [
    (SPEC._replace(crops=40), r'spec\.crops=40 .*spec\.image_size=48'), (SPEC._replace(crops=-54), r'spec\.crops=-54'),
    (SPEC._replace(crops=54, cls=''), r"spec\.crops=54 needs class tokens, but spec\.cls is ''")])
def test_bad_crops_are_refused_before_anything_runs(spec, message):
  shell = clip_lib.Clip(ARCH, 48, params=None)
  for refuse in (encoder.validate, encoder.encode, encoder.encode_crops, encoder.features_shape):
    with pytest.raises(ValueError, match=message):
      refuse(shell, spec)


def test_crops_of_another_image_or_none_are_refused(small):
  with pytest.raises(ValueError, match=r'spec\.crops=0'):
    encoder.encode_crops(small, SPEC)
  with pytest.raises(ValueError, match=r'\(2, 48, 48, 3\); spec\.crops=54 needs \[B, 54, 54, 3\]'):
    encoder.encode_crops(small, SPEC._replace(crops=54))(small.params, np.zeros((2, 48, 48, 3), np.float32))
