"""Pixel metrics of one category, gathered batch by batch and computed from one sort."""

from collections.abc import Sequence

import numpy as np

from zsad_jax.metrics import curves as curves_lib
from zsad_jax.metrics.aupro import STRUCTURES, area_won, aupro_200_thresholds, regions
from zsad_jax.metrics.ranking import check_binary, check_finite, check_rule, counts, heights, higher, ordered
from zsad_jax.metrics.value import Undefined, Value, one_class, settle

PIXEL_METRICS = ('pixel_auroc', 'pixel_ap', 'pixel_f1max', 'aupro', 'aupro_200')
BLOCK = 1 << 20  # anomalous pixels ranked at a time: bounds the temporaries


class PixelMetrics:
  """Exact pixel AUROC, AP, F1-max and AUPRO over all pixels of all images of one category.

  Keeps every score once, in the maps' dtype (fp16 as fp32), and nothing else of the images.

  Args:
    limit: the FPR up to which `aupro` integrates, in (0, 1].
    connectivity: of ground-truth regions, 8 or 4.
    aupr: rule for pixel AP, 'step' or 'trapezoid', see ranking.average_precision.

  Attributes:
    images: images seen.
    regions: connected anomalous regions seen.
    vanished: anomalous images whose mask is empty at this resolution; they add normal pixels only, no region.
    contradicted: normal images whose mask is not empty; it is used as it is.
  """

  def __init__(self, limit: float = 0.3, connectivity: int = 8, aupr: str = 'step'):
    if not 0 < limit <= 1:
      raise ValueError(f'the FPR limit must lie in (0, 1], not {limit}')
    if connectivity not in STRUCTURES:
      raise ValueError(f'connectivity must be 4 or 8, not {connectivity}')
    check_rule(aupr)
    self.limit, self.connectivity, self.aupr = limit, connectivity, aupr
    self.images = self.regions = self.vanished = self.contradicted = 0
    self._dtype = None
    self._negatives, self._positives, self._region, self._sizes = [], [], [], []
    self._in_order = False

  def update(self, maps, masks, labels=None, ids: Sequence[str] | None = None) -> None:
    """Adds a batch.

    Args:
      maps: [B, H, W] anomaly maps, any real dtype; higher is more anomalous.
      masks: [B, H, W] ground truth, 0 normal and 1 anomalous.
      labels: [B] image labels, only to count `vanished` and `contradicted`.
      ids: [B] names for error messages; default: the image's number.

    Raises:
      ValueError: NaN or infinity in a map (names the image), masks not binary, shapes that do not fit.
        Nothing of the batch is added then.
    """
    own, maps, masks = np.asarray(maps).dtype, ordered(maps), np.asarray(masks)
    if maps.ndim != 3 or maps.shape != masks.shape:
      raise ValueError(f'maps and masks must be [B, H, W] alike, not {maps.shape} and {masks.shape}')
    if ids is None:
      ids = [f'number {self.images + i}' for i in range(len(maps))]
    if len(ids) != len(maps) or (labels is not None and len(labels) != len(maps)):
      raise ValueError(f'{len(maps)} maps need as many ids and labels')
    for name, anomaly_map, mask in zip(ids, maps, masks):
      check_finite(anomaly_map, f'the map of image {name}')
      check_binary(mask, f'the mask of image {name}')
    masks = masks.astype(bool)
    marked = masks.any(axis=(1, 2))
    own = own if own == np.float16 else maps.dtype
    self._dtype = own if self._dtype is None else np.result_type(own, self._dtype)
    self._in_order = False
    self._negatives.append(maps[~masks])
    for i in np.flatnonzero(marked):
      self._add_regions(maps[i], masks[i])
    self.images += len(maps)
    if labels is not None:
      anomalous = np.asarray(labels).astype(bool)
      self.vanished += int(np.sum(anomalous & ~marked))
      self.contradicted += int(np.sum(~anomalous & marked))

  def compute(self, metrics: Sequence[str] = PIXEL_METRICS) -> dict[str, Value]:
    """The named metrics of all batches so far, as {name: Value}; more batches may follow."""
    if unknown := set(metrics) - set(PIXEL_METRICS):
      raise ValueError(f'unknown pixel metrics {sorted(unknown)}; there are {", ".join(PIXEL_METRICS)}')
    positives, negatives = (sum(c.size for c in chunks) for chunks in (self._positives, self._negatives))
    if reason := one_class(positives, negatives, 'pixels'):
      return dict.fromkeys(metrics, Value(None, reason))
    self._sort()
    values = {}
    if set(metrics) - {'aupro_200'}:
      values = self._ranked()
    if 'aupro_200' in metrics:
      values['aupro_200'] = settle(aupro_200_thresholds, *self._pixels(), self._dtype)
    return {name: values[name] for name in metrics}

  def curves(self) -> curves_lib.Curves:
    """Points of the ROC, PR and PRO curves; raises Undefined without normal or anomalous pixels."""
    positives, negatives = (sum(c.size for c in chunks) for chunks in (self._positives, self._negatives))
    if reason := one_class(positives, negatives, 'pixels'):
      raise Undefined(reason)
    self._sort()
    return curves_lib.curves(*self._pixels())

  def histogram(self) -> curves_lib.Histogram:
    """Scores of normal and of anomalous pixels; raises Undefined without pixels."""
    if not sum(c.size for c in (*self._positives, *self._negatives)):
      raise Undefined('no pixels')
    self._sort()
    return curves_lib.histogram(self._negatives[0], self._positives[0] if self._positives else np.empty(0))

  def _add_regions(self, anomaly_map, mask):
    region, sizes = regions(mask, self.connectivity)
    self._positives.append(anomaly_map[mask])
    self._region.append((region + self.regions).astype(np.int32))
    self._sizes.append(sizes)
    self.regions += sizes.size

  def _sort(self):
    """Leaves one ascending chunk of normal and one of anomalous scores, with the latter's regions in step."""
    if self._in_order:
      return
    _merge(self._negatives).sort()
    if self._positives:
      positives, region = _merge(self._positives), _merge(self._region)
      order = np.argsort(positives)
      self._positives, self._region = [positives[order]], [region[order]]
      _merge(self._sizes)
    self._in_order = True

  def _pixels(self):
    return self._positives[0], self._region[0], self._sizes[0], self._negatives[0]

  def _ranked(self) -> dict[str, Value]:
    """One walk over the anomalous pixels for the four metrics that depend on ranks alone."""
    positives, region, sizes, negatives = self._pixels()
    misranked, precision, f1, won = 0, 0.0, 0.0, np.zeros(sizes.size)
    for start in range(0, positives.size, BLOCK):
      block = slice(start, start + BLOCK)
      tp, above, level = counts(positives[block], positives, negatives)
      misranked += int(np.sum(above + level))
      precision += np.sum(heights(self.aupr, tp, level, higher(positives[block], positives), above))
      f1 = max(f1, np.max(2 * tp / (tp + level + positives.size)))
      won += np.bincount(region[block], area_won(above, level, self.limit * negatives.size), sizes.size)
    return {
      'pixel_auroc': Value(1 - misranked / (2 * positives.size * negatives.size)),
      'pixel_ap': Value(float(precision / positives.size)),
      'pixel_f1max': Value(float(f1)),
      'aupro': Value(float(np.mean(won / sizes))),
    }


