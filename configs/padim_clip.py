r"""PaDiM (arXiv 2011.08785) on CLIP features: a few-shot sanity check.

  python launch.py --config=configs/padim_clip.py:demo --workdir=runs/padim
  python launch.py --config=configs/padim_clip.py --workdir=runs/padim-4 --config.fewshot.shots=4

There are no published numbers: PaDiM's own use ResNet features and are not comparable. One Gaussian per position
requires images in which the object is always aligned.
"""

import ml_collections as mlc

from zsad_jax.configs import common


def get_config(arg=None):
  """Returns every key; `:demo` is for the embedded tiny CLIP."""
  variant = common.choice(arg, 'demo')
  c = common.base()
  c.clip, c.image_size = 'vit_b16_plus_240:laion400m_e31', 240
  c.update(method())
  if variant == 'demo':
    c.update(common.embedded())
    c.layers = (2, 3, 5)  # of 6 blocks
    c.padim.dims = 100
    c.map.sigma = 2.0
  return c


def method():
  """Returns the keys that the method itself reads."""
  c = mlc.ConfigDict()
  c.method = 'padim_clip'
  c.label = 'PaDiM on CLIP features'  # its name in tables and on pages
  c.layers = (3, 6, 9)  # blocks, from 1, whose patch tokens are read: after one, two and three quarters
  c.positions = 'bicubic_antialias'  # resampling of the positional table: bilinear, bicubic_antialias, bicubic

  c.fewshot = mlc.ConfigDict()
  c.fewshot.shots = 1  # k, normal reference images per target category
  c.fewshot.seed = 0  # of their selection
  c.fewshot.replacement = False

  c.padim = mlc.ConfigDict()
  c.padim.dims = 550  # d, randomly selected dimensions of all blocks' tokens
  c.padim.seed = 0  # of that selection
  c.padim.eps = 0.01  # added to the diagonal of every covariance
  c.map = mlc.ConfigDict()
  c.map.sigma = 4.0  # of the Gaussian that smooths maps, in pixels; 0 = none
  return c
