"""CLIP's ResNets: a stem of three convolutions, bottlenecks that pool before they stride, attention in place of a mean.

Tokens of block l = 1..4 are the places of the l-th stage's feature map, 4, 8, 16 and 32 pixels a side, row by row.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from zsad_jax.clip import attention, block, vit
from zsad_jax.clip import feature_spec as spec_lib

CLS = ('proj', '')
READ = 'none'
BLOCKS = 4
STRIDE = 32  # pixels a side of one place of the last map
EXPANSION = 4
POOLS = ('pool', 'pool_vv', 'pool_cosine')
POINTS = ('block', *POOLS)
COSINE_GAIN = 8  # of cosines over sqrt(head width): 1 for CLIP's heads of 64


def channels(width, block):
  """Returns the width of the feature map that stage `block` gives, for a stem of `width`."""
  return EXPANSION * width * 2 ** (block - 1)


def stride(block):
  """Returns the pixels a side of one place of the feature map that stage `block` gives."""
  return 2 ** (block + 1)


def validate(spec):
  """Raises ValueError where a CLIP ResNet cannot give what `spec` asks for."""
  if spec.image_size < STRIDE or spec.image_size % STRIDE:
    raise ValueError(f'spec.image_size {spec.image_size} is not a positive multiple of {STRIDE}, the stride of a '
                     'ResNet')
  if spec.cls not in CLS:
    raise ValueError(f'spec.cls {spec.cls!r} is not one of {CLS}: a ResNet has no ln_post, and the projection of its '
                     'attention pool gives its class feature')
  if spec.positions not in vit.POSITIONS:
    raise ValueError(f'spec.positions {spec.positions!r} is not one of {vit.POSITIONS}')
  if spec.sides:
    raise ValueError(f'spec.sides {[side.name for side in spec.sides]}: a ResNet has no side streams; its surgery is '
                     f'read at the tap points {POOLS[1:]}')
  if spec.windows:
    raise ValueError(f'spec.windows {spec.windows}: a ResNet cannot leave out patches')
  names = [tap.name for tap in spec.taps]
  if len(set(names)) < len(names):
    raise ValueError(f'spec.taps names a tap twice: {names}')
  for i, tap in enumerate(spec.taps):
    _validate_tap(f'spec.taps[{i}]', tap, tap.read or spec.read)


def _validate_tap(at, tap, read):
  if tap.stream != 'clip':
    raise ValueError(f'{at}.stream {tap.stream!r} is not clip, the one stream of a ResNet')
  if not 1 <= tap.block <= BLOCKS:
    raise ValueError(f'{at}.block {tap.block} is not in 1..{BLOCKS}, the stages of a ResNet')
  if tap.point not in POINTS:
    raise ValueError(f'{at}.point {tap.point!r} is not one of {POINTS}, the places to read a ResNet at')
  if tap.point in POOLS and tap.block != BLOCKS:
    raise ValueError(f'{at}.point {tap.point!r} is at block {BLOCKS} alone, not {tap.block}')
  if tap.token not in vit.TOKENS:
    raise ValueError(f'{at}.token {tap.token!r} is not one of {vit.TOKENS}')
  if tap.token == 'cls' and tap.point not in POOLS:
    raise ValueError(f'{at}.token {tap.token!r}: a ResNet has a class token at {POOLS} alone, not at {tap.point!r}')
  if read != READ:
    raise ValueError(f'{at}: read {read!r} is not {READ!r}: nothing follows the taps of a ResNet')


def _torch_uniform(fan_in):
  """Returns the initialiser of torch's layers, uniform within fan_in^-0.5, which CLIP leaves as it is."""
  bound = fan_in ** -0.5
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv(nn.Module):
  """A convolution without bias, then a batch norm by its running statistics (eps 1e-5), which nothing here updates."""
  features: int
  size: int = 1
  stride: int = 1
  gain: float = 1.0

  @nn.compact
  def __call__(self, x):
    fan_in = self.size ** 2 * x.shape[-1]
    kernel = self.param('kernel', _torch_uniform(fan_in), (self.size, self.size, x.shape[-1], self.features))
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    values = {'scale': nn.initializers.constant(self.gain), 'bias': zeros, 'mean': zeros, 'var': ones}
    scale, bias, mean, var = (self.param(name, init, (self.features,)).astype(jnp.float32)
                              for name, init in values.items())
    pad = self.size // 2
    y = jax.lax.conv_general_dilated(x.astype(kernel.dtype), kernel, (self.stride,) * 2, ((pad, pad),) * 2,
                                     dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    factor = scale * jax.lax.rsqrt(var + 1e-5)
    row = (1, 1, 1, -1)
    y = y.astype(jnp.float32) * factor.reshape(row) + (bias - mean * factor).reshape(row)
    return y.astype(x.dtype)


def _halve(x):
  """Returns x [B, H, W, C] with every 2 x 2 square averaged."""
  return nn.avg_pool(x, (2, 2), (2, 2))


class Bottleneck(nn.Module):
  """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut, as a scan body.

  A stride of 2 is an average pool on either way. Only the first bottleneck of a stage has a shortcut with weights.
  """
  planes: int
  stride: int = 1
  first: bool = False

  def setup(self):
    self.conv1, self.conv2 = Conv(self.planes), Conv(self.planes, 3)
    self.conv3 = Conv(EXPANSION * self.planes, gain=0.0)
    if self.first:
      self.downsample = Conv(EXPANSION * self.planes)

  def __call__(self, x):
    shrink = _halve if self.stride == 2 else lambda x: x
    y = nn.relu(self.conv1(x))
    y = shrink(nn.relu(self.conv2(y)))
    shortcut = self.downsample(shrink(x)) if self.first else x
    return nn.relu(self.conv3(y) + shortcut), None


class Stage(nn.Module):
  """The bottlenecks of one resolution: the first changes the shape, the others are a scan over stacked weights."""
  planes: int
  count: int
  stride: int

  def setup(self):
    self.first = Bottleneck(self.planes, self.stride, True)
    if self.count > 1:
      self.rest = nn.scan(Bottleneck, variable_axes={'params': 0}, split_rngs={'params': True},
                          length=self.count - 1)(self.planes)

  def __call__(self, x):
    x, _ = self.first(x)
    return self.rest(x)[0] if self.count > 1 else x


class AttentionPool(nn.Module):
  """Attention over the last map and its mean, which is the class token, then a projection (CLIP, sec. 2.4)."""
  grid: int
  width: int
  heads: int
  embed_dim: int

  def setup(self):
    std = self.width ** -0.5
    self.positional_embedding = self.param('positional_embedding', nn.initializers.normal(std),
                                           (self.grid ** 2 + 1, self.width))
    dense = lambda features: block.Dense(features, kernel_init=nn.initializers.normal(std),
                                      bias_init=_torch_uniform(self.width))
    self.q_proj, self.k_proj, self.v_proj = dense(self.width), dense(self.width), dense(self.width)
    self.c_proj = dense(self.embed_dim)

  def tokens(self, x, positions):
    """Returns the mean and then the places of x [B, G, G, D], with their positions, [B, 1 + G^2, D]."""
    table = vit.resample_positions(self.positional_embedding, x.shape[1], positions)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    return jnp.concatenate([x.mean(1, keepdims=True), x], 1) + table[None].astype(x.dtype)

  def read(self, tokens, point, only=slice(None)):
    """Returns what the pool gives at one of POOLS for the tokens `only`, [B, ?, E].

    'pool' is CLIP's own. 'pool_vv' takes the values as queries and keys, and 'pool_cosine' these at unit length and
    with a larger scale: the original and the new path of CLIP-AD's pool (arXiv 2311.00453, official code).
    """
    split = lambda x: x.reshape(*x.shape[:2], self.heads, self.width // self.heads)
    v = split(self.v_proj(tokens))
    if point == 'pool':
      q, k = split(self.q_proj(tokens[:, only])), split(self.k_proj(tokens))
    elif point == 'pool_vv':
      q, k = v[:, only], v
    else:
      k = v / (jnp.linalg.norm(v.astype(jnp.float32), axis=-1, keepdims=True) + 1e-6).astype(v.dtype)
      q = COSINE_GAIN * k[:, only]
    out = attention.attend(q, k, v)
    return self.c_proj(out.reshape(*out.shape[:2], self.width)).astype(tokens.dtype)


class ResNetTower(nn.Module):
  """The image half of a CLIP ResNet (arXiv 2103.00020, sec. 2.4), reading what `spec` says."""
  image_size: int
  width: int
  stages: tuple[int, ...]
  heads: int
  embed_dim: int
  spec: spec_lib.FeatureSpec

  def setup(self):
    self.conv1, self.conv2, self.conv3 = Conv(self.width // 2, 3, 2), Conv(self.width // 2, 3), Conv(self.width, 3)
    self.layer1, self.layer2, self.layer3, self.layer4 = (
      Stage(self.width * 2 ** i, count, 2 if i else 1) for i, count in enumerate(self.stages))
    self.attnpool = AttentionPool(self.image_size // STRIDE, channels(self.width, BLOCKS), self.heads, self.embed_dim)

  def __call__(self, images):
    """Returns Features of normalised images [B, R, R, 3]; see Clip.image."""
    validate(self.spec)
    size = self.spec.image_size
    if images.shape[1:] != (size, size, 3):
      raise ValueError(f'images {images.shape} are not [B, {size}, {size}, 3], the size in their FeatureSpec')
    maps = self._maps(images)
    pooled = self._pooled(maps[-1])
    taps = {}
    for tap in self.spec.taps:
      if tap.point in POOLS:
        rows = pooled[tap.point]
        taps[tap.name] = rows[:, :1] if tap.token == 'cls' else rows[:, 1:]
      else:
        x = maps[tap.block - 1]
        taps[tap.name] = x.reshape(x.shape[0], -1, x.shape[-1])
    return spec_lib.Features(pooled['pool'][:, 0] if self.spec.cls else None, taps)

  def _maps(self, images):
    """Returns the feature maps of all stages, [B, H, W, C] each."""
    x, maps = images.astype(self.attnpool.positional_embedding.dtype), []
    for conv in (self.conv1, self.conv2, self.conv3):
      x = nn.relu(conv(x))
    x = _halve(x)
    for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
      x = stage(x)
      maps.append(x)
    return maps

  def _pooled(self, x):
    """Returns {point: [B, 1 + N, E]} of what is read of the pool, [B, 1, E] where only its class token is."""
    points = {tap.point for tap in self.spec.taps} | ({'pool'} if self.spec.cls else set())
    patches = {tap.point for tap in self.spec.taps if tap.token == 'patches'}
    tokens = self.attnpool.tokens(x, self.spec.positions)
    return {point: self.attnpool.read(tokens, point, slice(None) if point in patches else slice(1))
            for point in POOLS if point in points}
