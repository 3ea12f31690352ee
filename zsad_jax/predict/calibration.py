"""What a score means: the scores and maps of images that are known, and the thresholds and colours that follow."""

import hashlib
import io
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from tqdm import tqdm

from zsad_jax.engine import features, runtime
from zsad_jax.experiment import experiment, setup
from zsad_jax.predict import scoring, thresholds
from zsad_jax.predict.thresholds import Threshold

RULES = ('auto', 'f1_max', 'fpr', 'normals', 'batch')
PIXELS = 1 << 20  # pixels kept of a whole set: more than enough for a threshold
STEP = 4  # of normal images every 4th pixel of every 4th row
ANYTHING = 'object'  # what a pictured thing without a name is called
ENDS = 1, 99  # percentiles of the pixels at the ends of the colour scale, the upper one of the anomalous pixels


class Known(NamedTuple):
  """Scores of known images.

  Attributes:
    of: what they are, in words.
    scores: [n] float32.
    labels: [n] 0 normal, 1 anomalous.
    peaks: [n] float32, each map's largest value; NaN without maps.
    pixels: [m] float32, a regular sample of the maps whose masks are known.
    truth: [m] bool, whether the pixel is anomalous.
  """
  of: str
  scores: np.ndarray
  labels: np.ndarray
  peaks: np.ndarray
  pixels: np.ndarray
  truth: np.ndarray


class Levels(NamedTuple):
  """How scores and maps are read.

  Attributes:
    image: Threshold of scores; None where it waits for the scores of the whole batch.
    pixel: Threshold of maps; None where it waits, and for a method without maps.
    low, high: ends of the colour scale, around the pixel threshold.
  """
  image: Threshold | None
  pixel: Threshold | None
  low: float = 0.
  high: float = 1.


def check(keys):
  """Raises ValueError naming the first key of the config's `predict` that is out of range."""
  for key in ('threshold', 'pixel_threshold'):
    if keys[key] not in RULES and _number(keys[key]) is None:
      raise ValueError(f'predict.{key} is {keys[key]!r}; it must be a number or one of {", ".join(RULES)}')
  for key, high in (('fpr', 0.5), ('pixel_fpr', 0.5), ('quantile', 1)):
    if not 0 < keys[key] < high:
      raise ValueError(f'predict.{key} is {keys[key]}; it must lie in (0, {high:g})')
  if 'normals' in (keys.threshold, keys.pixel_threshold) and not keys.normals:
    raise ValueError('predict.threshold is normals: name their folder with --config.predict.normals=FOLDER')


def rules(keys, referenced: bool, auxiliary: bool) -> tuple[str, str]:
  """Returns the rules of the image and of the pixel threshold, RULES without 'auto', or 'fixed' for numbers.

  Args:
    keys: the config's `predict`.
    referenced: whether the normal images are a few-shot method's references, from which their own distance is 0.
    auxiliary: whether there is an auxiliary set to be had.
  """
  best = 'normals' if keys.normals and not referenced else 'fpr' if auxiliary else 'batch'
  image = {'auto': best}.get(keys.threshold, keys.threshold)
  image = 'fixed' if _number(image) is not None else image
  pixel = keys.pixel_threshold if keys.pixel_threshold != 'auto' else best if image == 'fixed' else image
  return image, 'fixed' if _number(pixel) is not None else pixel


def levels(keys, image: str, pixel: str, known: Known | None, normal: Known | None) -> Levels:
  """Returns the Levels of two rules; `known` is the auxiliary set and `normal` normal images, None where not needed.

  Raises:
    ValueError: what the rules of zsad_jax/predict/thresholds.py raise.
  """
  of_image = _found(image, keys.threshold, keys.fpr, keys.quantile, known and known[:3], normal and normal[:2])
  source = normal if pixel == 'normals' else known
  if source is not None and not np.all(np.isfinite(source.peaks)):
    return Levels(of_image, None)
  # Of normal images the highest points: then so many of them have nothing marked at all.
  of_pixel = _found(pixel, keys.pixel_threshold, keys.pixel_fpr, keys.quantile,
                    known and (f'pixels of {known.of}', known.pixels, known.truth),
                    normal and (f'highest points of {normal.of}', normal.peaks))
  if of_pixel is None:
    return Levels(of_image, None)
  return Levels(of_image, of_pixel, *_ends(of_pixel.value, source))


def _found(rule: str, number, rate: float, quantile: float, known, normal) -> Threshold | None:
  """The threshold of a rule; `known` is (of, scores, labels) and `normal` (of, scores)."""
  if rule == 'fixed':
    return thresholds.fixed(_number(number))
  if rule == 'f1_max':
    return thresholds.f1_max(known[2], known[1], known[0], quantile)
  if rule == 'fpr':
    return thresholds.false_positive_rate(known[2], known[1], rate, known[0])
  return thresholds.normals(normal[1], quantile, normal[0]) if rule == 'normals' else None


