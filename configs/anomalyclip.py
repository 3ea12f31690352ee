r"""AnomalyCLIP: object-agnostic prompt learning (ICLR 2024, arXiv 2310.18961), as released.

  python launch.py --config=configs/anomalyclip.py:demo --workdir=runs/demo
  python launch.py --config=configs/anomalyclip.py --workdir=runs/visa-to-mvtec
  python launch.py --config=configs/anomalyclip.py --workdir=runs/mvtec-to-visa \
    --config.data.aux=mvtec_ad --config.data.target=visa

Published (table 1): (AUROC, AUPRO) of pixels and (AUROC, AP) of images, trained on VisA for MVTec AD, and on
MVTec AD for everything else:
  MVTec AD   pixel 91.1, 81.4   image 91.5, 96.2
  VisA       pixel 95.5, 87.0   image 82.1, 85.4
The released weights' own logs differ by up to 0.3; independent trainings vary by about 1.

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
  """Every key with its published value; `:demo` fits the embedded tiny CLIP and the drawn data sets."""
  variant = common.choice(arg, 'demo')
  c = common.base()
  c.update(method())
  if variant == 'demo':
    c.update(demo())
  return c


def demo():
  """What changes for the embedded tiny CLIP: 6 image blocks, 4 text blocks, 112 px in place of 518."""
  c = common.embedded()
  c.local_layers = (6,)
  c.dpam = mlc.ConfigDict(dict(first_block=2))
  c.prompt = mlc.ConfigDict(dict(depth=4))
  c.map = mlc.ConfigDict(dict(sigma=1.0))  # 4 px at 518 px, scaled
  # Under the paper's rate and weight of the local losses, prompts of so small a CLIP learn the auxiliary categories by
  # heart. These were chosen on the auxiliary categories alone: trained on three of them, evaluated on the others.
  c.optim = mlc.ConfigDict(dict(lr=3e-4))
  c.loss = mlc.ConfigDict(dict(lambda_local=.25))
  return c


def method():
  """The keys that AnomalyCLIP itself reads, and its optimizer."""
  c = mlc.ConfigDict()
  c.method = 'anomalyclip'

  c.t1_dpam = True  # T1; False reads patches from CLIP's own stream, as dpam.mode=qk
  c.t2_object_agnostic = True  # T2; False puts each category's name into the prompts
  c.t2_off = 'object_aware'  # with T2 off: object_aware keeps the learned context, no_context does without
  c.t3_text_tuning = True  # T3; False learns no deep tokens
  c.t4_emulate_aliasing = False  # count local_layers as the first release did: the last map each time
  c.local_layers = (24,)  # T4: blocks whose maps are summed; paper: (6, 12, 18, 24) with lambda_local 1

  c.dpam = mlc.ConfigDict()
  c.dpam.mode = 'vv'  # vv, qq, kk, qk, ens1 = qq+kk+vv, ens2 = qk+qq+kk+vv
  c.dpam.first_block = 6  # counted from 1; the stream runs to the last block
  c.dpam.ffn = False  # restart from CLIP's stream with its feed-forward network at every block
  c.dpam.ensemble = 'logits'  # ens1, ens2 average logits or probs

  c.prompt = mlc.ConfigDict()
  c.prompt.n_ctx = 12  # E, learned vectors before the object's name
  c.prompt.depth = 9  # M; deep tokens enter blocks 2..M (concat: 1..M)
  c.prompt.deep_len = 4  # L, deep tokens a block; at most E when they overwrite
  c.prompt.deep_mode = 'overwrite'  # of positions 1..L; concat inserts and drops them (appendix D)
  c.prompt.deep_fp16_round = True  # deep tokens pass through half precision, their gradients too
  c.prompt.init_std = 0.02  # of all learned vectors
  c.prompt.shared_ctx = False  # one context for both prompts
  c.prompt.class_word = 'object'  # what the agnostic prompts call every object
  c.prompt.state_word = 'damaged'  # precedes the name in the abnormal prompt
  c.prompt.trailing = '.'  # ends both prompts; the paper has none
  c.prompt.object_re = False  # evaluate with category names in place of class_word
  c.prompt.categories = ()  # names of the auxiliary categories, for object-aware training only

  c.cls_ln_post = False  # the paper's class token passes ln_post
  c.positions = 'bilinear'  # resampling of the positional table: bilinear, bicubic_antialias, bicubic
  c.temperature = 0.07  # divides every cosine
  c.use_logit_scale = False  # take CLIP's own temperature exp(-logit_scale), about 0.01, in its place
  c.multicrop = common.multicrop()  # of the image score

  c.loss = mlc.ConfigDict()
  c.loss.ce = True  # global: cross-entropy of image labels
  c.loss.focal = True  # local
  c.loss.dice = True  # local, on both maps
  c.loss.lambda_local = 4.0  # weight of each layer's local loss

  c.map = mlc.ConfigDict()
  c.map.sigma = 4.0  # of the Gaussian that smooths maps, in pixels; 0 = none

  c.published = mlc.ConfigDict(dict(  # percent; table 1 of the paper, F1-max and pixel AP are not in it
    mvtec_ad=dict(image_auroc=91.5, image_ap=96.2, pixel_auroc=91.1, aupro_200=81.4),
    visa=dict(image_auroc=82.1, image_ap=85.4, pixel_auroc=95.5, aupro_200=87.0),
    cost=dict(images_per_s=8.92, epoch_minutes=13.71)))  # table 8

  c.optim = mlc.ConfigDict()
  c.optim.lr = 1e-3
  c.optim.b1 = 0.5
  c.optim.b2 = 0.999
  c.optim.eps = 1e-8
  return c
