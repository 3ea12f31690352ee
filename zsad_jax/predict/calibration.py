"""Calibrates thresholds and the colour scale on reference images."""

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from tqdm import tqdm

from zsad_jax import data
from zsad_jax.engine import features, runtime
from zsad_jax.experiment import setup
from zsad_jax.experiment.run import Run
from zsad_jax.methods import Params
from zsad_jax.predict import scoring, thresholds
from zsad_jax.predict.thresholds import Threshold

RULES = ('auto', 'f1_max', 'fpr', 'normals', 'batch')
FROM_AUXILIARY = {'f1_max', 'fpr'}  # rules that need the auxiliary data set
PIXELS = 1 << 20  # pixels kept of a whole data set: more than enough for a threshold
STEP = 4  # of normal images every 4th pixel of every 4th row
ANYTHING = 'object'  # what prompts call an object without a name
ENDS = 1, 99  # percentiles of the pixels at the ends of the colour scale, the upper one of the anomalous pixels


class Known(NamedTuple):
  """Scores of images whose labels are known.

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
  """Thresholds and colour scale.

  Attributes:
    image: Threshold of scores; None if it is fitted to the predicted images.
    pixel: Threshold of maps; None if it is fitted to the predicted images, and for a method without maps.
    low, high: ends of the colour scale, around the pixel threshold.
  """
  image: Threshold | None
  pixel: Threshold | None
  low: float = 0.
  high: float = 1.


def check(keys: Any) -> None:
  """Raises ValueError naming the first key of the config's `predict` whose value is not allowed."""
  for key in ('threshold', 'pixel_threshold'):
    if keys[key] not in RULES and _number(keys[key]) is None:
      raise ValueError(f'predict.{key}={keys[key]!r} is not allowed; it must be a number or one of {", ".join(RULES)}')
  if 'normals' in (keys.threshold, keys.pixel_threshold) and not keys.normals:
    raise ValueError('predict.threshold=normals needs a folder of normal images: --config.predict.normals=FOLDER')


def rules(keys: Any, referenced: bool, auxiliary: bool) -> tuple[str, str]:
  """Returns the rules of the image and of the pixel threshold: RULES without 'auto', or 'fixed' for numbers.

  Args:
    keys: the config's `predict`.
    referenced: whether the normal images are a few-shot method's references, from which their own distance is 0.
    auxiliary: whether there is an auxiliary data set.
  """
  best = 'normals' if keys.normals and not referenced else 'fpr' if auxiliary else 'batch'
  image = {'auto': best}.get(keys.threshold, keys.threshold)
  image = 'fixed' if _number(image) is not None else image
  pixel = keys.pixel_threshold if keys.pixel_threshold != 'auto' else best if image == 'fixed' else image
  return image, 'fixed' if _number(pixel) is not None else pixel


def levels(keys: Any, image: str, pixel: str, known: Known | None, normal: Known | None) -> Levels:
  """Returns the Levels of two rules; `known` is the auxiliary data set and `normal` normal images, None if not needed.

  Raises:
    ValueError: see the rules in predict/thresholds.py.
  """
  of_image = _threshold(image, keys.threshold, keys.fpr, keys.quantile, known and known[:3], normal and normal[:2])
  source = normal if pixel == 'normals' else known
  if source is not None and not np.all(np.isfinite(source.peaks)):
    return Levels(of_image, None)
  # For normal images the highest points: then that share of them has no marked pixel at all.
  of_pixel = _threshold(pixel, keys.pixel_threshold, keys.pixel_fpr, keys.quantile,
                        known and (f'pixels of {known.of}', known.pixels, known.truth),
                        normal and (f'highest points of {normal.of}', normal.peaks))
  if of_pixel is None:
    return Levels(of_image, None)
  return Levels(of_image, of_pixel, *_ends(of_pixel.value, source))


def _threshold(rule: str, number: Any, rate: float, quantile: float, known: Any, normal: Any) -> Threshold | None:
  """The threshold of a rule; `known` is (of, scores, labels) and `normal` (of, scores)."""
  if rule == 'fixed':
    return thresholds.fixed(_number(number))
  if rule == 'f1_max':
    return thresholds.f1_max(known[2], known[1], known[0], quantile)
  if rule == 'fpr':
    return thresholds.false_positive_rate(known[2], known[1], rate, known[0])
  return thresholds.normals(normal[1], quantile, normal[0]) if rule == 'normals' else None


