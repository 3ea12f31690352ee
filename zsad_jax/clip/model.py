"""A frozen CLIP: weights, tokenizer and pure functions, built from arrays or loaded by name."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.clip import feature_spec as spec_lib
from zsad_jax.clip import tokenizer as tokenizer_lib
from zsad_jax.clip.archs import (
  ARCHS,
  PRECISIONS,
  Arch,
  Text,
  Vision,
  cast,
  find,
  init_params,
  resnet_vision,
  template,
  text_tower,
  vision_tower,
)
from zsad_jax.clip.weights import port

__all__ = [
  'ARCHS', 'PRECISIONS', 'Arch', 'Clip', 'Text', 'Vision', 'build', 'find', 'from_state_dict', 'init_params', 'load',
  'resnet_vision', 'template', 'with_precision',
]


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
  """A frozen CLIP: architecture, weights, tokenizer, and pure functions that take the weights as an argument.

  Attributes:
    image_size: pixels a side that the image tower is used at; the positional table is resampled to fit.
    params: {'visual', 'text', 'logit_scale'}, blocks stacked on a leading layer axis, float32; kernels in `precision`.
    tokenizer: object with encode(texts, context) -> [B, context] int32, or None.
    fingerprint: sha256 of the weights in hex, '' where unknown.
    precision: of the towers' matrix products, one of archs.PRECISIONS; see with_precision.
    unroll: whether the blocks are compiled one by one, which training a small CLIP gains from; same results.
  """
  arch: Arch
  image_size: int
  params: Any
  tokenizer: Any = None
  fingerprint: str = ''
  precision: str = 'float32'
  unroll: bool = False

  @property
  def grid(self) -> int:
    """Patches a side at image_size, or places a side of a ResNet's last map."""
    return self.image_size // self.arch.vision.patch

  @property
  def identity(self) -> dict[str, str]:
    """What features depend on beside what is read and of what: weights, architecture and, if rounded, precision."""
    rounded = {} if self.precision == 'float32' else {'precision': self.precision}
    return {'weights': self.fingerprint, 'arch': repr(self.arch), **rounded}

  def image(self, params, images, spec: spec_lib.FeatureSpec) -> spec_lib.Features:
    """Returns what `spec` reads of images, as Features that are not normalised.

    Args:
      params: the whole parameter tree; a product is computed in its kernel's dtype.
      images: [B, R, R, 3] float32 with R = spec.image_size, less arch.mean, divided by arch.std.
      spec: what to read. SideStream streams see CLIP's stream and leave it as it is (DPAM; AnomalyCLIP, arXiv
        2310.18961, sec. 3.3, as its official code has it); one that no tap reads costs nothing.

    Raises:
      ValueError: a spec that this tower cannot give, or images of another size.
    """
    return vision_tower(self.arch, spec, self.unroll).apply({'params': params['visual']}, images)

  def attention(self, params, images, spec: spec_lib.FeatureSpec, number: int):
    """Returns {mode: [B, N + 1, N + 1]}, how much every token (row) reads of every other in block `number`, from 1.

    The mean over heads of softmax(a b^T / sqrt d) with a, b of CLIP's own stream, in the modes qk, which CLIP computes
    with, and qq, kk, vv (AnomalyCLIP, arXiv 2310.18961, sec. 3.3 and fig. 3). The class token comes first.

    Args:
      params, images: as for `image`.
      spec: for its image_size and positions.

    Raises:
      ValueError: a block that the tower does not have, or a tower that is no vision transformer.
    """
    if self.arch.vision.kind != 'vit':
      raise ValueError(f'{self.arch.name} is no vision transformer; its blocks have no attention')
    tower = vision_tower(self.arch, spec_lib.FeatureSpec(spec.image_size, positions=spec.positions))
    return tower.apply({'params': params['visual']}, images, number, method='attention_maps')

  def text(self, params, embeddings, eot, *, deep=None, deep_mode='overwrite'):
    """Returns text features [B, E], unnormalised.

    Args:
      params: the whole parameter tree.
      embeddings: [B, L, W] token embeddings without positions, L <= context; causality makes a text cut
        after its end-of-text token exact.
      eot: [B] int32 position of the end-of-text token.
      deep: [n, K, W] or [n, B, K, W] prompt tokens of n blocks, or None.
      deep_mode: 'overwrite' puts deep[b - 2] at positions 1..K of the input of blocks b = 2..n + 1 (official
        AnomalyCLIP code); 'concat' inserts deep[b - 1] after position 0 for blocks b = 1..n and drops what
        comes out of these slots (AnomalyCLIP, arXiv 2310.18961, appendix D); 'insert' does the same, but what comes
        out of block n stays and passes all later blocks. Inserted slots have no positions; those of words stay.

    Raises:
      ValueError: a text beyond the context, an unknown mode, more deep blocks than the tower has, or deep
        tokens that do not fit.
    """
    return text_tower(self.arch, self.unroll).apply({'params': params['text']}, embeddings, eot, deep, deep_mode)

  def embed(self, params, ids):
    """Returns token embeddings [B, L, W] of ids [B, L], positions not added."""
    return jnp.take(params['text']['token_embedding']['embedding'], ids, axis=0)

  def tokenize(self, texts: Sequence[str]) -> np.ndarray:
    """Returns ids [B, context] int32, padded with 0; raises ValueError where no tokenizer was loaded."""
    if self.tokenizer is None:
      raise ValueError(f'this CLIP ({self.arch.name}) was built without a tokenizer; pass tokenizer= to build')
    return self.tokenizer.encode(list(texts), self.arch.text.context)

  def eot(self, ids):
    """Returns [B] positions of the end-of-text token, the first maximum of ids [B, L]."""
    return ids.argmax(-1)


