"""Draws the README's strip of results: input, anomaly map and ground truth of one image per category of the demo.

  python launch.py --config=configs/anomalyclip.py:demo --workdir=runs/demo
  python examples/result_strip.py --workdir=runs/demo --out=docs/images/results.png

Each category shows the anomalous image with the median score, so the strip is representative and not a selection.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parents[1]))  # the checkout, if the package is not installed

import zsad_jax
from zsad_jax import data
from zsad_jax.predict.detector import Scored
from zsad_jax.report import heatmap

CELL, GAP, MARGIN, TITLE = 140, 6, 104, 24  # pixels
ROWS = ('input', 'anomaly map', 'ground truth')


def median_anomalous(scores: np.ndarray, labels: np.ndarray, members: np.ndarray) -> int:
  """Returns the index of the anomalous image with the median score among `members`."""
  anomalous = members[labels[members] == 1]
  return int(anomalous[np.argsort(scores[anomalous], kind='stable')[len(anomalous) // 2]])


def cells(record: dict, scored: Scored, scale: heatmap.Scale) -> list[Image.Image]:
  """Returns the three pictures of an image."""
  mask = Image.fromarray(np.where(record['mask'] > 0, 255, 0).astype(np.uint8)).convert('RGB')
  overlay = Image.fromarray(heatmap.overlay(record['image'], scored.map, scale))
  return [picture.resize((CELL, CELL)) for picture in (record['image'], overlay, mask)]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--workdir', default='runs/demo', help='workdir of a trained demo')
  parser.add_argument('--data_dir', default='data', help='prepared data sets')
  parser.add_argument('--out', default='docs/images/results.png')
  args = parser.parse_args()
  detector = zsad_jax.load('anomalyclip:demo', args.workdir, {'machine.data_dir': args.data_dir})
  target = data.load('synthetic_target', root=args.data_dir)
  scored = list(detector.stream(target[i]['image'] for i in range(len(target))))
  scores = np.array([one.score for one in scored])
  levels = detector.levels
  scale = heatmap.threshold_scale(levels.low, levels.pixel.value, levels.high)
  columns = len(target.categories)
  sheet = Image.new('RGB', (MARGIN + columns * (CELL + GAP), TITLE + len(ROWS) * (CELL + GAP)), 'white')
  draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
  for row, name in enumerate(ROWS):
    draw.text((MARGIN - 8, TITLE + row * (CELL + GAP) + CELL // 2), name, 'black', font, anchor='rm')
  for column, category in enumerate(target.categories):
    index = median_anomalous(scores, target.labels, np.flatnonzero(target.category_index == column))
    left = MARGIN + column * (CELL + GAP)
    draw.text((left + CELL // 2, TITLE // 2), category.replace('_', ' '), 'black', font, anchor='mm')
    for row, picture in enumerate(cells(target[index], scored[index], scale)):
      sheet.paste(picture, (left, TITLE + row * (CELL + GAP)))
  Path(args.out).parent.mkdir(parents=True, exist_ok=True)
  sheet.quantize(255).save(args.out, optimize=True)
  print(f'{args.out}: {sheet.width}x{sheet.height}, {Path(args.out).stat().st_size / 1e3:.0f} kB')


if __name__ == '__main__':
  main()
