"""Sheets of images: a PNG per category with every image, mask and heat map in its cell."""

import io
from types import SimpleNamespace

import numpy as np
from PIL import Image

from zsad_jax.report import gallery, heatmap, sheet

SCALE = heatmap.run_scale([np.arange(4.0).reshape(2, 2)])


def test_a_sheet_is_a_png_with_every_image():
  noise = np.random.default_rng(0).random((16, 16))
  mask = np.zeros((32, 32), np.uint8)
  mask[8:16, 8:20] = 255
  known = gallery.Example(Image.new('RGB', (32, 32)), mask, noise, 0.7, 1, 'a/b')
  unknown = known._replace(mask=None, label=None, caption='x' * 300)
  picture = Image.open(io.BytesIO(sheet.render('bolt', [known, unknown, known], SCALE)))
  assert picture.format == 'PNG'
  assert 1000 < picture.width < 1500


def test_the_smallest_defect_of_a_large_image_stays_visible():
  mask = np.zeros((3000, 2000), np.uint8)
  mask[1200, 700] = 255
  item = gallery.Example(Image.new('RGB', (2000, 3000)), mask, np.zeros((8, 8)), 0.5, 1, 'a')
  png = sheet.render('bolt', [item], SCALE)
  pixels = np.asarray(Image.open(io.BytesIO(png)))
  assert (pixels == gallery.OUTLINE).all(-1).any()  # around it in the image
  top, left = sheet.TITLE + sheet.LINE, 2 * sheet.GAP + sheet.CELL
  cell = pixels[top:top + 315, left:left + sheet.CELL]  # of the mask
  assert 1 <= (cell == 255).all(-1).sum() <= 4 and np.unique(cell).tolist() == [0, 255]


def test_a_very_tall_image_does_not_stretch_its_sheet():
  item = gallery.Example(Image.new('RGB', (20, 2000)), None, np.zeros((8, 8)), 0.5, None, 'a')
  png = sheet.render('bolt', [item], SCALE)
  assert Image.open(io.BytesIO(png)).height < 500


class Images(SimpleNamespace):
  def __getitem__(self, i):
    return {'image': Image.new('RGB', (20, 20)), 'mask': np.zeros((20, 20), np.uint8), 'label': 0, 'id': f'x/{i}',
            'defect_type': 'good', 'has_mask': i != 2}


def test_every_category_with_a_map_has_a_sheet():
  dataset = Images(name='set', categories=('a', 'b', 'c'), category_index=np.array([0, 2, 2]))
  maps = {i: np.random.default_rng(i).random((8, 8)) for i in (0, 2)}
  sheets = dict(sheet.by_category(dataset, [0, 1, 2], np.zeros(3), maps, heatmap.run_scale(list(maps.values()))))
  assert list(sheets) == ['a', 'c']
  assert all(Image.open(io.BytesIO(png)).format == 'PNG' for png in sheets.values())
