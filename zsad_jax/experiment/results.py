"""Results of an evaluation on disk (metrics, scores, manifest, pictures, HTML page) and on the terminal."""

import json
import platform
import subprocess
import textwrap
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import zsad_jax
from zsad_jax import data, metrics
from zsad_jax.data import dataset_names, protocol
from zsad_jax.engine import evaluate, examples, logs, runtime
from zsad_jax.experiment import setup
from zsad_jax.experiment.run import Run
from zsad_jax.methods.parts import bounds
from zsad_jax.report import charts, gallery, headings, heatmap, html_page, sheet, tables

LINE = 110  # characters of a line on the terminal


class Evaluation(NamedTuple):
  """One evaluation of a run.

  Attributes:
    aux, target: data sets; aux is None if no images were trained on.
    result: metrics, scores and maps.
    selection: how the epoch was chosen, 'none' if nothing was trained.
    references: ids of the few-shot references by category, or None.
    parameters: number of trainable parameters.
    seconds: wall time.
    figures: {name: (PNG, caption)} of optional figures.
    oracle: whether the epoch was chosen on the target.
  """
  aux: data.Dataset | None
  target: data.Dataset
  result: evaluate.Result
  selection: str
  references: Mapping | None
  parameters: int
  seconds: float
  figures: Mapping[str, tuple[bytes, str]]
  oracle: bool = False


def write(run: Run, workdir: Path, evaluation: Evaluation) -> None:
  """Writes metrics, manifest, pictures and page below workdir/results, and prints the table.

  Of several processes the first does so.
  """
  if jax.process_index() > 0:
    return
  cfg, result, target = run.cfg, evaluation.result, evaluation.target
  folder = folder_of_seeds(run, workdir, oracle=evaluation.oracle) / f'seed{cfg.seed}'
  record = _protocol(run, evaluation)
  logs.write_json(folder / 'metrics.json', {
    'protocol': record, 'mean': result.summary, 'counts': result.counts,
    'per_category': {c: {m: v._asdict() for m, v in row.items()} for c, row in result.rows.items()}})
  logs.write_atomic(folder / 'per_category.csv', tables.to_csv(result.rows, result.counts))
  logs.write_atomic(folder / 'scores.csv', tables.scores_csv(
    target.ids, [target.categories[c] for c in target.category_index], target.labels.tolist(), result.scores.tolist()))
  indices = examples.select(target, result.scores, cfg.report.pictures)
  rule, thresholds = page_rule(target, result)
  logs.write_json(folder / 'manifest.json', manifest(run, record, evaluation.seconds) | {'figures': thresholds})
  sheets = {}
  if result.maps:
    for category, picture in sheet.by_category(target, indices, result.scores, result.maps, rule.scale):
      sheets[category] = f'pictures/{category}.png'
      logs.write_atomic(folder / sheets[category], picture)
  for name, (picture, _) in evaluation.figures.items():
    logs.write_atomic(folder / 'pictures' / f'{name}.png', picture)
  text = explanation(run, evaluation, record['shared_images']['count'])
  title = headings.run(setup.label(cfg), trained_on(run), dataset_names.short(cfg.data.target), cfg.seed,
                       split=cfg.data.split, shots=run.shots, oracle=evaluation.oracle)
  logs.write_atomic(folder / 'index.html', html_page.render(
    title, text, result.rows, result.summary, published(cfg), charts=page_charts(cfg, target, result, thresholds),
    examples=gallery.examples(target, indices, result.scores, result.maps), count=len(indices), rule=rule,
    sheets=sheets, figures=evaluation.figures))
  if result.curves:
    logs.write_json(folder / 'curves.json', curve_points(cfg, result))

  print(f'\n{title}\nmaps and masks at {run.clip.image_size} px, percent; epoch: {evaluation.selection}')
  print(tables.text(result.rows, result.summary, published(cfg)))
  print('\n' + '\n'.join(textwrap.fill(line, LINE) for line in text))
  print(f'\nresults: {folder}' + (f'\npage:    {folder / "index.html"}' if indices else ''))


def trained_on(run: Run) -> str:
  """Returns what a run is trained on, in file names and headings: an auxiliary data set, 'texts' or 'nothing'."""
  if run.trains_on_texts and run.trains:
    return 'texts'
  return dataset_names.short(run.cfg.data.aux) if run.trains else 'nothing'


def folder_of_seeds(run: Run, workdir: Path, *, oracle: bool = False) -> Path:
  """Returns the folder of the results of every seed."""
  shots = f'-{run.shots}shot' if run.shots else ''
  name = f'{trained_on(run)}-to-{dataset_names.short(run.cfg.data.target)}{shots}{"-oracle" * oracle}'
  return workdir / 'results' / run.cfg.method / name


def explanation(run: Run, evaluation: Evaluation, shared: int) -> list[str]:
  """Returns paragraphs on what was run, and on what the numbers do and do not show."""
  cfg = run.cfg
  text = html_page.explain(setup.label(cfg), cfg.clip, run.clip.image_size, evaluation.parameters, evaluation.aux,
                           evaluation.target, shared, run.trains_on_texts and run.trains)
  text += [f'{len(one.skipped):,} damaged images of {one.name} were left out, such as {one.skipped[0]}.'
           for one in (evaluation.aux, evaluation.target) if one is not None and one.skipped]
  if cfg.eval.aupr == 'trapezoid':
    text.append('AP is the area under the precision-recall curve by the trapezoidal rule, not average precision.')
  return text


