"""Bad files, wrong folders and unusual names: what data.load and data.verify do about each, and what they report."""

import unicodedata
import zipfile

import numpy as np
import pytest
from drawn_folders import draw
from PIL import ExifTags, Image

from zsad_jax import data, metrics
from zsad_jax.clip.weights import convert
from zsad_jax.data import images, protocol
from zsad_jax.report import html_page

COLOUR = {'bolt': (40, 100, 40)}


@pytest.fixture
def photos(tmp_path):
  """A folder in MVTec layout with one category: two normal and two anomalous test images."""
  return draw(tmp_path / 'photos', COLOUR, images=2, size=40)


@pytest.fixture
def load(tmp_path, photos):
  return lambda **options: data.load(f'folder:{photos}', root=tmp_path / 'data', **options)


def jpeg(path):
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(path, 'JPEG')
  return path.read_bytes()


@pytest.mark.parametrize(('content', 'reason'), [
  (None, 'truncated'), (b'', 'empty'), (b'<html>not found</html>', 'not an image'),
], ids=['truncated', 'empty', 'text'])
def test_a_damaged_image_is_an_error_or_left_out_and_counted(photos, load, content, reason):
  (photos / 'bolt/test/good/000.png').unlink()
  bad = photos / 'bolt/test/good/000.jpg'
  whole = jpeg(bad)
  bad.write_bytes(whole[:len(whole) // 2] if content is None else content)
  with pytest.raises(ValueError) as error:
    load()
  assert str(bad) in str(error.value) and reason in str(error.value)
  rest = load(on_bad='skip')
  assert rest.skipped == ['bolt/test/good/000'] and len(rest) == 3
  assert any('1 of 4 images' in note and 'bolt/test/good/000' in note for note in rest.notes)
  assert all(np.asarray(rest[i]['image']).max() > 40 for i in range(3))  # none is black


def test_every_colour_mode_has_one_conversion(tmp_path):
  """Transparent pixels are white, whatever colour they hide; the same pixels are prepared and predicted."""
  hidden = Image.new('RGBA', (8, 8), (200, 0, 0, 0))
  pictures = {'RGBA': hidden, 'LA': hidden.convert('LA'), 'P': Image.new('P', (8, 8)),
              'L': Image.new('L', (8, 8), 77), 'CMYK': Image.new('CMYK', (8, 8), (0, 255, 255, 0))}
  pictures['P'].putpalette([10, 20, 30] * 256)
  expected = {'RGBA': (255,) * 3, 'LA': (255,) * 3, 'P': (10, 20, 30), 'L': (77,) * 3, 'CMYK': (255, 0, 0)}
  for mode, picture in pictures.items():
    path = tmp_path / f'{mode}.{"tif" if mode == "CMYK" else "png"}'
    picture.save(path)
    read = images.read_rgb(path)
    assert read.mode == 'RGB' and read.getpixel((3, 3)) == expected[mode], mode
    prepared = images.decode_rgb(images.encode(path).data, path)
    np.testing.assert_array_equal(np.asarray(prepared), np.asarray(read), err_msg=mode)


@pytest.mark.parametrize('suffix', ['.png', '.tiff'])
def test_16_bit_images_keep_their_range(tmp_path, suffix):
  ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
  Image.fromarray(ramp).save(tmp_path / f'ramp{suffix}')
  np.testing.assert_array_equal(np.asarray(images.read_rgb(tmp_path / f'ramp{suffix}'))[..., 0], ramp // 256)
  Image.fromarray(ramp.astype(np.int32)).save(tmp_path / 'wide.tiff')
  with pytest.raises(images.BadImage, match=r'wide\.tiff: .*32-bit'):
    images.read_rgb(tmp_path / 'wide.tiff')


def test_a_mask_drawn_on_the_upright_photo_needs_exif_apply(photos, tmp_path):
  """A photo stored on its side, with a mask drawn on what a viewer shows: an error as stored, right if rotated."""
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6
  pixels = np.full((24, 40, 3), 90, np.uint8)
  pixels[2:8, 5:20] = 255
  (photos / 'bolt/test/spot/000.png').unlink()
  Image.fromarray(pixels).save(photos / 'bolt/test/spot/000.jpg', quality=95, exif=exif)
  upright = np.rot90(pixels[..., 0] == 255, -1)
  Image.fromarray(upright.astype(np.uint8) * 255).save(photos / 'bolt/ground_truth/spot/000_mask.png')
  with pytest.raises(ValueError, match=r'40x24 .*mask .*24x40.*exif=.apply'):
    data.load(f'folder:{photos}', root=tmp_path / 'data')
  rotated = data.load(f'folder:{photos}', root=tmp_path / 'data', rules=images.Rules(exif='apply'))
  record = rotated[rotated.ids.index('bolt/test/spot/000')]
  assert record['image'].size == (24, 40)
  np.testing.assert_array_equal(record['mask'] > 0, upright)
  assert np.asarray(record['image'])[upright].min() > 200


def test_masks_are_read_whatever_their_values_and_never_resized_or_invented(photos, load, tmp_path):
  defect = np.zeros((40, 40), np.uint8)
  defect[3:9, 4:20] = 1
  palette = Image.fromarray(defect).convert('P')
  palette.putpalette([0, 0, 0, 200, 0, 0] + [0] * 762)
  soft = Image.fromarray(defect * np.uint8(9))
  for picture in (Image.fromarray(defect), Image.fromarray(defect * np.uint8(255)), soft, palette):
    path = tmp_path / 'mask.png'
    picture.save(path)
    np.testing.assert_array_equal(images.read_mask(path, 0), defect > 0)
  mask = photos / 'bolt/ground_truth/spot/001_mask.png'
  Image.fromarray(defect[:20]).save(mask)
  with pytest.raises(ValueError, match=rf'001\.png .*40x40 .*{mask} .*40x20'):
    load()
  mask.unlink()
  with pytest.raises(ValueError, match=rf'bolt/test/spot/001\.png: no mask .*{mask.stem}'):
    load()


def test_an_empty_mask_of_an_anomalous_image_is_an_error_for_verify_and_a_note_for_load(photos, load):
  Image.new('L', (40, 40)).save(photos / 'bolt/ground_truth/spot/000_mask.png')
  report = data.verify(f'folder:{photos}')
  assert not report.ok
  image = f'{photos}/bolt/test/spot/000.png'
  assert any(image in problem and 'all-zero mask' in problem for problem in report.problems)
  assert any('all-zero mask' in note and 'bolt/test/spot/000' in note for note in load().notes)


def test_a_web_page_or_half_a_zip_in_place_of_weights_is_refused_and_nothing_is_extracted(tmp_path):
  target = tmp_path / 'weights.safetensors'
  (tmp_path / 'page.pt').write_text('<html>quota exceeded</html>')
  with zipfile.ZipFile(tmp_path / 'climbing.pt', 'w') as archive:
    archive.writestr('../../escaped', 'x')
  with zipfile.ZipFile(tmp_path / 'half.pt', 'w') as archive:
    archive.writestr('model/data.pkl', bytes(1000))
  (tmp_path / 'half.pt').write_bytes((tmp_path / 'half.pt').read_bytes()[:500])
  before = sorted(tmp_path.rglob('*'))
  for name in ('page.pt', 'climbing.pt', 'half.pt'):
    with pytest.raises(ValueError, match=name):
      convert.convert(tmp_path / name, target)
  assert sorted(tmp_path.rglob('*')) == before and not (tmp_path.parent / 'escaped').exists()


def test_a_table_cannot_name_files_outside_its_folder(photos, tmp_path):
  secret = tmp_path / 'secret.png'
  Image.new('RGB', (8, 8)).save(secret)
  for path in ('../secret.png', str(secret), 'bolt/../../secret.png'):
    (photos / 'table.csv').write_text(f'image,label\nbolt/test/good/000.png,0\n{path},1\n')
    with pytest.raises(ValueError, match=r'line 3: .*secret\.png .*outside'):
      data.load(f'csv:{photos}/table.csv', root=tmp_path / 'data')


def test_missing_misspelt_and_incomplete_folders_are_explained(photos, tmp_path):
  with pytest.raises(FileNotFoundError, match='gone'):
    data.load(f'folder:{tmp_path}/gone', root=tmp_path / 'data')
  manual = tmp_path / 'manual'
  draw(manual / 'MVTec_AD', {'bottle': (90, 90, 90)}, images=1, size=24)
  assert 'letter case' in str(data.verify('mvtec_ad', manual))
  (manual / 'MVTec_AD').rename(manual / 'mvtec_ad')
  problems = data.verify('mvtec_ad', manual, decode=False).problems
  assert any('bottle' in problem and '209' in problem for problem in problems)
  assert any('cable' in problem and all(count in problem for count in ('224', '58', '92')) for problem in problems)
  (photos / 'bolt/test').rename(photos / 'bolt/Test')
  assert 'folder is missing' in '\n'.join(data.verify(f'folder:{photos}').problems)


def test_swapped_train_and_test_folders_do_not_verify(photos):
  bolt = photos / 'bolt'
  (bolt / 'train').rename(bolt / 'swap')
  (bolt / 'test').rename(bolt / 'train')
  (bolt / 'swap').rename(bolt / 'test')
  assert any('masks' in line and 'without images' in line for line in data.verify(f'folder:{photos}').problems)


def test_names_in_any_script_and_of_any_length_are_read(photos, load):
  good = photos / 'bolt/test/good'
  long = 'ü' * 100 + '-' + 'x' * 20
  names = ['螺栓 1', 'Größe', long, 'a&b <i>', 'käfig']
  for number, name in enumerate(names):
    Image.new('RGB', (8, 8), (number, 90, 90)).save(good / f'{name}.png')
  (good / 'käfig.png').rename(good / f'{unicodedata.normalize("NFD", "käfig")}.png')  # as a Mac writes it
  ids = load().ids
  assert {f'bolt/test/good/{name}' for name in names} <= set(ids) and len(ids) == 9


def test_decompression_bombs_are_refused(photos, load, monkeypatch):
  monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 700)  # an image of 40 x 40 has more than twice as many
  with pytest.raises(ValueError, match=r'\.png: .*decompression bomb .*MAX_IMAGE_PIXELS'):
    load()


def test_an_image_in_both_data_sets_is_an_error(photos, load, tmp_path):
  other = draw(tmp_path / 'other', {'nut': (90, 20, 20)}, images=2, size=40, seed=9)
  (other / 'nut/test/good/000.png').write_bytes((photos / 'bolt/test/good/001.png').read_bytes())
  target = data.load(f'folder:{other}', root=tmp_path / 'data')
  with pytest.raises(ValueError, match=r'1 of the 4 images .*bolt/test/good/001.*nut/test/good/000'):
    protocol.check_images(load(), target)


def test_names_cannot_inject_html_into_the_page():
  name = '"><script>alert(1)</script>'
  row = {'image_auroc': metrics.Value(None, name)}
  text = html_page.render(name, [name], {name: row}, metrics.summarise({name: row}), None)
  assert '<script>alert' not in text and '&lt;script&gt;alert(1)&lt;/script&gt;' in text
