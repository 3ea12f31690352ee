"""AnomalyCLIP (arXiv 2310.18961), table 2: ten medical data sets; trained on MVTec AD.

  python launch.py --config=configs/tables/anomalyclip_2_medical.py --workdir=runs/anomalyclip2

The first four have no masks, the others no normal images. No demo: there are no drawn medical images, and on the drawn
objects it would equal that of table 1.
"""

from zsad_jax.configs import common, tables
from zsad_jax.configs.tables.anomalyclip_1_industrial import SYSTEMS

IMAGES = {  # image AUROC, AP of each system
  'head_ct': ((56.5, 58.4), (60.0, 60.7), (81.8, 80.2), (89.1, 89.4), (78.4, 78.8), (93.4, 91.6)),
  'brain_mri': ((73.9, 81.7), (80.6, 86.4), (86.6, 91.5), (89.3, 90.9), (61.3, 44.9), (90.3, 92.2)),
  'br35h': ((78.4, 78.8), (82.7, 81.3), (80.5, 82.2), (93.1, 92.9), (86.0, 87.5), (94.6, 94.7)),
  'covid19_radiography': ((73.7, 42.4), (75.0, 45.9), (66.4, 42.9), (15.5, 8.5), (25.3, 9.2), (80.1, 58.7)),
}
PIXELS = {  # pixel AUROC, AUPRO of each system
  'isic2016': ((33.1, 5.8), (36.0, 7.7), (83.3, 55.1), (89.4, 77.2), (51.7, 15.9), (89.7, 78.4)),
  'cvc_colondb': ((49.5, 15.8), (49.5, 11.5), (70.3, 32.5), (78.4, 64.6), (40.5, 2.6), (81.9, 71.3)),
  'cvc_clinicdb': ((47.5, 18.9), (48.5, 12.6), (51.2, 13.8), (80.5, 60.7), (34.8, 2.4), (82.9, 67.8)),
  'kvasir_seg': ((44.6, 17.7), (45.0, 16.8), (69.7, 24.5), (75.0, 36.2), (44.1, 3.5), (78.9, 45.6)),
  'endotect_seg': ((45.2, 15.9), (46.6, 12.6), (68.2, 28.3), (81.9, 54.9), (40.6, 3.9), (84.1, 63.6)),
  'tn3k': ((42.3, 7.3), (35.6, 5.2), (70.7, 39.8), (73.6, 37.8), (34.0, 9.5), (81.5, 50.4)),
}


def get_config(arg=None):
  """AnomalyCLIP's config and a row for every system on every data set."""
  common.choice(arg)
  numbers = {target: [(None, None, *pair) for pair in pairs] for target, pairs in IMAGES.items()} | PIXELS
  return tables.grid(arg, 'AnomalyCLIP, table 2: medical data sets', tables.ANOMALYCLIP, SYSTEMS, numbers,
                     base=SYSTEMS['AnomalyCLIP'])
