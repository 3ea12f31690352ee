"""Few-shot references: the normal training images of the target data set that a method compares with."""

import numpy as np

from zsad_jax.data.dataset import Dataset


def draw(dataset: Dataset, shots: int, *, seed: int, replacement: bool = False) -> np.ndarray:
  """Returns indices [C, shots] int64 of normal images, drawn separately for each category.

  A draw depends only on the seed, the category's name and its images, so leaving other categories out changes nothing.

  Args:
    dataset: the split `train`.
    shots: images per category.
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
                       f'split {dataset.split!r}; lower fewshot.shots')
    rng = np.random.default_rng([seed, *category.encode()])
    rows.append(np.sort(rng.choice(members, shots, replace=replacement)))
  return np.stack(rows)
