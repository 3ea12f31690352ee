"""A paper's table as one sweep that may be cut short: one experiment a row, measured means beside the published."""

import json
import re
import traceback
from typing import NamedTuple

import jax
import ml_collections as mlc
from absl import logging

from zsad_jax import methods
from zsad_jax.engine import eval_cache, logs
from zsad_jax.experiment import experiment, generated, results, setup
from zsad_jax.report import tables

# What a row may fail of without ending the table; anything else is a mistake in the program.
FAILURES = (ValueError, OSError, FloatingPointError, RuntimeError)


class Row(NamedTuple):
  """One line of the table.

  Attributes:
    label: what it is called.
    column: which part of the table it stands in, such as a data set; '' for a table of one part.
    folder: where it runs, below the table's. Rows that share one share what is trained there.
    cfg: its config; None for a row that is only quoted.
    published: {metric: percent} for the quoted ones.
  """
  label: str
  column: str
  folder: str
  cfg: mlc.FrozenConfigDict | None
  published: dict

  @property
  def name(self):
    return f'{self.column}: {self.label}' if self.column else self.label


def run(cfg, workdir, mode) -> list[str]:
  """Runs every row of cfg.table below `workdir`, prints their table, writes table.md; returns the rows that failed.

  A row that was measured before, under the same config and by the same code, is not run again. A row that fails is a
  row with its error, and its traceback is in its folder; the same command tries it anew. cfg.table.seeds, where not
  empty, are run one after another and their mean and sample standard deviation shown; a method that trains several
  seeds at once keeps its own.

  Raises:
    ValueError: two rows of one name; or no row can be run as its config is.
  """
  rows = planned(cfg)
  refused = check(rows)
  source, lines, failed = eval_cache.sources(), [], {}
  for number, row in enumerate(rows, 1):
    if row.cfg is None:
      lines.append((row, row.label, '', row.published))
      continue
    print(f'\n=== row {number} of {len(rows)}: {row.name}', flush=True)
    try:
      if number - 1 in refused:
        raise refused[number - 1]
      found = measured(row, cfg.table.get('seeds', ()), workdir, mode, source)
    except FAILURES as error:
      if jax.process_count() > 1:
        raise  # the other processes are still at this row
      failed[row.name] = f'{error} (traceback: {leave_trace(workdir / row.folder, row)})'
      print(f'error: {failed[row.name]}', flush=True)
      lines.append((row, row.label, 'error', results.published(row.cfg) or {}))
      write(cfg, workdir, lines, failed)
      continue
    (workdir / row.folder / file_of(row, 'error', 'txt')).unlink(missing_ok=True)
    for selection, means in found.items():
      oracle = f', {selection}' if 'oracle' in selection else ''
      lines.append((row, row.label + oracle, means, results.published(row.cfg) or {}))
    write(cfg, workdir, lines, failed)
  if any(summary for _, _, summary, _ in lines):
    text = write(cfg, workdir, lines, failed)
    print(f'\n{text}\ntable: {workdir / "table.md"}')
  return list(failed)


def planned(cfg) -> list[Row]:
  """The rows of cfg.table, in their order; raises ValueError where two would be one."""
  rows = []
  for row in cfg.table.rows.values():
    runs = row.get('run', True)
    folder = re.sub(r'[^\w.+-]+', '-', row.get('folder', '') or row.label)
    quoted = {} if runs else {k: v for k, v in row.published.to_dict().items() if k in cfg.table.metrics}
    rows.append(Row(row.label, row.get('column', ''), folder, configured(cfg, row) if runs else None, quoted))
  for kind in ('folder', 'label'):
    names = [f'{row.column}/{getattr(row, kind)}' for row in rows]
    if twice := sorted({name.lstrip('/') for name in names if names.count(name) > 1}):
      raise ValueError(f'two rows of the table have the same name: {", ".join(twice)}')
  return rows


def configured(cfg, row):
  """Returns the config of a row: the table's without its `drops`, with its `own` and its `changes`, and its published.

  `changes` are (dotted key, value) of keys that the table's config has; `own` those that only this row's method has.

  Raises:
    ValueError: a change of a key that there is none of.
  """
  plain = cfg.to_dict()
  del plain['table']
  for dotted in row.get('drops', ()):
    *path, last = dotted.split('.')
    _node(plain, path).pop(last)
  for dotted, value in row.get('own', ()):
    *path, last = dotted.split('.')
    _node(plain, path)[last] = value
  changed = mlc.ConfigDict(plain)
  for dotted, _ in row.changes:
    *path, last = dotted.split('.')
    if last not in _node(plain, path):
      raise ValueError(f'row {row.label!r} changes {dotted}, which {plain["method"]} does not have')
  changed.update_from_flattened_dict(dict(row.changes))
  if 'epochs' in changed.get('optim', {}):
    changed.optim.epochs = changed.train.epochs  # one number in every config, by a reference that a row cannot keep
  method, label = (re.sub(r'[\W_]', '', text.lower().replace('+', 'plus')) for text in (changed.method, row.label))
  changed.label = row.label if method in label else f'{changed.method}, {row.label}'
  changed.published = row.published.to_dict()
  return mlc.FrozenConfigDict(changed)


