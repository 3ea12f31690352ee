"""One evaluation loop for every method: maps on the device, exact metrics on the host, category by category."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from zsad_jax import metrics
from zsad_jax.engine import eval_cache, examples, runtime
from zsad_jax.engine import features as features_lib


class Result(NamedTuple):
  """An evaluation's metrics, scores and the maps that were asked for.

  Attributes:
    rows: {category: {metric: metrics.Value}}.
    summary: {metric: {'value', 'count', 'of', 'reason'}}, see metrics.summarise.
    counts: {category: {'normal', 'anomalous', 'vanished', 'contradicted'}}: images, anomalous ones whose mask is
      empty at the metric's resolution, and normal ones whose mask is not.
    scores: [n] float32 image scores, in the data set's order.
    maps: {index: [R, R] float32} for the images that were asked for.
    curves: {category: metrics.Curves} of pixels, if asked for and defined.
    histograms: {category: metrics.Histogram} of pixel scores, likewise.
  """
  rows: dict[str, dict[str, metrics.Value]]
  summary: dict[str, dict]
  counts: dict[str, dict[str, int]]
  scores: np.ndarray
  maps: dict[int, np.ndarray]
  curves: dict[str, metrics.Curves] = {}  # noqa: RUF012 (never written)
  histograms: dict[str, metrics.Histogram] = {}  # noqa: RUF012 (never written)


class CategoryResult(NamedTuple):
  """One category's part of a Result; `scores` are its images'."""
  row: dict[str, metrics.Value]
  counts: dict[str, int]
  scores: np.ndarray
  maps: dict[int, np.ndarray]
  curves: metrics.Curves | None
  histogram: metrics.Histogram | None


class Options(NamedTuple):
  """What to compute and keep.

  Attributes:
    fpr_limit: of AUPRO.
    aupr: rule for the area under the precision-recall curve, one of metrics.AUPR.
    keep: indices of images whose maps to return.
    worst: how many errors per category whose maps to return as well, see examples.worst_errors.
    curves: whether to return curves and histograms.
  """
  fpr_limit: float = 0.3
  aupr: str = 'step'
  keep: Collection[int] = ()
  worst: int = 0
  curves: bool = False


METRICS_ALONE = Options()
RECORDS = (CategoryResult, metrics.Value, metrics.Curves, metrics.Histogram)  # types that an EvalCache must know


def run(predict: Callable, load: Callable, dataset: Any, *, batch: int, place: runtime.Placement,
        postprocess: Callable | None = None, options: Options = METRICS_ALONE,
        cache: eval_cache.EvalCache | None = None) -> Result:
  """Returns the exact metrics of every category; memory is bounded by the largest category's maps.

  Args:
    predict: (features, batch) -> record with score [B] and map [B, R, R] or None, on the device; its batch has
      category, index and valid [B], never the ground truth. Without a map, pixel metrics are undefined.
    load: indices -> (Features, batch) of numpy arrays, as features.load.
    dataset: has name, ids, labels [n], category_index [n] and categories.
    batch: images predicted at once; the last batch of a category is padded to it.
    place: devices that share a batch.
    postprocess: outputs of a whole category -> outputs, for scores that depend on its other images.
    options: see Options.
    cache: keeps every finished category; categories that it has are not evaluated again.

  Raises:
    runtime.Preempted: the run was asked to stop; finished categories are in `cache`.
    ValueError: NaN or infinity in a score or map, naming the image; an empty data set.
  """
  if not len(dataset.ids):
    raise ValueError(f'{dataset.name}: no images to evaluate')
  size = place.rows(batch)
  scores = np.full(len(dataset.ids), np.nan, np.float32)
  results: dict[str, CategoryResult] = {}
  with tqdm(total=len(dataset.ids), desc='evaluate', unit='image', disable=jax.process_index() > 0) as bar:
    for number, category in enumerate(dataset.categories):
      members = np.flatnonzero(dataset.category_index == number)
      result = cache and cache.read(number)
      if result:
        bar.update(len(members))
      else:
        parts = _predicted(predict, load, members, size, place, postprocess, bar)
        result = _category_result(parts, dataset, members, options)
        if cache:
          cache.write(number, result)
      scores[members], results[category] = result.scores, result
  rows, counts = ({c: getattr(result, name) for c, result in results.items()} for name in ('row', 'counts'))
  _warn(counts)
  maps = {index: anomaly_map for result in results.values() for index, anomaly_map in result.maps.items()}
  curves = {c: result.curves for c, result in results.items() if result.curves}
  histograms = {c: result.histogram for c, result in results.items() if result.histogram}
  return Result(rows, metrics.summarise(rows), counts, scores, maps, curves, histograms)


def _category_result(parts: Iterator, dataset: Any, members: np.ndarray, options: Options) -> CategoryResult:
  """The metrics of one category from its predicted parts."""
  pixel = metrics.PixelMetrics(options.fpr_limit, aupr=options.aupr)
  scores, maps = np.full(len(dataset.ids), np.nan, np.float32), {}
  masked, mapped, errors = False, True, {}  # does any anomalous image have a mask; do images get maps?
  for index, out, rest in parts:
    scores[index] = out.score
    mapped = out.map is not None
    if not mapped:
      continue
    known = rest['has_mask']
    masked |= bool(np.any(known & (rest['label'] == 1)))
    ids = [dataset.ids[i] for i in index[known]]
    pixel.update(out.map[known], rest['mask'][known], rest['label'][known], ids)
    errors |= dict(zip(index.tolist(), out.map))
    maps |= _copies(errors, set(options.keep) & set(index.tolist()))
    errors = _copies(errors, examples.worst_errors(sorted(errors), scores, dataset.labels, options.worst))
  labels = dataset.labels[members]
  # A data set that is anomalous throughout and has no masks has no pixel ground truth; all-normal sets say so.
  usable = masked or not np.any(labels == 1)
  row = metrics.evaluate_category(labels, scores[members], pixel if usable and mapped else None,
                                  ids=[dataset.ids[i] for i in members], aupr=pixel.aupr)
  if not mapped:
    row |= dict.fromkeys(metrics.PIXEL_METRICS, metrics.Value(None, 'the method makes no maps'))
  counts = {'normal': int(np.sum(labels == 0)), 'anomalous': int(np.sum(labels == 1)),
            'vanished': pixel.vanished, 'contradicted': pixel.contradicted}
  histogram = curves = None
  if options.curves and usable and mapped:
    with contextlib.suppress(metrics.Undefined):
      histogram = pixel.histogram()
      curves = pixel.curves()
  return CategoryResult(row, counts, scores[members], maps | errors, curves, histogram)


def _copies(maps: Mapping[int, np.ndarray], indices: Collection[int]) -> dict[int, np.ndarray]:
  """The maps of these images; views would keep those of a whole batch or category in memory."""
  return {i: maps[i].copy() for i in indices}


def _warn(counts: Mapping[str, Mapping[str, int]]):
  for category, n in counts.items():
    if n['vanished']:
      logging.warning('%s: the masks of %d of %d anomalous images are empty at this resolution; these images count as '
                      'normal pixels and keep their image label', category, n['vanished'], n['anomalous'])
    if n['contradicted']:
      logging.warning('%s: %d images labelled normal have anomalous pixels in their masks', category,
                      n['contradicted'])


def _predicted(predict: Callable, load: Callable, members: np.ndarray, size: int, place: runtime.Placement,
               postprocess: Callable | None, bar: tqdm) -> Iterator[tuple]:
  """Yields (indices, outputs, batch) in numpy without padding: batch by batch, or all at once to postprocess them.

  Every process reads its share of a batch and yields the whole batch.
  """

  def read(start):
    rows, valid = features_lib.padded(members[start:start + size], size)
    features, batch = load(rows[runtime.share(size)])
    return features, dict(batch, valid=valid[runtime.share(size)])

  parts = []
  for features, batch in runtime.prefetch(read, range(0, len(members), size)):
    if runtime.any_process(runtime.preempted()):
      raise runtime.Preempted('asked to stop during the evaluation')
    visible = {k: batch[k] for k in ('category', 'index', 'valid')}  # the ground truth stays on the host
    out = jax.device_get(predict(*runtime.globalize((features, visible), place.split)))
    truth = () if out.map is None else ('label', 'has_mask', 'mask')  # masks of a large category fill memory
    rest = runtime.gather({k: batch[k] for k in ('index', 'valid', *truth)})
    out, rest = (jax.tree.map(lambda x, valid=rest['valid']: np.asarray(x)[valid], tree) for tree in (out, rest))
    bar.update(len(rest['index']))
    if postprocess is None:
      yield rest['index'], out, rest
    else:
      parts.append((rest['index'], out, rest))
  if parts:
    stack = lambda trees: jax.tree.map(lambda *x: np.concatenate(x), *trees)
    index, outs, rests = zip(*parts)
    yield np.concatenate(index), postprocess(stack(outs)), stack(rests)
