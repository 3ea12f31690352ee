"""The Method record: what the trainer, the evaluator and the detector know of a zero-shot detector.

A method is a module of pure functions in this folder, named after its paper's system. `get(name)` reads the module
once and returns its functions as a `Method`, with a default for everything that the module does not define.

Terms: params are the trainable parameters, clip_params CLIP's frozen weights, C the number of categories. Randomness,
weights and features are arguments and never closed over, so that no array is baked into a compiled program. `clip` is a
`zsad_jax.clip.model.Clip`, of which methods use the pure functions, the tokenizer and the architecture; `cfg` is the
whole config as a FrozenConfigDict, which hashes by value. Both are static.

`batch` is a dict of arrays: mask [B, R, R] in {0, 1}, label [B], category [B], valid [B] (False for padding), and
has_mask [B] if some masks are unknown. `predict` gets category, valid and index alone, never the ground truth.

`names` are what prompts call the categories, in the order of batch['category'].
"""

import difflib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from zsad_jax.clip.feature_spec import Features, FeatureSpec
from zsad_jax.methods.parts.bounds import Bound

Clip = Any  # zsad_jax.clip.model.Clip
Config = Any  # ml_collections.FrozenConfigDict, whose keys no type checker knows
Params = Any  # a tree of arrays
Batch = Mapping[str, jax.Array]
Metrics = Mapping[str, jax.Array]


class Context(NamedTuple):
  """What `predict` and `loss` read besides params, features and batch.

  Attributes:
    clip_params: CLIP's weights, or the part of them that is needed.
    text_features: what `encode_text` returned, after `reduce_text_features`; for `loss`, that of `precompute`.
    memory_bank: what `build_memory_bank` returned; None for zero-shot methods and for `loss`.
  """
  clip_params: Any = None
  text_features: Any = None
  memory_bank: Any = None


class Prediction(NamedTuple):
  """The anomaly scores of a batch; higher is more anomalous, and every row is scored.

  Attributes:
    score: [B] float32.
    map: [B, R, R] float32 at image_size, or None for a method without anomaly maps.
    extras: further arrays [B, ...] that `postprocess_category` needs.
  """
  score: jax.Array | np.ndarray
  map: jax.Array | np.ndarray | None = None
  extras: dict[str, Any] = {}  # noqa: RUF012 (never written; a dict, so that it is a tree)


class Stage(NamedTuple):
  """One of several trainings of a method, run one after another.

  Attributes:
    name: key of its part of params, and the folder of its checkpoints in the workdir; '' trains all params at once.
    categories: indices of the auxiliary categories to train on; None for all.
    overrides: {dotted config key: value} of its recipe, of train.* and optim.* alone.
  """
  name: str = ''
  categories: tuple[int, ...] | None = None
  overrides: Mapping[str, Any] = MappingProxyType({})

  def part(self, params: Params) -> Params:
    """Returns the part of `params` that this stage trains."""
    return {self.name: params[self.name]} if self.name else params


class Traits(NamedTuple):
  """Facts about a method that decide how it is run.

  Attributes:
    towers: kinds of image tower it can read, by arch.vision.kind.
    maps: whether `predict` returns anomaly maps.
    stored_features: whether features may come from the feature store; False for training inside the image tower.
    evaluation_keys: config keys that training does not read, such as 'map.sigma': one training serves all their
      values. The name of a group stands for all its keys.
    nearest_neighbours: whether it takes distances to the memory bank, in chunks of machine.knn_mib.
  """
  towers: tuple[str, ...] = ('vit',)
  maps: bool = True
  stored_features: bool = True
  evaluation_keys: tuple[str, ...] = ()
  nearest_neighbours: bool = False


class FeatureSpecFn(Protocol):
  """What to read from the image tower; raises ValueError if a key does not fit the architecture."""
  def __call__(self, clip: Clip, cfg: Config) -> FeatureSpec: ...


class PredictFn(Protocol):
  """Scores and anomaly maps of a batch."""
  def __call__(self, params: Params, context: Context, features: Features, batch: Batch, *,
               clip: Clip, cfg: Config) -> Prediction: ...


class EncodeTextFn(Protocol):
  """Text features by category and state, once per evaluation."""
  def __call__(self, params: Params, clip_params: Any, names: Sequence[str], *, clip: Clip, cfg: Config) -> Any: ...


