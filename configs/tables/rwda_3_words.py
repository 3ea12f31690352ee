"""RWDA (arXiv 2308.11119), table 3: words for normal and anomalous, on MVTec AD, image AUROC.

  python launch.py --config=configs/tables/rwda_3_words.py:demo --workdir=runs/rwda3-demo
  python launch.py --config=configs/tables/rwda_3_words.py --workdir=runs/rwda3

The object is unknown. The rows with CLIP only train nothing and show quickly whether the weights are the paper's.
"""

from zsad_jax.configs import rwda
from zsad_jax.configs.tables import rwda_1_main

ANOMALOUS = ('a damaged', 'a broken', 'a defective', 'an anomalous')
ROWS = {  # normal word: for every anomalous one CLIP's AUROC, then that of CLIP + ours and its standard deviation
  'a': ((91.5, 92.2, 0.3), (87.5, 86.1, 0.6), (79.4, 85.7, 0.5), (67.6, 73.7, 0.3)),
  'a normal': ((89.3, 90.5, 0.2), (87.3, 88.6, 0.5), (81.8, 84.5, 0.9), (69.1, 71.9, 1.0)),
  'a good': ((88.4, 89.6, 0.3), (86.1, 87.0, 0.5), (80.6, 86.3, 0.4), (68.6, 73.0, 0.9)),
  'a flawless': ((88.5, 90.3, 0.4), (85.7, 86.0, 0.8), (77.7, 84.5, 0.6), (68.8, 75.8, 0.5)),
}


def get_config(arg=None):
  """RWDA's config and rows for every pair of words; `:demo` on the embedded tiny CLIP."""
  c, rows = rwda.get_config(arg), []
  target = 'mvtec_ad' if arg != 'demo' else c.data.target
  for at, (score, said) in enumerate((('clip', 'CLIP'), ('sum', 'CLIP + ours'))):
    for normal, cells in ROWS.items():
      for anomalous, cell in zip(ANOMALOUS, cells):
        made = rwda_1_main.row(f'{normal}, {anomalous}, {said}', score, target=target,
                               changes={'words.normal': normal, 'words.anomalous': anomalous})
        made.published[target] = {'image_auroc': cell[at]}
        rows.append(made)
  return rwda_1_main.rwda_table(c, 'RWDA, table 3: words', rows)
