r"""What each rule for a threshold gives on images that it has not seen: false-positive rate and recall.

  python benchmarks/thresholds.py [--methods=clip,winclip,sdp,anomalyclip] [--target=synthetic_target] [--root=data]

The tiny CLIP. f1_max and fpr are found on synthetic_aux and held for the whole target; normals and batch are found for
each category of the target, from images of its training split and from its test images without their labels. Percent.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import zsad_jax
from zsad_jax import methods
from zsad_jax.engine import runtime
from zsad_jax.experiment import setup
from zsad_jax.predict import calibration, thresholds

NORMALS = (5, 20)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--methods', default='clip,winclip,sdp,anomalyclip')
  parser.add_argument('--target', default='synthetic_target')
  parser.add_argument('--root', default='data', help='where prepared data sets and features are kept')
  args = parser.parse_args()
  rules = ['f1_max', 'fpr 5 %', *(f'{k} normals' for k in NORMALS), 'batch', 'batch, most normal']
  print(f'synthetic_aux to {args.target}, CLIP tiny; {runtime.device_summary()}\n\n| method | of | '
        + ' | '.join(rules) + ' |\n|' + '---|' * (len(rules) + 2), flush=True)
  for name in args.methods.split(','):
    found = measure(name, {'machine.data_dir': args.root, 'data.target': args.target})
    for at, of in enumerate(('false-positive rate', 'recall')):
      print(f'| {name} | {of} | ' + ' | '.join(f'{100 * found[rule][at]:.0f}' for rule in rules) + ' |', flush=True)


def measure(name, changes):
  """{rule: (false-positive rate, recall)} over all test images of the target."""
  with tempfile.TemporaryDirectory() as folder:
    made = zsad_jax.load(f'{name}:demo', folder, changes)
  method = methods.get(name)

  def known(which, split=None):
    dataset = setup.open_data(made.cfg, which, split)
    found = calibration.auxiliary(made.cfg, method, made.clip, made.learnable, dataset, None)
    return dataset, found.scores, found.labels

  _, scores, labels = known('aux')
  target, tested, truth = known('target')
  references, normal, _ = known('target', 'train')
  whole = {'f1_max': thresholds.f1_max(labels, scores, 'auxiliary set').value,
           'fpr 5 %': thresholds.false_positive_rate(labels, scores, 0.05, 'auxiliary set').value}
  called = {rule: tested >= value for rule, value in whole.items()}
  kept = {rule: np.ones(len(tested), bool) for rule in whole}
  for number in range(len(target.categories)):
    own = target.category_index == number
    of_category = by_category(normal[references.category_index == number], tested, own, truth)
    for rule, (value, members) in of_category.items():
      called.setdefault(rule, np.zeros(len(tested), bool))[members] = tested[members] >= value
      kept.setdefault(rule, np.zeros(len(tested), bool))[members] = True
  return {rule: (called[rule][kept[rule] & (truth == 0)].mean(), called[rule][kept[rule] & (truth == 1)].mean())
          for rule in called}


def by_category(normal, tested, own, truth):
  """{rule: (threshold, the images it is for)} of one category; for the last rule one image in five is anomalous."""
  some = np.flatnonzero(own & (truth == 0))
  anomalous = np.flatnonzero(own & (truth == 1))
  mostly = np.concatenate([some, anomalous[:len(some) // 4]])
  found = {f'{k} normals': (thresholds.normals(normal[:k], 0.95, 'normals').value, own) for k in NORMALS}
  found['batch'] = thresholds.robust(tested[own], 0.05, 'batch').value, own
  found['batch, most normal'] = thresholds.robust(tested[mostly], 0.05, 'batch').value, mostly
  return found


if __name__ == '__main__':
  main()
