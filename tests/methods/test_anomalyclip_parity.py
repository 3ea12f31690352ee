"""AnomalyCLIP against the released training step and inference, as recorded by golden/record_anomalyclip.py.

Goldens need no torch; the variants that are not recorded run the PyTorch transcription beside ours.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden import record_anomalyclip as official
from method_checks import with_keys

from zsad_jax.clip import encoder
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import Features
from zsad_jax.configs import anomalyclip as config
from zsad_jax.methods import Context
from zsad_jax.methods import anomalyclip as method

GOLDEN = Path(__file__).parents[1] / 'golden'
ARCH = clip_lib.Arch('small', official.EMBED, clip_lib.Vision(**official.VISION), clip_lib.Text(**official.TEXT))
pytestmark = pytest.mark.usefixtures('highest_precision')


def configured(layers, weight, **changes):
  c = config.get_config()
  c.image_size, c.local_layers, c.loss.lambda_local = official.SIZE, tuple(layers), weight
  c.dpam.first_block, c.prompt.depth = official.FIRST_BLOCK, official.DEPTH
  return with_keys(c, **changes)


@pytest.fixture(scope='module')
def clip():
  return clip_lib.from_state_dict(ARCH, official.weights(), image_size=official.SIZE, tokenizer=official.Words())


@pytest.fixture(scope='module')
def encoded(clip):
  """Features under a config, each FeatureSpec computed once."""
  images, _, _ = official.batch()
  done = {}

  def encode(cfg):
    spec = method.feature_spec(clip, cfg)
    if spec not in done:
      done[spec] = encoder.encode(clip, spec)(clip.params, jnp.asarray(images))
    return done[spec]

  return encode


def trained():
  return jax.tree.map(jnp.asarray, official.prompts())


def batch():
  _, masks, labels = official.batch()
  rows = len(labels)
  return dict(mask=jnp.asarray(masks), label=jnp.asarray(labels), category=jnp.zeros(rows, jnp.int32),
              valid=jnp.ones(rows, bool))


def train(clip, cfg, features, steps):
  """Returns the losses of each step, the first gradient and the prompts after the last step."""
  grad = jax.jit(jax.value_and_grad(functools.partial(method.loss, clip=clip, cfg=cfg), has_aux=True))
  adam = optax.adam(cfg.optim.lr, b1=cfg.optim.b1, b2=cfg.optim.b2, eps=cfg.optim.eps)
  params, history, first = trained(), [], None
  state = adam.init(params)
  for _ in range(steps):
    (total, parts), gradient = grad(params, Context(clip.params), features, batch(), None)
    history.append([total, parts['loss_global'], parts['loss_local']])
    first = first or gradient
    updates, state = adam.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
  return np.float32(history), first, params


def predict(clip, cfg, params, features):
  text = jax.jit(functools.partial(method.encode_text, names=(), clip=clip, cfg=cfg))(params, clip.params)
  out = jax.jit(functools.partial(method.predict, clip=clip, cfg=cfg))(
    params, Context(clip.params, text), features, batch())
  return text, out


def assert_gradients_close(ours, theirs):
  """To float32 noise, but for the few deep entries that noise moves across a rounding boundary of half precision.

  Rounding before the sum over the two prompts, or not at all, would move most of them.
  """
  for name, array in ours.items():
    off, scale = np.abs(array - theirs[name]), np.abs(theirs[name]).max()
    if name == 'deep':
      assert np.mean(off > 1e-5 * scale) <= 0.02
      np.testing.assert_allclose(array, theirs[name], rtol=2 ** -8, atol=2e-3 * scale)
    else:
      np.testing.assert_allclose(array, theirs[name], atol=1e-5 * scale)


def assert_prompts_close(ours, theirs):
  """Within noise, but for the odd entry whose half-precision gradient nearly cancels: its first Adam step may flip."""
  for name, array in ours.items():
    off = np.abs(array - theirs[name])
    assert np.mean(off > 5e-5) <= 1e-3 and off.max() < 1e-2, (name, np.mean(off > 5e-5), off.max())


def assert_same_run(ours, theirs):
  """Compares train and predict of one variant with what `official.run` returned."""
  (history, gradient, after), (text, before), (_, later) = ours
  np.testing.assert_allclose(text, theirs['text'], atol=2e-6)
  np.testing.assert_allclose(history[0], theirs['losses'][0], rtol=1e-5)
  np.testing.assert_allclose(history, theirs['losses'], rtol=5e-5)
  assert_gradients_close(gradient, {name: theirs[f'grad_{name}'] for name in gradient})
  assert_prompts_close(after, {name: theirs[f'after_{name}'] for name in after})
  for out, suffix in ((before, ''), (later, '_after')):
    np.testing.assert_allclose(out.score, theirs[f'score{suffix}'], atol=1e-4)
    np.testing.assert_allclose(out.map, theirs[f'map{suffix}'], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('variant', official.VARIANTS)
def test_image_tower_reads_what_the_released_one_reads(clip, encoded, variant):
  golden = np.load(GOLDEN / f'anomalyclip_{variant}.npz')
  features = encoded(configured(*official.VARIANTS[variant]))
  np.testing.assert_allclose(features.cls, golden['cls'], atol=1e-4)
  for (name, tap), recorded in zip(features.taps.items(), golden['taps']):
    np.testing.assert_allclose(tap, recorded, atol=1e-4, err_msg=name)


@pytest.mark.parametrize('variant', official.VARIANTS)
def test_five_steps_and_predictions_on_recorded_features(clip, variant):
  golden = np.load(GOLDEN / f'anomalyclip_{variant}.npz')
  cfg = configured(*official.VARIANTS[variant])
  names = [tap.name for tap in method.feature_spec(clip, cfg).taps]
  features = Features(jnp.asarray(golden['cls']), dict(zip(names, jnp.asarray(golden['taps']))))
  run = train(clip, cfg, features, official.STEPS)
  assert_same_run((run, predict(clip, cfg, trained(), features), predict(clip, cfg, run[2], features)), golden)


def test_from_pixels_to_maps(clip, encoded):
  golden = np.load(GOLDEN / 'anomalyclip_released.npz')
  cfg = configured(*official.VARIANTS['released'])
  _, out = predict(clip, cfg, trained(), encoded(cfg))
  np.testing.assert_allclose(out.score, golden['score'], atol=1e-4)
  np.testing.assert_allclose(out.map, golden['map'], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('changes', [
  dict(prompt__deep_fp16_round=False), dict(use_logit_scale=True), dict(cls_ln_post=True), dict(dpam__first_block=4)])
def test_parity_would_notice(clip, encoded, changes):
  """Each of these departures from the released code is larger than the tolerances above."""
  golden = np.load(GOLDEN / 'anomalyclip_released.npz')
  cfg = configured(*official.VARIANTS['released'], **changes)
  text, out = predict(clip, cfg, trained(), encoded(cfg))
  off = max(np.abs(text - golden['text']).max() / 2e-6, np.abs(out.score - golden['score']).max() / 1e-4,
            np.abs(out.map - golden['map']).max() / 1e-4)
  assert off > 3


def test_parity_would_notice_adams_usual_b1(clip, encoded):
  golden = np.load(GOLDEN / 'anomalyclip_released.npz')
  cfg = configured(*official.VARIANTS['released'], optim__b1=0.9)
  _, _, after = train(clip, cfg, encoded(cfg), official.STEPS)
  with pytest.raises(AssertionError):
    assert_prompts_close(after, {name: golden[f'after_{name}'] for name in after})


def test_goldens_are_what_the_transcription_says_today(torch):
  golden = np.load(GOLDEN / 'anomalyclip_released.npz')
  again = official.run(*official.VARIANTS['released'], steps=1)
  for name in ('cls', 'taps', 'text', 'score', 'map', 'grad_deep'):
    np.testing.assert_allclose(again[name], golden[name], atol=1e-4 * np.abs(golden[name]).max(), err_msg=name)


@pytest.mark.parametrize('changes,reading', [
  (dict(t1_dpam=False), dict(first_block=None)), (dict(dpam__ffn=True), dict(ffn=True))], ids=['t1_off', 'ffn'])
def test_other_image_paths_equal_the_released_ones(clip, encoded, changes, reading, torch):
  reference = official.Official(official.weights())
  images, masks, labels = official.batch()
  layers, weight = (4, 8), 1.0
  with torch.no_grad():
    cls, tokens = reference.encode_image(images, layers, **reading)
  cfg = configured(layers, weight, **changes)
  features = encoded(cfg)
  np.testing.assert_allclose(features.cls, cls.numpy(), atol=1e-4)
  for tap, theirs in zip(features.taps.values(), tokens):
    np.testing.assert_allclose(tap, theirs[:, 1:].numpy(), atol=1e-4)
  params = reference.trainable(official.prompts())
  total = reference.loss(params, cls, tokens, masks, labels, weight)[0].item()
  loss = jax.jit(functools.partial(method.loss, clip=clip, cfg=cfg))
  ours, _ = loss(trained(), Context(clip.params), features, batch(), None)
  assert float(ours) == pytest.approx(total, rel=1e-5)
  score, maps = reference.predict(params, cls, tokens)
  _, out = predict(clip, cfg, trained(), features)
  np.testing.assert_allclose(out.score, score, atol=1e-4)
  np.testing.assert_allclose(out.map, maps, atol=1e-4)
