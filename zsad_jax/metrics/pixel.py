"""Pixel metrics of one category, collected batch by batch and computed from one sort."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from zsad_jax.metrics import curves as curves_lib
from zsad_jax.metrics.aupro import STRUCTURES, aupro_200_thresholds, pixel_area, regions
from zsad_jax.metrics.ranking import (
  check_binary,
  check_finite,
  check_rule,
  count_higher,
  counts,
  mean_precision,
  sortable,
)
from zsad_jax.metrics.value import Undefined, Value, missing_class, value_or_reason

PIXEL_METRICS = ('pixel_auroc', 'pixel_ap', 'pixel_f1max', 'aupro', 'aupro_200')
BLOCK = 1 << 20  # anomalous pixels ranked at a time, which bounds the memory of temporaries


class PixelMetrics:
  """Exact pixel AUROC, AP, F1-max and AUPRO over all pixels of all images of one category.

  Keeps every score once, in the maps' dtype (float16 as float32), and nothing else of the images.

  Args:
    limit: false-positive rate up to which `aupro` integrates, in (0, 1].
    connectivity: of ground-truth regions, 8 or 4.
    aupr: rule for pixel AP, 'step' or 'trapezoid', see `ranking.average_precision`.

  Attributes:
    images: number of images so far.
    regions: number of connected anomalous regions so far.
    vanished: number of anomalous images whose mask is empty at this resolution; they add normal pixels and no region.
    contradicted: number of normal images whose mask is not empty; the mask is used.
  """

  def __init__(self, limit: float = 0.3, connectivity: int = 8, aupr: str = 'step'):
    if not 0 < limit <= 1:
      raise ValueError(f'the FPR limit must lie in (0, 1]; got {limit}')
    if connectivity not in STRUCTURES:
      raise ValueError(f'connectivity must be 4 or 8; got {connectivity}')
    check_rule(aupr)
    self.limit, self.connectivity, self.aupr = limit, connectivity, aupr
    self.images = self.regions = self.vanished = self.contradicted = 0
    self._dtype: np.dtype | None = None
    self._negatives: list[np.ndarray] = []
    self._positives: list[np.ndarray] = []
    self._region: list[np.ndarray] = []  # of each of the positives
    self._sizes: list[np.ndarray] = []
    self._is_sorted = False

  def update(self, maps: ArrayLike, masks: ArrayLike, labels: ArrayLike | None = None,
             ids: Sequence[str] | None = None) -> None:
    """Adds a batch.

    Args:
      maps: [B, H, W], anomaly maps of any real dtype; higher is more anomalous.
      masks: [B, H, W], ground truth, 0 normal and 1 anomalous.
      labels: [B], image labels, only to count `vanished` and `contradicted`.
      ids: [B], image names for error messages; None for their numbers.

    Raises:
      ValueError: NaN or infinite values in a map (with the image's name), masks that are not binary, or shapes that
        differ. Then nothing of the batch is added.
    """
    dtype, maps, masks = np.asarray(maps).dtype, sortable(maps), np.asarray(masks)
    if maps.ndim != 3 or maps.shape != masks.shape:
      raise ValueError(f'maps and masks must both have shape [B, H, W]; got {maps.shape} and {masks.shape}')
    if ids is None:
      ids = [f'number {self.images + i}' for i in range(len(maps))]
    if len(ids) != len(maps) or (labels is not None and np.size(labels) != len(maps)):
      raise ValueError(f'there are {len(maps):,} maps; ids and labels must be equally many')
    for name, anomaly_map, mask in zip(ids, maps, masks):
      check_finite(anomaly_map, f'the map of image {name}')
      check_binary(mask, f'the mask of image {name}')
    masks = masks.astype(bool)
    defective = masks.any(axis=(1, 2))
    dtype = dtype if dtype == np.float16 else maps.dtype
    self._dtype = dtype if self._dtype is None else np.result_type(dtype, self._dtype)
    self._is_sorted = False
    self._negatives.append(maps[~masks])
    for i in np.flatnonzero(defective):
      self._add_regions(maps[i], masks[i])
    self.images += len(maps)
    if labels is not None:
      anomalous = np.asarray(labels).astype(bool)
      self.vanished += int(np.sum(anomalous & ~defective))
      self.contradicted += int(np.sum(~anomalous & defective))

  def compute(self, metrics: Sequence[str] = PIXEL_METRICS) -> dict[str, Value]:
    """Returns {metric: Value} of all batches so far; more batches may follow."""
    if unknown := set(metrics) - set(PIXEL_METRICS):
      raise ValueError(f'unknown pixel metrics {sorted(unknown)}; choose from {", ".join(PIXEL_METRICS)}')
    if reason := self._missing_class():
      return dict.fromkeys(metrics, Value(None, reason))
    self._sort()
    values = {}
    if set(metrics) - {'aupro_200'}:
      values = self._ranked()
    if 'aupro_200' in metrics:
      values['aupro_200'] = value_or_reason(aupro_200_thresholds, *self._pixels(), self._dtype)
    return {name: values[name] for name in metrics}

  def curves(self) -> curves_lib.Curves:
    """Returns the ROC, PR and PRO curves; raises Undefined without normal or without anomalous pixels."""
    if reason := self._missing_class():
      raise Undefined(reason)
    self._sort()
    return curves_lib.curves(*self._pixels())

  def histogram(self) -> curves_lib.Histogram:
    """Returns the histogram of normal and of anomalous pixels; raises Undefined without pixels."""
    if not sum(c.size for c in (*self._positives, *self._negatives)):
      raise Undefined('no pixels')
    self._sort()
    return curves_lib.histogram(self._negatives[0], self._positives[0] if self._positives else np.empty(0))

  def _missing_class(self) -> str:
    positives, negatives = (sum(c.size for c in chunks) for chunks in (self._positives, self._negatives))
    return missing_class(positives, negatives, 'pixels')

  def _add_regions(self, anomaly_map: np.ndarray, mask: np.ndarray) -> None:
    region, sizes = regions(mask, self.connectivity)
    self._positives.append(anomaly_map[mask])
    self._region.append((region + self.regions).astype(np.int32))
    self._sizes.append(sizes)
    self.regions += sizes.size

  def _sort(self) -> None:
    """Merges the chunks into one ascending array per class, with the regions in the order of the anomalous scores."""
    if self._is_sorted:
      return
    _merge(self._negatives).sort()
    if self._positives:
      positives, region = _merge(self._positives), _merge(self._region)
      order = np.argsort(positives)
      self._positives, self._region = [positives[order]], [region[order]]
      _merge(self._sizes)
    self._is_sorted = True

  def _pixels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the sorted anomalous scores, the region of each, the region sizes, and the sorted normal scores."""
    return self._positives[0], self._region[0], self._sizes[0], self._negatives[0]

  def _ranked(self) -> dict[str, Value]:
    """Computes the four metrics that depend on ranks alone, in one pass over the anomalous pixels."""
    positives, region, sizes, negatives = self._pixels()
    misranked, precision, f1, area = 0, 0.0, 0.0, np.zeros(sizes.size)
    for start in range(0, positives.size, BLOCK):
      block = slice(start, start + BLOCK)
      tp, above, fp = counts(positives[block], positives, negatives)
      misranked += int(np.sum(above + fp))
      precision += np.sum(mean_precision(self.aupr, tp, fp, count_higher(positives[block], positives), above))
      f1 = max(f1, np.max(2 * tp / (tp + fp + positives.size)))
      area += np.bincount(region[block], pixel_area(above, fp, self.limit * negatives.size), sizes.size)
    return {
      'pixel_auroc': Value(1 - misranked / (2 * positives.size * negatives.size)),
      'pixel_ap': Value(float(precision / positives.size)),
      'pixel_f1max': Value(float(f1)),
      'aupro': Value(float(np.mean(area / sizes))),
    }


def aupro(maps: ArrayLike, masks: ArrayLike, *, limit: float = 0.3, connectivity: int = 8) -> float:
  """Returns the exact area under the PRO curve up to the FPR limit, divided by the limit: 1 for a perfect map.

  Uses all distinct thresholds, and is linear between them and up to the limit (Bergmann et al., IJCV 2021, sec. 5.2).
  It depends on the order of the scores alone.

  Args:
    maps, masks: [B, H, W], all images of one category, as for `PixelMetrics.update`.
    limit: false-positive rate in (0, 1].
    connectivity: of regions, 8 or 4.

  Raises:
    Undefined: there is no anomalous or no normal pixel.
    ValueError: as for `PixelMetrics.update`.
  """
  return _one('aupro', maps, masks, limit, connectivity)


def aupro_200(maps: ArrayLike, masks: ArrayLike, *, connectivity: int = 8) -> float:
  """Returns AUPRO with the 200 linear thresholds of the official AnomalyCLIP code, as in published tables.

  The same value as metrics.py:cal_pro_score there, from one sort; see `zsad_jax.metrics.aupro.aupro_200_thresholds`.
  Arguments and exceptions as for `aupro`; also Undefined if the official code fails or returns NaN.
  """
  return _one('aupro_200', maps, masks, 0.3, connectivity)


def _one(metric: str, maps: ArrayLike, masks: ArrayLike, limit: float, connectivity: int) -> float:
  pixel = PixelMetrics(limit, connectivity)
  pixel.update(maps, masks)
  result = pixel.compute((metric,))[metric]
  if result.value is None:
    raise Undefined(result.reason)
  return result.value


def _merge(chunks: list[np.ndarray]) -> np.ndarray:
  """Replaces the chunks by one and returns it; frees the old ones one by one to save memory."""
  if len(chunks) > 1:
    merged = np.empty(sum(c.size for c in chunks), np.result_type(*chunks))
    end = merged.size
    while chunks:
      chunk = chunks.pop()
      merged[end - chunk.size:end] = chunk
      end -= chunk.size
    chunks.append(merged)
  return chunks[0]
