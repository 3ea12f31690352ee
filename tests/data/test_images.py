import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from medical_sets import colour_tiff
from PIL import Image
from small_sets import picture

from zsad_jax.data import images
from zsad_jax.data.images import BadImage, Rules


def save(path, image, **options):
  image.save(path, **options)
  return path


def noise(shape, dtype=np.uint8, seed=0):
  return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def png(width, height, colour_type, depth, rows):
  """A PNG of any bit depth, which Pillow cannot write."""
  def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
  head = struct.pack('>IIBBBBB', width, height, depth, colour_type, 0, 0, 0)
  body = zlib.compress(b''.join(b'\0' + row for row in rows))
  return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', body) + chunk(b'IEND', b'')


@pytest.mark.parametrize('suffix,mode', [('png', 'RGB'), ('jpg', 'RGB'), ('png', 'L'), ('jpg', 'L')])
def test_plain_files_are_stored_byte_for_byte(tmp_path, suffix, mode):
  path = save(tmp_path / f'a.{suffix}', Image.fromarray(noise((9, 7, 3))).convert(mode))
  stored = images.encode(path)
  assert stored == (path.read_bytes(), (7, 9), '')
  expected = np.asarray(Image.open(path).convert('RGB'))
  np.testing.assert_array_equal(np.asarray(images.decode_rgb(stored.data, 'a')), expected)


@pytest.mark.parametrize('suffix', ['bmp', 'tif', 'tiff', 'webp'])
def test_other_containers_become_png_with_the_same_pixels(tmp_path, suffix):
  options = {'lossless': True} if suffix == 'webp' else {}
  pixels = noise((9, 7, 3))
  path = save(tmp_path / f'a.{suffix}', Image.fromarray(pixels), **options)
  stored = images.encode(path)
  assert Image.open(io.BytesIO(stored.data)).format == 'PNG' and 'PNG' in stored.note
  np.testing.assert_array_equal(np.asarray(images.decode_rgb(stored.data, 'a')), pixels)


def both(path, rules=images.DEFAULT_RULES):
  """The pixels for prediction, after checking that a prepared data set has the same."""
  direct = np.asarray(images.read_rgb(path, rules))
  np.testing.assert_array_equal(np.asarray(images.decode_rgb(images.encode(path, rules).data, 'a')), direct)
  assert direct.dtype == np.uint8 and direct.shape[2] == 3
  return direct


@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_16_bit_grey_spans_the_full_range(tmp_path, suffix):
  values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
  path = save(tmp_path / f'a.{suffix}', Image.fromarray(values))
  np.testing.assert_array_equal(both(path)[0, :, 0], [0, 0, 1, 128, 255])
  assert '16 bit' in images.encode(path).note


def test_16_bit_colour_follows_the_same_rule_and_is_not_passed_through(tmp_path):
  path = tmp_path / 'a.png'
  path.write_bytes(png(2, 1, 2, 16, [struct.pack('>6H', 0, 256, 65535, 255, 32768, 511)]))
  np.testing.assert_array_equal(both(path)[0], [[0, 1, 255], [0, 128, 1]])
  assert images.encode(path).data != path.read_bytes()


@pytest.mark.parametrize('depth,expected', [(1, [0, 255]), (2, [0, 85, 170, 255]), (4, [0, 17, 34, 255])])
def test_fewer_than_8_bits_are_scaled_to_the_full_range(tmp_path, depth, expected):
  row = {1: bytes([0b01000000]), 2: bytes([0b00011011]), 4: bytes([0x01, 0x2f])}[depth]
  path = tmp_path / 'a.png'
  path.write_bytes(png(len(expected), 1, 0, depth, [row]))
  np.testing.assert_array_equal(both(path)[0, :, 0], expected)
  assert images.encode(path).data != path.read_bytes()


