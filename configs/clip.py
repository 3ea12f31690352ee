r"""CLIP with two prompts, and CLIP-AC with an ensemble of prompts: training-free baselines.

  python launch.py --config=configs/clip.py:demo --workdir=runs/clip
  python launch.py --config=configs/clip.py --workdir=runs/clip-mvtec --config.data.target=mvtec_ad
  python launch.py --config=configs/clip.py:ac --workdir=runs/clip-ac

Published as baselines of AnomalyCLIP (arXiv 2310.18961, table 1); (AUROC, AUPRO) of pixels, (AUROC, AP) of images:
  CLIP     MVTec AD  pixel 38.4, 11.3   image 74.1, 87.6      VisA  pixel 46.6, 14.8   image 66.4, 71.5
  CLIP-AC  MVTec AD  pixel 38.2, 11.6   image 71.5, 86.4      VisA  pixel 47.8, 17.3   image 65.0, 70.1
"""

import ml_collections as mlc

from zsad_jax.configs import common

PUBLISHED = {  # percent
  'pair': dict(mvtec_ad=dict(image_auroc=74.1, image_ap=87.6, pixel_auroc=38.4, aupro_200=11.3),
               visa=dict(image_auroc=66.4, image_ap=71.5, pixel_auroc=46.6, aupro_200=14.8)),
  'imagenet': dict(mvtec_ad=dict(image_auroc=71.5, image_ap=86.4, pixel_auroc=38.2, aupro_200=11.6),
                   visa=dict(image_auroc=65.0, image_ap=70.1, pixel_auroc=47.8, aupro_200=17.3)),
}


def get_config(arg=None):
  """Returns every key with its published value; `:ac` is CLIP-AC, `:demo` is for the embedded tiny CLIP."""
  variant = common.choice(arg, 'ac', 'demo')
  c = common.base()
  c.update(method('imagenet' if variant == 'ac' else 'pair'))
  if variant == 'demo':
    c.update(common.embedded())
    c.map.sigma = 1.0  # 4 px at 518 px, scaled
  return c


def method(ensemble):
  """Returns the keys that the method itself reads."""
  c = mlc.ConfigDict()
  c.method = 'clip'
  c.label = 'CLIP-AC' if ensemble == 'imagenet' else 'CLIP'  # its name in tables and on pages
  c.prompt = mlc.ConfigDict()
  c.prompt.ensemble = ensemble  # pair, imagenet (CLIP-AC), or compound: the states and templates of APRIL-GAN's code
  c.prompt.class_word = ''  # name of every object; '' = its category's name
  c.positions = 'bilinear'  # resampling of the positional table: bilinear, bicubic_antialias, bicubic
  c.temperature = 0.07  # divides every cosine; not in the paper; changes image metrics only with crops
  c.use_logit_scale = False  # use CLIP's own temperature exp(-logit_scale), about 0.01, instead
  c.multicrop = common.multicrop()  # of the image score
  c.map = mlc.ConfigDict()
  c.map.sigma = 4.0  # of the Gaussian that smooths maps, in pixels; 0 = none
  c.published = mlc.ConfigDict(PUBLISHED[ensemble])
  if ensemble == 'pair':
    c.published.cost = mlc.ConfigDict(dict(images_per_s=13.23))  # AnomalyCLIP's table 8
  return c
