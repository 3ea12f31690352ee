"""AnomalyCLIP (arXiv 2310.18961), table 1: seven industrial data sets; trained on VisA for MVTec AD, else on MVTec AD.

  python launch.py --config=configs/tables/anomalyclip_1_industrial.py:demo --workdir=runs/anomalyclip1-demo
  python launch.py --config=configs/tables/anomalyclip_1_industrial.py --workdir=runs/anomalyclip1

The numbers of WinCLIP and VAND (APRIL-GAN) on MVTec AD and VisA come from their own papers; this paper measured the
others and does not state how long it trained VAND for them: here three epochs with mosaics, as its authors did on MVTec
AD. CoOp has no code; see configs/coop.py.
"""

from zsad_jax.configs import anomalyclip, april_gan, clip, coop, tables, winclip

SYSTEMS = {
  'CLIP': tables.system(clip), 'CLIP-AC': tables.changed(tables.system(clip), {'prompt.ensemble': 'imagenet'}),
  'WinCLIP': tables.system(winclip), 'VAND': tables.system(april_gan, from_mvtec='visa'), 'CoOp': tables.system(coop),
  'AnomalyCLIP': tables.system(anomalyclip),
}
NUMBERS = {  # pixel AUROC, AUPRO and image AUROC, AP of each system
  'mvtec_ad': (
    (38.4, 11.3, 74.1, 87.6), (38.2, 11.6, 71.5, 86.4), (85.1, 64.6, 91.8, 96.5),
    (87.6, 44.0, 86.1, 93.5), (33.3, 6.7, 88.8, 94.8), (91.1, 81.4, 91.5, 96.2),
  ),
  'visa': (
    (46.6, 14.8, 66.4, 71.5), (47.8, 17.3, 65.0, 70.1), (79.6, 56.8, 78.1, 81.2),
    (94.2, 86.8, 78.0, 81.4), (24.2, 3.8, 62.8, 68.1), (95.5, 87.0, 82.1, 85.4),
  ),
  'mpdd': (
    (62.1, 33.0, 54.3, 65.4), (58.7, 29.1, 56.2, 66.0), (76.4, 48.9, 63.6, 69.9),
    (94.1, 83.2, 73.0, 80.2), (15.4, 2.3, 55.1, 64.2), (96.5, 88.7, 77.0, 82.0),
  ),
  'btad': (
    (30.6, 4.4, 34.5, 52.5), (32.8, 8.3, 51.0, 62.1), (72.7, 27.3, 68.2, 70.9),
    (60.8, 25.0, 73.6, 68.6), (28.6, 3.8, 66.8, 77.4), (94.2, 74.8, 88.3, 87.3),
  ),
  'kolektor_sdd': (
    (39.0, 8.9, 65.7, 45.2), (32.5, 5.8, 65.2, 45.7), (68.8, 24.2, 84.3, 77.4),
    (79.8, 65.1, 79.8, 71.4), (28.9, 7.1, 74.9, 65.1), (90.6, 67.8, 84.7, 80.0),
  ),
  'dagm2007': (
    (28.2, 2.9, 79.6, 59.0), (32.7, 4.8, 82.5, 63.7), (87.6, 65.7, 91.8, 79.5),
    (82.4, 66.2, 94.4, 83.8), (17.5, 2.1, 87.5, 74.6), (95.6, 91.0, 97.5, 92.3),
  ),
  'dtd_synthetic': (
    (33.9, 12.5, 71.6, 85.7), (23.7, 5.5, 66.8, 83.2), (83.9, 57.8, 93.2, 92.6),
    (95.3, 86.9, 86.4, 95.0), (), (97.9, 92.3, 93.5, 97.0),
  ),
}


def get_config(arg=None):
  """AnomalyCLIP's config and a row for every system on every data set; `:demo` on the tiny CLIP and drawn target."""
  return tables.grid(arg, 'AnomalyCLIP, table 1: industrial data sets', tables.ANOMALYCLIP, SYSTEMS, NUMBERS,
                     base=SYSTEMS['AnomalyCLIP'])
