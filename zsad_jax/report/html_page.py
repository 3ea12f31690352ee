"""The HTML page of one run: explanation, tables, charts and images, in a single file."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image

from zsad_jax.report import gallery, headings, heatmap, tables

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader('zsad_jax.report', '.'), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True)
_TEMPLATES.filters['heading'] = headings.metric
_TEMPLATES.filters['figure_heading'] = headings.figure
BUDGET = 6_700_000  # bytes of all thumbnails of a page: below 9 MiB as base64, and the page below 10 MiB
LARGEST = 40_000  # bytes of one thumbnail
SIDES, QUALITIES = (384, 320, 256, 208, 160, 128, 96), (80, 60)
NOTHING: Mapping[str, Any] = MappingProxyType({})


class Rule(NamedTuple):
  """How the page judges images and colours their anomaly maps.

  Attributes:
    threshold: an image is anomalous if it scores this or higher; None without a threshold.
    source: sentence on the origin of the threshold.
    scale: colours of the anomaly maps; None without maps.
  """
  threshold: float | None
  source: str
  scale: heatmap.Scale | None


def render(title: str, explanation: Sequence[str], rows: Mapping[str, Mapping], summary: Mapping[str, Mapping],
           published: Mapping[str, float] | None, *, charts: Mapping[str, Sequence] = NOTHING,
           examples: Iterable[gallery.Example] = (), count: int = 0, rule: Rule | None = None,
           sheets: Mapping[str, str] = NOTHING, figures: Mapping[str, tuple[bytes, str]] = NOTHING) -> str:
  """Returns the HTML of one evaluation: it needs no network and no other file, and stays below 10 MiB.

  Args:
    title: heading of the page.
    explanation: paragraphs below it.
    rows, summary, published: as for `tables.text`.
    charts: {category: its charts as Markup}.
    examples: images, read one by one.
    count: number of examples.
    rule: threshold and colours; needed for examples.
    sheets: {category: path of its full-size sheet, relative to the page}.
    figures: {name: (PNG, explanation)} of diagnostic figures.
  """
  metrics = list(next(iter(rows.values())))
  table = dict(rows=rows, summary=summary, published=published, metrics=metrics,
               notes=tables.notes(rows, summary, metrics))
  return _page(title, explanation, table, charts, examples, count, rule, sheets, figures)


def render_predictions(title: str, explanation: Sequence[str], examples: Iterable[gallery.Example], count: int,
                       rule: Rule) -> str:
  """Returns the HTML of predictions on images without ground truth: images only, filtered by verdict.

  Args:
    title, explanation, examples, count, rule: as for `render`; mask and label of every Example are None.
  """
  return _page(title, explanation, None, {}, examples, count, rule, {}, {})


def _page(title, explanation, table, charts, examples, count, rule, sheets, figures) -> str:
  cards = [_card(number, item, rule, min(LARGEST, BUDGET // (2 * count))) for number, item in enumerate(examples)]
  scale = rule and rule.scale
  return _TEMPLATES.get_template('page.html').render(
    title=title, explanation=explanation, table=table, percent=tables.percent, charts=charts, cards=cards, rule=rule,
    categories=list(dict.fromkeys([*charts, *(card['category'] for card in cards if card['category'])])),
    labelled=any(card['label'] is not None for card in cards), palette=heatmap.palette(17), scale=scale,
    ticks=[] if scale is None else [(100 * level, f'{v:.2g}') for level, v in zip(scale.levels, scale.values)],
    sheets=sheets, figures={name: (_webp(png), text) for name, (png, text) in figures.items()})


def _card(number: int, item: gallery.Example, rule: Rule, share: int) -> dict[str, Any]:
  """Returns what the template shows of one image; each of its pictures has at most `share` bytes."""
  verdict = None if rule.threshold is None else item.score >= rule.threshold
  error = ''
  if None not in (verdict, item.label) and verdict != bool(item.label):
    error = 'missed' if item.label else 'false-alarm'
  mask = item.mask if item.mask is not None and np.any(item.mask) else None
  uri, *size = _thumbnail(gallery.with_outline(item), share)
  pictures = [('input' if mask is None else 'input, defect outlined', (uri, *size))]
  if mask is not None:
    pictures.append(('ground-truth mask', _mask(mask, (size[0], size[1]))))
  elif item.label is not None:
    pictures.append(('no ground-truth mask' if item.mask is None else 'no defect in the ground truth', ('', *size)))
  if item.map is not None:
    overlay = item.map if item.map.ndim == 3 else heatmap.overlay(item.image, item.map, _scale(rule))
    pictures.append(('heat map', _thumbnail(overlay, share)))
  return dict(number=number, name=item.caption, category=item.category, label=item.label, score=float(item.score),
              verdict=verdict, error=error, pictures=pictures, ground_truth=gallery.GROUND_TRUTH[item.label])


def _scale(rule: Rule) -> heatmap.Scale:
  if rule.scale is None:
    raise ValueError('examples have anomaly maps, but the rule has no colour scale')
  return rule.scale


def _thumbnail(pixels: np.ndarray, share: int) -> tuple[str, int, int]:
  """Returns (data URI, width, height) of the largest WebP picture within `share` bytes, or of the smallest one."""
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


def _webp(png: bytes) -> str:
  """Returns a PNG as the data URI of a WebP picture, which is a tenth of its size."""
  out = io.BytesIO()
  Image.open(io.BytesIO(png)).convert('RGB').save(out, 'webp', quality=80)
  return _uri(out.getvalue(), 'webp')


def _mask(mask: np.ndarray, size: tuple[int, int]) -> tuple[str, int, int]:
  """Returns (data URI, width, height) of a mask [h, w] in black and white, resized to `size`."""
  out = io.BytesIO()
  Image.fromarray(np.where(np.asarray(mask) > 0, 255, 0).astype(np.uint8)).resize(
    size, Image.Resampling.BOX).point(lambda v: 255 * (v > 127)).convert('1').save(out, 'png')
  return _uri(out.getvalue(), 'png'), *size


def _uri(data: bytes, kind: str) -> str:
  return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'


def explain(method: str, clip: str, image_size: int, parameters: int, aux: Any, target: Any, shared: int = 0,
            texts: bool = False) -> list[str]:
  """Returns paragraphs on what was run, and on what its numbers do and do not show.

  Args:
    method, clip: their names.
    image_size: pixels per side.
    parameters: number of trainable parameters.
    aux: data.Dataset that was trained on, or None.
    target: data.Dataset that was tested on.
    shared: number of images in both.
    texts: whether the method was trained on texts.
  """
  setting = f'{method} on the CLIP weights {clip}, with images of {image_size} px. '
  tested = f'Tested on {_described(target)}. '
  if aux is not None:
    setting += f'{parameters:,} trainable parameters, trained on {_described(aux)}. CLIP itself stays frozen.'
    tested += _novelty(aux, target, shared)
  elif texts:
    setting += f'{parameters:,} trainable parameters, trained on texts; no image was trained on.'
  else:
    setting += 'Training-free: no image was trained on.'
  metrics = ('AUROC is the probability that an anomalous image (or pixel) scores higher than a normal one; guessing '
             'gives 50\u00a0%. AUPRO weights every defect equally, large or small, up to a limited false-positive '
             'rate.')
  lines = [setting, tested.strip(), metrics]
  if clip == 'tiny':
    lines.append('CLIP tiny is a small model for tests and first steps, pretrained on drawings. These numbers show '
                 f'that the pipeline works, not how well {method} performs: for that, use the config without :demo, '
                 'with real weights and real data.')
  return lines


def _novelty(aux: Any, target: Any, shared: int) -> str:
  """Returns a sentence on what of the target data set was never trained on."""
  if shared:
    return f'{shared:,} of these images were trained on, so this is not zero-shot.'
  if set(target.categories) & set(aux.categories):
    return 'None of these images was trained on.'
  defects = sorted(set(target.defect_types) - set(aux.defect_types) - {'good'})
  return 'None of these categories was trained on' + (
      f', and these defect types are new as well: {", ".join(defects)}.' if defects else '.')


def _described(dataset: Any) -> str:
  normal = int((dataset.labels == 0).sum())
  return (f'{len(dataset):,} images of {dataset.name} ({normal:,} normal, {len(dataset) - normal:,} anomalous; '
          f'{", ".join(dataset.categories)})')
