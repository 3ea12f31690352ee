"""CLIP's ResNets: a stem of three convolutions, bottlenecks with average pooling for strides, and an attention pool.

The tokens of block l = 1..4 are the positions of the l-th stage's feature map in row-major order, which are 4, 8, 16
and 32 pixels wide.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from zsad_jax.clip import attention, block, vit
from zsad_jax.clip.feature_spec import Features, FeatureSpec

CLS = ('proj', '')
READ = 'none'
BLOCKS = 4
STRIDE = 32  # pixels per side of one position of the last feature map
EXPANSION = 4
POOLS = ('pool', 'pool_vv', 'pool_cosine')
POINTS = ('block', *POOLS)
COSINE_GAIN = 8  # scale of the cosines; cancels the 1 / sqrt(d) of attention for CLIP's heads of width 64


def channels(width: int, block: int) -> int:
  """Returns the width of the feature map after stage `block`, for a stem of `width`."""
  return EXPANSION * width * 2 ** (block - 1)


def stride(block: int) -> int:
  """Returns the pixels per side of one position of the feature map after stage `block`."""
  return 2 ** (block + 1)


def validate(spec: FeatureSpec) -> None:
  """Raises ValueError with key, value and allowed range if a CLIP ResNet does not support `spec`."""
  if spec.image_size < STRIDE or spec.image_size % STRIDE:
    raise ValueError(f'spec.image_size={spec.image_size} is not a positive multiple of {STRIDE}, the stride of a '
                     'ResNet')
  if spec.cls not in CLS:
    raise ValueError(f"spec.cls={spec.cls!r} is not one of proj, ''; a ResNet has no ln_post, and its attention pool "
                     'projects its class feature')
  vit.validate_choice('spec.positions', spec.positions, vit.POSITIONS)
  if spec.sides:
    raise ValueError(f'spec.sides={[side.name for side in spec.sides]} is not supported: a ResNet has no side streams; '
                     f'use taps at the points {" and ".join(POOLS[1:])}')
  if spec.windows:
    raise ValueError(f'spec.windows={spec.windows} is not supported: a ResNet cannot drop patches')
  names = [tap.name for tap in spec.taps]
  if len(set(names)) < len(names):
    raise ValueError(f'spec.taps has a tap twice: {", ".join(names)}')
  for i, tap in enumerate(spec.taps):
    _validate_tap(f'spec.taps[{i}]', tap, tap.read or spec.read)


def _validate_tap(key, tap, read):
  if tap.stream != 'clip':
    raise ValueError(f'{key}.stream={tap.stream!r} is not clip, the only stream of a ResNet')
  if not 1 <= tap.block <= BLOCKS:
    raise ValueError(f'{key}.block={tap.block} must be in [1, {BLOCKS}], the stages of a ResNet')
  vit.validate_choice(f'{key}.point', tap.point, POINTS)
  if tap.point in POOLS and tap.block != BLOCKS:
    raise ValueError(f'{key}.point={tap.point!r} exists at block {BLOCKS} alone, not at {tap.block}')
  vit.validate_choice(f'{key}.token', tap.token, vit.TOKENS)
  if tap.token == 'cls' and tap.point not in POOLS:
    raise ValueError(f"{key}.token='cls' does not exist at {tap.point!r}; a ResNet has a class token at "
                     f'{", ".join(POOLS)} alone')
  if read != READ:
    raise ValueError(f'{key} has read={read!r}; taps of a ResNet support read={READ!r} alone')


def _torch_uniform(fan_in):
  """Returns torch's default initialiser, uniform within fan_in^-0.5, which CLIP keeps for these layers."""
  bound = fan_in ** -0.5
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv(nn.Module):
  """A convolution without bias and a batch norm with fixed running statistics (eps 1e-5)."""
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
  """Returns x [B, H, W, C] averaged over squares of 2 x 2."""
  return nn.avg_pool(x, (2, 2), (2, 2))


