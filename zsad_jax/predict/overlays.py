"""Anomaly map, mask and overlay of an image as files at the image's own size."""

import io
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, PngImagePlugin

from zsad_jax.engine import runtime
from zsad_jax.predict import detector
from zsad_jax.predict.calibration import Levels
from zsad_jax.report import heatmap

if TYPE_CHECKING:
  from zsad_jax.predict.detector import Detector, Scored

BAND = 1 << 19  # pixels of an overlay that are drawn at once


class OverlayWriter:
  """Writes an image's map, mask and overlay below `out`, as the config's `predict` says."""

  def __init__(self, source: 'Detector', out: Path, levels: Levels | None = None):
    self._keys, self._out, self._levels = source.cfg.predict, out, levels or source.levels
    levels = self._levels
    self._scale = levels.pixel and heatmap.threshold_scale(levels.low, levels.pixel.value, levels.high)

  def write(self, scored: 'Scored', name: str) -> dict[str, Any]:
    """Writes the files of an image and returns its row of the prediction log."""
    row = {'name': name, 'score': scored.score, 'low': None, 'peak': None, 'map': None, 'mask': None, 'overlay': None,
           'error': scored.error}
    if scored.map is None:
      return row
    row |= {'low': float(scored.map.min()), 'peak': float(scored.map.max())}
    if self._keys.maps == 'none' and not (self._keys.masks or self._keys.overlays):
      return row
    large = detector.enlarged(scored.map, scored.image.size)
    if self._keys.maps != 'none':
      row['map'] = self._save_map(name, large)
    return row | self.draw(name, scored.image, large)

  def draw(self, name: str, image: Image.Image, large: np.ndarray) -> dict[str, str | None]:
    """Writes mask and overlay for a map [h, w]; returns {'mask', 'overlay'}: their paths, None if not asked for."""
    paths, levels = self.paths(name), self._levels
    if not any(paths.values()):
      return paths
    metadata = {'low': levels.low, 'threshold': levels.pixel.value, 'high': levels.high,
                'threshold_source': levels.pixel.source}
    if paths['mask']:
      mask = Image.fromarray((large >= levels.pixel.value).astype(np.uint8) * 255)
      self._save(paths['mask'], png(mask, metadata))
    if paths['overlay']:
      self._save(paths['overlay'], png(Image.fromarray(self._overlay(image, large)), metadata))
    return paths

  def paths(self, name: str) -> dict[str, str | None]:
    """Returns {'mask', 'overlay'}: the paths that `draw` writes."""
    wanted = {'mask': self._keys.masks, 'overlay': self._keys.overlays}
    return {kind: f'{kind}s/{name}.png' if on and self._scale is not None else None for kind, on in wanted.items()}

  def _overlay(self, image: Image.Image, large: np.ndarray) -> np.ndarray:
    """The overlay [h, w, 3], drawn in bands: in one piece that of a large photograph takes a gigabyte."""
    height, width = large.shape
    rows = max(1, BAND // width)
    return np.concatenate([heatmap.overlay(image.crop((0, top, width, min(top + rows, height))), large[top:top + rows],
                                           self._scale) for top in range(0, height, rows)])

  def _save_map(self, name: str, large: np.ndarray) -> str:
    if self._keys.maps != 'png16':
      out = io.BytesIO()
      np.save(out, large.astype(np.float16 if self._keys.maps == 'npy16' else np.float32))
      return self._save(f'maps/{name}.npy', out.getbuffer())
    low, high = float(large.min()), float(large.max())
    if self._scale is not None:  # the scale of the run, widened if this map leaves it
      low, high = min(low, self._levels.low), max(high, self._levels.high)
    span = high - low or 1.
    codes = np.round((large.astype(np.float64) - low) / span * 65535).astype(np.uint16)
    return self._save(f'maps/{name}.png', png(Image.fromarray(codes), {
      'low': low, 'high': low + span, 'value': 'low + pixel / 65535 * (high - low)'}))

  def _save(self, relative: str, content: memoryview) -> str:
    path = self._out / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    runtime.write_atomic(path, content)
    return relative


def read_map(path: Path | str) -> np.ndarray:
  """Returns the map [h, w] float32 of a file below maps/, .npy or 16-bit .png."""
  path = Path(path)
  if path.suffix == '.npy':
    return np.load(path, allow_pickle=False).astype(np.float32)
  with Image.open(path) as picture:
    metadata = json.loads(picture.info['zsad_jax'])
    span = metadata['high'] - metadata['low']
    return (metadata['low'] + np.asarray(picture, np.float64) / 65535 * span).astype(np.float32)


def png(image: Image.Image, metadata: Mapping[str, Any]) -> memoryview:
  """Returns an image as PNG bytes, with metadata in its text chunk 'zsad_jax'."""
  out, text = io.BytesIO(), PngImagePlugin.PngInfo()
  text.add_text('zsad_jax', json.dumps(metadata))
  # Run-length matching only: for noisy pictures and smooth maps the default search finds no more and takes up to 1.6
  # times as long; level 6 takes several times as long.
  image.save(out, format='PNG', compress_level=1, compress_type=zlib.Z_RLE, pnginfo=text)
  return out.getbuffer()
