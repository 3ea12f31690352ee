"""A paper's table as an interruptible sweep: one experiment per row, measured means next to the published ones."""

import json
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections as mlc
from absl import logging

from zsad_jax import methods
from zsad_jax.engine import eval_cache, logs
from zsad_jax.experiment import experiment, results, setup
from zsad_jax.experiment.experiment import Means
from zsad_jax.report import headings, tables

# Failures of a row that do not end the table; any other exception is a bug.
FAILURES = (ValueError, OSError, FloatingPointError, RuntimeError)


class Row(NamedTuple):
  """One line of the table.

  Attributes:
    label: its name.
    column: the part of the table it belongs to, such as a data set; '' for a table of one part.
    folder: where it runs, below the table's workdir. Rows that share one share what is trained there.
    cfg: its config; None for a row that is only quoted.
    published: {metric: percent} of a quoted row.
  """
  label: str
  column: str
  folder: str
  cfg: setup.Config | None
  published: Mapping[str, float]

  @property
  def name(self) -> str:
    return f'{self.column}: {self.label}' if self.column else self.label

  def file(self, kind: str, suffix: str) -> str:
    """Name of a file of this row, in a folder that other columns may share."""
    return f'{kind}-{self.column}.{suffix}' if self.column else f'{kind}.{suffix}'


class Line(NamedTuple):
  """A printed line: its row, label, summary (None until measured or for a quoted row) and published means."""
  row: Row
  label: str
  summary: Mapping | None
  published: Mapping[str, float]


def run(cfg: setup.Config, workdir: Path, mode: str, overrides: Mapping[str, Any] | None = None) -> list[str]:
  """Runs every row of cfg.table below `workdir`, prints the table, writes table.md; returns the rows that failed.

  A row that was measured before, under the same config and by the same code, is not run again. A row that fails is
  shown with its error, and its traceback is in its folder; the same command tries it again.

  Args:
    cfg: a table's config: `table` has title, metrics and rows, each with a config of its own.
    workdir: folder of the table.
    mode: see experiment.run.
    overrides: {dotted key: value} for the config of every row that has the key.

  Raises:
    ValueError: see `planned`; or no row can be run as its config is.
  """
  rows = planned(cfg, overrides or {})
  refused = check(rows)
  source, failed = eval_cache.sources(), {}
  lines: list[Line] = []
  for number, row in enumerate(rows, 1):
    if row.cfg is None:
      lines.append(Line(row, row.label, None, row.published))
      continue
    print(f'\n=== row {number} of {len(rows)}: {row.name}', flush=True)
    published = results.published(row.cfg) or {}
    try:
      if number - 1 in refused:
        raise refused[number - 1]
      means = measured(row, workdir / row.folder, mode, source)
    except FAILURES as error:
      if jax.process_count() > 1:
        raise  # the other processes are still at this row
      failed[row.name] = f'{error} (traceback: {save_traceback(workdir / row.folder, row)})'
      print(f'error: {failed[row.name]}', flush=True)
      lines.append(Line(row, row.label, None, published))
    else:
      (workdir / row.folder / row.file('error', 'txt')).unlink(missing_ok=True)
      for selection, summary in means.items():
        label = f'{row.label}, {selection}' if 'oracle' in selection else row.label
        lines.append(Line(row, label, summary, published))
    write(cfg, workdir, lines, failed)
  if any(line.summary for line in lines):
    print(f'\n{write(cfg, workdir, lines, failed)}\ntable: {workdir / "table.md"}')
  return list(failed)


def planned(cfg: setup.Config, overrides: Mapping[str, Any]) -> list[Row]:
  """Returns the rows of cfg.table in their order.

  Raises:
    ValueError: two rows have the same name; or no row has an overridden key.
  """
  rows = []
  for row in cfg.table.rows.values():
    folder = re.sub(r'[^\w.+-]+', '-', row.get('folder', '') or row.label)
    if 'config' in row:
      rows.append(Row(row.label, row.column, folder, overridden(row.config, overrides), {}))
    else:
      quoted = {k: v for k, v in row.published.to_dict().items() if k in cfg.table.metrics}
      rows.append(Row(row.label, row.column, folder, None, quoted))
  for key in overrides:
    if not key.startswith('table.') and not any(row.cfg is not None and _has(row.cfg, key.split('.')) for row in rows):
      raise ValueError(f'--config.{key} is a key of no row of this table, whose rows have configs of their own')
  for kind in ('folder', 'label'):
    names = [f'{row.column}/{getattr(row, kind)}'.lstrip('/') for row in rows]
    if twice := sorted({name for name in names if names.count(name) > 1}):
      raise ValueError(f'two rows of the table have the same {kind}: {", ".join(twice)}')
  return rows


def overridden(cfg: setup.Config, overrides: Mapping[str, Any]) -> setup.Config:
  """Returns a row's config with those overrides whose keys it has."""
  return setup.with_overrides(mlc.FrozenConfigDict(cfg), {
    key: value for key, value in overrides.items() if _has(cfg, key.split('.'))})


