r"""CLIP Surgery (arXiv 2304.05653), training-free, as the baseline of CLIP-AD (arXiv 2311.00453).

  python launch.py --config=configs/clip_surgery.py:demo --workdir=runs/surgery
  python launch.py --config=configs/clip_surgery.py --workdir=runs/surgery-mvtec --config.data.target=mvtec_ad

Published in CLIP-AD's table 1, with ViT-B/16+ at 240 px and CLIP-AD's representative vectors of texts;
prompt.ensemble=compound uses the means of APRIL-GAN's states and templates instead. (AUROC, F1-max, AP, AUPRO) of
pixels and (AUROC, F1-max, AP) of images:
  MVTec AD   pixel 83.5, 29.8, 23.2, 69.9   image 90.2, 91.3, 95.5
  VisA       pixel 85.0, 15.2, 10.3, 64.7   image 76.8, 78.5, 80.2
CLIP-AD does not define the image score and the smoothing of this row. Here they are CLIP's own image score and no
smoothing; CLIP-AD's own systems smooth with map.sigma=8.
"""

import ml_collections as mlc

from zsad_jax.configs import common, sdp


def get_config(arg=None):
  """Returns every key with its value for the published row; `:demo` is for the embedded tiny CLIP."""
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
  """Returns the keys that the method itself reads."""
  c = mlc.ConfigDict()
  c.method = 'clip_surgery'
  c.label = 'CLIP Surgery'  # its name in tables and on pages
  c.positions = 'bilinear'  # resampling of the positional table: bilinear, bicubic_antialias, bicubic
  c.prompt = mlc.ConfigDict()
  c.prompt.raw_names = True  # texts say metal_nut, as folders are named, instead of metal nut
  c.prompt.ensemble = 'clip_ad'  # CLIP-AD's texts, represented as in rvs; or compound: means of APRIL-GAN's
  c.temperature = 0.01  # of the image score's softmax
  c.multicrop = common.multicrop()  # of the image score

  c.surgery = mlc.ConfigDict()
  c.surgery.last_n = 6  # number of last blocks that the V-V stream runs through
  c.surgery.prob_scale = 2.0  # multiplies cosines in the weights of the texts; 1 in CLIP-AD's own code
  c.surgery.single_text = False  # subtract the empty text from the abnormal one, instead of the mean of both
  c.surgery.minmax = False  # rescale each image's map to 0..1: for explanations, not for metrics
  c.rvs = sdp.rvs()
  c.map = mlc.ConfigDict()
  c.map.sigma = 0.0  # of the Gaussian that smooths maps, in pixels; 0 = none

  c.published = mlc.ConfigDict(dict(  # percent
    clip='vit_b16_plus_240:laion400m_e31',
    mvtec_ad=dict(image_auroc=90.2, image_ap=95.5, image_f1max=91.3, pixel_auroc=83.5, pixel_ap=23.2,
                  pixel_f1max=29.8, aupro_200=69.9),
    visa=dict(image_auroc=76.8, image_ap=80.2, image_f1max=78.5, pixel_auroc=85.0, pixel_ap=10.3,
              pixel_f1max=15.2, aupro_200=64.7)))
  return c
