"""Scores of images that stand alone: no category, no data set around them, none depending on another."""

import functools
import hashlib
import json

import jax
import numpy as np

from zsad_jax.clip.feature_spec import Features
from zsad_jax.engine import evaluate, runtime
from zsad_jax.experiment import experiment, setup


def alone(cfg, method) -> tuple[object, str]:
  """Returns the config under which an image's score needs no other image, and a sentence on what that changes, or ''.

  Raises:
    ValueError: the method has a `finish` and does not say how to do without other images.
  """
  if not hasattr(method, 'alone'):
    if hasattr(method, 'finish'):
      raise ValueError(f'{cfg.method} scores an image by comparing it with all others of its category, and has no rule '
                       'for one alone; predict with another method')
    return cfg, ''
  changes = method.alone(cfg)
  if not changes:
    return cfg, ''
  told = ', '.join(f'{key} is {value!r} in place of {setup.get(cfg, key)!r}' for key, value in changes.items())
  return setup.with_changes(cfg, changes), (
    f'every image is scored by itself: {told}, which would compare it with the others of its category')


class Scorer:
  """A method's outputs for images whose features are given, on the devices of a placement.

  Args:
    cfg: one that `alone` has passed.
    method, clip, learnable: the method's module, the CLIP, what was learned.
    names: what the categories are called, in the order of batch['category'].
    memory: of references, see methods; None for a zero-shot method.
    place: devices that share a batch.
  """

  def __init__(self, cfg, method, clip, learnable, names, *, memory=None, place: runtime.Placement):
    learnable, memory = runtime.replicate((learnable, memory), place)
    frozen = runtime.weights(clip.params, place)
    make_bank = jax.jit(functools.partial(method.bank, categories=names, clip=clip, cfg=cfg))
    bank = make_bank({} if hasattr(method, 'select') else learnable, frozen)
    bank = jax.device_put(experiment.selected(cfg, method, bank, cfg.data.target), place.copy)
    self._given, self._place = (learnable, frozen, bank, memory), place
    self._predict = evaluate.make_predict(method, clip, cfg, place=place)
    self._finish = functools.partial(method.finish, cfg=cfg) if hasattr(method, 'finish') else lambda outputs: outputs

  def __call__(self, values: Features, batch: dict) -> dict[str, np.ndarray]:
    """Returns {'score': [B], 'map': [B, R, R]} of every row; batch has category, index and valid [B]."""
    known = {key: batch[key] for key in ('category', 'index', 'valid')}
    values, known = jax.device_put((values, known), self._place.split)
    return self._finish(jax.device_get(self._predict(*self._given, values, known)))

  def has_maps(self, values: Features) -> bool:
    """Returns whether there are maps, given Features or their shapes."""
    rows = jax.tree.leaves(values)[0].shape[0]
    known = {key: jax.ShapeDtypeStruct((rows,), dtype)
             for key, dtype in (('category', np.int32), ('index', np.int32), ('valid', bool))}
    return 'map' in jax.eval_shape(self._predict, *self._given, values, known)


def memory_of(cfg, method, clip, references: Features):
  """Returns the method's memory of normal images, whose features have leading axes [1, K]."""
  return jax.jit(functools.partial(method.memory, clip=clip, cfg=cfg))(clip.params, references)


def identity(cfg, clip, learnable, memory) -> str:
  """Returns a digest of all that decides the score of an image."""
  recipe = {k: v for k, v in json.loads(cfg.to_json_best_effort()).items() if k not in experiment.NOT_RECIPE}
  said = [recipe, clip.identity, cfg.predict.object_name, cfg.data.target, cfg.object_names, cfg.data.exif,
          cfg.data.transparency]
  digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
  for path, leaf in jax.tree_util.tree_leaves_with_path((learnable, memory)):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()
