"""Training on generated texts in place of images, with several seeds as one run.

Of a method with `examples` the seeds cfg.seed, cfg.seed + 1, ... train at once, cfg.seeds of them. Each has its own
texts, an order of its own in every epoch, its own start and randomness, so that each is what it would be alone.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np

from zsad_jax.engine import logs, runtime, text_features, train
from zsad_jax.report import tables


def seeds(cfg) -> tuple[int, ...]:
  """Returns the seeds that are trained at once."""
  return tuple(range(cfg.seed, cfg.seed + cfg.seeds))


def start(method, clip, cfg):
  """Returns what the method starts from, every leaf with an axis of the seeds in front."""
  return jax.vmap(lambda seed: method.init(jax.random.key(seed), clip, cfg))(jnp.asarray(seeds(cfg), jnp.uint32))


def fit(cfg, workdir, method, clip, identity: Mapping):
  """Returns what every seed has learned, a tree as start's; see train.fit."""
  read, count = reader(cfg, method, clip)
  learnable = start(method, clip, cfg)
  print(f'fit: {cfg.train.epochs} epochs on {count} groups of generated texts, {cfg.seeds} seeds at once, '
        f'{sum(x[0].size for x in jax.tree.leaves(learnable))} learned numbers each', flush=True)
  with logs.writer(workdir) as writer, runtime.preemption() as stop:
    return train.fit(
      functools.partial(method.loss, clip=clip, cfg=cfg), train.make_tx(cfg.optim), learnable, clip.params, read,
      count, epochs=cfg.train.epochs, batch=cfg.train.batch, seed=seeds(cfg), workdir=workdir, writer=writer,
      identity=identity, stop=stop, fresh=True, shuffle=False, place=runtime.place(sharded=cfg.machine.shard_weights))


def trained(cfg, workdir, method, clip, identity: Mapping):
  """Returns what fit had learned in `workdir`; raises FileNotFoundError where there is no checkpoint."""
  template = jax.eval_shape(lambda: start(method, clip, cfg))
  found = train.learned(workdir, template, train.make_tx(cfg.optim), identity={**identity, 'seed': seeds(cfg)},
                        seed=seeds(cfg))
  if found is None:
    raise FileNotFoundError(f'no checkpoint in {workdir / "checkpoints"}; train first, with --mode=fit or --mode=run')
  return found


def evaluate(cfg, learnable, one: Callable, folder: Path, published: Mapping | None) -> dict[str, dict]:
  """Evaluates every seed; writes seeds.json to `folder` and prints the spread; returns {selection: spread}.

  Args:
    learnable: of all seeds.
    one: (config of one seed, what it learned) -> {selection: means}, as experiment.evaluate_target.
    folder: of the results of all seeds.
    published: {metric: percent}, or None.
  """
  found = []
  for number in range(cfg.seeds):
    found.append(one(of_seed(cfg, number), jax.tree.map(lambda x, n=number: x[n], learnable)))
  selection, = found[0]
  made = spread([means[selection] for means in found], cfg.eval.std_ddof)
  logs.write_json(folder / 'seeds.json', {'seeds': seeds(cfg), 'ddof': cfg.eval.std_ddof, 'selection': selection, 'mean': made})
  known = [metric for metric, about in made.items() if about['value'] is not None]
  print(f'\nSeeds {", ".join(map(str, seeds(cfg)))}: mean and standard deviation (n - {cfg.eval.std_ddof}) of the means over '
        f'categories, percent; in brackets what is published\n'
        f'{tables.comparison([(cfg.get("label", cfg.method), made, published or {})], known)}')
  return {selection: made}


def reader(cfg, method, clip) -> tuple[Callable, int]:
  """Returns (read, count): what the method's examples say for every seed, each encoded once and kept in a store.

  read: indices [n] -> (text features [n, seeds, k, E], {}), in every seed's own order; place i of epoch e has the
  index i + e * count.

  Raises:
    ValueError: see texts.store.
  """
  encode, root = text_features.encoder(clip), cfg.machine.feature_dir or f'{cfg.machine.data_dir}/features'
  place = runtime.place(jax.local_devices(), sharded=cfg.machine.shard_weights)
  stores = [text_features.store(root, method.examples(seed, cfg=cfg), clip, encode, max_gb=cfg.machine.max_feature_gb, place=place)
            for seed in seeds(cfg)]
  count = stores[0].count

  @functools.cache
  def orders(epoch):
    return [train.order(seed, epoch, count) for seed in seeds(cfg)]

  def read(indices):
    own = orders(int(indices[0]) // count)  # a step stays within its epoch
    return np.stack([store.read(order[indices % count])['texts'] for store, order in zip(stores, own)], axis=1), {}

  return read, count


def of_seed(cfg, number: int):
  """Returns the config of the `number`th seed alone, whose references are drawn by a seed of their own too."""
  changed = mlc.ConfigDict(cfg.to_dict())
  changed.seeds = 1
  changed.seed += number
  if 'fewshot' in changed:
    changed.fewshot.seed += number
  return mlc.FrozenConfigDict(changed)


def spread(summaries: Sequence[Mapping], ddof: int) -> dict[str, dict]:
  """Returns {metric: {'value', 'std', 'values', 'reason'}} of metrics.summarise of every seed.

  value and std, which divides by n - ddof, are of the seeds' means over categories, None where any has none; std is
  None of too few seeds.
  """
  found = {}
  for metric, first in summaries[0].items():
    values = [summary[metric]['value'] for summary in summaries]
    known, few = None not in values, len(values) <= ddof
    found[metric] = {'value': float(np.mean(values)) if known else None,
                     'std': float(np.std(values, ddof=ddof)) if known and not few else None, 'values': values,
                     'reason': first['reason']}
  return found
