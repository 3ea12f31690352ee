r"""Every system side by side on one target, over several seeds: the table of the README.

  python benchmarks/systems.py [--seeds=3] [--aux=synthetic_aux] [--target=synthetic_target] [--rows=clip,anomalyclip]
  python benchmarks/systems.py --target=folder:/path/in/mvtec/layout

All rows read the embedded tiny CLIP: they compare what the methods do in miniature, not how good they are on real
weights. Methods that learn do so on --aux, seed by seed; references are drawn anew for each seed; what does neither has
one run. Percent; mean and sample standard deviation.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path

import ml_collections as mlc
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from zsad_jax import methods
from zsad_jax.configs import (
  anomalyclip,
  april_gan,
  clip,
  clip_surgery,
  cocoop,
  coop,
  fuzzyclip,
  padim_clip,
  patchcore_clip,
  rwda,
  sdp,
  sdp_plus,
  spade_clip,
  winclip,
)
from zsad_jax.engine import runtime
from zsad_jax.experiment import experiment

# {row: (title, config, changes)}.
ZERO = {
  'clip': ('CLIP, two prompts', clip, {}),
  'clip_ac': ('CLIP-AC', clip, {'prompt.ensemble': 'imagenet'}),
  'clip_compound': ('CLIP, states and templates of APRIL-GAN', clip, {'prompt.ensemble': 'compound'}),
  'winclip': ('WinCLIP', winclip, {}),
  'clip_surgery': ('CLIP Surgery', clip_surgery, {}),
  'sdp': ('SDP of CLIP-AD', sdp, {}),
  'rwda': ('RWDA', rwda, {'seeds': 1}),
  'rwda_known': ('RWDA, the object known', rwda, {'seeds': 1, 'prompt.class_word': ''}),
  'rwda_ours': ('RWDA, its network alone', rwda, {'seeds': 1, 'score': 'fnn'}),
  'coop': ('CoOp', coop, {}),
  'cocoop': ('CoCoOp', cocoop, {}),
  'april_gan': ('APRIL-GAN', april_gan, {}),
  'sdp_plus': ('SDP+ of CLIP-AD', sdp_plus, {}),
  'fuzzyclip': ('FuzzyCLIP', fuzzyclip, {}),
  'anomalyclip': ('AnomalyCLIP', anomalyclip, {}),
}
ABLATIONS = {
  'qk': ('AnomalyCLIP, Q-K in place of V-V', anomalyclip, {'t1_dpam': False}),
  'aware': ('AnomalyCLIP, object-aware prompts', anomalyclip, {'t2_object_agnostic': False}),
  'untuned': ('AnomalyCLIP, no deep tokens', anomalyclip, {'t3_text_tuning': False}),
  'global': ('AnomalyCLIP, global loss alone', anomalyclip, {'loss.focal': False, 'loss.dice': False}),
  'local': ('AnomalyCLIP, local loss alone', anomalyclip, {'loss.ce': False}),
}
FEW = {f'{name}_{k}': (f'{title}, {k}-shot', module, {'fewshot.shots': k}) for name, title, module in (
  ('winclip', 'WinCLIP+', winclip), ('april_gan', 'APRIL-GAN', april_gan),
  ('patchcore', 'PatchCore on CLIP features', patchcore_clip), ('spade', 'SPADE on CLIP features', spade_clip),
  ('padim', 'PaDiM on CLIP features', padim_clip)) for k in (1, 2, 4)}
FEW |= {f'rwda_{k}': (f'RWDA, {k}-shot', rwda, {'fewshot.shots': k, 'seeds': 1, 'prompt.class_word': ''})
        for k in (1, 2, 4)}
ROWS = ZERO | ABLATIONS | FEW
METRICS = {'image_auroc': 'image AUROC', 'image_ap': 'image AP', 'pixel_auroc': 'pixel AUROC', 'aupro': 'AUPRO'}


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--aux', default='synthetic_aux')
  parser.add_argument('--target', default='synthetic_target')
  parser.add_argument('--root', default='data', help='where prepared data sets and features are kept')
  parser.add_argument('--clip', default='tiny', help='another export of the same architecture')
  parser.add_argument('--rows', default=','.join(ROWS), help='comma-separated, of %(default)s')
  parser.add_argument('--set', nargs='*', default=[], metavar='KEY=JSON', help='changes to every learned row')
  args = parser.parse_args()

  changes = {k: json.loads(v) for k, v in (s.split('=', 1) for s in args.set)}
  shared = {'clip': args.clip, 'machine.data_dir': args.root, 'data.aux': args.aux, 'data.target': args.target,
            'report.pictures': 0}
  print(f'{args.aux} to {args.target}, CLIP {args.clip}, {args.seeds} seeds; {runtime.device_summary()}\n')
  print('| system | ' + ' | '.join(METRICS.values()) + ' | s a seed |\n|' + '---|' * (len(METRICS) + 2), flush=True)
  for name in args.rows.split(','):
    title, module, own = ROWS[name]
    learns, drawn = hasattr(methods.get(module.get_config().method), 'loss'), 'fewshot.shots' in own
    start, found = time.perf_counter(), []
    for seed in range(args.seeds if learns or drawn else 1):
      seeds = {'seed': seed} | ({'fewshot.seed': seed} if drawn else {})
      found.append(measure(module, shared | (changes if learns else {}) | own | seeds))
    seconds = (time.perf_counter() - start) / len(found)
    cells = (cell([f[m] for f in found]) for m in METRICS)
    print(f'| {title} | ' + ' | '.join(cells) + f' | {seconds:.0f} |', flush=True)


def measure(module, changes):
  """The dataset's mean metrics of one run, in percent."""
  cfg = mlc.ConfigDict(module.get_config('demo').to_dict())
  with cfg.unlocked():
    for key, value in changes.items():
      cfg.update_from_flattened_dict({key: tuple(value) if isinstance(value, list) else value})
  with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
    experiment.run(mlc.FrozenConfigDict(cfg), Path(folder), 'run')
    path, = Path(folder).glob('results/*/*/*/metrics.json')
    mean = json.loads(path.read_text())['mean']
  return {m: np.nan if mean[m]['value'] is None else 100 * mean[m]['value'] for m in METRICS}


def cell(values):
  """'61.2' of one value, '61.2 ± 0.4' of several (sample standard deviation), '-' of undefined ones."""
  if np.isnan(values).any():
    return '-'
  spread = f' ± {np.std(values, ddof=1):.1f}' if len(values) > 1 else ''
  return f'{np.mean(values):.1f}{spread}'


if __name__ == '__main__':
  main()
