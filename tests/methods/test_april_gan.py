"""APRIL-GAN: its switches, its known pitfalls, bad keys, and a PyTorch transcription of its formulas."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import method_checks
import numpy as np
import optax
import pytest

from zsad_jax.clip import encoder
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import Features, Tap
from zsad_jax.configs import april_gan as config
from zsad_jax.engine import optimizers
from zsad_jax.methods import Context, Prediction
from zsad_jax.methods import april_gan as method
from zsad_jax.methods.parts import prompts
from zsad_jax.ops import losses

SIZE, GRID, EMBED, WIDTH = 64, 8, 128, 128  # of the tiny CLIP
L14 = clip_lib.Clip(clip_lib.ARCHS['vit_l14_336'], 518, params=None)
loss = jax.jit(method.loss, static_argnames=('clip', 'cfg'))
step = jax.jit(jax.value_and_grad(method.loss, has_aux=True), static_argnames=('clip', 'cfg'))
predict = jax.jit(method.predict, static_argnames=('clip', 'cfg'))


def configured(arg='demo', **changes):
  c = config.get_config(arg)
  return method_checks.with_keys(c, **{'image_size': SIZE if arg == 'demo' else c.image_size, **changes})


@pytest.fixture(scope='module')
def clip():
  return clip_lib.load('tiny', image_size=SIZE)


@pytest.fixture(scope='module')
def shell(clip):
  """Without weights, so that nothing is computed from its own."""
  return dataclasses.replace(clip, params=None)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def texts(rng, categories=2):
  return jnp.asarray(unit(rng.standard_normal((categories, 2, EMBED))), jnp.float32)


def random_inputs(cfg, rows=3, seed=0, scale=5):
  """Random features of every tap, and a batch whose odd rows are anomalous."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(scale * rng.standard_normal(shape), jnp.float32)
  features = Features(draw(rows, EMBED), {f'clip/{b}/block': draw(rows, GRID ** 2, WIDTH) for b in cfg.layers})
  mask = np.zeros((rows, SIZE, SIZE), np.uint8)
  mask[1::2, 10:30, 20:50] = 1
  batch = dict(mask=jnp.asarray(mask), label=jnp.arange(rows) % 2, category=jnp.arange(rows) % 2,
               valid=jnp.ones(rows, bool))
  return features, batch


def params_of(cfg, clip, seed=0):
  return method.init(jax.random.key(seed), clip, cfg)


# Features and activation


def test_raw_tokens_of_four_blocks_are_read_without_the_class_token():
  spec = method.feature_spec(L14, configured(None))
  assert (spec.cls, spec.read, spec.positions, spec.image_size) == ('ln_post_proj', 'none', 'bicubic_antialias', 518)
  assert spec.taps == tuple(Tap('clip', block) for block in (6, 12, 18, 24))
  shapes = encoder.features_shape(L14, spec)
  assert set(shapes.taps.values()) == {(1369, 1024)} and shapes.cls == (768,)


@pytest.mark.slow
def test_the_last_tap_has_not_passed_ln_post(clip):
  spec = method.feature_spec(clip, configured(layers=(6,)))
  images = jnp.asarray(np.random.default_rng(0).standard_normal((1, SIZE, SIZE, 3)), jnp.float32)
  raw, = encoder.encode(clip, spec)(clip.params, images).taps.values()
  normed, = encoder.encode(clip, spec._replace(read='ln_post'))(clip.params, images).taps.values()
  p = clip.params['visual']['ln_post']
  centred = raw - raw.mean(-1, keepdims=True)
  own = centred / jnp.sqrt((centred ** 2).mean(-1, keepdims=True) + 1e-5)
  assert np.abs(raw - own).max() > 0.1
  np.testing.assert_allclose(own * p['scale'][None, None] + p['bias'][None, None], normed, atol=1e-4)


@pytest.mark.slow
def test_the_activation_is_the_configs_and_changes_the_features(clip):
  assert configured(None).act == 'gelu' and configured().act == 'quick_gelu'
  assert method.architecture(L14.arch, configured(None)) == dataclasses.replace(L14.arch, activation='gelu')
  features = []
  for act in ('gelu', 'quick_gelu'):
    cfg = configured(act=act)
    other = dataclasses.replace(clip, arch=method.architecture(clip.arch, cfg))
    images = jnp.asarray(np.random.default_rng(0).standard_normal((1, SIZE, SIZE, 3)), jnp.float32)
    features.append(encoder.encode(other, method.feature_spec(other, cfg))(clip.params, images).cls)
  assert np.abs(features[0] - features[1]).max() > 1e-3


