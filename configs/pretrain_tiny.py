r"""The tiny CLIP of checkpoints/tiny, pretrained on procedural images with captions and defect masks.

  nice -n 19 python launch.py --config=configs/pretrain_tiny.py --workdir=runs/pretrain_tiny

Interrupted runs resume. <workdir>/curve.jsonl has the results of the held-out probe, and checkpoints/tiny is a copy of
<workdir>/export. Held-out zero-shot AUROC at the end: 79 for images, 93 for pixels of the V-V stream. That run started
from the weights of an earlier one (`start`), trained on 359,200 images with AdamW; see checkpoints/tiny/README.md.
"""

import ml_collections as mlc


def get_config() -> mlc.ConfigDict:
  """Returns the config of the pretraining."""
  c = mlc.ConfigDict()
  c.source = 'zsad_jax.data.synthetic.pretraining'  # draws and captions; never trains on groups aux and target
  c.seed = 0
  c.start = ''  # folder of initial weights, such as checkpoints/tiny; '' = random
  c.merges = 3072  # upper bound of the tokenizer's merges; the captions have about 600

  c.arch = mlc.ConfigDict(dict(image_size=112, patch=8, width=128, layers=6, heads=4, embed=128, context=77,
                               text_width=128, text_layers=4, text_heads=4))
  # Small images first, because 64 tokens cost a third of 196. They are crops of large drawings at almost full scale:
  # smaller, most defects would be too fine to see. crop: smallest and largest side of the random crop, as a share.
  c.phases = mlc.ConfigDict(dict(steps=(9000, 5800), image_size=(64, 112), batch=(32, 16), crop=((.5, .65), (.7, 1.))))
  # AnomalyCLIP's V-V stream: the blocks that the patch term reads, and the first block of the stream.
  c.side_taps = (4, 5, 6)
  c.side_first_block = 2
  c.temperature = .07  # of the patch term, as in AnomalyCLIP's local loss
  c.weight = mlc.ConfigDict(dict(contrast=.5, state=2., patch=2.))
  c.optim = mlc.ConfigDict(dict(lr=1e-3, warmup=200, fall=.9, decay=.05, mean=.998))

  # A separate process draws chunks of 2,052 scenes; each chunk serves `reuse` steps.
  c.pool = mlc.ConfigDict(dict(count=2052, size=112, reuse=640, workers=1))
  c.probe = mlc.ConfigDict(dict(group='aux', count=96, every=300))
  c.save_seconds = 180.
  return c
