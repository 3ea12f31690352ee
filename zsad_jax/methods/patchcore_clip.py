"""PatchCore's rules on CLIP features: a few-shot sanity row, not PatchCore, which stands on WideResNet-50 features.

Patch tokens of two middle blocks of the image tower, averaged over 3 x 3 neighbours and concatenated, are compared
with those of a few normal images: a patch's score is its Euclidean distance to the nearest of them, the image's is
its largest patch's (PatchCore, arXiv 2106.08265). The bank may be thinned to a coreset, and the image score
reweighted by how the neighbourhood of the nearest reference looks (eq. 7 there).

Memory, beside the bank of C K N sum(W) numbers: distances of one image's patches within machine.knn_mib MiB, times the images
of a batch on a device.
"""

import jax
import jax.numpy as jnp
from tqdm import tqdm

from zsad_jax.clip.feature_spec import FeatureSpec, Tap, check_layers
from zsad_jax.ops import maps, neighbours


def spec(clip, cfg):
  """Returns the FeatureSpec: patch tokens of cfg.layers as the blocks leave them."""
  check(clip, cfg)
  return FeatureSpec(clip.image_size, cls='', taps=tuple(Tap('clip', block) for block in cfg.layers), read='none',
              positions=cfg.positions)


def init(rng, clip, cfg):
  """Returns {}: nothing is learned."""
  del rng, clip, cfg
  return {}


def bank(learnable, frozen, categories, *, clip, cfg):
  """Returns {}: no text is read."""
  del learnable, frozen, categories, clip, cfg
  return {}


def memory(frozen, reference_features, *, clip, cfg):
  """Returns the references' pooled patches [C, M, sum W], all K N of a category or its coreset of that share."""
  del frozen, clip
  patches = jax.vmap(lambda taps: pooled(taps, cfg))(reference_features.taps)  # [C, K, N, W]
  rows = patches.reshape(len(patches), -1, patches.shape[-1])
  if cfg.coreset.ratio == 1:
    return rows
  count = max(1, int(cfg.coreset.ratio * rows.shape[1]))
  start, project = jax.random.split(jax.random.key(cfg.coreset.seed))
  directions = jax.random.normal(project, (rows.shape[-1], cfg.coreset.dims)) / cfg.coreset.dims ** 0.5
  told = _teller(len(rows) * count)

  def thin(of_category):
    flat = jnp.matmul(of_category, directions, precision='highest')
    chosen, _ = coreset(flat, count, jax.random.randint(start, (), 0, len(flat)), told)
    return of_category[chosen]

  return jax.lax.map(thin, rows)


def predict(learnable, frozen, bank, memory, features, batch, *, clip, cfg):
  """Returns score [B] and map [B, R, R], distances that are not bounded by 1; the score is taken before smoothing.

  Raises:
    ValueError: without a memory.
  """
  del learnable, frozen, bank
  if memory is None:
    raise ValueError(f'fewshot.shots is {cfg.fewshot.shots}, but predict was given no memory of references')
  patches, category = pooled(features.taps, cfg), batch['category']
  distances, indices = neighbours.nearest_by_category(
    patches, memory, category, metric='euclidean', chunk=neighbours.chunk_rows(memory.shape[1], cfg.machine.knn_mib))
  distances, indices = distances[..., 0], indices[..., 0]
  score, worst = distances.max(1), distances.argmax(1)
  support = min(cfg.patchcore.neighbours, memory.shape[1])
  if cfg.patchcore.reweight and support > 1:
    pick = lambda x: jnp.take_along_axis(x, worst.reshape(-1, *[1] * (x.ndim - 1)), axis=1)[:, 0]
    score *= weight(pick(patches), memory, category, pick(indices), score, support)
  return {'score': score, 'map': maps.upsample_blur(maps.square(distances), clip.image_size, cfg.map.sigma)}


