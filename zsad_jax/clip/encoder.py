"""Encodes images as Features: the only place where the frozen image tower runs."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.clip import archs, resnet
from zsad_jax.clip.feature_spec import Features, FeatureSpec
from zsad_jax.clip.model import Clip

EncodeFn = Callable[[Any, jax.Array], Features]


def encode(clip: Clip, spec: FeatureSpec) -> EncodeFn:
  """Returns jitted f(params, images [B, R, R, 3]) -> Features, compiled once per batch size.

  Weights are an argument, so f holds none and runs on the devices where params and images are placed. On a CPU about
  1,000 tokens per call are fastest: four images of ViT-B/16-plus at 240 px, one of ViT-L/14 at 336 px or more.
  Crops come from another image and are encoded by `encode_crops`.

  Raises:
    ValueError: a spec that `validate` refuses, before anything is traced.
  """
  validate(clip, spec)

  def encoder(params, images):
    return clip.image(params, images, spec)

  return jax.jit(encoder)


def encode_crops(clip: Clip, spec: FeatureSpec) -> EncodeFn:
  """Returns jitted f(params, images [B, S, S, 3]) -> Features with crops [B, 10, E] alone, for S = spec.crops.

  Crops are cut and encoded one after another, in the memory of a single pass over the batch. Their positions and
  order are those of torchvision's TenCrop.

  Raises:
    ValueError: a spec that `validate` refuses, or without crops; when f is called, images of another size.
  """
  validate(clip, spec)
  if not spec.crops:
    raise ValueError('spec.crops=0: there are no crops to encode')
  size, side, crop_spec = spec.image_size, spec.crops, spec.of_crops()._replace(crops=0)
  end, centre = side - size, round((side - size) / 2)
  corners = np.array([(0, 0), (0, end), (end, 0), (end, end), (centre, centre)] * 2)  # [10, 2], upper left pixels
  mirrored = np.arange(10) >= 5

  def encoder(params, images):
    if images.shape[1:] != (side, side, 3):
      raise ValueError(f'images have shape {images.shape}; spec.crops={side} needs [B, {side}, {side}, 3]')

    def classify(crop):
      (top, left), mirror = crop
      pixels = jax.lax.dynamic_slice(images, (0, top, left, 0), (images.shape[0], size, size, 3))
      return clip.image(params, jnp.where(mirror, pixels[:, :, ::-1], pixels), crop_spec).cls

    crops = jax.lax.map(classify, (jnp.asarray(corners), jnp.asarray(mirrored)))  # [10, B, E]
    return Features(None, {}, crops=jnp.moveaxis(crops, 0, 1))

  return jax.jit(encoder)


def validate(clip: Clip, spec: FeatureSpec) -> None:
  """Raises ValueError with key, value and allowed range if the image tower does not support `spec`.

  Only the architecture is used; clip.params may be None.
  """
  archs.validate(clip.arch, spec)
  if spec.crops and spec.crops < spec.image_size:
    raise ValueError(f'spec.crops={spec.crops} must be at least spec.image_size={spec.image_size}, the size of a crop')
  if spec.crops and not spec.cls:
    raise ValueError(f"spec.crops={spec.crops} needs class tokens, but spec.cls is ''; use proj or ln_post_proj")


def features_shape(clip: Clip, spec: FeatureSpec) -> Features:
  """Returns the shapes of one image's Features, without the batch axis.

  cls (E,) or None; taps (N or 1, E or D); windows (n, E); crops (10, E) or None.
  """
  validate(clip, spec)
  vision, embed = clip.arch.vision, clip.arch.embed_dim
  grid = vision.grid(spec.image_size, vision.layers)

  def tap_shape(tap):
    projected = tap.point in resnet.POOLS or (tap.read or spec.read).endswith('proj')
    rows = 1 if tap.token == 'cls' else vision.grid(spec.image_size, tap.block) ** 2
    return rows, embed if projected else vision.channels(tap.block)

  return Features((embed,) if spec.cls else None, {tap.name: tap_shape(tap) for tap in spec.taps},
                  {side: ((grid - side + 1) ** 2, embed) for side in spec.windows},
                  (10, embed) if spec.crops else None)


def predicted_bytes(clip: Clip, spec: FeatureSpec, dtype: Any = jnp.float32) -> int:
  """Returns the size in bytes of one image's Features when stored as `dtype`."""
  shapes = features_shape(clip, spec)
  numbers = sum(math.prod(shape) for shape in (
    shapes.cls or (0,), *shapes.taps.values(), *shapes.windows.values(), shapes.crops or (0,)))
  return numbers * jnp.dtype(dtype).itemsize