def build(arch: Arch | str, params, *, image_size=None, tokenizer=None, fingerprint='') -> Clip:
  """Returns a Clip around `params`, put on the default device: numpy arrays would cross over at every call.

  Raises:
    ValueError: an unknown architecture, an image size that is not a multiple of the patch, or a parameter tree
      of other names or shapes than the architecture's.
  """
  arch = find(arch)
  size = arch.vision.image_size if image_size is None else image_size
  if size <= 0 or size % arch.vision.patch:
    raise ValueError(f'image_size {size} is not a positive multiple of {arch.vision.patch}, the patch size of '
                     f'{arch.name}')
  _check(params, template(arch), arch.name)
  return Clip(arch, size, jax.tree.map(jnp.asarray, params), tokenizer, fingerprint)


def with_precision(clip: Clip, precision: str) -> Clip:
  """Returns `clip` with its kernels in `precision`; raises ValueError for an unknown one, or kernels rounded before."""
  if clip.precision not in ('float32', precision):
    raise ValueError(f'kernels of {clip.arch.name} were rounded to {clip.precision}; load the weights again for '
                     f'{precision}')
  if clip.precision == precision:
    return clip
  return dataclasses.replace(clip, params=cast(clip.params, precision), precision=precision)


def from_state_dict(arch: Arch | str, arrays: Mapping[str, np.ndarray], *, image_size=None,
                    tokenizer=None) -> Clip:
  """Returns a Clip from arrays named as OpenAI, open_clip or Hugging Face name them.

  Its fingerprint is a sha256 of the values. Raises ValueError as weights.port and build do.
  """
  arch = find(arch)
  params = port.port(arrays, template(arch), arch)
  return build(arch, params, image_size=image_size, tokenizer=tokenizer, fingerprint=port.digest(params))


def load(name_or_path, *, image_size=None, arch=None, cache_dir=None, offline=None) -> Clip:
  """Returns a Clip with its weights and tokenizer, from a published name or a local path.

  Args:
    name_or_path, arch, cache_dir, offline: as in weights.resolve.
    image_size: pixels a side; None takes the pretrained size.

  Raises:
    FileNotFoundError, ValueError: as weights.resolve, weights.port and build do; a tokenizer with more tokens than
      the text tower embeds.
  """
  found = port.resolve(name_or_path, arch=arch, cache_dir=cache_dir, offline=offline)
  tokenizer, embedded = tokenizer_lib.load(found.tokenizer_path), found.arch.text.vocab
  if tokenizer.size > embedded:
    raise ValueError(f'the tokenizer of {found.path} has {tokenizer.size} tokens, its text tower embeds {embedded}; '
                     'they do not belong together')
  params = port.port(port.read_safetensors(found.path), template(found.arch), found.arch)
  return build(found.arch, params, image_size=image_size, tokenizer=tokenizer, fingerprint=found.sha256)


def _check(params, want, name):
  """Raises ValueError that lists every leaf of `params` that differs from `want` in name or shape."""
  shapes = lambda tree: {jax.tree_util.keystr(k, simple=True, separator='/'): tuple(x.shape)
                         for k, x in jax.tree_util.tree_leaves_with_path(tree)}
  have, want = shapes(params), shapes(want)
  wrong = [f'missing {k} {want[k]}' for k in sorted(want.keys() - have.keys())]
  wrong += [f'unexpected {k} {have[k]}' for k in sorted(have.keys() - want.keys())]
  wrong += [f'{k} is {have[k]}, not {want[k]}'
            for k in sorted(have.keys() & want.keys()) if have[k] != want[k]]
  if wrong:
    raise ValueError(f'parameters do not fit {name}: ' + '; '.join(wrong))
