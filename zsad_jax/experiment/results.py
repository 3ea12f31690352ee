"""What an experiment leaves behind: its results, tables and pictures on disk, and the same printed."""

import hashlib
import json
import platform
import subprocess
import textwrap
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np

import zsad_jax
from zsad_jax import metrics
from zsad_jax.data import naming
from zsad_jax.engine import examples, logs, runtime
from zsad_jax.experiment import setup
from zsad_jax.report import charts, gallery, headings, heatmap, html_page, sheet, tables

# Keys on which no result depends: names for people, places on disk, how much is done at once, what is drawn.
NO_RESULT = ('label', 'published', 'table', 'bench', 'predict', 'export', 'machine', 'report', 'seeds')


def write(cfg, workdir, clip, learnable, aux, dataset, result, rules, seconds, suffix='', plates=MappingProxyType({})):
  """Writes metrics, manifest, pictures and page of an evaluation below workdir/results, and prints the table.

  Of several processes the first does so.

  plates: {name: (PNG, sentence on it)} of further figures.
  """
  if jax.process_index() > 0:
    return
  source = 'nothing' if rules['selection'] == 'none' else 'texts' if aux is None else naming.short(cfg.data.aux)
  place = folder(cfg, workdir, source, suffix) / f'seed{cfg.seed}'
  logs.write_json(place / 'metrics.json', {
    'protocol': rules, 'mean': result.summary, 'counts': result.counts,
    'per_category': {c: {m: v._asdict() for m, v in row.items()} for c, row in result.rows.items()}})
  logs.write_atomic(place / 'per_category.csv', tables.to_csv(result.rows, result.counts))
  logs.write_atomic(place / 'scores.csv', tables.scores_csv(
    dataset.ids, [dataset.categories[c] for c in dataset.category_index], dataset.labels, result.scores))
  indices = examples.select(dataset, result.scores, cfg.report.pictures)
  rule, thresholds = ruled(dataset, result)
  logs.write_json(place / 'manifest.json', manifest(cfg, clip, rules, seconds) | {'figures': thresholds})
  sheets = {}
  if result.maps:
    for category, picture in sheet.by_category(dataset, indices, result.scores, result.maps, rule.scale):
      sheets[category] = f'pictures/{category}.png'
      logs.write_atomic(place / sheets[category], picture)
  for name, (picture, _) in plates.items():
    logs.write_atomic(place / 'pictures' / f'{name}.png', picture)
  label, learned = cfg.get('label') or headings.method(cfg.method), sum(x.size for x in jax.tree.leaves(learnable))
  explanation = html_page.explain(label, cfg.clip, clip.image_size, learned, aux, dataset, rules['shared_images']['count'],
                             source == 'texts')
  explanation += [f'{len(one.skipped)} damaged images of {one.name} were left out, among them {one.skipped[0]}.'
                  for one in (aux, dataset) if one is not None and one.skipped]
  if cfg.eval.aupr == 'trapezoid':
    explanation.append('AP is the area under the precision-recall curve by the trapezoidal rule: no average precision.')
  title = headings.run(label, source, naming.short(cfg.data.target), cfg.seed, split=cfg.data.split,
                       shots=cfg.fewshot.shots if 'fewshot' in cfg else 0, oracle='oracle' in suffix)
  logs.write_atomic(place / 'index.html', html_page.render(
    title, explanation, result.rows, result.summary, published(cfg), charts=curves(cfg, dataset, result, thresholds),
    examples=gallery.examples(dataset, indices, result.scores, result.maps), count=len(indices), rule=rule, sheets=sheets,
    figures=plates))
  if result.curves:
    logs.write_json(place / 'curves.json', numbers(cfg, result))

  print(f'\n{title}; maps and masks at {clip.image_size} px; percent; selection: {rules["selection"]}')
  print(tables.text(result.rows, result.summary, published(cfg)))
  print('\n' + '\n'.join(textwrap.fill(line, 110) for line in explanation))
  print(f'\nresults: {place}\n' + (f'look at: {place / "index.html"}' if indices else ''))


def ruled(dataset, result):
  """(html_page.Rule, the same as a dict of thresholds and colour scale): what is called anomalous on the page of a run."""
  name, both = 'the pixel threshold with the largest F1 of this run', 0 < np.sum(dataset.labels) < len(dataset.labels)
  right, score = metrics.balanced_threshold(dataset.labels, result.scores) if both else (None, None)
  pixel = metrics.f1_threshold(list(result.curves.values())) if result.curves else None
  scale = heatmap.run_scale(list(result.maps.values()), pixel, name) if result.maps else None
  source = (f'An image is called anomalous from a score of {score:.3g} on: of all thresholds the one with the best '
            f'balanced accuracy in this run, {100 * right:.1f} %. It was chosen with the truth: on new images expect '
            'less.' if both else
            'All images here are of one class, so that no threshold of their scores can be chosen.')
  known = {'image_threshold': score, 'pixel_threshold': pixel}
  if scale:
    known['colour_scale'] = {'values': scale.values.tolist(), 'levels': scale.levels.tolist(), 'middle': scale.middle}
  return html_page.Rule(score, source, scale), known


def curves(cfg, dataset, result, thresholds):
  """{category: charts} of the page, {} where figures are not asked for."""
  if not (cfg.report.figures and cfg.report.pictures):
    return {}
  of = lambda number: dataset.category_index == number
  return {category: charts.category_charts(
    result.rows[category], result.scores[of(number)], dataset.labels[of(number)], result.curves.get(category),
    result.histograms.get(category), score=thresholds['image_threshold'], pixel=thresholds['pixel_threshold'],
    limit=cfg.eval.fpr_limit) for number, category in enumerate(dataset.categories)}


def numbers(cfg, result):
  """The points of all pixel curves and histograms, as a JSON-able dict, to draw them elsewhere."""
  plain = lambda arrays: [[float(f'{value:.6g}') for value in array] for array in arrays]
  return {category: {
    'roc': plain(found.roc()), 'pr': plain(found.pr()), 'pro': plain(found.pro_curve(cfg.eval.fpr_limit)),
    'histogram': plain(result.histograms[category])} for category, found in result.curves.items()}


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
                          cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
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
  same &= all(setup.get(cfg, key) == value for key, value in stated.pop('only', ()))
  return stated.get(cfg.data.target, {}) if same else None
