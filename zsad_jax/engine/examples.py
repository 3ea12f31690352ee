"""Which images of an evaluation are shown: its worst errors, and others spread over the defect types."""

from collections.abc import Sequence

import numpy as np


def split_count(count: int) -> tuple[int, int]:
  """(spread, worst): of `count` images a category a third are its worst errors, the others as they come."""
  worst = 2 * (count // 6)
  return count - worst, worst


def spread_over_defects(dataset, count: int) -> list[int]:
  """Indices of up to `count` images a category, half of them anomalous, spread over its defect types."""
  indices = []
  for number in range(len(dataset.categories)):
    members = dataset.category_index == number
    anomalous, normal = (np.flatnonzero(members & (dataset.labels == label)) for label in (1, 0))
    share = min(len(anomalous), max(count - len(normal), -(-count // 2)))
    for group, size in ((anomalous, share), (normal, min(len(normal), count - share))):
      indices += [int(i) for i in group[np.linspace(0, len(group) - 1, size).round().astype(int)]]
  return indices


def worst_errors(indices: Sequence[int], scores, labels, count: int) -> list[int]:
  """Those of `indices` that mislead most: count / 2 anomalous ones of lowest score, count / 2 normal of highest."""
  indices = np.asarray(indices, int)
  order = indices[np.argsort(np.asarray(scores)[indices], kind='stable')]
  anomalous = np.asarray(labels)[order] == 1
  return [int(i) for i in (*order[anomalous][:count // 2], *order[~anomalous][::-1][:count // 2])]


def select(dataset, scores, count: int) -> list[int]:
  """Indices of up to `count` images a category, its worst errors and others spread over its defect types."""
  spread, errors = split_count(count)
  indices = set(spread_over_defects(dataset, spread))
  for number in range(len(dataset.categories)):
    indices.update(worst_errors(np.flatnonzero(dataset.category_index == number), scores, dataset.labels, errors))
  return sorted(indices)
