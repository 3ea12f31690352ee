"""PatchCore's rules on CLIP features: a few-shot sanity row, not PatchCore, which uses WideResNet-50 features.

Patch tokens of two middle blocks of the image tower, averaged over 3 x 3 neighbours and concatenated, are compared
with those of a few normal images: a patch's score is its Euclidean distance to the nearest of them, the image's is
its largest patch's (PatchCore, arXiv 2106.08265). The memory bank can be thinned to a coreset, and the image score
reweighted by the neighbourhood of the nearest reference (eq. 7 there).

Memory, in addition to the bank of C K N sum(W) numbers: distances of one image's patches within machine.knn_mib MiB,
times the images of a batch on a device.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from tqdm import tqdm

from zsad_jax.clip.feature_spec import Features, FeatureSpec, Tap, check_layers
from zsad_jax.methods import Batch, Clip, Config, Context, Params, Prediction, Traits
from zsad_jax.methods.parts.bounds import AT_LEAST_ONE, NOT_NEGATIVE, ODD, Range
from zsad_jax.ops import maps, neighbours

TRAITS = Traits(nearest_neighbours=True)
BOUNDS = {
  'fewshot.shots': Range(1, reason='since scores are distances to normal images'),
  'pool': ODD,
  'coreset.ratio': Range(0, 1, open_low=True),
  'coreset.dims': AT_LEAST_ONE,
  'patchcore.neighbours': AT_LEAST_ONE,
  'map.sigma': NOT_NEGATIVE,
}


def feature_spec(clip: Clip, cfg: Config) -> FeatureSpec:
  """Returns the raw patch tokens of the blocks in cfg.layers."""
  check_layers(clip, cfg.layers)
  return FeatureSpec(clip.image_size, cls='', taps=tuple(Tap('clip', block) for block in cfg.layers), read='none',
                     positions=cfg.positions)


def build_memory_bank(clip_params: Params, reference_features: Features, *, clip: Clip, cfg: Config) -> jax.Array:
  """Returns the references' pooled patches [C, M, sum W], all K N of a category or its coreset of that share."""
  del clip_params, clip
  patches = jax.vmap(lambda taps: _pool(taps, cfg))(reference_features.taps)  # [C, K, N, W]
  rows = patches.reshape(len(patches), -1, patches.shape[-1])
  if cfg.coreset.ratio == 1:
    return rows
  count = max(1, int(cfg.coreset.ratio * rows.shape[1]))
  start, project = jax.random.split(jax.random.key(cfg.coreset.seed))
  directions = jax.random.normal(project, (rows.shape[-1], cfg.coreset.dims)) / cfg.coreset.dims ** 0.5
  progress = _progress_bar(len(rows) * count)

  def thin(of_category):
    flat = jnp.matmul(of_category, directions, precision='highest')
    centres, _ = _coreset(flat, count, jax.random.randint(start, (), 0, len(flat)), progress)
    return of_category[centres]

  return jax.lax.map(thin, rows)


def predict(params: Params, context: Context, features: Features, batch: Batch, *,
            clip: Clip, cfg: Config) -> Prediction:
  """Returns score [B] and map [B, R, R], distances that are not bounded by 1; the score is taken before smoothing."""
  del params
  bank, category = context.memory_bank, batch['category']
  patches = _pool(features.taps, cfg)
  distances, indices = neighbours.nearest_by_category(
    patches, bank, category, metric='euclidean', chunk=neighbours.chunk_rows(bank.shape[1], cfg.machine.knn_mib))
  distances, indices = distances[..., 0], indices[..., 0]
  score, worst = distances.max(1), distances.argmax(1)
  support = min(cfg.patchcore.neighbours, bank.shape[1])
  if cfg.patchcore.reweight and support > 1:
    pick = lambda x: jnp.take_along_axis(x, worst.reshape(-1, *[1] * (x.ndim - 1)), axis=1)[:, 0]
    score *= _weight(pick(patches), bank, category, pick(indices), score, support)
  return Prediction(score, maps.upsample_blur(maps.square(distances), clip.image_size, cfg.map.sigma))


def _pool(taps, cfg):
  """Patches [B, N, sum W]: the blocks' tokens, each averaged over cfg.pool x cfg.pool neighbours.

  Beyond the border are zeros that count, as in torch's AvgPool2d. The blocks come in the order of cfg.layers.
  """
  tokens = jnp.concatenate([taps[Tap('clip', block).name].astype(jnp.float32) for block in cfg.layers], axis=-1)
  side = (1, cfg.pool, cfg.pool, 1)
  sums = jax.lax.reduce_window(maps.square(tokens), 0.0, jax.lax.add, side, (1, 1, 1, 1), 'SAME')
  return (sums / cfg.pool ** 2).reshape(tokens.shape)


def _coreset(rows, count: int, start, progress: Callable[[int], None] | None = None):
  """(indices [count], radius [count]) of a greedy k-centre choice among rows [M, d], starting with row `start`.

  Each next centre is the row farthest from all before; radius is the distance of the farthest row after that choice.
  progress(n) is called on the host about a hundred times, after n further choices.
  """
  interval = max(1, count // 100)

  def report(i):
    n = jnp.where(i == count - 1, (count - 1) % interval + 1, interval)
    due = ((i + 1) % interval == 0) | (i == count - 1)
    jax.lax.cond(due, lambda: jax.debug.callback(progress, n), lambda: None)

  def add(i, state):
    indices, radius, nearest = state
    centre = jnp.where(i == 0, start, nearest.argmax())
    nearest = jnp.minimum(nearest, jnp.linalg.norm(rows - rows[centre][None], axis=1))
    if progress:
      report(i)
    return indices.at[i].set(centre.astype(jnp.int32)), radius.at[i].set(nearest.max()), nearest

  empty = jnp.zeros(count, jnp.int32), jnp.zeros(count, rows.dtype), jnp.full(len(rows), jnp.inf, rows.dtype)
  return jax.lax.fori_loop(0, count, add, empty)[:2]


def _progress_bar(total: int) -> Callable[[int], None]:
  """progress(n) that moves a bar of `total` by n; each run of a program that calls it has its own bar."""
  bar = None

  def progress(n):
    nonlocal bar
    if bar is None:
      bar = tqdm(total=total, desc='coreset', unit='patch', disable=jax.process_index() > 0)
    bar.update(int(n))
    if bar.disable or bar.n >= total:
      bar.close()
      bar = None

  return progress


def _weight(patch, bank, category, nearest, distance, support: int):
  """w [B] = 1 - exp d(f, b) / sum_i exp d(f, b_i), over the `support` references b_i nearest to b, with b (eq. 7).

  Args:
    patch: [B, W], f, the patch of an image that is farthest from the references.
    bank: [C, M, W], the memory bank.
    category: [B], rows of the bank.
    nearest: [B], the reference b nearest to f, as a row of its category's bank.
    distance: [B], d(f, b).
    support: number of references, 2 or more: with b alone, w would be 0.
  """
  def one(f, c, index, d):
    _, around = neighbours.nearest(bank[c, index][None], bank[c], k=support, metric='euclidean')
    others = jnp.linalg.norm(bank[c, around[0]] - f[None], axis=1)
    return 1 - jnp.exp(d - jax.nn.logsumexp(others))

  return jax.vmap(one)(patch, category, nearest, distance)
