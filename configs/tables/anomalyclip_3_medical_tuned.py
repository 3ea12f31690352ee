"""AnomalyCLIP (arXiv 2310.18961), table 3: trained on medical images instead of MVTec AD.

  python launch.py --config=configs/tables/anomalyclip_3_medical_tuned.py --workdir=runs/anomalyclip3

Trained on CVC-ColonDB and the normal images of Endo's classification set (appendix B), here the data set colon_ad.
The paper's four image rows of VAND (APRIL-GAN) equal those of table 2, trained on MVTec AD, digit for digit: probably a
copy.
How long VAND was trained is not stated; here as on VisA. No demo: there are no drawn medical images.
"""

from zsad_jax.configs import anomalyclip, april_gan, common, tables

SYSTEMS = {'VAND': tables.system(april_gan), 'AnomalyCLIP': tables.system(anomalyclip)}
IMAGES = {  # image AUROC, AP of each system
  'head_ct': ((89.1, 89.4), (93.5, 95.1)), 'brain_mri': ((89.3, 90.9), (95.5, 97.2)),
  'br35h': ((93.1, 92.9), (97.9, 98.0)), 'covid19_radiography': ((15.5, 8.5), (70.9, 33.7)),
}
PIXELS = {  # pixel AUROC, AUPRO of each system
  'isic2016': ((58.8, 31.2), (83.0, 63.8)), 'cvc_clinicdb': ((89.4, 82.3), (92.4, 82.9)),
  'kvasir_seg': ((87.6, 39.3), (92.5, 61.5)), 'endotect_seg': ((88.5, 81.9), (93.2, 84.8)),
  'tn3k': ((60.5, 16.8), (79.2, 47.0)),
}


def get_config(arg=None):
  """AnomalyCLIP's config and a row for both systems on every data set."""
  common.choice(arg)
  numbers = {target: [(None, None, *pair) for pair in pairs] for target, pairs in IMAGES.items()} | PIXELS
  return tables.grid(arg, 'AnomalyCLIP, table 3: trained on medical images', tables.ANOMALYCLIP, SYSTEMS, numbers,
                     base=SYSTEMS['AnomalyCLIP'], aux='colon_ad')