class Bottleneck(nn.Module):
  """Convolutions of 1 x 1, 3 x 3 and 1 x 1 plus a shortcut, as a scan body.

  A stride of 2 is an average pool in both branches. Only the first bottleneck of a stage has weights in its shortcut.
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
  """The bottlenecks of one resolution: the first changes the shape, the others are scanned over stacked weights."""
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
  """Attention over the last feature map and its mean, the class token, then a projection (CLIP, sec. 2.4)."""
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

  def tokens(self, x: jax.Array, positions: str) -> jax.Array:
    """Returns the tokens [B, 1 + G^2, D] of x [B, G, G, D], its mean first, with positional embeddings added."""
    table = vit.resample_positions(self.positional_embedding, x.shape[1], positions)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    return jnp.concatenate([x.mean(1, keepdims=True), x], 1) + table[None].astype(x.dtype)

  def read(self, tokens: jax.Array, point: str, rows: slice = slice(None)) -> jax.Array:
    """Returns the output of the pool [B, rows, E] at one of POOLS.

    'pool' is CLIP's own attention. 'pool_vv' uses the values as queries and keys, and 'pool_cosine' their cosines with
    a larger scale: the original and the new path of CLIP-AD's pool (arXiv 2311.00453, official code).

    Args:
      tokens: [B, 1 + G^2, D], from `tokens`.
      point: one of POOLS.
      rows: tokens that serve as queries.
    """
    split = lambda x: x.reshape(*x.shape[:2], self.heads, self.width // self.heads)
    v = split(self.v_proj(tokens))
    if point == 'pool':
      q, k = split(self.q_proj(tokens[:, rows])), split(self.k_proj(tokens))
    elif point == 'pool_vv':
      q, k = v[:, rows], v
    else:
      k = v / (jnp.linalg.norm(v.astype(jnp.float32), axis=-1, keepdims=True) + 1e-6).astype(v.dtype)
      q = COSINE_GAIN * k[:, rows]
    out = attention.attend(q, k, v)
    return self.c_proj(out.reshape(*out.shape[:2], self.width)).astype(tokens.dtype)


class ResNetTower(nn.Module):
  """CLIP's ResNet (arXiv 2103.00020, sec. 2.4), which reads the features of `spec`."""
  image_size: int
  width: int
  stages: tuple[int, ...]
  heads: int
  embed_dim: int
  spec: FeatureSpec

  def setup(self):
    self.conv1, self.conv2, self.conv3 = Conv(self.width // 2, 3, 2), Conv(self.width // 2, 3), Conv(self.width, 3)
    self.layer1, self.layer2, self.layer3, self.layer4 = (
      Stage(self.width * 2 ** i, count, 2 if i else 1) for i, count in enumerate(self.stages))
    self.attnpool = AttentionPool(self.image_size // STRIDE, channels(self.width, BLOCKS), self.heads, self.embed_dim)

  def __call__(self, images: jax.Array) -> Features:
    """Returns Features of normalised images [B, R, R, 3]; see Clip.image."""
    validate(self.spec)
    size = self.spec.image_size
    if images.shape[1:] != (size, size, 3):
      raise ValueError(f'images have shape {images.shape}; spec.image_size={size} needs [B, {size}, {size}, 3]')
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
    return Features(pooled['pool'][:, 0] if self.spec.cls else None, taps)

  def _maps(self, images):
    """Returns the feature maps of the four stages, [B, H, W, C] each."""
    x, maps = images.astype(self.attnpool.positional_embedding.dtype), []
    for conv in (self.conv1, self.conv2, self.conv3):
      x = nn.relu(conv(x))
    x = _halve(x)
    for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
      x = stage(x)
      maps.append(x)
    return maps

  def _pooled(self, x):
    """Returns {point: [B, 1 + N, E]} of the pool's points that are read, [B, 1, E] if only the class token is."""
    points = {tap.point for tap in self.spec.taps} | ({'pool'} if self.spec.cls else set())
    patches = {tap.point for tap in self.spec.taps if tap.token == 'patches'}
    tokens = self.attnpool.tokens(x, self.spec.positions)
    return {point: self.attnpool.read(tokens, point, slice(None) if point in patches else slice(1))
            for point in POOLS if point in points}
