"""The residual block that both CLIP towers stack; parameters carry CLIP's names.

A matrix product is computed in the dtype of its kernel, so that kernels alone in bfloat16 (archs.cast) make products
in bfloat16 around a residual stream, biases and class and position embeddings in float32. Layer norms and softmaxes
are float32 in any case.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from zsad_jax.clip import attention


def quick_gelu(x):
  """Returns x sigmoid(1.702 x), the GELU of OpenAI's CLIP."""
  return x * jax.nn.sigmoid(1.702 * x)


def gelu(x):
  """Returns the exact (erf) GELU of open_clip's LAION-400M weights."""
  return jax.nn.gelu(x, approximate=False)


def like_kernel(inputs, kernel, bias=None, **_):
  """Returns what a product is computed from, all in the kernel's dtype: promote_dtype of Flax's dense layers."""
  return inputs.astype(kernel.dtype), kernel, None if bias is None else bias.astype(kernel.dtype)


Dense = functools.partial(nn.Dense, promote_dtype=like_kernel)
DenseGeneral = functools.partial(nn.DenseGeneral, promote_dtype=like_kernel)
# Without a bias, and not rounded again: for features that leave a tower.
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
  """The packed projections of multi-head attention; what is attended to is the caller's choice."""
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
  """The parts of one pre-LN residual block; each tower's scan body puts them together.

  Weights start as OpenAI's CLIP.initialize_parameters starts the text tower's, biases at zero.
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

  def qkv(self, x):
    """Returns q, k, v of LN1(x), each [B, N, H, d]."""
    packed = self.attn.qkv(self.ln_1(x))
    return packed[:, :, 0], packed[:, :, 1], packed[:, :, 2]

  def attended(self, x, q, k, v, mode='qk', mask=None):
    """Returns what attention adds to the stream x, [B, N, D] of its dtype."""
    return self.attn.out(attention.attend(q, k, v, mode, mask)).astype(x.dtype)

  def feed_forward(self, x):
    """Returns x + MLP(LN2(x))."""
    return x + self.mlp(self.ln_2(x)).astype(x.dtype)


def stack(layer, layers, in_axes, unroll=False):
  """Returns `layer` (a Block whose call is a scan body) scanned over a leading layer axis of its weights.

  Unrolled, a backward pass stacks no residuals: faster where the blocks are small, slower to compile.
  """
  return nn.scan(layer, variable_axes={'params': 0}, split_rngs={'params': True}, in_axes=in_axes,
                 length=layers, unroll=layers if unroll else 1)
