"""Ten-crop prediction: the score of an image averaged over crops, as in CLIP-AD (arXiv 2311.00453, suppl. D).

For an image tower of 240 px the image is resized to 270 px. Five crops of 240 px, in the corners and the centre, and
their mirror images make ten. Their predictions are averaged, and the mean is averaged with the prediction of the whole
image. Anomaly maps do not use crops.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.ops import maps

# {multicrop.recipe: weight of the whole image}; the ten crops share the rest.
RECIPES = {'none': 1.0, 'clip_ad': 0.5, 'ten': 0.0}
AVERAGES = ('prob', 'embedding', 'logit')


def side(image_size: int, keys: Any) -> int:
  """Returns FeatureSpec.crops: pixels per side of the image from which crops are cut, 0 for no crops.

  By default 270/240 of image_size, rounded to an even number.

  Args:
    image_size: pixels per side of a crop.
    keys: the config's `multicrop`.

  Raises:
    ValueError: a key is out of range.
  """
  for key, allowed in (('recipe', RECIPES), ('average', AVERAGES)):
    if keys[key] not in allowed:
      raise ValueError(f'multicrop.{key}={keys[key]!r} is not one of {", ".join(allowed)}')
  if keys.resize and keys.resize < image_size:
    raise ValueError(f'multicrop.resize={keys.resize} is smaller than the crops, image_size={image_size}; use '
                     f'{image_size} or more, or 0 for 270/240 of it')
  if keys.recipe == 'none':
    return 0
  return keys.resize or 2 * round(image_size * 270 / 240 / 2)


def score(features: Any, text: jax.Array, temperature: float | jax.Array, keys: Any) -> jax.Array:
  """Returns the probability [B] of the anomalous state, averaged over the recipe's views of each image.

  CLIP-AD does not say what is averaged: multicrop.average chooses the probabilities ('prob'), the cosines divided by
  the temperature ('logit'), or the class tokens, normalised before and after ('embedding').

  Args:
    features: Features with cls [B, E] and, unless the recipe is 'none', crops [B, 10, E], not normalised.
    text: [2, E] or [B, 2, E], L2-normalised, normal then anomalous.
    temperature: divides every cosine.
    keys: the config's `multicrop`.

  Raises:
    ValueError: the recipe needs crops, and features has none.
  """
  if keys.recipe == 'none':
    return maps.states(features.cls[:, None], text, temperature)[:, 0, 1]
  logits = lambda x: maps.logits(maps.normalize(x), text, temperature)
  return through(features, keys, maps.normalize, logits, lambda x: jax.nn.softmax(x, axis=-1))[:, 1]


def through(features: Any, keys: Any, embed: Callable, logits: Callable, prob: Callable) -> jax.Array:
  """Returns prob(logits(embed(views))) [B, ...], averaged over the views after the step named by multicrop.average.

  Args:
    features, keys: as for `score`.
    embed, logits, prob: steps from and to an array with leading axes [B, V]. The first gets the class tokens of the
      V views, [B, V, E] float32; after the average V is 1.

  Raises:
    ValueError: as for `score`.
  """
  views, weights = features.cls[:, None], np.ones(1, np.float32)
  if keys.recipe != 'none':
    if features.crops is None:
      raise ValueError(f'multicrop.recipe is {keys.recipe!r}, but these features have no crops; compute them '
                       'with the FeatureSpec of this config')
    count, whole = features.crops.shape[1], RECIPES[keys.recipe]
    views = jnp.concatenate([views, features.crops], axis=1)
    weights = np.array([whole] + [(1 - whole) / count] * count, np.float32)

  def mean(x: jax.Array, kind: str) -> jax.Array:
    """Averages x [B, V, ...] over the views, keeping the axis, if multicrop.average is `kind`."""
    if keys.average != kind:
      return x
    return jnp.sum(x * weights.reshape(1, -1, *[1] * (x.ndim - 2)), axis=1, keepdims=True)

  return mean(prob(mean(logits(mean(embed(views.astype(jnp.float32)), 'embedding')), 'logit')), 'prob')[:, 0]
