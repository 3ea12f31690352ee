"""AnomalyCLIP (arXiv 2310.18961), table 5: global and local losses, on MVTec AD and VisA.

  python launch.py --config=configs/tables/anomalyclip_5_losses.py:demo --workdir=runs/anomalyclip5-demo
  python launch.py --config=configs/tables/anomalyclip_5_losses.py --workdir=runs/anomalyclip5

The row without either loss trains nothing; its prompts are not stated, so it is quoted.
"""

from zsad_jax.configs import anomalyclip, tables

WHOLE = tables.system(anomalyclip)
SYSTEMS = {
  'neither loss': None, 'global': tables.changed(WHOLE, {'loss.focal': False, 'loss.dice': False}),
  'local': tables.changed(WHOLE, {'loss.ce': False}), 'global and local': WHOLE,
}
NUMBERS = {  # pixel AUROC, AUPRO and image AUROC, AP of each row
  'mvtec_ad': ((71.7, 57.7, 68.8, 85.8), (80.3, 77.8, 89.9, 95.4), (91.0, 80.4, 89.9, 96.0), (91.1, 81.4, 91.5, 96.2)),
  'visa': ((74.7, 62.1, 61.1, 69.1), (86.6, 78.1, 82.2, 84.9), (95.2, 86.5, 79.5, 83.2), (95.5, 87.0, 82.1, 85.4)),
}


def get_config(arg=None):
  """AnomalyCLIP's config and a row for every loss; `:demo` on the embedded tiny CLIP."""
  return tables.grid(arg, 'AnomalyCLIP, table 5: losses', tables.ANOMALYCLIP, SYSTEMS, NUMBERS, base=WHOLE)
