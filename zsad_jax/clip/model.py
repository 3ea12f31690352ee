"""The frozen CLIP: architecture, weights, tokenizer and pure functions. `load` is the way to get one."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
from zsad_jax.clip.feature_spec import Features, FeatureSpec
from zsad_jax.clip.weights import hub, port, safetensors_files

__all__ = [
  'ARCHS', 'PRECISIONS', 'Arch', 'Clip', 'Text', 'Vision', 'build', 'find', 'from_state_dict', 'init_params', 'load',
  'resnet_vision', 'template', 'with_precision',
]


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
  """A frozen CLIP: architecture, weights, tokenizer, and pure functions that take the weights as an argument.

  Attributes:
    arch: the architecture.
    image_size: pixels per side of the input; the positional table is resampled to fit.
    params: {'visual', 'text', 'logit_scale'} with blocks stacked on a leading layer axis; float32, kernels in
      `precision`. None for a CLIP without weights.
    tokenizer: object with encode(texts, context) -> [B, context] int32, or None.
    fingerprint: sha256 of the weights in hex, '' if unknown.
    precision: precision of the towers' matrix products, one of PRECISIONS; see `with_precision`.
    unroll: whether the blocks are compiled one by one, which speeds up training a small CLIP; results are the same.
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
    """Patches per side at image_size, or positions per side of a ResNet's last feature map."""
    return self.image_size // self.arch.vision.patch

  @property
  def identity(self) -> dict[str, str]:
    """Everything besides the images and the spec that decides the features, for cache keys."""
    precision = {} if self.precision == 'float32' else {'precision': self.precision}
    return {'weights': self.fingerprint, 'arch': repr(self.arch), **precision}

  def image(self, params: Any, images: jax.Array, spec: FeatureSpec) -> Features:
    """Returns the Features of images that `spec` describes, not normalised.

    Args:
      params: the whole parameter tree. Every matrix product runs in the dtype of its kernel.
      images: [B, R, R, 3] float32 with R = spec.image_size, normalised by arch.mean and arch.std.
      spec: features to read. Side streams read CLIP's stream and never change it (DPAM; AnomalyCLIP, arXiv
        2310.18961, sec. 3.3, as in its official code). A side stream that no tap reads is not computed.

    Raises:
      ValueError: a spec that the tower does not support, or images of another size.
    """
    return vision_tower(self.arch, spec, self.unroll).apply({'params': params['visual']}, images)

  def attention(self, params: Any, images: jax.Array, spec: FeatureSpec, number: int) -> dict[str, jax.Array]:
    """Returns the attention maps {mode: [B, N + 1, N + 1]} from every token (row) to every other in one block.

    Each map is the mean over heads of softmax(a b^T / sqrt d) with a, b from CLIP's own stream: 'qk', CLIP's own
    attention, and 'qq', 'kk', 'vv' (AnomalyCLIP, arXiv 2310.18961, sec. 3.3 and fig. 3). The class token comes first.

    Args:
      params, images: as for `image`.
      spec: gives image_size and positions.
      number: number of the block, from 1.

    Raises:
      ValueError: a block that the tower does not have, or a tower that is not a vision transformer.
    """
    if self.arch.vision.kind != 'vit':
      raise ValueError(f'{self.arch.name} is not a vision transformer; its blocks have no attention')
    tower = vision_tower(self.arch, FeatureSpec(spec.image_size, positions=spec.positions))
    return tower.apply({'params': params['visual']}, images, number, method='attention_maps')

  def text(self, params: Any, embeddings: jax.Array, eot: jax.Array, *, deep: jax.Array | None = None,
           deep_mode: str = 'overwrite') -> jax.Array:
    """Returns text features [B, E], not normalised.

    Args:
      params: the whole parameter tree.
      embeddings: [B, L, W] token embeddings without positions, L <= context. Attention is causal, so a text may be
        cut after its end-of-text token without changing its feature.
      eot: [B] int32 position of the end-of-text token.
      deep: [n, K, W] or [n, B, K, W] prompt tokens for n blocks, or None.
      deep_mode: 'overwrite' puts deep[b - 2] at positions 1..K of the input of blocks b = 2..n + 1 (official
        AnomalyCLIP code); 'concat' inserts deep[b - 1] after position 0 for blocks b = 1..n and drops the outputs of
        these slots (AnomalyCLIP, arXiv 2310.18961, appendix D); 'insert' does the same, but keeps the outputs of
        block n for all later blocks. Inserted slots have no positional embeddings; the words keep theirs.

    Raises:
      ValueError: a text longer than the context, an unknown mode, or deep tokens for more blocks or positions than
        there are.
    """
    return text_tower(self.arch, self.unroll).apply({'params': params['text']}, embeddings, eot, deep, deep_mode)

  def embed(self, params: Any, ids: jax.Array) -> jax.Array:
    """Returns token embeddings [B, L, W] of ids [B, L], without positions."""
    return jnp.take(params['text']['token_embedding']['embedding'], ids, axis=0)

  def tokenize(self, texts: Sequence[str]) -> np.ndarray:
    """Returns ids [B, context] int32, padded with 0; raises ValueError if this CLIP has no tokenizer."""
    if self.tokenizer is None:
      raise ValueError(f'this CLIP ({self.arch.name}) has no tokenizer; pass tokenizer= to build')
    return self.tokenizer.encode(list(texts), self.arch.text.context)

  def eot(self, ids: Any) -> Any:
    """Returns the positions [B] of the end-of-text token, the first maximum of ids [B, L]."""
    return ids.argmax(-1)


