r"""SDP of CLIP-AD (arXiv 2311.00453): staged dual paths, representative texts, nothing learned.

  python launch.py --config=configs/sdp.py:demo --workdir=runs/sdp
  python launch.py --config=configs/sdp.py --workdir=runs/sdp-mvtec --config.data.target=mvtec_ad
  python launch.py --config=configs/sdp.py --workdir=runs/sdp-raw --config.map.sigma=0.0

Published (table 1; medical sets: tables 2 and 3), with ViT-B/16+ at 240 px; AUROC, F1-max, AP, AUPRO of pixels and
AUROC, F1-max, AP of images:
  MVTec AD       pixel 87.5, 35.9, 30.4, 75.3   image 90.9, 91.9, 95.8
  VisA           pixel 88.1, 17.0, 12.2, 68.5   image 78.6, 79.2, 81.5
  ISIC           pixel 92.2, 76.4, 80.3, 75.1
  CVC-ClinicDB   pixel 75.9, 30.2, 20.1, 43.5
  HeadCT                                        image 88.8, 80.9, 89.0
  BrainMRI                                      image 93.4, 90.0, 95.7
Where paper and released code differ, a default is the code's: it smooths maps (the paper says it does not:
map.sigma=0), stretches probability and map maximum over a category's test images before it adds them (score_norm; an
image by itself needs none), takes class tokens from one block further (tap_alias), and its PCA is not the textbook's
(rvs.pca_textbook). The tables of the paper's ablations are in configs/tables.
"""

import ml_collections as mlc

from zsad_jax.configs import common


def get_config(arg=None):
  """Every key with its released value; `:demo` fits the embedded tiny CLIP."""
  variant = common.choice(arg, 'demo')
  c = common.base()
  c.update(method())
  if variant == 'demo':
    demo(c)
  return c


def demo(c):
  """Changes the keys of SDP and SDP+ that differ with the embedded tiny CLIP."""
  c.update(common.embedded())
  c.layers, c.stage = (2, 4, 6), 2  # of 6 blocks
  c.map.sigma = 4.0  # half a patch, as 8 px are at 240 px


def method():
  """The keys that the method itself reads, and what CLIP-AD runs it on."""
  c = mlc.ConfigDict()
  c.method = 'sdp'
  c.label = 'SDP'
  c.clip, c.image_size = 'vit_b16_plus_240:laion400m_e31', 240
  c.seed = 42
  c.layers = (3, 6, 9, 12)  # blocks that are read, counted from 1; the deepest one's class token gives the image score
  c.stage = 0  # blocks after which the second stream starts anew; 0 = a quarter of them
  c.tap_alias = True  # as the released code keeps what it reads; False as the paper says
  c.path = 'surgery'  # or direct: CLIP's own patches at the end, compared with the texts as they are
  c.positions = 'bicubic_antialias'  # resampling of the positional table: bilinear, bicubic_antialias, bicubic
  c.prompt = mlc.ConfigDict()
  c.prompt.raw_names = True  # texts say metal_nut, as folders are named, and not metal nut
  c.temperature = 0.01  # of the image score's softmax and of SDP+'s maps
  c.multicrop = common.multicrop()  # of the image score's probability
  # Probability and map maximum to 0..1 over a category's images; none adds them as they are, no_map leaves the map out.
  c.score_norm = 'class_minmax'

  c.surgery = mlc.ConfigDict()
  c.surgery.prob_scale = 1.0  # times cosines in the weights of the texts; CLIP Surgery's own code has 2
  c.surgery.residual_base = False  # start every stage from CLIP's own stream, as CLIP Surgery does, and not from zero

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
  """The keys of what stands for a set of texts, with their released values."""
  c = mlc.ConfigDict()
  c.method = 'dbscan'  # what a set of texts is represented by: mean, pca, kde, mean_shift, dbscan
  c.dbscan = mlc.ConfigDict(dict(default=(0.5, 15.0), visa=(1.5, 25.0)))  # eps and min_samples, by data set
  c.kde_bandwidth = 0.3
  c.shift_bandwidth = 2.0
  c.pca_textbook = False  # subtract the mean text; the released code subtracts each text's own mean
  c.extra_states = ()  # words in place of scratch and crack; () = the paper's for HeadCT, BrainMRI, CVC-ClinicDB
  return c