class InitFn(Protocol):
  """Initial trainable parameters, a dict of arrays; {} if nothing is trained."""
  def __call__(self, rng: jax.Array, clip: Clip, cfg: Config) -> Params: ...


class LossFn(Protocol):
  """Scalar loss, a mean over the rows that batch['valid'] marks, and metrics."""
  def __call__(self, params: Params, context: Context, features: Features, batch: Batch, rng: jax.Array, *,
               clip: Clip, cfg: Config) -> tuple[jax.Array, Metrics]: ...


class PrecomputeFn(Protocol):
  """The Context of `loss`, once per training, such as text features that no trainable parameter enters."""
  def __call__(self, clip_params: Any, names: Sequence[str], *, clip: Clip, cfg: Config) -> Context: ...


class ArchitectureFn(Protocol):
  """The architecture to run the weights under, such as one with another activation."""
  def __call__(self, arch: Any, cfg: Config) -> Any: ...


class AuxiliaryOverridesFn(Protocol):
  """Config keys that follow from the auxiliary data set, such as groups of its categories; on the host, before `init`.

  class_means() returns the mean class token [C, E] of each category's images; class_means(normalize=True) normalises
  every token first.
  """
  def __call__(self, clip_params: Any, class_means: Callable[..., np.ndarray], *,
               clip: Clip, cfg: Config) -> Mapping[str, Any]: ...


class StagesFn(Protocol):
  """The trainings of a method whose parts are trained separately."""
  def __call__(self, cfg: Config) -> Sequence[Stage]: ...


class ReduceTextFn(Protocol):
  """Reduces text features on the host, such as by clustering; `dataset` is the name of their data set."""
  def __call__(self, text_features: Any, dataset: str, *, cfg: Config) -> Any: ...


class MemoryFn(Protocol):
  """The memory bank of normal references, a tree of arrays with leading axis C, once per evaluation.

  `reference_features` are Features with leading axes [C, K] for K references of each category.
  """
  def __call__(self, clip_params: Any, reference_features: Features, *, clip: Clip, cfg: Config) -> Any: ...


class PostprocessFn(Protocol):
  """The final Prediction of a whole category, in numpy, for scores that depend on the category's other images."""
  def __call__(self, prediction: Prediction, *, cfg: Config) -> Prediction: ...


class OverridesFn(Protocol):
  """Config keys that make the score of an image independent of other images; {} if it already is."""
  def __call__(self, cfg: Config) -> Mapping[str, Any]: ...


class TrainingTextsFn(Protocol):
  """Texts to train on instead of images: tuples of equally many texts, such as (normal, anomalous)."""
  def __call__(self, seed: int, *, cfg: Config) -> Sequence[tuple[str, ...]]: ...


class TrainFn(Protocol):
  """Trained parameters and {metric: [epochs]} from the features [n, k, E] of the training texts; pure and jitted.

  `order` [epochs, n] is the order in which every epoch visits the n groups of texts.
  """
  def __call__(self, text_features: jax.Array, order: jax.Array, rng: jax.Array, *,
               clip: Clip, cfg: Config) -> tuple[Params, Metrics]: ...


class HiddenLayersFn(Protocol):
  """Activations {layer: [n, W]} of the trained network for embeddings [n, E] of texts or images, for t-SNE."""
  def __call__(self, params: Params, embeddings: Any, *, cfg: Config) -> Mapping[str, jax.Array]: ...


class LoadReleasedFn(Protocol):
  """Params from the arrays of a released checkpoint, {name: array}; raises ValueError listing every mismatch."""
  def __call__(self, arrays: Mapping[str, np.ndarray], *, clip: Clip, cfg: Config) -> Params: ...


def _no_params(rng: jax.Array, clip: Clip, cfg: Config) -> Params:
  return {}


def _no_text(params: Params, clip_params: Any, names: Sequence[str], *, clip: Clip, cfg: Config) -> None:
  return None


def _only_clip(clip_params: Any, names: Sequence[str], *, clip: Clip, cfg: Config) -> Context:
  return Context(clip_params)


def _same_architecture(arch: Any, cfg: Config) -> Any:
  return arch


def _same_text(text_features: Any, dataset: str, *, cfg: Config) -> Any:
  return text_features


def _one_stage(cfg: Config) -> Sequence[Stage]:
  return (Stage(),)


def _no_overrides(cfg: Config) -> Mapping[str, Any]:
  return {}


