r"""PatchCore's rules (arXiv 2106.08265) on CLIP features: a few-shot sanity row.

  python launch.py --config=configs/patchcore_clip.py:demo --workdir=runs/patchcore
  python launch.py --config=configs/patchcore_clip.py --workdir=runs/patchcore-4 --config.fewshot.shots=4

No published numbers: those of PatchCore itself are of WideResNet-50 features and must not stand beside this row. It
says what a plain nearest-neighbour search gives on the features that WinCLIP+ compares.
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
    c.layers = (3, 5)  # of 6 blocks
    c.map.sigma = 2.0
  return c


def method():
  """The keys that the method itself reads."""
  c = mlc.ConfigDict()
  c.method = 'patchcore_clip'
  c.label = 'PatchCore on CLIP features'  # what tables call this row
  c.layers = (6, 9)  # blocks whose patch tokens are read, counted from 1: one half and three quarters of the way
  c.positions = 'bicubic_antialias'  # resampling of the positional table: bilinear, bicubic_antialias, bicubic
  c.pool = 3  # patches a side that a token is averaged over

  c.fewshot = mlc.ConfigDict()
  c.fewshot.shots = 1  # k, normal images of each target category
  c.fewshot.seed = 0  # of their draw
  c.fewshot.replacement = False

  c.coreset = mlc.ConfigDict()
  c.coreset.ratio = 1.0  # share of the references' patches that is kept; 1 = all, which a few images allow
  c.coreset.dims = 128  # of the random projection under which the coreset is chosen
  c.coreset.seed = 0  # of that projection and of the first patch
  c.patchcore = mlc.ConfigDict()
  c.patchcore.reweight = False  # weigh the image score as the paper does
  c.patchcore.neighbours = 9  # references around the nearest one that decide the weight
  c.map = mlc.ConfigDict()
  c.map.sigma = 4.0  # of the Gaussian that smooths maps, in pixels; 0 = none
  return c
