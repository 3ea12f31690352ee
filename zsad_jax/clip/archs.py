"""CLIP architectures as data, the towers that they describe, and their parameter trees."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from zsad_jax.clip import resnet, text, vit
from zsad_jax.clip.feature_spec import FeatureSpec


@dataclasses.dataclass(frozen=True)
class Vision:
  """Shape of an image tower.

  Attributes:
    image_size: pixels per side at which the tower was pretrained.
    patch: pixels per side of a patch, or of one position of a ResNet's last feature map.
    width: width of the tokens, or of a ResNet's stem.
    layers: number of blocks that a Tap can name: transformer blocks, or a ResNet's four stages.
    heads: heads of every attention, or of a ResNet's attention pool.
    kind: 'vit' or 'resnet'.
    stages: number of bottlenecks in each stage of a ResNet.
  """
  image_size: int
  patch: int
  width: int
  layers: int
  heads: int
  kind: str = 'vit'
  stages: tuple[int, ...] = ()

  def channels(self, block: int) -> int:
    """Returns the width of the tokens after block `block`."""
    return resnet.channels(self.width, block) if self.kind == 'resnet' else self.width

  def grid(self, image_size: int, block: int) -> int:
    """Returns the tokens per side of an image of `image_size` pixels after block `block`."""
    return image_size // (resnet.stride(block) if self.kind == 'resnet' else self.patch)


def resnet_vision(image_size: int, width: int, stages: tuple[int, ...], head_width: int = 64) -> Vision:
  """Returns the Vision of a CLIP ResNet.

  Args:
    image_size: pixels per side at which it was pretrained.
    width: width of the stem.
    stages: number of bottlenecks in each of the four stages.
    head_width: width of each head of the attention pool.
  """
  heads = resnet.channels(width, resnet.BLOCKS) // head_width
  return Vision(image_size, resnet.STRIDE, width, resnet.BLOCKS, heads, 'resnet', stages)


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
  """Everything besides the weights that decides what a CLIP computes.

  Attributes:
    name: name of the architecture, for messages.
    embed_dim: width of the joint embedding of images and texts.
    vision, text: shapes of the towers.
    activation: activation of the transformers, 'quick_gelu' (OpenAI, LAION-400M ViT-B/32) or 'gelu' (exact erf;
      other LAION-400M weights). ResNets always use ReLU.
    mean, std: channel statistics by which images are normalised.
    resize: resize filter of the image preprocessing, 'bicubic' or 'bilinear'.
  """
  name: str
  embed_dim: int
  vision: Vision
  text: Text
  activation: str = 'quick_gelu'
  mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
  std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
  resize: str = 'bicubic'


PRECISIONS = ('float32', 'bfloat16')
ARCHS = {arch.name: arch for arch in (
    Arch('vit_b32', 512, Vision(224, 32, 768, 12, 12), Text(77, 49408, 512, 12, 8)),
    Arch('vit_b16', 512, Vision(224, 16, 768, 12, 12), Text(77, 49408, 512, 12, 8)),
    Arch('vit_b16_plus_240', 640, Vision(240, 16, 896, 12, 14), Text(77, 49408, 640, 12, 10), 'gelu'),
    Arch('vit_l14', 768, Vision(224, 14, 1024, 24, 16), Text(77, 49408, 768, 12, 12)),
    Arch('vit_l14_336', 768, Vision(336, 14, 1024, 24, 16), Text(77, 49408, 768, 12, 12)),
    Arch('rn50', 1024, resnet_vision(224, 64, (3, 4, 6, 3)), Text(77, 49408, 512, 12, 8)),
    Arch('rn101', 512, resnet_vision(224, 64, (3, 4, 23, 3)), Text(77, 49408, 512, 12, 8)),
    Arch('tiny', 128, Vision(112, 8, 128, 6, 4), Text(77, 4096, 128, 4, 4)),
)}


def find(arch: Arch | str) -> Arch:
  """Returns the architecture of that name, or `arch` itself; raises ValueError for an unknown name."""
  if isinstance(arch, Arch):
    return arch
  if arch not in ARCHS:
    raise ValueError(f'unknown architecture {arch!r}; known: {", ".join(ARCHS)}')
  return ARCHS[arch]


def init_params(arch: Arch | str, rng: jax.Array) -> Any:
  """Returns random float32 parameters, initialised as OpenAI's CLIP initialises its transformers and ResNets."""
  arch = find(arch)
  keys = jax.random.split(rng)
  size, tokens = arch.vision.patch, jnp.zeros((1, 1), jnp.int32)
  # An image of one patch is enough to reach every parameter.
  spec = FeatureSpec(size, cls='proj' if arch.vision.kind == 'resnet' else 'ln_post_proj')
  return {
      'visual': vision_tower(arch, spec).init(keys[0], jnp.zeros((1, size, size, 3)))['params'],
      'text': text_tower(arch).init(keys[1], tokens, method='encode_ids')['params'],
      'logit_scale': jnp.log(jnp.float32(1 / 0.07)),
  }


