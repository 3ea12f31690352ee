"""Scores of images that stand alone: no data set around them, none depending on another image."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from zsad_jax.clip.feature_spec import Features
from zsad_jax.clip.weights import port
from zsad_jax.engine import runtime
from zsad_jax.experiment import setup
from zsad_jax.experiment.run import Run
from zsad_jax.methods import Params, Prediction
from zsad_jax.methods.parts import bounds


def single_image(run: Run) -> tuple[Run, str]:
  """Returns the run under which an image's score needs no other image, and a sentence on what that changes, or ''."""
  overrides = run.method.single_image_overrides(run.cfg)
  if not overrides:
    return run, ''
  changes = ', '.join(f'{key}={value!r} instead of {bounds.value_of(run.cfg, key)!r}'
                      for key, value in overrides.items())
  return run.with_overrides(overrides), (
    f'every image is scored on its own: {changes}, which would compare it with the other images of its category')


class Scorer:
  """A method's final Predictions, in numpy, for images whose features are given.

  Args:
    run: one that `single_image` returned.
    params: trained parameters.
    names: what prompts call the categories, in the order of batch['category'].
    memory_bank: of references; None for a zero-shot method.
    place: devices that share a batch.
  """

  def __init__(self, run: Run, params: Params, names: Sequence[str], memory_bank: Any, place: runtime.Placement):
    self._place, self._postprocess = place, run.postprocess
    self._predict = run.predictor(names, memory_bank, place=place).bind(params)

  def __call__(self, values: Features, batch: Mapping[str, np.ndarray]) -> Prediction:
    """Returns the Prediction of every row; batch has category, index and valid [B]."""
    visible = {key: batch[key] for key in ('category', 'index', 'valid')}
    values, visible = jax.device_put((values, visible), self._place.split)
    prediction = jax.device_get(self._predict(values, visible))
    return self._postprocess(prediction) if self._postprocess else prediction

  def has_maps(self, values: Features) -> bool:
    """Returns whether there are anomaly maps, given Features or their shapes."""
    rows = jax.tree.leaves(values)[0].shape[0]
    batch = {key: jax.ShapeDtypeStruct((rows,), dtype)
             for key, dtype in (('category', np.int32), ('index', np.int32), ('valid', bool))}
    return jax.eval_shape(functools.partial(self._predict), values, batch).map is not None


def identity(run: Run, params: Params, memory_bank: Any) -> str:
  """Returns a digest of everything that decides the score of an image."""
  keys = setup.sections(run.cfg, setup.MODEL, setup.DATA)
  return setup.digest(keys, run.clip.identity, run.cfg.predict.object_name, port.digest(jax.device_get(params)),
                      port.digest(jax.device_get(memory_bank)))