def build(arch: Arch | str, params: Any, *, image_size: int | None = None, tokenizer: Any = None,
          fingerprint: str = '') -> Clip:
  """Returns a Clip with `params` on the default device; numpy arrays would be copied there at every call.

  Args:
    arch: an architecture, or its name in ARCHS.
    params: a parameter tree as in `template(arch)`.
    image_size: pixels per side of the input; None takes the pretrained size.
    tokenizer: object with encode(texts, context), or None.
    fingerprint: sha256 of the weights in hex, '' if unknown.

  Raises:
    ValueError: an unknown architecture, an image size that is not a multiple of the patch size, or parameters whose
      names or shapes are not the architecture's.
  """
  arch = find(arch)
  size = arch.vision.image_size if image_size is None else image_size
  if size <= 0 or size % arch.vision.patch:
    raise ValueError(f'image_size={size} is not a positive multiple of {arch.vision.patch}, the patch size of '
                     f'{arch.name}')
  shapes = {path: leaf.shape for path, leaf in port.flatten(template(arch)).items()}
  if problems := port.differences(port.flatten(params), shapes):
    raise ValueError(f'parameters do not fit {arch.name}: {"; ".join(problems)}')
  return Clip(arch, size, jax.tree.map(jnp.asarray, params), tokenizer, fingerprint)


def with_precision(clip: Clip, precision: str) -> Clip:
  """Returns `clip` with its kernels cast to `precision`.

  Raises:
    ValueError: an unknown precision, or kernels that were already cast to another one.
  """
  if clip.precision not in ('float32', precision):
    raise ValueError(f'the kernels of {clip.arch.name} are already {clip.precision}; load the weights again for '
                     f'{precision}')
  if clip.precision == precision:
    return clip
  return dataclasses.replace(clip, params=cast(clip.params, precision), precision=precision)


def from_state_dict(arch: Arch | str, arrays: Mapping[str, np.ndarray], *, image_size: int | None = None,
                    tokenizer: Any = None) -> Clip:
  """Returns a Clip from arrays under the names of OpenAI, open_clip or Hugging Face, fingerprinted by their values.

  Args:
    arch: an architecture, or its name in ARCHS.
    arrays: {name: array} in any of port.NAMINGS.
    image_size, tokenizer: as for `build`.

  Raises:
    ValueError: arrays that do not fit the architecture, and as `build` does.
  """
  arch = find(arch)
  params = port.from_state_dict(arrays, template(arch), arch)
  return build(arch, params, image_size=image_size, tokenizer=tokenizer, fingerprint=port.digest(params))


def load(name_or_path: str | os.PathLike[str], *, image_size: int | None = None, arch: Arch | str | None = None,
         cache_dir: str | os.PathLike[str] | None = None, offline: bool | None = None) -> Clip:
  """Returns a Clip with its weights and tokenizer, from a published name or a local path.

  Args:
    name_or_path: 'tiny', a published name such as 'vit_b16:laion400m_e32', a folder with weights and config.json, or
      a .safetensors file; see weights.hub.resolve.
    image_size: pixels per side of the input; None takes the pretrained size.
    arch: architecture of a .safetensors file that does not state its own.
    cache_dir: folder for downloads; None takes $ZSAD_CACHE or ~/.cache/zsad_jax.
    offline: whether downloads are forbidden; None follows HF_HUB_OFFLINE.

  Raises:
    FileNotFoundError: weights that are neither on this machine nor on the hub.
    ValueError: an unknown name, a pickle, a wrong digest, weights that do not fit the architecture, or a tokenizer
      with more tokens than the text tower embeds.
  """
  source = hub.resolve(name_or_path, arch=arch, cache_dir=cache_dir, offline=offline)
  tokenizer, vocab = tokenizer_lib.load(source.tokenizer_path), source.arch.text.vocab
  if tokenizer.size > vocab:
    raise ValueError(f'the tokenizer of {source.path} has {tokenizer.size} tokens, but its text tower embeds {vocab}; '
                     'use the tokenizer that belongs to these weights')
  params = port.from_state_dict(safetensors_files.read(source.path), template(source.arch), source.arch)
  return build(source.arch, params, image_size=image_size, tokenizer=tokenizer, fingerprint=source.sha256)