def page_rule(dataset: data.Dataset, result: evaluate.Result) -> tuple[html_page.Rule, dict[str, Any]]:
  """Returns how the page judges images and colours maps, and the same numbers as a JSON-able dict."""
  both = 0 < np.sum(dataset.labels) < len(dataset.labels)
  accuracy, threshold = metrics.balanced_threshold(dataset.labels, result.scores) if both else (None, None)
  pixel = metrics.f1_threshold(list(result.curves.values())) if result.curves else None
  scale = None
  if result.maps:
    scale = heatmap.run_scale(list(result.maps.values()), pixel, 'the pixel threshold with the largest F1 of this run')
  source = (f'An image is called anomalous if it scores {threshold:.3g} or more, the threshold with the best balanced '
            f'accuracy in this run ({100 * accuracy:.1f} %). It was chosen with the ground truth: expect less on new '
            'images.' if both else
            'All images here are of one class, so no threshold for their scores can be chosen.')
  numbers: dict[str, Any] = {'image_threshold': threshold, 'pixel_threshold': pixel}
  if scale:
    numbers['colour_scale'] = {'values': scale.values.tolist(), 'levels': scale.levels.tolist(),
                               'middle': scale.middle}
  return html_page.Rule(threshold, source, scale), numbers


def page_charts(cfg: setup.Config, dataset: data.Dataset, result: evaluate.Result, thresholds: Mapping
                ) -> dict[str, Any]:
  """Returns {category: charts} of the page; {} if they are not asked for."""
  if not (cfg.report.figures and cfg.report.pictures):
    return {}
  of = lambda number: dataset.category_index == number
  return {category: charts.category_charts(
    result.rows[category], result.scores[of(number)], dataset.labels[of(number)], result.curves.get(category),
    result.histograms.get(category), score=thresholds['image_threshold'], pixel=thresholds['pixel_threshold'],
    limit=cfg.eval.fpr_limit) for number, category in enumerate(dataset.categories)}


def curve_points(cfg: setup.Config, result: evaluate.Result) -> dict[str, dict]:
  """Returns the points of all pixel curves and histograms as a JSON-able dict, to draw them elsewhere."""
  rounded = lambda arrays: [[float(f'{value:.6g}') for value in array] for array in arrays]
  return {category: {
    'roc': rounded(points.roc()), 'pr': rounded(points.pr()), 'pro': rounded(points.pro_curve(cfg.eval.fpr_limit)),
    'histogram': rounded(result.histograms[category])} for category, points in result.curves.items()}


def _protocol(run: Run, evaluation: Evaluation) -> dict[str, Any]:
  cfg = run.cfg
  record = protocol.record(evaluation.aux, evaluation.target, aux_name=cfg.data.aux, target_name=cfg.data.target,
                           allow_seen=cfg.data.allow_seen)
  return record | {'selection': evaluation.selection, 'seed': cfg.seed, 'checkpoint': cfg.checkpoint or None,
                   'references': evaluation.references}


def manifest(run: Run, record: Mapping, seconds: float) -> dict[str, Any]:
  """Returns everything needed to reproduce the numbers, as a JSON-able dict."""
  versions = {p: metadata.version(p) for p in ('jax', 'flax', 'optax', 'numpy', 'pillow', 'scipy')}
  return {
    'config': json.loads(run.cfg.to_json_best_effort()), 'protocol': record, 'weights_sha256': run.clip.fingerprint,
    'precision': run.clip.precision, 'image_size': run.clip.image_size, 'metric_resolution': run.clip.image_size,
    'zsad_jax': zsad_jax.__version__, 'git': git_revision(), 'versions': versions,
    'python': platform.python_version(), 'device': runtime.device_summary(), 'evaluation_seconds': round(seconds, 1),
    'peak_rss_bytes': runtime.peak_rss_bytes()}


def recipe(config: setup.Config | dict, *, seeds: bool = True) -> dict[str, Any]:
  """Returns {dotted key: value} of everything in a config, or in a manifest's, that the results depend on.

  Without `seeds`, the seeds of training and of the draw of references are left out: what remains is the same for all
  seeds of one experiment.
  """
  keys = dict(_flat(setup.sections(config, *setup.RESULT)))
  return keys if seeds else {key: value for key, value in keys.items() if key not in ('seed', 'fewshot.seed')}


def _flat(tree: Mapping, prefix: str = ''):
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _flat(value, f'{prefix}{key}.')
    else:
      yield prefix + key, value


def git_revision() -> str | None:
  """Returns the commit of this checkout, '-dirty' if files differ from it; None outside a git checkout."""
  try:
    done = subprocess.run(['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*'],
                          cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()


def published(cfg: setup.Config) -> dict[str, float] | None:
  """Returns the paper's means for this target, if weights, number of references and `only` match its measurement."""
  if 'published' not in cfg:
    return None
  stated = cfg.published.to_dict()
  clip, shots = stated.pop('clip', 'vit_l14_336'), stated.pop('shots', 0)
  same = cfg.clip == clip and ('fewshot' not in cfg or cfg.fewshot.shots == shots)
  same &= all(bounds.value_of(cfg, key) == value for key, value in stated.pop('only', ()))
  return stated.get(cfg.data.target, {}) if same else None
