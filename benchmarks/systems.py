r"""Every system side by side on one target, over several seeds: the table of the README.

  python benchmarks/systems.py [--seeds=3] [--aux=synthetic_aux] [--target=synthetic_target] [--rows=clip,anomalyclip]
  python benchmarks/systems.py --target=folder:/path/in/mvtec/layout

All rows read the embedded tiny CLIP: they compare what the methods do in miniature, not how good they are on real
weights. Methods that train do so on --aux, once per seed; references are drawn again for each seed; rows that do
neither have one run. Percent; mean and sample standard deviation.
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
  'rwda': ('RWDA', rwda, {}),
  'rwda_known': ('RWDA, the object known', rwda, {'prompt.class_word': ''}),
  'rwda_ours': ('RWDA, its network alone', rwda, {'score': 'fnn'}),
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
FEW |= {f'rwda_{k}': (f'RWDA, {k}-shot', rwda, {'fewshot.shots': k, 'prompt.class_word': ''})
        for k in (1, 2, 4)}
ROWS = ZERO | ABLATIONS | FEW
METRICS = {'image_auroc': 'Image AUROC', 'image_ap': 'Image AP', 'pixel_auroc': 'Pixel AUROC', 'aupro': 'AUPRO'}


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--aux', default='synthetic_aux')
  parser.add_argument('--target', default='synthetic_target')
  parser.add_argument('--root', default='data', help='folder of prepared data sets and features')
  parser.add_argument('--clip', default='tiny', help='another export of the same architecture')
  parser.add_argument('--rows', default=','.join(ROWS), help='comma-separated, of %(default)s')
  parser.add_argument('--set', nargs='*', default=[], metavar='KEY=JSON', help='overrides of rows trained on images')
  args = parser.parse_args()

  overrides = {key: _value(text) for key, text in (word.split('=', 1) for word in args.set)}
  shared = {'clip': args.clip, 'machine.data_dir': args.root, 'data.aux': args.aux, 'data.target': args.target,
            'report.pictures': 0, 'seed': 0, 'seeds': args.seeds, 'eval.std_ddof': 1}
  print(f'{args.aux} to {args.target}, CLIP {args.clip}, {args.seeds} seeds; {runtime.device_summary()}\n')
  print('| system | ' + ' | '.join(METRICS.values()) + ' | s per seed |\n|' + '---|' * (len(METRICS) + 2), flush=True)
  for name in args.rows.split(','):
    title, module, own = ROWS[name]
    c = module.get_config('demo')
    trains = methods.get(c.method).loss is not None
    c.update_from_flattened_dict(
      shared | (overrides if trains else {}) | ({'fewshot.seed': 0} if 'fewshot' in c else {}) | own)
    start, means = time.perf_counter(), measure(mlc.FrozenConfigDict(c))
    runs = len(means['image_auroc'].get('values', (0,)))
    print(f'| {title} | ' + ' | '.join(cell(means[metric]) for metric in METRICS)
          + f' | {(time.perf_counter() - start) / runs:.0f} |', flush=True)


def measure(cfg: mlc.FrozenConfigDict) -> dict[str, dict]:
  """Returns {metric: {'value', ...}} over the target's categories, with 'std' and 'values' of several seeds."""
  with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
    means, = experiment.run(cfg, Path(folder), 'run').values()
  return means


def cell(mean: dict) -> str:
  """Returns '61.2', '61.2 ± 0.4' for several seeds, '-' if undefined."""
  if mean['value'] is None:
    return '-'
  spread = f' ± {100 * mean["std"]:.1f}' if mean.get('std') is not None else ''
  return f'{100 * mean["value"]:.1f}{spread}'


def _value(text):
  """A config value from JSON; lists become tuples."""
  value = json.loads(text)
  return tuple(value) if isinstance(value, list) else value


if __name__ == '__main__':
  main()
