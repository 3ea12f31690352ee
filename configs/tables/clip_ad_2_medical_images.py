"""CLIP-AD (arXiv 2311.00453), table 2: two medical data sets without masks; trained on VisA.

  python launch.py --config=configs/tables/clip_ad_2_medical_images.py --workdir=runs/clip-ad2

SDP+ is the one that table 1 evaluates on MVTec AD, where its epoch was selected; here it is the last one. The auxiliary
data set of AnomalyCLIP is not stated and assumed to be the same. No demo: there are no drawn medical images.
"""

from zsad_jax.configs import common, sdp, sdp_plus, tables
from zsad_jax.configs.tables import clip_ad_1_industrial

NUMBERS = {  # image AUROC, F1-max, AP of each system
  'head_ct': ((46.8, 68.0, 44.8), (81.8, 78.9, 80.2), (87.2, 80.8, 88.5), (88.8, 80.9, 89.0), (87.2, 82.4, 88.1),
              (88.8, 84.0, 89.6)),
  'brain_mri': ((34.4, 76.7, 49.7), (86.6, 84.1, 91.5), (92.1, 89.5, 94.5), (93.4, 90.0, 95.7), (91.1, 89.6, 92.5),
                (94.8, 92.6, 95.5)),
}


def get_config(arg=None):
  """SDP's config and a row for every system on both data sets."""
  common.choice(arg)
  systems = clip_ad_1_industrial.systems(arg, learned=tables.system(sdp_plus))
  return tables.grid(arg, 'CLIP-AD, table 2: medical images', tables.IMAGE, systems, NUMBERS,
                     base=tables.system(sdp), aux='visa')
