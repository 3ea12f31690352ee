"""CLIP's vision transformer with side streams and taps."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.clip import attention, block
from zsad_jax.clip.feature_spec import Features, FeatureSpec, SideStream, Tap

POSITIONS = ('bilinear', 'bicubic_antialias', 'bicubic')
CLS = ('proj', 'ln_post_proj', '')
READ = ('ln_post_proj', 'proj', 'ln_post', 'none')
POINTS = ('block', 'attention')
TOKENS = ('patches', 'cls')
# Window tokens per pass. A CPU needs them to fit its caches; an accelerator needs many to be busy, and these take 2 GB
# in the widest tower.
_WINDOW_TOKENS_CPU = 1000
_WINDOW_TOKENS = 2 ** 15


def resample_positions(table: jax.Array, grid: int, method: str = 'bilinear') -> jax.Array:
  """Returns the positional table [1 + grid^2, D] resampled to another grid; the class token's row stays unchanged.

  Args:
    table: [1 + g^2, D], the pretrained table.
    grid: patches per side of the result.
    method: one of POSITIONS, all with half-pixel centres: 'bilinear' (official AnomalyCLIP), 'bicubic_antialias' with
      Keys' a = -0.5 (open_clip), 'bicubic' with a = -0.75 and no antialiasing (Hugging Face, torch).

  Raises:
    ValueError: an unknown method.
  """
  if method not in POSITIONS:
    raise ValueError(f'positions={method!r} is not one of {", ".join(POSITIONS)}')
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
    weights = _torch_bicubic(side, grid)
    patches = jnp.einsum('gi,hj,ijd->ghd', weights, weights, patches, precision='highest')
  return jnp.concatenate([table[:1], patches.reshape(grid * grid, -1)]).astype(table.dtype)


def _torch_bicubic(size, new):
  """Returns the weights [new, size] of torch's bicubic interpolation along one axis, with borders repeated."""
  centre = (np.arange(new) + 0.5) * size / new - 0.5
  taps = np.floor(centre).astype(int)[:, None] + np.arange(-1, 3)[None]
  t = np.abs(centre[:, None] - taps)
  a = -0.75
  near = ((a + 2) * t - (a + 3)) * t * t + 1
  far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
  weights = np.zeros((new, size), np.float32)
  np.add.at(weights, (np.arange(new)[:, None], taps.clip(0, size - 1)), np.where(t <= 1, near, far))
  return weights


def window_table(grid: int, side: int) -> np.ndarray:
  """Returns patch indices [n, side^2] of all windows of side x side patches, row-major with stride 1.

  n = (grid - side + 1)^2. Index 0 is the first patch, not the class token.
  """
  corner = np.arange(grid - side + 1)
  first = (corner[:, None] * grid + corner[None]).reshape(-1)
  inside = (np.arange(side)[:, None] * grid + np.arange(side)[None]).reshape(-1)
  return first[:, None] + inside[None]


def validate(spec: FeatureSpec, *, patch: int, layers: int) -> None:
  """Raises ValueError with key, value and allowed range if a vision transformer does not support `spec`.

  Args:
    spec: the spec to check.
    patch: patch size of the tower, in pixels.
    layers: number of blocks of the tower.
  """
  size = spec.image_size
  if size < patch or size % patch:
    lower = size // patch * patch
    raise ValueError(f'spec.image_size={size} is not a positive multiple of the patch size {patch}; use '
                     f'{f"{lower} or {lower + patch}" if lower > 0 else patch}')
  for key, allowed in (('cls', CLS), ('read', READ), ('positions', POSITIONS)):
    validate_choice(f'spec.{key}', getattr(spec, key), allowed)
  _validate_sides(spec.sides, layers)
  if len(set(spec.taps)) < len(spec.taps):
    raise ValueError(f'spec.taps has a tap twice: {", ".join(tap.name for tap in spec.taps)}')
  for i, tap in enumerate(spec.taps):
    validate_choice(f'spec.taps[{i}].stream', tap.stream, ('clip', *(side.name for side in spec.sides)))
    _validate_block(f'spec.taps[{i}].block', tap.block, layers)
    for key, choices in (('point', POINTS), ('token', TOKENS), ('read', ('', *READ))):
      validate_choice(f'spec.taps[{i}].{key}', getattr(tap, key), choices)
  if len(set(spec.windows)) < len(spec.windows):
    raise ValueError(f'spec.windows={spec.windows} has a window twice')
  for i, side in enumerate(spec.windows):
    if not 1 <= side <= size // patch:
      raise ValueError(f'spec.windows[{i}]={side} must be in [1, {size // patch}], the patches per side of the image')


