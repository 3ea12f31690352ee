"""What an experiment leaves behind: its results, tables and pictures on disk, and the same printed."""

import hashlib
import json
import platform
import subprocess
import textwrap
from importlib import metadata
from pathlib import Path

import jax

import zsad_jax
from zsad_jax import inputs, logs, runtime
from zsad_jax.data import naming
from zsad_jax.report import page, pictures, tables

# Keys on which no result depends: names for people, places on disk, how much is done at once, what is drawn.
NO_RESULT = ('label', 'published', 'table', 'data.root', 'data.manual_dir', 'features.dir', 'features.store',
             'features.max_gb', 'features.batch', 'eval.batch', 'eval.pictures')


def write(cfg, workdir, clip, learnable, aux, dataset, result, rules, seconds, suffix=''):
  """Writes metrics, manifest, pictures and page of an evaluation below workdir/results, and prints the table."""
  source = 'nothing' if rules['selection'] == 'none' else 'texts' if aux is None else naming.short(cfg.data.aux)
  place = folder(cfg, workdir, source, suffix) / f'seed{cfg.seed}'
  logs.write_json(place / 'metrics.json', {
    'protocol': rules, 'mean': result.summary, 'counts': result.counts,
    'per_category': {c: {m: v._asdict() for m, v in row.items()} for c, row in result.rows.items()}})
  logs.write_atomic(place / 'per_category.csv', tables.to_csv(result.rows, result.counts))
  logs.write_atomic(place / 'scores.csv', tables.scores_csv(
    dataset.ids, [dataset.categories[c] for c in dataset.category_index], dataset.labels, result.scores))
  logs.write_json(place / 'manifest.json', manifest(cfg, clip, rules, seconds))
  shown = {}
  for category, picture in pictures.sheets(dataset, result.scores, result.maps):
    shown[category] = f'pictures/{category}.png'
    logs.write_atomic(place / shown[category], picture)
  label, learned = cfg.get('label', cfg.method), sum(x.size for x in jax.tree.leaves(learnable))
  explanation = page.explain(label, cfg.clip, clip.image_size, learned, aux, dataset, rules['shared_images']['count'],
                             source == 'texts')
  title = f'{label}, {place.parent.name}: split {cfg.data.split}, seed {cfg.seed}'
  logs.write_atomic(place / 'index.html', page.render(
    title, explanation, result.rows, result.summary, published(cfg), shown))

  print(f'\n{title}; maps and masks at {clip.image_size} px; percent; selection: {rules["selection"]}')
  print(tables.text(result.rows, result.summary, published(cfg)))
  print('\n' + '\n'.join(textwrap.fill(line, 110) for line in explanation))
  print(f'\nresults: {place}\n' + (f'look at: {place / "index.html"}' if shown else ''))


def folder(cfg, workdir, source, suffix=''):
  """The folder of the results of every seed: on the target, of what was learned from `source`."""
  shots = f'-{cfg.fewshot.shots}shot' if 'fewshot' in cfg and cfg.fewshot.shots else ''
  return workdir / 'results' / cfg.method / f'{source}-to-{naming.short(cfg.data.target)}{shots}{suffix}'


def manifest(cfg, clip, protocol, seconds):
  """Everything that would have to be equal for the same numbers, as a JSON-able dict."""
  versions = {p: metadata.version(p) for p in ('jax', 'flax', 'optax', 'numpy', 'pillow', 'scipy')}
  return {
    'config': json.loads(cfg.to_json_best_effort()), 'protocol': protocol, 'weights_sha256': clip.fingerprint,
    'precision': clip.precision,
    'image_size': clip.image_size, 'metric_resolution': clip.image_size, 'zsad_jax': zsad_jax.__version__,
    'git': git_revision(), 'versions': versions, 'python': platform.python_version(),
    'device': runtime.device_summary(), 'evaluation_seconds': round(seconds, 1),
    'peak_rss_bytes': runtime.peak_rss_bytes()}


def recipe(config, *, seeds=True):
  """{dotted key: value} of a config, or of what a manifest has of it, without the keys that no result depends on.

  Without `seeds`, the seeds of learning and of the draw of references are left out too: what remains is equal for
  all seeds of one experiment.
  """
  plain = config if isinstance(config, dict) else json.loads(config.to_json_best_effort())
  left_out = NO_RESULT + (() if seeds else ('seed', 'fewshot.seed'))
  return {key: value for key, value in _flat(plain) if key not in left_out and key.split('.')[0] not in left_out}


def _flat(tree, prefix=''):
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _flat(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def digest(config, *, seeds=True):
  """Sixteen hexadecimal digits that two configs share where their results should be the same, see recipe."""
  text = json.dumps(recipe(config, seeds=seeds), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def git_revision():
  """The commit of this checkout, '-dirty' where files differ from it; None outside a git checkout."""
  try:
    said = subprocess.run(['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*'],
                          cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return None
  return said.stdout.strip()


def published(cfg):
  """The paper's means for this target, where weights, number of references and `only` are as in its measurement."""
  if 'published' not in cfg:
    return None
  stated = cfg.published.to_dict()
  clip, shots = stated.pop('clip', 'vit_l14_336'), stated.pop('shots', 0)
  same = cfg.clip == clip and ('fewshot' not in cfg or cfg.fewshot.shots == shots)
  same &= all(inputs.get(cfg, key) == value for key, value in stated.pop('only', ()))
  return stated.get(cfg.data.target, {}) if same else None
