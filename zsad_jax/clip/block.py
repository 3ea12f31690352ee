"""Residual block of both CLIP towers, with CLIP's parameter names.

Every matrix product runs in the dtype of its kernel. Casting only the kernels to bfloat16 (archs.cast) therefore gives
bfloat16 products, while the residual stream, the biases and the class and position embeddings stay float32. Layer
norms and softmaxes are always float32.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zsad_jax.clip import attention


def quick_gelu(x: jax.Array) -> jax.Array:
  """Returns x sigmoid(1.702 x), the GELU of OpenAI's CLIP."""
  return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: jax.Array) -> jax.Array:
  """Returns the exact (erf) GELU of open_clip's LAION-400M weights."""
  return jax.nn.gelu(x, approximate=False)


def like_kernel(*operands: Any, **_: Any) -> list[Any]:
  """Returns (inputs, kernel, bias) in the kernel's dtype, as `promote_dtype` of Flax's dense layers."""
  return [None if x is None else x.astype(operands[1].dtype) for x in operands]


Dense = functools.partial(nn.Dense, promote_dtype=like_kernel)
DenseGeneral = functools.partial(nn.DenseGeneral, promote_dtype=like_kernel)
# For the features that leave a tower: no bias, and float32 results even from a bfloat16 kernel.
Projection = functools.partial(Dense, use_bias=False, dot_general=functools.partial(
  jax.lax.dot_general, preferred_element_type=jnp.float32))
ACTIVATIONS = {'quick_gelu': quick_gelu, 'gelu': gelu}


class LayerNorm(nn.Module):
  """CLIP's layer norm over the last axis: eps 1e-5, two-pass variance, float32 inside."""

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    bias = self.param('bias', nn.initializers.zeros, (x.shape[-1],))
    row = (1,) * (x.ndim - 1) + (-1,)
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + 1e-5)
    return (y * scale.reshape(row) + bias.reshape(row)).astype(x.dtype)


class Attention(nn.Module):
  """The packed projections of multi-head attention; the caller chooses the attention mode."""
  width: int
  heads: int
  layers: int

  def setup(self):
    std = self.width ** -0.5
    head = (self.heads, self.width // self.heads)
    self.qkv = DenseGeneral((3, *head), kernel_init=nn.initializers.normal(std))
    self.out = DenseGeneral(
        self.width, axis=(-2, -1), kernel_init=nn.initializers.normal(std * (2 * self.layers) ** -0.5))


class Mlp(nn.Module):
  """CLIP's feed-forward network, c_proj(act(c_fc(x))) with ratio 4."""
  width: int
  layers: int
  activation: str

  def setup(self):
    std = (2 * self.width) ** -0.5
    self.c_fc = Dense(4 * self.width, kernel_init=nn.initializers.normal(std))
    self.c_proj = Dense(self.width, kernel_init=nn.initializers.normal(std * self.layers ** -0.5))

  def __call__(self, x):
    return self.c_proj(ACTIVATIONS[self.activation](self.c_fc(x)))


class Block(nn.Module):
  """The parts of one pre-LN residual block, which each tower's scan body combines.

  Initialised as the text tower in OpenAI's CLIP.initialize_parameters, with biases at zero.
  """
  width: int
  heads: int
  layers: int
  activation: str

  def setup(self):
    self.ln_1 = LayerNorm()
    self.attn = Attention(self.width, self.heads, self.layers)
    self.ln_2 = LayerNorm()
    self.mlp = Mlp(self.width, self.layers, self.activation)

  def qkv(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns q, k, v of LN1(x), each [B, N, H, d]."""
    packed = self.attn.qkv(self.ln_1(x))
    return packed[:, :, 0], packed[:, :, 1], packed[:, :, 2]

  def attention(self, x: jax.Array, q: jax.Array, k: jax.Array, v: jax.Array, mode: str = 'qk',
                mask: jax.Array | None = None) -> jax.Array:
    """Returns the projected attention output [B, N, D] that is added to the stream x, in the dtype of x."""
    return self.attn.out(attention.attend(q, k, v, mode, mask)).astype(x.dtype)

  def feed_forward(self, x: jax.Array) -> jax.Array:
    """Returns x + MLP(LN2(x))."""
    return x + self.mlp(self.ln_2(x)).astype(x.dtype)


def stack(layer: type[Block], layers: int, in_axes: Sequence[Any], unroll: bool = False) -> Any:
  """Returns `layer` scanned over a leading layer axis of its weights.

  Args:
    layer: a Block whose call is a scan body.
    layers: number of blocks.
    in_axes: axes of the body's further arguments, as flax.linen.scan takes them.
    unroll: compile the blocks one by one. A backward pass then stacks no residuals, which is faster for small blocks
      and slower to compile.
  """
  return nn.scan(layer, variable_axes={'params': 0}, split_rngs={'params': True}, in_axes=in_axes,
                 length=layers, unroll=layers if unroll else 1)
