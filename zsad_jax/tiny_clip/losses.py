"""The three terms of the pretraining loss.

All three are computed on the towers' ordinary read-outs:
  contrast  images against captions, both ways. The captions come in both states, so that each image meets its own
            caption with the opposite state. Captions that are also true of another image are not its negatives.
  state     each image against its own caption pair, normal and anomalous.
  patch     patch tokens against the same pair, with the defect mask as ground truth. Contrast alone does not learn to
            locate defects.
"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np
import optax

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import FeatureSpec
from zsad_jax.ops import maps


def normalise(images: Any, clip: clip_lib.Clip) -> jax.Array:
  """Returns images [B, R, R, 3] uint8 normalised for the image tower, float32."""
  mean, std = (jnp.array(x, jnp.float32)[None, None, None] for x in (clip.arch.mean, clip.arch.std))
  return (jnp.asarray(images, jnp.float32) / 255 - mean) / std


def _state_loss(logits, targets, weight):
  """Returns the mean sigmoid cross-entropy of the anomalous and of the normal entries, averaged; `weight` 0 ignores."""
  loss = optax.losses.sigmoid_binary_cross_entropy(logits, targets)
  means = [(loss * w).sum() / jnp.maximum(w.sum(), 1.) for w in (weight * targets, weight * (1 - targets))]
  return (means[0] + means[1]) / 2


def loss(params: Any, batch: dict[str, Any], *, clip: clip_lib.Clip, spec: FeatureSpec,
         cfg: mlc.FrozenConfigDict) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the weighted sum of the three terms, and {term: scalar}.

  Args:
    params: CLIP's parameter tree.
    batch: image [B, R, R, 3] uint8, a normal and a defective image of each scene; ids [B, L] int32, the normal texts
      of the B / 2 scenes, then the anomalous ones; true [B, B] bool, whether a text is true of an image; label [B]
      float; known [B] float, 0 if the crop leaves the label undecided; cover [B, G, G] float, share of defect pixels.
    clip: a CLIP without weights.
    spec: features to read, one of pretrain.specs.
    cfg: configs/pretrain_tiny.py.
  """
  images = normalise(batch['image'], clip)
  features = clip.image(params, images, spec)
  text = maps.normalize(clip.text(params, clip.embed(params, batch['ids']), clip.eot(batch['ids'])))
  normal, anomalous = (jnp.repeat(state, 2, axis=0) for state in jnp.split(text, 2))
  image = maps.normalize(features.cls)
  scale = jnp.exp(jnp.minimum(params['logit_scale'], np.log(100.)))

  logits, true = scale * image @ text.T, batch['true'] * batch['known'][:, None]     # [B, B]
  contrast = (_contrast_loss(logits, true) + _contrast_loss(logits.T, true.T)) / 2
  state = _state_loss(scale * (image * (anomalous - normal)).sum(-1), batch['label'], batch['known'])

  cover = batch['cover'].reshape(images.shape[0], -1)
  patch = 0.
  for tokens in features.taps.values():
    score = jnp.einsum('bne,be->bn', maps.normalize(tokens), anomalous - normal) / cfg.temperature
    patch += _patch_loss(score, cover) / len(features.taps)
  total = cfg.weight.contrast * contrast + cfg.weight.state * state + cfg.weight.patch * patch
  return total, dict(loss=total, contrast=contrast, state=state, patch=patch)


def _patch_loss(logits, cover):
  """Returns the mean sigmoid cross-entropy of patch logits [B, N].

  Defective patches weigh a half, the same patches of the normal twin a quarter, and all other normal patches a quarter.
  Most normal patches are plain background: without the share of the twins, separating objects from the background
  would be enough.

  Args:
    logits: defect logits; rows 2 i and 2 i + 1 are a normal image and its defective twin.
    cover: [B, N] share of defect pixels. Patches with up to 10 % are ignored.
  """
  defective = cover > .1
  twins = jnp.repeat(defective[1::2], 2, axis=0) & (cover == 0)
  normal = (cover == 0) & ~twins
  loss = optax.losses.sigmoid_binary_cross_entropy(logits, defective * 1.)
  mean = lambda mask: (loss * mask).sum() / jnp.maximum(mask.sum(), 1)
  return mean(defective) / 2 + (mean(twins) + mean(normal)) / 4


def _contrast_loss(logits, true):
  """Returns the cross-entropy of softmax rows against their true entries, equally weighted, over rows that have any."""
  count = true.sum(1)
  log = jax.nn.log_softmax(logits, 1)
  return -((log * true).sum(1) / jnp.maximum(count, 1)).sum() / jnp.maximum((count > 0).sum(), 1)
