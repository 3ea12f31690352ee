"""CLIP's vision transformer with side streams and taps."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from zsad_jax.models import attention
from zsad_jax.models import block
from zsad_jax import spec as spec_lib


def resample_positions(table, grid, method='bilinear'):
  """Returns the positional table [1 + grid^2, D] for another grid; the class token's row stays as it is.

  Args:
    table: [1 + g^2, D], the pretrained table.
    grid: patches a side wanted.
    method: 'bilinear' half-pixel without antialias (official AnomalyCLIP), 'bicubic_antialias' (open_clip).

  Raises:
    ValueError: an unknown method.
  """
  side = round((table.shape[0] - 1) ** 0.5)
  if grid == side:
    return table
  patches = table[1:].reshape(side, side, -1)
  shape = (grid, grid, patches.shape[-1])
  if method == 'bilinear':
    patches = jax.image.resize(patches, shape, 'linear', antialias=False)
  elif method == 'bicubic_antialias':
    patches = jax.image.resize(patches, shape, 'cubic', antialias=True)
  else:
    raise ValueError(f'positions {method!r} is not one of bilinear, bicubic_antialias')
  return jnp.concatenate([table[:1], patches.reshape(grid * grid, -1)])


class Layer(block.Block):
  """Scan body of the image tower: x [B, N + 1, D]."""

  def __call__(self, x):
    q, k, v = self.qkv(x)
    x = x + self.attn.out(attention.attend(q, k, v))
    return self.feed_forward(x), None


class PatchEmbed(nn.Module):
  """Non-overlapping patches times a [P, P, 3, D] kernel, no bias: CLIP's strided convolution."""
  patch: int
  width: int

  @nn.compact
  def __call__(self, images):
    p = self.patch
    kernel = self.param('kernel', nn.initializers.normal((3 * p * p) ** -0.5), (p, p, 3, self.width))
    b, g = images.shape[0], images.shape[1] // p
    patches = images.reshape(b, g, p, g, p, 3).swapaxes(2, 3).reshape(b, g * g, 3 * p * p)
    return patches.astype(kernel.dtype) @ kernel.reshape(3 * p * p, self.width)


class VisionTower(nn.Module):
  """The image half of CLIP (arXiv 2103.00020, sec. 2.4)."""
  image_size: int
  patch: int
  width: int
  layers: int
  heads: int
  embed_dim: int
  activation: str

  def setup(self):
    std = self.width ** -0.5
    tokens = 1 + (self.image_size // self.patch) ** 2
    self.class_embedding = self.param('class_embedding', nn.initializers.normal(std), (self.width,))
    self.positional_embedding = self.param('positional_embedding', nn.initializers.normal(std),
                                           (tokens, self.width))
    self.patch_embed = PatchEmbed(self.patch, self.width)
    self.ln_pre = block.LayerNorm()
    self.blocks = block.stack(Layer, self.layers, in_axes=())(
        self.width, self.heads, self.layers, self.activation)
    self.ln_post = block.LayerNorm()
    self.proj = nn.Dense(self.embed_dim, use_bias=False, kernel_init=nn.initializers.normal(std))

  def tokens(self, images, positions='bilinear'):
    """Returns x^0 [B, N + 1, D], the normalised embeddings that enter block 1."""
    patches = self.patch_embed(images)
    cls = jnp.broadcast_to(self.class_embedding, (images.shape[0], 1, self.width))
    grid = images.shape[1] // self.patch
    table = resample_positions(self.positional_embedding, grid, positions)
    return self.ln_pre(jnp.concatenate([cls, patches], 1) + table[None])

  def __call__(self, images, spec):
    """Returns Features of images [B, R, R, 3]; see Clip.image."""
    x, _ = self.blocks(self.tokens(images, spec.positions))
    return spec_lib.Features(cls=self.proj(self.ln_post(x[:, 0])), taps={})
