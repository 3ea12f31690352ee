"""The page of one run: what was run, the table, the overlay sheets."""

from collections.abc import Mapping, Sequence

import jinja2

from zsad_jax.report import tables

_PAGES = jinja2.Environment(
    loader=jinja2.PackageLoader('zsad_jax.report', '.'), autoescape=True, undefined=jinja2.StrictUndefined)


def render(title: str, explanation: Sequence[str], rows: Mapping[str, Mapping], summary: Mapping[str, Mapping],
           published: Mapping[str, float] | None, pictures: Mapping[str, str]) -> str:
  """HTML of one run; it needs no network, only the picture files beside it.

  Args:
    title: heading of the page.
    explanation: paragraphs on what was run and what was not.
    rows, summary, published: as for `tables.text`.
    pictures: {category: path of its sheet, relative to the page}.
  """
  metrics = list(next(iter(rows.values())))
  return _PAGES.get_template('page.html').render(
      title=title, explanation=explanation, rows=rows, summary=summary, published=published, pictures=pictures,
      metrics=metrics, percent=tables.percent, notes=tables.notes(rows, summary, metrics))


def explain(method: str, clip: str, image_size: int, learned: int, aux, target, shared: int = 0,
            texts: bool = False) -> list[str]:
  """Paragraphs on what a run did, what its numbers mean and what they do not.

  Args:
    method, clip: names.
    image_size: pixels a side.
    learned: how many numbers the method learned.
    aux: data.Dataset that it learned on, or None.
    target: data.Dataset that it was evaluated on.
    shared: how many images of the target were learned on.
    texts: whether it learned on texts.
  """
  done = f'{method} on CLIP {clip} at {image_size} px; '
  tested = f'Evaluated on {_described(target)}. '
  if aux is None:
    done += f'{learned} numbers were learned on texts, and ' * texts + 'no image was trained on.'
  else:
    done += f'{learned} numbers were learned on {_described(aux)}. CLIP itself was not changed.'
    tested += _news(aux, target, shared)
  reading = ('AUROC says how often an anomalous image (pixel) scores higher than a normal one: 50 is guessing. AUPRO '
             'counts each defect alike, large or small, at a limited share of false alarms.')
  lines = [done, tested.strip(), reading]
  if clip == 'tiny':
    lines.append('CLIP tiny is a working miniature for learning and tests, trained on drawings alone. These numbers '
                 f'show that the machinery works, not how {method} performs: for that use the config without :demo, '
                 'with real weights and real data.')
  return lines


def _news(aux, target, shared: int) -> str:
  """What of the target was never trained on."""
  if shared:
    return f'{shared} of these images were trained on, so this is not zero-shot.'
  kinds = not set(target.categories) & set(aux.categories)
  defects = sorted(set(target.defect_types) - set(aux.defect_types) - {'good'})
  return ('None of these kinds of things was trained on' if kinds else 'None of these images was trained on') + (
      f'; of their defects, these are new too: {", ".join(defects)}.' if kinds and defects else '.')


def _described(dataset) -> str:
  normal = int((dataset.labels == 0).sum())
  return (f'{len(dataset)} images of {dataset.name} ({normal} normal, {len(dataset) - normal} anomalous; '
          f'{", ".join(dataset.categories)})')
