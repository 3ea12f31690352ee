"""Exact anomaly-detection metrics on numpy arrays, streaming by category, with bootstrap intervals of their means."""

from zsad_jax.metrics import intervals
from zsad_jax.metrics.category import IMAGE_METRICS, METRICS, evaluate_category, summarise
from zsad_jax.metrics.curves import Curves, Histogram, balanced_threshold, f1_threshold, histogram
from zsad_jax.metrics.pixel import PIXEL_METRICS, PixelMetrics, aupro, aupro_200
from zsad_jax.metrics.ranking import AUPR, auroc, average_precision, f1_max
from zsad_jax.metrics.value import Undefined, Value

__all__ = [
  'AUPR', 'IMAGE_METRICS', 'METRICS', 'PIXEL_METRICS', 'Curves', 'Histogram', 'PixelMetrics', 'Undefined', 'Value',
  'aupro', 'aupro_200', 'auroc', 'average_precision', 'balanced_threshold', 'evaluate_category', 'f1_max',
  'f1_threshold', 'histogram', 'intervals', 'summarise',
]