@pytest.mark.parametrize('mode', ['RGBA', 'LA'])
def test_transparency_shows_the_background_not_the_hidden_colour(tmp_path, mode):
  image = Image.fromarray(np.full((2, 2), 90, np.uint8)).convert('RGBA')
  image.putpixel((0, 0), (90, 90, 90, 0))
  image = image.convert(mode)
  path = save(tmp_path / 'a.png', image)
  assert Image.open(path).mode == mode
  assert both(path)[0, 0].tolist() == [255, 255, 255]
  assert both(path, Rules(background=(0, 7, 0)))[0, 0].tolist() == [0, 7, 0]
  assert both(path, Rules(background=None))[0, 0].tolist() == [90, 90, 90]
  assert both(path)[1, 1].tolist() == [90, 90, 90]


def test_half_transparent_pixels_mix(tmp_path):
  path = save(tmp_path / 'a.png', Image.new('RGBA', (1, 1), (0, 100, 200, 128)))
  np.testing.assert_allclose(both(path)[0, 0], [127, 177, 227], atol=1)


def test_a_transparent_colour_key_counts_as_transparency(tmp_path):
  path = save(tmp_path / 'a.png', Image.new('RGB', (2, 1), (9, 9, 9)), transparency=(9, 9, 9))
  assert both(path)[0, 0].tolist() == [255, 255, 255]
  assert 'alpha' in images.encode(path).note


def test_palette_shows_its_colours(tmp_path):
  image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert('P')
  image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
  path = save(tmp_path / 'a.png', image)
  assert Image.open(path).mode == 'P'
  np.testing.assert_array_equal(both(path)[0], [[10, 20, 30], [40, 50, 60], [70, 80, 90]])


def test_palette_with_transparency(tmp_path):
  image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert('P')
  image.putpalette([10, 20, 30, 40, 50, 60])
  path = save(tmp_path / 'a.png', image, transparency=1)
  np.testing.assert_array_equal(both(path)[0], [[10, 20, 30], [255, 255, 255]])


def test_cmyk_jpeg_becomes_rgb(tmp_path):
  path = save(tmp_path / 'a.jpg', Image.new('CMYK', (8, 8), (0, 255, 255, 0)), quality=100)
  assert Image.open(path).mode == 'CMYK'
  np.testing.assert_allclose(both(path)[4, 4], [255, 0, 0], atol=3)


@pytest.mark.parametrize('values', [np.float32([[0.5]]), np.int32([[70000]])])
def test_32_bit_pixels_are_refused(tmp_path, values):
  path = save(tmp_path / 'a.tif', Image.fromarray(values))
  with pytest.raises(BadImage, match=r'a\.tif: pixels are 32-bit .* Save the image with 8 or 16 bits'):
    images.encode(path)


@pytest.fixture
def mislabelled(tmp_path):
  """A colour TIFF that declares its three samples greyscale, and its pixels."""
  pixels = noise((9, 7, 3))
  path = tmp_path / 'a.tif'
  path.write_bytes(colour_tiff(pixels))
  return path, pixels


def test_a_colour_tiff_declared_greyscale_is_read_as_colour(mislabelled):
  path, pixels = mislabelled
  with pytest.raises(Image.UnidentifiedImageError):
    Image.open(path)
  np.testing.assert_array_equal(both(path), pixels)
  assert images.encode(path).note == 'TIFF with three colour samples declared greyscale stored as PNG'
  assert (images.read_mask(path, 127) == (np.asarray(Image.fromarray(pixels).convert('L')) > 127)).all()


def test_three_equal_samples_are_noted(tmp_path):
  path = tmp_path / 'a.tif'
  path.write_bytes(colour_tiff(np.repeat(noise((9, 7, 1)), 3, 2)))
  assert 'three equal samples' in images.encode(path).note


def test_a_tiff_declared_rgb_is_read_as_usual(tmp_path):
  pixels = noise((9, 7, 3))
  path = tmp_path / 'a.tif'
  path.write_bytes(colour_tiff(pixels, photometric=2))
  np.testing.assert_array_equal(both(path), pixels)
  assert images.encode(path).note == 'TIFF stored as PNG'


