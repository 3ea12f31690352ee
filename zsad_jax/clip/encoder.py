"""Images to Features: the only place where the frozen image tower runs."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.clip import archs, resnet
from zsad_jax.clip import feature_spec as spec_lib


def encode(clip, spec: spec_lib.FeatureSpec):
  """Returns jitted f(params, images [B, R, R, 3]) -> Features, one compilation per batch size.

  Weights are an argument, so f holds none; place params and images, and f runs where they are. On a CPU about
  1000 tokens a call are fastest: four images of ViT-B/16-plus at 240 px, one of ViT-L/14 at 336 px or more.
  Crops are not among these features, being of another image: see encode_crops.

  Raises:
    ValueError: what validate raises, before anything is traced.
  """
  validate(clip, spec)

  def encoder(params, images):
    return clip.image(params, images, spec)

  return jax.jit(encoder)


def encode_crops(clip, spec: spec_lib.FeatureSpec):
  """Returns jitted f(params, images [B, S, S, 3]) -> Features of crops [B, 10, E] alone, with S = spec.crops.

  A crop is cut and encoded at a time, so that memory is that of one pass over the batch. The five places and their
  order are those of torchvision's TenCrop.

  Raises:
    ValueError: what validate raises, and a FeatureSpec without crops; later, images of another size.
  """
  validate(clip, spec)
  if not spec.crops:
    raise ValueError('spec.crops is 0: there are no crops to encode')
  size, side, one = spec.image_size, spec.crops, spec._replace(taps=(), sides=(), windows=(), crops=0)
  end, centre = side - size, round((side - size) / 2)
  places = np.array([(0, 0), (0, end), (end, 0), (end, end), (centre, centre)] * 2)  # [10, 2] of the upper left pixel
  mirrored = np.arange(10) >= 5

  def encoder(params, images):
    if images.shape[1:] != (side, side, 3):
      raise ValueError(f'images {images.shape} are not [B, {side}, {side}, 3], the size of spec.crops')

    def classify(crop):
      (top, left), mirror = crop
      pixels = jax.lax.dynamic_slice(images, (0, top, left, 0), (images.shape[0], size, size, 3))
      return clip.image(params, jnp.where(mirror, pixels[:, :, ::-1], pixels), one).cls

    crops = jax.lax.map(classify, (jnp.asarray(places), jnp.asarray(mirrored)))  # [10, B, E]
    return spec_lib.Features(None, {}, crops=jnp.moveaxis(crops, 0, 1))

  return jax.jit(encoder)


def validate(clip, spec: spec_lib.FeatureSpec) -> None:
  """Raises ValueError, naming key, value and allowed range, where the image tower cannot give what `spec` asks.

  Needs the architecture only: clip.params may be None.
  """
  archs.validate(clip.arch, spec)
  if spec.crops and spec.crops < spec.image_size:
    raise ValueError(f'spec.crops {spec.crops} is smaller than spec.image_size {spec.image_size}, the crops')
  if spec.crops and not spec.cls:
    raise ValueError(f"spec.crops {spec.crops} asks for class tokens of crops, but spec.cls is ''")


def features_shape(clip, spec: spec_lib.FeatureSpec) -> spec_lib.Features:
  """Returns the shapes of one image's Features, without the batch axis.

  cls (E,) or None, taps (N or 1, E or D), windows (n, E), crops (10, E) or None.
  """
  validate(clip, spec)
  vision, embed = clip.arch.vision, clip.arch.embed_dim
  grid = vision.grid(spec.image_size, vision.layers)

  def of_tap(tap):
    projected = tap.point in resnet.POOLS or (tap.read or spec.read).endswith('proj')
    rows = 1 if tap.token == 'cls' else vision.grid(spec.image_size, tap.block) ** 2
    return rows, embed if projected else vision.channels(tap.block)

  return spec_lib.Features((embed,) if spec.cls else None, {tap.name: of_tap(tap) for tap in spec.taps},
                           {side: ((grid - side + 1) ** 2, embed) for side in spec.windows},
                           (10, embed) if spec.crops else None)


def predicted_bytes(clip, spec: spec_lib.FeatureSpec, dtype=jnp.float32) -> int:
  """Returns the bytes that one image's Features take when stored as `dtype`."""
  shapes = features_shape(clip, spec)
  numbers = sum(math.prod(shape) for shape in (
    shapes.cls or (0,), *shapes.taps.values(), *shapes.windows.values(), shapes.crops or (0,)))
  return numbers * jnp.dtype(dtype).itemsize
