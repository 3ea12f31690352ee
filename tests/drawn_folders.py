"""Small folders of pictures in MVTec layout, for tests that run whole experiments."""

import numpy as np
from PIL import Image


def draw(root, categories, images=4, size=72, seed=0, train=1):
  """A folder in MVTec layout: noise in the category's colour, a bright square where it is damaged."""
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
          truth = root / category / 'ground_truth' / kind / f'{i:03d}_mask.png'
          truth.parent.mkdir(parents=True, exist_ok=True)
          Image.fromarray(mask).save(truth)
        path = root / category / split / kind / f'{i:03d}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
  return root