@settings(deadline=None, max_examples=30)
@given(cut=st.integers(1, 300))
def test_a_truncated_mislabelled_tiff_never_becomes_another_image(tmp_path_factory, cut):
  content = colour_tiff(noise((9, 7, 3)))
  path = tmp_path_factory.mktemp('cut') / 'a.tif'
  path.write_bytes(content[:-cut])
  if cut <= 4:                                   # where a second page would be; all of this one is there
    np.testing.assert_array_equal(both(path), noise((9, 7, 3)))
    return
  with pytest.raises(BadImage, match=r'a\.tif'):
    images.encode(path)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_flipped_bytes_of_a_mislabelled_tiff_raise_only_bad_image(tmp_path_factory, data):
  content = bytearray(colour_tiff(noise((9, 7, 3))))
  path = tmp_path_factory.mktemp('flip') / 'a.tif'
  for _ in range(3):                             # header and directory lie before and after the 189 bytes of pixels
    place = data.draw(st.integers(0, len(content) - 190))
    content[place + 189 * (place >= 16)] = data.draw(st.integers(0, 255))
  path.write_bytes(bytes(content))
  try:
    images.encode(path)
  except BadImage as e:
    assert str(path) in str(e)


def test_a_huge_mislabelled_tiff_is_refused(mislabelled, monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 31)
  with pytest.raises(BadImage, match=r'a\.tif: refused as a decompression bomb \(63 pixels\)'):
    images.encode(mislabelled[0])
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 32)
  images.encode(mislabelled[0])


def rotated(path, image, orientation=6):
  """A file whose EXIF tag says: turn me by 90 degrees to see me upright."""
  exif = Image.Exif()
  exif[0x0112] = orientation
  return save(path, image, exif=exif)


@pytest.mark.parametrize('name', ['a.jpg', 'a.png'])
def test_exif_orientation_is_ignored_unless_applied(tmp_path, name):
  path = rotated(tmp_path / name, picture((0, 0, 10, 5)))
  stored = images.encode(path)
  assert stored.size == (30, 18) and stored.data == path.read_bytes()
  assert 'ignored' in stored.note
  np.testing.assert_array_equal(both(path).shape, (18, 30, 3))
  upright = both(path, Rules(exif='apply'))
  np.testing.assert_array_equal(upright, np.rot90(both(path), -1))
  assert images.encode(path, Rules(exif='apply')).size == (18, 30)


def test_exif_rules_apply_to_masks_too(tmp_path):
  path = rotated(tmp_path / 'm.png', picture((0, 0, 10, 5), mode='L'))
  plain = images.read_mask(path, 0)
  np.testing.assert_array_equal(images.read_mask(path, 0, Rules(exif='apply')), np.rot90(plain, -1))


def test_an_upright_orientation_tag_changes_nothing(tmp_path):
  path = rotated(tmp_path / 'a.jpg', picture(), orientation=1)
  assert images.encode(path, Rules(exif='apply')).data == path.read_bytes()
  assert images.encode(path).note == ''


def test_damaged_exif_does_not_cost_the_image(tmp_path):
  path = save(tmp_path / 'a.jpg', picture(), exif=b'Exif\0\0nonsense')
  assert images.encode(path, Rules(exif='apply')).size == (30, 18)


@pytest.mark.parametrize('content,reason', [
  (b'', 'empty'), (b'<html>not found</html>', 'not an image'), (b'\x89PNG\r\n\x1a\n', 'damaged')])
def test_files_without_an_image_are_refused(tmp_path, content, reason):
  path = tmp_path / 'a.png'
  path.write_bytes(content)
  for read in (images.encode, images.read_rgb, lambda p: images.read_mask(p, 0)):
    with pytest.raises(BadImage, match=reason) as e:
      read(path)
    assert str(path) in str(e.value)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'gone\.png'):
    images.encode(tmp_path / 'gone.png')


