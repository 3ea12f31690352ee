"""Results by category as tables: fixed-width text, Markdown and CSV."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from zsad_jax.report import headings


def text(rows: Mapping[str, Mapping], summary: Mapping[str, Mapping], published: Mapping[str, float] | None = None
         ) -> str:
  """Returns a fixed-width table in percent: one line per category, the mean, and the published mean.

  Args:
    rows: {category: {metric: Value}} with the same metrics in every row. An undefined value prints as '-', with its
      reason below the table.
    summary: {metric: {'value', 'count', 'of', 'reason'}}, of `metrics.summarise`.
    published: {metric: percent}; None or {} for no such line.
  """
  metrics = list(next(iter(rows.values())))
  lines = [['Category', *map(headings.metric, metrics)]]
  lines += [[category, *(percent(row[m].value) for m in metrics)] for category, row in rows.items()]
  lines += [['mean', *(percent(summary[m]['value']) for m in metrics)]]
  if published:
    lines += [['published', *(f'{published[m]:.1f}' if m in published else '' for m in metrics)]]
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
  out = ['  '.join(v.ljust(w) if i == 0 else v.rjust(w) for i, (v, w) in enumerate(zip(line, widths)))
         for line in lines]
  rule = '-' * len(out[0])
  out = [out[0], rule, *out[1:1 + len(rows)], rule, *out[1 + len(rows):]]
  return '\n'.join([*out, *(f'  {note}' for note in notes(rows, summary, metrics))])


def notes(rows: Mapping[str, Mapping], summary: Mapping[str, Mapping], metrics: Sequence[str]) -> list[str]:
  """Returns sentences on undefined values, with their reasons, and on means that leave categories out.

  Args:
    rows, summary: as for `text`.
    metrics: keys to report on.
  """
  undefined: dict[tuple[str, str], list[str]] = {}
  for category, row in rows.items():
    for m in metrics:
      if row[m].value is None:
        undefined.setdefault((row[m].reason, category), []).append(headings.metric(m))
  lines = [f'{category}: {", ".join(names)} undefined: {reason}' for (reason, category), names in undefined.items()]
  partial = {m: s for m in metrics if 0 < (s := summary[m])['count'] < s['of']}
  return lines + [f'{headings.metric(m)}: mean over {s["count"]} of {s["of"]} categories' for m, s in partial.items()]


def percent(value: float | None) -> str:
  """Returns a fraction as '97.3' and an undefined value as '-'."""
  return '-' if value is None else f'{100 * value:.1f}'


def to_csv(rows: Mapping[str, Mapping], counts: Mapping[str, Mapping[str, int]]) -> str:
  """Returns CSV with a header: category, counts, then every metric as a fraction; undefined cells are empty.

  Args:
    rows: as for `text`.
    counts: {category: {name: number}}, with the same names in every category.
  """
  metrics = list(next(iter(rows.values())))
  names = list(next(iter(counts.values())))
  values = lambda row: ['' if row[m].value is None else repr(float(row[m].value)) for m in metrics]
  return _csv(['category', *names, *metrics], (
    [category, *(counts[category][name] for name in names), *values(row)] for category, row in rows.items()))


def scores_csv(ids: Sequence[str], categories: Sequence[str], labels: Sequence[int], scores: Sequence[float]) -> str:
  """Returns CSV with a header: id, category, label (0 normal, 1 anomalous) and full-precision score of every image."""
  return _csv(['id', 'category', 'label', 'score'], (
    [name, category, int(label), repr(float(score))]
    for name, category, label, score in zip(ids, categories, labels, scores, strict=True)))


def _csv(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(header)
  writer.writerows(lines)
  return out.getvalue()


def comparison(rows: Sequence[tuple[str, Mapping | str, Mapping]], metrics: Sequence[str]) -> str:
  """Returns a Markdown table in percent: measured means, with the published ones in brackets.

  Args:
    rows: (label, summary of `metrics.summarise`, {metric: published percent}). A metric without a published value for
      these conditions has no brackets; a summary over seeds also has the standard deviation 'std'. A text in place of
      the summary goes into every cell, such as 'error', or '' for a row that is only quoted.
    metrics: the columns.
  """
  lines = [['', *map(headings.metric, metrics)], ['---'] * (1 + len(metrics))]
  for label, summary, published in rows:
    cells = [summary if isinstance(summary, str) else percent(summary[m]['value']) + _spread(summary[m].get('std'))
             for m in metrics]
    lines.append([label, *(f'{cell} ({published[m]:.1f})'.strip() if m in published else cell
                           for m, cell in zip(metrics, cells))])
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _spread(std: float | None) -> str:
  return '' if std is None else f' ± {100 * std:.1f}'
