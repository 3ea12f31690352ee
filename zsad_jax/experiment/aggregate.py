"""A report on all results below some folders: means, spread over seeds, bootstrap intervals, published beside."""

import csv
import json
from pathlib import Path

import ml_collections as mlc
import numpy as np
from absl import logging

from zsad_jax import metrics
from zsad_jax.engine import logs
from zsad_jax.experiment import results
from zsad_jax.metrics import intervals
from zsad_jax.report import run_tables

DRAWS = 1000  # of the bootstrap
LEGEND = f"""\
Percent, means over categories. ± is the sample standard deviation over the seeds, where there are several. In square
brackets is a 95 % bootstrap interval of {DRAWS} draws. For image metrics the normal and the anomalous images of each
category are drawn anew and the categories stay: what other test images might have given. Pixels of an image are not
independent, so for pixel metrics the categories alone are drawn anew: how much the mean hangs on which they are. In
round brackets is what is published, beside rows on the same weights and data alone. Rows are in alphabetical order, not
in that of their figures. Runs whose configs, weights or auxiliary data differ are never averaged.
"""


def run(folders, out):
  """Prints a report on the results below `folders`, and writes report.md and report.csv to the folder `out`.

  Raises:
    ValueError: a folder that does not exist, or no results in any.
  """
  runs = read(folders)
  found, notes = run_tables.group_runs(runs)
  for note in notes:
    logging.warning('%s', note)
  found = [[run_tables.Row(name, members, cells(members)) for name, members in rows] for rows in found]
  text = '\n'.join(['# Results', '', LEGEND, *(run_tables.markdown(rows) for rows in found)])
  if notes:
    text += '\nLeft out:\n\n' + ''.join(f'- {note}\n' for note in notes)
  logs.write_atomic(out / 'report.md', text)
  logs.write_atomic(out / 'report.csv', run_tables.to_csv(found))
  print(f'{text}\n{len(runs)} result{"s" * (len(runs) > 1)}; report: {out / "report.md"}, {out / "report.csv"}')


def read(folders) -> list[run_tables.RunResult]:
  """Returns every result below the folders; what cannot be read, or is of another program, is named and skipped."""
  places = {}
  for folder in map(Path, folders):
    if not folder.is_dir():
      raise ValueError(f'{folder} is no folder; --results takes folders with results below them')
    places |= {path.resolve().parent: path.parent for path in sorted(folder.rglob('seed*/metrics.json'))}
  runs = []
  for place in places.values():
    try:
      runs.append(_run(place))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
      logging.warning('%s is skipped: it is damaged or not a result of this program (%s: %s)', place,
                      type(error).__name__, error)
  if not runs:
    raise ValueError(f'no results below {", ".join(map(str, folders))}; evaluate something first, or name other '
                     'folders with --results')
  return runs


def cells(runs) -> dict[str, dict[str, run_tables.Cell]]:
  """Returns {category: {metric: Cell}} of the runs of one experiment, with '' for the mean over categories."""
  first, (drawn, of_mean) = runs[0], _drawn(runs)
  found = {'': {metric: _mean(runs, metric, of_mean.get(metric)) for metric in first.mean}}
  for category, row in first.rows.items():
    found[category] = {metric: _number(
      [run.rows[category][metric]['value'] for run in runs], drawn.get(category, {}).get(metric),
      row[metric]['reason']) for metric in row}
  return found


def _mean(runs, metric, interval):
  """Cell of a mean over categories; of pixel metrics the categories are drawn anew."""
  summary, rows = runs[0].mean[metric], runs[0].rows
  if metric in metrics.PIXEL_METRICS:
    known = {category: [run.rows[category][metric]['value'] for run in runs] for category in rows}
    interval = intervals.over_categories(
      {category: None if None in values else float(np.mean(values)) for category, values in known.items()},
      replicates=DRAWS)
  reason = summary['reason']
  if summary['value'] is None:  # every category has one; which has which is in report.csv
    reason = '; '.join(dict.fromkeys(row[metric]['reason'] for row in rows.values()))
  cell = _number([run.mean[metric]['value'] for run in runs], interval, reason)
  return cell._replace(count=summary['count'], of=summary['of'])


def _number(values, interval, reason):
  if None in values:
    return run_tables.Cell(None, reason=reason or 'undefined for some seeds', count=0)
  low, high, _ = interval or (None, None, '')
  std = float(np.std(values, ddof=1)) if len(values) > 1 else None
  return run_tables.Cell(float(np.mean(values)), std, low, high, reason)


