"""The Python API: `load(config).predict(images)` gives scores, verdicts and anomaly maps; the command line uses it."""

import math
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections as mlc
import numpy as np
from absl import logging
from PIL import Image

from zsad_jax import data
from zsad_jax.clip import preprocess
from zsad_jax.clip.feature_spec import Features
from zsad_jax.data import image_files
from zsad_jax.data import images as images_lib
from zsad_jax.engine import features, runtime
from zsad_jax.experiment import config_files, memory_budget, seeds, setup
from zsad_jax.experiment.run import Run
from zsad_jax.methods import Params
from zsad_jax.methods import Prediction as BatchPrediction
from zsad_jax.predict import calibration, scoring, thresholds

THREADS = 4  # that read and decode images


class Scored(NamedTuple):
  """One image and its score; score and map are None if `error` says why.

  Attributes:
    source: what was given: a path, an image or an array.
    image: 8-bit RGB PIL image, or None.
    score: anomaly score of the image.
    map: [R, R] float32, None for a method without maps.
    error: '' or what is wrong with the image.
  """
  source: object
  image: Image.Image | None = None
  score: float | None = None
  map: np.ndarray | None = None
  error: str = ''


class Prediction(NamedTuple):
  """The verdict on one image; all but path and error are None if `error` is not ''.

  Attributes:
    path: of the file, or None.
    score: anomaly score, higher is more anomalous.
    threshold, threshold_source: what the score is compared with, and its origin.
    is_anomaly: score >= threshold.
    percentile: 0..100, the share of the images of this call that score lower.
    map: [h, w] float32 anomaly map at the image's own size; None for a method without maps.
    mask: [h, w] bool, map >= pixel_threshold.
    pixel_threshold: see mask.
    error: '', or what is wrong with the file.
  """
  path: str | None
  score: float | None = None
  threshold: float | None = None
  threshold_source: str | None = None
  is_anomaly: bool | None = None
  percentile: float | None = None
  map: np.ndarray | None = None
  mask: np.ndarray | None = None
  pixel_threshold: float | None = None
  error: str = ''

  def __repr__(self) -> str:
    if self.error:
      return f'Prediction({self.path!r}, error={self.error!r})'
    size = '' if self.map is None else f', map {self.map.shape[1]}x{self.map.shape[0]}'
    return (f'Prediction({self.path!r}, score={self.score:.4g}, threshold={self.threshold:.4g}, '
            f'{"anomalous" if self.is_anomaly else "normal"}{size})')


def load(config: Any, workdir: Path | str | None = None, changes: Mapping[str, Any] | None = None) -> 'Detector':
  """Returns the Detector of a config, with what `workdir` holds; trains first if the method trains and has not yet.

  Args:
    config: a config's name with its variant, 'anomalyclip:demo'; a file, 'configs/anomalyclip.py:demo'; or the config.
    workdir: folder of the run; None for a method that trains nothing.
    changes: {dotted key: value} of the config.

  Raises:
    ValueError: an unknown config, a key that is not allowed, or a method that cannot predict single images.
    FileNotFoundError: weights, auxiliary data or normal images are missing.
    runtime.Preempted: SIGTERM came while training; the same call resumes.
  """
  cfg = setup.with_overrides(config_files.load(config), changes or {})
  workdir = None if workdir is None else Path(workdir)
  calibration.check(cfg.predict)
  method = setup.check(cfg)
  if method.build_memory_bank is not None and cfg.fewshot.shots and not cfg.predict.normals:
    raise ValueError(f'fewshot.shots={cfg.fewshot.shots}: {setup.label(cfg)} compares with normal images; name their '
                     'folder with --config.predict.normals=FOLDER')
  run = Run.load(cfg)
  if workdir is None and run.trains:
    raise ValueError(f'{setup.label(cfg)} has to be trained: pass workdir, the folder of its run')
  every = seeds.of_run(run)
  run = every[0]  # of several seeds, the first
  folder = None if workdir is None else seeds.folder(workdir, run, len(every))
  with runtime.stopping_at_once():
    aux = _open_auxiliary(run)
  run, params = _trained(run, folder, aux)
  run, note = scoring.single_image(run)
  with runtime.stopping_at_once():
    detector = Detector(run, params, note=note)
    detector.calibrate(aux, workdir and workdir / 'calibration')
  return detector


