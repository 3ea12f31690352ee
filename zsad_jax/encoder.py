"""Images to Features: the only place where the frozen image tower runs."""

import math

import jax
import jax.numpy as jnp

from zsad_jax import spec as spec_lib
from zsad_jax.models import vit


def encode(clip, spec: spec_lib.Spec):
  """Returns jitted f(params, images [B, R, R, 3]) -> Features, one compilation per batch size.

  Weights are an argument, so f holds none; place params and images, and f runs where they are. On a CPU about
  1000 tokens a call are fastest: four images of ViT-B/16-plus at 240 px, one of ViT-L/14 at 336 px or more.

  Raises:
    ValueError: what validate raises, before anything is traced.
  """
  validate(clip, spec)

  def encoder(params, images):
    return clip.image(params, images, spec)

  return jax.jit(encoder)


def validate(clip, spec: spec_lib.Spec) -> None:
  """Raises ValueError, naming key, value and allowed range, where the image tower cannot give what `spec` asks.

  Needs the architecture only: clip.params may be None.
  """
  vit.validate(spec, patch=clip.arch.vision.patch, layers=clip.arch.vision.layers)


def features_shape(clip, spec: spec_lib.Spec) -> spec_lib.Features:
  """Returns the shapes of one image's Features, without the batch axis.

  cls (E,) or None, taps (N, E or D), windows (n, E).
  """
  validate(clip, spec)
  grid = spec.image_size // clip.arch.vision.patch
  size = lambda rule: clip.arch.embed_dim if rule.endswith('proj') else clip.arch.vision.width
  return spec_lib.Features((size(spec.cls),) if spec.cls else None,
                           {tap.name: (grid ** 2, size(spec.read)) for tap in spec.taps},
                           {side: ((grid - side + 1) ** 2, clip.arch.embed_dim) for side in spec.windows})


def predicted_bytes(clip, spec: spec_lib.Spec, dtype=jnp.float32) -> int:
  """Returns the bytes that one image's Features take when stored as `dtype`."""
  shapes = features_shape(clip, spec)
  numbers = sum(math.prod(shape) for shape in (shapes.cls or (0,), *shapes.taps.values(), *shapes.windows.values()))
  return numbers * jnp.dtype(dtype).itemsize
