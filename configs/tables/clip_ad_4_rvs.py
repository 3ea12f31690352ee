"""CLIP-AD (arXiv 2311.00453), table 4: representative vectors of the texts (RVS), with SDP on MVTec AD.

  python launch.py --config=configs/tables/clip_ad_4_rvs.py:demo --workdir=runs/table4-demo
  python launch.py --config=configs/tables/clip_ad_4_rvs.py --workdir=runs/table4
"""

from zsad_jax.configs import sdp, tables

ROWS = (  # label, rvs.method, then pixel AUROC, F1-max, AP, AUPRO and image AUROC, F1-max, AP
  ('Mean', 'mean', (86.8, 35.7, 29.5, 74.4), (90.7, 92.1, 95.7)),
  ('PCA', 'pca', (86.9, 35.8, 29.8, 74.6), (90.8, 92.3, 95.8)),
  ('KDE', 'kde', (87.3, 36.3, 30.3, 75.0), (90.5, 92.0, 95.6)),
  ('Mean Shift', 'mean_shift', (86.7, 35.6, 29.4, 74.2), (90.7, 92.2, 95.7)),
  ('DBSCAN', 'dbscan', (87.5, 35.9, 30.4, 75.3), (90.9, 91.9, 95.8)),
)


def get_config(arg=None):
  """SDP's config and a row for every representative; `:demo` on the embedded tiny CLIP."""
  rows = [tables.row(label, {'rvs.method': name}, pixel, image) for label, name, pixel, image in ROWS]
  rows.append(tables.row('PCA of the textbook', {'rvs.method': 'pca', 'rvs.pca_textbook': True}))
  return tables.table(sdp.get_config(arg), 'CLIP-AD, table 4: representative vectors', rows)