# Training


@pytest.mark.slow
def test_every_tap_has_an_affine_layer_initialised_as_torch_does():
  cfg = configured(None)
  params = params_of(cfg, L14)
  assert sum(x.size for x in jax.tree.leaves(params)) == 3_148_800
  assert list(params) == ['block6', 'block12', 'block18', 'block24']
  kernels = [layer['kernel'] for layer in params.values()]
  assert kernels[0].shape == (1024, 768) and params['block6']['bias'].shape == (768,)
  for x in jax.tree.leaves(params):
    assert np.abs(x).max() < 1 / 32 and np.std(x) == pytest.approx(1 / 32 / 3 ** 0.5, rel=0.06)
  assert np.abs(np.corrcoef([k.ravel() for k in kernels]) - np.eye(4)).max() < 0.01


@pytest.mark.slow
def test_the_loss_of_a_tap_does_not_reach_the_other_layers(shell):
  every, one = configured(), configured(layers=(3,))
  features, batch = random_inputs(every)
  context = Context(text_features=texts(np.random.default_rng(1)))
  _, gradient = step(params_of(every, shell), context, features, batch, None, clip=shell, cfg=one)
  size = {name: max(float(jnp.abs(x).max()) for x in layer.values()) for name, layer in gradient.items()}
  assert size['block3'] > 0 and {name for name, value in size.items() if value} == {'block3'}