@settings(deadline=None, max_examples=40)
@given(fraction=st.floats(0.02, 0.9), suffix=st.sampled_from(['png', 'jpg', 'tif', 'bmp', 'webp']))
def test_truncated_files_never_become_images(tmp_path_factory, fraction, suffix):
  path = tmp_path_factory.mktemp('cut') / f'a.{suffix}'
  Image.fromarray(noise((40, 40, 3))).save(path)
  data = path.read_bytes()
  path.write_bytes(data[:int(len(data) * fraction)])
  with pytest.raises(BadImage, match=rf'a\.{suffix}'):
    images.encode(path)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), suffix=st.sampled_from(['png', 'jpg', 'tif', 'bmp', 'webp']))
def test_flipped_bytes_raise_only_bad_image(tmp_path_factory, data, suffix):
  path = tmp_path_factory.mktemp('flip') / f'a.{suffix}'
  Image.fromarray(noise((12, 12, 3))).save(path)
  damaged = bytearray(path.read_bytes())
  for _ in range(3):
    damaged[data.draw(st.integers(0, min(80, len(damaged) - 1)))] = data.draw(st.integers(0, 255))
  path.write_bytes(bytes(damaged))
  try:
    images.encode(path)
    images.read_mask(path, 0)
  except BadImage as e:
    assert str(path) in str(e)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
  path = save(tmp_path / 'a.png', Image.new('L', (100, 100)))
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
  with pytest.raises(BadImage, match=r'a\.png: refused as a decompression bomb .*MAX_IMAGE_PIXELS'):
    images.encode(path)


@pytest.mark.parametrize('rules,field', [
  (Rules(exif='auto'), 'exif'), (Rules(background=(1, 2)), 'background'), (Rules(background=(0, 0, 256)), '256')])
def test_rules_out_of_range_are_refused(rules, field):
  with pytest.raises(ValueError, match=field):
    images.check_rules(rules)


BLOCK = np.asarray(picture((3, 2, 9, 8), mode='L')) > 0


@pytest.mark.parametrize('make', [
  lambda b: Image.fromarray(b.astype(np.uint8) * np.uint8(255)),
  lambda b: Image.fromarray(b.astype(np.uint8)),
  lambda b: Image.fromarray(b.astype(np.uint8) * np.uint8(3)),
  lambda b: Image.fromarray(b.astype(np.uint16)),
  lambda b: Image.fromarray(b.astype(np.uint8) * np.uint8(255)).convert('1'),
  lambda b: Image.fromarray(b.astype(np.uint8) * np.uint8(255)).convert('RGB'),
  lambda b: Image.fromarray(b.astype(np.uint8) * np.uint8(255)).convert('RGBA'),
  lambda b: Image.fromarray(b.astype(np.uint8) * np.uint8(255)).convert('P'),
], ids=['0-255', '0-1', 'index 3', '16 bit 0-1', '1 bit', 'RGB', 'RGBA', 'palette'])
def test_all_mask_formats_read_the_same(tmp_path, make):
  path = save(tmp_path / 'm.png', make(BLOCK))
  np.testing.assert_array_equal(images.read_mask(path, 0), BLOCK)


def test_mask_threshold_is_on_the_8_bit_scale(tmp_path):
  grey = save(tmp_path / 'a.png', Image.fromarray(np.array([[126, 127, 128]], np.uint8)))
  np.testing.assert_array_equal(images.read_mask(grey, 127), [[False, False, True]])
  deep = save(tmp_path / 'b.png', Image.fromarray(np.array([[126, 127, 128]], np.uint16) * np.uint16(257)))
  np.testing.assert_array_equal(images.read_mask(deep, 127), [[False, False, True]])


@given(seed=st.integers(0, 99), width=st.integers(1, 9), height=st.integers(1, 9))
@settings(deadline=None, max_examples=20)
def test_mask_round_trip(seed, width, height):
  mask = noise((height, width), seed=seed) > 127
  decoded = images.decode_mask(images.encode_mask(mask), 'm')
  assert decoded.dtype == np.uint8 and decoded.shape == mask.shape
  np.testing.assert_array_equal(decoded, mask * np.uint8(255))


def test_empty_mask_has_the_image_size_and_no_pixel():
  mask = images.decode_mask(images.empty_mask((30, 18)), 'm')
  assert mask.shape == (18, 30) and not mask.any()
