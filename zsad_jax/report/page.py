"""The page of one run: what was run, the tables, curves and pictures, in one file that needs no other."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jinja2
import numpy as np
from PIL import Image

from zsad_jax.report import figures, tables

_PAGES = jinja2.Environment(
    loader=jinja2.PackageLoader('zsad_jax.report', '.'), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True)
BUDGET = 6_700_000  # bytes of all thumbnails of a page: below 9 MiB as base64, the page below 10
LARGEST = 40_000  # bytes of one thumbnail
SIDES, QUALITIES = (384, 320, 256, 208, 160, 128, 96), (80, 60)


class Rule(NamedTuple):
  """What is called anomalous.

  Attributes:
    score: an image with this score or a higher one, None where there is no threshold.
    scale: of the maps' colours, None without maps.
    middle: what value is at the middle of the scale.
    source: sentence on where the score's threshold comes from.
  """
  score: float | None
  scale: figures.Scale | None
  middle: str
  source: str


def render(title: str, explanation: Sequence[str], rows: Mapping[str, Mapping], summary: Mapping[str, Mapping],
           published: Mapping[str, float] | None, *, drawn: Mapping[str, Sequence] = {}, shown: Iterable = (),
           count: int = 0, rule: Rule | None = None, sheets: Mapping[str, str] = {},
           plates: Mapping[str, tuple[bytes, str]] = {}) -> str:
  """HTML of one evaluation, a single file: no network, no other file, at most 10 MiB for a thousand images.

  Args:
    title: heading of the page.
    explanation: paragraphs on what was run and what was not.
    rows, summary, published: as for `tables.text`.
    drawn: {category: its charts as Markup}.
    shown: figures.Shown of the pictures, read one by one.
    count: how many these are.
    rule: what is called anomalous; needed for pictures.
    sheets: {category: path of its sheet of full size, relative to the page}.
    plates: {heading: (PNG, sentence on it)} of other figures.
  """
  metrics = list(next(iter(rows.values())))
  table = dict(rows=rows, summary=summary, published=published, metrics=metrics,
               notes=tables.notes(rows, summary, metrics))
  return _page(title, explanation, table, drawn, shown, count, rule, sheets, plates)


def render_predictions(title: str, explanation: Sequence[str], shown: Iterable, count: int, rule: Rule) -> str:
  """HTML of predictions on images without truth, as `render` makes it: pictures, with filters by what they are called.

  Args:
    title, explanation, shown, count, rule: as for `render`; a Shown without truth has mask and label None.
  """
  return _page(title, explanation, None, {}, shown, count, rule, {}, {})


def _page(title, explanation, table, drawn, shown, count, rule, sheets, plates):
  cards = [_card(number, item, rule, min(LARGEST, BUDGET // (2 * count))) for number, item in enumerate(shown)]
  scale = rule and rule.scale
  return _PAGES.get_template('page.html').render(
    title=title, explanation=explanation, table=table, percent=tables.percent, drawn=drawn, cards=cards, rule=rule,
    categories=list(dict.fromkeys([*drawn, *(card['category'] for card in cards if card['category'])])),
    truth=any(card['label'] is not None for card in cards), colours=figures.colours(17),
    ticks=[] if scale is None else [(100 * level, f'{v:.2g}') for level, v in zip(scale.levels, scale.values)],
    sheets=sheets, plates={name: (_smaller(png), text) for name, (png, text) in plates.items()})


def _card(number, item, rule, share):
  """What the template shows of one image; `share` bytes for each of its pictures."""
  called = None if rule.score is None else item.score >= rule.score
  wrong = '' if None in (called, item.label) or called == bool(item.label) else ('missed' if item.label else 'alarm')
  marked = item.mask is not None and bool(np.any(item.mask))
  pictures = [('input, true defect outlined' if marked else 'input', _thumbnail(figures.marked(item), share))]
  size = pictures[0][1][1:]
  if marked:
    pictures.append(('true mask', _mask(item.mask, size)))
  elif item.label is not None:
    pictures.append(('no mask' if item.mask is None else 'nothing marked', ('', *size)))
  if item.map is not None:
    over = item.map if item.map.ndim == 3 else figures.overlay(item.image, item.map, rule.scale)
    pictures.append(('anomaly map over the input', _thumbnail(over, share)))
  return dict(number=number, name=item.caption, category=item.category, label=item.label, score=float(item.score),
              called=called, wrong=wrong, pictures=pictures, truth=figures.TRUTH[item.label])


def _thumbnail(pixels, share):
  """(data URI, width, height) of the largest WebP picture within `share` bytes, or of the smallest."""
  picture = Image.fromarray(pixels)
  for side in SIDES:
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2)
    for quality in QUALITIES:
      out = io.BytesIO()
      small.save(out, 'webp', quality=quality, method=3)
      if out.tell() <= share:
        return _uri(out.getvalue(), 'webp'), *small.size
  return _uri(out.getvalue(), 'webp'), *small.size


def _smaller(png):
  """Data URI of a PNG as WebP, which is a tenth of its size."""
  out = io.BytesIO()
  Image.open(io.BytesIO(png)).convert('RGB').save(out, 'webp', quality=80)
  return _uri(out.getvalue(), 'webp')


def _mask(mask, size):
  """(data URI, width, height) of a mask [h, w] in black and white at this size."""
  out = io.BytesIO()
  Image.fromarray(np.where(np.asarray(mask) > 0, 255, 0).astype(np.uint8)).resize(
    size, Image.Resampling.BOX).point(lambda v: 255 * (v > 127)).convert('1').save(out, 'png')
  return _uri(out.getvalue(), 'png'), *size


def _uri(data, kind):
  return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'


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