def test_the_recipe_and_adams_betas():
  cfg = configured(None)
  assert dict(cfg.optim) == dict(lr=1e-3, b1=0.5, b2=0.999, eps=1e-8)
  assert (cfg.train.epochs, cfg.train.batch, cfg.seed, cfg.mosaic, cfg.temperature) == (15, 8, 111, 0, 0.01)
  other = configured('visa')
  assert (other.data.aux, other.data.target, other.train.epochs, other.mosaic) == ('mvtec_ad', 'visa', 3, 0.2)
  tx, params, gradients = optimizers.make_tx(cfg.optim), {'w': jnp.zeros(1)}, (2.0, -1.0)
  state, m, v, w = tx.init(params), 0.0, 0.0, 0.0
  for t, g in enumerate(gradients, 1):
    updates, state = tx.update({'w': jnp.full(1, g)}, state, params)
    params = optax.apply_updates(params, updates)
    m, v = 0.5 * m + 0.5 * g, 0.999 * v + 0.001 * g * g
    w -= 1e-3 * (m / (1 - 0.5 ** t)) / ((v / (1 - 0.999 ** t)) ** 0.5 + 1e-8)
  assert float(params['w'][0]) == pytest.approx(w, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('target, focal, dice', [
  ((0, 1), 0.0205119, 0.1724138), ((1, 0), 0.8099239, 0.5172414), ((0, 0), 0.2994127, 0.4736842),
  ((1, 1), 0.5310232, 0.2820513)])
def test_focal_is_of_both_channels_and_dice_of_the_abnormal_one(target, focal, dice):
  probs = jnp.array([[[[0.8, 0.2], [0.3, 0.7]]]])  # [1, 1, 2, 2]
  mask, valid = jnp.array([[target]]), jnp.ones(1, bool)
  assert float(losses.focal(probs, mask, valid)) == pytest.approx(focal, abs=1e-6)
  assert float(losses.dice(probs[..., 1], mask, valid)) == pytest.approx(dice, abs=1e-6)


@pytest.mark.slow
def test_padding_and_unknown_masks_weigh_nothing(shell):
  cfg = configured(layers=(2, 6))
  features, batch = random_inputs(cfg, rows=4)
  context, params = Context(text_features=texts(np.random.default_rng(1))), params_of(cfg, shell)
  run = lambda features, batch: float(loss(params, context, features, batch, None, clip=shell, cfg=cfg)[0])
  half = jax.tree.map(lambda x: x[:2], (features, batch))
  two = jnp.array([True, True, False, False])
  assert run(features, {**batch, 'valid': two}) == pytest.approx(run(*half), rel=1e-5)
  assert run(features, {**batch, 'has_mask': two}) == pytest.approx(run(*half), rel=1e-5)
  with pytest.raises(ValueError, match='masks are 32x32; the loss needs them at image_size 64'):
    method.loss(params, context, features, {**batch, 'mask': batch['mask'][:, ::2, ::2]}, None, clip=shell, cfg=cfg)


# Texts


@pytest.mark.slow
def test_texts_use_the_folders_names(clip):
  encode = jax.jit(lambda params, ids: clip.text(params, clip.embed(params, ids), clip.eot(ids)))
  plain = []
  for raw, name in ((True, 'metal_nut'), (False, 'metal nut')):
    cfg = configured(prompt__raw_names=raw)
    make = functools.partial(method.encode_text, {}, names=('nut{1}', 'metal_nut'), clip=clip, cfg=cfg)
    text = jax.jit(make)(clip.params)
    normal, abnormal = ([t.format(s.format(name)) for s in states for t in prompts.COMPOUND_TEMPLATES]
                        for states in prompts.COMPOUND_STATES)
    assert (len(normal), len(abnormal)) == (245, 175)
    rows = unit(np.asarray(encode(clip.params, clip.tokenize(normal + abnormal)[:, :24])))
    np.testing.assert_allclose(text[1], unit(np.stack([rows[:245].mean(0), rows[245:].mean(0)])), atol=3e-6)
    plain.append(text[0])
  np.testing.assert_allclose(*plain, atol=1e-6)  # a brace is a brace, and there is no underscore to lose


@pytest.mark.slow
def test_texts_are_those_of_the_images_own_category(shell):
  cfg = configured(layers=(6,))
  features, _ = random_inputs(cfg, rows=2)
  params, text = params_of(cfg, shell), texts(np.random.default_rng(1))
  run = lambda text, category: predict(params, Context(None, text), features, {'category': jnp.array(category)},
                                       clip=shell, cfg=cfg)
  mixed = run(text, [1, 0])
  for row, c in ((0, 1), (1, 0)):
    np.testing.assert_allclose(mixed.map[row], run(text[c:c + 1], [0, 0]).map[row], atol=1e-5)
  assert np.isnan(run(text, [2, 0]).score).tolist() == [True, False]  # the evaluator refuses NaN
  context = jax.eval_shape(functools.partial(method.precompute, names=('a', 'b', 'c'), clip=shell, cfg=cfg),
                           clip_lib.template('tiny'))
  assert jax.tree.map(lambda x: x.shape, context) == Context(None, (3, 2, EMBED))


# Maps and scores


@pytest.mark.slow
def test_logits_are_upsampled_between_aligned_corners_then_softmaxed(shell):
  odd = dataclasses.replace(shell, image_size=65)
  cfg = configured(layers=(6,))
  one, other = np.eye(2, EMBED, dtype=np.float32)
  tokens = jnp.asarray([[one, other, other, one]]) * 7  # [1, 4, W]: a checkerboard of 2 x 2
  params = {'block6': {'kernel': jnp.eye(WIDTH, EMBED), 'bias': jnp.zeros(EMBED)}}
  text = jnp.asarray([[3 * other + one, other + 3 * one]]) / 4  # logits 75 and 25, or 25 and 75
  out = predict(params, Context(None, text), Features(tokens[:, 0], {'clip/6/block': tokens}),
                {'category': jnp.zeros(1, int)}, clip=odd, cfg=cfg).map[0]
  np.testing.assert_allclose(out[::64, ::64], [[1, 0], [0, 1]], atol=1e-6)
  np.testing.assert_allclose(out[32], np.full(65, 0.5), atol=1e-5)
  # From 1 to 0 within a few pixels of 65, where upsampled probabilities would take them all.
  assert np.sum((out[0] > 0.02) & (out[0] < 0.98)) <= 5


@pytest.mark.slow
def test_without_references_scores_are_clips_and_maps_at_most_the_number_of_taps(shell):
  cfg = configured()
  features, batch = random_inputs(cfg)
  text, params = texts(np.random.default_rng(1)), params_of(cfg, shell)
  out = predict(params, Context(None, text), features, batch, clip=shell, cfg=cfg)
  for i, c in enumerate((0, 1, 0)):
    logits = 100 * text[c] @ unit(features.cls[i])
    np.testing.assert_allclose(out.score[i], 1 / (1 + np.exp(logits[0] - logits[1])), rtol=1e-4)
  assert 1 < out.map.max() <= 4 and out.map.min() >= 0
  assert method.postprocess_category(out, cfg=cfg) is out


@pytest.mark.slow
def test_references_have_the_zero_shot_map_when_compared_with_themselves(shell):
  cfg, zero_shot = configured(fewshot__shots=2), configured()
  features, _ = random_inputs(cfg, rows=4)
  stack = lambda x: x.reshape(2, 2, *x.shape[1:])  # two categories of two references: the images themselves
  bank = method.build_memory_bank(None, Features(None, {k: stack(v) for k, v in features.taps.items()}), clip=shell,
                                  cfg=cfg)
  assert {tokens.shape for tokens in bank.values()} == {(2, 2 * GRID ** 2, WIDTH)}
  text, params = texts(np.random.default_rng(1)), params_of(cfg, shell)
  run = lambda category, bank, cfg: predict(params, Context(None, text, bank), features,
                                            {'category': jnp.array(category)}, clip=shell, cfg=cfg).map
  np.testing.assert_allclose(run([0, 0, 1, 1], bank, cfg), run([0, 0, 1, 1], None, zero_shot), atol=1e-5)
  other = run([1, 1, 0, 0], bank, cfg)
  assert (other - run([1, 1, 0, 0], None, zero_shot)).min() > 0.5
  # A cosine does not see the scale.
  np.testing.assert_allclose(run([1, 1, 0, 0], jax.tree.map(lambda x: 2 * x, bank), cfg), other, atol=1e-5)
  with pytest.raises(ValueError, match=r'fewshot\.shots=2 needs references'):
    run([0, 0, 1, 1], None, cfg)


def test_the_peak_is_stretched_over_the_category_and_a_constant_one_becomes_0():
  cfg = configured(fewshot__shots=1)
  rng = np.random.default_rng(0)
  for scale in (1, 100):
    out = Prediction(rng.random(5).astype(np.float32), scale * rng.random((5, 3, 3)).astype(np.float32))
    peak = 2 * method.postprocess_category(out, cfg=cfg).score - out.score
    assert (peak.min(), peak.max()) == pytest.approx((0, 1), abs=1e-6)
    assert np.argmax(peak) == np.argmax(out.map.max((1, 2)))
    plain = method.postprocess_category(out, cfg=configured(fewshot__shots=1, score_norm='none')).score
    np.testing.assert_allclose(plain, (out.score + out.map.max((1, 2))) / 2)
  flat = method.postprocess_category(Prediction(np.ones(2), np.ones((2, 3, 3))), cfg=cfg).score
  assert flat.tolist() == [0.5, 0.5]


# Released checkpoints and bad keys


def released_arrays(cfg, seed=0):
  rng = np.random.default_rng(seed)
  arrays = {}
  for i in range(len(cfg.layers)):
    arrays |= {f'fc.{i}.weight': rng.uniform(-0.1, 0.1, (EMBED, WIDTH)).astype(np.float32),
               f'fc.{i}.bias': rng.uniform(-0.1, 0.1, EMBED).astype(np.float32)}
  return arrays


def test_released_checkpoints_are_read(shell):
  cfg = configured()
  arrays = released_arrays(cfg)
  for prefix in ('', 'trainable_linearlayer.'):
    params = method.load_released({prefix + name: array for name, array in arrays.items()}, clip=shell, cfg=cfg)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, params_of(cfg, shell))
    np.testing.assert_array_equal(params['block3']['kernel'], arrays['fc.1.weight'].T)
  del arrays['fc.2.bias']
  arrays |= {'fc.4.bias': np.zeros(3), 'fc.0.bias': np.zeros(3)}
  with pytest.raises(ValueError, match=r'missing fc\.2\.bias; unknown fc\.4\.bias \(3,\); fc\.0\.bias is \(3,\), not'):
    method.load_released(arrays, clip=shell, cfg=cfg)