def _validate_sides(sides, layers):
  names = [side.name for side in sides]
  for i, side in enumerate(sides):
    if side.name == 'clip' or names.count(side.name) > 1:
      raise ValueError(f'spec.sides[{i}].name={side.name!r} is taken; names of side streams are unique, and clip is '
                       "CLIP's own stream")
    validate_choice(f'spec.sides[{i}].mode', side.mode, attention.MODES)
    _validate_block(f'spec.sides[{i}].first_block', side.first_block, layers)
    if side.reset_every < 0:
      raise ValueError(f'spec.sides[{i}].reset_every={side.reset_every} is negative; 0 means never')


def validate_choice(key: str, value: str, allowed: Sequence[str]) -> None:
  """Raises ValueError naming `key` unless `value` is one of `allowed`."""
  if value not in allowed:
    raise ValueError(f'{key}={value!r} is not one of {", ".join(one or repr(one) for one in allowed)}')


def _validate_block(key, block_number, layers):
  if not 1 <= block_number <= layers:
    raise ValueError(f'{key}={block_number} must be in [1, {layers}], the blocks of this tower')


def source(spec: FeatureSpec, tap: Tap) -> tuple[str, str, str]:
  """Returns the (stream, point, token) that a tap reads. Before its first block, a side is CLIP's own stream."""
  first_blocks = {side.name: side.first_block for side in spec.sides}
  return ('clip' if tap.block < first_blocks.get(tap.stream, 0) else tap.stream, tap.point, tap.token)


def _select(x, token):
  """Returns the part of x [B, N, D] that a tap reads: all tokens, or the class token, which is the first."""
  return x[:, :1] if token == 'cls' else x


class Layer(block.Block):
  """Scan body of the image tower.

  Attributes:
    sides: the side streams to compute.
    sources: the (stream, point, token) that are read. Each has a buffer with a slot for every block at which it is
      read, and a last slot that all other blocks write to.
    read_last_patches: whether CLIP's own patches are read after the last block. Otherwise the last block updates the
      class token alone.
  """
  sides: tuple[SideStream, ...] = ()
  sources: tuple[tuple[str, str, str], ...] = ()
  read_last_patches: bool = True

  def __call__(self, carry, index, slots):
    """Takes carry: x [B, N, D], {side: [B, N, D]}, {source: [slots, B, N, D]}; index: number of the block, from 1."""
    x, sides, buffers = carry
    q, k, v = self.qkv(x)
    if self.read_last_patches:
      delta, after = self._step_clip(x, q, k, v)
    else:
      delta, after = nn.cond(index < self.layers, Layer._step_clip, Layer._step_class, self, x, q, k, v)
    tokens = {('clip', 'attention'): x + delta, ('clip', 'block'): after}
    if self.sides:
      first = min(side.first_block for side in self.sides)
      sides, middles = nn.cond(index >= first, Layer._step_sides, lambda _, sides, *rest: (sides, sides),
                               self, sides, x, delta, (q, k, v), index)
      tokens |= {(name, 'block'): y for name, y in sides.items()}
      tokens |= {(name, 'attention'): y for name, y in middles.items()}
    buffers = {key: jax.lax.dynamic_update_index_in_dim(buffers[key], _select(tokens[key[:2]], key[2]), slots[key], 0)
               for key in self.sources}
    return (after, sides, buffers), None

  def _step_clip(self, x, q, k, v):
    """Returns the attention output of CLIP's own stream, and the stream after this block."""
    delta = self.attention(x, q, k, v)
    return delta, self.feed_forward(x + delta)

  def _step_class(self, x, q, k, v):
    """Returns the same with the class token alone updated; the patches stay unchanged."""
    delta, after = self._step_clip(x[:, :1], q[:, :1], k, v)
    return jnp.zeros_like(x).at[:, :1].set(delta), x.at[:, :1].set(after)

  def _step_sides(self, sides, x, delta, qkv, index):
    """Returns the side streams after block `index`, and before their feed-forward network."""
    deltas = {'qk': delta}
    for mode in sorted({side.mode for side in self.sides} - {'qk'}):
      deltas[mode] = self.attention(x, *qkv, mode)
    after, middles = {}, {}
    for side in self.sides:
      since = index - side.first_block
      restart = since % side.reset_every == 0 if side.reset_every else since == 0
      y = jnp.where(restart, x if side.residual_base else jnp.zeros_like(x), sides[side.name])
      if side.ffn:
        y = jnp.where(since > 0, x, y)
      y = jnp.where(since >= 0, y + deltas[side.mode], sides[side.name])
      middles[side.name] = y
      after[side.name] = jnp.where(since > 0, self.feed_forward(y), y) if side.ffn else y
    return after, middles


