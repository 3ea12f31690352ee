r"""What RWDA's sentences cost to encode, cut short and at the full context, and its ten seeds to train.

  python benchmarks/rwda.py [--clip=vit_b16_plus_240] [--texts=256] [--pairs=10000] [--seeds=10] [--runs=3]

Random weights of the real shapes and CLIP's own tokenizer. The two lengths are timed in turns, so that what else a
machine does slows both alike, and a figure is the median. Training is the whole recipe of the config, 2 epochs over
all pairs, compilation included, of all seeds at once and of one alone.
"""

import argparse
import functools
import sys
import time
from pathlib import Path

import jax
import ml_collections as mlc
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip import tokenizer
from zsad_jax.configs import rwda as config
from zsad_jax.engine import runtime, text_features, train
from zsad_jax.experiment import generated
from zsad_jax.methods import rwda


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--clip', default='vit_b16_plus_240', help='an architecture')
  parser.add_argument('--texts', type=int, default=256, help='sentences of one timing')
  parser.add_argument('--pairs', type=int, default=10000, help='that are trained on')
  parser.add_argument('--seeds', type=int, default=10, help='that are trained at once')
  parser.add_argument('--runs', type=int, default=3, help='timings of each length')
  args = parser.parse_args()

  drawn = jax.jit(lambda rng: clip_lib.init_params(args.clip, rng))(jax.random.key(0, impl='rbg'))  # soon compiled
  params = jax.tree.map(np.asarray, drawn)
  clip = clip_lib.build(args.clip, params, tokenizer=tokenizer.load())
  c = config.get_config()
  c.examples.pairs, c.seeds = args.pairs, args.seeds
  cfg = mlc.FrozenConfigDict(c)
  print(f'{args.clip}, {args.pairs} pairs; {runtime.device_summary()}\n')

  pairs = rwda.examples(0, cfg=cfg)
  ids = clip.tokenize([text for pair in pairs for text in pair])
  eot = np.asarray(clip.eot(ids), np.int32)
  cut = -(-(eot.max() + 1) // 8) * 8
  print(f'sentences have {eot.min() + 1} to {eot.max() + 1} tokens, {np.mean(eot + 1):.1f} on average')
  encode, seconds = text_features.encoder(clip), {int(cut): [], ids.shape[1]: []}
  for _ in range(args.runs + 1):
    for length, found in seconds.items():
      start = time.perf_counter()
      jax.block_until_ready(encode(clip.params, ids[:args.texts, :length], eot[:args.texts]))
      found.append(time.perf_counter() - start)
  per_text = {length: np.median(found[1:]) / args.texts for length, found in seconds.items()}  # the first compiles
  for length, each in per_text.items():
    print(f'at {length} tokens {1 / each:.1f} sentences/s, {2 * args.pairs * each:.1f} s for one seed')

  rows = np.random.default_rng(0).standard_normal((args.pairs, 1, 2, clip.arch.embed_dim), np.float32)
  loss = functools.partial(rwda.loss, clip=clip, cfg=cfg)
  for count in (args.seeds, 1):
    one = mlc.ConfigDict(cfg.to_dict())
    one.seeds = count
    seeds = generated.seeds(one)
    read = lambda at, n=count: (np.repeat(rows[at % args.pairs], n, axis=1), {})
    start = time.perf_counter()
    learned = train.fit(loss, train.make_tx(cfg.optim), generated.start(rwda, clip, one), {}, read, args.pairs,
                        epochs=cfg.train.epochs, batch=cfg.train.batch, seed=seeds, fresh=True, shuffle=False)
    jax.block_until_ready(learned)
    print(f'{count} seed{"s" * (count > 1)} trained at once in {time.perf_counter() - start:.1f} s')


if __name__ == '__main__':
  main()
