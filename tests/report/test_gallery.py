"""The images to show: captions, ground truth and outlines."""

from types import SimpleNamespace

import numpy as np
from PIL import Image

from zsad_jax.report import gallery


class Images(SimpleNamespace):
  def __getitem__(self, i):
    return {'image': Image.new('RGB', (20, 20)), 'mask': np.zeros((20, 20), np.uint8), 'label': 0, 'id': f'x/{i}',
            'defect_type': 'good', 'has_mask': i != 2}


def test_an_example_has_the_mask_and_map_of_its_image():
  dataset = Images(categories=('a', 'b'), category_index=np.array([0, 1, 1]))
  first, last = gallery.examples(dataset, [0, 2], np.array([.1, .2, .3]), {0: np.ones((8, 8))})
  assert (first.category, first.caption, first.score, first.label) == ('a', 'good/0', .1, 0)
  assert first.mask is not None and first.map is not None
  assert last.mask is None and last.map is None and last.category == 'b'


def test_the_outline_is_the_boundary_inside_the_mask():
  mask = np.zeros((32, 32), np.uint8)
  mask[8:16, 8:20] = 255
  edge = gallery.outline(mask)
  assert edge.sum() == 2 * 8 + 2 * 12 - 4
  assert not edge[10, 10]
  assert edge[8, 8]
  assert gallery.outline(np.full((4, 4), 255)).sum() == 12  # the image border counts as boundary
