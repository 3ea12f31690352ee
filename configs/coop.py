r"""CoOp for zero-shot anomaly detection: one trainable context before "normal [cls]." and "anomalous [cls].".

  python launch.py --config=configs/coop.py:demo --workdir=runs/coop
  python launch.py --config=configs/coop.py --workdir=runs/coop-visa-to-mvtec
  python launch.py --config=configs/coop.py --workdir=runs/coop-mvtec-to-visa \
    --config.data.aux=mvtec_ad --config.data.target=visa
  python launch.py --config=configs/coop.py:original --workdir=runs/coop-original

Published as a baseline of AnomalyCLIP (arXiv 2310.18961, table 1), trained on VisA for MVTec AD and on MVTec AD for
all other data sets; (AUROC, AUPRO) of pixels, (AUROC, AP) of images:
  MVTec AD   pixel 33.3, 6.7    image 88.8, 94.8
  VisA       pixel 24.2, 3.8    image 62.8, 68.1
  MPDD       pixel 15.4, 2.3    image 55.1, 64.2
  BTAD       pixel 28.6, 3.8    image 66.8, 77.4
This is a re-implementation: no code of that baseline is public, and the paper states neither epochs, batch size, logit
scale nor augmentation, only that hyperparameters are CoOp's. The default trains for 15 epochs with batch size 8, as
AnomalyCLIP does, with CoOp's optimizer; `:original` has CoOp's own 200 epochs with batch size 32. CoOp also augments
(random resized crops and flips at 224 px) and computes in half precision. Neither variant does: features are stored,
so every epoch sees the same images, resized to a square of image_size, in float32.
"""

import ml_collections as mlc

from zsad_jax.configs import common

PUBLISHED = dict(  # percent
  mvtec_ad=dict(image_auroc=88.8, image_ap=94.8, pixel_auroc=33.3, aupro_200=6.7),
  visa=dict(image_auroc=62.8, image_ap=68.1, pixel_auroc=24.2, aupro_200=3.8))


def get_config(arg=None):
  """Returns every key with its default; `:original` trains as long as CoOp, `:demo` is for the embedded tiny CLIP."""
  variant = common.choice(arg, 'original', 'demo')
  c = common.base()
  c.update(method())
  c.optim.epochs = c.train.get_ref('epochs')  # a reference: setting either sets both
  if variant == 'original':
    c.train.update(batch=32, epochs=200)
  if variant == 'demo':
    c.update(common.embedded())
    c.map.sigma = 1.0  # 4 px at 518 px, scaled
  return c


def method():
  """Returns the keys that the method itself reads, and its optimizer."""
  c = mlc.ConfigDict()
  c.method = 'coop'
  c.label = 'CoOp'  # its name in tables and on pages

  c.prompt = mlc.ConfigDict()
  c.prompt.n_ctx = 16  # N, trainable context vectors
  c.prompt.ctx_init = ''  # initial words, of n_ctx tokens, such as 'a photo of a' with n_ctx 4; '' = random
  c.prompt.init_std = 0.02  # of random vectors
  c.prompt.normal_word = 'normal'  # precedes the name
  c.prompt.abnormal_word = 'anomalous'
  c.prompt.trailing = '.'  # ends both prompts
  c.prompt.categories = ()  # names of the auxiliary categories; () = those of data.aux

  c.positions = 'bilinear'  # resampling of the positional table: bilinear, bicubic_antialias, bicubic
  c.temperature = 0.07  # divides every cosine of scores and maps; not in the paper
  c.use_logit_scale = False  # use CLIP's own temperature exp(-logit_scale), about 0.01, instead
  c.multicrop = common.multicrop()  # of the image score

  c.loss = mlc.ConfigDict()
  c.loss.temperature = 0.01  # divides every cosine in training: a logit scale of 100
  c.loss.use_logit_scale = False

  c.map = mlc.ConfigDict()
  c.map.sigma = 4.0  # of the Gaussian that smooths maps, in pixels; 0 = none

  c.published = mlc.ConfigDict(PUBLISHED)  # of targets that one auxiliary data set is possible for
  c.published.cost = mlc.ConfigDict(dict(images_per_s=12.75, epoch_minutes=12.25))  # AnomalyCLIP's table 8

  c.optim = mlc.ConfigDict()
  c.optim.name = 'sgd'
  c.optim.lr = 0.002
  c.optim.momentum = 0.9
  c.optim.weight_decay = 5e-4  # added to the gradient
  c.optim.schedule = 'cosine'
  c.optim.warmup_epochs = 1
  c.optim.warmup_lr = 1e-5
  return c
