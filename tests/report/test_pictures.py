"""Which images are shown, and the sheets of a run."""

import io
from types import SimpleNamespace

import numpy as np
from PIL import Image

from zsad_jax.engine import examples
from zsad_jax.report import figures, pictures


def test_chosen_takes_half_anomalous_and_fills_up_where_a_class_is_short():
  class Set:
    categories = ('a', 'b')
    category_index = np.repeat([0, 1], [20, 5])
    labels = np.array([0] * 10 + [1] * 10 + [0, 1, 1, 1, 1])

  chosen = examples.chosen(Set, 6)
  assert len(chosen) == len(set(chosen))
  first = [i for i in chosen if i < 20]
  assert len(first) == 6
  assert Set.labels[first].sum() == 3
  assert len(chosen) - len(first) == 5  # all that category b has
  assert examples.chosen(Set, 0) == []


def test_worst_are_the_highest_normal_and_lowest_anomalous_scores():
  scores, labels = np.array([.9, .1, .5, .2, .8, .3]), np.array([0, 0, 0, 1, 1, 1])
  assert examples.worst(range(6), scores, labels, 2) == [3, 0]
  assert examples.worst([1, 2, 4, 5], scores, labels, 4) == [5, 4, 2, 1]
  assert examples.worst(range(6), scores, labels, 0) == []


def test_shown_holds_the_errors_of_every_category_within_the_count():
  dataset = SimpleNamespace(categories=('a', 'b'), category_index=np.repeat([0, 1], 50), labels=np.arange(100) % 2)
  scores = np.random.default_rng(0).random(100)
  shown = examples.shown(dataset, scores, 12)
  for members in (range(50), range(50, 100)):
    assert set(examples.worst(members, scores, dataset.labels, 4)) <= set(shown)
    assert 8 <= len(set(members) & set(shown)) <= 12
  assert examples.shown(dataset, scores, 0) == []


class Drawn(SimpleNamespace):
  def __getitem__(self, i):
    return {'image': Image.new('RGB', (20, 20)), 'mask': np.zeros((20, 20), np.uint8), 'label': 0, 'id': f'x/{i}',
            'defect_type': 'good', 'has_mask': i != 2}


def test_a_sheet_for_each_category_that_is_shown():
  dataset = Drawn(name='set', categories=('a', 'b', 'c'), category_index=np.array([0, 2, 2]))
  maps = {i: np.random.default_rng(i).random((8, 8)) for i in (0, 2)}
  found = dict(pictures.sheets(dataset, [0, 1, 2], np.zeros(3), maps, *figures.run_scale(list(maps.values()))))
  assert list(found) == ['a', 'c']
  assert all(Image.open(io.BytesIO(png)).format == 'PNG' for png in found.values())


def test_gallery_tells_what_is_known_of_an_image():
  dataset = Drawn(categories=('a', 'b'), category_index=np.array([0, 1, 1]))
  first, last = pictures.gallery(dataset, [0, 2], np.array([.1, .2, .3]), {0: np.ones((8, 8))})
  assert (first.category, first.caption, first.score, first.label) == ('a', 'good/0', .1, 0)
  assert first.mask is not None and first.map is not None
  assert last.mask is None and last.map is None and last.category == 'b'
