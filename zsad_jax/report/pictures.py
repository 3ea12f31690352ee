"""The images of a run as they are shown, one by one and on sheets."""

from collections.abc import Iterator, Sequence

from zsad_jax.report import figures


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
