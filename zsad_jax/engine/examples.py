"""Which images of an evaluation are shown: the worst errors, and others spread over the defect types."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def split_count(count: int) -> tuple[int, int]:
  """Returns (spread, errors): of `count` images per category a third are the worst errors."""
  errors = 2 * (count // 6)
  return count - errors, errors


def spread_over_defects(dataset: Any, count: int) -> list[int]:
  """Returns indices of up to `count` images per category, half of them anomalous, spread over the defect types."""
  indices = []
  for number in range(len(dataset.categories)):
    members = dataset.category_index == number
    anomalous, normal = (np.flatnonzero(members & (dataset.labels == label)) for label in (1, 0))
    share = min(len(anomalous), max(count - len(normal), -(-count // 2)))
    for group, size in ((anomalous, share), (normal, min(len(normal), count - share))):
      indices += [int(i) for i in group[np.linspace(0, len(group) - 1, size).round().astype(int)]]
  return indices


def worst_errors(indices: Sequence[int] | np.ndarray, scores: np.ndarray, labels: np.ndarray, count: int) -> list[int]:
  """Returns the anomalous images of lowest score, then the normal ones of highest, count / 2 of each.

  Args:
    indices: candidates, positions in scores and labels.
    scores, labels: [n], of all images.
    count: how many to return; even.
  """
  candidates = np.asarray(indices, int)
  order = candidates[np.argsort(np.asarray(scores)[candidates], kind='stable')]
  anomalous = np.asarray(labels)[order] == 1
  return [int(i) for i in (*order[anomalous][:count // 2], *order[~anomalous][::-1][:count // 2])]


def select(dataset: Any, scores: np.ndarray, count: int) -> list[int]:
  """Returns indices of up to `count` images per category: its worst errors, and others spread over its defect types.

  Args:
    dataset: data.Dataset.
    scores: [n], of all its images.
    count: images per category.
  """
  spread, errors = split_count(count)
  indices = set(spread_over_defects(dataset, spread))
  for number in range(len(dataset.categories)):
    members = np.flatnonzero(dataset.category_index == number)
    indices.update(worst_errors(members, scores, dataset.labels, errors))
  return sorted(indices)
