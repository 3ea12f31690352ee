"""Results of many runs as tables: one for every target, a row for every experiment, its seeds together."""

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from zsad_jax.report import headings
from zsad_jax.report.tables import percent

HEADER = ('target', 'split', 'system', 'method', 'trained_on', 'image_size', 'selection', 'seeds', 'config',
          'category', 'metric', 'value', 'std', 'low', 'high', 'published', 'categories', 'of', 'reason')


class Run(NamedTuple):
  """One results folder, seed<k>.

  Attributes:
    place: the folder.
    method, label: names; shots: references a category.
    recipe: {config key: value} of what results depend on, without the seeds.
    draw: what makes it one of several seeds.
    target: the protocol's record of the target set: name, split, categories, normal, anomalous, fingerprint.
    trained_on: name of what was trained on; 'nothing', 'texts'.
    digests: of the weights and of the auxiliary set.
    image_size: pixels a side of images, maps and masks.
    selection: the rule by which the epoch was chosen.
    shared: images of the target that were trained on.
    revision: of the program.
    mean: {metric: {'value', 'count', 'of', 'reason'}}; rows: {category: {metric: {'value', 'reason'}}}.
    scores: {category: (ids, labels [n], scores [n])}, None where they are not kept.
    published: {metric: percent} that holds for the run.
    age: the larger the newer.
  """
  place: str
  method: str
  label: str
  shots: int
  recipe: Mapping
  draw: tuple
  target: Mapping
  trained_on: str
  digests: tuple[str, str]
  image_size: int
  selection: str
  shared: int
  revision: str
  mean: Mapping
  rows: Mapping
  scores: Mapping | None
  published: Mapping
  age: float

  @property
  def oracle(self):
    return 'oracle' in self.selection

  @property
  def experiment(self):
    """What runs must agree on to be seeds of one experiment."""
    return tuple(sorted((k, repr(v)) for k, v in self.recipe.items())), self.digests, self.oracle

  @property
  def name(self):
    plain = lambda text: ''.join(c for c in text.lower().replace('+', 'plus') if c.isalnum())
    label = self.label or self.method
    name = label if plain(self.method) in plain(label) else f'{self.method}, {label}'
    if self.shots and 'shot' not in name:
      name += f', {self.shots} shot{"s" * (self.shots > 1)}'
    return name + ' (oracle)' * self.oracle


class Cell(NamedTuple):
  """One number: the mean over seeds, their sample standard deviation, an interval; or the reason why there is none.

  All are fractions; std is None for one seed; low and high are None where there is no interval.
  """
  value: float | None
  std: float | None = None
  low: float | None = None
  high: float | None = None
  reason: str = ''
  count: int = 1
  of: int = 1


class Row(NamedTuple):
  """An experiment: its name in the table, its runs by seed, and {category: {metric: Cell}} with '' for the mean."""
  name: str
  runs: tuple[Run, ...]
  cells: Mapping


def group_runs(runs: Iterable[Run]) -> tuple[list[list[tuple[str, tuple[Run, ...]]]], list[str]]:
  """Returns ([[(name, runs of all seeds)] of one target] of all targets, what was left out and why).

  Runs of different configs, weights or auxiliary data are never of one row; where their names are the same, the
  names say in what they differ. Of two runs with the same seed the newer stands.
  """
  by_target: dict[tuple, dict] = {}
  for run in sorted(runs, key=lambda run: (run.name, run.trained_on, run.draw, -run.age)):
    rows = by_target.setdefault(
      (run.target['name'], run.target['split'], tuple(run.target['categories']), run.target['fingerprint']), {})
    rows.setdefault(run.experiment, []).append(run)
  notes, found = [], []
  for key in sorted(by_target):
    groups = []
    for members in by_target[key].values():
      newest = {}
      for run in members:
        if run.draw in newest:
          notes.append(f'{run.place}: {run.name} with the same config and seed is in {newest[run.draw].place} too, '
                       'which is newer and stands in the table')
        newest.setdefault(run.draw, run)
      groups.append(tuple(newest.values()))
    found.append(list(zip(_names(groups), groups)))
  return found, notes


def _names(groups: Sequence[tuple[Run, ...]]) -> list[str]:
  """Names of the rows; equal ones get the keys and values in which they differ."""
  plain = [group[0].name for group in groups]
  names = []
  for name, group in zip(plain, groups):
    alike = [other[0].recipe for other, other_name in zip(groups, plain) if other_name == name]
    own = group[0].recipe
    keys = sorted({key for recipe in alike for key in {*recipe, *own} if recipe.get(key) != own.get(key)})
    said = [f'{key}={own[key]}' if key in own else f'no {key}' for key in keys[:3]] + ['...'] * (len(keys) > 3)
    names.append(f'{name} [{", ".join(said)}]' if said else name)
  # The same config may be of other weights or other auxiliary data.
  unlike = '{} [weights {:.8}, auxiliary data {:.8}]'
  return [name if names.count(name) == 1 else unlike.format(name, *group[0].digests)
          for name, group in zip(names, groups)]


