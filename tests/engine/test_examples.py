"""Choice of the images to show: the worst errors, and others spread over the defect types."""

from types import SimpleNamespace

import numpy as np

from zsad_jax.engine import examples


def test_half_are_anomalous_and_a_short_class_is_filled_up():
  class Set:
    categories = ('a', 'b')
    category_index = np.repeat([0, 1], [20, 5])
    labels = np.array([0] * 10 + [1] * 10 + [0, 1, 1, 1, 1])

  indices = examples.spread_over_defects(Set, 6)
  assert len(indices) == len(set(indices))
  first = [i for i in indices if i < 20]
  assert len(first) == 6
  assert Set.labels[first].sum() == 3
  assert len(indices) - len(first) == 5  # all that category b has
  assert examples.spread_over_defects(Set, 0) == []


def test_worst_errors_are_the_highest_normal_and_lowest_anomalous_scores():
  scores, labels = np.array([.9, .1, .5, .2, .8, .3]), np.array([0, 0, 0, 1, 1, 1])
  assert examples.worst_errors(range(6), scores, labels, 2) == [3, 0]
  assert examples.worst_errors([1, 2, 4, 5], scores, labels, 4) == [5, 4, 2, 1]
  assert examples.worst_errors(range(6), scores, labels, 0) == []


def test_selection_has_the_errors_of_every_category_within_the_count():
  dataset = SimpleNamespace(categories=('a', 'b'), category_index=np.repeat([0, 1], 50), labels=np.arange(100) % 2)
  scores = np.random.default_rng(0).random(100)
  indices = examples.select(dataset, scores, 12)
  for members in (range(50), range(50, 100)):
    assert set(examples.worst_errors(members, scores, dataset.labels, 4)) <= set(indices)
    assert 8 <= len(set(members) & set(indices)) <= 12
  assert examples.select(dataset, scores, 0) == []
