"""A paper's table: one experiment a row, measured means beside the published ones."""

import re

import ml_collections as mlc

from zsad_jax import experiment, inputs, logs, methods, results
from zsad_jax.report import tables


def run(cfg, workdir, mode):
  """Runs the experiment of every row of cfg.table below `workdir`, then prints their table and writes table.md.

  Every row is checked before the first begins. What a row has trained and encoded is kept, so that a table that was
  cut short goes on where it stopped.

  Raises:
    ValueError: two rows of one name, or what experiment.run raises.
  """
  rows = [(row.label, configured(cfg, row)) for row in cfg.table.rows.values()]
  folders = [re.sub(r'[^\w.-]+', '-', label) for label, _ in rows]
  if len(set(folders)) < len(folders):
    raise ValueError(f'two rows of the table have the same name: {folders}')
  for _, changed in rows:
    inputs.check(changed)
    inputs.shell(changed, methods.get(changed.method))
  lines = []
  for number, ((label, changed), folder) in enumerate(zip(rows, folders), 1):
    print(f'\n=== row {number} of {len(rows)}: {label}', flush=True)
    (workdir / folder).mkdir(parents=True, exist_ok=True)
    for selection, means in (experiment.run(changed, workdir / folder, mode) or {}).items():
      oracle = f', {selection}' if 'oracle' in selection else ''
      lines.append((label + oracle, means, results.published(changed) or {}))
  if lines:
    text = f'{cfg.table.title}\n\n{tables.beside(lines, cfg.table.metrics)}\n'
    logs.write_atomic(workdir / 'table.md', text)
    print(f'\n{text}\nMeans over categories in percent; in brackets what is published, beside rows on the same weights '
          f'and data alone.\ntable: {workdir / "table.md"}')


def configured(cfg, row):
  """Returns the config of a row: the table's with the row's changes and published numbers."""
  changed = mlc.ConfigDict(cfg.to_dict())
  del changed['table']
  changed.update_from_flattened_dict(dict(row.changes))
  changed.label = row.label
  changed.published = row.published.to_dict()
  return mlc.FrozenConfigDict(changed)
