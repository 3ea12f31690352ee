"""Records clip_*.npz: both encoders of the released AnomalyCLIP, transcribed to PyTorch, with small random weights.

  python tests/golden/record_clip.py

The transcription follows the structure of the released code (packed projections, an attention that returns two paths,
lists that pass from block to block, sequence-first text with deep tokens in half precision), so that it shares nothing
with zsad_jax. It works for any architecture: parity tests and the encoder benchmark run it at full size. Weights and
inputs come from numpy's legacy generator, whose stream is frozen, so that only outputs are stored. torch is imported on
use, because tests read the golden files without it.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

HERE = Path(__file__).parent


class Dims(NamedTuple):
  """Shapes of a CLIP: image tower, text tower, embedding and activation."""
  image_size: int = 32
  patch: int = 8
  width: int = 64
  layers: int = 5
  heads: int = 2
  context: int = 16
  vocab: int = 40
  text_width: int = 48
  text_layers: int = 5
  text_heads: int = 3
  embed: int = 24
  activation: str = 'quick_gelu'


SIZE, FIRST_BLOCK = 56, 3  # the pretrained 4 x 4 grid is resampled to 7 x 7
RECORDS = {'quick_gelu': Dims(), 'gelu': Dims(activation='gelu')}
READ_OUTS = ('cls', 'read', 'text', 'deep_text')


def weights(dims, rng):
  """Returns arrays under OpenAI's names, with scales at which attention is far from uniform."""
  draw = lambda *shape, std: (rng.standard_normal(shape) * std).astype(np.float32)
  out = {}

  def norm(name, width):
    out[f'{name}.weight'] = 1 + draw(width, std=0.1)
    out[f'{name}.bias'] = draw(width, std=0.1)

  def blocks(prefix, width, layers):
    for i in range(layers):
      p = f'{prefix}.resblocks.{i}'
      norm(f'{p}.ln_1', width)
      for name, rows, columns, gain in (
          ('attn.in_proj_', 3 * width, width, 1), ('attn.out_proj.', width, width, layers ** -0.5),
          ('mlp.c_fc.', 4 * width, width, 1), ('mlp.c_proj.', width, 4 * width, layers ** -0.5)):
        out[f'{p}.{name}weight'] = draw(rows, columns, std=gain * columns ** -0.5)
        out[f'{p}.{name}bias'] = draw(rows, std=0.02)
      norm(f'{p}.ln_2', width)

  out['visual.class_embedding'] = draw(dims.width, std=0.5)
  out['visual.positional_embedding'] = draw((dims.image_size // dims.patch) ** 2 + 1, dims.width, std=0.5)
  out['visual.conv1.weight'] = draw(dims.width, 3, dims.patch, dims.patch, std=0.5 / dims.patch)
  norm('visual.ln_pre', dims.width)
  blocks('visual.transformer', dims.width, dims.layers)
  norm('visual.ln_post', dims.width)
  out['visual.proj'] = draw(dims.width, dims.embed, std=dims.width ** -0.5)
  out['token_embedding.weight'] = draw(dims.vocab, dims.text_width, std=0.5)
  out['positional_embedding'] = draw(dims.context, dims.text_width, std=0.3)
  blocks('transformer', dims.text_width, dims.text_layers)
  norm('ln_final', dims.text_width)
  out['text_projection'] = draw(dims.text_width, dims.embed, std=dims.text_width ** -0.5)
  out['logit_scale'] = np.asarray(np.log(100.0), np.float32)
  return out


def inputs(dims, rng, size=SIZE, rows=2):
  """Returns images [B, R, R, 3], ids [B, context] padded with 0, deep tokens [3, 2, W]."""
  images = rng.standard_normal((rows, size, size, 3)).astype(np.float32)
  ids = np.zeros((rows, dims.context), np.int32)
  for i in range(rows):
    ids[i, :6 + i] = [dims.vocab - 2, *rng.randint(1, dims.vocab - 2, 4 + i), dims.vocab - 1]
  return images, ids, (0.3 * rng.standard_normal((3, 2, dims.text_width))).astype(np.float32)


class Official:
  """The released encoders with arrays under OpenAI's names; `fused` uses torch's fused attention kernel."""

  def __init__(self, arrays, dims, fused=False):
    import torch
    self.torch, self.f, self.dims, self.fused = torch, torch.nn.functional, dims, fused
    self.w = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}

  def norm(self, x, name):
    return self.f.layer_norm(x, x.shape[-1:], self.w[f'{name}.weight'], self.w[f'{name}.bias'], 1e-5)

  def linear(self, x, name):
    return self.f.linear(x, self.w[f'{name}weight'], self.w[f'{name}bias'])

  def mlp(self, x, p):
    hidden = self.linear(self.norm(x, f'{p}.ln_2'), f'{p}.mlp.c_fc.')
    if self.dims.activation == 'gelu':
      hidden = self.f.gelu(hidden)
    else:
      hidden = hidden * self.torch.sigmoid(1.702 * hidden)
    return self.linear(hidden, f'{p}.mlp.c_proj.')

  def attention(self, x, p, *, surgery):
    """Returns [V-V path, original path] for a replaced block, and the original path alone for any other."""
    b, n, c = x.shape
    heads = self.dims.heads
    qkv = self.linear(x, f'{p}.attn.in_proj_').reshape(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
    q, k, v = qkv[0], qkv[1], qkv[2]
    x_ori = self.mix(q, k, v)
    join = lambda x: self.linear(x.transpose(1, 2).reshape(b, n, c), f'{p}.attn.out_proj.')
    if not surgery:
      return join(x_ori)
    k = v
    q = k
    return [join(self.mix(q, k, v)), join(x_ori)]

  def mix(self, q, k, v):
    if self.fused:
      return self.f.scaled_dot_product_attention(q, k, v)
    attn = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    return attn.softmax(dim=-1) @ v

  def image_block(self, x, p, *, surgery, ffn):
    if not surgery:
      x = x + self.attention(self.norm(x, f'{p}.ln_1'), p, surgery=False)
      return x + self.mlp(x, p)
    if not isinstance(x, list):  # the first replaced block opens the second path
      x_res, x_ori_res = self.attention(self.norm(x, f'{p}.ln_1'), p, surgery=True)
      x_ori = x + x_ori_res
      return [x + x_res, x_ori + self.mlp(x_ori, p)]
    x, x_ori = x
    x_res, x_ori_res = self.attention(self.norm(x_ori, f'{p}.ln_1'), p, surgery=True)
    if ffn:
      x = x_res + x_ori
      x = x + self.mlp(x, p)
    else:
      x = x + x_res
    x_ori = x_ori + x_ori_res
    return [x, x_ori + self.mlp(x_ori, p)]

  def embed_image(self, images):
    """Returns ln_pre of patches and positions, [B, N + 1, D]."""
    torch, w = self.torch, self.w
    x = self.f.conv2d(torch.from_numpy(images).permute(0, 3, 1, 2), w['visual.conv1.weight'], stride=self.dims.patch)
    x = x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1)
    x = torch.cat([w['visual.class_embedding'] + torch.zeros(x.shape[0], 1, x.shape[-1]), x], dim=1)
    table = w['visual.positional_embedding']
    side, new_side = int((table.shape[0] - 1) ** 0.5), int((x.shape[1] - 1) ** 0.5)
    if side != new_side:
      grid = table[1:].reshape(-1, side, side, x.shape[2]).permute(0, 3, 1, 2)
      grid = self.f.interpolate(grid, (new_side, new_side), mode='bilinear')
      table = torch.cat([table[:1], grid.reshape(x.shape[2], new_side * new_side).T])
    return self.norm(x + table, 'visual.ln_pre')

  def image(self, images, first_block=FIRST_BLOCK, ffn=False):
    """Returns the input of block 1, the original and V-V paths after each block, and the class feature."""
    x = self.embed_image(images)
    start, original, surgical = x, [], []
    for i in range(self.dims.layers):
      x = self.image_block(x, f'visual.transformer.resblocks.{i}', surgery=i + 1 >= first_block, ffn=ffn)
      side, own = x if isinstance(x, list) else (x, x)
      original.append(own)
      surgical.append(side)
    return start, original, surgical, original[-1][:, 0, :] @ self.w['visual.proj']

  def read_patches(self, tokens):
    """Returns the projected patch tokens of one path, without the class token."""
    return (self.norm(tokens, 'visual.ln_post') @ self.w['visual.proj'])[:, 1:]

  def text(self, ids, deep=()):
    """Returns text features and the input of each block, [L, B, W]."""
    torch, w = self.torch, self.w
    ids = torch.from_numpy(ids).long()
    x = (w['token_embedding.weight'][ids] + w['positional_embedding']).permute(1, 0, 2)
    mask = torch.empty(len(x), len(x)).fill_(float('-inf')).triu_(1)
    counter, entering = 0, []
    for i in range(self.dims.text_layers):
      if i > 0 and counter < len(deep):
        n_ctx = deep[0].shape[0]
        context = torch.from_numpy(deep[counter]).expand(x.shape[1], -1, -1).permute(1, 0, 2).half()
        x = torch.cat([x[:1], context, x[1 + n_ctx:]], dim=0)
        counter += 1
      entering.append(x)
      p = f'transformer.resblocks.{i}'
      y = self.norm(x, f'{p}.ln_1')
      y, _ = self.f.multi_head_attention_forward(
          y, y, y, x.shape[-1], self.dims.text_heads, w[f'{p}.attn.in_proj_weight'], w[f'{p}.attn.in_proj_bias'],
          None, None, False, 0.0, w[f'{p}.attn.out_proj.weight'], w[f'{p}.attn.out_proj.bias'],
          need_weights=False, attn_mask=mask)
      x = x + y
      x = x + self.mlp(x, p)
    x = self.norm(x.permute(1, 0, 2), 'ln_final')
    return x[torch.arange(len(x)), ids.argmax(dim=-1)] @ w['text_projection'], entering


def record(dims):
  """Returns everything that tests compare, as tensors and lists of tensors."""
  arrays, (images, ids, deep) = weights(dims, np.random.RandomState(0)), inputs(dims, np.random.RandomState(1))
  official = Official(arrays, dims)
  start, original, surgical, cls = official.image(images)
  _, _, fed, _ = official.image(images, ffn=True)
  text, _ = official.text(ids)
  deep_text, entering = official.text(ids, list(deep))
  return {'start': start, 'original': original, 'surgical': surgical, 'fed': fed, 'cls': cls,
          'read': official.read_patches(surgical[-1]), 'text': text, 'deep_text': deep_text,
          'entering': [x.permute(1, 0, 2) for x in entering]}


def main():
  import torch
  with torch.no_grad():
    for name, dims in RECORDS.items():
      out = {key: torch.stack(value) if isinstance(value, list) else value for key, value in record(dims).items()}
      keys = out if name == 'quick_gelu' else READ_OUTS  # the tokens of all blocks are stored once
      np.savez_compressed(HERE / f'clip_{name}.npz', **{key: out[key].numpy() for key in keys})


if __name__ == '__main__':
  main()
