"""The contract of a method, written once; a method is a module of this folder and its name is the file's.

Every method has
  spec(clip, cfg) -> Spec
    what it reads from the frozen image tower
  init(rng, clip, cfg) -> learnable
    a dict of arrays, {} when nothing is learned
  bank(learnable, frozen, categories, *, clip, cfg) -> bank
    text features per category and state, once per evaluation
  predict(learnable, frozen, bank, memory, features, batch, *, clip, cfg) -> {'score': [B], 'map': [B, R, R]}
    larger is more anomalous; every row is scored. A method without maps returns none
and, where its paper needs them,
  arch(arch, cfg) -> Arch
    the architecture to use the weights under, such as another activation; given what they were published with
  loss(learnable, frozen, features, batch, rng, *, clip, cfg) -> scalar, metrics
    a mean over the rows that batch['valid'] marks
  fixed(frozen, categories, *, clip, cfg) -> frozen
    what loss gets in place of the weights, computed once a training, such as text features of the auxiliary
    categories that nothing learned enters
  settle(frozen, means, *, clip, cfg) -> {dotted key: value}
    on the host, before init: config keys that follow from the auxiliary categories, such as groups of them. means()
    is the mean class token [C, E] of each category's images; means(normalize=True) normalises each before
  stages(cfg) -> (Stage, ...)
    where parts of what is learned are trained apart: one training a Stage, one after another, on its images and with
    its changes of the config. learnable is {Stage.name: part}, and loss gets the part under training alone
  select(texts, dataset, *, cfg) -> texts
    on the host, where texts are clustered, say: what predict gets in place of what bank returned, and loss in place
    of what fixed returned; these are given as numpy arrays. dataset is their set's name, cfg.data.target or .aux.
    Nothing learned enters the bank of such a method, which is given {} and called once
  memory(frozen, reference_features, *, clip, cfg) -> memory
    of few-shot and transductive methods, once per evaluation; None for the others
  finish(outputs, *, cfg) -> outputs
    where a score needs the whole category: numpy arrays of one category, score [n], map [n, R, R] and whatever
    else predict returned
  alone(cfg) -> {dotted key: value}
    of a method with finish: the config's changes under which an image's score needs no other image; {} where it
    needs none as it is
  examples(seed, *, cfg) -> [(text, ...), ...]
    on the host: training data that is not images, groups of equally many texts. Each text goes once through the text
    tower; loss gets the features [B, k, E] of whole groups, not normalised, in place of the images', and no more of a
    batch than valid [B]. cfg.seeds seeds are trained at once (zsad_jax/experiment/generated.py), whose texts, order, start and
    randomness are their own; every function here is given one of them. cfg.ddof is of the standard deviation
  hidden(learnable, x, *, cfg) -> ((name, [n, W]), ...)
    of a method with examples: what hidden layers make of embeddings [n, E] of texts or images, to be looked at
  TOWERS = ('vit', 'resnet')
    the image towers it can read, by arch.vision.kind; ('vit',) where it does not say
  EVALUATION_KEYS
    config keys that training does not read, such as 'map.sigma': one training serves all their values; the name of
    a group, such as 'fewshot', stands for all of its keys
  MAPS = False
    a method whose predict gives no map
  STORED = False
    a method that learns inside the image tower; its features are not stored

Few-shot: a method with `memory` has cfg.fewshot, with shots (0: zero-shot, memory None), seed and replacement (draw
the references with replacement). The references are normal images of the target's training split, `shots` of each
category: reference_features is a Features whose arrays have leading axes [C, K], cls [C, K, E],
taps {name: [C, K, N, W]}, windows {side: [C, K, n, E]}, with C in the order of batch['category']. memory returns a
tree of arrays with leading axis C, of which predict takes the rows batch['category'].

Names: `categories` are object names as one says them, 'metal nut', in the order of batch['category']; where
cfg.prompt.raw_names is set they are the categories themselves, 'metal_nut'.

Statistics: learnable['statistics'], where there is such a key, no gradient reaches; loss returns the next ones as
metrics['statistics'].

Crops: a method whose image score is the class token's probability has cfg.multicrop. Its Spec's crops are
multicrop.side, its score is multicrop.score (zsad_jax/ops/multicrop.py), and one that is trained has 'multicrop' among
EVALUATION_KEYS: training and references are read without crops.

Augmentation: cfg.mosaic is the probability that a training image is replaced by a mosaic of four
(zsad_jax/data/mosaic.py). Above 0, training reads past the feature store; evaluation is as ever.

`clip` is a models.clip.Clip of which a method uses the pure functions, the tokenizer and the architecture.
The weights are `frozen`, an argument like every other array: clip.params inside a traced function would be
baked into the program. `cfg` is the whole config as a FrozenConfigDict, which hashes by value. `batch` is a dict of
arrays: mask [B, R, R] in {0, 1}, label [B], category [B], valid [B], and has_mask [B] where some masks are unknown;
predict is given category, valid and index alone.
"""

