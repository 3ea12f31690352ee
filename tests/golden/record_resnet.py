"""Records resnet.npz: the ResNet encoder of the released CLIP-AD, transcribed to PyTorch, with small random weights.

  python tests/golden/record_resnet.py

The transcription follows the structure of the released code (channels first, batch norms in eval mode, the pool as
torch's own multi-head attention for OpenAI's CLIP, or as the attention of two paths whose packed weight is v_proj three
times for CLIP-AD), so that it shares nothing with zsad_jax. Parity tests run it at full size. Weights and images come
from numpy's legacy generator, whose stream is frozen, so that only outputs are stored. torch is imported on use:
tests read the golden file without it.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

HERE = Path(__file__).parent


class Dims(NamedTuple):
  """Shapes of a CLIP with a ResNet."""
  image_size: int = 64
  width: int = 8
  stages: tuple[int, int, int, int] = (1, 2, 3, 1)
  heads: int = 4
  embed: int = 24
  context: int = 16
  vocab: int = 40
  text_width: int = 48
  text_layers: int = 2
  text_heads: int = 3


SMALL, SIZE = Dims(), 96  # the pretrained 2 x 2 positions are resampled to 3 x 3


def weights(dims, rng):
  """Returns arrays under OpenAI's names, with running statistics and with feature maps that do not grow with depth."""
  draw = lambda *shape, std: (rng.standard_normal(shape) * std).astype(np.float32)
  out = {}

  def conv_norm(conv, norm, rows, columns, size, scale=1.0):
    out[f'{conv}.weight'] = draw(rows, columns, size, size, std=(2 / (columns * size ** 2)) ** 0.5)
    out[f'{norm}.weight'] = scale + draw(rows, std=0.1 * scale)
    out[f'{norm}.bias'] = draw(rows, std=0.1)
    out[f'{norm}.running_mean'] = draw(rows, std=0.3)
    out[f'{norm}.running_var'] = (0.5 + rng.random_sample(rows)).astype(np.float32)
    out[f'{norm}.num_batches_tracked'] = np.asarray(7, np.int64)

  half = dims.width // 2
  for i, (rows, columns) in enumerate(((half, 3), (half, half), (dims.width, half)), 1):
    conv_norm(f'visual.conv{i}', f'visual.bn{i}', rows, columns, 3)
  inside = dims.width
  for i, count in enumerate(dims.stages):
    planes = dims.width * 2 ** i
    for j in range(count):
      p = f'visual.layer{i + 1}.{j}'
      conv_norm(f'{p}.conv1', f'{p}.bn1', planes, inside, 1)
      conv_norm(f'{p}.conv2', f'{p}.bn2', planes, planes, 3)
      conv_norm(f'{p}.conv3', f'{p}.bn3', 4 * planes, planes, 1, scale=0.5 * count ** -0.5)
      if j == 0:
        conv_norm(f'{p}.downsample.0', f'{p}.downsample.1', 4 * planes, inside, 1, scale=0.7)
      inside = 4 * planes
  p = 'visual.attnpool'
  out[f'{p}.positional_embedding'] = draw((dims.image_size // 32) ** 2 + 1, inside, std=0.5)
  for name, rows, gain in (('q_proj', inside, 1.5), ('k_proj', inside, 1.5), ('v_proj', inside, 1),
                           ('c_proj', dims.embed, 1)):
    out[f'{p}.{name}.weight'] = draw(rows, inside, std=gain * inside ** -0.5)
    out[f'{p}.{name}.bias'] = draw(rows, std=0.1)
  text(out, dims, draw)
  return out


def text(out, dims, draw):
  """Adds the arrays of a text tower to `out`."""
  w = dims.text_width
  out['token_embedding.weight'] = draw(dims.vocab, w, std=0.5)
  out['positional_embedding'] = draw(dims.context, w, std=0.3)
  for i in range(dims.text_layers):
    p = f'transformer.resblocks.{i}'
    for name, rows, columns in (('attn.in_proj_', 3 * w, w), ('attn.out_proj.', w, w),
                                ('mlp.c_fc.', 4 * w, w), ('mlp.c_proj.', w, 4 * w)):
      out[f'{p}.{name}weight'], out[f'{p}.{name}bias'] = draw(rows, columns, std=columns ** -0.5), draw(rows, std=0.02)
    for name in ('ln_1', 'ln_2'):
      out[f'{p}.{name}.weight'], out[f'{p}.{name}.bias'] = 1 + draw(w, std=0.1), draw(w, std=0.1)
  out['ln_final.weight'], out['ln_final.bias'] = 1 + draw(w, std=0.1), draw(w, std=0.1)
  out['text_projection'] = draw(w, dims.embed, std=w ** -0.5)
  out['logit_scale'] = np.asarray(np.log(100.0), np.float32)


def images(size, rng, rows=2):
  """Returns images [B, R, R, 3]."""
  return rng.standard_normal((rows, size, size, 3)).astype(np.float32)


class Official:
  """The released encoders with arrays under OpenAI's names."""

  def __init__(self, arrays, dims):
    import torch
    self.torch, self.f, self.dims = torch, torch.nn.functional, dims
    self.w = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}

  def conv_norm(self, x, conv, norm, stride=1):
    kernel = self.w[f'{conv}.weight']
    x = self.f.conv2d(x, kernel, stride=stride, padding=1 if kernel.shape[-1] == 3 else 0)
    return self.f.batch_norm(x, self.w[f'{norm}.running_mean'], self.w[f'{norm}.running_var'],
                             self.w[f'{norm}.weight'], self.w[f'{norm}.bias'], training=False, eps=1e-5)

  def bottleneck(self, x, p, stride):
    identity = x
    out = self.f.relu(self.conv_norm(x, f'{p}.conv1', f'{p}.bn1'))
    out = self.f.relu(self.conv_norm(out, f'{p}.conv2', f'{p}.bn2'))
    if stride > 1:
      out = self.f.avg_pool2d(out, stride)
    out = self.conv_norm(out, f'{p}.conv3', f'{p}.bn3')
    if f'{p}.downsample.0.weight' in self.w:
      identity = self.conv_norm(self.f.avg_pool2d(x, stride), f'{p}.downsample.0', f'{p}.downsample.1')
    return self.f.relu(out + identity)

  def maps(self, pixels):
    """Returns the feature maps of layer1 to layer4, [B, C, H, W] each."""
    x, out = self.torch.from_numpy(pixels).permute(0, 3, 1, 2), []
    for i, stride in ((1, 2), (2, 1), (3, 1)):
      x = self.f.relu(self.conv_norm(x, f'visual.conv{i}', f'visual.bn{i}', stride))
    x = self.f.avg_pool2d(x, 2)
    for i, count in enumerate(self.dims.stages):
      for j in range(count):
        x = self.bottleneck(x, f'visual.layer{i + 1}.{j}', 2 if i > 0 and j == 0 else 1)
      out.append(x)
    return out

  def pool_tokens(self, x, mode):
    """Returns the input of the pool [1 + HW, B, C], with its positions resized by torch's `mode`."""
    x = x.flatten(2).permute(2, 0, 1)
    x = self.torch.cat([x.mean(dim=0, keepdim=True), x])
    table = self.w['visual.attnpool.positional_embedding']
    side, new_side = round((len(table) - 1) ** 0.5), round((len(x) - 1) ** 0.5)
    if side != new_side:
      grid = table[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
      antialias = mode == 'bicubic_antialias'
      grid = self.f.interpolate(grid, (new_side, new_side), mode=mode.removesuffix('_antialias'), antialias=antialias)
      table = self.torch.cat([table[:1], grid.flatten(2)[0].T])
    return x + table[:, None]

  def pool(self, x, mode='bilinear'):
    """Returns the output of OpenAI's pool for every token, [B, 1 + HW, E]; row 0 is CLIP's image embedding."""
    x, w, p = self.pool_tokens(x, mode), self.w, 'visual.attnpool'
    biases = self.torch.cat([w[f'{p}.{name}.bias'] for name in ('q_proj', 'k_proj', 'v_proj')])
    x, _ = self.f.multi_head_attention_forward(
        x, x, x, x.shape[-1], self.dims.heads, None, biases, None, None, False, 0.0, w[f'{p}.c_proj.weight'],
        w[f'{p}.c_proj.bias'], training=False, need_weights=False, use_separate_proj_weight=True,
        q_proj_weight=w[f'{p}.q_proj.weight'], k_proj_weight=w[f'{p}.k_proj.weight'],
        v_proj_weight=w[f'{p}.v_proj.weight'])
    return x.transpose(0, 1)

  def surgery(self, x, mode='bilinear'):
    """Returns the new and the original path of CLIP-AD, [B, 1 + HW, E] each."""
    x, w, p = self.pool_tokens(x, mode).transpose(0, 1), self.w, 'visual.attnpool'
    b, n, c = x.shape
    heads = self.dims.heads
    qkv = self.f.linear(x, self.torch.cat([w[f'{p}.v_proj.weight']] * 3), self.torch.cat([w[f'{p}.v_proj.bias']] * 3))
    q, k, v = qkv.reshape(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
    scale = (c // heads) ** -0.5
    attn_ori = ((q @ k.transpose(-2, -1)) * scale).softmax(dim=-1)
    k = v / (v.norm(p=2, dim=-1, keepdim=True) + 1e-6)
    attn = ((k @ k.transpose(-2, -1)) * (scale * 8)).softmax(dim=-1)
    join = lambda x: self.f.linear(x.transpose(1, 2).reshape(b, n, c), w[f'{p}.c_proj.weight'], w[f'{p}.c_proj.bias'])
    return join(attn @ v), join(attn_ori @ v)


def record(dims=SMALL):
  """Returns everything that tests compare, as tensors."""
  official = Official(weights(dims, np.random.RandomState(0)), dims)
  maps = official.maps(images(SIZE, np.random.RandomState(1)))
  new, original = official.surgery(maps[-1])
  tokens = {f'map{i}': x.flatten(2).transpose(1, 2) for i, x in enumerate(maps, 1)}
  return tokens | {'pool': official.pool(maps[-1]), 'bicubic': official.pool(maps[-1], 'bicubic')[:, 0],
                   'antialias': official.pool(maps[-1], 'bicubic_antialias')[:, 0],
                   'surgery_new': new, 'surgery_original': original}


def main():
  import torch
  with torch.no_grad():
    np.savez_compressed(HERE / 'resnet.npz', **{key: value.numpy() for key, value in record().items()})


if __name__ == '__main__':
  main()