def cast(params: Any, precision: str) -> Any:
  """Returns `params` with which the towers compute matrix products and convolutions in `precision`.

  The kernels are rounded once. The residual streams and the features stay float32.

  Raises:
    ValueError: a precision that is not one of PRECISIONS.
  """
  if precision not in PRECISIONS:
    raise ValueError(f'precision={precision!r} is not one of {", ".join(PRECISIONS)}')
  if precision == 'float32':
    return params
  is_kernel = lambda path: path[-1].key == 'kernel'
  return jax.tree_util.tree_map_with_path(lambda path, x: x.astype(precision) if is_kernel(path) else x, params)


def template(arch: Arch | str) -> Any:
  """Returns the parameter tree with jax.ShapeDtypeStruct leaves, without allocating memory."""
  return jax.tree.map(lambda leaf: leaf, _shapes(find(arch)))  # a copy, because the cached dicts are mutable


@functools.cache
def _shapes(arch):
  return jax.eval_shape(lambda rng: init_params(arch, rng), jax.random.key(0))


def validate(arch: Arch, spec: FeatureSpec) -> None:
  """Raises ValueError with key, value and allowed range if the image tower does not support `spec`."""
  if _checked_kind(arch) == 'resnet':
    resnet.validate(spec)
    return
  for i, tap in enumerate(spec.taps):
    if tap.point in resnet.POOLS:
      raise ValueError(f'spec.taps[{i}].point={tap.point!r} is in the attention pool of a ResNet, but {arch.name} is '
                       f'a vision transformer, whose points are {", ".join(vit.POINTS)}')
  vit.validate(spec, patch=arch.vision.patch, layers=arch.vision.layers)


def vision_tower(arch: Arch, spec: FeatureSpec, unroll: bool = False) -> Any:
  """Returns the image tower that reads `spec`, a Flax module.

  Args:
    arch: the architecture.
    spec: features to read.
    unroll: whether the blocks of a vision transformer are compiled one by one; ignored for a ResNet.

  Raises:
    ValueError: an architecture that does not support the spec, or a `vision` that is not a valid tower.
  """
  validate(arch, spec)
  v = arch.vision
  if v.kind == 'resnet':
    return resnet.ResNetTower(v.image_size, v.width, v.stages, v.heads, arch.embed_dim, spec)
  return vit.VisionTower(v.image_size, v.patch, v.width, v.layers, v.heads, arch.embed_dim, arch.activation, spec,
                         unroll)


def text_tower(arch: Arch, unroll: bool = False) -> Any:
  """Returns the text tower, a Flax module; with `unroll` its blocks are compiled one by one."""
  t = arch.text
  return text.TextTower(t.context, t.vocab, t.width, t.layers, t.heads, arch.embed_dim, arch.activation, unroll)


def _checked_kind(arch):
  """Returns vision.kind; raises ValueError if it is unknown or does not fit the other fields."""
  v = arch.vision
  if v.kind == 'vit' and not v.stages:
    return v.kind
  if v.kind not in ('vit', 'resnet'):
    raise ValueError(f'vision.kind={v.kind!r} of {arch.name} is not one of vit, resnet')
  if v.kind == 'vit':
    raise ValueError(f'vision.stages={v.stages} of {arch.name} describes a ResNet, but vision.kind is vit')
  if (v.patch, v.layers, len(v.stages)) != (resnet.STRIDE, resnet.BLOCKS, resnet.BLOCKS) or min(v.stages) < 1:
    raise ValueError(f'vision.patch={v.patch}, vision.layers={v.layers} and vision.stages={v.stages} of {arch.name} '
                     f'do not fit a ResNet, which has patch {resnet.STRIDE}, {resnet.BLOCKS} layers and '
                     f'{resnet.BLOCKS} stages of at least one bottleneck each')
  if v.heads < 1 or v.channels(resnet.BLOCKS) % v.heads:
    raise ValueError(f'vision.heads={v.heads} of {arch.name} must divide {v.channels(resnet.BLOCKS)}, the width of '
                     'its attention pool')
  return v.kind
