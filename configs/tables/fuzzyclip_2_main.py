"""FuzzyCLIP, table 2: MVTec AD and VisA, each trained on the other.

  python launch.py --config=configs/tables/fuzzyclip_2_main.py:demo --workdir=runs/fuzzy2-demo
  python launch.py --config=configs/tables/fuzzyclip_2_main.py --workdir=runs/fuzzy2

The paper swaps SAA+'s pixel AP and F1-max on MVTec AD; below they are as in CLIP-AD. WinCLIP, CLIP Surgery and SDP+ use
240 px, the others 518: mind the resolution when comparing pixel metrics. The paper's SDP+ is CLIP-AD's row, with an
epoch selected on the target; here the last epoch comes first and the selected one below it.
"""

from zsad_jax.configs import anomalyclip, april_gan, clip_surgery, fuzzyclip, sdp_plus, tables, winclip

FUZZYCLIP = tables.system(fuzzyclip, from_mvtec='visa')
SYSTEMS = {
  'WinCLIP': tables.system(winclip), 'APRIL-GAN': tables.system(april_gan, from_mvtec='visa'),
  'CLIP Surgery': tables.system(clip_surgery), 'SAA+': None,
  'SDP+': tables.changed(tables.system(sdp_plus, from_mvtec='visa'), {'eval.oracle_epoch': True}),
  'AnomalyCLIP': tables.system(anomalyclip), 'FuzzyCLIP': FUZZYCLIP,
}
NUMBERS = {  # AUPRO, AP, F1-max of pixels and AUROC, AP, F1-max of images of each system
  'mvtec_ad': (
    (64.6, 18.2, 31.7, 91.8, 96.5, 92.9), (44.0, 40.8, 43.3, 86.1, 93.5, 90.4), (69.9, 23.2, 29.8, 90.2, 95.5, 91.3),
    (42.8, 28.8, 37.8, 63.1, 81.4, 87.0), (85.1, 36.3, 40.0, 92.2, 96.6, 93.4), (81.4, 34.5, 39.1, 91.5, 96.6, 92.7),
    (86.4, 46.0, 47.6, 91.7, 96.6, 92.7),
  ),
  'visa': (
    (56.8, 5.4, 14.8, 78.1, 81.2, 79.0), (86.8, 25.7, 32.3, 78.0, 81.4, 78.7), (64.7, 10.3, 15.2, 76.8, 80.2, 78.5),
    (36.8, 22.4, 27.1, 71.1, 77.3, 76.2), (83.0, 18.1, 24.6, 78.3, 82.0, 79.0), (87.0, 21.3, 28.3, 82.1, 85.4, 80.4),
    (89.8, 28.0, 34.2, 84.7, 86.9, 82.7),
  ),
}


def get_config(arg=None):
  """FuzzyCLIP's config and a row for every system on both data sets; `:demo` on the tiny CLIP and drawn target."""
  return tables.grid(arg, 'FuzzyCLIP, table 2: MVTec AD and VisA', tables.FUZZYCLIP, SYSTEMS, NUMBERS, base=FUZZYCLIP)
