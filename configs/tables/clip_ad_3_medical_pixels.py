"""CLIP-AD (arXiv 2311.00453), table 3: two medical data sets of anomalous images; trained on MVTec AD.

  python launch.py --config=configs/tables/clip_ad_3_medical_pixels.py --workdir=runs/clip-ad3

SDP+ is the one that table 1 evaluates on VisA, where its epoch was selected, but smoothed as elsewhere; here it is the
last epoch. The auxiliary data set of AnomalyCLIP is not stated and assumed to be the same. No demo: there are no drawn
medical images.
"""

from zsad_jax.configs import common, sdp, sdp_plus, tables
from zsad_jax.configs.tables import clip_ad_1_industrial

NUMBERS = {  # pixel AUROC, F1-max, AP, AUPRO of each system
  'isic2016': ((83.8, 74.2, 70.1, 55.9), (83.3, 64.1, 62.4, 55.1), (88.9, 71.0, 73.6, 72.7), (92.2, 76.4, 80.3, 75.1),
               (90.9, 73.5, 78.3, 81.5), (94.4, 79.2, 88.1, 89.8)),
  'cvc_clinicdb': ((66.2, 29.1, 13.3, 26.8), (51.2, 27.2, 19.4, 13.8), (75.0, 29.1, 19.9, 42.6),
                   (75.9, 30.2, 20.1, 43.5), (80.5, 32.2, 20.1, 45.4), (81.3, 35.3, 28.3, 58.4)),
}


def get_config(arg=None):
  """SDP's config and a row for every system on both data sets."""
  common.choice(arg)
  systems = clip_ad_1_industrial.systems(arg, learned=tables.system(sdp_plus))
  return tables.grid(arg, 'CLIP-AD, table 3: medical pixels', tables.PIXEL, systems, NUMBERS,
                     base=tables.system(sdp), aux='mvtec_ad')
