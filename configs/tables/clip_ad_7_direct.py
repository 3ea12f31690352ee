"""CLIP-AD (arXiv 2311.00453), table 7: CLIP's own patches compared with the texts directly, and SDP.

  python launch.py --config=configs/tables/clip_ad_7_direct.py:demo --workdir=runs/table7-demo
  python launch.py --config=configs/tables/clip_ad_7_direct.py --workdir=runs/table7

Six data sets, of which HeadCT and BrainMRI have no masks and ISIC and CVC-ClinicDB no normal images.
"""

from zsad_jax.configs import sdp, tables

ROWS = (  # data set; direct: pixel AUROC, F1-max, AP, AUPRO and image AUROC, F1-max, AP; then SDP's
  ('mvtec_ad', (21.6, 6.2, 2.1, 2.2), (86.7, 90.8, 94.4), (87.5, 35.9, 30.4, 75.3), (90.9, 91.9, 95.8)),
  ('visa', (24.0, 1.8, 0.8, 1.8), (72.3, 76.3, 76.1), (88.1, 17.0, 12.2, 68.5), (78.6, 79.2, 81.5)),
  ('head_ct', (), (79.8, 74.7, 81.2), (), (88.8, 80.9, 89.0)),
  ('brain_mri', (), (90.8, 86.3, 94.6), (), (93.4, 90.0, 95.7)),
  ('isic2016', (23.9, 44.0, 18.2, 0.9), (), (92.2, 76.4, 80.3, 75.1), ()),
  ('cvc_clinicdb', (35.3, 16.8, 6.5, 3.4), (), (75.9, 30.2, 20.1, 43.5), ()),
)


def get_config(arg=None):
  """SDP's config and rows for both paths on every data set; `:demo` on the embedded tiny CLIP and drawn target."""
  c = sdp.get_config(arg)
  entries = ROWS if arg != 'demo' else (('synthetic_target', (), (), (), ()),)
  rows = [tables.row(path, {'path': path, 'data.target': name}, *entry[at:at + 2], target=name,
                     column=name if arg != 'demo' else '')
          for name, *entry in entries for path, at in (('direct', 0), ('surgery', 2))]
  for made in rows:
    made.folder = ' '.join(filter(None, (made.column, made.label)))
  return tables.table(c, 'CLIP-AD, table 7: direct similarity and SDP', rows)