class PatchEmbed(nn.Module):
  """CLIP's strided convolution as one product: non-overlapping patches times a [P, P, 3, D] kernel, without bias."""
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
  """CLIP's vision transformer (arXiv 2103.00020, sec. 2.4), which reads the features of `spec`."""
  image_size: int
  patch: int
  width: int
  layers: int
  heads: int
  embed_dim: int
  activation: str
  spec: FeatureSpec
  unroll: bool = False

  def setup(self):
    normal = nn.initializers.normal(self.width ** -0.5)
    tokens = 1 + (self.image_size // self.patch) ** 2
    self.class_embedding = self.param('class_embedding', normal, (self.width,))
    self.positional_embedding = self.param('positional_embedding', normal, (tokens, self.width))
    self.patch_embed = PatchEmbed(self.patch, self.width)
    self.ln_pre = block.LayerNorm()
    self.blocks = block.stack(Layer, self.layers, in_axes=(0, 0), unroll=self.unroll)(
        self.width, self.heads, self.layers, self.activation, self._sides(), tuple(self._read_blocks()),
        read_last_patches=self._reads_last_patches())
    self.ln_post = block.LayerNorm()
    self.proj = block.Projection(self.embed_dim, kernel_init=normal)

  def _read_blocks(self):
    """Returns {(stream, point, token): blocks at which it is read, ascending}."""
    blocks = {}
    for tap in self.spec.taps:
      blocks.setdefault(source(self.spec, tap), set()).add(tap.block)
    return {key: sorted(numbers) for key, numbers in blocks.items()}

  def _sides(self):
    """Returns the side streams that some tap reads."""
    streams = {stream for stream, _, _ in self._read_blocks()}
    return tuple(side for side in self.spec.sides if side.name in streams)

  def _reads_last_patches(self):
    """Returns whether a tap, or a side stream of mode 'qk', needs CLIP's own patches of the last block."""
    streams = {source(self.spec, tap)[0] for tap in self.spec.taps
               if tap.block == self.layers and tap.token == 'patches'}
    modes = {side.mode for side in self._sides()}
    return 'clip' in streams or 'qk' in modes

  def embed(self, images: jax.Array) -> jax.Array:
    """Returns x^0 [B, N + 1, D], the tokens of images [B, R, R, 3] that enter block 1."""
    patches = self.patch_embed(images).astype(self.class_embedding.dtype)
    cls = jnp.broadcast_to(self.class_embedding, (images.shape[0], 1, self.width))
    grid = images.shape[1] // self.patch
    table = resample_positions(self.positional_embedding, grid, self.spec.positions)
    return self.ln_pre(jnp.concatenate([cls, patches], 1) + table[None])

  def read(self, x: jax.Array, mode: str) -> jax.Array:
    """Returns tokens x [..., D] after the read-out `mode`, one of READ: ln_post, the projection, both or neither."""
    x = self.ln_post(x) if mode.startswith('ln_post') else x
    return self.proj(x).astype(x.dtype) if mode.endswith('proj') else x

  def __call__(self, images: jax.Array) -> Features:
    """Returns Features of normalised images [B, R, R, 3]; see Clip.image."""
    validate(self.spec, patch=self.patch, layers=self.layers)
    size = self.spec.image_size
    if images.shape[1:] != (size, size, 3):
      raise ValueError(f'images have shape {images.shape}; spec.image_size={size} needs [B, {size}, {size}, 3]')
    start = self.embed(images)
    x, buffers = self._run(start)
    taps, read_blocks = {}, self._read_blocks()
    for tap in self.spec.taps:
      key = source(self.spec, tap)
      tokens = buffers[key][read_blocks[key].index(tap.block)]
      tokens = tokens if tap.token == 'cls' else tokens[:, 1:]
      taps[tap.name] = self.read(tokens, tap.read or self.spec.read)
    cls = self.read(x[:, 0], self.spec.cls) if self.spec.cls else None
    return Features(cls, taps, self._windows(start))

  def _run(self, x):
    """Returns x [B, M, D] after all blocks, and the buffers {(stream, point, token): [slots, B, M or 1, D]}."""
    read_blocks = self._read_blocks()
    index = np.arange(1, self.layers + 1)
    slots = {key: jnp.array([blocks.index(b) if b in blocks else len(blocks) for b in index])
             for key, blocks in read_blocks.items()}
    buffers = {key: jnp.zeros((len(blocks) + 1, *_select(x, key[2]).shape), x.dtype)
               for key, blocks in read_blocks.items()}
    sides = {side.name: jnp.zeros_like(x) for side in self._sides()}
    (x, _, buffers), _ = self.blocks((x, sides, buffers), jnp.array(index), slots)
    return x, buffers

  def attention_maps(self, images: jax.Array, number: int) -> dict[str, jax.Array]:
    """Returns the attention maps {mode: [B, N + 1, N + 1]} of block `number`; see Clip.attention."""
    _validate_block('block', number, self.layers)
    body = block.Block(self.width, self.heads, self.layers, self.activation, parent=None)
    weights = self.variables['params']['blocks']

    def step(x, own):
      return body.apply({'params': own}, x, method=lambda part, x: part.feed_forward(
        x + part.attention(x, *part.qkv(x)))), None

    x, _ = jax.lax.scan(step, self.embed(images), jax.tree.map(lambda w: w[:number - 1], weights))
    last = jax.tree.map(lambda w: w[number - 1], weights)
    return attention.maps(*body.apply({'params': last}, x, method='qkv'))

  def class_feature(self, x: jax.Array) -> jax.Array:
    """Returns the class feature [B, E] of tokens x [B, M, D] that enter block 1, with any subset of the patches."""
    return self.read(self._run(x)[0][:, 0], self.spec.cls)

  def _windows(self, x):
    """Returns {side: [B, n, E]}, the class features of all windows of x [B, N + 1, D], the tokens that enter block 1.

    A window drops all patches outside of it and keeps the positions of those inside (WinCLIP, arXiv 2303.14814).
    Patches may be dropped after ln_pre, because it normalises each token on its own.
    """
    if not self.spec.windows:
      return {}
    tower = self.clone(parent=None, spec=FeatureSpec(self.spec.image_size, cls='ln_post_proj'))
    weights, grid = {'params': self.variables['params']}, self.spec.image_size // self.patch
    class_feature = lambda tokens: tower.apply(weights, tokens, method='class_feature')
    return {side: _encode_windows(class_feature, x, window_table(grid, side)) for side in self.spec.windows}


def _encode_windows(class_feature, x, table):
  """Returns class_feature(tokens [M, T, D]) -> [M, E] of all windows in `table` [n, T - 1] of x, as [B, n, E]."""
  rows = np.pad(table + 1, ((0, 0), (1, 0)))  # the class token is row 0

  def encode(x, tokens):
    """Encodes the windows in equal runs of all images of the batch, so that a sharded batch stays sharded."""
    chunks = -(-len(rows) * x.shape[0] * rows.shape[1] // tokens)
    size = -(-len(rows) // min(chunks, len(rows)))
    runs = np.resize(rows, (-(-len(rows) // size) * size, rows.shape[1])).reshape(-1, size, rows.shape[1])

    def step(run):
      windows = jnp.take(x, run, axis=1)  # [B, size, T, D]
      return class_feature(windows.reshape(-1, *windows.shape[2:])).reshape(x.shape[0], size, -1)

    out = jax.lax.map(step, jnp.asarray(runs)) if len(runs) > 1 else step(runs[0])[None]
    return jnp.moveaxis(out, 0, 1).reshape(x.shape[0], runs.shape[0] * size, -1)[:, :len(rows)]

  return jax.lax.platform_dependent(x, cpu=functools.partial(encode, tokens=_WINDOW_TOKENS_CPU),
                                    default=functools.partial(encode, tokens=_WINDOW_TOKENS))