def _open_auxiliary(run: Run) -> data.Dataset | None:
  """The auxiliary data set that is trained on, or that a threshold comes from; None if there is none.

  If only the threshold needs it and the rule is `auto`, it may be missing.
  """
  keys = run.cfg.predict
  needed = run.trains and not run.trains_on_texts
  if not needed and not calibration.FROM_AUXILIARY & set(calibration.rules(keys, run.shots > 0, True)):
    return None
  try:
    return setup.open_data(run.cfg, 'aux')
  except FileNotFoundError as error:
    if needed or calibration.FROM_AUXILIARY & {keys.threshold, keys.pixel_threshold}:
      raise
    logging.warning('no auxiliary data set to take a threshold from (%s); it is fitted to the predicted images instead',
                    str(error).splitlines()[0])
    return None


def _trained(run: Run, folder: Path | None, aux: data.Dataset | None) -> tuple[Run, Params]:
  """(run with the config keys that follow from the auxiliary data set, its parameters), trained if necessary."""
  trained_on = None if run.trains_on_texts else aux
  if not run.trains:
    return run, run.restore(folder, aux)
  run = run.for_auxiliary(trained_on)
  if run.is_trained(folder, trained_on):
    return run, run.restore(folder, trained_on)
  logging.info('%s holds no finished training of this config; training first', folder)
  memory_budget.require_training(run)
  return run, run.fit(folder, trained_on)