class Method(NamedTuple):
  """A zero-shot or few-shot detector as pure functions; each field's type says what it takes and returns.

  Attributes:
    name: name of its module.
    feature_spec, predict: what every method has.
    encode_text, reduce_text_features: text features; None and unchanged by default.
    init, loss, precompute, stages: training on images; by default nothing is trained.
    training_texts, train: training on texts, both or neither.
    architecture: activation of CLIP, if the method changes it.
    auxiliary_overrides: config keys that follow from the auxiliary data set.
    build_memory_bank: few-shot and transductive methods. Their config has `fewshot` with shots, seed and replacement.
    postprocess_category: None if the prediction of a batch is final. If given, single_image_overrides is needed too.
    single_image_overrides: how to score an image that stands alone.
    load_released: reads released checkpoints; None if none were released.
    hidden_layers: what t-SNE figures show of a trained network.
    traits: see Traits.
    bounds: {config key: Bound}, checked before anything is loaded.
  """
  name: str
  feature_spec: FeatureSpecFn
  predict: PredictFn
  encode_text: EncodeTextFn = _no_text
  reduce_text_features: ReduceTextFn = _same_text
  init: InitFn = _no_params
  loss: LossFn | None = None
  precompute: PrecomputeFn = _only_clip
  stages: StagesFn = _one_stage
  training_texts: TrainingTextsFn | None = None
  train: TrainFn | None = None
  architecture: ArchitectureFn = _same_architecture
  auxiliary_overrides: AuxiliaryOverridesFn | None = None
  build_memory_bank: MemoryFn | None = None
  postprocess_category: PostprocessFn | None = None
  single_image_overrides: OverridesFn = _no_overrides
  load_released: LoadReleasedFn | None = None
  hidden_layers: HiddenLayersFn | None = None
  traits: Traits = Traits()
  bounds: Mapping[str, Bound] = MappingProxyType({})


CONSTANTS = {'TRAITS': 'traits', 'BOUNDS': 'bounds'}  # a module's constants, and the fields that they become
NOT_FUNCTIONS = ('name', *CONSTANTS.values())


def from_module(module: ModuleType) -> Method:
  """Returns the Method of a module's public functions and its constants TRAITS and BOUNDS.

  Raises:
    ValueError: a public function that is not a field of Method, with the nearest field; a required one is missing, or
      one of two that belong together.
  """
  name = module.__name__.rpartition('.')[2]
  known = [field for field in Method._fields if field not in NOT_FUNCTIONS]
  functions: dict[str, Any] = {key: value for key, value in vars(module).items()
               if inspect.isfunction(value) and value.__module__ == module.__name__ and not key.startswith('_')}
  for key in functions:
    if key not in known:
      raise ValueError(f'{module.__name__} defines {key}(), which is not a field of Method{_nearest(key, known)}; '
                       f'name helpers with a leading underscore')
  for key in ('feature_spec', 'predict'):
    if key not in functions:
      raise ValueError(f'{module.__name__} does not define {key}(), which every method needs')
  for one, other in (('postprocess_category', 'single_image_overrides'), ('train', 'training_texts'),
                     ('training_texts', 'train'), ('loss', 'init')):
    if one in functions and other not in functions:
      raise ValueError(f'{module.__name__} defines {one}() without {other}()')
  constants: dict[str, Any] = {field: vars(module)[key] for key, field in CONSTANTS.items() if key in vars(module)}
  return Method(name=name, **functions, **constants)


def names() -> list[str]:
  """Returns the names of all methods, sorted."""
  return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)


@functools.cache
def get(name: str) -> Method:
  """Returns the Method `name`; raises ValueError with the nearest name if there is none, see also `from_module`."""
  if name not in names():
    raise ValueError(f'unknown method {name!r}{_nearest(name, names())}; methods: {", ".join(names())}')
  return from_module(importlib.import_module(f'zsad_jax.methods.{name}'))


def check_tower(method: Method, arch: Any) -> None:
  """Raises ValueError if the method cannot read the image tower of `arch`."""
  kind = arch.vision.kind
  if kind not in method.traits.towers:
    others = [name for name in names() if kind in get(name).traits.towers]
    raise ValueError(f'{method.name} cannot read {arch.name}, whose image tower is a {kind}; it reads '
                     f'{", ".join(method.traits.towers)}. Methods that read a {kind}: {", ".join(others)}')


def _nearest(name: str, known: Sequence[str]) -> str:
  near = difflib.get_close_matches(name, known, 1)
  return f' (did you mean {near[0]!r}?)' if near else ''
