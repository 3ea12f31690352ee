"""A trained detector and what it says of pictures: `load(config).predict(images)`; the command line uses the same."""

import importlib
import importlib.util
import math
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections as mlc
import numpy as np
from absl import logging
from PIL import Image

from zsad_jax import data, methods
from zsad_jax.clip import encoder, preprocess
from zsad_jax.data import images as images_lib
from zsad_jax.data import walk
from zsad_jax.engine import checkpoint, features, runtime
from zsad_jax.experiment import experiment, generated, setup
from zsad_jax.predict import calibration, scoring, thresholds

THREADS = 4  # that read and decode pictures


class Seen(NamedTuple):
  """One picture and what the method says of it; score and map are None where `error` says why.

  Attributes:
    source: what was given.
    image: 8-bit RGB PIL image, or None.
    score: image score.
    map: [R, R] float32, None for a method without maps.
    error: '' or what is wrong with the picture.
  """
  source: object
  image: Image.Image | None
  score: float | None
  map: np.ndarray | None
  error: str


class Prediction(NamedTuple):
  """What `Detector.predict` says of one picture; all but path and error are None where `error` is not ''.

  Attributes:
    path: of the file, or None.
    score: image score, higher is more anomalous.
    threshold, threshold_source: what it is compared with, and where that comes from.
    is_anomaly: score >= threshold.
    percentile: 0..100, the share of the pictures of this call that score lower.
    map: [h, w] float32 at the picture's own size; None for a method without maps.
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


def load(config, workdir=None, changes: Mapping | None = None) -> 'Detector':
  """Returns a Detector of a config: what `workdir` has learned, or is learned now where the method learns.

  Args:
    config: a name of the configs folder with its variant, 'anomalyclip:demo'; a file, 'configs/anomalyclip.py:demo'; or
      the config itself.
    workdir: folder of the run; None for a method that learns nothing.
    changes: {dotted key: value} of the config.

  Raises:
    ValueError: an unknown config, a key out of range, or what cannot be predicted; it says which.
    FileNotFoundError: weights, auxiliary data or normal images are not there.
    runtime.Preempted: SIGTERM came while training; the same call goes on from there.
  """
  cfg = setup.with_changes(configured(config), changes or {})
  workdir = None if workdir is None else Path(workdir)
  setup.check(cfg)
  calibration.check(cfg.predict)
  method = methods.get(cfg.method)
  _, note = scoring.alone(cfg, method)
  referenced = hasattr(method, 'memory') and cfg.fewshot.shots > 0
  if referenced and not cfg.predict.normals:
    raise ValueError(f'fewshot.shots is {cfg.fewshot.shots}, so {cfg.method} compares with normal images: name their '
                     'folder with --config.predict.normals=FOLDER')
  clip = setup.load_clip(cfg, method)
  if workdir is None and experiment.trains(cfg, method, clip):
    raise ValueError(f'{cfg.method} learns: name the folder of its run, workdir')
  with runtime.stopping_at_once():
    aux = _auxiliary(cfg, method, clip)
  cfg, learnable = _learned(cfg, workdir, method, clip, aux)
  own, _ = scoring.alone(cfg, method)
  with runtime.stopping_at_once():
    detector = Detector(own, clip, learnable, note=note)
    detector.calibrate(aux, workdir and workdir / 'calibration')
  return detector


def configured(config) -> mlc.FrozenConfigDict:
  """Returns the config that `load` was asked for; raises ValueError or FileNotFoundError where there is none."""
  if not isinstance(config, str):
    return mlc.FrozenConfigDict(config)
  name, _, variant = config.partition(':')
  if name.endswith('.py'):
    if not Path(name).is_file():
      raise FileNotFoundError(f'no config {name}')
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
  else:
    try:
      module = importlib.import_module(f'zsad_jax.configs.{name}')
    except ModuleNotFoundError as error:
      raise ValueError(f"no config {name!r} ({error}); run from the project's folder, whose configs are meant, or give "
                       'the path of a config file') from error
  return mlc.FrozenConfigDict(module.get_config(variant or None))


def _auxiliary(cfg, method, clip):
  """The auxiliary set that is learned from, or that a threshold is taken from; None where there is none.

  Where it is wanted for the threshold alone and `auto` may do without, it may be missing.
  """
  told = hasattr(method, 'examples')
  needed = experiment.trains(cfg, method, clip) and not told
  referenced = hasattr(method, 'memory') and cfg.fewshot.shots > 0
  if not needed and not {'f1_max', 'fpr'} & set(calibration.rules(cfg.predict, referenced, True)):
    return None
  try:
    return setup.open_data(cfg, 'aux')
  except FileNotFoundError as error:
    if needed or {'f1_max', 'fpr'} & {cfg.predict.threshold, cfg.predict.pixel_threshold}:
      raise
    logging.warning('no auxiliary set to take a threshold from (%s); it is fitted to the predicted images instead',
                    str(error).splitlines()[0])
    return None


def _learned(cfg, workdir, method, clip, aux):
  """(config with what follows from the auxiliary set, what the method learned), after training what is not finished."""
  told = hasattr(method, 'examples')
  if not experiment.trains(cfg, method, clip):
    return cfg, experiment.trained(cfg, workdir, method, clip, aux)
  learned_from = None if told else aux
  if learned_from is not None:
    cfg = experiment.settled(experiment.with_aux_names(cfg, aux), method, clip, aux)
  if _finished(cfg, workdir, method, learned_from):
    learnable = experiment.trained(cfg, workdir, method, clip, learned_from)
  else:
    logging.info('nothing has been learned in %s under this config; training first', workdir)
    learnable = experiment.fit(cfg, workdir, method, clip, learned_from)
  if told:  # of several seeds, the first
    return generated.of_seed(cfg, 0), jax.tree.map(lambda x: x[0], learnable)
  return cfg, learnable


def _finished(cfg, workdir, method, aux) -> bool:
  """Whether the newest checkpoint of every stage is that of its last step."""
  for stage in methods.stages(method, cfg):
    recipe = setup.with_changes(cfg, stage.changes)
    count = len(method.examples(cfg.seed, cfg=cfg)) if aux is None else len(aux)
    if stage.categories is not None:
      count = int(np.isin(aux.category_index, stage.categories).sum())
    done = checkpoint.latest(workdir / stage.name / 'checkpoints')
    if done is None or done < recipe.train.epochs * math.ceil(count / recipe.train.batch):
      return False
  return True


class Detector:
  """A method ready for pictures: see `load`, which makes one.

  Attributes:
    cfg, clip, learnable: what it was made of; cfg scores every image by itself.
    note: what that changes, or ''.
    levels: calibration.Levels.
    rules: how files become pixels.
    identity: digest of all that decides a score.
    mapped: whether the method makes maps.
  """

  def __init__(self, cfg, clip, learnable, *, note: str = ''):
    self.cfg, self.clip, self.learnable, self.note = cfg, clip, learnable, note
    self._method, self._place = methods.get(cfg.method), setup.own_devices(cfg)
    self.rules = data.rules('folder:.', cfg.data.exif, cfg.data.transparency)
    self._size = self._place.rows(cfg.predict.batch)
    self._normals, self._memory = None, None
    spec = self._method.spec(clip, cfg)
    self._transform = preprocess.image_transform(clip.arch, clip.image_size)
    self._encode, self._crop_transform = encoder.encode(clip, spec._replace(crops=0)), None
    if spec.crops:
      self._crop_transform = preprocess.image_transform(clip.arch, spec.crops)
      self._encode_crops = encoder.encode_crops(clip, spec.of_crops())
    self._frozen = runtime.weights(clip.params, self._place)
    if cfg.predict.normals:
      found = walk.pictures(cfg.predict.normals)
      self._normals = [found.root / file for file in found.files]
    if hasattr(self._method, 'memory') and cfg.fewshot.shots:
      self._memory = self._references()
    self._score = scoring.Scorer(cfg, self._method, clip, learnable, (cfg.predict.object_name,), memory=self._memory,
                                 place=self._place)
    self.mapped = self._score.has_maps(self._shapes(spec))
    self.identity = scoring.identity(cfg, clip, learnable, self._memory)
    self.levels = calibration.Levels(None, None)

  def _references(self):
    """The method's memory of the references that fewshot draws from the normal images."""
    few, known = self.cfg.fewshot, len(self._normals)
    if known < (1 if few.replacement else few.shots):
      raise ValueError(f'fewshot.shots is {few.shots}, but {self.cfg.predict.normals} has {known} '
                       f'image{"s" * (known != 1)}')
    drawn = np.random.default_rng(few.seed).choice(known, few.shots, replace=few.replacement)
    parts = []
    for rows, values, valid in self._encoded([self._normals[i] for i in np.sort(drawn)], crops=False):
      if bad := next((row for row in rows if row.error), None):
        raise ValueError(f'a normal image cannot be read: {bad.error}')
      parts.append(jax.tree.map(lambda x, keep=valid: np.asarray(x)[keep], values))
    stacked = jax.tree.map(lambda *x: np.concatenate(x)[None], *parts)
    return scoring.memory_of(self.cfg, self._method, self.clip, stacked)

  def _shapes(self, spec):
    """The Features of a batch, as shapes."""
    images = lambda side: jax.ShapeDtypeStruct((self._size, side, side, 3), np.float32)
    values = jax.eval_shape(self._encode, self._frozen, images(self.clip.image_size))
    if not spec.crops:
      return values
    return values._replace(crops=jax.eval_shape(self._encode_crops, self._frozen, images(spec.crops)).crops)

  @property
  def waits(self) -> tuple[bool, bool]:
    """Whether the threshold of scores, and that of maps, is still to be fitted to the pictures themselves."""
    return self.levels.image is None, self.mapped and self.levels.pixel is None

  def calibrate(self, aux, folder: Path | None = None):
    """Finds `levels` by the config's rules, from the auxiliary set (or None), whose scores are kept in `folder`."""
    keys = self.cfg.predict
    image, pixel = calibration.rules(keys, self._memory is not None, aux is not None)
    known = normal = None
    if {'f1_max', 'fpr'} & {image, pixel}:
      known = calibration.auxiliary(self.cfg, self._method, self.clip, self.learnable, aux, folder)
    if 'normals' in (image, pixel):
      normal = self._known_normals()
    self.levels = calibration.levels(keys, image, pixel, known, normal)

  def _known_normals(self):
    if self._memory is not None:
      raise ValueError('predict.threshold is normals, but the normal images are references, which are like themselves: '
                       'take f1_max, fpr, batch or a number')
    return calibration.of_normals(f'normal images of {self.cfg.predict.normals}', self.stream(self._normals))

  def stream(self, sources: Iterable) -> Iterator[Seen]:
    """Yields what the method says of each source, in order; memory does not grow with their number.

    Args:
      sources: paths, PIL images or uint8 arrays [h, w, 3] or [h, w].
    """
    for batch in self.batches(sources):
      yield from batch

  def batches(self, sources: Iterable) -> Iterator[list[Seen]]:
    """Yields the same, batch by batch."""
    for rows, values, valid in self._encoded(sources):
      if values is None:
        yield rows
        continue
      size = len(valid)
      zeros = np.zeros(size, np.int32)
      out = self._score(values, {'category': zeros, 'index': np.arange(size, dtype=np.int32), 'valid': valid})
      yield self._told(rows, out)

  def _told(self, rows: list[Seen], out: dict) -> list[Seen]:
    told, place = [], iter(range(len(rows)))
    for row in rows:
      if not row.error:
        i = next(place)
        score, found = float(out['score'][i]), out['map'][i] if 'map' in out else None
        finite = math.isfinite(score) and (found is None or np.all(np.isfinite(found)))
        error = '' if finite else f'{row.source}: its score or map is NaN or infinite'
        row = row._replace(score=score, map=found) if finite else row._replace(error=error)
      told.append(row)
    return told

  def _encoded(self, sources: Iterable, crops: bool = True):
    """Yields (rows, Features on the devices of the readable ones, padded, or None; which rows of it are valid)."""
    with ThreadPoolExecutor(THREADS) as pool:
      read = lambda chunk: self._read(chunk, pool, crops)
      for rows, whole, cut, valid in runtime.prefetch(read, _chunks(sources, self._size), depth=1):
        if whole is None:
          yield rows, None, None
          continue
        values = self._encode(self._frozen, jax.device_put(whole, self._place.split))
        if cut is not None:
          values = values._replace(
            crops=self._encode_crops(self._frozen, jax.device_put(cut, self._place.split)).crops)
        yield rows, values, valid

  def _read(self, chunk, pool, crops):
    found = list(pool.map(self._open, chunk))
    rows, good = [row for row, *_ in found], [arrays for row, *arrays in found if not row.error]
    if not good:
      return rows, None, None, None
    indices, valid = features.padded(np.arange(len(good)), self._size)
    whole, cut = zip(*good)
    stack = lambda arrays: np.stack(arrays)[indices]
    return rows, stack(whole), stack(cut) if crops and self._crop_transform else None, valid

  def _open(self, source):
    try:
      image = self._image(source)
    except (images_lib.BadImage, OSError) as error:
      return Seen(source, None, None, None, str(error)), None, None
    return (Seen(source, image, None, None, ''), self._transform(image),
            self._crop_transform(image) if self._crop_transform else None)

  def _image(self, source) -> Image.Image:
    if isinstance(source, np.ndarray):
      if source.dtype != np.uint8 or source.ndim not in (2, 3) or source.shape[2:] not in ((), (3,)) or not source.size:
        raise ValueError(f'an image array is uint8 [h, w, 3] or [h, w], not {source.dtype} {list(source.shape)}')
      source = Image.fromarray(source)
    if isinstance(source, Image.Image):
      return images_lib.rgb(source, 'a PIL image', self.rules)
    return images_lib.read_rgb(source, self.rules)

  def predict(self, images: Iterable) -> list[Prediction]:
    """Returns a Prediction of every picture, in order; a file that cannot be read is one with an error.

    Args:
      images: paths, PIL images or uint8 arrays [h, w, 3] or [h, w]. Of many, `stream` keeps memory flat.

    Raises:
      ValueError: an array of another kind; too few pictures for a threshold that is fitted to them.
    """
    seen = [one._replace(image=one.image and one.image.size) for one in self.stream(images)]
    good = [one for one in seen if not one.error]
    levels = self.levels
    if good and any(self.waits):
      maps = [one.map for one in good if one.map is not None]
      levels = calibration.of_batch(self.cfg.predict, levels, [one.score for one in good],
                                    [m.min() for m in maps], [m.max() for m in maps])
    scores = [one.score for one in good]
    return [self._prediction(one, levels, scores) for one in seen]

  def _prediction(self, one: Seen, levels, scores) -> Prediction:
    path = str(one.source) if isinstance(one.source, str | Path) else None
    if one.error:
      return Prediction(path, error=one.error)
    found = None if one.map is None else enlarged(one.map, one.image)
    return Prediction(path, one.score, levels.image.value, levels.image.source, one.score >= levels.image.value,
                      float(thresholds.percentile(one.score, scores)), found,
                      None if found is None else found >= levels.pixel.value,
                      None if found is None else levels.pixel.value)


def enlarged(anomaly_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Returns the map [R, R] as float32 [h, w] of an image of `size` (width, height), bilinear between pixels."""
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
