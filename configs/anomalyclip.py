r"""AnomalyCLIP: object-agnostic prompt learning (ICLR 2024, arXiv 2310.18961), as released.

  python launch.py --config=configs/anomalyclip.py:demo --workdir=runs/demo
  python launch.py --config=configs/anomalyclip.py --workdir=runs/visa-to-mvtec
  python launch.py --config=configs/anomalyclip.py --workdir=runs/mvtec-to-visa \
    --config.data.aux=mvtec_ad --config.data.target=visa

Published (table 1): (AUROC, AUPRO) of pixels and (AUROC, AP) of images, trained on VisA for MVTec AD, and on
MVTec AD for all other data sets:
  MVTec AD   pixel 91.1, 81.4   image 91.5, 96.2
  VisA       pixel 95.5, 87.0   image 82.1, 85.4
The logs of the released weights differ from these by up to 0.3; independent training runs vary by about 1.

Rows of the paper's ablations, as changes to this config:
  4 Base (untrained)  t1_dpam=False t2_object_agnostic=False t2_off=no_context t3_text_tuning=False
  4 +T1 (untrained)   t2_object_agnostic=False t2_off=no_context t3_text_tuning=False
  4 +T2               t3_text_tuning=False loss.lambda_local=1
  4 +T3, 7 w/o T4     loss.lambda_local=1
  7 w/o T1, 10 Q-K    t1_dpam=False; as first released also local_layers=(6,12,18,24) loss.lambda_local=1
  7 w/o T2            t2_object_agnostic=False; or that and t2_off=no_context prompt.deep_mode=concat
  7 w/o T3            t3_text_tuning=False
  5 local only        loss.ce=False
  5 global only       loss.focal=False loss.dice=False; 11: one of the two
  9 shared            prompt.shared_ctx=True
  10 ensembles        dpam.mode=ens1, dpam.mode=ens2
  13, 14              prompt.state_word=anomalous, flawed, defective, blemished
  the paper's words   local_layers=(6,12,18,24) loss.lambda_local=1, cls_ln_post=True, prompt.deep_mode=concat
"""

import ml_collections as mlc

from zsad_jax.configs import common


def get_config(arg=None):
  """Returns every key with its published value; `:demo` is for the embedded tiny CLIP and the synthetic data sets."""
  variant = common.choice(arg, 'demo')
  c = common.base()
  c.update(method())
  if variant == 'demo':
    c.update(demo())
  return c


def demo():
  """Returns the keys that change for the embedded tiny CLIP: 6 image blocks, 4 text blocks, 112 px instead of 518."""
  c = common.embedded()
  c.local_layers = (6,)
  c.dpam = mlc.ConfigDict(dict(first_block=2))
  c.prompt = mlc.ConfigDict(dict(depth=4))
  c.map = mlc.ConfigDict(dict(sigma=1.0))  # 4 px at 518 px, scaled
  # With the paper's learning rate and weight of the local losses, the prompts of so small a CLIP overfit the auxiliary
  # categories. These values were selected on the auxiliary categories alone: train on three, evaluate on the others.
  c.optim = mlc.ConfigDict(dict(lr=3e-4))
  c.loss = mlc.ConfigDict(dict(lambda_local=.25))
  return c


def method():
  """Returns the keys that AnomalyCLIP itself reads, and its optimizer."""
  c = mlc.ConfigDict()
  c.method = 'anomalyclip'
  c.label = 'AnomalyCLIP'  # its name in tables and on pages

  c.t1_dpam = True  # T1; False reads patch tokens from CLIP's own stream, as dpam.mode=qk does
  c.t2_object_agnostic = True  # T2; False: prompts name each category
  c.t2_off = 'object_aware'  # with T2 off: object_aware keeps the trainable context, no_context drops it
  c.t3_text_tuning = True  # T3; False trains no deep tokens
  c.t4_emulate_aliasing = False  # use the last map for each of local_layers, as the first release did
  c.local_layers = (24,)  # T4: blocks, from 1, whose maps are summed; paper: (6, 12, 18, 24) with lambda_local 1

  c.dpam = mlc.ConfigDict()
  c.dpam.mode = 'vv'  # vv, qq, kk, qk, ens1 = qq+kk+vv, ens2 = qk+qq+kk+vv
  c.dpam.first_block = 6  # from 1; the stream runs to the last block
  c.dpam.ffn = False  # restart from CLIP's stream, with its feed-forward network, at every block
  c.dpam.ensemble = 'logits'  # ens1, ens2 average logits or probs

  c.prompt = mlc.ConfigDict()
  c.prompt.n_ctx = 12  # E, trainable vectors before the object's name
  c.prompt.depth = 9  # M; deep tokens enter blocks 2..M (concat: 1..M)
  c.prompt.deep_len = 4  # L, deep tokens per block; at most E with overwrite
  c.prompt.deep_mode = 'overwrite'  # replaces positions 1..L; concat inserts and later drops them (appendix D)
  c.prompt.deep_fp16_round = True  # deep tokens and their gradients pass through half precision
  c.prompt.init_std = 0.02  # of all trainable vectors
  c.prompt.shared_ctx = False  # one context for both prompts
  c.prompt.class_word = 'object'  # name of every object in object-agnostic prompts
  c.prompt.state_word = 'damaged'  # precedes the name in the abnormal prompt
  c.prompt.trailing = '.'  # ends both prompts; the paper has none
  c.prompt.object_re = False  # evaluate with category names instead of class_word
  c.prompt.categories = ()  # names of the auxiliary categories, for object-aware training only

  c.cls_ln_post = False  # apply ln_post to the class token, as the paper does
  c.positions = 'bilinear'  # resampling of the positional table: bilinear, bicubic_antialias, bicubic
  c.temperature = 0.07  # divides every cosine
  c.use_logit_scale = False  # use CLIP's own temperature exp(-logit_scale), about 0.01, instead
  c.multicrop = common.multicrop()  # of the image score

  c.loss = mlc.ConfigDict()
  c.loss.ce = True  # global: cross-entropy of image labels
  c.loss.focal = True  # local
  c.loss.dice = True  # local, on both maps
  c.loss.lambda_local = 4.0  # weight of each layer's local loss

  c.map = mlc.ConfigDict()
  c.map.sigma = 4.0  # of the Gaussian that smooths maps, in pixels; 0 = none

  c.published = mlc.ConfigDict(dict(  # percent, from table 1, which has neither F1-max nor pixel AP
    mvtec_ad=dict(image_auroc=91.5, image_ap=96.2, pixel_auroc=91.1, aupro_200=81.4),
    visa=dict(image_auroc=82.1, image_ap=85.4, pixel_auroc=95.5, aupro_200=87.0),
    cost=dict(images_per_s=8.92, epoch_minutes=13.71)))  # table 8

  c.optim = mlc.ConfigDict()
  c.optim.lr = 1e-3
  c.optim.b1 = 0.5
  c.optim.b2 = 0.999
  c.optim.eps = 1e-8
  return c
