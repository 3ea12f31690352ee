"""One run: a checked config with its method and CLIP, and what can be done with them: read features, train, predict."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zsad_jax import data
from zsad_jax.clip import encoder, preprocess
from zsad_jax.clip.feature_spec import Features, FeatureSpec
from zsad_jax.clip.model import Clip
from zsad_jax.clip.weights import safetensors_files
from zsad_jax.data import few_shot_references, mosaic
from zsad_jax.engine import (
  checkpoint,
  feature_store,
  features,
  logs,
  optimizers,
  runtime,
  text_features,
  train,
)
from zsad_jax.experiment import setup
from zsad_jax.methods import Context, Method, Params, Prediction, Stage

Load = Callable[[np.ndarray], tuple[Features, dict]]  # indices -> (Features, batch), in numpy


@dataclasses.dataclass(frozen=True)
class Run:
  """A checked config, its method and its CLIP.

  Attributes:
    cfg, method, clip: see there.
    place: devices of all processes, which share a batch.
    local: devices of this process, which encode its share of the images.
  """
  cfg: setup.Config
  method: Method
  clip: Clip
  place: runtime.Placement
  local: runtime.Placement

  @classmethod
  def load(cls, cfg: setup.Config, clip: Clip | None = None) -> 'Run':
    """Returns the Run of a config, with weights unless a `clip` is given.

    Raises:
      ValueError: a key is not allowed, or does not fit CLIP's architecture.
      FileNotFoundError: the weights are not there.
    """
    method = setup.check(cfg)
    clip = setup.load_clip(cfg, method) if clip is None else clip
    return cls(cfg, method, clip, runtime.place(sharded=cfg.machine.shard_weights), setup.local_devices(cfg))

  def with_overrides(self, overrides: Mapping[str, Any]) -> 'Run':
    """Returns this run under other values of these dotted config keys, with the same weights."""
    return dataclasses.replace(self, cfg=setup.with_overrides(self.cfg, overrides)) if overrides else self

  def for_auxiliary(self, aux: data.Dataset | None) -> 'Run':
    """Returns this run with the config keys that follow from the auxiliary data set: object names, groups."""
    if aux is None:
      return self
    run, prompt = self, self.cfg.get('prompt', {})
    if 'categories' in prompt and not prompt['categories']:  # of methods whose prompts name the auxiliary categories
      run = run.with_overrides({'prompt.categories': setup.object_names(self.cfg, aux)})
    if self.method.auxiliary_overrides is None:
      return run
    means = functools.partial(run.class_means, aux)
    return run.with_overrides(self.method.auxiliary_overrides(self.clip.params, means, clip=self.clip, cfg=run.cfg))

  @property
  def spec(self) -> FeatureSpec:
    """What the method reads from the image tower."""
    return self.method.feature_spec(self.clip, self.cfg)

  @property
  def shots(self) -> int:
    """Normal references per category; 0 for zero-shot."""
    return self.cfg.fewshot.shots if self.method.build_memory_bank is not None else 0

  @property
  def trains_on_texts(self) -> bool:
    return self.method.train is not None

  @property
  def trains(self) -> bool:
    """Whether this config trains: it has trainable parameters and loads no released checkpoint."""
    can = self.method.loss is not None or self.trains_on_texts
    return can and not self.cfg.checkpoint and bool(jax.tree.leaves(self.params_shape))

  @functools.cached_property
  def params_shape(self) -> Params:
    """Shapes of the trainable parameters; {} for none."""
    return jax.eval_shape(self.init)

  def init(self) -> Params:
    """Returns the initial trainable parameters."""
    return self.method.init(jax.random.key(self.cfg.seed), self.clip, self.cfg)

  # Reading features.

  def reader(self, dataset: Any, *, stored: bool = True, crops: bool = True) -> Load:
    """Returns load(indices) -> (Features, batch), from the feature store, which is filled first, or past it.

    Args:
      dataset: a Dataset, or what can be read like one.
      stored: False reads past the store, as do machine.store_features=False and methods that train inside the tower.
      crops: whether to read the crops of multi-crop prediction, which have a store of their own: whatever multicrop
        says, everything else is encoded once.
    """
    use_store = stored and self._stores_features
    if stored and not use_store:
      print(f'features of {dataset.name} are not stored: every read runs the image tower', flush=True)
    read_whole, *read_crops = [self._load(dataset, spec, use_store) for spec in self._specs(crops)]
    if not read_crops:
      return read_whole

    def load(indices):
      values, batch = read_whole(indices)
      return values._replace(crops=read_crops[0](indices)[0].crops), batch

    return load

  def stores(self, dataset: data.Dataset, *, crops: bool = True) -> list[feature_store.Store]:
    """Returns the feature stores that `reader` fills, opened as they are."""
    return [self._store(dataset, spec) for spec in self._specs(crops)] if self._stores_features else []

  def class_means(self, dataset: data.Dataset, *, normalize: bool = False) -> np.ndarray:
    """Returns the mean class token [C, E] of each category's images; with `normalize`, of unit-length tokens."""
    tokens = self.class_tokens(dataset, np.arange(len(dataset))).astype(np.float64)
    if normalize:
      tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    return np.stack([tokens[dataset.category_index == c].mean(0) for c in range(len(dataset.categories))])

  def class_tokens(self, dataset: data.Dataset, indices: np.ndarray) -> np.ndarray:
    """Returns the class tokens [n, E] of these images."""
    load, size, tokens = self.reader(dataset, crops=False), self.cfg.machine.encode_batch, []
    for start in range(0, len(indices), size):
      rows, valid = features.padded(indices[start:start + size], size)
      tokens.append(np.asarray(load(rows)[0].cls, np.float32)[valid])
    return np.concatenate(tokens)

  @property
  def _stores_features(self) -> bool:
    return self.cfg.machine.store_features and self.method.traits.stored_features

  def _specs(self, crops: bool) -> list[FeatureSpec]:
    """What is encoded from the whole image and, if asked for, from its crops."""
    spec = self.spec
    return [spec._replace(crops=0), *([spec.of_crops()] if crops and spec.crops else [])]

  def encoder(self, spec: FeatureSpec) -> tuple[Callable, int]:
    """Returns (jitted encode(params, images) -> Features, pixels per side of its images) of one of `_specs`."""
    if spec.crops:
      return encoder.encode_crops(self.clip, spec), spec.crops
    return encoder.encode(self.clip, spec), self.clip.image_size

  def _load(self, dataset: Any, spec: FeatureSpec, use_store: bool) -> Load:
    encode, side = self.encoder(spec)
    transform = preprocess.image_transform(self.clip.arch, side)

    def batches(indices, size=self.cfg.machine.encode_batch):
      return data.batches(dataset, transform=transform, mask_size=self.clip.image_size, batch_size=size,
                          indices=indices)

    if not use_store:
      params = runtime.weights(self.clip.params, self.local)
      return lambda indices: next(features.encode_batches(batches(indices, len(indices)), encode, params,
                                                          place=self.local))
    store = features.fill(self._store(dataset, spec), batches, encode, self.clip.params, place=self.local)
    return functools.partial(features.load, store)

  def _store(self, dataset: data.Dataset, spec: FeatureSpec) -> feature_store.Store:
    encode, side = self.encoder(spec)
    image = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
    key = {**self.clip.identity, 'spec': repr(spec), 'data': dataset.fingerprint, 'preprocessing': 'squash'}
    return feature_store.Store.open(
      self._feature_dir, key=key, count=len(dataset), max_gb=self.cfg.machine.max_feature_gb,
      fields=features.fields(jax.eval_shape(encode, self.clip.params, image), self.clip.image_size,
                             self.cfg.feature_dtype))

  @property
  def _feature_dir(self) -> str:
    return self.cfg.machine.feature_dir or f'{self.cfg.machine.data_dir}/features'

  def training_text_features(self) -> np.ndarray:
    """Returns the features [n, k, E] of the method's training texts, each encoded once and stored."""
    groups = self.method.training_texts(self.cfg.seed, cfg=self.cfg)
    store = text_features.store(self._feature_dir, groups, self.clip, max_gb=self.cfg.machine.max_feature_gb,
                                place=self.local)
    return store.read(np.arange(store.count))['texts']

  # Training.

  def fit(self, workdir: Path, aux: data.Dataset | None) -> Params:
    """Returns the trained parameters, after training on the auxiliary data set, or on texts if the method does.

    Resumes from the checkpoints in `workdir`; stages are trained one after another.
    """
    if self.trains_on_texts:
      return self._fit_texts(workdir)
    params = self.init()
    trained: dict[str, Any] = {}
    context = self.training_context(aux)
    mosaics = self.cfg.get('mosaic', 0) > 0
    if mosaics:
      print(f'mosaic={self.cfg.mosaic:g}: images differ from epoch to epoch, so every epoch runs the image tower',
            flush=True)
    stored = None if mosaics else self.reader(aux, crops=False)
    with runtime.preemption() as stop:
      for stage in self.method.stages(self.cfg):
        run = self.with_overrides(stage.overrides)
        load = stored or run.reader(mosaic.Mosaics(
          aux, probability=self.cfg.mosaic, seed=self.cfg.seed, epochs=run.cfg.train.epochs), stored=False, crops=False)
        trained |= run._fit_stage(workdir / stage.name, aux, stage, stage.part(params), context,
                                  run._source(aux, stage, load, new_every_epoch=mosaics), stop)
    return trained

  def training_context(self, aux: data.Dataset) -> Context:
    """Returns what the loss reads besides params and features."""
    names = setup.object_names(self.cfg, aux)
    compute = functools.partial(self.method.precompute, names=names, clip=self.clip, cfg=self.cfg)
    context = jax.jit(compute)(self.clip.params)
    return context._replace(text_features=self.reduced(context.text_features, self.cfg.data.aux))

  def _source(self, aux: data.Dataset, stage: Stage, load: Load, *, new_every_epoch: bool) -> train.Source:
    """The images of a stage; `load` counts those of the whole data set: image i of epoch e is at i + e * count."""
    members, count = stage_members(aux, stage), len(aux)
    read = lambda images: load(members[images % len(members)] + images // len(members) * count)
    return train.Source(read, len(members), new_every_epoch)

  def _fit_stage(self, workdir: Path, aux: data.Dataset, stage: Stage, params: Params, context: Context,
                 source: train.Source, stop: Any) -> Params:
    trained_on = [aux.categories[c] for c in np.unique(aux.category_index[stage_members(aux, stage)])]
    size = sum(x.size for x in jax.tree.leaves(params))
    print(f'fit{stage.name and f" {stage.name}"}: {self.cfg.train.epochs} epochs on {aux.name} '
          f'({", ".join(trained_on)}), {size:,} trainable parameters', flush=True)
    loss_fn = functools.partial(self.method.loss, clip=self.clip, cfg=self.cfg)
    with logs.writer(workdir) as writer:
      session = train.Session(workdir, writer, self.identity(aux, stage), stop)
      return train.fit(loss_fn, optimizers.make_tx(self.cfg.optim), params, context, source, self.recipe, session,
                       self.place)

  @property
  def recipe(self) -> train.Recipe:
    keys = self.cfg.train
    return train.Recipe(keys.epochs, keys.batch, self.cfg.seed, keys.shuffle)

  def _fit_texts(self, workdir: Path) -> Params:
    """Trains on texts in one jitted call, or returns what an earlier call trained."""
    folder, identity = train.checkpoint_folder(workdir), self._text_identity()
    if (params := self._restored_texts(folder, identity)) is not None:
      return params
    text, keys = self.training_text_features(), self.cfg.train
    size = sum(x.size for x in jax.tree.leaves(self.params_shape))
    print(f'fit: {keys.epochs} epochs on {len(text):,} groups of generated texts, {size:,} trainable parameters',
          flush=True)
    order = np.stack([train.order(self.cfg.seed, epoch, len(text), keys.shuffle) for epoch in range(keys.epochs)])
    fit = jax.jit(functools.partial(self.method.train, clip=self.clip, cfg=self.cfg))
    with runtime.stopping_at_once():
      params, history = jax.device_get(fit(text, order.astype(np.int32), jax.random.key(self.cfg.seed)))
    if bad := [name for name, values in history.items() if not np.all(np.isfinite(values))]:
      raise FloatingPointError(f'{", ".join(bad)}: NaN or infinite in training; nothing was saved')
    steps = self.recipe.steps_per_epoch(len(text))
    with logs.writer(workdir) as writer:
      for epoch in range(keys.epochs):
        means = {name: float(values[epoch]) for name, values in history.items()}
        train.report_epoch(writer, steps * (epoch + 1), epoch + 1, keys.epochs, means)
    checkpoint.save(folder, steps * keys.epochs, params, {'identity': identity})
    return params

  def _text_identity(self) -> dict:
    keys = self.cfg.train
    return {**self.identity(None), 'epochs': keys.epochs, 'batch': keys.batch, 'shuffle': keys.shuffle}

  def _restored_texts(self, folder: Path, identity: dict) -> Params | None:
    restored = checkpoint.restore(folder, self.params_shape)
    if restored is None:
      return None
    train.require_same_run(folder, restored[1]['identity'], identity)
    return restored[0]

  def identity(self, aux: data.Dataset | None, stage: Stage | None = None) -> dict[str, Any]:
    """Returns what decides the trained parameters: weights, auxiliary data, what is read of it, the stage's recipe."""
    keys = setup.sections(self.cfg, setup.MODEL, 'optim')
    for dotted in self.method.traits.evaluation_keys:
      *path, last = dotted.split('.')
      functools.reduce(dict.__getitem__, path, keys).pop(last)
    keys |= {'clip': self.clip.fingerprint, 'arch': '', 'checkpoint': ''}  # by content, whatever it is called
    if aux is not None:
      keys |= {'auxiliary data': aux.fingerprint, 'spec': repr(self.spec._replace(crops=0))}
    if stage is not None and stage.name:
      keys['stage'] = [stage.name, stage.categories]
    return keys

  def restore(self, workdir: Path | None, aux: data.Dataset | None, epoch: int | None = None) -> Params:
    """Returns the parameters of the newest checkpoint, or of `epoch`, or those of a released checkpoint.

    Raises:
      FileNotFoundError: nothing was trained in `workdir`.
      ValueError: the checkpoints belong to another run; the released checkpoint does not fit the config.
    """
    if self.cfg.checkpoint:
      arrays = safetensors_files.read(self.cfg.checkpoint)
      safetensors_files.verify(self.cfg.checkpoint)
      return self.method.load_released(arrays, clip=self.clip, cfg=self.cfg)
    shapes = self.params_shape
    if not self.trains:
      return shapes
    parts: dict[str, Any] = {}
    for stage in self.method.stages(self.cfg):
      run, folder = self.with_overrides(stage.overrides), workdir / stage.name
      if self.trains_on_texts:
        part = run._restored_texts(train.checkpoint_folder(folder), run._text_identity())
      else:
        step = epoch and epoch * run.recipe.steps_per_epoch(len(stage_members(aux, stage)))
        part = train.restore(folder, stage.part(shapes), optimizers.make_tx(run.cfg.optim), step,
                             identity=run.identity(aux, stage))
      if part is None:
        raise FileNotFoundError(f'no checkpoint in {train.checkpoint_folder(folder)}; train first, with --mode=fit or '
                                '--mode=run')
      parts |= part
    return parts

  def is_trained(self, workdir: Path, aux: data.Dataset | None) -> bool:
    """Returns whether the newest checkpoint of every stage is that of its last step."""
    for stage in self.method.stages(self.cfg):
      recipe = self.with_overrides(stage.overrides).recipe
      count = (len(self.method.training_texts(self.cfg.seed, cfg=self.cfg)) if self.trains_on_texts
               else len(stage_members(aux, stage)))
      done = checkpoint.latest(train.checkpoint_folder(workdir / stage.name))
      if done is None or done < recipe.epochs * recipe.steps_per_epoch(count):
        return False
    return True

  # Predicting.

  @property
  def postprocess(self) -> Callable[[Prediction], Prediction] | None:
    """What makes a category's Prediction final; None if that of a batch is."""
    postprocess = self.method.postprocess_category
    return None if postprocess is None else functools.partial(postprocess, cfg=self.cfg)

  def reduced(self, text: Any, dataset: str) -> Any:
    """Returns text features after the method's reduction on the host, for the data set of that name."""
    return self.method.reduce_text_features(jax.device_get(text), dataset, cfg=self.cfg)

  def references(self) -> tuple[data.Dataset | None, np.ndarray | None]:
    """Returns (training split of the target, indices [C, shots] of its drawn references); (None, None) if zero-shot."""
    if not self.shots:
      return None, None
    dataset = setup.open_data(self.cfg, 'target', 'train')
    keys = self.cfg.fewshot
    return dataset, few_shot_references.draw(dataset, keys.shots, seed=keys.seed, replacement=keys.replacement)

  def reference_bank(self) -> tuple[Any, dict[str, list[str]] | None]:
    """Returns (memory bank of the drawn references, their ids by category); (None, None) for zero-shot."""
    dataset, indices = self.references()
    if dataset is None or indices is None:
      return None, None
    load, parts, size = self.reader(dataset, stored=False, crops=False), [], self.cfg.machine.encode_batch
    for start in range(0, indices.size, size):
      if runtime.any_process(runtime.preempted()):
        raise runtime.Preempted('asked to stop while the references were encoded')
      rows, valid = features.padded(indices.reshape(-1)[start:start + size], size)
      parts.append(jax.tree.map(lambda x, keep=valid: x[keep], load(rows)[0]))
    shaped = jax.tree.map(lambda *x: np.concatenate(x).reshape(*indices.shape, *x[0].shape[1:]), *parts)
    return self.memory_bank(shaped), {c: [dataset.ids[i] for i in row] for c, row in zip(dataset.categories, indices)}

  def memory_bank(self, reference_features: Features) -> Any:
    """Returns the method's memory bank of references, whose features have leading axes [C, K]."""
    build = functools.partial(self.method.build_memory_bank, clip=self.clip, cfg=self.cfg)
    return jax.jit(build)(self.clip.params, reference_features)

  def predictor(self, names: Sequence[str], memory_bank: Any = None, *, place: runtime.Placement | None = None
                ) -> 'Predictor':
    """Returns the Predictor for categories of these names, compiled once for all parameters.

    Raises:
      ValueError: a few-shot run without the memory bank of its references.
    """
    if self.shots and memory_bank is None:
      raise ValueError(f'fewshot.shots={self.shots}, but the memory bank of references is missing; see reference_bank')
    return Predictor(self, tuple(names), memory_bank, place or self.place)


class Predictor:
  """A run's jitted prediction, with weights and memory bank on the devices; `bind` gives it parameters."""

  def __init__(self, run: Run, names: tuple[str, ...], memory_bank: Any, place: runtime.Placement):
    self._run, self._place = run, place
    self._clip_params = runtime.weights(run.clip.params, place)
    self._memory_bank = runtime.replicate(memory_bank, place)
    clip, cfg = run.clip, run.cfg

    def encode_text(params, clip_params):
      return run.method.encode_text(params, clip_params, names, clip=clip, cfg=cfg)

    def predict(params, context, values, batch):
      return run.method.predict(params, context, values, batch, clip=clip, cfg=cfg)

    self._encode_text = jax.jit(encode_text, out_shardings=place.copy)
    self._predict = jax.jit(predict, out_shardings=place.copy)

  def bind(self, params: Params) -> Callable[[Features, Mapping], Prediction]:
    """Returns predict(features, batch) -> Prediction on the devices; batch has category, index and valid [B]."""
    params = runtime.replicate(params, self._place)
    text = self._run.reduced(self._encode_text(params, self._clip_params), self._run.cfg.data.target)
    context = Context(self._clip_params, runtime.replicate(text, self._place), self._memory_bank)
    return functools.partial(self._predict, params, context)


def stage_members(dataset: data.Dataset, stage: Stage) -> np.ndarray:
  """Returns the indices of the images that a stage trains on."""
  if stage.categories is None:
    return np.arange(len(dataset))
  return np.flatnonzero(np.isin(dataset.category_index, stage.categories))
