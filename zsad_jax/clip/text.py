"""CLIP's causal text transformer on token embeddings, with deep prompt tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from zsad_jax.clip import block

DEEP_MODES = ('overwrite', 'concat', 'insert')


class Layer(block.Block):
  """Scan body of the text tower; `slots` [1 or B, K, W] replaces positions 1..K if `active`."""

  def __call__(self, x, slots, active, mask, slot_keys):
    if slots is not None:
      k = slots.shape[-2]
      slots = jnp.broadcast_to(slots, (x.shape[0], k, x.shape[-1])).astype(x.dtype)
      x = x.at[:, 1:1 + k].set(jnp.where(active, slots, x[:, 1:1 + k]))
      if slot_keys is not None:
        mask = mask & (active | ~slot_keys[None])
    q, k, v = self.qkv(x)
    x = x + self.attention(x, q, k, v, 'qk', mask)
    return self.feed_forward(x), None


class TextTower(nn.Module):
  """CLIP's text tower (arXiv 2103.00020, sec. 2.4), pooled at the end-of-text token."""
  context: int
  vocab: int
  width: int
  layers: int
  heads: int
  embed_dim: int
  activation: str
  unroll: bool = False

  def setup(self):
    self.token_embedding = nn.Embed(self.vocab, self.width, embedding_init=nn.initializers.normal(0.02))
    self.positional_embedding = self.param('positional_embedding', nn.initializers.normal(0.01),
                                           (self.context, self.width))
    scanned = block.stack(Layer, self.layers, in_axes=(0, 0, nn.broadcast, nn.broadcast),
                          unroll=self.unroll)
    self.blocks = scanned(self.width, self.heads, self.layers, self.activation)
    self.ln_final = block.LayerNorm()
    self.text_projection = block.Projection(
      self.embed_dim, kernel_init=nn.initializers.normal(self.width ** -0.5))

  def encode_ids(self, ids: jax.Array) -> jax.Array:
    """Runs every module once on ids [B, L], so that `init` creates every parameter."""
    return self(self.token_embedding(ids), jnp.zeros(ids.shape[:1], jnp.int32))

  def __call__(self, embeddings: jax.Array, eot: jax.Array, deep: jax.Array | None = None,
               deep_mode: str = 'overwrite') -> jax.Array:
    """Returns text features [B, E] before normalisation; see Clip.text."""
    self._check(embeddings, deep, deep_mode)
    length = embeddings.shape[1]
    x = embeddings + self.positional_embedding[:length].astype(embeddings.dtype)[None]
    if deep is None:
      x, _ = self.blocks(x, None, None, _causal(length), None)
    elif deep_mode == 'overwrite':
      slots, active = _by_layer(deep, first=2, layers=self.layers)
      x, _ = self.blocks(x, slots, active, _causal(length), None)
    else:
      # One scan runs L + K tokens through every block. In concat mode, later tokens cannot read the slots after
      # block n. That equals removing the slots, with a single body to compile.
      slots, active = _by_layer(deep, first=1, layers=self.layers)
      k = deep.shape[-2]
      empty = jnp.zeros((x.shape[0], k, x.shape[2]), x.dtype)
      x = jnp.concatenate([x[:, :1], empty, x[:, 1:]], 1)
      slot = jnp.arange(length + k)
      hidden = (slot >= 1) & (slot <= k) if deep_mode == 'concat' else None
      x, _ = self.blocks(x, slots, active, _causal(length + k), hidden)
      x = jnp.concatenate([x[:, :1], x[:, 1 + k:]], 1)
    pooled = jnp.take_along_axis(x, eot[:, None, None], 1)[:, 0]
    return self.text_projection(self.ln_final(pooled)).astype(x.dtype)

  def _check(self, embeddings, deep, deep_mode):
    length = embeddings.shape[1]
    if length > self.context:
      raise ValueError(f'a text of {length} tokens is longer than the context of {self.context}')
    if deep_mode not in DEEP_MODES:
      raise ValueError(f'deep_mode={deep_mode!r} is not one of {", ".join(DEEP_MODES)}')
    if deep is None:
      return
    most = self.layers - (deep_mode == 'overwrite')
    if not 1 <= deep.shape[0] <= most:
      raise ValueError(f'deep has prompt tokens for {deep.shape[0]} blocks; deep_mode={deep_mode!r} of a '
                       f'{self.layers}-block tower takes 1 to {most}')
    if deep_mode == 'overwrite' and deep.shape[-2] >= length:
      raise ValueError(f'{deep.shape[-2]} deep tokens do not fit after position 0 of a text of {length} tokens')


def _causal(length):
  return jnp.tril(jnp.ones((length, length), bool))


def _by_layer(deep, *, first, layers):
  """Returns deep tokens [layers, 1 or B, K, W] from block `first` on, and a mask [layers] of the blocks with tokens."""
  if deep.ndim == 3:
    deep = deep[:, None]
  before, after = first - 1, layers - deep.shape[0] - (first - 1)
  slots = jnp.pad(deep, ((before, after), (0, 0), (0, 0), (0, 0)))
  index = jnp.arange(layers)
  return slots, (index >= before) & (index < before + deep.shape[0])
