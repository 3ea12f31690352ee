"""Results of many runs as tables: one for each target data set, one row for each experiment with all its seeds."""

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from zsad_jax.report import headings
from zsad_jax.report.tables import percent

HEADER = ('target', 'split', 'system', 'method', 'trained_on', 'image_size', 'selection', 'seeds', 'config',
          'category', 'metric', 'value', 'std', 'low', 'high', 'published', 'categories', 'of', 'reason')


class RunResult(NamedTuple):
  """One results folder, seed<k>.

  Attributes:
    place: the folder.
    method, label: names; shots: references per category.
    recipe: {config key: value} of the keys that results depend on, without the seeds.
    draw: its seeds: that of the run and, of few-shot methods, that of the references.
    target: the protocol's record of the target data set: name, split, categories, normal, anomalous, fingerprint.
    trained_on: name of the auxiliary data set, 'texts' or 'nothing'.
    digests: of the weights and of the auxiliary data set.
    image_size: pixels per side of images, maps and masks.
    selection: rule by which the epoch was chosen.
    shared: number of target images that were trained on.
    revision: of the program.
    mean: {metric: {'value', 'count', 'of', 'reason'}}; rows: {category: {metric: {'value', 'reason'}}}.
    scores: {category: (ids, labels [n], scores [n])}; None if they are missing.
    published: {metric: percent}, for these weights and data.
    age: the larger, the newer.
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
  def oracle(self) -> bool:
    return 'oracle' in self.selection

  @property
  def experiment(self) -> tuple:
    """Equal for the runs that are seeds of one experiment."""
    return tuple(sorted((k, repr(v)) for k, v in self.recipe.items())), self.digests, self.oracle

  @property
  def name(self) -> str:
    """The config's label, with the number of references, and whether the epoch was selected on the target."""
    name = self.label or self.method
    if self.shots and 'shot' not in name:
      name += f', {self.shots} shot{"s" * (self.shots > 1)}'
    return name + ' (oracle)' * self.oracle


class Cell(NamedTuple):
  """One number of a table, as fractions.

  Attributes:
    value: mean over seeds; None if undefined.
    std: sample standard deviation over seeds; None for one seed.
    low, high: interval; None without one.
    reason: why the value is undefined, or which categories are missing.
    categories, of: number of categories in the mean, and of all categories.
  """
  value: float | None
  std: float | None = None
  low: float | None = None
  high: float | None = None
  reason: str = ''
  categories: int = 1
  of: int = 1


class Row(NamedTuple):
  """An experiment: its name in the table, its runs by seed, and {category: {metric: Cell}} with '' for the mean."""
  name: str
  runs: tuple[RunResult, ...]
  cells: Mapping


def group_runs(runs: Iterable[RunResult]) -> tuple[list[list[tuple[str, tuple[RunResult, ...]]]], list[str]]:
  """Groups runs by target data set and experiment.

  Runs of different configs, weights or auxiliary data never share a row; rows of the same name get the config keys in
  which they differ. Of two runs with the same seed the newer one is used.

  Returns:
    A list with, for each target, [(row name, its runs by seed)]; and notes on the runs that were left out.
  """
  by_target: dict[tuple, dict] = {}
  for run in sorted(runs, key=lambda run: (run.name, run.trained_on, run.draw, -run.age)):
    rows = by_target.setdefault(
      (run.target['name'], run.target['split'], tuple(run.target['categories']), run.target['fingerprint']), {})
    rows.setdefault(run.experiment, []).append(run)
  notes, targets = [], []
  for key in sorted(by_target):
    groups = []
    for members in by_target[key].values():
      newest: dict[tuple, RunResult] = {}
      for run in members:
        if run.draw in newest:
          notes.append(f'{run.place}: left out, because {newest[run.draw].place} is newer and has the same config and '
                       f'seed ({run.name})')
        newest.setdefault(run.draw, run)
      groups.append(tuple(newest.values()))
    targets.append(list(zip(_row_names(groups), groups)))
  return targets, notes


def _row_names(groups: Sequence[tuple[RunResult, ...]]) -> list[str]:
  """Returns the names of the rows; equal names get the keys and values in which their configs differ."""
  plain = [group[0].name for group in groups]
  names = []
  for name, group in zip(plain, groups):
    namesakes = [other[0].recipe for other, other_name in zip(groups, plain) if other_name == name]
    own = group[0].recipe
    keys = sorted({key for recipe in namesakes for key in {*recipe, *own} if recipe.get(key) != own.get(key)})
    parts = [f'{key}={own[key]}' if key in own else f'no {key}' for key in keys[:3]] + ['...'] * (len(keys) > 3)
    names.append(f'{name} [{", ".join(parts)}]' if parts else name)
  # The same config may have run on other weights or other auxiliary data.
  distinct = '{} [weights {:.8}, auxiliary data {:.8}]'
  return [name if names.count(name) == 1 else distinct.format(name, *group[0].digests)
          for name, group in zip(names, groups)]


