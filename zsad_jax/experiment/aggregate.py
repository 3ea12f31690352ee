"""A report on all results below some folders: means, spread over seeds, bootstrap intervals and published means."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections as mlc
import numpy as np
from absl import logging

from zsad_jax import metrics
from zsad_jax.engine import logs
from zsad_jax.experiment import results
from zsad_jax.metrics import intervals
from zsad_jax.report import run_tables
from zsad_jax.report.run_tables import Cell, RunResult

DRAWS = 1000  # of the bootstrap
LEGEND = f"""\
Percent, means over categories. ± is the sample standard deviation over seeds, if there are several. Square brackets
hold a 95 % bootstrap interval from {DRAWS:,} draws. For image metrics, the normal and the anomalous images of each
category are resampled: how other test images might change the number. Pixels of one image are not independent, so for
pixel metrics the categories are resampled: how much the mean depends on which they are. Parentheses hold published
means, for rows on the same weights and data. Rows are in alphabetical order. Runs whose configs, weights or auxiliary
data differ are never averaged.
"""


def run(folders: Iterable[Path | str], out: Path) -> None:
  """Prints a report on the results below `folders`, and writes report.md and report.csv to the folder `out`.

  Raises:
    ValueError: a folder does not exist, or none has results.
  """
  runs = read(folders)
  groups, notes = run_tables.group_runs(runs)
  for note in notes:
    logging.warning('%s', note)
  tables = [[run_tables.Row(name, members, cells(members)) for name, members in rows] for rows in groups]
  text = '\n'.join(['# Results', '', LEGEND, *(run_tables.markdown(rows) for rows in tables)])
  if notes:
    text += '\nLeft out:\n\n' + ''.join(f'- {note}\n' for note in notes)
  logs.write_atomic(out / 'report.md', text)
  logs.write_atomic(out / 'report.csv', run_tables.to_csv(tables))
  print(f'{text}\n{len(runs)} result{"s" * (len(runs) > 1)}; report: {out / "report.md"}, {out / "report.csv"}')


def read(folders: Iterable[Path | str]) -> list[RunResult]:
  """Returns every result below the folders; those that cannot be read are named in a warning and left out."""
  folders = list(folders)
  places: dict[Path, Path] = {}
  for folder in map(Path, folders):
    if not folder.is_dir():
      raise ValueError(f'{folder} is not a folder; --results takes folders with results below them')
    places |= {path.resolve().parent: path.parent for path in sorted(folder.rglob('seed*/metrics.json'))}
  runs = []
  for place in places.values():
    try:
      runs.append(_read_run(place))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
      logging.warning('%s is left out: it is damaged or not a result of this program (%s: %s)', place,
                      type(error).__name__, error)
  if not runs:
    raise ValueError(f'no results below {", ".join(map(str, folders))}; run an evaluation first, or name other '
                     'folders with --results')
  return runs


def cells(runs: Sequence[RunResult]) -> dict[str, dict[str, Cell]]:
  """Returns {category: {metric: Cell}} of the runs of one experiment, with '' for the mean over categories."""
  first, (by_category, of_mean) = runs[0], _image_intervals(runs)
  table = {'': {metric: _mean(runs, metric, of_mean.get(metric)) for metric in first.mean}}
  for category, row in first.rows.items():
    table[category] = {metric: _cell(
      [run.rows[category][metric]['value'] for run in runs], by_category.get(category, {}).get(metric),
      row[metric]['reason']) for metric in row}
  return table


def _mean(runs: Sequence[RunResult], metric: str, interval: Any) -> Cell:
  """Cell of a mean over categories; for pixel metrics the categories are resampled."""
  summary, rows = runs[0].mean[metric], runs[0].rows
  if metric in metrics.PIXEL_METRICS:
    values_of = {category: [run.rows[category][metric]['value'] for run in runs] for category in rows}
    interval = intervals.over_categories(
      {category: None if None in values else float(np.mean(values)) for category, values in values_of.items()},
      replicates=DRAWS)
  reason = summary['reason']
  if summary['value'] is None:  # every category has a reason; report.csv lists them one by one
    reason = '; '.join(dict.fromkeys(row[metric]['reason'] for row in rows.values()))
  cell = _cell([run.mean[metric]['value'] for run in runs], interval, reason)
  return cell._replace(categories=summary['count'], of=summary['of'])


def _cell(values: Sequence[float | None], interval: Any, reason: str) -> Cell:
  if None in values:
    return Cell(None, reason=reason or 'undefined for some seeds', categories=0)
  low, high, _ = interval or (None, None, '')
  std = float(np.std(values, ddof=1)) if len(values) > 1 else None
  return Cell(float(np.mean(values)), std, low, high, reason)


def _image_intervals(runs: Sequence[RunResult]) -> tuple[Mapping, Mapping]:
  """({category: {metric: Interval}}, {metric: Interval}) of image metrics; empty if a run has no scores."""
  if any(run.scores is None for run in runs):
    return {}, {}
  samples = {}
  for category, (ids, labels, _) in runs[0].scores.items():
    if any(run.scores[category][0] != ids for run in runs):
      logging.warning('%s: its seeds were not evaluated on the same images; no interval', runs[0].place)
      return {}, {}
    samples[category] = labels, np.stack([run.scores[category][2] for run in runs])
  return intervals.over_images(samples, aupr=runs[0].recipe.get('eval.aupr', 'step'), replicates=DRAWS)


def _read_run(place: Path) -> RunResult:
  """The result in a folder seed<k>; raises if anything is missing or has another form."""
  measured, manifest = (json.loads((place / name).read_text()) for name in ('metrics.json', 'manifest.json'))
  config, protocol = manifest['config'], measured['protocol']
  auxiliary, trained = protocol['auxiliary'], protocol['selection'] != 'none'
  recipe = {key: value for key, value in results.recipe(config, seeds=False).items()
            if key not in ('eval.oracle_epoch', 'eval.std_ddof', 'data.target')  # targets: by content
            and (trained or (key.split('.')[0] not in ('train', 'optim') and not key.startswith('data.aux')))}
  trained_on = (auxiliary['name'] if auxiliary else 'texts') if trained else 'nothing'
  if protocol['checkpoint']:
    trained_on = f'checkpoint {Path(protocol["checkpoint"]).name}'
  shots = config.get('fewshot', {}).get('shots', 0)
  run = RunResult(
    place=str(place), method=config['method'], label=config.get('label', ''), shots=shots, recipe=recipe,
    draw=(protocol['seed'], *([config['fewshot']['seed']] if shots else [])), target=protocol['target'],
    trained_on=trained_on, digests=(manifest['weights_sha256'], auxiliary['fingerprint'] if auxiliary else ''),
    image_size=manifest['metric_resolution'], selection=protocol['selection'],
    shared=protocol['shared_images']['count'], revision=manifest['git'] or manifest['zsad_jax'],
    mean=measured['mean'], rows=measured['per_category'], scores=None,
    published=results.published(mlc.FrozenConfigDict(config)) or {}, age=(place / 'metrics.json').stat().st_mtime)
  _check(run)
  return run._replace(scores=_scores(place, run, measured['counts']))


def _check(run: RunResult) -> None:
  """Raises ValueError unless every category has every metric, a number or a reason."""
  for name, row in {'mean': run.mean, **run.rows}.items():
    for metric in metrics.METRICS:
      value = row[metric]['value']
      if not ((isinstance(value, float | int) and 0 <= value <= 1) or (value is None and row[metric]['reason'])):
        raise ValueError(f'{metric} of {name} is {value!r}')
  missing = {'name', 'split', 'categories', 'normal', 'anomalous', 'fingerprint'} - run.target.keys()
  if missing:
    raise ValueError(f'the target has no {", ".join(sorted(missing))}')


def _scores(place: Path, run: RunResult, counts: Mapping) -> dict[str, tuple] | None:
  """{category: (ids, labels, scores)} of scores.csv; None, with a warning, if it does not fit the metrics."""
  path = place / 'scores.csv'
  if not path.exists():
    logging.warning('%s has no scores.csv: its image metrics get no interval', place)
    return None
  columns: dict[str, tuple[list, list, list]] = {category: ([], [], []) for category in run.rows}
  try:
    with path.open(newline='', encoding='utf-8') as file:
      for line in csv.DictReader(file):
        for column, value in zip(columns[line['category']], (line['id'], int(line['label']), float(line['score']))):
          column.append(value)
    arrays = {c: (tuple(ids), np.array(labels), np.array(scores)) for c, (ids, labels, scores) in columns.items()}
    for category, (_, labels, scores) in arrays.items():
      auroc = run.rows[category]['image_auroc']['value']
      complete = [int(np.sum(labels == k)) for k in (0, 1)] == [counts[category][k] for k in ('normal', 'anomalous')]
      if not complete or (auroc is not None and abs(metrics.auroc(labels, scores) - auroc) > 1e-6):
        raise ValueError(f'the scores of {category} are not those of metrics.json')
  except (ValueError, KeyError, TypeError) as error:
    logging.warning('%s is not used: it is damaged or belongs to another result (%s: %s)', path, type(error).__name__,
                    error)
    return None
  return arrays
