r"""PatchCore (arXiv 2106.08265) on CLIP features: a few-shot sanity check.

  python launch.py --config=configs/patchcore_clip.py:demo --workdir=runs/patchcore
  python launch.py --config=configs/patchcore_clip.py --workdir=runs/patchcore-4 --config.fewshot.shots=4

There are no published numbers: PatchCore's own use WideResNet-50 features and are not comparable. This config shows
what a plain nearest-neighbour search gives on the features that WinCLIP+ compares.
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
    c.layers = (3, 5)  # of 6 blocks
    c.map.sigma = 2.0
  return c


def method():
  """Returns the keys that the method itself reads."""
  c = mlc.ConfigDict()
  c.method = 'patchcore_clip'
  c.label = 'PatchCore on CLIP features'  # its name in tables and on pages
  c.layers = (6, 9)  # blocks, from 1, whose patch tokens are read: after one half and three quarters
  c.positions = 'bicubic_antialias'  # resampling of the positional table: bilinear, bicubic_antialias, bicubic
  c.pool = 3  # patches per side of the neighbourhood that a token is averaged over

  c.fewshot = mlc.ConfigDict()
  c.fewshot.shots = 1  # k, normal reference images per target category
  c.fewshot.seed = 0  # of their selection
  c.fewshot.replacement = False

  c.coreset = mlc.ConfigDict()
  c.coreset.ratio = 1.0  # share of the reference patches in the memory bank; 1 = all, feasible for a few images
  c.coreset.dims = 128  # dimensions of the random projection that the coreset is selected in
  c.coreset.seed = 0  # of the projection and of the first patch
  c.patchcore = mlc.ConfigDict()
  c.patchcore.reweight = False  # weight the image score (eq. 7 of the paper)
  c.patchcore.neighbours = 9  # references around the nearest one that determine the weight
  c.map = mlc.ConfigDict()
  c.map.sigma = 4.0  # of the Gaussian that smooths maps, in pixels; 0 = none
  return c
