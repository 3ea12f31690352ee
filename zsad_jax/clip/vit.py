"""CLIP's vision transformer with side streams and taps."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.clip import attention, block
from zsad_jax.clip import feature_spec as spec_lib

POSITIONS = ('bilinear', 'bicubic_antialias', 'bicubic')
CLS = ('proj', 'ln_post_proj', '')
READ = ('ln_post_proj', 'proj', 'ln_post', 'none')
POINTS = ('block', 'attention')
TOKENS = ('patches', 'cls')
# Tokens of windows that run at once. On a CPU more would fall out of its caches; an accelerator wants to be filled,
# and this many take 2 GB in the widest tower.
_WINDOW_TOKENS_CPU = 1000
_WINDOW_TOKENS = 2 ** 15


def resample_positions(table, grid, method='bilinear'):
  """Returns the positional table [1 + grid^2, D] for another grid; the class token's row stays as it is.

  Args:
    table: [1 + g^2, D], the pretrained table.
    grid: patches a side wanted.
    method: half-pixel centres in all three: 'bilinear' (official AnomalyCLIP), 'bicubic_antialias' with Keys'
      a = -0.5 (open_clip), 'bicubic' with a = -0.75 and no antialias (Hugging Face, torch).

  Raises:
    ValueError: an unknown method.
  """
  if method not in POSITIONS:
    raise ValueError(f'positions {method!r} is not one of {POSITIONS}')
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
  """Returns the [new, size] weights of torch's bicubic interpolation along one axis, borders repeated."""
  at = (np.arange(new) + 0.5) * size / new - 0.5
  taps = np.floor(at).astype(int)[:, None] + np.arange(-1, 3)[None]
  t = np.abs(at[:, None] - taps)
  a = -0.75
  near = ((a + 2) * t - (a + 3)) * t * t + 1
  far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
  weights = np.zeros((new, size), np.float32)
  np.add.at(weights, (np.arange(new)[:, None], taps.clip(0, size - 1)), np.where(t <= 1, near, far))
  return weights


def window_table(grid, side):
  """Returns [n, side^2] the patches of every square window of `side` patches in a grid, stride 1, all row-major.

  n = (grid - side + 1)^2; the class token is not among them.
  """
  corner = np.arange(grid - side + 1)
  first = (corner[:, None] * grid + corner[None]).reshape(-1)
  inside = (np.arange(side)[:, None] * grid + np.arange(side)[None]).reshape(-1)
  return first[:, None] + inside[None]


def validate(spec, *, patch, layers):
  """Raises ValueError where a tower of this patch size and depth cannot give what `spec` asks for."""
  if spec.image_size < patch or spec.image_size % patch:
    raise ValueError(f'spec.image_size {spec.image_size} is not a positive multiple of the patch size {patch}')
  for key, value, known in (('cls', spec.cls, CLS), ('read', spec.read, READ),
                            ('positions', spec.positions, POSITIONS)):
    if value not in known:
      raise ValueError(f'spec.{key} {value!r} is not one of {known}')
  names = [side.name for side in spec.sides]
  for i, side in enumerate(spec.sides):
    at = f'spec.sides[{i}]'
    if side.name == 'clip' or names.count(side.name) > 1:
      raise ValueError(f'{at}.name {side.name!r} is taken: side streams are unique, and clip is CLIP\'s own')
    if side.mode not in attention.MODES:
      raise ValueError(f'{at}.mode {side.mode!r} is not one of {attention.MODES}')
    if not 1 <= side.first_block <= layers:
      raise ValueError(f'{at}.first_block {side.first_block} is not in 1..{layers}, the blocks of this tower')
    if side.reset_every < 0:
      raise ValueError(f'{at}.reset_every {side.reset_every} is negative; 0 means never')
  if len(set(spec.taps)) < len(spec.taps):
    raise ValueError(f'spec.taps names a tap twice: {[tap.name for tap in spec.taps]}')
  for i, tap in enumerate(spec.taps):
    at = f'spec.taps[{i}]'
    if tap.stream not in ('clip', *names):
      raise ValueError(f'{at}.stream {tap.stream!r} is not one of {("clip", *names)}')
    if not 1 <= tap.block <= layers:
      raise ValueError(f'{at}.block {tap.block} is not in 1..{layers}, the blocks of this tower')
    for key, value, known in (('point', tap.point, POINTS), ('token', tap.token, TOKENS),
                              ('read', tap.read, ('', *READ))):
      if value not in known:
        raise ValueError(f'{at}.{key} {value!r} is not one of {known}')
  grid = spec.image_size // patch
  if len(set(spec.windows)) < len(spec.windows):
    raise ValueError(f'spec.windows names a window twice: {spec.windows}')
  for i, side in enumerate(spec.windows):
    if not 1 <= side <= grid:
      raise ValueError(f'spec.windows[{i}] {side} is not in 1..{grid}, the patches a side of the image')


def source(spec, tap):
  """Returns the (stream, point, token) that a tap is read from: CLIP's own stream before a side's first block."""
  first = {side.name: side.first_block for side in spec.sides}
  return ('clip' if tap.block < first.get(tap.stream, 0) else tap.stream, tap.point, tap.token)


