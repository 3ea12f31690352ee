r"""Cost of encoding RWDA's sentences, cut short and at the full context, and of training one seed.

  python benchmarks/rwda.py [--clip=vit_b16_plus_240] [--texts=256] [--pairs=10000] [--runs=3]

Random weights of the real shapes and CLIP's own tokenizer. The two lengths are timed in turns, so that other load on
the machine slows both alike; times are medians. Training is the whole recipe of the config, 2 epochs over all pairs,
and is timed with and without its compilation.
"""

import argparse
import functools
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip import tokenizer
from zsad_jax.configs import rwda as config
from zsad_jax.engine import runtime, train
from zsad_jax.methods import rwda


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--clip', default='vit_b16_plus_240', help='an architecture')
  parser.add_argument('--texts', type=int, default=256, help='sentences of one timing')
  parser.add_argument('--pairs', type=int, default=10000, help='pairs of sentences to train on')
  parser.add_argument('--runs', type=int, default=3, help='timings of each length')
  args = parser.parse_args()

  params = jax.jit(lambda rng: clip_lib.init_params(args.clip, rng))(jax.random.key(0, impl='rbg'))  # compiles fast
  clip = clip_lib.build(args.clip, jax.tree.map(np.asarray, params), tokenizer=tokenizer.load())
  changed = config.get_config()
  changed.sentences.pairs = args.pairs
  cfg = mlc.FrozenConfigDict(changed)
  print(f'{args.clip}, {args.pairs:,} pairs; {runtime.device_summary()}\n')
  encoding(clip, cfg, args)
  training(clip, cfg, args)


def encoding(clip, cfg, args):
  """Prints the time of encoding sentences, cut after the longest of them and at the full context."""
  ids = clip.tokenize([text for pair in rwda.training_texts(0, cfg=cfg) for text in pair])
  eot = np.asarray(clip.eot(ids), np.int32)
  cut = -(-(eot.max() + 1) // 8) * 8
  print(f'sentences have {eot.min() + 1} to {eot.max() + 1} tokens, {np.mean(eot + 1):.1f} on average')
  encode = jax.jit(lambda params, ids, eot: clip.text(params, clip.embed(params, ids), eot).astype(jnp.float32))
  seconds = {int(cut): [], ids.shape[1]: []}
  for _ in range(args.runs + 1):
    for length, times in seconds.items():
      start = time.perf_counter()
      jax.block_until_ready(encode(clip.params, ids[:args.texts, :length], eot[:args.texts]))
      times.append(time.perf_counter() - start)
  for length, times in seconds.items():
    per_text = np.median(times[1:]) / args.texts  # the first run compiles
    print(f'at {length} tokens {1 / per_text:.1f} sentences/s, {2 * args.pairs * per_text:.1f} s for one seed')


def training(clip, cfg, args):
  """Prints the time of training one seed on random embeddings."""
  text_features = np.random.default_rng(0).standard_normal((args.pairs, 2, clip.arch.embed_dim), np.float32)
  order = np.stack([train.order(0, epoch, args.pairs) for epoch in range(cfg.train.epochs)]).astype(np.int32)
  fit = jax.jit(functools.partial(rwda.train, clip=clip, cfg=cfg))
  for label in ('with', 'without'):
    start = time.perf_counter()
    jax.block_until_ready(fit(text_features, order, jax.random.key(0)))
    print(f'one seed trained in {time.perf_counter() - start:.1f} s {label} compilation')


if __name__ == '__main__':
  main()