import difflib
import importlib
import pkgutil
from typing import Any, NamedTuple

REQUIRED = {
  'spec': ('clip', 'cfg'),
  'init': ('rng', 'clip', 'cfg'),
  'bank': ('learnable', 'frozen', 'categories', '*', 'clip', 'cfg'),
  'predict': ('learnable', 'frozen', 'bank', 'memory', 'features', 'batch', '*', 'clip', 'cfg'),
}
OPTIONAL = {
  'arch': ('arch', 'cfg'),
  'loss': ('learnable', 'frozen', 'features', 'batch', 'rng', '*', 'clip', 'cfg'),
  'fixed': ('frozen', 'categories', '*', 'clip', 'cfg'),
  'settle': ('frozen', 'means', '*', 'clip', 'cfg'),
  'stages': ('cfg',),
  'select': ('texts', 'dataset', '*', 'cfg'),
  'memory': ('frozen', 'reference_features', '*', 'clip', 'cfg'),
  'finish': ('outputs', '*', 'cfg'),
  'alone': ('cfg',),
  'examples': ('seed', '*', 'cfg'),
  'hidden': ('learnable', 'x', '*', 'cfg'),
}


class Stage(NamedTuple):
  """One of several trainings of a method.

  Attributes:
    name: key of its part in the learnable dict, and the folder of its checkpoints and metrics in the workdir; ''
      for a method that learns everything at once.
    categories: auxiliary categories whose images it is trained on, by number; None all.
    changes: {dotted config key: value} of its recipe, train.* and optim.* alone.
  """
  name: str = ''
  categories: tuple[int, ...] | None = None
  changes: dict[str, Any] = {}  # noqa: RUF012 (never written)

  def part(self, learnable):
    """Returns what this stage trains of the learnable dict."""
    return {self.name: learnable[self.name]} if self.name else learnable


WHOLE = Stage()


def stages(method, cfg):
  """Returns the Stages of a method's module, WHOLE where it learns everything at once."""
  return method.stages(cfg) if hasattr(method, 'stages') else (WHOLE,)


def names():
  """Returns the names of all methods, sorted."""
  return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.ispkg)


def get(name):
  """Returns the module of the method `name`; raises ValueError with the nearest name for an unknown one."""
  if name not in names():
    near = difflib.get_close_matches(name, names(), 1)
    hint = f' (did you mean {near[0]!r}?)' if near else ''
    raise ValueError(f'unknown method {name!r}{hint}; methods: {", ".join(names())}')
  return importlib.import_module(f'zsad_jax.methods.{name}')


def check_tower(name, arch):
  """Raises ValueError where the method `name` cannot read the image tower of `arch`."""
  kind, towers = arch.vision.kind, lambda method: getattr(get(method), 'TOWERS', ('vit',))
  if kind not in towers(name):
    raise ValueError(f'{name} reads image towers of kind {", ".join(towers(name))}, but {arch.name} has one of kind '
                     f'{kind}; methods that read it: {", ".join(n for n in names() if kind in towers(n))}')