def _rows(x, token):
  """Returns of tokens [B, N, D] what a buffer of TOKENS holds: all of them, or the class token, which is the first."""
  return x[:, :1] if token == 'cls' else x


class Layer(block.Block):
  """Scan body of the image tower.

  Attributes:
    sides: the side streams that ride along.
    kept: the (stream, point, token) that have a buffer, with a slot for every block they are read at and a last one
      that takes all other blocks.
    last_whole: whether anybody reads CLIP's own patches after the last block; if not, it steps the class token
      alone there.
  """
  sides: tuple[spec_lib.SideStream, ...] = ()
  kept: tuple[tuple[str, str, str], ...] = ()
  last_whole: bool = True

  def __call__(self, carry, index, slots):
    """carry: x [B, N, D], {side: [B, N, D]}, {kept: [slots, B, N, D]}; index: this block's number, from 1."""
    x, sides, buffers = carry
    q, k, v = self.qkv(x)
    if self.last_whole:
      own, after = self._step_clip(x, q, k, v)
    else:
      own, after = nn.cond(index < self.layers, Layer._step_clip, Layer._step_class, self, x, q, k, v)
    seen = {('clip', 'attention'): x + own, ('clip', 'block'): after}
    if self.sides:
      first = min(side.first_block for side in self.sides)
      sides, middles = nn.cond(index >= first, Layer._step_sides, lambda _, sides, *rest: (sides, sides),
                               self, sides, x, own, (q, k, v), index)
      seen |= {(name, 'block'): y for name, y in sides.items()}
      seen |= {(name, 'attention'): y for name, y in middles.items()}
    buffers = {key: jax.lax.dynamic_update_index_in_dim(buffers[key], _rows(seen[key[:2]], key[2]), slots[key], 0)
               for key in self.kept}
    return (after, sides, buffers), None

  def _step_clip(self, x, q, k, v):
    """Returns what attention adds to CLIP's own stream, and the stream after this block."""
    own = self.attended(x, q, k, v)
    return own, self.feed_forward(x + own)

  def _step_class(self, x, q, k, v):
    """Returns the same for the class token alone; the patches are left as they are."""
    own, after = self._step_clip(x[:, :1], q[:, :1], k, v)
    return jnp.zeros_like(x).at[:, :1].set(own), x.at[:, :1].set(after)

  def _step_sides(self, sides, x, own, qkv, index):
    """Returns every side stream after block `index`, and what it was before a feed-forward network."""
    deltas = {'qk': own}
    for mode in sorted({side.mode for side in self.sides} - {'qk'}):
      deltas[mode] = self.attended(x, *qkv, mode)
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
  """Non-overlapping patches times a [P, P, 3, D] kernel, no bias: CLIP's strided convolution as one product."""
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
  """The image half of CLIP (arXiv 2103.00020, sec. 2.4), reading what `spec` says."""
  image_size: int
  patch: int
  width: int
  layers: int
  heads: int
  embed_dim: int
  activation: str
  spec: spec_lib.FeatureSpec
  unroll: bool = False

  def setup(self):
    normal = nn.initializers.normal(self.width ** -0.5)
    tokens = 1 + (self.image_size // self.patch) ** 2
    self.class_embedding = self.param('class_embedding', normal, (self.width,))
    self.positional_embedding = self.param('positional_embedding', normal, (tokens, self.width))
    self.patch_embed = PatchEmbed(self.patch, self.width)
    self.ln_pre = block.LayerNorm()
    self.blocks = block.stack(Layer, self.layers, in_axes=(0, 0), unroll=self.unroll)(
        self.width, self.heads, self.layers, self.activation, self._sides(), tuple(self._kept()),
        last_whole=self._last_whole())
    self.ln_post = block.LayerNorm()
    self.proj = block.Projection(self.embed_dim, kernel_init=normal)

  def _kept(self):
    """Returns {(stream, point, token): the blocks it is read at, in order}."""
    kept = {}
    for tap in sorted(self.spec.taps, key=lambda tap: tap.block):
      blocks = kept.setdefault(source(self.spec, tap), [])
      blocks += [tap.block] if tap.block not in blocks else []
    return kept

  def _sides(self):
    read = {stream for stream, _, _ in self._kept()}
    return tuple(side for side in self.spec.sides if side.name in read)

  def _last_whole(self):
    """Returns whether CLIP's own patches are read at the last block, by a tap or by a side that adds them up."""
    read = {source(self.spec, tap)[0] for tap in self.spec.taps
            if tap.block == self.layers and tap.token == 'patches'}
    modes = {side.mode for side in self._sides()}
    return 'clip' in read or 'qk' in modes

  def embed(self, images):
    """Returns x^0 [B, N + 1, D], the normalised embeddings that enter block 1."""
    patches = self.patch_embed(images).astype(self.class_embedding.dtype)
    cls = jnp.broadcast_to(self.class_embedding, (images.shape[0], 1, self.width))
    grid = images.shape[1] // self.patch
    table = resample_positions(self.positional_embedding, grid, self.spec.positions)
    return self.ln_pre(jnp.concatenate([cls, patches], 1) + table[None])

  def read(self, x, rule):
    """Returns tokens [..., D] after one of READ: the tower's last norm, its projection, both or neither."""
    x = self.ln_post(x) if rule.startswith('ln_post') else x
    return self.proj(x).astype(x.dtype) if rule.endswith('proj') else x

  def __call__(self, images):
    """Returns Features of normalised images [B, R, R, 3]; see Clip.image."""
    validate(self.spec, patch=self.patch, layers=self.layers)
    size = self.spec.image_size
    if images.shape[1:] != (size, size, 3):
      raise ValueError(f'images {images.shape} are not [B, {size}, {size}, 3], the size in their FeatureSpec')
    start = self.embed(images)
    x, buffers = self._run(start)
    taps, kept = {}, self._kept()
    for tap in self.spec.taps:
      key = source(self.spec, tap)
      tokens = buffers[key][kept[key].index(tap.block)]
      tokens = tokens if tap.token == 'cls' else tokens[:, 1:]
      taps[tap.name] = self.read(tokens, tap.read or self.spec.read)
    cls = self.read(x[:, 0], self.spec.cls) if self.spec.cls else None
    return spec_lib.Features(cls, taps, self._windows(start))

  def _run(self, x):
    """Returns x [B, M, D] after all blocks, and {(stream, point, token): [slots, B, M or 1, D]} of what is read."""
    kept = self._kept()
    index = np.arange(1, self.layers + 1)
    slots = {key: jnp.array([blocks.index(b) if b in blocks else len(blocks) for b in index])
             for key, blocks in kept.items()}
    buffers = {key: jnp.zeros((len(blocks) + 1, *_rows(x, key[2]).shape), x.dtype) for key, blocks in kept.items()}
    sides = {side.name: jnp.zeros_like(x) for side in self._sides()}
    (x, _, buffers), _ = self.blocks((x, sides, buffers), jnp.array(index), slots)
    return x, buffers

  def attention_maps(self, images, number):
    """Returns {mode: [B, N + 1, N + 1]} of block `number`, see Clip.attention."""
    if not 1 <= number <= self.layers:
      raise ValueError(f'block {number} is not in 1..{self.layers}, the blocks of this tower')
    body = block.Block(self.width, self.heads, self.layers, self.activation, parent=None)
    weights = self.variables['params']['blocks']

    def step(x, own):
      return body.apply({'params': own}, x, method=lambda part, x: part.feed_forward(
        x + part.attended(x, *part.qkv(x)))), None

    x, _ = jax.lax.scan(step, self.embed(images), jax.tree.map(lambda w: w[:number - 1], weights))
    last = jax.tree.map(lambda w: w[number - 1], weights)
    return attention.maps(*body.apply({'params': last}, x, method='qkv'))

  def classify(self, x):
    """Returns the class feature [B, E] of tokens x [B, M, D] that enter block 1, any patches of an image."""
    return self.read(self._run(x)[0][:, 0], self.spec.cls)

  def _windows(self, x):
    """Returns {side: [B, n, E]}, the class features of all windows in x [B, N + 1, D], the tokens that enter block 1.

    All other patches are dropped, and each one in it keeps its position (WinCLIP, arXiv 2303.14814). Dropping them
    after ln_pre is the same as before: it treats every token alone.
    """
    if not self.spec.windows:
      return {}
    tower = self.clone(parent=None, spec=spec_lib.FeatureSpec(self.spec.image_size, cls='ln_post_proj'))
    weights, grid = {'params': self.variables['params']}, self.spec.image_size // self.patch
    classify = lambda tokens: tower.apply(weights, tokens, method='classify')
    return {side: _encode_windows(classify, x, window_table(grid, side)) for side in self.spec.windows}


def _encode_windows(classify, x, table):
  """Returns classify(tokens [M, T, D]) -> [M, E] of all windows in `table` [n, T - 1] of x, as [B, n, E]."""
  rows = np.pad(table + 1, ((0, 0), (1, 0)))  # the class token is row 0

  def encode(x, tokens):
    """Encodes windows in equal runs, a batch's images side by side: cut that way, a batch stays split over devices."""
    chunks = -(-len(rows) * x.shape[0] * rows.shape[1] // tokens)
    size = -(-len(rows) // min(chunks, len(rows)))
    runs = np.resize(rows, (-(-len(rows) // size) * size, rows.shape[1])).reshape(-1, size, rows.shape[1])

    def step(run):
      windows = jnp.take(x, run, axis=1)  # [B, size, T, D]
      return classify(windows.reshape(-1, *windows.shape[2:])).reshape(x.shape[0], size, -1)

    out = jax.lax.map(step, jnp.asarray(runs)) if len(runs) > 1 else step(runs[0])[None]
    return jnp.moveaxis(out, 0, 1).reshape(x.shape[0], runs.shape[0] * size, -1)[:, :len(rows)]

  return jax.lax.platform_dependent(x, cpu=functools.partial(encode, tokens=_WINDOW_TOKENS_CPU),
                                    default=functools.partial(encode, tokens=_WINDOW_TOKENS))
