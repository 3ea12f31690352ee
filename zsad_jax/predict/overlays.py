"""What a prediction leaves of a picture: its map, mask and overlay as files, at the picture's own size."""

import io
import json
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from zsad_jax.engine import runtime
from zsad_jax.predict import calibration, detector
from zsad_jax.report import heatmap

BAND = 1 << 19  # pixels of an overlay that are drawn at once


class Artist:
  """Writes a picture's map, mask and overlay below `out`, as the config's `predict` says."""

  def __init__(self, made, out: Path, levels: calibration.Levels | None = None):
    self._keys, self._out, self._levels = made.cfg.predict, out, levels or made.levels
    levels = self._levels
    self._scale = levels.pixel and heatmap.threshold_scale(levels.low, levels.pixel.value, levels.high)

  def row(self, seen, name: str) -> dict:
    """Returns the journal's row of a picture, whose files are on disk then."""
    row = {'name': name, 'score': seen.score, 'low': None, 'peak': None, 'map': None, 'mask': None, 'overlay': None,
           'error': seen.error}
    if seen.map is None:
      return row
    row |= {'low': float(seen.map.min()), 'peak': float(seen.map.max())}
    if self._keys.maps == 'none' and not (self._keys.masks or self._keys.overlays):
      return row
    large = detector.enlarged(seen.map, seen.image.size)
    if self._keys.maps != 'none':
      row['map'] = self._save_map(name, large)
    return row | self.draw(name, seen.image, large)

  def draw(self, name: str, image: Image.Image, large: np.ndarray) -> dict:
    """Returns {'mask', 'overlay'}: paths of what was drawn of a map [h, w], None where nothing was."""
    drawn, levels = self.drawn(name), self._levels
    if not any(drawn.values()):
      return drawn
    said = {'low': levels.low, 'threshold': levels.pixel.value, 'high': levels.high,
            'threshold_source': levels.pixel.source}
    if drawn['mask']:
      mask = Image.fromarray((large >= levels.pixel.value).astype(np.uint8) * 255)
      self._save(drawn['mask'], png(mask, said))
    if drawn['overlay']:
      picture = Image.fromarray(self._overlay(image, large))
      self._save(drawn['overlay'], png(picture, said))
    return drawn

  def drawn(self, name: str) -> dict:
    """Returns {'mask', 'overlay'}: paths of what `draw` draws."""
    wanted = {'mask': self._keys.masks, 'overlay': self._keys.overlays}
    return {kind: f'{kind}s/{name}.png' if on and self._scale is not None else None for kind, on in wanted.items()}

  def _overlay(self, image: Image.Image, large: np.ndarray) -> np.ndarray:
    """The overlay [h, w, 3], made band by band: in one piece that of a large photograph takes a gigabyte."""
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
    if self._scale is not None:  # that of the run, widened where this map leaves it
      low, high = min(low, self._levels.low), max(high, self._levels.high)
    span = high - low or 1.
    codes = np.round((large.astype(np.float64) - low) / span * 65535).astype(np.uint16)
    return self._save(f'maps/{name}.png', png(Image.fromarray(codes), {
      'low': low, 'high': low + span, 'value': 'low + pixel / 65535 * (high - low)'}))

  def _save(self, relative: str, data) -> str:
    path = self._out / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    runtime.write_atomic(path, data)
    return relative


def read_map(path) -> np.ndarray:
  """Returns the map [h, w] float32 of a file below maps/, .npy or 16-bit .png."""
  path = Path(path)
  if path.suffix == '.npy':
    return np.load(path, allow_pickle=False).astype(np.float32)
  with Image.open(path) as picture:
    about = json.loads(picture.text['zsad_jax'])
    return (about['low'] + np.asarray(picture, np.float64) / 65535 * (about['high'] - about['low'])).astype(np.float32)


def png(image: Image.Image, about: dict):
  out, text = io.BytesIO(), PngImagePlugin.PngInfo()
  text.add_text('zsad_jax', json.dumps(about))
  # Runs alone: in noisy pictures and smooth maps the default search finds no more and takes up to 1.6 times as long;
  # level 6 takes several times as long.
  image.save(out, format='PNG', compress_level=1, compress_type=zlib.Z_RLE, pnginfo=text)
  return out.getbuffer()
