"""Architectures of CLIP as data, the towers they describe, and the trees of their parameters."""

import dataclasses

import jax
import jax.numpy as jnp

from zsad_jax import spec as spec_lib
from zsad_jax.models import text, vit


@dataclasses.dataclass(frozen=True)
class Vision:
  """Shape of an image tower; image_size is the pretrained one, in pixels."""
  image_size: int
  patch: int
  width: int
  layers: int
  heads: int
  kind: str = 'vit'


@dataclasses.dataclass(frozen=True)
class Text:
  """Shape of a text tower."""
  context: int
  vocab: int
  width: int
  layers: int
  heads: int


@dataclasses.dataclass(frozen=True)
class Arch:
  """Everything but the weights that decides what a CLIP computes.

  Attributes:
    activation: 'quick_gelu' (OpenAI, LAION-400M ViT-B/32) or 'gelu' (exact erf; other LAION-400M weights).
    mean, std: channel statistics that images are normalised with.
    resize: filter of the image preprocessing.
  """
  name: str
  embed_dim: int
  vision: Vision
  text: Text
  activation: str = 'quick_gelu'
  mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
  std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
  resize: str = 'bicubic'


ARCHS = {arch.name: arch for arch in (
    Arch('vit_b32', 512, Vision(224, 32, 768, 12, 12), Text(77, 49408, 512, 12, 8)),
    Arch('vit_b16', 512, Vision(224, 16, 768, 12, 12), Text(77, 49408, 512, 12, 8)),
    Arch('vit_b16_plus_240', 640, Vision(240, 16, 896, 12, 14), Text(77, 49408, 640, 12, 10), 'gelu'),
    Arch('vit_l14', 768, Vision(224, 14, 1024, 24, 16), Text(77, 49408, 768, 12, 12)),
    Arch('vit_l14_336', 768, Vision(336, 14, 1024, 24, 16), Text(77, 49408, 768, 12, 12)),
    Arch('tiny', 128, Vision(112, 8, 128, 6, 4), Text(77, 4096, 128, 4, 4)),
)}


def find(arch: Arch | str) -> Arch:
  """Returns the architecture of that name, or `arch` itself; raises ValueError for an unknown name."""
  if isinstance(arch, Arch):
    return arch
  if arch not in ARCHS:
    raise ValueError(f'unknown architecture {arch!r}; known: {", ".join(ARCHS)}')
  return ARCHS[arch]


def init_params(arch: Arch | str, rng):
  """Returns fresh float32 parameters, initialised as OpenAI's CLIP initialises its transformers."""
  arch = find(arch)
  keys = jax.random.split(rng)
  size, tokens = arch.vision.patch, jnp.zeros((1, 1), jnp.int32)
  every = spec_lib.Spec(size, cls='ln_post_proj')  # reads through every parameter, on an image of one patch
  return {
      'visual': vision_tower(arch, every).init(keys[0], jnp.zeros((1, size, size, 3)))['params'],
      'text': text_tower(arch).init(keys[1], tokens, method='everything')['params'],
      'logit_scale': jnp.log(jnp.float32(1 / 0.07)),
  }


def template(arch: Arch | str):
  """Returns the parameter tree as jax.ShapeDtypeStruct leaves, allocating nothing."""
  return jax.eval_shape(lambda rng: init_params(arch, rng), jax.random.key(0))


def vision_tower(arch: Arch, spec: spec_lib.Spec, unroll: bool = False) -> vit.VisionTower:
  """Returns the image tower that reads `spec`; raises ValueError for a kind that is not here."""
  if arch.vision.kind != 'vit':
    raise ValueError(f'vision.kind {arch.vision.kind!r} of {arch.name} is not one of: vit')
  v = arch.vision
  return vit.VisionTower(v.image_size, v.patch, v.width, v.layers, v.heads, arch.embed_dim, arch.activation, spec,
                         unroll)


def text_tower(arch: Arch, unroll: bool = False) -> text.TextTower:
  """Returns the text tower."""
  t = arch.text
  return text.TextTower(t.context, t.vocab, t.width, t.layers, t.heads, arch.embed_dim, arch.activation, unroll)
