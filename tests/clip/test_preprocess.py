"""Image preprocessing: PIL's resizing, CLIP's statistics, and image modes that are refused."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip import preprocess

MEAN, STD = np.float32([0.48145466, 0.4578275, 0.40821073]), np.float32([0.26862954, 0.26130258, 0.27577711])


def noise(width, height, mode='RGB', seed=0):
  shape = (height, width, 3) if mode == 'RGB' else (height, width)
  return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def normalised(image):
  return (np.asarray(image, np.float32) / 255 - MEAN) / STD


@pytest.mark.parametrize('size', [(300, 200), (200, 300), (64, 64), (20, 31)])
def test_squash_is_pils_bicubic_to_both_sides(size):
  image = noise(*size)
  result = preprocess.image_transform('vit_l14_336', 64)(image)
  assert result.shape == (64, 64, 3)
  assert result.dtype == np.float32
  np.testing.assert_array_equal(result, normalised(image.resize((64, 64), Image.Resampling.BICUBIC)))


def test_squash_keeps_what_a_centre_crop_would_lose():
  pixels = np.zeros((100, 200, 3), np.uint8)
  pixels[:10, :20] = pixels[-10:, -20:] = 255
  squashed, cropped = (preprocess.image_transform('vit_b16', 50, mode)(Image.fromarray(pixels)) * STD + MEAN
                       for mode in ('squash', 'clip'))
  assert squashed[1, 1].min() > 0.9
  assert squashed[-2, -2].min() > 0.9
  assert cropped.max() < 0.1


def test_clip_resizes_the_shorter_side_and_crops_the_centre():
  image = noise(301, 200)
  resized = image.resize((75, 50), Image.Resampling.BICUBIC)  # int(50 * 301 / 200)
  expected = normalised(resized.crop((12, 0, 62, 50)))  # round(12.5) = 12
  np.testing.assert_array_equal(preprocess.image_transform('vit_b16', 50, 'clip')(image), expected)
  upright = preprocess.image_transform('vit_b16', 50, 'clip')(image.transpose(Image.Transpose.ROTATE_90))
  assert upright.shape == (50, 50, 3)


@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 40),
       mode=st.sampled_from(preprocess.MODES))
def test_any_image_gives_the_requested_size(width, height, size, mode):
  result = preprocess.image_transform('vit_b32', size, mode)(Image.new('RGB', (width, height), (255, 0, 51)))
  assert result.shape == (size, size, 3)
  np.testing.assert_allclose(result, np.broadcast_to((np.float32([1, 0, 0.2]) - MEAN) / STD, result.shape),
                             atol=1e-6)


def test_grey_is_three_equal_channels():
  image = noise(40, 30, 'L')
  result = preprocess.image_transform('vit_b16', 16)(image) * STD + MEAN
  np.testing.assert_allclose(result[..., 0], result[..., 2], atol=1e-6)
  np.testing.assert_allclose(result[..., 0], np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC)) / 255,
                             atol=1e-6)


def test_the_architecture_decides_mean_std_and_filter():
  arch = clip_lib.Arch('other', 8, clip_lib.Vision(20, 4, 8, 1, 1), clip_lib.Text(4, 9, 8, 1, 1), mean=(0., 0., 0.),
                   std=(1., 1., 1.), resize='bilinear')
  image = noise(33, 47)
  expected = np.asarray(image.resize((20, 20), Image.Resampling.BILINEAR), np.float32) / np.float32(255)
  np.testing.assert_array_equal(preprocess.image_transform(arch)(image), expected)


def test_the_transform_can_be_pickled():
  transform = preprocess.image_transform('vit_b16', 16)
  image = noise(20, 20)
  np.testing.assert_array_equal(pickle.loads(pickle.dumps(transform))(image), transform(image))


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P', 'CMYK', '1', 'I', 'F', 'I;16'])
def test_other_modes_are_refused(mode):
  with pytest.raises(ValueError, match=rf'mode {mode}; it must be RGB or L.*zsad_jax\.data'):
    preprocess.image_transform('vit_b16', 8)(Image.new(mode, (9, 9)))


def test_bad_arguments_are_refused():
  with pytest.raises(ValueError, match="mode='crop' is not one of squash, clip"):
    preprocess.image_transform('vit_b16', 8, 'crop')
  with pytest.raises(ValueError, match='image_size=0 must be at least 1'):
    preprocess.image_transform('vit_b16', 0)
  arch = clip_lib.Arch('other', 8, clip_lib.Vision(20, 4, 8, 1, 1), clip_lib.Text(4, 9, 8, 1, 1), resize='nearest')
  with pytest.raises(ValueError, match="resize='nearest' of other is not one of bicubic, bilinear"):
    preprocess.image_transform(arch)
