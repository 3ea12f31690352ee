"""Architectures of CLIP as data, the towers they describe, and the trees of their parameters."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from zsad_jax.clip import feature_spec as spec_lib
from zsad_jax.clip import resnet, text, vit


@dataclasses.dataclass(frozen=True)
class Vision:
  """Shape of an image tower.

  Attributes:
    image_size: the pretrained one, in pixels.
    patch: pixels a side of a patch, or of one place of a ResNet's last map.
    width: of the tokens, or of a ResNet's stem.
    layers: blocks that a Tap can name: transformer blocks, or a ResNet's four stages.
    heads: of every attention, or of a ResNet's attention pool.
    kind: 'vit' or 'resnet'.
    stages: how many bottlenecks each stage of a ResNet has.
  """
  image_size: int
  patch: int
  width: int
  layers: int
  heads: int
  kind: str = 'vit'
  stages: tuple[int, ...] = ()

  def channels(self, block: int) -> int:
    """Returns the width of the tokens that block `block` leaves."""
    return resnet.channels(self.width, block) if self.kind == 'resnet' else self.width

  def grid(self, image_size: int, block: int) -> int:
    """Returns how many tokens a side block `block` leaves of an image."""
    return image_size // (resnet.stride(block) if self.kind == 'resnet' else self.patch)

  def __repr__(self):
    # Feature stores are known by this text, and were before there were ResNets.
    fields = dataclasses.asdict(self)
    if not self.stages:
      del fields['stages']
    return f'Vision({", ".join(f"{name}={value!r}" for name, value in fields.items())})'


def resnet_vision(image_size: int, width: int, stages: tuple[int, ...], head_width: int = 64) -> Vision:
  """Returns the Vision of a CLIP ResNet with a stem of `width` and so many bottlenecks in each of its stages."""
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
  """Everything but the weights that decides what a CLIP computes.

  Attributes:
    activation: of the transformers, 'quick_gelu' (OpenAI, LAION-400M ViT-B/32) or 'gelu' (exact erf; other
      LAION-400M weights); ResNets have ReLU in any case.
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


def init_params(arch: Arch | str, rng):
  """Returns fresh float32 parameters, initialised as OpenAI's CLIP initialises its transformers and ResNets."""
  arch = find(arch)
  keys = jax.random.split(rng)
  size, tokens = arch.vision.patch, jnp.zeros((1, 1), jnp.int32)
  # These read through every parameter, on an image of one patch.
  every = spec_lib.FeatureSpec(size, cls='proj' if arch.vision.kind == 'resnet' else 'ln_post_proj')
  return {
      'visual': vision_tower(arch, every).init(keys[0], jnp.zeros((1, size, size, 3)))['params'],
      'text': text_tower(arch).init(keys[1], tokens, method='everything')['params'],
      'logit_scale': jnp.log(jnp.float32(1 / 0.07)),
  }


def cast(params, precision: str):
  """Returns `params` whose towers compute matrix products and convolutions in `precision`, one of PRECISIONS.

  Their kernels are rounded, once; what adds up along a tower stays float32, and so do the features that leave it.

  Raises:
    ValueError: another precision.
  """
  if precision not in PRECISIONS:
    raise ValueError(f'precision {precision!r} is not one of {", ".join(PRECISIONS)}')
  if precision == 'float32':
    return params
  kernel = lambda path: path[-1].key == 'kernel'
  return jax.tree_util.tree_map_with_path(lambda path, x: x.astype(precision) if kernel(path) else x, params)


def template(arch: Arch | str):
  """Returns the parameter tree as jax.ShapeDtypeStruct leaves, allocating nothing."""
  return jax.tree.map(lambda leaf: leaf, _shapes(find(arch)))  # the caller's own dicts


@functools.cache
def _shapes(arch):
  return jax.eval_shape(lambda rng: init_params(arch, rng), jax.random.key(0))


def validate(arch: Arch, spec: spec_lib.FeatureSpec) -> None:
  """Raises ValueError, naming key, value and allowed range, where the image tower cannot give what `spec` asks."""
  if _checked_kind(arch) == 'resnet':
    resnet.validate(spec)
    return
  for i, tap in enumerate(spec.taps):
    if tap.point in resnet.POOLS:
      raise ValueError(f'spec.taps[{i}].point {tap.point!r} is in the attention pool of a ResNet; {arch.name} is a '
                       f'vision transformer, whose points are {vit.POINTS}')
  vit.validate(spec, patch=arch.vision.patch, layers=arch.vision.layers)


def vision_tower(arch: Arch, spec: spec_lib.FeatureSpec, unroll: bool = False) -> vit.VisionTower | resnet.ResNetTower:
  """Returns the image tower that reads `spec`; raises ValueError for a tower or a spec that is not to be had.

  A ResNet takes no notice of `unroll`.
  """
  validate(arch, spec)
  v = arch.vision
  if v.kind == 'resnet':
    return resnet.ResNetTower(v.image_size, v.width, v.stages, v.heads, arch.embed_dim, spec)
  return vit.VisionTower(v.image_size, v.patch, v.width, v.layers, v.heads, arch.embed_dim, arch.activation, spec,
                         unroll)


def text_tower(arch: Arch, unroll: bool = False) -> text.TextTower:
  """Returns the text tower."""
  t = arch.text
  return text.TextTower(t.context, t.vocab, t.width, t.layers, t.heads, arch.embed_dim, arch.activation, unroll)


def _checked_kind(arch):
  """Returns vision.kind; raises ValueError where it is unknown, or where the record of a ResNet is none."""
  v = arch.vision
  if v.kind == 'vit' and not v.stages:
    return v.kind
  if v.kind not in ('vit', 'resnet'):
    raise ValueError(f'vision.kind {v.kind!r} of {arch.name} is not one of: vit, resnet')
  if v.kind == 'vit':
    raise ValueError(f'vision.stages {v.stages} of {arch.name} are of a ResNet, but vision.kind is {v.kind!r}')
  if (v.patch, v.layers, len(v.stages)) != (resnet.STRIDE, resnet.BLOCKS, resnet.BLOCKS) or min(v.stages) < 1:
    raise ValueError(f'vision of {arch.name}: a ResNet has patch {resnet.STRIDE}, layers {resnet.BLOCKS} and as many '
                     f'stages, each of at least one bottleneck; not {v.patch}, {v.layers} and {v.stages}')
  if v.heads < 1 or v.channels(resnet.BLOCKS) % v.heads:
    raise ValueError(f'vision.heads {v.heads} of {arch.name} do not divide {v.channels(resnet.BLOCKS)}, the width of '
                     'its attention pool')
  return v.kind
