"""RWDA (arXiv 2308.11119), figure 4: number of sentence pairs to train on, on MVTec AD.

  python launch.py --config=configs/tables/rwda_fig4_pairs.py:demo --workdir=runs/rwda-pairs-demo
  python launch.py --config=configs/tables/rwda_fig4_pairs.py --workdir=runs/rwda-pairs

The paper plots up to 50,000 pairs and finds 10,000 best; only that point of the curve is stated elsewhere.
"""

from zsad_jax.configs import rwda
from zsad_jax.configs.tables import rwda_1_main

PAIRS, DEMO = (2000, 5000, 10000, 20000, 50000), (500, 2000, 4000)


def get_config(arg=None):
  """RWDA's config and a row for every number of pairs; `:demo` on the embedded tiny CLIP, with fewer."""
  c = rwda.get_config(arg)
  target, counts = ('mvtec_ad', PAIRS) if arg != 'demo' else (c.data.target, DEMO)
  return rwda_1_main.rwda_table(c, 'RWDA, figure 4: number of pairs', [
    rwda_1_main.row(f'{said}, {pairs} pairs', score, target=target, changes={'sentences.pairs': pairs},
                    published=None if pairs == 10000 else ())
    for score, said in (('fnn', 'ours'), ('sum', 'CLIP + ours')) for pairs in counts])
