"""AnomalyCLIP (arXiv 2310.18961), table 11: focal and Dice loss next to the global one, on MVTec AD and VisA.

  python launch.py --config=configs/tables/anomalyclip_11_focal_dice.py:demo --workdir=runs/anomalyclip11-demo
  python launch.py --config=configs/tables/anomalyclip_11_focal_dice.py --workdir=runs/anomalyclip11

The first row is "global only" of table 5.
"""

from zsad_jax.configs import anomalyclip, tables

NUMBERS = {  # pixel AUROC, AUPRO and image AUROC, AP of each row
  'mvtec_ad': ((80.3, 77.8, 89.9, 95.4), (87.2, 78.6, 89.5, 95.2), (90.6, 78.1, 91.0, 96.0), (91.1, 81.4, 91.5, 96.2)),
  'visa': ((86.6, 78.1, 82.2, 84.9), (90.1, 79.8, 81.8, 85.2), (94.9, 86.1, 81.2, 84.6), (95.5, 87.0, 82.1, 85.4)),
}


def get_config(arg=None):
  """AnomalyCLIP's config and a row for every choice; `:demo` on the embedded tiny CLIP."""
  whole = tables.system(anomalyclip)
  systems = {label: tables.changed(whole, {'loss.focal': focal, 'loss.dice': dice}) for label, focal, dice in (
    ('neither', False, False), ('Dice', False, True), ('focal', True, False), ('focal and Dice', True, True))}
  return tables.grid(arg, 'AnomalyCLIP, table 11: local losses', tables.ANOMALYCLIP, systems, NUMBERS, base=whole)
