"""One evaluation loop for every method: maps on the device, exact metrics on the host, category by category."""

import contextlib
from collections.abc import Callable, Collection
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from zsad_jax import metrics
from zsad_jax.engine import eval_cache as progress_lib
from zsad_jax.engine import examples, runtime
from zsad_jax.engine import features as features_lib


class Result(NamedTuple):
  """What an evaluation found.

  Attributes:
    rows: {category: {metric: metrics.Value}}.
    summary: {metric: {'value', 'count', 'of', 'reason'}}, see metrics.summarise.
    counts: {category: {'normal', 'anomalous', 'vanished', 'contradicted'}}: images, anomalous ones whose mask is
      empty at the metric's resolution, and normal ones whose mask is not.
    scores: [n] float32 image scores, in the data set's order.
    maps: {index: [R, R] float32} for the images that were asked for.
    curves: {category: metrics.Curves} of pixels where they were asked for and are defined.
    histograms: {category: metrics.Histogram} of pixel scores, the same.
  """
  rows: dict[str, dict[str, metrics.Value]]
  summary: dict[str, dict]
  counts: dict[str, dict[str, int]]
  scores: np.ndarray
  maps: dict[int, np.ndarray]
  curves: dict[str, metrics.Curves] = {}  # noqa: RUF012 (never written)
  histograms: dict[str, metrics.Histogram] = {}  # noqa: RUF012 (never written)


class Found(NamedTuple):
  """What an evaluation found in one category; `scores` are its images', the others what Result has of it."""
  row: dict[str, metrics.Value]
  counts: dict[str, int]
  scores: np.ndarray
  maps: dict[int, np.ndarray]
  curves: metrics.Curves | None
  histogram: metrics.Histogram | None


RECORDS = (Found, metrics.Value, metrics.Curves, metrics.Histogram)  # what a progress.Progress has to know


def make_predict(method, clip, cfg, *, place: runtime.Placement) -> Callable:
  """Returns jitted predict(learnable, frozen, bank, memory, features, batch) of a method, replicated outputs."""

  def predict(learnable, frozen, bank, memory, features, batch):
    return method.predict(learnable, frozen, bank, memory, features, batch, clip=clip, cfg=cfg)

  return jax.jit(predict, out_shardings=place.copy)


def run(predict: Callable, load: Callable, dataset, *, batch: int, place: runtime.Placement,
        fpr_limit: float = 0.3, aupr: str = 'step', finish: Callable | None = None, keep: Collection[int] = (),
        worst: int = 0, curves: bool = False, progress: progress_lib.Progress | None = None) -> Result:
  """Returns the exact metrics of every category; memory is bounded by the largest category's maps.

  Args:
    predict: (features, batch) -> {'score': [B], 'map': [B, R, R]} on the device; batch has category, index and
      valid [B], never the truth. Without a map pixel metrics are undefined.
    load: indices -> (Features, batch) of numpy arrays, as features.load.
    dataset: has ids, labels [n], category_index [n] and categories.
    batch: images predicted at once; the last batch of a category is padded to it.
    place: devices that share a batch.
    fpr_limit: of AUPRO.
    aupr: rule for the area under the precision-recall curve, one of metrics.AUPR.
    finish: outputs of one category -> outputs, for methods whose score needs the whole category.
    keep: indices of images whose maps to return.
    worst: so many errors a category whose maps to return as well, see examples.worst.
    curves: whether to return curves and histograms.
    progress: keeps every category that is finished; those that it has are not evaluated again.

  Raises:
    runtime.Preempted: the run was asked to stop; finished categories are kept in `progress`.
    ValueError: NaN or infinity in a score or map, naming the image; an empty data set.
  """
  if not len(dataset.ids):
    raise ValueError(f'{dataset.name}: no images to evaluate')
  size = place.rows(batch)
  scores = np.full(len(dataset.ids), np.nan, np.float32)
  maps, every = {}, {}
  with tqdm(total=len(dataset.ids), desc='evaluate', unit='image', disable=jax.process_index() > 0) as bar:
    for number, category in enumerate(dataset.categories):
      members = np.flatnonzero(dataset.category_index == number)
      found = progress and progress.read(number)
      if found:
        bar.update(len(members))
      else:
        pixel = metrics.PixelMetrics(fpr_limit, aupr=aupr)
        parts = _category(predict, load, members, size, place, finish, bar)
        found = _found(parts, dataset, members, pixel, keep=keep, worst=worst, curves=curves)
        if progress:
          progress.write(number, found)
      scores[members], every[category] = found.scores, found
      maps |= found.maps
  rows, counts = ({c: getattr(found, name) for c, found in every.items()} for name in ('row', 'counts'))
  _warn(counts)
  drawn = ({c: getattr(found, name) for c, found in every.items() if getattr(found, name)}
           for name in ('curves', 'histogram'))
  return Result(rows, metrics.summarise(rows), counts, scores, maps, *drawn)


