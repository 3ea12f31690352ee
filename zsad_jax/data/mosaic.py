"""Mosaics of four images of a category, on which APRIL-GAN trains with MVTec AD (arXiv 2305.17382, its code)."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from zsad_jax.data.dataset import Dataset


def tile(records: Sequence[dict]) -> dict:
  """Returns one record from four, in reading order: image and mask twice as wide and high as the first one's.

  The others are resized to the first, masks by nearest neighbour. label is 1 if any of the four is anomalous, has_mask
  is True if all four have one, category and object_name are the first one's.

  Raises:
    ValueError: not four records, or records of several categories; names them.
  """
  if len(records) != 4:
    raise ValueError(f'a mosaic needs 4 images, not {len(records)}')
  first, categories = records[0], {record['category'] for record in records}
  if len(categories) > 1:
    raise ValueError(f'a mosaic needs images of one category, not of {", ".join(sorted(categories))}')
  width, height = first['image'].size
  image, mask = Image.new('RGB', (2 * width, 2 * height)), Image.new('L', (2 * width, 2 * height))
  for place, record in enumerate(records):
    corner = place % 2 * width, place // 2 * height
    image.paste(_fit(record['image'], first['image'].size, Image.Resampling.BICUBIC), corner)
    mask.paste(_fit(Image.fromarray(record['mask']), first['image'].size, Image.Resampling.NEAREST), corner)
  return first | {
    'id': '+'.join(record['id'] for record in records), 'image': image, 'mask': np.asarray(mask),
    'has_mask': all(record['has_mask'] for record in records), 'label': max(record['label'] for record in records),
    'defect_type': '+'.join(record['defect_type'] for record in records)}


class Mosaics:
  """A data set read over several epochs, in which a random share of the records is replaced by mosaics.

  Record i of epoch e is at i + e * n, with n records in `dataset`. With `probability` it is a mosaic of four records of
  its category: for each a defect type is drawn, 'good' among them, then one of its records. The draw depends on
  (seed, position) alone, so every epoch has other mosaics.

  Attributes:
    name, categories: those of the data set.
    category_index: [epochs * n] int32.
  """

  def __init__(self, dataset: Dataset, *, probability: float, seed: int, epochs: int):
    """`dataset` is a Dataset, or anything with its records, category_index and defect_types."""
    if not 0 <= probability <= 1:
      raise ValueError(f'the probability of a mosaic is {probability}; it must be in [0, 1]')
    self.name, self.categories = dataset.name, dataset.categories
    self._dataset, self._probability, self._seed = dataset, probability, seed
    self.category_index = np.tile(dataset.category_index, epochs)
    self._members = {}  # {category: {defect type: positions}}
    for i, (category, defect_type) in enumerate(zip(dataset.category_index, dataset.defect_types)):
      self._members.setdefault(int(category), {}).setdefault(defect_type, []).append(i)

  def __len__(self) -> int:
    return len(self.category_index)

  def __getitem__(self, position: int) -> dict:
    """Returns the record at `position`, as a Dataset does."""
    if not 0 <= position < len(self):
      raise IndexError(f'{self!r}: record {position} of {len(self)}')
    rng = np.random.default_rng((self._seed, position))
    if rng.random() >= self._probability:
      return self._dataset[position % len(self._dataset)]
    members = list(self._members[int(self.category_index[position])].values())
    return tile([self._dataset[int(rng.choice(members[rng.integers(len(members))]))] for _ in range(4)])

  def __repr__(self) -> str:
    return f'Mosaics({self._dataset!r}, probability={self._probability}, seed={self._seed}, {len(self)} in all)'


def _fit(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
  return image if image.size == size else image.resize(size, resample)
