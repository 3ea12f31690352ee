"""Which images are shown, and the sheets of a run."""

import io
from types import SimpleNamespace

import numpy as np
from PIL import Image

from zsad_jax.report import pictures


def test_chosen_takes_half_anomalous_and_fills_up_where_a_class_is_short():
  class Set:
    categories = ('a', 'b')
    category_index = np.repeat([0, 1], [20, 5])
    labels = np.array([0] * 10 + [1] * 10 + [0, 1, 1, 1, 1])

  chosen = pictures.chosen(Set, 6)
  assert len(chosen) == len(set(chosen))
  first = [i for i in chosen if i < 20]
  assert len(first) == 6
  assert Set.labels[first].sum() == 3
  assert len(chosen) - len(first) == 5  # all that category b has
  assert pictures.chosen(Set, 0) == []


class Drawn(SimpleNamespace):
  def __getitem__(self, i):
    return {'image': Image.new('RGB', (20, 20)), 'mask': np.zeros((20, 20), np.uint8), 'label': 0, 'id': f'x/{i}',
            'defect_type': 'good'}


def test_a_sheet_for_each_category_that_is_shown():
  dataset = Drawn(name='set', categories=('a', 'b', 'c'), category_index=np.array([0, 2, 2]))
  maps = {i: np.random.default_rng(i).random((8, 8)) for i in (0, 2)}
  found = dict(pictures.sheets(dataset, np.zeros(3), maps))
  assert list(found) == ['a', 'c']
  assert all(Image.open(io.BytesIO(png)).format == 'PNG' for png in found.values())
  assert list(pictures.sheets(dataset, np.zeros(3), {})) == []
