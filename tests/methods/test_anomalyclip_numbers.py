"""AnomalyCLIP's numbers: scores and maps, the loss and its gradients, on random features of a small CLIP."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from anomalyclip_small import (
  Shallow,
  configured,
  encode_text,
  features_and_batch,
  loaded,
  loss,
  predict,
  published,
  step,
  trained,
  unit,
  without_weights,
)

from zsad_jax.clip.feature_spec import Features, Tap
from zsad_jax.methods import Context
from zsad_jax.methods import anomalyclip as method


@pytest.fixture(scope='module')
def clip():
  return without_weights()


@pytest.fixture(scope='module')
def clip_params():
  return loaded().params


@pytest.fixture(scope='module')
def shallow():
  return without_weights(Shallow)


# Predictions


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def planted(shallow, cfg, text, rows=2):
  """Features that agree with the normal text everywhere."""
  features, batch = features_and_batch(cfg, shallow, rows)
  taps = {name: jnp.broadcast_to(text[0, 0], x.shape) for name, x in features.taps.items()}
  return Features(jnp.broadcast_to(text[0, 0], features.cls.shape), taps), batch


@pytest.mark.slow
def test_named_predictions_take_the_pair_of_each_images_category(shallow, clip_params):
  cfg = configured(t2_object_agnostic=False)
  text = encode_text(trained(), clip_params, ('bottle', 'metal nut'), clip=shallow, cfg=cfg)
  features, batch = features_and_batch(cfg, shallow)
  batch['category'] = jnp.array([0, 1, 1, 0])
  mixed = predict({}, Context(clip_params, text), features, batch, clip=shallow, cfg=cfg)
  for row, category in enumerate([0, 1, 1, 0]):
    alone = predict({}, Context(clip_params, text[category:category + 1]), features, batch, clip=shallow, cfg=cfg)
    np.testing.assert_allclose(mixed.score[row], alone.score[row], rtol=1e-5)
    np.testing.assert_allclose(mixed.map[row], alone.map[row], atol=1e-6)
  batch['category'] = jnp.array([0, 1, 1, 2])  # a category without text features must not pass for another
  assert np.isnan(predict({}, Context(clip_params, text), features, batch, clip=shallow, cfg=cfg).score[3])


@pytest.mark.slow
def test_index_1_is_abnormal(shallow, clip_params):
  cfg = configured()
  text = encode_text(trained(), clip_params, (), clip=shallow, cfg=cfg)
  features, batch = planted(shallow, cfg, text)
  features = features._replace(cls=features.cls.at[1].set(3 * text[0, 1]))
  score = predict({}, Context(clip_params, text), features, batch, clip=shallow, cfg=cfg).score
  assert score[0] < 0.5 < score[1]
  assert score[0] + score[1] == pytest.approx(1, abs=1e-5)


def test_an_abnormal_patch_lights_up_its_own_place(shallow, clip_params):
  cfg = configured(map__sigma=1.0)
  text = encode_text(trained(), clip_params, (), clip=shallow, cfg=cfg)
  features, batch = planted(shallow, cfg, text)
  name = Tap('vv', 8).name
  features.taps[name] = features.taps[name].at[:, 6].set(text[0, 1])  # row 1, column 0 of 6 x 6
  out = predict({}, Context(clip_params, text), features, batch, clip=shallow, cfg=cfg).map
  assert out.shape == (2, 48, 48)
  row, column = np.unravel_index(np.asarray(out[0]).argmax(), (48, 48))
  assert 8 <= row < 16 and column < 8


@pytest.mark.slow
def test_the_map_is_the_sum_of_layers_and_not_rescaled(shallow, clip_params):
  two = configured(local_layers=(4, 8))
  features, batch = features_and_batch(two, shallow)
  text = encode_text(trained(), clip_params, (), clip=shallow, cfg=two)
  maps = [np.asarray(predict({}, Context(clip_params, text), features, batch, clip=shallow, cfg=cfg).map)
          for cfg in (two, *(configured(local_layers=chosen) for chosen in ((4,), (8,), (8, 8))))]
  np.testing.assert_allclose(maps[0], maps[1] + maps[2], atol=1e-6)
  np.testing.assert_allclose(maps[3], 2 * maps[2], atol=1e-6)  # a layer named twice counts twice
  spread = np.ptp(maps[0], axis=(1, 2))
  assert np.unique(spread.round(4)).size == 4 and (spread > 0.1).all()


def test_predictions_equal_the_papers_formula_in_float64(shallow, clip_params):
  from scipy.ndimage import gaussian_filter, zoom
  cfg = configured(dpam__mode='ens1', map__sigma=0.0)
  features, batch = features_and_batch(cfg, shallow)
  text = np.float64(encode_text(trained(), clip_params, (), clip=shallow, cfg=cfg))[0]
  out = predict({}, Context(clip_params, jnp.asarray(text, jnp.float32)[None]), features, batch, clip=shallow, cfg=cfg)
  np.testing.assert_allclose(out.score, softmax(unit(np.float64(features.cls)) @ text.T / 0.07)[:, 1], rtol=1e-5)
  logits = np.mean([unit(np.float64(x)) @ text.T / 0.07 for x in features.taps.values()], 0)
  grid = softmax(logits)[..., 1].reshape(-1, 6, 6)
  up = zoom(grid, (1, 8, 8), order=1, mode='nearest', grid_mode=True)
  np.testing.assert_allclose(out.map, up, atol=2e-6)
  smooth = predict({}, Context(clip_params, jnp.asarray(text, jnp.float32)[None]), features, batch, clip=shallow,
                   cfg=configured(dpam__mode='ens1')).map
  np.testing.assert_allclose(smooth, [gaussian_filter(m, 4) for m in up], atol=2e-6)


def test_ensembles_average_logits_or_probabilities(shallow, clip_params):
  both = [configured(dpam__mode='ens1', dpam__ensemble=e, map__sigma=0.0) for e in ('logits', 'probs')]
  features, batch = features_and_batch(both[0], shallow)
  text = encode_text(trained(), clip_params, (), clip=shallow, cfg=both[0])
  logits, probs = (predict({}, Context(clip_params, text), features, batch, clip=shallow, cfg=c).map for c in both)
  assert np.abs(logits - probs).max() > 1e-2
  single = []
  for mode in ('qq', 'kk', 'vv'):
    only = Features(features.cls, {Tap(mode, 8).name: features.taps[Tap(mode, 8).name]})
    cfg = configured(dpam__mode=mode, map__sigma=0.0)
    single.append(predict({}, Context(clip_params, text), only, batch, clip=shallow, cfg=cfg).map)
  np.testing.assert_allclose(probs, np.mean(single, 0), atol=1e-6)


def test_temperature_is_0_07_unless_clips_own_is_asked_for(shallow, clip_params):
  features, batch = features_and_batch(configured(), shallow)
  text = encode_text(trained(), clip_params, (), clip=shallow, cfg=configured())
  for cfg, temperature in ((configured(), 0.07), (configured(use_logit_scale=True), 0.01)):
    score = predict({}, Context(clip_params, text), features, batch, clip=shallow, cfg=cfg).score
    expected = softmax(unit(np.float64(features.cls)) @ np.float64(text[0]).T / temperature)[:, 1]
    np.testing.assert_allclose(score, expected, rtol=1e-4)


def test_half_precision_features_are_computed_with_in_float32(shallow, clip_params):
  cfg = configured()
  features, batch = features_and_batch(cfg, shallow)
  text = encode_text(trained(), clip_params, (), clip=shallow, cfg=cfg)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), features)
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), half)
  out = [predict({}, Context(clip_params, text), f, batch, clip=shallow, cfg=cfg) for f in (half, wide)]
  assert out[0].map.dtype == jnp.float32
  jax.tree.map(np.testing.assert_array_equal, *out)


# Loss


@pytest.mark.slow
def test_loss_terms_switch_off_one_by_one(shallow, clip_params):
  features, batch = features_and_batch(configured(), shallow)
  run = lambda **changes: loss(trained(), Context(clip_params), features, batch, None, clip=shallow,
                               cfg=configured(**changes))
  total, parts = run()
  assert float(total) == pytest.approx(float(parts['loss_global'] + 4 * parts['loss_local']), rel=1e-6)
  only_global, metrics = run(loss__focal=False, loss__dice=False)
  assert float(only_global) == pytest.approx(float(parts['loss_global']), rel=1e-6)
  assert list(metrics) == ['loss_global']
  only_local, metrics = run(loss__ce=False)
  assert float(only_local) == pytest.approx(4 * float(parts['loss_local']), rel=1e-6)
  assert list(metrics) == ['loss_local']
  focal, dice = run(loss__ce=False, loss__dice=False)[0], run(loss__ce=False, loss__focal=False)[0]
  assert float(focal + dice) == pytest.approx(float(only_local), rel=1e-6)


@pytest.mark.slow
def test_one_layer_at_4_equals_four_copies_at_1_and_not_four_layers(shallow, clip_params):
  base = configured()
  assert published().local_layers == (24,) and published().loss.lambda_local == 4
  four = configured(local_layers=(2, 4, 6, 8), loss__lambda_local=1.0)
  features, batch = features_and_batch(four, shallow)
  totals = [float(loss(trained(), Context(clip_params), features, batch, None, clip=shallow, cfg=cfg)[0]) for cfg in (
    base, configured(local_layers=(8,) * 4, loss__lambda_local=1.0),
    configured(local_layers=(2, 4, 6, 8), loss__lambda_local=1.0, t4_emulate_aliasing=True), four)]
  assert totals[1] == pytest.approx(totals[0], rel=1e-6) and totals[2] == pytest.approx(totals[0], rel=1e-6)
  assert abs(totals[3] - totals[0]) > 1e-3


@pytest.mark.slow
def test_object_aware_training_uses_the_names_of_the_auxiliary_categories(shallow, clip_params):
  cfg = configured(t2_object_agnostic=False, prompt__categories=('bottle', 'metal_nut'))
  features, batch = features_and_batch(cfg, shallow)
  batch['category'] = jnp.array([0, 1, 0, 1])
  mixed, _ = loss(trained(), Context(clip_params), features, batch, None, clip=shallow, cfg=cfg)
  alone = []
  for category, name in enumerate(('bottle', 'metal nut')):
    rows = {**batch, 'valid': batch['category'] == category, 'category': jnp.zeros(4, jnp.int32)}
    one = configured(t2_object_agnostic=False, prompt__categories=(name,))
    alone.append(float(loss(trained(), Context(clip_params), features, rows, None, clip=shallow, cfg=one)[0]))
  assert float(mixed) == pytest.approx(np.mean(alone), rel=1e-5)
  with pytest.raises(ValueError, match=r'prompt\.categories=\(\) does not name the auxiliary categories'):
    method.loss(trained(), Context(clip_params), features, batch, None, clip=shallow,
                cfg=configured(t2_object_agnostic=False))


@pytest.mark.slow
def test_padded_rows_weigh_nothing_in_loss_and_gradient(shallow, clip_params):
  features, batch = features_and_batch(configured(), shallow, rows=3)
  grow = lambda x: jnp.concatenate([x, x[-1:] * 0 + 1])
  more, padded = jax.tree.map(grow, features), jax.tree.map(grow, batch)
  padded['valid'] = jnp.array([1, 1, 1, 0], bool)
  alone = step(trained(), Context(clip_params), features, batch, None, clip=shallow, cfg=configured())
  again = step(trained(), Context(clip_params), more, padded, None, clip=shallow, cfg=configured())
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-6), again, alone)


@pytest.mark.slow
def test_images_without_a_known_mask_count_in_the_global_term_only(shallow, clip_params):
  features, batch = features_and_batch(configured(), shallow)
  known = {**batch, 'has_mask': jnp.array([True, False, True, True])}
  _, parts = loss(trained(), Context(clip_params), features, known, None, clip=shallow, cfg=configured())
  _, everything = loss(trained(), Context(clip_params), features, batch, None, clip=shallow, cfg=configured())
  _, others = loss(trained(), Context(clip_params), features, {**batch, 'valid': known['has_mask']}, None, clip=shallow,
                   cfg=configured())
  assert float(parts['loss_global']) == pytest.approx(float(everything['loss_global']), rel=1e-6)
  assert float(parts['loss_local']) == pytest.approx(float(others['loss_local']), rel=1e-6)


@pytest.mark.slow
def test_the_batch_is_the_mean_of_its_images(shallow, clip_params):
  features, batch = features_and_batch(configured(), shallow)
  total, _ = loss(trained(), Context(clip_params), features, batch, None, clip=shallow, cfg=configured())
  single = []
  for row in range(4):
    image = jax.tree.map(lambda x: x[row:row + 1], (features, batch))  # noqa: B023
    single.append(float(loss(trained(), Context(clip_params), *image, None, clip=shallow, cfg=configured())[0]))
  assert float(total) == pytest.approx(np.mean(single), rel=1e-5)


def test_no_partial_batch_is_dropped():
  assert published().train.batch == 8 and published().train.epochs == 15
  assert [-(-count // published().train.batch) for count in (1725, 2162)] == [216, 271]


def test_adam_forgets_with_0_5():
  optim = published().optim
  adam = optax.adam(optim.lr, b1=optim.b1, b2=optim.b2, eps=optim.eps)
  parameter = jnp.zeros(())
  state = adam.init(parameter)
  for gradient in (1.0, -1.0):
    update, state = adam.update(jnp.array(gradient), state, parameter)
    parameter = optax.apply_updates(parameter, update)
  assert float(parameter) == pytest.approx(-6.667e-4, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('changes', [
  dict(), dict(prompt__deep_mode='concat'),
  dict(t2_object_agnostic=False, t2_off='no_context', prompt__deep_mode='concat', prompt__categories=('nut',)),
])
def test_text_tower_passes_a_gradient_to_every_prompt_vector(clip, clip_params, changes):
  cfg = configured(**changes)
  one_number = lambda params: method._encode_prompts(params, clip_params, ('nut',), clip=clip, cfg=cfg)[..., 0].sum()
  pull = jax.jit(jax.grad(one_number))
  for name, g in pull(method.init(jax.random.key(0), clip, cfg)).items():
    assert np.isfinite(g).all() and (np.abs(g).max(-1) > 0).all(), name


@pytest.mark.slow
@pytest.mark.parametrize('changes', [
  dict(), dict(prompt__shared_ctx=True), dict(t3_text_tuning=False), dict(prompt__deep_mode='concat'),
  dict(t1_dpam=False), dict(dpam__mode='ens2', dpam__ensemble='probs'), dict(use_logit_scale=True),
  dict(t2_object_agnostic=False, prompt__categories=('bottle',)),
  dict(t2_object_agnostic=False, t2_off='no_context', prompt__deep_mode='concat', prompt__categories=('nut',)),
])
def test_every_prompt_vector_gets_a_finite_gradient(shallow, clip_params, changes):
  cfg = configured(**changes)
  features, batch = features_and_batch(cfg, shallow)
  params = method.init(jax.random.key(0), shallow, cfg)
  (total, _), gradient = step(params, Context(clip_params), features, batch, jax.random.key(1), clip=shallow, cfg=cfg)
  assert np.isfinite(total)
  for name, g in gradient.items():
    assert np.isfinite(g).all() and (np.abs(g).max(-1) > 0).all(), name


def test_object_re_changes_evaluation_only(shallow, clip_params):
  features, batch = features_and_batch(configured(), shallow)
  plain, renamed = (loss(trained(), Context(clip_params), features, batch, None, clip=shallow, cfg=c)[0]
                    for c in (configured(), configured(prompt__object_re=True)))
  assert float(plain) == float(renamed)


# What is refused


def test_training_is_refused_without_a_term_or_anything_to_learn(clip, clip_params):
  features, batch = features_and_batch(configured(), clip)
  none = configured(loss__ce=False, loss__focal=False, loss__dice=False)
  with pytest.raises(ValueError, match=r'loss\.ce, loss\.focal and loss\.dice are all False'):
    method.loss(trained(), Context(clip_params), features, batch, None, clip=clip, cfg=none)
  base = configured(t2_object_agnostic=False, t2_off='no_context', t3_text_tuning=False)
  with pytest.raises(ValueError, match='nothing to train'):
    method.loss(method.init(jax.random.key(0), clip, base), Context(clip_params), features, batch, None, clip=clip,
                cfg=base)


@pytest.mark.slow
def test_masks_of_another_size_are_refused(clip, clip_params):
  features, batch = features_and_batch(configured(), clip)
  batch['mask'] = batch['mask'][:, ::2, ::2]
  with pytest.raises(ValueError, match=r'masks are 24 x 24 pixels.*image_size=48'):
    method.loss(trained(), Context(clip_params), features, batch, None, clip=clip, cfg=configured())


@pytest.mark.devices8
def test_eight_devices_give_the_loss_and_gradient_of_one(shallow, clip_params):
  features, batch = features_and_batch(configured(), shallow, rows=8)
  batch['valid'] = jnp.array([1] * 6 + [0, 0], bool)
  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  one = step(trained(), Context(clip_params), features, batch, None, clip=shallow, cfg=configured())
  spread = step(jax.device_put(trained(), whole), jax.device_put(Context(clip_params), whole),
                jax.device_put(features, split), jax.device_put(batch, split), None, clip=shallow, cfg=configured())
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-6), spread, one)