def of_batch(keys: Any, partial: Levels, scores: Any, lows: Any, peaks: Any) -> Levels:
  """Returns `partial` with the thresholds that are fitted to the predicted images.

  Args:
    keys: the config's `predict`.
    partial: Levels in which thresholds may be None.
    scores: [n].
    lows, peaks: each map's lowest and highest value, or [].

  Raises:
    ValueError: too few images, see thresholds.robust.
  """
  of = f'the {len(scores)} predicted images'
  image = partial.image or thresholds.robust(scores, keys.fpr, of)
  if partial.pixel or not len(peaks):
    return partial._replace(image=image)
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


def of_auxiliary(run: Run, params: Params, dataset: data.Dataset, folder: Path | None) -> Known:
  """Returns the Known of a labelled data set, read from `folder` if it was computed before, else kept there.

  Its images are encoded once, into the feature store. Few-shot methods compare with references that fewshot draws from
  the data set's training split.

  Args:
    run: one that scoring.single_image returned.
    params: trained parameters.
    dataset: the auxiliary data set.
    folder: None keeps nothing.
  """
  cfg = run.cfg
  run = run.with_overrides({'data.target': cfg.data.aux, 'data.target_categories': cfg.data.aux_categories})
  memory_bank, _ = run.reference_bank()
  key = setup.digest(scoring.identity(run, params, memory_bank), dataset.fingerprint)
  path = folder and Path(folder) / f'{key}.npz'
  of = f'{len(dataset)} labelled images of {dataset.name}'
  if path and path.is_file():
    try:
      with np.load(path, allow_pickle=False) as kept:
        return Known(of, *(kept[name] for name in Known._fields[1:]))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
      logging.warning('%s is damaged (%s); computing the scores again', path, error)
  known = _scored(run, params, dataset, memory_bank, of)
  if path:
    path.parent.mkdir(parents=True, exist_ok=True)
    runtime.write_atomic(path, _npz(known))
  return known


def of_normals(of: str, scored: Iterable) -> Known:
  """Returns the Known of normal images, one after another, as a Detector's stream yields them.

  Raises:
    ValueError: none could be read.
  """
  scores, peaks, pixels = [], [], []
  for one in scored:
    if not one.error:
      scores.append(one.score)
      peaks.append(np.nan if one.map is None else one.map.max())
      pixels.append(np.empty(0) if one.map is None else one.map[::STEP, ::STEP].ravel())
  if not scores:
    raise ValueError(f'{of}: none of them can be read')
  sample = np.concatenate(pixels).astype(np.float32)
  return Known(f'{len(scores)} {of}', np.array(scores, np.float32), np.zeros(len(scores), np.int32),
               np.array(peaks, np.float32), sample, np.zeros(sample.shape, bool))


def _scored(run: Run, params: Params, dataset: data.Dataset, memory_bank: Any, of: str) -> Known:
  names = (ANYTHING,) * len(dataset.categories)
  if run.cfg.predict.object_name != ANYTHING:  # prompts name the auxiliary objects only if the predicted one has a name
    names = setup.object_names(run.cfg, dataset)
  score = scoring.Scorer(run, params, names, memory_bank, run.local)
  load, size = run.reader(dataset), run.local.rows(run.cfg.machine.eval_batch)
  step = max(1, int(np.ceil((len(dataset) * run.clip.image_size ** 2 / PIXELS) ** 0.5)))
  scores, peaks, pixels, truth = [], [], [], []

  def read(start):
    indices, valid = features.padded(np.arange(start, min(start + size, len(dataset))), size)
    values, batch = load(indices)
    return values, dict(batch, valid=valid)

  with tqdm(total=len(dataset), desc=f'score {dataset.name}', unit='image') as bar:
    for values, batch in runtime.prefetch(read, range(0, len(dataset), size)):
      valid, prediction = batch['valid'], score(values, batch)
      scores.append(prediction.score[valid])
      if prediction.map is not None:
        maps = prediction.map[valid]
        peaks.append(maps.max((1, 2)))
        masked = batch['has_mask'][valid]
        pixels.append(maps[masked, ::step, ::step].ravel())
        truth.append(batch['mask'][valid][masked, ::step, ::step].ravel() > 0)
      bar.update(int(valid.sum()))
  join = lambda parts, dtype: np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype)
  every = join(scores, np.float32)
  return Known(of, every, dataset.labels, join(peaks, np.float32) if peaks else np.full_like(every, np.nan),
               join(pixels, np.float32), join(truth, bool))


def _npz(known: Known) -> bytes:
  out = io.BytesIO()
  np.savez(out, **{name: value for name, value in known._asdict().items() if name != 'of'})
  return out.getvalue()


def _number(text: Any) -> float | None:
  try:
    return float(text)
  except ValueError:
    return None
