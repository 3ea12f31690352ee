"""The contract of a method, written once; a method is a module of this folder and its name is the file's.

Every method has
  spec(clip, cfg) -> Spec
    what it reads from the frozen image tower
  init(rng, clip, cfg) -> learnable
    a dict of arrays, {} when nothing is learned
  bank(learnable, frozen, categories, *, clip, cfg) -> bank
    text features per category and state, once per evaluation
  predict(learnable, frozen, bank, memory, features, batch, *, clip, cfg) -> {'score': [B], 'map': [B, R, R]}
    larger is more anomalous; every row is scored
and, where its paper needs them,
  loss(learnable, frozen, features, batch, rng, *, clip, cfg) -> scalar, metrics
    a mean over the rows that batch['valid'] marks
  memory(frozen, reference_features, *, clip, cfg) -> memory
    of few-shot and transductive methods; None for the others
  finish(outputs, *, cfg) -> outputs
    where a score needs the whole category
  examples(rng, frozen, clip, cfg) -> batch
    training data that is not images
  EVALUATION_KEYS
    config keys that training does not read, such as 'map.sigma': one training serves all their values
  STORED = False
    a method that augments images or learns inside the image tower; its features are not stored

`clip` is a models.clip.Clip of which a method uses the pure functions, the tokenizer and the architecture.
The weights are `frozen`, an argument like every other array: clip.params inside a traced function would be
baked into the program. `cfg` is the whole config as a FrozenConfigDict, which hashes by value. `categories`
are object names in the order of batch['category']. `batch` is a dict of arrays: mask [B, R, R] in {0, 1},
label [B], category [B], valid [B], and has_mask [B] where some masks are unknown.
"""

import difflib
import importlib
import pkgutil

REQUIRED = {
  'spec': ('clip', 'cfg'),
  'init': ('rng', 'clip', 'cfg'),
  'bank': ('learnable', 'frozen', 'categories', '*', 'clip', 'cfg'),
  'predict': ('learnable', 'frozen', 'bank', 'memory', 'features', 'batch', '*', 'clip', 'cfg'),
}
OPTIONAL = {
  'loss': ('learnable', 'frozen', 'features', 'batch', 'rng', '*', 'clip', 'cfg'),
  'memory': ('frozen', 'reference_features', '*', 'clip', 'cfg'),
  'finish': ('outputs', '*', 'cfg'),
  'examples': ('rng', 'frozen', 'clip', 'cfg'),
}


def names():
  """Returns the names of all methods, sorted."""
  return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != 'prompts')


def get(name):
  """Returns the module of the method `name`; raises ValueError with the nearest name for an unknown one."""
  if name not in names():
    near = difflib.get_close_matches(name, names(), 1)
    hint = f' (did you mean {near[0]!r}?)' if near else ''
    raise ValueError(f'unknown method {name!r}{hint}; methods: {", ".join(names())}')
  return importlib.import_module(f'zsad_jax.methods.{name}')
