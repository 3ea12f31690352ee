"""Small folders of images in MVTec layout, for tests that run whole experiments."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def draw(root: Path, categories: Mapping[str, Sequence[int]], images: int = 4, size: int = 72, seed: int = 0,
         train: int = 1) -> Path:
  """Writes a folder in MVTec layout and returns it: noise in the category's colour, with a bright square as defect.

  Args:
    root: the folder.
    categories: {name: RGB colour, added to the noise}.
    images: normal test images of each category, and as many anomalous ones.
    size: pixels per side.
    seed: of the noise and of the squares' places.
    train: normal training images of each category.
  """
  rng = np.random.default_rng(seed)
  for category, colour in categories.items():
    for split, kind, count in (('train', 'good', train), ('test', 'good', images), ('test', 'spot', images)):
      for i in range(count):
        pixels = rng.integers(0, 60, (size, size, 3)) + np.array(colour)
        mask = np.zeros((size, size), np.uint8)
        if kind == 'spot':
          y, x = rng.integers(0, size - 20, 2)
          pixels[y:y + 20, x:x + 20] = 255
          mask[y:y + 20, x:x + 20] = 255
          _save(root / category / 'ground_truth' / kind / f'{i:03d}_mask.png', mask)
        _save(root / category / split / kind / f'{i:03d}.png', pixels.astype(np.uint8))
  return root


def _save(path: Path, pixels: np.ndarray) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)