def markdown(rows: Sequence[Row]) -> str:
  """Returns the Markdown table of one target: percent, with spread, interval and published mean in each cell."""
  target, metrics = rows[0].runs[0].target, list(rows[0].cells[''])
  defined = [m for m in metrics if any(row.cells[''][m].value is not None for row in rows)]
  categories = f'{len(target["categories"])} {"category" if len(target["categories"]) == 1 else "categories"}'
  lines = [f'## {target["name"]}, split {target["split"]}', '',
           f'{target["normal"]:,} normal and {target["anomalous"]:,} anomalous images in {categories}; '
           f'{_metric_settings(rows)}.', '']
  head = ['System', 'Trained on', 'px', 'Selection', 'Seeds', *map(headings.metric, defined)]
  lines += [f'| {" | ".join(line)} |' for line in (
    head, ['---'] * len(head),
    *([*about(row), *(_cell(row.cells[''][m], row.runs[0].published.get(m)) for m in defined)] for row in rows))]
  return '\n'.join([*lines, '', *_notes(rows, metrics, defined)]) + '\n'


def about(row: Row) -> list[str]:
  """Returns the columns of a row before its numbers: system, trained on, px, selection, seeds."""
  run = row.runs[0]
  seeds = ', '.join(str(one.draw[0]) if len(set(one.draw)) == 1 else '/'.join(map(str, one.draw)) for one in row.runs)
  selection = ' / '.join(dict.fromkeys(one.selection for one in row.runs))
  return [row.name.replace('|', r'\|'), run.trained_on, str(run.image_size), selection, seeds]


def to_csv(tables: Sequence[Sequence[Row]]) -> str:
  """Returns every cell as a line of CSV, in fractions; the category of means is empty."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(HEADER)
  for row in (row for rows in tables for row in rows):
    run, (name, trained_on, size, selection, seeds) = row.runs[0], about(row)
    config = hashlib.sha256(repr(run.experiment).encode()).hexdigest()[:12]
    for category, cells in row.cells.items():
      for metric, cell in cells.items():
        published = '' if category or metric not in run.published else run.published[metric] / 100
        writer.writerow([run.target['name'], run.target['split'], name, run.method, trained_on, size, selection, seeds,
                         config, category, metric, *('' if x is None else repr(x) for x in cell[:4]), published,
                         cell.categories, cell.of, cell.reason])
  return out.getvalue()


def _metric_settings(rows: Sequence[Row]) -> str:
  """Returns the settings of the metrics that all rows share; otherwise the rows' names contain them."""
  parts = []
  for key, text in (('eval.fpr_limit', 'AUPRO up to a false-positive rate of {}'), ('eval.aupr', 'AP by the {} rule')):
    values = {row.runs[0].recipe.get(key) for row in rows}
    parts += [text.format(*values)] if len(values) == 1 and None not in values else []
  return ', '.join(parts) or 'the settings of the metrics differ'


def _cell(cell: Cell, published: float | None) -> str:
  if cell.value is None:
    text = f'n/a ({cell.reason})'
  else:
    text = percent(cell.value) + ('' if cell.std is None else f' ± {100 * cell.std:.1f}')
    text += '' if cell.low is None else f' [{percent(cell.low)}, {percent(cell.high)}]'
  return text + ('' if published is None else f' ({published:.1f})')


def _notes(rows: Sequence[Row], metrics: Sequence[str], defined: Sequence[str]) -> list[str]:
  """Returns the list below the table: metrics without values, incomplete means, and rows that are not zero-shot."""
  listed = lambda keys: ', '.join(map(headings.metric, keys))
  undefined: dict[str, list[str]] = {}
  for m in metrics:
    if m not in defined:
      undefined.setdefault('; '.join(dict.fromkeys(row.cells[''][m].reason for row in rows)), []).append(m)
  notes = [f'- {listed(keys)}: n/a ({reason}) for every row.' for reason, keys in undefined.items()]
  for row in rows:
    notes += _row_notes(row)
  if len(sizes := sorted({row.runs[0].image_size for row in rows})) > 1:
    notes.append(f'- Rows differ in resolution ({", ".join(map(str, sizes))} px): do not compare their pixel metrics.')
  return notes


def _row_notes(row: Row) -> list[str]:
  partial: dict[tuple, list[str]] = {}
  for m, cell in row.cells[''].items():
    if 0 < cell.categories < cell.of:
      partial.setdefault((cell.categories, cell.of, cell.reason), []).append(headings.metric(m))
  notes = [f'- {row.name}: {", ".join(names)}: means over {count} of {of} categories; {reason}.'
           for (count, of, reason), names in partial.items()]
  if row.runs[0].shared:
    notes.append(f'- {row.name}: {row.runs[0].shared:,} of these images were trained on, so this is not zero-shot.')
  if row.runs[0].oracle:
    notes.append(f'- {row.name}: the epoch was chosen on these test images, so this is not a fair comparison.')
  if len(revisions := {run.revision for run in row.runs}) > 1:
    notes.append(f'- {row.name}: its seeds ran on several revisions of the program: {", ".join(sorted(revisions))}.')
  return notes
