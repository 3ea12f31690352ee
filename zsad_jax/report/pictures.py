"""Which images of a run are shown, and their sheets."""

from collections.abc import Iterator, Sequence

import numpy as np

from zsad_jax.report import figures


def share(count: int) -> tuple[int, int]:
  """(spread, worst): of `count` images a category a third are its worst errors, the others as they come."""
  worst = 2 * (count // 6)
  return count - worst, worst


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


def worst(indices: Sequence[int], scores, labels, count: int) -> list[int]:
  """Those of `indices` that mislead most: count / 2 anomalous ones of lowest score, count / 2 normal of highest."""
  indices = np.asarray(indices, int)
  order = indices[np.argsort(np.asarray(scores)[indices], kind='stable')]
  anomalous = np.asarray(labels)[order] == 1
  return [int(i) for i in (*order[anomalous][:count // 2], *order[~anomalous][::-1][:count // 2])]


def shown(dataset, scores, count: int) -> list[int]:
  """Indices of up to `count` images a category, its worst errors and others spread over its defect types."""
  spread, errors = share(count)
  indices = set(chosen(dataset, spread))
  for number in range(len(dataset.categories)):
    indices.update(worst(np.flatnonzero(dataset.category_index == number), scores, dataset.labels, errors))
  return sorted(indices)


def gallery(dataset, indices: Sequence[int], scores, maps: dict) -> Iterator[figures.Shown]:
  """Yields the images of these indices as they are shown.

  Args:
    dataset: data.Dataset.
    indices: images.
    scores: [n] of all its images.
    maps: {index: [R, R]}, of no image where the method makes none.
  """
  for i in indices:
    record = dataset[i]
    name = f'{record["defect_type"]}/{record["id"].rsplit("/", 1)[-1]}'
    yield figures.Shown(
      record['image'], record['mask'] if record['has_mask'] else None, maps.get(i), float(scores[i]), record['label'],
      name, dataset.categories[dataset.category_index[i]])


def sheets(dataset, indices: Sequence[int], scores, maps: dict, scale, middle: str) -> Iterator[tuple[str, bytes]]:
  """Yields (category, PNG) of every category with a shown map; all share one colour scale.

  Args:
    dataset, indices, scores, maps: as for `gallery`.
    scale, middle: as for figures.sheet.
  """
  for number, category in enumerate(dataset.categories):
    members = [i for i in indices if dataset.category_index[i] == number and i in maps]
    if members:
      shown = list(gallery(dataset, members, scores, maps))
      yield category, figures.sheet(f'{dataset.name}: {category}', shown, scale, middle)
