"""The colour bar that belongs to overlays which are files of their own."""

import io

import matplotlib
import matplotlib.figure
import numpy as np

from zsad_jax.report import figures


def colour_bar(scale: figures.Scale, source: str) -> bytes:
  """Returns PNG bytes of the colour bar of a figures.threshold_scale: both ends, and the threshold in the middle.

  Args:
    scale: values (low, threshold, high) at the levels 0, 0.5 and 1.
    source: where the threshold comes from.
  """
  figure = matplotlib.figure.Figure(figsize=(8, 1.3), dpi=100, layout='constrained')
  axis = figure.subplots()
  axis.imshow(np.linspace(0, 1, 512)[None], aspect='auto', cmap=figures.COLOURS, extent=(0, 1, 0, 1))
  axis.set_yticks([])
  told = ('and below', 'threshold', 'and above')
  axis.set_xticks(scale.levels, [f'{value:.4g}\n{words}' for value, words in zip(scale.values, told)])
  axis.set_title(f'anomaly map; threshold: {source}', fontsize=9)
  out = io.BytesIO()
  figure.savefig(out, format='png')
  return out.getvalue()
