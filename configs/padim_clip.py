r"""PaDiM's rules (arXiv 2011.08785) on CLIP features: a few-shot sanity row.

  python launch.py --config=configs/padim_clip.py:demo --workdir=runs/padim
  python launch.py --config=configs/padim_clip.py --workdir=runs/padim-4 --config.fewshot.shots=4

No published numbers: those of PaDiM itself are of ResNet features and must not stand beside this row. A Gaussian at
every place asks for images in which the object always lies alike.
"""

import ml_collections as mlc

from zsad_jax.configs import common


def get_config(arg=None):
  """Every key; `:demo` fits the embedded tiny CLIP."""
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
  """The keys that the method itself reads."""
  c = mlc.ConfigDict()
  c.method = 'padim_clip'
  c.label = 'PaDiM on CLIP features'  # what tables call this row
  c.layers = (3, 6, 9)  # blocks whose patch tokens are read, counted from 1: three of four quarters
  c.positions = 'bicubic_antialias'  # resampling of the positional table: bilinear, bicubic_antialias, bicubic

  c.fewshot = mlc.ConfigDict()
  c.fewshot.shots = 1  # k, normal images of each target category
  c.fewshot.seed = 0  # of their draw
  c.fewshot.replacement = False

  c.padim = mlc.ConfigDict()
  c.padim.dims = 550  # d, dimensions kept of all the blocks'
  c.padim.seed = 0  # of their choice
  c.padim.eps = 0.01  # on the diagonal of every covariance
  c.map = mlc.ConfigDict()
  c.map.sigma = 4.0  # of the Gaussian that smooths maps, in pixels; 0 = none
  return c
