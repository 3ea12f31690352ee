"""CLIP-AD (arXiv 2311.00453), table 8: backbones, with SDP and SDP+ on MVTec AD.

  python launch.py --config=configs/tables/clip_ad_8_backbones.py --workdir=runs/table8

The paper states neither weights nor image sizes except for ViT-B/16+: OpenAI's for the ResNets and for 336 px, the
only ones that exist, and LAION-400M's for the others, all at their own sizes, are a guess.
"""

from zsad_jax.configs import common, sdp_plus, tables

BLOCKS12, BLOCKS24 = (3, 6, 9, 12), (6, 12, 18, 24)
ROWS = (  # label, weights, pixels, SDP's and SDP+'s layers; SDP's pixel and image means as in table 1; then SDP+'s
  ('RN50', 'rn50', 224, (4,), (1, 2, 3, 4), (61.0, 14.4, 8.4, 24.8), (78.1, 87.1, 89.8),
   (89.1, 33.9, 30.0, 74.2), (82.4, 88.9, 91.5)),
  ('RN101', 'rn101', 224, (4,), (1, 2, 3, 4), (57.7, 15.2, 10.9, 25.4), (74.4, 87.3, 88.1),
   (85.9, 31.2, 26.1, 71.7), (79.9, 88.2, 90.6)),
  ('ViT-B/16', 'vit_b16:laion400m_e31', 224, BLOCKS12, BLOCKS12, (86.1, 32.6, 28.8, 71.8), (87.9, 90.8, 94.0),
   (89.2, 36.6, 32.1, 79.9), (88.9, 91.3, 94.1)),
  ('ViT-B/16+', 'vit_b16_plus_240:laion400m_e31', 240, BLOCKS12, BLOCKS12, (87.5, 35.9, 30.4, 75.3),
   (90.9, 91.9, 95.8), (91.2, 40.0, 36.3, 85.1), (92.2, 93.4, 96.6)),
  ('ViT-L/14', 'vit_l14:laion400m_e31', 224, BLOCKS24, BLOCKS24, (91.1, 40.1, 34.8, 80.8), (89.8, 91.4, 95.1),
   (91.4, 40.2, 36.1, 84.6), (89.5, 91.1, 94.5)),
  ('ViT-L/14 336', 'vit_l14_336', 336, BLOCKS24, BLOCKS24, (88.6, 38.3, 32.3, 81.8), (90.6, 90.5, 95.9),
   (90.8, 44.4, 42.5, 86.4), (92.4, 92.4, 96.2)),
)


def get_config(arg=None):
  """SDP+'s config and rows for SDP and SDP+ on every backbone; no demo: there is only one embedded CLIP."""
  common.choice(arg)
  rows = []
  for label, clip, size, own, learned, *published in ROWS:
    shared = {'clip': clip, 'image_size': size}
    as_sdp = {'method': 'sdp', 'label': 'SDP', 'layers': own, **shared}
    rows += [tables.row(f'SDP, {label}', as_sdp, *published[:2], clip=clip),
             tables.row(f'SDP+, {label}', {'layers': learned, **shared}, *published[2:], clip=clip)]
  return tables.table(sdp_plus.get_config(), 'CLIP-AD, table 8: backbones', rows)
