"""Which images of a run are shown, and their sheets."""

from collections.abc import Iterator

import numpy as np

from zsad_jax.report import figures


def chosen(dataset, count: int) -> list[int]:
  """Indices of up to `count` images a category, half of them anomalous, spread over its defect types."""
  indices = []
  for number in range(len(dataset.categories)):
    members = dataset.category_index == number
    anomalous, normal = (np.flatnonzero(members & (dataset.labels == label)) for label in (1, 0))
    share = min(len(anomalous), max(count - len(normal), -(-count // 2)))
    for group, size in ((anomalous, share), (normal, min(len(normal), count - share))):
      indices += [int(i) for i in group[np.linspace(0, len(group) - 1, size).round().astype(int)]]
  return indices


def sheets(dataset, scores, maps: dict) -> Iterator[tuple[str, bytes]]:
  """Yields (category, PNG) of every category with a shown image; all share one colour scale.

  Args:
    dataset: data.Dataset.
    scores: [n] of all its images.
    maps: {index: [R, R]} of the shown ones.
  """
  if not maps:
    return
  scale = figures.colour_scale(list(maps.values()))
  for number, category in enumerate(dataset.categories):
    shown = []
    for i in (i for i in maps if dataset.category_index[i] == number):
      record = dataset[i]
      caption = f'{record["defect_type"]}/{record["id"].rsplit("/", 1)[-1]}'
      shown.append(figures.Shown(record['image'], record['mask'], maps[i], float(scores[i]), record['label'], caption))
    if shown:
      yield category, figures.sheet(f'{dataset.name}: {category}', shown, scale)