def aupro(maps, masks, *, limit: float = 0.3, connectivity: int = 8) -> float:
  """Exact area under the PRO curve up to the FPR limit, divided by the limit: in [0, 1], 1 for a perfect map.

  All distinct thresholds, linear between them and at the limit (Bergmann et al., IJCV 2021, sec. 5.2); it
  depends on the order of the scores alone.

  Args:
    maps, masks: [B, H, W], all images of one category, as for `PixelMetrics.update`.
    limit: false-positive rate in (0, 1].
    connectivity: of regions, 8 or 4.

  Raises:
    Undefined: no anomalous or no normal pixel.
    ValueError: as for `PixelMetrics.update`.
  """
  return _one('aupro', maps, masks, limit, connectivity)


def aupro_200(maps, masks, *, connectivity: int = 8) -> float:
  """AUPRO with the 200 linear thresholds of the official AnomalyCLIP code, for published tables.

  Same value as metrics.py:cal_pro_score there (see `zsad_jax.metrics.aupro.aupro_200_thresholds`), from one sort.
  Arguments and exceptions as for `aupro`; Undefined also where the official code fails or gives NaN.
  """
  return _one('aupro_200', maps, masks, 0.3, connectivity)


def _one(metric, maps, masks, limit, connectivity) -> float:
  pixel = PixelMetrics(limit, connectivity)
  pixel.update(maps, masks)
  result = pixel.compute((metric,))[metric]
  if result.value is None:
    raise Undefined(result.reason)
  return result.value


def _merge(chunks: list[np.ndarray]) -> np.ndarray:
  """Turns the list into one chunk, freeing the others one by one, and returns it."""
  if len(chunks) > 1:
    merged = np.empty(sum(c.size for c in chunks), np.result_type(*chunks))
    end = merged.size
    while chunks:
      chunk = chunks.pop()
      merged[end - chunk.size:end] = chunk
      end -= chunk.size
    chunks.append(merged)
  return chunks[0]
