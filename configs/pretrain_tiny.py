r"""The tiny CLIP of checkpoints/tiny, pretrained on procedural images with captions and damage masks.

  nice -n 19 python launch.py --config=configs/pretrain_tiny.py --workdir=runs/pretrain_tiny

Resumes from the workdir's state; <workdir>/curve.jsonl holds the held-out probe and <workdir>/export what
checkpoints/tiny is a copy of.  Held-out zero-shot AUROC at the end: image 79, pixel 93 in the V-V stream.  That run
began (`start`) with the weights of an earlier one, of 359 thousand images under AdamW; more in its README.
"""

import ml_collections as mlc


def get_config():
  c = mlc.ConfigDict()
  c.source = 'zsad_jax.data.synthetic.pretraining'  # draws and captions; its aux and target groups are never trained on
  c.seed = 0
  c.start = ''  # folder of weights to begin with, such as checkpoints/tiny; '' begins at random
  c.merges = 3072  # upper bound; the captions yield about 600

  c.arch = mlc.ConfigDict(dict(image_size=112, patch=8, width=128, layers=6, heads=4, embed=128, context=77,
                               text_width=128, text_layers=4, text_heads=4))
  # Small pictures first: 64 tokens cost a third of 196.  They are cut from large ones, hardly shrunk: at a smaller
  # scale most damage is too fine to see.  `crop`: least and greatest side of the random crop, as shares.
  c.phases = mlc.ConfigDict(dict(steps=(9000, 5800), image_size=(64, 112), batch=(32, 16), crop=((.5, .65), (.7, 1.))))
  # Blocks of the V-V stream of AnomalyCLIP that the patch term reads, and where that stream begins.
  c.side_taps = (4, 5, 6)
  c.side_first_block = 2
  c.temperature = .07  # of the patch term, as in AnomalyCLIP's local loss
  c.weight = mlc.ConfigDict(dict(contrast=.5, state=2., patch=2.))
  c.optim = mlc.ConfigDict(dict(lr=1e-3, warmup=200, fall=.9, decay=.05, mean=.998))

  # Scenes are drawn 2052 at a time by a process of its own; a chunk serves `reuse` steps.
  c.pool = mlc.ConfigDict(dict(count=2052, size=112, reuse=640, workers=1))
  c.probe = mlc.ConfigDict(dict(group='aux', count=96, every=300))
  c.save_seconds = 180.
  return c
