"""The images that the HTML page and the sheets show, with their ground truth, anomaly map and score."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

GROUND_TRUTH = {1: 'anomalous', 0: 'normal', None: 'unknown'}
OUTLINE = (255, 0, 255)  # rare in photographs of parts, leaves and tissue


class Example(NamedTuple):
  """One image to show.

  Attributes:
    image: PIL RGB.
    mask: [h, w] uint8 0/255, or None without pixel ground truth.
    map: [R, R] anomaly map, or [h, w, 3] uint8 overlay, or None for a method without maps.
    score: of the image; higher is more anomalous.
    label: 1 anomalous, 0 normal, None without ground truth.
    caption: name of the image.
    category: '' for none.
  """
  image: Image.Image
  mask: np.ndarray | None
  map: np.ndarray | None
  score: float
  label: int | None
  caption: str
  category: str = ''


def examples(dataset: Any, indices: Sequence[int], scores: np.ndarray, maps: Mapping[int, np.ndarray]
             ) -> Iterator[Example]:
  """Yields the images of these indices.

  Args:
    dataset: data.Dataset.
    indices: positions in the data set.
    scores: [n], of all images of the data set.
    maps: {index: [R, R]}; an image without one has no map.
  """
  for i in indices:
    record = dataset[i]
    caption = f'{record["defect_type"]}/{record["id"].rsplit("/", 1)[-1]}'
    yield Example(
      record['image'], record['mask'] if record['has_mask'] else None, maps.get(i), float(scores[i]), record['label'],
      caption, dataset.categories[dataset.category_index[i]])


def outline(mask: np.ndarray) -> np.ndarray:
  """Returns the boundary [h, w] bool of a mask [h, w]: its pixels with a 4-neighbour outside."""
  inside = np.pad(np.asarray(mask) > 0, 1)
  core = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
  return inside[1:-1, 1:-1] & ~core


def with_outline(example: Example) -> np.ndarray:
  """Returns the image [h, w, 3] uint8 with the outline of its mask, if it has one."""
  pixels = np.array(example.image)
  if example.mask is not None:
    pixels[outline(example.mask)] = OUTLINE
  return pixels