def _drawn(runs):
  """({category: {metric: Interval}}, {metric: Interval}) of image metrics; empty where a run has no scores."""
  if any(run.scores is None for run in runs):
    return {}, {}
  together = {}
  for category, (ids, labels, _) in runs[0].scores.items():
    if any(run.scores[category][0] != ids for run in runs):
      logging.warning('%s: its seeds were not measured on the same images; no interval', runs[0].place)
      return {}, {}
    together[category] = labels, np.stack([run.scores[category][2] for run in runs])
  return intervals.over_images(together, aupr=runs[0].recipe.get('eval.aupr', 'step'), replicates=DRAWS)


def _run(place):
  """The result in a folder seed<k>; raises where anything of it is missing or of another shape."""
  measured, manifest = (json.loads((place / name).read_text()) for name in ('metrics.json', 'manifest.json'))
  config, protocol = manifest['config'], measured['protocol']
  auxiliary, learns = protocol['auxiliary'], protocol['selection'] != 'none'
  recipe = {key: value for key, value in results.recipe(config, seeds=False).items()
            if key not in ('eval.oracle_epoch', 'data.target')  # the target is known by its content
            and (learns or (key.split('.')[0] not in ('train', 'optim') and not key.startswith('data.aux')))}
  trained_on = (auxiliary['name'] if auxiliary else 'texts') if learns else 'nothing'
  if protocol['checkpoint']:
    trained_on = f'checkpoint {Path(protocol["checkpoint"]).name}'
  shots = config.get('fewshot', {}).get('shots', 0)
  made = run_tables.RunResult(
    place=str(place), method=config['method'], label=config.get('label', ''), shots=shots, recipe=recipe,
    draw=(protocol['seed'], *([config['fewshot']['seed']] if shots else [])), target=protocol['target'],
    trained_on=trained_on, digests=(manifest['weights_sha256'], auxiliary['fingerprint'] if auxiliary else ''),
    image_size=manifest['metric_resolution'], selection=protocol['selection'],
    shared=protocol['shared_images']['count'], revision=manifest['git'] or manifest['zsad_jax'],
    mean=measured['mean'], rows=measured['per_category'], scores=None,
    published=results.published(mlc.FrozenConfigDict(config)) or {}, age=(place / 'metrics.json').stat().st_mtime)
  _check(made)
  return made._replace(scores=_scores(place, made, measured['counts']))


def _check(run):
  """Raises ValueError unless every category has every metric, a number or a reason."""
  for name, row in {'mean': run.mean, **run.rows}.items():
    for metric in metrics.METRICS:
      value = row[metric]['value']
      if not ((isinstance(value, float | int) and 0 <= value <= 1) or (value is None and row[metric]['reason'])):
        raise ValueError(f'{metric} of {name} is {value!r}')
  missing = {'name', 'split', 'categories', 'normal', 'anomalous', 'fingerprint'} - run.target.keys()
  if missing:
    raise ValueError(f'the target has no {", ".join(sorted(missing))}')


def _scores(place, run, counts):
  """{category: (ids, labels, scores)} of scores.csv; None, with a warning, where it is not what was measured."""
  path = place / 'scores.csv'
  if not path.exists():
    logging.warning('%s has no scores.csv: its image metrics get no interval', place)
    return None
  found = {category: ([], [], []) for category in run.rows}
  try:
    with path.open(newline='', encoding='utf-8') as file:
      for line in csv.DictReader(file):
        for column, value in zip(found[line['category']], (line['id'], int(line['label']), float(line['score']))):
          column.append(value)
    arrays = {c: (tuple(ids), np.array(labels), np.array(scores)) for c, (ids, labels, scores) in found.items()}
    for category, (_, labels, scores) in arrays.items():
      said = run.rows[category]['image_auroc']['value']
      complete = [int(np.sum(labels == k)) for k in (0, 1)] == [counts[category][k] for k in ('normal', 'anomalous')]
      if not complete or (said is not None and abs(metrics.auroc(labels, scores) - said) > 1e-6):
        raise ValueError(f'the scores of {category} are not those of metrics.json')
  except (ValueError, KeyError, TypeError) as error:
    logging.warning('%s is not used: it is damaged or of another result (%s: %s)', path, type(error).__name__, error)
    return None
  return arrays
