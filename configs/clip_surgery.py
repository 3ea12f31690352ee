r"""CLIP Surgery (arXiv 2304.05653) as CLIP-AD (arXiv 2311.00453) compares with it; nothing is learned.

  python launch.py --config=configs/clip_surgery.py:demo --workdir=runs/surgery
  python launch.py --config=configs/clip_surgery.py --workdir=runs/surgery-mvtec --config.data.target=mvtec_ad

Published in CLIP-AD's table 1, with ViT-B/16+ at 240 px and CLIP-AD's representative texts; prompt.ensemble=compound
takes the means of APRIL-GAN's states and templates instead. Pixel AUROC, F1-max, AP, AUPRO and image AUROC, F1-max,
AP:
  MVTec AD   pixel 83.5, 29.8, 23.2, 69.9   image 90.2, 91.3, 95.5
  VisA       pixel 85.0, 15.2, 10.3, 64.7   image 76.8, 78.5, 80.2
CLIP-AD does not say what that row's image score and smoothing are; here: CLIP's own, and none. CLIP-AD's own systems
smooth with map.sigma=8.
"""

import ml_collections as mlc

from zsad_jax.configs import common, sdp


def get_config(arg=None):
  """Every key with its value for the published row; `:demo` fits the embedded tiny CLIP."""
  variant = common.choice(arg, 'demo')
  c = common.base()
  c.clip, c.image_size = 'vit_b16_plus_240:laion400m_e31', 240
  c.update(method())
  if variant == 'demo':
    c.update(common.embedded())
    c.surgery.last_n = 5  # of 6 blocks, as in this CLIP's pretraining
    c.map.sigma = 1.0
  return c


def method():
  """The keys that the method itself reads."""
  c = mlc.ConfigDict()
  c.method = 'clip_surgery'
  c.positions = 'bilinear'  # resampling of the positional table: bilinear, bicubic_antialias, bicubic
  c.prompt = mlc.ConfigDict()
  c.prompt.raw_names = True  # texts say metal_nut, as folders are named, and not metal nut
  c.prompt.ensemble = 'clip_ad'  # CLIP-AD's texts, represented as rvs says; or compound, means of APRIL-GAN's
  c.temperature = 0.01  # of the image score's softmax
  c.multicrop = common.multicrop()  # of the image score

  c.surgery = mlc.ConfigDict()
  c.surgery.last_n = 6  # last blocks of which the V-V stream collects
  c.surgery.prob_scale = 2.0  # times cosines in the weights of the texts; CLIP-AD's own code has 1
  c.surgery.single_text = False  # the abnormal text less the empty one, in place of less the mean of both
  c.surgery.minmax = False  # stretch each image's map to 0..1, as explanations do and metrics must not
  c.rvs = sdp.rvs()
  c.map = mlc.ConfigDict()
  c.map.sigma = 0.0  # of a Gaussian that smooths maps, in pixels; 0 = none

  c.published = mlc.ConfigDict(dict(  # percent
    clip='vit_b16_plus_240:laion400m_e31',
    mvtec_ad=dict(image_auroc=90.2, image_ap=95.5, image_f1max=91.3, pixel_auroc=83.5, pixel_ap=23.2,
                  pixel_f1max=29.8, aupro_200=69.9),
    visa=dict(image_auroc=76.8, image_ap=80.2, image_f1max=78.5, pixel_auroc=85.0, pixel_ap=10.3,
              pixel_f1max=15.2, aupro_200=64.7)))
  return c