def of_batch(keys, given: Levels, scores, lows, peaks) -> Levels:
  """Returns `given` with what waited for the batch: scores [n], and each map's lowest and highest value, or [].

  Raises:
    ValueError: too few images, see thresholds.robust.
  """
  of = f'the {len(scores)} predicted images'
  image = given.image or thresholds.robust(scores, keys.fpr, of)
  if given.pixel or not len(peaks):
    return given._replace(image=image)
  pixel = thresholds.robust(peaks, keys.fpr, f'highest points of {of}')
  return Levels(image, pixel, min(float(np.median(lows)), pixel.value), max(float(np.max(peaks)), pixel.value))


def _ends(value: float, source: Known | None) -> tuple[float, float]:
  """Ends of a colour scale with `value` in the middle."""
  if source is None or not source.pixels.size:
    return value - (abs(value) or 1.), value + (abs(value) or 1.)
  low = float(np.percentile(source.pixels, ENDS[0]))
  anomalous = source.pixels[source.truth]
  high = float(np.percentile(anomalous, ENDS[1])) if anomalous.size else 2 * value - low
  return min(low, value), max(high, value)


def auxiliary(cfg, method, clip, learnable, dataset, folder: Path | None) -> Known:
  """Returns the Known of a labelled data set, read from `folder` where it was found before, else kept there.

  Its images are encoded once, into the feature store. Methods with references compare with those that fewshot draws
  from the set's training split.

  Args:
    cfg: of the prediction, see scoring.alone.
    folder: None keeps nothing.
  """
  cfg = setup.with_changes(cfg, {'data.target': cfg.data.aux, 'data.target_categories': cfg.data.aux_categories})
  memory, _ = experiment.few_shot(cfg, method, clip)
  key = hashlib.sha256(f'{scoring.identity(cfg, clip, learnable, memory)} {dataset.fingerprint}'.encode()).hexdigest()
  path = folder and Path(folder) / f'{key[:16]}.npz'
  of = f'{len(dataset)} labelled images of {dataset.name}'
  if path and path.is_file():
    try:
      with np.load(path, allow_pickle=False) as kept:
        return Known(of, *(kept[name] for name in Known._fields[1:]))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
      logging.warning('%s is damaged (%s); the scores are found anew', path, error)
  known = _scored(cfg, method, clip, learnable, dataset, memory, of)
  if path:
    path.parent.mkdir(parents=True, exist_ok=True)
    runtime.write_atomic(path, _npz(known))
  return known


def of_normals(of: str, seen: Iterable) -> Known:
  """Returns the Known of normal images, one after another: what a Detector's stream says of them.

  Raises:
    ValueError: none could be read.
  """
  scores, peaks, pixels = [], [], []
  for one in seen:
    if not one.error:
      scores.append(one.score)
      peaks.append(np.nan if one.map is None else one.map.max())
      pixels.append(np.empty(0) if one.map is None else one.map[::STEP, ::STEP].ravel())
  if not scores:
    raise ValueError(f'{of}: none of them can be read')
  pixels = np.concatenate(pixels).astype(np.float32)
  return Known(f'{len(scores)} {of}', np.array(scores, np.float32), np.zeros(len(scores), np.int32),
               np.array(peaks, np.float32), pixels, np.zeros(pixels.shape, bool))


def _scored(cfg, method, clip, learnable, dataset, memory, of) -> Known:
  place = setup.own_devices(cfg)
  score = scoring.Scorer(cfg, method, clip, learnable, _called(cfg, dataset), memory=memory, place=place)
  load, size = setup.reader(cfg, method, clip, dataset), place.rows(cfg.machine.eval_batch)
  step = max(1, int(np.ceil((len(dataset) * clip.image_size ** 2 / PIXELS) ** 0.5)))
  scores, peaks, pixels, truth = [], [], [], []

  def read(start):
    indices, valid = features.padded(np.arange(start, min(start + size, len(dataset))), size)
    values, batch = load(indices)
    return values, dict(batch, valid=valid)

  with tqdm(total=len(dataset), desc=f'score {dataset.name}', unit='image') as bar:
    for values, batch in runtime.prefetch(read, range(0, len(dataset), size)):
      out = {name: array[batch['valid']] for name, array in score(values, batch).items()}
      scores.append(out['score'])
      if 'map' in out:
        peaks.append(out['map'].max((1, 2)))
        masked = batch['has_mask'][batch['valid']]
        pixels.append(out['map'][masked, ::step, ::step].ravel())
        truth.append(batch['mask'][batch['valid']][masked, ::step, ::step].ravel() > 0)
      bar.update(len(out['score']))
  join = lambda parts, dtype: np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype)
  found = join(scores, np.float32)
  return Known(of, found, dataset.labels, join(peaks, np.float32) if peaks else np.full_like(found, np.nan),
               join(pixels, np.float32), join(truth, bool))


def _called(cfg, dataset) -> tuple[str, ...]:
  """What prompts call the categories: by their names only where the pictured thing has been given one as well."""
  if cfg.predict.object_name == ANYTHING:
    return (ANYTHING,) * len(dataset.categories)
  return setup.names(cfg, dataset)


def _npz(known: Known) -> bytes:
  out = io.BytesIO()
  np.savez(out, **{name: value for name, value in known._asdict().items() if name != 'of'})
  return out.getvalue()


def _number(text) -> float | None:
  try:
    return float(text)
  except ValueError:
    return None
