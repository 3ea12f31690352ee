r"""WinCLIP, zero-shot, and WinCLIP+ with 1, 2 or 4 normal reference images per category (arXiv 2303.14814).

  python launch.py --config=configs/winclip.py:demo --workdir=runs/winclip
  python launch.py --config=configs/winclip.py --workdir=runs/winclip-mvtec --config.data.target=mvtec_ad
  python launch.py --config=configs/winclip.py:plus --workdir=runs/winclip-1 --config.data.target=visa
  python launch.py --config=configs/winclip.py:plus4 --workdir=runs/winclip-4 --config.seed=1

Published: (AUROC, F1-max, AP, AUPRO) of pixels and (AUROC, F1-max, AP) of images, as quoted in CLIP-AD's table 1; for
WinCLIP+, (AUROC, AP, F1-max) of images, mean and standard deviation over reference sets, as in RWDA's table 1:
  WinCLIP   MVTec AD  pixel 85.1, 31.7, 18.2, 64.6   image 91.8, 92.9, 96.5
            VisA      pixel 79.6, 14.8,  5.4, 56.8   image 78.1, 79.0, 81.2
  1 shot    MVTec AD  image 93.1 +- 2.0, 96.5 +- 0.9, 93.7 +- 1.1    VisA  83.8 +- 4.0, 85.1 +- 4.0, 83.1 +- 1.7
  2 shots   MVTec AD  image 94.4 +- 1.3, 97.0 +- 0.7, 94.4 +- 0.8    VisA  84.6 +- 2.4, 85.8 +- 2.7, 83.0 +- 1.4
  4 shots   MVTec AD  image 95.2 +- 1.3, 97.3 +- 0.6, 94.7 +- 0.8    VisA  87.3 +- 1.8, 88.8 +- 1.8, 84.2 +- 1.6
The published image metrics use a multi-crop prediction that the paper does not define. This config uses none;
--config.multicrop.recipe=clip_ad is CLIP-AD's, at ten more passes of the image tower. Without multi-crop prediction,
RWDA's table 2 has 90.8, 96.1 (AP), 92.5 (F1-max) for WinCLIP on MVTec AD. Expect the numbers of the reproduction
Accurate-WinCLIP, in the order of the first rows:
  0 shots   MVTec AD  pixel 82.3, 24.8, 18.2, 61.9   image 90.4, 92.7, 95.6
            VisA      pixel 73.2,  9.0,  5.4, 51.0   image 75.5, 78.2, 78.7
  1 shot    MVTec AD  pixel 93.6, 43.2, 39.1, 84.1   image 93.7, 93.7, 97.1
            VisA      pixel 94.7, 22.9, 15.9, 80.5   image 83.8, 81.9, 85.7
  2 shots   MVTec AD  pixel 93.8, 43.8, 39.5, 84.8   image 93.7, 94.5, 96.9
            VisA      pixel 95.1, 23.9, 16.6, 81.2   image 83.4, 82.5, 84.6
  4 shots   MVTec AD  pixel 94.2, 45.9, 42.2, 85.4   image 95.3, 94.9, 97.6
            VisA      pixel 95.2, 25.3, 17.7, 81.4   image 84.1, 82.4, 85.8
Its code corresponds to this config with prompt.templates=accurate21 fewshot.replacement=True.
"""

import ml_collections as mlc

from zsad_jax.configs import common

PUBLISHED = {  # {shots: percent}
  0: dict(mvtec_ad=dict(image_auroc=91.8, image_ap=96.5, image_f1max=92.9, pixel_auroc=85.1, pixel_ap=18.2,
                        pixel_f1max=31.7, aupro_200=64.6),
          visa=dict(image_auroc=78.1, image_ap=81.2, image_f1max=79.0, pixel_auroc=79.6, pixel_ap=5.4,
                    pixel_f1max=14.8, aupro_200=56.8)),
  1: dict(mvtec_ad=dict(image_auroc=93.1, image_ap=96.5, image_f1max=93.7),
          visa=dict(image_auroc=83.8, image_ap=85.1, image_f1max=83.1)),
  2: dict(mvtec_ad=dict(image_auroc=94.4, image_ap=97.0, image_f1max=94.4),
          visa=dict(image_auroc=84.6, image_ap=85.8, image_f1max=83.0)),
  4: dict(mvtec_ad=dict(image_auroc=95.2, image_ap=97.3, image_f1max=94.7),
          visa=dict(image_auroc=87.3, image_ap=88.8, image_f1max=84.2)),
}
SHOTS = {'plus': 1, 'plus2': 2, 'plus4': 4}


def get_config(arg=None):
  """Returns every key; `:plus`, `:plus2`, `:plus4` are WinCLIP+, `:demo` is for the embedded tiny CLIP."""
  variant = common.choice(arg, *SHOTS, 'demo')
  c = common.base()
  c.clip, c.image_size = 'vit_b16_plus_240:laion400m_e31', 240
  c.update(method(SHOTS.get(variant, 0)))
  if variant == 'demo':
    c.update(common.embedded())
  return c


def method(shots):
  """Returns the keys that the method itself reads."""
  c = mlc.ConfigDict()
  c.method = 'winclip'
  c.label = 'WinCLIP+' if shots else 'WinCLIP'  # its name in tables and on pages
  c.windows = (2, 3)  # sides of the windows in patches (32 and 48 px); stride 1
  c.positions = 'bicubic_antialias'  # resampling of the positional table: bilinear, bicubic_antialias, bicubic
  c.temperature = 0.07  # divides every cosine

  c.prompt = mlc.ConfigDict()
  c.prompt.templates = 'winclip22'  # accurate21: without two of them and with one twice, as in both reproductions
  c.prompt.class_word = ''  # name of every object; '' = its category's name
  c.prompt.raw_names = True  # texts say 'metal_nut', as folders are named; False: 'metal nut'
  c.text = mlc.ConfigDict()
  c.text.normalize_each = False  # normalize text features before their mean, as APRIL-GAN and CLIP-AD do

  c.mean = mlc.ConfigDict()
  c.mean.windows = 'harmonic'  # over the windows that cover a patch; or arithmetic
  c.mean.scales = 'harmonic'  # over the window sizes and the image; or arithmetic

  c.fewshot = mlc.ConfigDict()
  c.fewshot.shots = shots  # normal reference images per category; 0 = WinCLIP, zero-shot
  c.fewshot.seed = 0  # of their selection
  c.fewshot.replacement = False  # True: an image may be selected twice, as in Accurate-WinCLIP
  c.fewshot.combine = 'mean'  # of the text-guided and the reference-guided map; sum ranks alike
  c.fewshot.patch_block = 0  # block, from 1, after which patch tokens are read; 0 = the last
  c.fewshot.patch_ln_post = False  # apply ln_post to them, as anomalib does

  c.multicrop = common.multicrop()  # of the image score
  c.map = mlc.ConfigDict()
  c.map.sigma = 0.0  # of the Gaussian that smooths maps, in pixels; 0 = none
  c.published = mlc.ConfigDict(dict(PUBLISHED[shots], clip='vit_b16_plus_240:laion400m_e31', shots=shots))
  if not shots:
    c.published.cost = mlc.ConfigDict(dict(images_per_s=1.20))  # AnomalyCLIP's table 8
  return c
