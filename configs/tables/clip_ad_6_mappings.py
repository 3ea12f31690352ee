"""CLIP-AD (arXiv 2311.00453), table 6: deeper mappings in SDP+, on MVTec AD; * is a tenth of the learning rate.

  python launch.py --config=configs/tables/clip_ad_6_mappings.py:demo --workdir=runs/table6-demo
  python launch.py --config=configs/tables/clip_ad_6_mappings.py --workdir=runs/table6

The published row 5L equals SDP's row of table 1 digit for digit: its training collapsed, and ours may do so too.
"""

from zsad_jax.configs import sdp_plus, tables

ROWS = (  # label, depth, ReLU, learning rate; pixel AUROC, F1-max, AP, AUPRO and image AUROC, F1-max, AP
  ('3L', 3, False, 1e-4, (87.5, 35.7, 30.1, 75.1), (90.7, 91.9, 95.6)),
  ('3L+ReLU', 3, True, 1e-4, (88.7, 36.3, 31.1, 78.2), (90.3, 92.3, 95.2)),
  ('5L', 5, False, 1e-4, (87.5, 35.9, 30.4, 75.3), (90.9, 91.9, 95.8)),
  ('5L+ReLU', 5, True, 1e-4, (87.5, 35.9, 30.4, 75.3), (90.9, 92.0, 95.8)),
  ('3L*', 3, False, 1e-5, (90.7, 39.8, 35.8, 83.6), (91.6, 92.8, 96.2)),
  ('3L+ReLU*', 3, True, 1e-5, (90.7, 39.0, 35.0, 82.3), (92.2, 93.1, 96.6)),
  ('5L*', 5, False, 1e-5, (89.8, 35.9, 31.7, 80.1), (91.6, 92.9, 95.9)),
  ('5L+ReLU*', 5, True, 1e-5, (91.3, 39.1, 35.3, 81.8), (92.3, 93.1, 96.6)),
  ('1L', 1, False, 1e-4, (91.2, 40.0, 36.3, 85.1), (92.2, 93.4, 96.6)),
)


def get_config(arg=None):
  """SDP+'s config and a row for every mapping; `:demo` on the embedded tiny CLIP."""
  rows = [tables.row(label.replace('*', ', lr 1e-5'), {'mapping.depth': depth, 'mapping.relu': relu, 'optim.lr': lr},
                     pixel, image) for label, depth, relu, lr, pixel, image in ROWS]
  return tables.table(sdp_plus.get_config(arg), 'CLIP-AD, table 6: deeper mappings in SDP+', rows)