class Detector:
  """A method ready to predict images; made by `load`.

  Attributes:
    run: its Run, under a config that scores every image on its own.
    params: its trainable parameters.
    note: what that config changes, or ''.
    levels: calibration.Levels, the thresholds and the colour scale.
    rules: how files become pixels.
    identity: digest of everything that decides a score.
    has_maps: whether the method makes anomaly maps.
  """

  def __init__(self, run: Run, params: Params, *, note: str = ''):
    self.run, self.params, self.note = run, params, note
    cfg, clip, spec = run.cfg, run.clip, run.spec
    self.rules = data.rules('folder:.', cfg.data.exif, cfg.data.transparency)
    self._size = run.local.rows(cfg.predict.batch)
    self._normals: list[Path] = []
    self._memory_bank = None
    whole, self._encode_crops, self._crop_transform = spec._replace(crops=0), None, None
    self._encode, side = run.encoder(whole)
    self._transform = preprocess.image_transform(clip.arch, side)
    if spec.crops:
      self._encode_crops, side = run.encoder(spec.of_crops())
      self._crop_transform = preprocess.image_transform(clip.arch, side)
    self._clip_params = runtime.weights(clip.params, run.local)
    if cfg.predict.normals:
      found = image_files.find(cfg.predict.normals)
      self._normals = [found.root / file for file in found.files]
    if run.shots:
      self._memory_bank = self._reference_bank()
    self._score = scoring.Scorer(run, params, (cfg.predict.object_name,), self._memory_bank, run.local)
    self.has_maps = self._score.has_maps(self._feature_shapes())
    self.identity = scoring.identity(run, params, self._memory_bank)
    self.levels = calibration.Levels(None, None)

  def __repr__(self) -> str:
    cfg, level = self.run.cfg, self.levels.image
    rule = 'no threshold yet' if level is None else f'threshold {level.value:.4g} ({level.rule})'
    return f'Detector({setup.label(cfg)} on CLIP {cfg.clip} at {cfg.image_size} px, {rule})'

  @property
  def cfg(self) -> mlc.FrozenConfigDict:
    return self.run.cfg

  def _reference_bank(self) -> Any:
    """The method's memory bank of the references that fewshot draws from the normal images."""
    keys, count = self.cfg.fewshot, len(self._normals)
    if count < (1 if keys.replacement else keys.shots):
      raise ValueError(f'fewshot.shots={keys.shots}, but {self.cfg.predict.normals} has {count} '
                       f'image{"s" * (count != 1)}; lower it or add normal images')
    indices = np.random.default_rng(keys.seed).choice(count, keys.shots, replace=keys.replacement)
    parts = []
    for rows, values, valid in self._encoded([self._normals[i] for i in np.sort(indices)], crops=False):
      if bad := next((row for row in rows if row.error), None):
        raise ValueError(f'a normal image cannot be read: {bad.error}')
      parts.append(jax.tree.map(lambda x, keep=valid: np.asarray(x)[keep], values))
    return self.run.memory_bank(jax.tree.map(lambda *x: np.concatenate(x)[None], *parts))

  def _feature_shapes(self) -> Features:
    """The Features of a batch, as shapes."""
    images = lambda side: jax.ShapeDtypeStruct((self._size, side, side, 3), np.float32)
    values = jax.eval_shape(self._encode, self._clip_params, images(self.run.clip.image_size))
    if self._encode_crops is None:
      return values
    crops = jax.eval_shape(self._encode_crops, self._clip_params, images(self.run.spec.crops)).crops
    return values._replace(crops=crops)

  @property
  def needs_batch(self) -> tuple[bool, bool]:
    """Whether the threshold of scores, and that of maps, is still to be fitted to the predicted images."""
    return self.levels.image is None, self.has_maps and self.levels.pixel is None

  def calibrate(self, aux: data.Dataset | None, folder: Path | None = None) -> None:
    """Sets `levels` by the config's rules, from the auxiliary data set, whose scores are kept in `folder`."""
    keys = self.cfg.predict
    image, pixel = calibration.rules(keys, self._memory_bank is not None, aux is not None)
    known = normal = None
    if calibration.FROM_AUXILIARY & {image, pixel}:
      known = calibration.of_auxiliary(self.run, self.params, aux, folder)
    if 'normals' in (image, pixel):
      normal = self._known_normals()
    self.levels = calibration.levels(keys, image, pixel, known, normal)

  def _known_normals(self) -> calibration.Known:
    if self._memory_bank is not None:
      raise ValueError('predict.threshold=normals is not possible: the normal images are references, from which their '
                       'own distance is 0. Use f1_max, fpr, batch or a number')
    return calibration.of_normals(f'normal images of {self.cfg.predict.normals}', self.stream(self._normals))

  def stream(self, sources: Iterable) -> Iterator[Scored]:
    """Yields the scored images in order; memory does not grow with their number.

    Args:
      sources: paths, PIL images or uint8 arrays [h, w, 3] or [h, w].
    """
    for batch in self.batches(sources):
      yield from batch

  def batches(self, sources: Iterable) -> Iterator[list[Scored]]:
    """Yields the same, batch by batch."""
    for rows, values, valid in self._encoded(sources):
      if values is None:
        yield rows
        continue
      size = len(valid)
      batch = {'category': np.zeros(size, np.int32), 'index': np.arange(size, dtype=np.int32), 'valid': valid}
      yield _with_scores(rows, self._score(values, batch))

  def _encoded(self, sources: Iterable, crops: bool = True) -> Iterator[tuple]:
    """Yields (rows, padded Features of the readable ones on the devices, or None; which of these are valid)."""
    with ThreadPoolExecutor(THREADS) as pool:
      read = lambda chunk: self._read(chunk, pool, crops)
      for rows, whole, cropped, valid in runtime.prefetch(read, _chunks(sources, self._size), depth=1):
        if whole is None:
          yield rows, None, None
          continue
        on_device = lambda images: jax.device_put(images, self.run.local.split)
        values = self._encode(self._clip_params, on_device(whole))
        if cropped is not None:
          values = values._replace(crops=self._encode_crops(self._clip_params, on_device(cropped)).crops)
        yield rows, values, valid

  def _read(self, chunk: list, pool: ThreadPoolExecutor, crops: bool) -> tuple:
    opened = list(pool.map(self._open, chunk))
    rows, good = [row for row, *_ in opened], [arrays for row, *arrays in opened if not row.error]
    if not good:
      return rows, None, None, None
    indices, valid = features.padded(np.arange(len(good)), self._size)
    whole, cropped = zip(*good)
    stack = lambda arrays: np.stack(arrays)[indices]
    return rows, stack(whole), stack(cropped) if crops and self._crop_transform else None, valid

  def _open(self, source: Any) -> tuple[Scored, Any, Any]:
    try:
      image = self._image(source)
    except (images_lib.BadImage, OSError) as error:
      return Scored(source, error=str(error)), None, None
    return (Scored(source, image), self._transform(image),
            self._crop_transform(image) if self._crop_transform else None)

  def _image(self, source: Any) -> Image.Image:
    if isinstance(source, np.ndarray):
      if source.dtype != np.uint8 or source.ndim not in (2, 3) or source.shape[2:] not in ((), (3,)) or not source.size:
        raise ValueError(f'an image array must be uint8 [h, w, 3] or [h, w], not {source.dtype} {list(source.shape)}')
      source = Image.fromarray(source)
    if isinstance(source, Image.Image):
      return images_lib.rgb(source, 'a PIL image', self.rules)
    return images_lib.read_rgb(source, self.rules)

  def predict(self, images: Iterable) -> list[Prediction]:
    """Returns a Prediction of every image, in order; a file that cannot be read becomes one with an error.

    Args:
      images: paths, PIL images or uint8 arrays [h, w, 3] or [h, w]. For many images, `stream` needs less memory.

    Raises:
      ValueError: an array of another kind; too few images for a threshold that is fitted to them.
    """
    scored, sizes = [], []
    for one in self.stream(images):  # of images only the size is kept
      sizes.append(None if one.image is None else one.image.size)
      scored.append(one._replace(image=None))
    good = [one for one in scored if not one.error]
    levels = self.levels
    if good and any(self.needs_batch):
      maps = [one.map for one in good if one.map is not None]
      levels = calibration.of_batch(self.cfg.predict, levels, [one.score for one in good],
                                    [m.min() for m in maps], [m.max() for m in maps])
    scores = [one.score for one in good]
    return [_prediction(one, size, levels, scores) for one, size in zip(scored, sizes)]


