"""RWDA (arXiv 2308.11119), table 4: Sewer-ML's validation split, for an unknown object.

  python launch.py --config=configs/tables/rwda_4_sewer.py --workdir=runs/rwda4

The prompts for an unknown object and the crops as elsewhere are a reading. Standard deviations over
ten seeds: ours 1.3, 0.9 (F1-max), 1.3 (AP); CLIP + ours 0.9, 0.8, 0.7. No demo: it would equal table 1's first rows.
"""

from zsad_jax.configs import common, rwda
from zsad_jax.configs.tables import rwda_1_main

ROWS = (('CLIP', 'clip'), ('ours', 'fnn'), ('CLIP + ours', 'sum'))


def get_config(arg=None):
  """RWDA's config and a row for every score."""
  common.choice(arg)
  return rwda_1_main.rwda_table(rwda.get_config(), 'RWDA, table 4: Sewer-ML', [
    rwda_1_main.row(label, score, target='sewer_ml') for label, score in ROWS])
