"""Affine layers on patch tokens: their initial values, and maps and losses worked out by hand.

APRIL-GAN's own tests compare the formulas with a transcription.
"""

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np
import pytest

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import Features, Tap
from zsad_jax.methods.parts import linear_adapter

TINY = clip_lib.Clip(clip_lib.ARCHS['tiny'], 16, params=None)  # a grid of 2 x 2
CFG = mlc.FrozenConfigDict(dict(layers=(2, 5), temperature=0.01))


def planted():
  """Identity layers, tokens that equal the normal or the abnormal text, and these texts."""
  width, embed = TINY.arch.vision.width, TINY.arch.embed_dim
  normal, abnormal = np.eye(2, embed, dtype=np.float32)
  tokens = jnp.asarray(np.stack([normal, abnormal, abnormal, normal])[None]) * 3
  params = {linear_adapter.name(block): {'kernel': jnp.eye(width, embed), 'bias': jnp.zeros(embed)}
            for block in CFG.layers}
  taps = {linear_adapter.tap(2).name: tokens, linear_adapter.tap(5).name: tokens[:, :1].repeat(4, 1)}
  return params, Features(None, taps), jnp.stack([normal, abnormal])


def test_layers_start_at_different_values_within_a_bound():
  params = linear_adapter.init(jax.random.key(0), CFG.layers, TINY.arch)
  width = TINY.arch.vision.width
  assert list(params) == ['block2', 'block5'] and linear_adapter.tap(5) == Tap('clip', 5)
  for leaf in jax.tree.leaves(params):
    assert 0.9 * width ** -0.5 < np.abs(leaf).max() <= width ** -0.5
  assert np.abs(params['block2']['kernel'] - params['block5']['kernel']).min() > 0


@pytest.mark.slow
def test_the_map_adds_up_the_blocks():
  params, features, pair = planted()
  out = linear_adapter.anomaly_map(params, features, pair, clip=TINY, cfg=CFG)
  assert out.shape == (1, 16, 16)
  np.testing.assert_allclose(out[0, ::15, ::15], [[0, 1], [1, 0]], atol=1e-6)  # block 5 is normal throughout


@pytest.mark.slow
def test_normal_pixels_may_weigh_nothing_in_the_focal_loss():
  params, features, pair = planted()
  batch = dict(mask=jnp.zeros((1, 16, 16), jnp.uint8), valid=jnp.ones(1, bool))
  both, literal = (linear_adapter.loss(params, features, pair, batch, clip=TINY, cfg=CFG, normal_weight=weight)
                   for weight in (1., 0.))
  assert both['loss_focal'] > 1 and literal['loss_focal'] == 0
  assert both['loss_dice'] == literal['loss_dice']
  with pytest.raises(ValueError, match='masks are 8x8; the loss needs them at image_size 16'):
    linear_adapter.loss(params, features, pair, {**batch, 'mask': batch['mask'][:, :8, :8]}, clip=TINY, cfg=CFG)
