"""Time and peak memory of the pixel metrics, compared with the official 200-threshold loop and scikit-learn.

  python benchmarks/metrics.py [--maps 100] [--size 518] [--runs 3] [--naive-maps 100]

Every item runs in a process of its own, so that its peak resident memory is its own. Ours get batches of 8, as from the
evaluator; the others need all maps and masks at once, as the original code does. Generating the maps is not timed. The
parent imports only the standard library, because a child's peak includes its parent's pages.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
BATCH = 8
FOUR = ('pixel_auroc', 'pixel_ap', 'pixel_f1max', 'aupro')


def random_map(index, size):
  """Returns an anomaly map [size, size] float32 and its mask uint8: smooth noise, raised at 0 to 4 defects."""
  import numpy as np
  from scipy import ndimage
  rng = np.random.default_rng(index)
  y, x = np.mgrid[:size, :size] / size
  mask = np.zeros((size, size), np.uint8)
  for _ in range(rng.integers(0, 5)):
    (cy, cx), (ry, rx) = rng.uniform(0.1, 0.9, 2), rng.uniform(0.01, 0.1, 2)
    mask |= ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
  noise = ndimage.zoom(rng.normal(size=(37, 37)), size / 37, order=1)[:size, :size]
  logits = noise + 3 * ndimage.gaussian_filter(mask.astype(np.float32), size / 80) - 3
  return (1 / (1 + np.exp(-logits))).astype(np.float32), mask


def batches(count, size):
  """Yields (maps, masks) [B, size, size]."""
  import numpy as np
  for start in range(0, count, BATCH):
    maps, masks = zip(*(random_map(i, size) for i in range(start, min(start + BATCH, count))))
    yield np.stack(maps), np.stack(masks)


def official_loop(maps, masks):
  """cal_pro_score of the official AnomalyCLIP code; skimage's label and regionprops replaced by scipy's."""
  import numpy as np
  from scipy import ndimage
  predicted = np.zeros_like(maps, dtype=bool)
  low, high = maps.min(), maps.max()
  pros, fprs = [], []
  for threshold in np.arange(low, high, (high - low) / 200):
    predicted[maps <= threshold], predicted[maps > threshold] = 0, 1
    pro = []
    for image, mask in zip(predicted, masks):
      labelled, _ = ndimage.label(mask, np.ones((3, 3)))
      for number, box in enumerate(ndimage.find_objects(labelled), 1):
        y, x = np.nonzero(labelled[box] == number)
        pro.append(image[box][y, x].sum() / len(y))
    inverse = 1 - masks
    fprs.append(np.logical_and(inverse, predicted).sum() / inverse.sum())
    pros.append(np.array(pro).mean())
  pros, fprs = np.array(pros), np.array(fprs)
  below = fprs < 0.3
  fprs = fprs[below]
  fprs = (fprs - fprs.min()) / (fprs.max() - fprs.min())
  return -np.trapezoid(pros[below], fprs)


def run_ours(metrics, count, size):
  """Times PixelMetrics on batches; returns (seconds, values)."""
  from zsad_jax.metrics import PixelMetrics
  pixel, seconds = PixelMetrics(), 0.0
  for maps, masks in batches(count, size):
    start = time.perf_counter()
    pixel.update(maps, masks)
    seconds += time.perf_counter() - start
  start = time.perf_counter()
  values = pixel.compute(metrics)
  return seconds + time.perf_counter() - start, [v.value for v in values.values()]


def run_whole(function, count, size):
  """Times a function of all maps at once; masks are float32, as from the official loader."""
  import numpy as np
  maps, masks = np.empty((count, size, size), np.float32), np.empty((count, size, size), np.float32)
  for i in range(count):
    maps[i], masks[i] = random_map(i, size)
  start = time.perf_counter()
  value = function(maps, masks)
  return time.perf_counter() - start, [float(value)]


def run_sklearn(name, count, size):
  import numpy as np
  from sklearn import metrics

  def f1_max(labels, scores):
    precision, recall, _ = metrics.precision_recall_curve(labels, scores)
    return np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300))
  function = f1_max if name == 'precision_recall_curve' else getattr(metrics, name)
  return run_whole(lambda maps, masks: function(masks.ravel(), maps.ravel()), count, size)


OFFICIAL = 'official 200-threshold AUPRO loop'
ITEMS = {
  'ours: AUROC, AP, F1-max and AUPRO': lambda n, r: run_ours(FOUR, n, r),
  'ours: AUPRO': lambda n, r: run_ours(('aupro',), n, r),
  'ours: aupro_200': lambda n, r: run_ours(('aupro_200',), n, r),
  'scikit-learn: roc_auc_score': lambda n, r: run_sklearn('roc_auc_score', n, r),
  'scikit-learn: average_precision_score': lambda n, r: run_sklearn('average_precision_score', n, r),
  'scikit-learn: precision_recall_curve': lambda n, r: run_sklearn('precision_recall_curve', n, r),
  OFFICIAL: lambda n, r: run_whole(official_loop, n, r),
}


def peak_mib():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(item, count, size):
  """Runs one item and prints its record as one JSON line."""
  sys.path.insert(0, str(ROOT))
  if item.startswith('scikit-learn'):
    import sklearn.metrics  # noqa: F401
  import zsad_jax.metrics  # noqa: F401
  imports = peak_mib()
  seconds, values = ITEMS[item](count, size)
  print(json.dumps({'seconds': seconds, 'imports': imports, 'peak': peak_mib(), 'values': values}))


def measure(item, count, size, runs):
  command = [sys.executable, __file__, '--item', item, '--maps', str(count), '--size', str(size)]
  records = [json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
             for _ in range(runs)]
  return {
    'seconds': statistics.median(r['seconds'] for r in records),
    'imports': max(r['imports'] for r in records),
    'peak': max(r['peak'] for r in records),
    'values': records[0]['values'],
  }


def main():
  parser = argparse.ArgumentParser(description='Speed and memory of the pixel metrics.')
  parser.add_argument('--maps', type=int, default=100)
  parser.add_argument('--size', type=int, default=518)
  parser.add_argument('--runs', type=int, default=3, help='runs per item, whose median is shown (official loop: 1)')
  parser.add_argument('--naive-maps', type=int, help='run the official loop on this many maps and extrapolate')
  parser.add_argument('--item', choices=ITEMS, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.item:
    child(args.item, args.maps, args.size)
    return
  print(f'{args.maps} maps of {args.size} x {args.size} float32, median of {args.runs} runs\n')
  print('| item | seconds | peak MiB | above imports | values |\n| --- | --- | --- | --- | --- |')
  seconds = {}
  for item in ITEMS:
    naive = item == OFFICIAL
    count = (naive and args.naive_maps) or args.maps
    record = measure(item, count, args.size, 1 if naive else args.runs)
    seconds[item] = record['seconds'] * args.maps / count
    note = '' if count == args.maps else f' (extrapolated from {count} maps)'
    print(f'| {item}{note} | {seconds[item]:.2f} | {record["peak"]:.0f} '
          f'| {record["peak"] - record["imports"]:.0f} '
          f'| {", ".join(f"{v:.9f}" for v in record["values"])} |', flush=True)
  print(f'\nExact AUPRO is {seconds[OFFICIAL] / seconds["ours: AUPRO"]:.0f}x faster than the official loop, '
        f'aupro_200 {seconds[OFFICIAL] / seconds["ours: aupro_200"]:.0f}x.')


if __name__ == '__main__':
  main()
