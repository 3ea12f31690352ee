"""Records rwda.npz: RWDA's network and learning curve after two epochs on random embeddings, for two seeds.

  git worktree add BEFORE 838ba34
  PYTHONPATH=BEFORE python tests/golden/record_rwda.py

The numbers come from the trainer that all methods shared up to that commit, which took one step at a time, wrote
checkpoints and knew nothing of RWDA but its loss. They hold the scan of zsad_jax/methods/rwda.py to the same results.
"""

from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
EMBED, PAIRS, EPOCHS, SEEDS = 16, 40, 2, (3, 4)
# Three steps an epoch, the last of 8 pairs. A bias before a batch norm has no gradient but rounding, of which Adam's
# usual eps of 1e-8 would make whole steps.
CHANGES = {'fnn.hidden': (8, 7, 5), 'train.batch': 16, 'train.epochs': EPOCHS, 'optim.lr': 1e-2, 'optim.eps': 1e-4,
           'multicrop.recipe': 'none'}
CURVES = ('loss', 'accuracy', 'input_norm', 'grad_norm')


def text_features(seed: int) -> np.ndarray:
  """Returns the embeddings [n, 2, E] of as many pairs of sentences, the second of a pair moved in one channel."""
  pairs = 0.3 + 0.5 * np.random.default_rng((7, seed)).standard_normal((PAIRS, 2, EMBED))
  pairs[:, 1, 2] += 0.5
  return pairs.astype(np.float32)


def order(seed: int) -> np.ndarray:
  """Returns the order [epochs, n] in which a seed's training visits the pairs."""
  return np.stack([np.random.default_rng((seed, epoch)).permutation(PAIRS) for epoch in range(EPOCHS)])


def main():
  import dataclasses
  import functools

  import jax
  import ml_collections as mlc

  from configs import rwda as config
  from zsad_jax import runtime, train
  from zsad_jax.methods import rwda
  from zsad_jax.models import clip as clip_lib

  class Curve:
    """Takes the place of the writer of metrics.jsonl."""

    def __init__(self):
      self.epochs = []

    def rewind(self, step):
      del step

    def scalars(self, step, values):
      del step
      self.epochs.append([values[f'train/{name}'] for name in CURVES])

  changed = config.get_config()
  changed.update_from_flattened_dict(CHANGES)
  cfg = mlc.FrozenConfigDict(changed)
  clip = clip_lib.Clip(dataclasses.replace(clip_lib.ARCHS['tiny'], embed_dim=EMBED), 64, params=None)
  arrays = {}
  for seed in SEEDS:
    pairs, curve = text_features(seed), Curve()
    params = train.fit(
      functools.partial(rwda.loss, clip=clip, cfg=cfg), train.make_tx(cfg.optim),
      rwda.init(jax.random.key(seed), clip, cfg), {}, lambda rows, pairs=pairs: (pairs[rows], {}), PAIRS,
      epochs=EPOCHS, batch=cfg.train.batch, seed=seed, place=runtime.place(jax.devices()[:1]), writer=curve)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
      arrays[f'{seed}/' + '/'.join(key.key for key in path)] = np.asarray(leaf)
    arrays |= {f'{seed}/{name}': np.array(values) for name, values in zip(CURVES, zip(*curve.epochs))}
  np.savez_compressed(HERE / 'rwda.npz', **arrays)


if __name__ == '__main__':
  main()
