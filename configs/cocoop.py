r"""CoCoOp for zero-shot anomaly detection: an image-conditional context before "good [cls]." and "damaged [cls].".

  python launch.py --config=configs/cocoop.py:demo --workdir=runs/cocoop
  python launch.py --config=configs/cocoop.py --workdir=runs/cocoop-visa-to-mvtec
  python launch.py --config=configs/cocoop.py --workdir=runs/cocoop-mvtec-to-visa \
    --config.data.aux=mvtec_ad --config.data.target=visa
  python launch.py --config=configs/cocoop.py:original --workdir=runs/cocoop-original

No numbers are published for this adaptation. The state words are those of FuzzyCLIP's comparison; configs/coop.py has
normal and anomalous. To compare the two, give both the same --config.prompt.normal_word and abnormal_word. The default
trains for 15 epochs with batch size 8, as configs/coop.py does, with CoCoOp's optimizer; `:original` has CoCoOp's own
10 epochs with batch size 1. CoCoOp also augments (random resized crops and flips at 224 px) and computes in half
precision. Neither variant does: features are stored, so every epoch sees the same images, resized to a square of
image_size, in float32.
"""

import ml_collections as mlc

from zsad_jax.configs import common


def get_config(arg=None):
  """Returns every key with its default; `:original` trains as CoCoOp does, `:demo` is for the embedded tiny CLIP."""
  variant = common.choice(arg, 'original', 'demo')
  c = common.base()
  c.update(method())
  c.optim.epochs = c.train.get_ref('epochs')  # a reference: setting either sets both
  if variant == 'original':
    c.train.update(batch=1, epochs=10)
  if variant == 'demo':
    c.update(common.embedded())
    c.map.sigma = 1.0  # 4 px at 518 px, scaled
  return c


def method():
  """Returns the keys that the method itself reads, and its optimizer."""
  c = mlc.ConfigDict()
  c.method = 'cocoop'
  c.label = 'CoCoOp'  # its name in tables and on pages

  c.prompt = mlc.ConfigDict()
  c.prompt.n_ctx = 4  # N, trainable context vectors
  c.prompt.ctx_init = 'a photo of a'  # initial words, of n_ctx tokens; '' = random
  c.prompt.init_std = 0.02  # of random vectors
  c.prompt.reduction = 16  # the meta-net's hidden width is the width of image features, divided by this
  c.prompt.normal_word = 'good'  # precedes the name
  c.prompt.abnormal_word = 'damaged'
  c.prompt.trailing = '.'  # ends both prompts
  c.prompt.categories = ()  # names of the auxiliary categories; () = those of data.aux

  c.positions = 'bilinear'  # resampling of the positional table: bilinear, bicubic_antialias, bicubic
  c.temperature = 0.07  # divides every cosine of scores and maps
  c.use_logit_scale = False  # use CLIP's own temperature exp(-logit_scale), about 0.01, instead
  c.multicrop = common.multicrop()  # of the image score

  c.loss = mlc.ConfigDict()
  c.loss.temperature = 0.01  # divides every cosine in training: a logit scale of 100
  c.loss.use_logit_scale = False

  c.map = mlc.ConfigDict()
  c.map.sigma = 4.0  # of the Gaussian that smooths maps, in pixels; 0 = none

  c.optim = mlc.ConfigDict()
  c.optim.name = 'sgd'
  c.optim.lr = 0.002
  c.optim.momentum = 0.9
  c.optim.weight_decay = 5e-4  # added to the gradient
  c.optim.schedule = 'cosine'
  c.optim.warmup_epochs = 1
  c.optim.warmup_lr = 1e-5
  return c
