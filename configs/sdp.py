r"""SDP of CLIP-AD (arXiv 2311.00453): staged dual paths and representative vectors of texts, training-free.

  python launch.py --config=configs/sdp.py:demo --workdir=runs/sdp
  python launch.py --config=configs/sdp.py --workdir=runs/sdp-mvtec --config.data.target=mvtec_ad
  python launch.py --config=configs/sdp.py --workdir=runs/sdp-raw --config.map.sigma=0.0

Published (table 1; medical data sets: tables 2 and 3), with ViT-B/16+ at 240 px; (AUROC, F1-max, AP, AUPRO) of pixels
and (AUROC, F1-max, AP) of images:
  MVTec AD       pixel 87.5, 35.9, 30.4, 75.3   image 90.9, 91.9, 95.8
  VisA           pixel 88.1, 17.0, 12.2, 68.5   image 78.6, 79.2, 81.5
  ISIC           pixel 92.2, 76.4, 80.3, 75.1
  CVC-ClinicDB   pixel 75.9, 30.2, 20.1, 43.5
  HeadCT                                        image 88.8, 80.9, 89.0
  BrainMRI                                      image 93.4, 90.0, 95.7
If paper and released code differ, defaults follow the code: it smooths maps (the paper does not: map.sigma=0), rescales
probability and map maximum over a category's test images before adding them (score_norm; not done for single images),
reads streams after the next block has changed them in place (tap_alias), and its PCA is not the textbook's
(rvs.pca_textbook). The paper's ablations are in configs/tables.
"""

import ml_collections as mlc

from zsad_jax.configs import common


def get_config(arg=None):
  """Returns every key with its released value; `:demo` is for the embedded tiny CLIP."""
  variant = common.choice(arg, 'demo')
  c = common.base()
  c.update(method())
  if variant == 'demo':
    demo(c)
  return c


def demo(c):
  """Changes the keys of SDP and SDP+ that differ for the embedded tiny CLIP."""
  c.update(common.embedded())
  c.layers, c.stage = (2, 4, 6), 2  # of 6 blocks
  c.map.sigma = 4.0  # half a patch, as 8 px are at 240 px


def method():
  """Returns the keys that the method itself reads, and those of CLIP-AD's protocol."""
  c = mlc.ConfigDict()
  c.method = 'sdp'
  c.label = 'SDP'  # its name in tables and on pages
  c.clip, c.image_size = 'vit_b16_plus_240:laion400m_e31', 240
  c.seed = 42
  c.layers = (3, 6, 9, 12)  # blocks, from 1, that are read; the deepest one's class token gives the image score
  c.stage = 0  # blocks per stage, after which the second stream restarts; 0 = a quarter of all
  c.tap_alias = True  # read streams after the next block changed them, as the released code does; False: the paper
  c.path = 'surgery'  # or direct: compare CLIP's own final patch tokens with the texts
  c.positions = 'bicubic_antialias'  # resampling of the positional table: bilinear, bicubic_antialias, bicubic
  c.prompt = mlc.ConfigDict()
  c.prompt.raw_names = True  # texts say metal_nut, as folders are named, instead of metal nut
  c.temperature = 0.01  # of the image score's softmax and of SDP+'s maps
  c.multicrop = common.multicrop()  # of the image score's probability
  # Rescale probability and map maximum to 0..1 over a category's images; none: add them as they are; no_map: no map.
  c.score_norm = 'class_minmax'

  c.surgery = mlc.ConfigDict()
  c.surgery.prob_scale = 1.0  # multiplies cosines in the weights of the texts; 2 in CLIP Surgery's own code
  c.surgery.residual_base = False  # start every stage from CLIP's own stream, as CLIP Surgery does, not from zero

  c.rvs = rvs()

  c.map = mlc.ConfigDict()
  c.map.sigma = 8.0  # of the Gaussian that smooths maps, in pixels; 0 = none
  c.published = mlc.ConfigDict(dict(  # percent
    clip='vit_b16_plus_240:laion400m_e31',
    mvtec_ad=dict(image_auroc=90.9, image_ap=95.8, image_f1max=91.9, pixel_auroc=87.5, pixel_ap=30.4,
                  pixel_f1max=35.9, aupro_200=75.3),
    visa=dict(image_auroc=78.6, image_ap=81.5, image_f1max=79.2, pixel_auroc=88.1, pixel_ap=12.2,
              pixel_f1max=17.0, aupro_200=68.5),
    head_ct=dict(image_auroc=88.8, image_ap=89.0, image_f1max=80.9),
    brain_mri=dict(image_auroc=93.4, image_ap=95.7, image_f1max=90.0),
    isic2016=dict(pixel_auroc=92.2, pixel_ap=80.3, pixel_f1max=76.4, aupro_200=75.1),
    cvc_clinicdb=dict(pixel_auroc=75.9, pixel_ap=20.1, pixel_f1max=30.2, aupro_200=43.5)))
  return c


def rvs():
  """Returns the keys of representative vectors (RVS), which stand for a set of texts, with their released values."""
  c = mlc.ConfigDict()
  c.method = 'dbscan'  # mean, pca, kde, mean_shift or dbscan
  c.dbscan = mlc.ConfigDict(dict(default=(0.5, 15.0), visa=(1.5, 25.0)))  # (eps, min_samples) per data set
  c.kde_bandwidth = 0.3
  c.shift_bandwidth = 2.0
  c.pca_textbook = False  # subtract the mean text feature; the released code subtracts each feature's own mean
  c.extra_states = ()  # words instead of scratch and crack; () = the paper's for HeadCT, BrainMRI, CVC-ClinicDB
  return c