def markdown(rows: Sequence[Row]) -> str:
  """Returns the table of one target in Markdown: percent, with spread, interval and published mean in each cell."""
  first = rows[0].runs[0]
  target, metrics = first.target, list(rows[0].cells[''])
  shown = [m for m in metrics if any(row.cells[''][m].value is not None for row in rows)]
  lines = [f'## {target["name"]}, split {target["split"]}', '',
           f'{target["normal"]} normal and {target["anomalous"]} anomalous images of {len(target["categories"])} '
           f'{"category" if len(target["categories"]) == 1 else "categories"}; {_settings(rows)}.', '']
  head = ['system', 'trained on', 'px', 'selection', 'seeds', *map(headings.metric, shown)]
  lines += [f'| {" | ".join(line)} |' for line in (
    head, ['---'] * len(head), *([*about(row), *(_cell(row.cells[''][m], row.runs[0].published.get(m)) for m in shown)]
                                 for row in rows))]
  return '\n'.join([*lines, '', *_notes(rows, metrics, shown)]) + '\n'


def about(row: Row) -> list[str]:
  """Returns what a row says of itself before its numbers."""
  run = row.runs[0]
  seeds = ', '.join(str(one.draw[0]) if len(set(one.draw)) == 1 else '/'.join(map(str, one.draw)) for one in row.runs)
  selection = ' / '.join(dict.fromkeys(one.selection for one in row.runs))
  return [row.name.replace('|', r'\|'), run.trained_on, str(run.image_size), selection, seeds]


def to_csv(found: Sequence[Sequence[Row]]) -> str:
  """Returns every cell, of the means (category empty) and of the categories, as a line of CSV; fractions."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(HEADER)
  for row in (row for rows in found for row in rows):
    run, (name, learned, size, selection, seeds) = row.runs[0], about(row)
    config = hashlib.sha256(repr(run.experiment).encode()).hexdigest()[:12]
    for category, cells in row.cells.items():
      for metric, cell in cells.items():
        published = '' if category or metric not in run.published else run.published[metric] / 100
        writer.writerow([run.target['name'], run.target['split'], name, run.method, learned, size, selection, seeds,
                         config, category, metric, *('' if x is None else repr(x) for x in cell[:4]), published,
                         cell.count, cell.of, cell.reason])
  return out.getvalue()


def _settings(rows):
  """How the metrics were measured, where all rows agree; else the rows' names say it."""
  said = []
  for key, text in (('eval.fpr_limit', 'AUPRO up to a false-positive rate of {}'), ('eval.aupr', 'AP by the {} rule')):
    values = {row.runs[0].recipe.get(key) for row in rows}
    said += [text.format(*values)] if len(values) == 1 and None not in values else []
  return ', '.join(said) or 'settings of metrics differ'


def _cell(cell: Cell, published: float | None) -> str:
  if cell.value is None:
    text = f'n/a ({cell.reason})'
  else:
    text = percent(cell.value) + ('' if cell.std is None else f' ± {100 * cell.std:.1f}')
    text += '' if cell.low is None else f' [{percent(cell.low)}, {percent(cell.high)}]'
  return text + ('' if published is None else f' ({published:.1f})')


def _notes(rows, metrics, shown) -> list[str]:
  said = lambda metrics: ', '.join(map(headings.metric, metrics))
  nowhere: dict[str, list[str]] = {}
  for m in metrics:
    if m not in shown:
      nowhere.setdefault('; '.join(dict.fromkeys(row.cells[''][m].reason for row in rows)), []).append(m)
  notes = [f'- {said(names)}: n/a ({reason}) for every row.' for reason, names in nowhere.items()]
  for row in rows:
    partial: dict[tuple, list[str]] = {}
    for m, cell in row.cells[''].items():
      if 0 < cell.count < cell.of:
        partial.setdefault((cell.count, cell.of, cell.reason), []).append(m)
    notes += [f'- {row.name}: {said(names)}: means over {count} of {of} categories; {reason}.'
              for (count, of, reason), names in partial.items()]
    if row.runs[0].shared:
      notes.append(f'- {row.name}: {row.runs[0].shared} of these images were trained on; this is not zero-shot.')
    if row.runs[0].oracle:
      notes.append(f'- {row.name}: the epoch was chosen on these very images; this is no fair comparison.')
    if len(revisions := {run.revision for run in row.runs}) > 1:
      notes.append(f'- {row.name}: its seeds are of several revisions of the program: {", ".join(sorted(revisions))}.')
  if len(sizes := sorted({row.runs[0].image_size for row in rows})) > 1:
    notes.append(f'- Rows differ in resolution ({", ".join(map(str, sizes))} px): do not compare their pixel metrics.')
  return notes