def pooled(taps, cfg):
  """Returns patches [B, N, sum W]: the blocks' tokens, each averaged over cfg.pool x cfg.pool neighbours.

  Beyond the border are zeros that count, as in torch's AvgPool2d. The blocks come in the order of cfg.layers.
  """
  tokens = jnp.concatenate([taps[Tap('clip', block).name].astype(jnp.float32) for block in cfg.layers], axis=-1)
  side = (1, cfg.pool, cfg.pool, 1)
  sums = jax.lax.reduce_window(maps.square(tokens), 0.0, jax.lax.add, side, (1, 1, 1, 1), 'SAME')
  return (sums / cfg.pool ** 2).reshape(tokens.shape)


def coreset(rows, count, start, told=None):
  """Returns (indices [count], radius [count]) of a greedy k-centre choice among rows [M, d], from row `start` on.

  Each next centre is the row farthest from all before; radius is how far the farthest row is once it is chosen.
  told(n) is called on the host some hundred times, when n more are chosen.
  """
  often = max(1, count // 100)

  def tell(i):
    n = jnp.where(i == count - 1, (count - 1) % often + 1, often)
    due = ((i + 1) % often == 0) | (i == count - 1)
    jax.lax.cond(due, lambda: jax.debug.callback(told, n), lambda: None)

  def add(i, state):
    indices, radius, nearest = state
    chosen = jnp.where(i == 0, start, nearest.argmax())
    nearest = jnp.minimum(nearest, jnp.linalg.norm(rows - rows[chosen][None], axis=1))
    if told:
      tell(i)
    return indices.at[i].set(chosen.astype(jnp.int32)), radius.at[i].set(nearest.max()), nearest

  nothing = jnp.zeros(count, jnp.int32), jnp.zeros(count, rows.dtype), jnp.full(len(rows), jnp.inf, rows.dtype)
  return jax.lax.fori_loop(0, count, add, nothing)[:2]


def _teller(total):
  """told(n) that moves a bar of `total` by n; each run of a program that calls it has a bar of its own."""
  bar = None

  def told(n):
    nonlocal bar
    if bar is None:
      bar = tqdm(total=total, desc='coreset', unit='patch', disable=jax.process_index() > 0)
    bar.update(int(n))
    if bar.disable or bar.n >= total:
      bar.close()
      bar = None

  return told


def weight(patch, memory, category, nearest, distance, support):
  """Returns w [B] = 1 - exp d(f, b) / sum_i exp d(f, b_i), over the `support` references b_i nearest to b, with b.

  Args:
    patch: [B, W], f, the patch of an image that is farthest from the references.
    memory, category: [C, M, W] and [B].
    nearest, distance: [B], the reference b nearest to f, as a row of its category's memory, and d(f, b).
    support: how many references, 2 or more: with b alone, w would be 0.
  """
  def one(f, c, index, d):
    _, around = neighbours.nearest(memory[c, index][None], memory[c], k=support, metric='euclidean')
    others = jnp.linalg.norm(memory[c, around[0]] - f[None], axis=1)
    return 1 - jnp.exp(d - jax.nn.logsumexp(others))

  return jax.vmap(one)(patch, category, nearest, distance)


def check(clip, cfg):
  """Raises ValueError naming the first config key that is out of range."""
  check_layers(clip, cfg.layers)
  if cfg.fewshot.shots < 1:
    raise ValueError(f'fewshot.shots {cfg.fewshot.shots} is not 1 or more: without normal images there is no score')
  if cfg.pool < 1 or cfg.pool % 2 == 0:
    raise ValueError(f'pool {cfg.pool} is not an odd number of patches')
  if not 0 < cfg.coreset.ratio <= 1:
    raise ValueError(f'coreset.ratio {cfg.coreset.ratio} is not in (0, 1]; 1 keeps every patch')
  for key, value in (('coreset.dims', cfg.coreset.dims), ('patchcore.neighbours', cfg.patchcore.neighbours)):
    if value < 1:
      raise ValueError(f'{key} {value} is not 1 or more')
  if not cfg.map.sigma >= 0:
    raise ValueError(f'map.sigma {cfg.map.sigma} is not 0 or more')
  if not cfg.machine.knn_mib > 0:
    raise ValueError(f'machine.knn_mib {cfg.machine.knn_mib} is not positive')
