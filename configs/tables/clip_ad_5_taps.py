"""CLIP-AD (arXiv 2311.00453), table 5: combinations of stages, with SDP and SDP+ on MVTec AD.

  python launch.py --config=configs/tables/clip_ad_5_taps.py:demo --workdir=runs/table5-demo
  python launch.py --config=configs/tables/clip_ad_5_taps.py --workdir=runs/table5
"""

from zsad_jax.configs import sdp_plus, tables

ROWS = (  # stages; SDP's pixel AUROC, F1-max, AP, AUPRO and image AUROC, F1-max, AP; then SDP+'s
  ('stage 1', (1,), (57.9, 13.4, 10.9, 18.8), (55.8, 84.8, 76.9), (81.4, 24.6, 20.6, 61.7), (60.7, 84.4, 81.0)),
  ('stage 2', (2,), (77.4, 22.4, 17.6, 48.5), (68.8, 85.1, 84.7), (89.9, 35.8, 32.5, 79.7), (82.0, 88.6, 91.7)),
  ('stage 3', (3,), (79.1, 34.1, 30.8, 63.6), (84.1, 89.9, 92.8), (86.5, 36.8, 30.5, 71.3), (91.1, 92.0, 95.8)),
  ('stage 4', (4,), (85.1, 29.7, 23.1, 72.1), (90.3, 91.3, 95.6), (85.8, 30.3, 23.6, 68.9), (92.8, 93.8, 96.7)),
  ('last 2', (3, 4), (85.9, 33.5, 27.5, 73.5), (90.4, 91.6, 95.6), (88.2, 36.4, 30.3, 75.8), (93.0, 93.5, 96.6)),
  ('last 3', (2, 3, 4), (87.2, 35.6, 30.0, 75.6), (90.6, 91.9, 95.7), (89.2, 36.4, 32.0, 77.6), (92.4, 93.1, 96.4)),
  ('all', (1, 2, 3, 4), (87.5, 35.9, 30.4, 75.3), (90.9, 91.9, 95.8), (91.2, 40.0, 36.3, 85.1), (92.2, 93.4, 96.6)),
)


def get_config(arg=None):
  """SDP+'s config and rows for SDP and SDP+; `:demo` on the embedded tiny CLIP, which has three stages."""
  c = sdp_plus.get_config(arg)
  ends = tuple(c.layers)
  rows = []
  for name, at in (('SDP', 2), ('SDP+', 4)):
    method = 'sdp' if name == 'SDP' else 'sdp_plus'
    for entry in ROWS:
      if max(entry[1]) <= len(ends):
        layers = tuple(ends[stage - 1] for stage in entry[1])
        changes = {'method': method, 'label': name, 'layers': layers}
        rows.append(tables.row(f'{name}, {entry[0]}', changes, *entry[at:at + 2]))
  return tables.table(c, 'CLIP-AD, table 5: combinations of stages', rows)
