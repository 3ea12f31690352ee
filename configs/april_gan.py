r"""APRIL-GAN (arXiv 2305.17382), from the VAND challenge 2023: linear adapters on patch tokens, as released.

  python launch.py --config=configs/april_gan.py:demo --workdir=runs/april
  python launch.py --config=configs/april_gan.py --workdir=runs/april-visa-to-mvtec
  python launch.py --config=configs/april_gan.py:visa --workdir=runs/april-mvtec-to-visa
  python launch.py --config=configs/april_gan.py --workdir=runs/april-visa-to-mvtec --mode=evaluate \
    --config.fewshot.shots=4

`:visa` trains on MVTec AD for VisA: 3 epochs, and every fifth training image is a mosaic of four of its category.
Mosaics are composed again at every step, so this training bypasses the feature store and runs the image tower at
every step. `act` is the activation of both towers. The released setup runs OpenAI's weights with exact GELU, although
they were trained with QuickGELU; at CLIP's own image size (336 px, or the demo's 112) its loader would have kept
QuickGELU.

Published, zero-shot, trained on VisA for MVTec AD and vice versa; (AUROC, AUPRO, AP, F1-max) of pixels, with the
AUROC as quoted by AnomalyCLIP (arXiv 2310.18961, table 1), and (AUROC, AP, F1-max) of images:
  MVTec AD   pixel 87.6, 44.0, 40.8, 43.3   image 86.1, 93.5, 90.4
  VisA       pixel 94.2, 86.8, 25.7, 32.3   image 78.0, 81.4, 78.7
According to a maintainer, the low AUPRO on MVTec AD comes from overfitting; it varies widely between epochs.
"""

import ml_collections as mlc

from zsad_jax.configs import common


def get_config(arg=None):
  """Returns every key with its released value; `:visa` is for target VisA, `:demo` for the embedded tiny CLIP."""
  variant = common.choice(arg, 'visa', 'demo')
  c = common.base()
  c.update(method())
  if variant == 'visa':
    c.data.aux, c.data.target = 'mvtec_ad', 'visa'
    c.train.epochs, c.mosaic = 3, 0.2
  if variant == 'demo':
    c.update(common.embedded())
    c.layers = (2, 3, 5, 6)  # of 6 blocks
    c.act = 'quick_gelu'
    c.train.epochs = 3
  return c


def method():
  """Returns the keys that the method itself reads, and its optimizer."""
  c = mlc.ConfigDict()
  c.method = 'april_gan'
  c.label = 'APRIL-GAN'  # its name in tables and on pages
  c.layers = (6, 12, 18, 24)  # blocks, from 1, whose patch tokens are read
  c.act = 'gelu'  # activation of both towers: gelu, or quick_gelu, with which the weights were trained
  c.positions = 'bicubic_antialias'  # resampling of the positional table: bilinear, bicubic_antialias, bicubic
  c.prompt = mlc.ConfigDict()
  c.prompt.raw_names = True  # texts say metal_nut, as folders are named, instead of metal nut
  c.temperature = 0.01  # divides every cosine; fixed, not CLIP's logit_scale
  c.mosaic = 0.0  # probability that a training image becomes a mosaic of four; above 0, no features are stored
  c.multicrop = common.multicrop()  # of the image score

  c.fewshot = mlc.ConfigDict()
  c.fewshot.shots = 0  # k, normal reference images per target category; 0 = zero-shot
  c.fewshot.seed = 42  # of their selection
  c.fewshot.replacement = True  # the released code may select an image twice
  c.score_norm = 'class_minmax'  # few-shot: rescale map maxima to 0..1 over a category's test images; or none

  c.published = mlc.ConfigDict(dict(  # percent
    mvtec_ad=dict(image_auroc=86.1, image_ap=93.5, image_f1max=90.4, pixel_auroc=87.6, pixel_ap=40.8,
                  pixel_f1max=43.3, aupro_200=44.0),
    visa=dict(image_auroc=78.0, image_ap=81.4, image_f1max=78.7, pixel_auroc=94.2, pixel_ap=25.7,
              pixel_f1max=32.3, aupro_200=86.8),
    cost=dict(images_per_s=9.23, epoch_minutes=13.56)))  # AnomalyCLIP's table 8

  c.optim = mlc.ConfigDict()
  c.optim.lr = 1e-3
  c.optim.b1 = 0.5
  c.optim.b2 = 0.999
  c.optim.eps = 1e-8
  return c