@pytest.mark.parametrize('changes, message', [
  (dict(layers=(2, 7)), r'\(2, 7\)'), (dict(layers=(2, 2)), r'\(2, 2\)'), (dict(layers=()), 'layers'),
  (dict(act='relu'), "act='relu' .* gelu, quick_gelu"),
  (dict(score_norm='all'), "score_norm='all' .* class_minmax, none"), (dict(temperature=0.0), r'temperature=0\.0'),
  (dict(mosaic=1.2), r'mosaic=1\.2')])
def test_keys_out_of_range_are_refused(shell, changes, message):
  with pytest.raises(ValueError, match=message):
    method_checks.check(method, shell, configured(**changes))


# Parity with PyTorch


def transcribed(torch, arrays, features, text, batch, memory):
  """(loss, gradients, score, maps) of the released formulas, written out of place."""
  F = torch.nn.functional
  tensor = lambda x: torch.tensor(np.asarray(x))
  layers = [torch.nn.Linear(WIDTH, EMBED) for _ in features.taps]
  for i, layer in enumerate(layers):
    layer.load_state_dict({k: tensor(arrays[f'fc.{i}.{k}']) for k in ('weight', 'bias')})
  text = tensor(text)[tensor(batch['category']).long()].transpose(1, 2)  # [B, E, 2]
  mask, total, fused = tensor(batch['mask']).long(), 0, 0
  for layer, (name, tokens) in zip(layers, features.taps.items()):
    tokens = tensor(tokens)
    p = F.normalize(layer(tokens), dim=-1)
    logits = (100 * p @ text).permute(0, 2, 1).reshape(-1, 2, GRID, GRID)
    probs = F.interpolate(logits, SIZE, mode='bilinear', align_corners=True).softmax(1)
    onehot = F.one_hot(mask, 2).permute(0, 3, 1, 2).float().clamp(1e-5, 1 - 1e-5)
    pt = (onehot * probs).sum(1) + 1e-5
    total = total + (-(1 - pt) ** 2 * pt.log()).mean()
    q, m = probs[:, 1].flatten(1), mask.flatten(1).float()
    total = total + (1 - (2 * (q * m).sum(1) + 1) / (q.sum(1) + m.sum(1) + 1)).mean()
    fused = fused + probs[:, 1].detach()
    references = tensor(memory[name])[tensor(batch['category']).long()]
    cosine = F.cosine_similarity(tokens[:, :, None], references[:, None], dim=-1)  # [B, N, M]
    far = (1 - cosine).min(-1).values.reshape(-1, 1, GRID, GRID)
    fused = fused + F.interpolate(far, SIZE, mode='bilinear', align_corners=True)[:, 0]
  total.backward()
  score = (100 * F.normalize(tensor(features.cls), dim=-1)[:, None] @ text).softmax(-1)[:, 0, 1]
  gradients = {name: layer.weight.grad.numpy().T for name, layer in zip(features.taps, layers)}
  return float(total.detach()), gradients, score.numpy(), fused.numpy()


def test_parity_with_a_transcription(shell, torch):
  cfg = configured(fewshot__shots=1)
  features, batch = random_inputs(cfg)
  rng = np.random.default_rng(2)
  text = texts(rng)
  memory = {name: jnp.asarray(rng.standard_normal((2, GRID ** 2, WIDTH)), jnp.float32) for name in features.taps}
  arrays = released_arrays(cfg)
  want, gradients, score, maps = transcribed(torch, arrays, features, text, batch, memory)
  params = method.load_released(arrays, clip=shell, cfg=cfg)
  (total, terms), gradient = step(params, Context(None, text), features, batch, None, clip=shell, cfg=cfg)
  assert float(total) == pytest.approx(want, rel=1e-5)
  assert float(terms['loss_focal'] + terms['loss_dice']) == pytest.approx(want, rel=1e-5)
  for block, theirs in zip(cfg.layers, gradients.values()):
    ours = gradient[f'block{block}']['kernel']
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
  out = predict(params, Context(None, text, memory), features, batch, clip=shell, cfg=cfg)
  np.testing.assert_allclose(out.score, score, atol=1e-5)
  np.testing.assert_allclose(out.map, maps, atol=1e-4)
