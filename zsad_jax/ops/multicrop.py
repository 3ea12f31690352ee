"""Ten-crop prediction: an image's score averaged over crops of it, as CLIP-AD does (arXiv 2311.00453, suppl. D).

The image is resized to 270 px where the image tower takes 240; five crops of that size, in the corners and the
centre, and their mirror images make ten. Their predictions are averaged, and that with the whole image's. Maps have
no part in it.
"""

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.ops import maps

# {multicrop.recipe: what the whole image weighs}; ten crops share the rest.
RECIPES = {'none': 1.0, 'clip_ad': 0.5, 'ten': 0.0}
AVERAGES = ('prob', 'embedding', 'logit')


def side(image_size, keys):
  """Returns FeatureSpec.crops, pixels a side of the image that crops are cut from, under the config's `multicrop`; 0 for none.

  By default 270/240 of image_size, to the nearest even number.

  Raises:
    ValueError: names the first key that is out of range.
  """
  for key, allowed in (('recipe', RECIPES), ('average', AVERAGES)):
    if keys[key] not in allowed:
      raise ValueError(f'multicrop.{key} {keys[key]!r} is not one of {", ".join(allowed)}')
  if keys.resize and keys.resize < image_size:
    raise ValueError(f'multicrop.resize {keys.resize} is smaller than image_size {image_size}, the crops; 0 takes '
                     '270/240 of it')
  if keys.recipe == 'none':
    return 0
  return keys.resize or 2 * round(image_size * 270 / 240 / 2)


def score(features, text, temperature, keys):
  """Returns the abnormal state's probability [B], averaged over the views of each image that the recipe takes.

  CLIP-AD does not say what a prediction is: multicrop.average takes probabilities, the cosines over temperature
  ('logit'), or class tokens, normalised before and after ('embedding').

  Args:
    features: cls [B, E] and, unless the recipe is 'none', crops [B, 10, E], not normalised.
    text: [2, E] or [B, 2, E], L2-normalised, normal then abnormal.
    temperature: divides every cosine.
    keys: the config's `multicrop`.

  Raises:
    ValueError: crops are wanted and were not read.
  """
  if keys.recipe == 'none':
    return maps.states(features.cls[:, None], text, temperature)[:, 0, 1]
  logits = lambda x: maps.logits(maps.normalize(x), text, temperature)
  return through(features, keys, maps.normalize, logits, lambda x: jax.nn.softmax(x, axis=-1))[:, 1]


def through(features, keys, embed, logits, prob):
  """Returns prob(logits(embed(views))) [B, ...] with the mean over an image's views where multicrop.average says.

  Args:
    features, keys: see score.
    embed, logits, prob: each takes and returns an array of leading axes [B, V]; the views come as float32 class
      tokens [B, V, E], and V is 1 after the mean.

  Raises:
    ValueError: see score.
  """
  views, weights = features.cls[:, None], np.ones(1, np.float32)
  if keys.recipe != 'none':
    if features.crops is None:
      raise ValueError(f'multicrop.recipe is {keys.recipe!r}, but these features have no crops: read them with the '
                       'Spec of the same config')
    count, whole = features.crops.shape[1], RECIPES[keys.recipe]
    views = jnp.concatenate([views, features.crops], axis=1)
    weights = np.array([whole] + [(1 - whole) / count] * count, np.float32)

  def mean(x, kind):
    """The average of x [B, V, ...] over views, kept as an axis, where it is `kind` that is averaged."""
    if keys.average != kind:
      return x
    return jnp.sum(x * weights.reshape(1, -1, *[1] * (x.ndim - 2)), axis=1, keepdims=True)

  return mean(prob(mean(logits(mean(embed(views.astype(jnp.float32)), 'embedding')), 'logit')), 'prob')[:, 0]
