"""Few-shot references: which normal images of the target's training split a method compares with."""

import numpy as np


def draw(dataset, shots: int, *, seed: int, replacement: bool = False) -> np.ndarray:
  """Returns indices [C, shots] int64 of normal images, drawn for each category of its own.

  A draw depends on the seed, the category's name and its images alone, so leaving other categories out changes nothing.

  Args:
    dataset: the training split of a Dataset.
    shots: images of a category.
    seed: of the draw.
    replacement: whether an image may be drawn more than once.

  Raises:
    ValueError: a category has too few normal images; names it and both numbers.
  """
  rows = []
  for number, category in enumerate(dataset.categories):
    members = np.flatnonzero((dataset.category_index == number) & (dataset.labels == 0))
    if len(members) < (1 if replacement else shots):
      raise ValueError(f'{dataset.name}: fewshot.shots is {shots}, but {category} has {len(members)} normal images in '
                       f'split {dataset.split!r}')
    rng = np.random.default_rng([seed, *category.encode()])
    rows.append(np.sort(rng.choice(members, shots, replace=replacement)))
  return np.stack(rows)