def _found(parts, dataset, members, pixel, *, keep, worst, curves) -> Found:
  """What the parts of one category come to; the arguments are those of `run`."""
  scores, maps = np.full(len(dataset.ids), np.nan, np.float32), {}
  masked, mapped, errors = False, True, {}  # does any anomalous image come with a mask; do images get maps?
  for index, out, rest in parts:
    scores[index] = out['score']
    mapped = 'map' in out
    if not mapped:
      continue
    truth = rest['has_mask']
    masked |= bool(np.any(truth & (rest['label'] == 1)))
    ids = [dataset.ids[i] for i in index[truth]]
    pixel.update(out['map'][truth], rest['mask'][truth], rest['label'][truth], ids)
    errors |= dict(zip(index.tolist(), out['map']))
    maps |= _copies(errors, set(keep) & set(index.tolist()))
    errors = _copies(errors, examples.worst(sorted(errors), scores, dataset.labels, worst))
  labels = dataset.labels[members]
  # A set that is anomalous throughout and unmasked has no pixel truth; all-normal sets say so themselves.
  usable = masked or not np.any(labels == 1)
  row = metrics.evaluate_category(labels, scores[members], pixel if usable and mapped else None,
                                  ids=[dataset.ids[i] for i in members], aupr=pixel.aupr)
  if not mapped:
    row |= dict.fromkeys(metrics.PIXEL_METRICS, metrics.Value(None, 'the method makes no maps'))
  counts = {'normal': int(np.sum(labels == 0)), 'anomalous': int(np.sum(labels == 1)),
            'vanished': pixel.vanished, 'contradicted': pixel.contradicted}
  histogram = drawn = None
  if curves and usable and mapped:
    with contextlib.suppress(metrics.Undefined):
      histogram = pixel.histogram()
      drawn = pixel.curves()
  return Found(row, counts, scores[members], maps | errors, drawn, histogram)


def _copies(maps, indices):
  """The maps of these images; as views they would keep those of a whole batch or category."""
  return {i: maps[i].copy() for i in indices}


def _warn(counts):
  for category, n in counts.items():
    if n['vanished']:
      logging.warning('%s: the masks of %d of %d anomalous images are empty at this resolution; they count as '
                      'normal pixels and keep their image label', category, n['vanished'], n['anomalous'])
    if n['contradicted']:
      logging.warning('%s: %d images labelled normal have anomalous pixels in their masks', category,
                      n['contradicted'])


def _category(predict, load, members, size, place, finish, bar):
  """Yields (indices, outputs, batch) of numpy arrays without padding: batch by batch, or at once to finish.

  Every process reads its share of a batch and yields the whole.
  """

  def read(start):
    rows, valid = features_lib.padded(members[start:start + size], size)
    features, batch = load(rows[runtime.share(size)])
    return features, dict(batch, valid=valid[runtime.share(size)])

  parts = []
  for features, batch in runtime.prefetch(read, range(0, len(members), size)):
    if runtime.any_process(runtime.preempted()):
      raise runtime.Preempted('asked to stop during the evaluation')
    known = {k: batch[k] for k in ('category', 'index', 'valid')}  # the truth stays on the host
    out = jax.device_get(predict(*runtime.globalize((features, known), place.split)))
    truth = ('label', 'has_mask', 'mask') if 'map' in out else ()  # masks of a large category fill memory
    rest = runtime.gather({k: batch[k] for k in ('index', 'valid', *truth)})
    out, rest = ({k: np.asarray(v)[rest['valid']] for k, v in tree.items()} for tree in (out, rest))
    part = rest['index'], out, rest
    bar.update(len(rest['index']))
    if finish is None:
      yield part
    else:
      parts.append(part)
  if parts:
    stack = lambda trees: jax.tree.map(lambda *x: np.concatenate(x), *trees)
    index, outs, rests = zip(*parts)
    yield np.concatenate(index), finish(stack(outs)), stack(rests)
