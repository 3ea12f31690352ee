r"""Measures the false-positive rate and the recall of each threshold rule on new images.

  python benchmarks/thresholds.py [--methods=clip,winclip,sdp,anomalyclip] [--target=synthetic_target] [--root=data]

With the tiny CLIP. f1_max and fpr are computed on synthetic_aux and used for the whole target; normals and batch are
computed for each category of the target, from images of its training split and from its test images without labels.
Numbers are percentages.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import zsad_jax
from zsad_jax.engine import runtime
from zsad_jax.experiment import setup
from zsad_jax.predict import calibration, thresholds

NORMALS = (5, 20)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--methods', default='clip,winclip,sdp,anomalyclip')
  parser.add_argument('--target', default='synthetic_target')
  parser.add_argument('--root', default='data', help='folder of prepared data sets and features')
  args = parser.parse_args()
  rules = ['f1_max', 'fpr 5 %', *(f'{k} normals' for k in NORMALS), 'batch', 'batch, most normal']
  print(f'synthetic_aux to {args.target}, CLIP tiny; {runtime.device_summary()}\n\n| method | metric | '
        + ' | '.join(rules) + ' |\n|' + '---|' * (len(rules) + 2), flush=True)
  for name in args.methods.split(','):
    rates = measure(name, {'machine.data_dir': args.root, 'data.target': args.target})
    for i, metric in enumerate(('false-positive rate', 'recall')):
      print(f'| {name} | {metric} | ' + ' | '.join(f'{100 * rates[rule][i]:.0f}' for rule in rules) + ' |', flush=True)


def measure(name, changes):
  """Returns {rule: (false-positive rate, recall)} over all test images of the target."""
  with tempfile.TemporaryDirectory() as folder:
    detector = zsad_jax.load(f'{name}:demo', folder, changes)

  def known(role, split=None):
    dataset = setup.open_data(detector.cfg, role, split)
    scored = calibration.of_auxiliary(detector.run, detector.params, dataset, None)
    return dataset, scored.scores, scored.labels

  _, aux_scores, aux_labels = known('aux')
  target, scores, labels = known('target')
  references, normal, _ = known('target', 'train')
  verdicts, members = {}, {}  # by rule: which test images it calls anomalous, and which it is for
  whole = {'f1_max': thresholds.f1_max(aux_labels, aux_scores, 'auxiliary data set'),
           'fpr 5 %': thresholds.false_positive_rate(aux_labels, aux_scores, 0.05, 'auxiliary data set')}
  for rule, threshold in whole.items():
    verdicts[rule], members[rule] = scores >= threshold.value, np.ones(len(scores), bool)
  for number in range(len(target.categories)):
    own = target.category_index == number
    rules = by_category(normal[references.category_index == number], scores, own, labels)
    for rule, (value, images) in rules.items():
      verdicts.setdefault(rule, np.zeros(len(scores), bool))[images] = scores[images] >= value
      members.setdefault(rule, np.zeros(len(scores), bool))[images] = True
  return {rule: tuple(verdicts[rule][members[rule] & (labels == label)].mean() for label in (0, 1))
          for rule in verdicts}


def by_category(normal, scores, own, labels):
  """Returns {rule: (threshold, its images)} of one category; for the last rule one image in five is anomalous."""
  good, anomalous = np.flatnonzero(own & (labels == 0)), np.flatnonzero(own & (labels == 1))
  mostly_normal = np.concatenate([good, anomalous[:len(good) // 4]])
  rules = {f'{k} normals': (thresholds.normals(normal[:k], 0.95, 'normals').value, own) for k in NORMALS}
  rules['batch'] = thresholds.robust(scores[own], 0.05, 'batch').value, own
  rules['batch, most normal'] = thresholds.robust(scores[mostly_normal], 0.05, 'batch').value, mostly_normal
  return rules


if __name__ == '__main__':
  main()