def check(rows) -> dict[int, ValueError]:
  """What is wrong with the config of single rows, by number; raises where it is so of all of them."""
  wrong, run = {}, [number for number, row in enumerate(rows) if row.cfg is not None]
  for number in run:
    try:
      setup.check(rows[number].cfg)
      setup.shell(rows[number].cfg, methods.get(rows[number].cfg.method))
    except FAILURES as error:
      wrong[number] = error
  if len(wrong) == len(run):
    raise next(iter(wrong.values()), ValueError('the table has no row to run'))
  return wrong


def measured(row, seeds, workdir, mode, source):
  """{selection: means} of a row, from what it left before or by running it; {} where it only trains."""
  place = workdir / row.folder
  if not seeds or 'seeds' in row.cfg:
    return once(row, row.cfg, place, mode, source) or {}
  found = [once(row, of_seed(row.cfg, seed, number), place / f'seed{seed}', mode, source)
           for number, seed in enumerate(seeds)]
  if None in found:
    return {}
  return {' / '.join(dict.fromkeys(names)): generated.spread([one[name] for one, name in zip(found, names)], ddof=1)
          for names in zip(*found)}


def of_seed(cfg, seed, number):
  """The config of one of several seeds; the references of each are another draw."""
  draws = {'fewshot.seed': cfg.fewshot.seed + number} if 'fewshot' in cfg else {}
  return setup.with_changes(cfg, {'seed': seed, **draws})


def once(row, cfg, place, mode, source):
  """One experiment's {selection: means}; what an evaluation leaves in `place` answers for the next time."""
  record = place / file_of(row, 'row', 'json')
  identity = {'config': results.digest(cfg), 'sources': source}
  before, means = recorded(record)
  if before == identity:
    print(f'measured before: {record}', flush=True)
    return means
  if before:
    print(f'measured before, but {" and ".join(k for k in identity if identity[k] != before.get(k))} changed since: '
          'measured again', flush=True)
  place.mkdir(parents=True, exist_ok=True)
  means = experiment.run(cfg, place, mode)
  if means:
    logs.write_json(record, {'identity': identity, 'means': means})
  return means


def recorded(path):
  """(identity, means) of what a row left, (None, None) where there is nothing that can be read."""
  if not path.exists():
    return None, None
  try:
    found = json.loads(path.read_text())
    return dict(found['identity']), dict(found['means'])
  except (ValueError, KeyError, TypeError) as error:
    logging.warning('%s is damaged (%s: %s): measured again', path, type(error).__name__, error)
    return None, None


def file_of(row, kind, suffix):
  """Name of a row's own file in a folder that other columns may share."""
  return f'{kind}-{row.column}.{suffix}' if row.column else f'{kind}.{suffix}'


def leave_trace(place, row):
  """Writes the traceback of the error at hand to the row's folder; returns the path."""
  path = place / file_of(row, 'error', 'txt')
  logs.write_atomic(path, traceback.format_exc())
  return path


def write(cfg, workdir, lines, failed) -> str:
  """Writes table.md with what there is so far, and returns its text."""
  parts = [cfg.table.title]
  for column in dict.fromkeys(row.column for row, *_ in lines):
    own = [line[1:] for line in lines if line[0].column == column]
    of = [row.cfg for row, *_ in lines if row.column == column and row.cfg is not None]
    parts += ([column] if column else []) + ([caption(of)] if of else [])
    parts += [tables.comparison(own, shown(own, cfg.table.metrics)), *undefined(own)]
  parts += [f'{name}: error: {error}' for name, error in failed.items()]
  parts.append('Means over categories in percent; in brackets what is published, beside rows on the same weights and '
               'data alone.')
  text = '\n\n'.join(parts) + '\n'
  logs.write_atomic(workdir / 'table.md', text)
  return text


def caption(cfgs):
  """What the rows of one part of the table are measured on, by what, and what they learn from."""
  join = lambda values: ', '.join(dict.fromkeys(values))
  learned = [('texts' if hasattr(method, 'examples') else cfg.data.aux) for cfg in cfgs
             for method in (methods.get(cfg.method),) if hasattr(method, 'loss')]
  said = (f'On {join(cfg.data.target for cfg in cfgs)}, split {join(cfg.data.split for cfg in cfgs)}; CLIP '
          f'{join(f"{cfg.clip} at {cfg.image_size} px" for cfg in cfgs)}')
  return said + (f'; what is learned is learned on {join(learned)}.' if learned else '; nothing is learned.')


def shown(lines, metrics):
  """The metrics that some row has, measured or published; all of them where nothing is measured yet."""
  measured = [summary for _, summary, _ in lines if summary and summary != 'error']
  has = {m for summary in measured for m in metrics if summary[m]['value'] is not None}
  return [m for m in metrics if not measured or m in has or any(m in known for *_, known in lines)]


def undefined(lines):
  """One line for each reason why a metric has no value in these rows."""
  reasons = {}
  for _, summary, _ in lines:
    for metric, about in summary.items() if summary and summary != 'error' else ():
      if about['value'] is None:
        reasons.setdefault(about['reason'], {})[metric] = None
  return [f'Undefined: {", ".join(metrics)} ({reason})' for reason, metrics in reasons.items()]


def _node(tree, path):
  for part in path:
    tree = tree.setdefault(part, {})
  return tree
