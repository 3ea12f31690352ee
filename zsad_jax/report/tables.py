"""Per-category results as a table for the terminal and as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence

from zsad_jax.report import headings


def text(
  rows: Mapping[str, Mapping], summary: Mapping[str, Mapping], published: Mapping[str, float] | None = None,
) -> str:
  """A fixed-width table in percent: one line per category, the mean, and the published mean beside it.

  Args:
    rows: {category: {metric: Value}}, the same metrics in every row; an undefined value prints as '-'
      with its reason below the table.
    summary: {metric: {'value', 'count', 'of', 'reason'}} of `metrics.summarise`.
    published: {metric: percent} printed as its own line, labelled; None or {} for none.
  """
  names = list(next(iter(rows.values())))
  lines = [['Category', *map(headings.metric, names)]]
  lines += [[c, *(percent(r[n].value) for n in names)] for c, r in rows.items()]
  lines += [['mean', *(percent(summary[n]['value']) for n in names)]]
  if published:
    lines += [['published', *(f'{published[n]:.1f}' if n in published else '' for n in names)]]
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
  out = ['  '.join(v.ljust(w) if i == 0 else v.rjust(w) for i, (v, w) in enumerate(zip(line, widths)))
         for line in lines]
  rule = '-' * len(out[0])
  out = [out[0], rule, *out[1:1 + len(rows)], rule, *out[1 + len(rows):]]
  return '\n'.join([*out, *notes(rows, summary, names)])


def notes(rows, summary, names: Sequence[str]) -> list[str]:
  """Lines on what is undefined and why, and on means that leave categories out; `names` are the metrics."""
  reasons: dict[tuple[str, str], list[str]] = {}
  for category, row in rows.items():
    for name in names:
      if row[name].value is None:
        reasons.setdefault((row[name].reason, category), []).append(name)
  lines = [f'  - {c}: {", ".join(map(headings.metric, ms))} undefined: {reason}' for (reason, c), ms in reasons.items()]
  partial = {m: s for m in names if 0 < (s := summary[m])['count'] < s['of']}
  return lines + [f'  {headings.metric(m)}: mean over {s["count"]} of {s["of"]} categories' for m, s in partial.items()]


def percent(value: float | None) -> str:
  """A fraction as '97.3', an undefined value as '-'."""
  return '-' if value is None else f'{100 * value:.1f}'


def to_csv(rows: Mapping[str, Mapping], counts: Mapping[str, Mapping[str, int]]) -> str:
  """CSV with a header: category, counts, then every metric as a fraction; undefined cells are empty."""
  names = list(next(iter(rows.values())))
  keys = list(next(iter(counts.values())))
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(['category', *keys, *names])
  for category, row in rows.items():
    values = ['' if row[n].value is None else repr(float(row[n].value)) for n in names]
    writer.writerow([category, *(counts[category][k] for k in keys), *values])
  return out.getvalue()


def scores_csv(ids: Sequence[str], categories: Sequence[str], labels, scores) -> str:
  """CSV with a header: id, category, label (0 normal, 1 anomalous) and score of every image, in full precision."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(['id', 'category', 'label', 'score'])
  writer.writerows([one, category, int(label), repr(float(score))]
                   for one, category, label, score in zip(ids, categories, labels, scores, strict=True))
  return out.getvalue()


def comparison(rows: Sequence[tuple[str, Mapping, Mapping]], metrics: Sequence[str]) -> str:
  """A Markdown table in percent, measured means with the published ones behind them in brackets.

  Args:
    rows: (label, summary of `metrics.summarise`, {metric: published percent}); a metric that is not published, or
      not under the row's conditions, has no brackets. A summary over seeds has a standard deviation 'std' as well.
      In place of a summary, the text that every cell of the row has, such as 'error'; '' for a row that is quoted.
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