def _with_scores(rows: list[Scored], prediction: BatchPrediction) -> list[Scored]:
  """The rows with their scores and maps; a NaN or infinity is an error."""
  scored, place = [], iter(range(len(rows)))
  for row in rows:
    if not row.error:
      i = next(place)
      score = float(prediction.score[i])
      anomaly_map = None if prediction.map is None else np.asarray(prediction.map[i])
      finite = math.isfinite(score) and (anomaly_map is None or np.all(np.isfinite(anomaly_map)))
      row = row._replace(score=score, map=anomaly_map) if finite else row._replace(
        error=f'{row.source}: its score or map is NaN or infinite')
    scored.append(row)
  return scored


def _prediction(one: Scored, size: tuple[int, int] | None, levels: calibration.Levels, scores: list[float]
                ) -> Prediction:
  """The public form of a scored image of this size (width, height)."""
  path = str(one.source) if isinstance(one.source, str | Path) else None
  if one.error:
    return Prediction(path, error=one.error)
  verdict = Prediction(path, one.score, levels.image.value, levels.image.source, one.score >= levels.image.value,
                       float(thresholds.percentile(one.score, scores)))
  if one.map is None:
    return verdict
  anomaly_map = enlarged(one.map, size)
  return verdict._replace(map=anomaly_map, mask=anomaly_map >= levels.pixel.value, pixel_threshold=levels.pixel.value)


def enlarged(anomaly_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Returns the map [R, R] as float32 [h, w] for an image of `size` (width, height), by bilinear interpolation."""
  return np.asarray(Image.fromarray(np.asarray(anomaly_map, np.float32)).resize(size, Image.Resampling.BILINEAR))


def _chunks(items: Iterable, size: int) -> Iterator[list]:
  chunk = []
  for item in items:
    chunk.append(item)
    if len(chunk) == size:
      yield chunk
      chunk = []
  if chunk:
    yield chunk