def _has(cfg: Any, path: Sequence[str]) -> bool:
  for part in path:
    if not isinstance(cfg, mlc.ConfigDict | Mapping) or part not in cfg:
      return False
    cfg = cfg[part]
  return True


def check(rows: Sequence[Row]) -> dict[int, Exception]:
  """Returns the error of every row whose config is wrong, by index; raises it if all rows are."""
  wrong: dict[int, Exception] = {}
  runnable = [number for number, row in enumerate(rows) if row.cfg is not None]
  for number in runnable:
    cfg = rows[number].cfg
    try:
      setup.clip_without_weights(cfg, setup.check(cfg))
    except FAILURES as error:
      wrong[number] = error
  if len(wrong) == len(runnable):
    raise next(iter(wrong.values()), ValueError('the table has no row to run'))
  return wrong


def measured(row: Row, folder: Path, mode: str, source: str) -> Means:
  """Returns {selection: summary} of a row, as recorded or by running it; {} if it only trains."""
  record = folder / row.file('row', 'json')
  identity = {'config': setup.digest(setup.sections(row.cfg, *setup.RESULT), row.cfg.seeds), 'sources': source}
  before, means = recorded(record)
  if before == identity:
    print(f'measured before: {record}', flush=True)
    return means
  if before:
    changes = ' and '.join(key for key in identity if identity[key] != before.get(key))
    print(f'measured before, but {changes} changed since: measuring again', flush=True)
  folder.mkdir(parents=True, exist_ok=True)
  measured_means = experiment.run(row.cfg, folder, mode)
  if measured_means:
    logs.write_json(record, {'identity': identity, 'means': measured_means})
  return measured_means or {}


def recorded(path: Path) -> tuple[dict | None, Means]:
  """Returns (identity, means) of a row's record, (None, {}) if there is none that can be read."""
  if not path.exists():
    return None, {}
  try:
    record = json.loads(path.read_text())
    return dict(record['identity']), dict(record['means'])
  except (ValueError, KeyError, TypeError) as error:
    logging.warning('%s is damaged (%s: %s): measuring again', path, type(error).__name__, error)
    return None, {}


def save_traceback(folder: Path, row: Row) -> Path:
  """Writes the traceback of the current exception to the row's folder; returns the path."""
  path = folder / row.file('error', 'txt')
  logs.write_atomic(path, traceback.format_exc())
  return path


def write(cfg: setup.Config, workdir: Path, lines: Sequence[Line], failed: Mapping[str, str]) -> str:
  """Writes table.md with the lines so far, and returns its text."""
  parts = [cfg.table.title]
  for column in dict.fromkeys(line.row.column for line in lines):
    own = [line for line in lines if line.row.column == column]
    cfgs = [line.row.cfg for line in own if line.row.cfg is not None]
    cells = [(line.label, 'error' if line.row.name in failed else line.summary or '', line.published) for line in own]
    parts += ([column] if column else []) + ([caption(cfgs)] if cfgs else [])
    parts += [tables.comparison(cells, shown_metrics(own, cfg.table.metrics)), *undefined(own)]
  parts += [f'{name}: error: {error}' for name, error in failed.items()]
  parts.append('Means over categories, percent. In parentheses: published means, if weights and data are the same.')
  text = '\n\n'.join(parts) + '\n'
  logs.write_atomic(workdir / 'table.md', text)
  return text


def caption(cfgs: Iterable[setup.Config]) -> str:
  """Returns what the rows of one part of the table are measured with and trained on."""
  cfgs = list(cfgs)
  join = lambda values: ', '.join(dict.fromkeys(values))
  text = (f'On {join(cfg.data.target for cfg in cfgs)}, split {join(cfg.data.split for cfg in cfgs)}; CLIP '
          f'{join(f"{cfg.clip} at {cfg.image_size} px" for cfg in cfgs)}')
  sources = []
  for cfg in cfgs:
    method = methods.get(cfg.method)
    sources += ['texts'] if method.train else [cfg.data.aux] if method.loss else []
  return text + (f'; trained on {join(sources)}.' if sources else '; training-free.')


def shown_metrics(lines: Sequence[Line], metrics: Sequence[str]) -> list[str]:
  """Returns the metrics that some row has, measured or published; all of them while nothing is measured."""
  summaries = [line.summary for line in lines if line.summary]
  has = {m for summary in summaries for m in metrics if summary[m]['value'] is not None}
  return [m for m in metrics if not summaries or m in has or any(m in line.published for line in lines)]


def undefined(lines: Sequence[Line]) -> list[str]:
  """Returns one line for each reason why a metric is undefined in these rows."""
  reasons: dict[str, dict[str, None]] = {}
  for line in lines:
    for metric, value in (line.summary or {}).items():
      if value['value'] is None:
        reasons.setdefault(value['reason'], {})[metric] = None
  return [f'Undefined: {", ".join(map(headings.metric, metrics))} ({reason})' for reason, metrics in reasons.items()]
