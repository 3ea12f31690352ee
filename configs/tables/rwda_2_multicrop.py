"""RWDA (arXiv 2308.11119), table 2: with and without multi-crop prediction, on MVTec AD, for an unknown object.

  python launch.py --config=configs/tables/rwda_2_multicrop.py:demo --workdir=runs/rwda2-demo
  python launch.py --config=configs/tables/rwda_2_multicrop.py --workdir=runs/rwda2

For "ours" and "CLIP + ours" only the paper's AP is known here: 95.5 +- 0.2 and 96.2 +- 0.2. WinCLIP knows the object.
"""

from zsad_jax.configs import rwda, tables, winclip
from zsad_jax.configs.tables import rwda_1_main

ROWS = (('CLIP', 'clip'), ('ours', 'fnn'), ('CLIP + ours', 'sum'))
WITHOUT = {'clip': {'image_auroc': 89.8, 'image_ap': 95.4, 'image_f1max': 92.1}, 'fnn': {'image_ap': 95.5},
           'sum': {'image_ap': 96.2}}


def get_config(arg=None):
  """RWDA's config and rows without crops and with those of CLIP-AD; `:demo` on the embedded tiny CLIP."""
  c, rows = rwda.get_config(arg), []
  target = 'mvtec_ad' if arg != 'demo' else c.data.target
  for recipe, suffix in (('none', 'without crops'), ('clip_ad', 'with crops')):
    for label, score in ROWS:
      row = rwda_1_main.row(f'{label}, {suffix}', score, target=target, changes={'multicrop.recipe': recipe})
      if recipe == 'none':
        row.published[target] = WITHOUT[score]
      rows.append(row)
  for label, recipe, means in (('WinCLIP, without crops', 'none', (90.8, 92.5, 96.1)),
                               ('WinCLIP, with crops', 'clip_ad', (91.8, 92.9, 96.5))):
    config = winclip.get_config('demo' if arg == 'demo' else None)
    config.data.target, config.multicrop.recipe = target, recipe
    rows.append(tables.another(label, config, {} if arg == 'demo' else dict(zip(tables.IMAGE, means))))
  return rwda_1_main.rwda_table(c, 'RWDA, table 2: multi-crop prediction', rows)
