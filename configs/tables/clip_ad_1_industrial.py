"""CLIP-AD (arXiv 2311.00453), table 1: MVTec AD and VisA, each trained on the other.

  python launch.py --config=configs/tables/clip_ad_1_industrial.py:demo --workdir=runs/clip-ad1-demo
  python launch.py --config=configs/tables/clip_ad_1_industrial.py --workdir=runs/clip-ad1

All at 240 px, SAA+ at 400. The paper's SDP+ is the epoch with the best image AUROC on the target: that row is labelled
oracle here, below the last epoch, which is the fair one. How AnomalyCLIP was run at 240 px is not stated; here images
are resized to 238 px, a multiple of its patch size 14, and nothing else is changed.
"""

from zsad_jax.configs import anomalyclip, clip_surgery, sdp, sdp_plus, tables, winclip

PIXEL_AND_IMAGE = tables.PIXEL + tables.IMAGE
NUMBERS = {  # pixel AUROC, F1-max, AP, AUPRO and image AUROC, F1-max, AP of each system
  'mvtec_ad': (
    (73.2, 37.8, 28.8, 42.8, 63.1, 87.0, 81.4), (85.1, 31.7, 18.2, 64.6, 91.8, 92.9, 96.5),
    (83.5, 29.8, 23.2, 69.9, 90.2, 91.3, 95.5), (87.5, 35.9, 30.4, 75.3, 90.9, 91.9, 95.8),
    (90.9, 37.0, 31.7, 81.6, 91.8, 92.4, 96.2), (91.2, 40.0, 36.3, 85.1, 92.2, 93.4, 96.6),
  ),
  'visa': (
    (74.0, 27.1, 22.4, 36.8, 71.1, 76.2, 77.3), (79.6, 14.8, 5.4, 56.8, 78.1, 79.0, 81.2),
    (85.0, 15.2, 10.3, 64.7, 76.8, 78.5, 80.2), (88.1, 17.0, 12.2, 68.5, 78.6, 79.2, 81.5),
    (94.2, 24.3, 16.8, 77.3, 76.5, 77.7, 79.6), (94.0, 24.6, 18.1, 83.0, 78.3, 79.0, 82.0),
  ),
}


def systems(arg, *, learned=None):
  """{label: make} of the table's systems; `learned`, in place of SDP+ by the oracle's epoch."""
  small = {} if arg == 'demo' else {'image_size': 238}
  oracle = tables.changed(tables.system(sdp_plus, from_mvtec='visa'), {'eval.oracle_epoch': True})
  return {
    'SAA+': None, 'WinCLIP': tables.system(winclip), 'CLIP Surgery': tables.system(clip_surgery),
    'SDP': tables.system(sdp), 'AnomalyCLIP': tables.changed(tables.system(anomalyclip), small),
    'SDP+': learned or oracle,
  }


def get_config(arg=None):
  """SDP's config and a row for every system on both data sets; `:demo` on the tiny CLIP and drawn target."""
  return tables.grid(arg, 'CLIP-AD, table 1: industrial data sets', PIXEL_AND_IMAGE, systems(arg), NUMBERS,
                     base=tables.system(sdp))
