"""AnomalyCLIP: its switches, its traps and what it refuses, on a small random CLIP."""

import ast
import contextlib
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np
import optax
import pytest
from golden import record_anomalyclip as small

from configs import anomalyclip as config
from zsad_jax.methods import anomalyclip as method
from zsad_jax.methods import prompts
from zsad_jax.models import clip as clip_lib
from zsad_jax.models import tokenizer
from zsad_jax.spec import Features, Side, Tap

ARCH = clip_lib.Arch('small', small.EMBED, clip_lib.Vision(**small.VISION), clip_lib.Text(**small.TEXT))
L14 = clip_lib.Clip(clip_lib.ARCHS['vit_l14_336'], 518, params=None)
N = (small.SIZE // small.VISION['patch']) ** 2
loss = jax.jit(method.loss, static_argnames=('clip', 'cfg'))
predict = jax.jit(method.predict, static_argnames=('clip', 'cfg'))
step = jax.jit(jax.value_and_grad(method.loss, has_aux=True), static_argnames=('clip', 'cfg'))
texts = jax.jit(method.texts, static_argnames=('names', 'clip', 'cfg'))
bank_of = jax.jit(method.bank, static_argnames=('categories', 'clip', 'cfg'))


def configured(**changes):
  """The published config for the small CLIP, with dotted changes written as part__key."""
  c = config.get_config()
  fitted = dict(image_size=small.SIZE, local_layers=(8,), dpam__first_block=small.FIRST_BLOCK,
                prompt__depth=small.DEPTH)
  for key, value in {**fitted, **changes}.items():
    *path, last = key.split('__')
    setattr(functools.reduce(getattr, path, c), last, value)
  return mlc.FrozenConfigDict(c)


def published(**changes):
  c = config.get_config()
  for key, value in changes.items():
    *path, last = key.split('__')
    setattr(functools.reduce(getattr, path, c), last, value)
  return mlc.FrozenConfigDict(c)


@pytest.fixture(scope='module')
def loaded():
  return clip_lib.from_state_dict(ARCH, small.weights(), image_size=small.SIZE, tokenizer=small.Words())


@pytest.fixture(scope='module')
def clip(loaded):
  """Without weights: whatever a method computes, it computes from `frozen`."""
  return dataclasses.replace(loaded, params=None)


@pytest.fixture(scope='module')
def frozen(loaded):
  return loaded.params


@dataclasses.dataclass(frozen=True, eq=False)
class Shallow(clip_lib.Clip):
  """A Clip whose text tower compiles at once, for what does not depend on the tower."""

  def text(self, params, embeddings, eot, *, deep=None, deep_mode='overwrite'):
    del deep_mode
    upto = (jnp.arange(embeddings.shape[1])[None] <= eot[:, None])[..., None]
    pooled = jnp.where(upto, embeddings, 0).sum(1) / (1 + eot[:, None])
    pooled = pooled if deep is None else pooled + deep.mean((0, 2))
    return jnp.tanh(pooled) @ params['text']['text_projection']['kernel']


@pytest.fixture(scope='module')
def shallow(clip):
  return Shallow(**{f.name: getattr(clip, f.name) for f in dataclasses.fields(clip)})


def learned():
  return {name: jnp.asarray(array) for name, array in small.prompts().items()}


def features_and_batch(cfg, clip, rows=4, seed=0):
  """Random features for every tap of the spec, and a batch whose odd rows are anomalous."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  taps = {tap.name: draw(rows, N, small.EMBED) for tap in method.spec(clip, cfg).taps}
  _, masks, labels = small.batch(rows=rows)
  batch = dict(mask=jnp.asarray(masks), label=jnp.asarray(labels), category=jnp.zeros(rows, jnp.int32),
               valid=jnp.ones(rows, bool))
  return Features(draw(rows, small.EMBED), taps), batch


# What is read from the image tower


def test_trap_1_and_3_the_released_spec():
  spec = method.spec(L14, published())
  assert spec.cls == 'proj' and spec.read == 'ln_post_proj' and spec.positions == 'bilinear'
  assert spec.taps == (Tap('vv', 24),) and spec.image_size == 518
  assert spec.sides == (Side('vv', 'vv', first_block=6, residual_base=True, reset_every=0, ffn=False),)
  assert L14.arch.vision.layers - spec.sides[0].first_block + 1 == 19


def test_trap_1_ln_post_on_the_class_token_is_a_switch():
  assert method.spec(L14, published(cls_ln_post=True)).cls == 'ln_post_proj'


def test_t1_off_reads_clips_own_stream():
  off = method.spec(L14, published(t1_dpam=False))
  assert off == method.spec(L14, published(dpam__mode='qk'))
  assert off.sides == () and off.taps == (Tap('clip', 24),)


@pytest.mark.parametrize('mode,streams', [('qq', ['qq']), ('kk', ['kk']), ('ens1', ['qq', 'kk', 'vv']),
                                          ('ens2', ['qk', 'qq', 'kk', 'vv'])])
def test_dpam_modes_are_side_streams(mode, streams):
  spec = method.spec(L14, published(dpam__mode=mode, local_layers=(12, 24)))
  assert [side.mode for side in spec.sides] == streams
  assert spec.taps == tuple(Tap(s, layer) for layer in (12, 24) for s in streams)


def test_ffn_switch_reaches_the_stream():
  assert method.spec(L14, published(dpam__ffn=True)).sides[0].ffn


# Layers and their weight


@pytest.mark.parametrize('chosen,t1,expected', [
  ((6, 12, 18, 24), True, {24: 4}), ((5, 12), True, {24: 2}), ((4, 12, 24), True, {4: 1, 24: 2}),
  ((6, 12, 18, 24), False, {6: 1, 12: 1, 18: 1, 24: 1})])
def test_aliasing_emulation_reads_the_last_block_from_the_one_before_dpam_on(chosen, t1, expected):
  cfg = published(t4_emulate_aliasing=True, local_layers=chosen, t1_dpam=t1)
  assert method.layers(L14, cfg) == expected
  assert {tap.block for tap in method.spec(L14, cfg).taps} == set(expected)


def test_trap_4_one_layer_at_4_equals_four_copies_at_1_and_not_four_layers(shallow, frozen):
  base = configured()
  assert published().local_layers == (24,) and published().loss.lambda_local == 4
  four = configured(local_layers=(2, 4, 6, 8), loss__lambda_local=1.0)
  features, batch = features_and_batch(four, shallow)
  totals = [float(loss(learned(), frozen, features, batch, None, clip=shallow, cfg=cfg)[0]) for cfg in (
    base, configured(local_layers=(8,) * 4, loss__lambda_local=1.0),
    configured(local_layers=(2, 4, 6, 8), loss__lambda_local=1.0, t4_emulate_aliasing=True), four)]
  assert totals[1] == pytest.approx(totals[0], rel=1e-6) and totals[2] == pytest.approx(totals[0], rel=1e-6)
  assert abs(totals[3] - totals[0]) > 1e-3


# Prompts


def test_published_prompts_are_43008_numbers_drawn_apart():
  template = jax.eval_shape(lambda: method.init(jax.random.key(0), L14, published()))
  assert {k: v.shape for k, v in template.items()} == {
    'ctx_pos': (12, 768), 'ctx_neg': (12, 768), 'deep': (8, 4, 768)}
  assert sum(v.size for v in template.values()) == 43008
  drawn = method.init(jax.random.key(0), L14, published())
  assert all(np.std(v) == pytest.approx(0.02, rel=0.03) and v.dtype == jnp.float32 for v in drawn.values())
  assert np.abs(np.corrcoef(drawn['ctx_pos'].ravel(), drawn['ctx_neg'].ravel())[0, 1]) < 0.05


@pytest.mark.parametrize('changes,shapes', [
  (dict(prompt__shared_ctx=True), {'ctx': (12, 768), 'deep': (8, 4, 768)}),
  (dict(t3_text_tuning=False), {'ctx_pos': (12, 768), 'ctx_neg': (12, 768)}),
  (dict(prompt__depth=1), {'ctx_pos': (12, 768), 'ctx_neg': (12, 768)}),
  (dict(prompt__deep_mode='concat'), {'ctx_pos': (12, 768), 'ctx_neg': (12, 768), 'deep': (9, 4, 768)}),
  (dict(t2_object_agnostic=False), {'ctx_pos': (12, 768), 'ctx_neg': (12, 768), 'deep': (8, 4, 768)}),
  (dict(t2_object_agnostic=False, t2_off='no_context', prompt__deep_mode='concat'), {'deep': (9, 4, 768)}),
  (dict(t2_object_agnostic=False, t2_off='no_context', t3_text_tuning=False, t1_dpam=False), {}),
])
def test_switches_decide_what_is_learned(changes, shapes):
  template = jax.eval_shape(lambda: method.init(jax.random.key(0), L14, published(**changes)))
  assert {k: v.shape for k, v in template.items()} == shapes


def test_trap_17_token_ids_of_the_published_prompts():
  lines = method.prompt_texts(('object',), published())
  assert lines == ['X ' * 12 + 'object.', 'X ' * 12 + 'damaged object.']
  ids = tokenizer.load().encode(lines, 77)
  assert ids[0].tolist() == [49406] + [343] * 12 + [14115, 269, 49407] + [0] * 61
  assert ids[1].tolist() == [49406] + [343] * 12 + [13568, 14115, 269, 49407] + [0] * 60
  assert L14.eot(ids).tolist() == [15, 16]


@pytest.mark.parametrize('word,middle,eot', [
  ('damaged', [13568], 16), ('anomalous', [21612, 526, 879], 18), ('flawed', [35136], 16),
  ('defective', [4148, 9313], 17), ('blemished', [1447, 714, 1492], 18)])
def test_trap_28_the_end_of_text_moves_with_the_state_word(word, middle, eot):
  assert word in prompts.STATE_WORDS
  ids = tokenizer.load().encode(method.prompt_texts(('object',), published(prompt__state_word=word)), 77)
  assert ids[1, 13:13 + len(middle)].tolist() == middle and L14.eot(ids)[1] == eot


def test_prompt_texts_of_the_other_switches():
  lines = functools.partial(method.prompt_texts, ('metal_nut',))
  assert lines(published(prompt__n_ctx=2, prompt__trailing='')) == ['X X metal nut', 'X X damaged metal nut']
  assert lines(published(t2_object_agnostic=False, t2_off='no_context')) == ['metal nut.', 'damaged metal nut.']


@dataclasses.dataclass(frozen=True, eq=False)
class Watched(clip_lib.Clip):
  """A Clip that notes what its text tower is given."""
  seen: dict = dataclasses.field(default_factory=dict)

  def text(self, params, embeddings, eot, *, deep=None, deep_mode='overwrite'):
    self.seen.update(embeddings=embeddings, eot=eot, deep=deep, deep_mode=deep_mode)
    return super().text(params, embeddings, eot, deep=deep, deep_mode=deep_mode)


def watched(clip, frozen, cfg, learnable, names=('object',)):
  watcher = Watched(**{f.name: getattr(clip, f.name) for f in dataclasses.fields(clip)})
  out = method.texts(learnable, frozen, names, clip=watcher, cfg=cfg)
  return out, watcher.seen


def test_prompt_is_start_then_context_then_frozen_words(clip, frozen):
  learnable = learned()
  out, seen = watched(clip, frozen, configured(), learnable)
  assert out.shape == (1, 2, small.EMBED)
  assert seen['embeddings'].shape == (2, 17, 64)  # cut after the longest text's end
  assert seen['eot'].tolist() == [15, 16]
  table = frozen['text']['token_embedding']['embedding']
  for row, name, words in ((0, 'ctx_pos', [3, 2, 47, 0]), (1, 'ctx_neg', [4, 3, 2, 47])):
    np.testing.assert_array_equal(seen['embeddings'][row, 0], table[46])
    np.testing.assert_array_equal(seen['embeddings'][row, 1:13], learnable[name])
    np.testing.assert_array_equal(seen['embeddings'][row, 13:], table[jnp.array(words)])


def test_trap_5_deep_tokens_overwrite_from_block_2_on(clip, frozen):
  learnable = learned()
  _, seen = watched(clip, frozen, configured(), learnable)
  assert seen['deep_mode'] == 'overwrite' and seen['deep'].shape == (small.DEPTH - 1, 2, 4, 64)
  feature = lambda learnable, cfg: texts(learnable, frozen, ('object',), clip=clip, cfg=cfg)[0, 0]
  # Block 1 still attends to the context vectors that are overwritten after it.
  pulled = jax.jit(jax.grad(lambda ctx: feature({**learnable, 'ctx_pos': ctx}, configured())[0]))
  gradient = pulled(learnable['ctx_pos'])
  assert (np.abs(gradient).max(1) > 0).all()
  # What would enter block 1 if the tokens were inserted, as the paper words it, gives other features.
  concat = {**learnable, 'deep': jnp.concatenate([learnable['deep'][:1], learnable['deep']])}
  inserted = feature(concat, configured(prompt__deep_mode='concat'))
  assert np.abs(inserted - feature(learnable, configured())).max() > 1e-2


def test_trap_6_deep_tokens_pass_through_half_precision(clip, frozen):
  learnable = {**learned(), 'deep': jnp.full((4, 4, 64), 0.1)}
  _, seen = watched(clip, frozen, configured(), learnable)
  assert seen['deep'].dtype == jnp.float32 and np.unique(seen['deep']).tolist() == [0.0999755859375]
  _, seen = watched(clip, frozen, configured(prompt__deep_fp16_round=False), learnable)
  assert np.unique(seen['deep']).tolist() == [np.float32(0.1)]


def test_trap_6_each_prompts_gradient_is_rounded_before_their_sum():
  cfg = configured()
  weigh = jnp.array([1.0, 1 + 2 ** -12])[:, None, None]  # the second rounds to 1 in half precision
  pull = lambda deep: (method._deep_tokens({'deep': deep}, 2, cfg) * weigh[None]).sum()
  np.testing.assert_array_equal(np.unique(jax.grad(pull)(jnp.ones((1, 1, 1)))), [2.0])


def test_cutting_texts_after_their_end_changes_nothing(clip, frozen):
  cfg = configured(t2_object_agnostic=False, t2_off='no_context', t3_text_tuning=False)
  ids = jnp.asarray(clip.tokenize(['object.', 'damaged object.']))
  whole = clip.text(frozen, clip.embed(frozen, ids), clip.eot(ids))  # all 77 tokens
  cut = texts({}, frozen, ('object',), clip=clip, cfg=cfg)[0]
  np.testing.assert_allclose(cut, unit(np.asarray(whole)), atol=1e-6)


# Bank and categories


def test_agnostic_bank_is_one_pair_whatever_the_categories(clip, frozen):
  bank = bank_of(learned(), frozen, ('bottle', 'metal_nut'), clip=clip, cfg=configured())
  assert bank.shape == (1, 2, small.EMBED)
  np.testing.assert_allclose(jnp.linalg.norm(bank, axis=-1), 1, rtol=1e-6)
  np.testing.assert_array_equal(bank, bank_of(learned(), frozen, (), clip=clip, cfg=configured()))


@pytest.mark.parametrize('changes', [dict(prompt__object_re=True), dict(t2_object_agnostic=False)])
def test_named_banks_hold_one_pair_per_category(clip, frozen, changes):
  cfg = configured(**changes)
  bank = bank_of(learned(), frozen, ('bottle', 'metal_nut'), clip=clip, cfg=cfg)
  assert bank.shape == (2, 2, small.EMBED) and np.abs(bank[0] - bank[1]).max() > 1e-3
  np.testing.assert_allclose(bank[1:], texts(learned(), frozen, ('metal nut',), clip=clip, cfg=cfg), atol=1e-6)


def test_named_predictions_take_the_pair_of_each_images_category(shallow, frozen):
  cfg = configured(t2_object_agnostic=False)
  bank = bank_of(learned(), frozen, ('bottle', 'metal nut'), clip=shallow, cfg=cfg)
  features, batch = features_and_batch(cfg, shallow)
  batch['category'] = jnp.array([0, 1, 1, 0])
  mixed = predict({}, frozen, bank, None, features, batch, clip=shallow, cfg=cfg)
  for row, category in enumerate([0, 1, 1, 0]):
    alone = predict({}, frozen, bank[category:category + 1], None, features, batch, clip=shallow, cfg=cfg)
    np.testing.assert_allclose(mixed['score'][row], alone['score'][row], rtol=1e-5)
    np.testing.assert_allclose(mixed['map'][row], alone['map'][row], atol=1e-6)
  batch['category'] = jnp.array([0, 1, 1, 2])  # a category the bank does not have must not pass for another
  assert np.isnan(predict({}, frozen, bank, None, features, batch, clip=shallow, cfg=cfg)['score'][3])


def test_object_aware_training_uses_the_names_of_the_auxiliary_categories(shallow, frozen):
  cfg = configured(t2_object_agnostic=False, prompt__categories=('bottle', 'metal_nut'))
  features, batch = features_and_batch(cfg, shallow)
  batch['category'] = jnp.array([0, 1, 0, 1])
  mixed, _ = loss(learned(), frozen, features, batch, None, clip=shallow, cfg=cfg)
  alone = []
  for category, name in enumerate(('bottle', 'metal nut')):
    rows = {**batch, 'valid': batch['category'] == category, 'category': jnp.zeros(4, jnp.int32)}
    one = configured(t2_object_agnostic=False, prompt__categories=(name,))
    alone.append(float(loss(learned(), frozen, features, rows, None, clip=shallow, cfg=one)[0]))
  assert float(mixed) == pytest.approx(np.mean(alone), rel=1e-5)
  with pytest.raises(ValueError, match=r'set prompt\.categories to the object names of the auxiliary set'):
    method.loss(learned(), frozen, features, batch, None, clip=shallow, cfg=configured(t2_object_agnostic=False))


# Predictions


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def planted(shallow, cfg, text, rows=2):
  """Features that agree with the normal text everywhere and with the abnormal one where told."""
  features, batch = features_and_batch(cfg, shallow, rows)
  taps = {name: jnp.broadcast_to(text[0, 0], x.shape) for name, x in features.taps.items()}
  return Features(jnp.broadcast_to(text[0, 0], features.cls.shape), taps), batch


def test_trap_27_index_1_is_abnormal(shallow, frozen):
  cfg = configured()
  text = bank_of(learned(), frozen, (), clip=shallow, cfg=cfg)
  features, batch = planted(shallow, cfg, text)
  features = features._replace(cls=features.cls.at[1].set(3 * text[0, 1]))
  score = predict({}, frozen, text, None, features, batch, clip=shallow, cfg=cfg)['score']
  assert score[0] < 0.5 < score[1]
  assert score[0] + score[1] == pytest.approx(1, abs=1e-5)


def test_trap_12_an_abnormal_patch_lights_up_its_own_place(shallow, frozen):
  cfg = configured(map__sigma=1.0)
  text = bank_of(learned(), frozen, (), clip=shallow, cfg=cfg)
  features, batch = planted(shallow, cfg, text)
  name = Tap('vv', 8).name
  features.taps[name] = features.taps[name].at[:, 6].set(text[0, 1])  # row 1, column 0 of 6 x 6
  out = predict({}, frozen, text, None, features, batch, clip=shallow, cfg=cfg)['map']
  assert out.shape == (2, 48, 48)
  row, column = np.unravel_index(np.asarray(out[0]).argmax(), (48, 48))
  assert 8 <= row < 16 and column < 8


def test_trap_25_the_map_is_the_sum_of_layers_and_not_rescaled(shallow, frozen):
  two = configured(local_layers=(4, 8))
  features, batch = features_and_batch(two, shallow)
  text = bank_of(learned(), frozen, (), clip=shallow, cfg=two)
  maps = [np.asarray(predict({}, frozen, text, None, features, batch, clip=shallow, cfg=cfg)['map'])
          for cfg in (two, *(configured(local_layers=chosen) for chosen in ((4,), (8,), (8, 8))))]
  np.testing.assert_allclose(maps[0], maps[1] + maps[2], atol=1e-6)
  np.testing.assert_allclose(maps[3], 2 * maps[2], atol=1e-6)  # a layer named twice counts twice
  spread = np.ptp(maps[0], axis=(1, 2))
  assert np.unique(spread.round(4)).size == 4 and (spread > 0.1).all()


def test_predictions_equal_the_papers_formula_in_float64(shallow, frozen):
  from scipy.ndimage import gaussian_filter, zoom
  cfg = configured(dpam__mode='ens1', map__sigma=0.0)
  features, batch = features_and_batch(cfg, shallow)
  text = np.float64(bank_of(learned(), frozen, (), clip=shallow, cfg=cfg))[0]
  out = predict({}, frozen, jnp.asarray(text, jnp.float32)[None], None, features, batch, clip=shallow, cfg=cfg)
  np.testing.assert_allclose(out['score'], softmax(unit(np.float64(features.cls)) @ text.T / 0.07)[:, 1], rtol=1e-5)
  logits = np.mean([unit(np.float64(x)) @ text.T / 0.07 for x in features.taps.values()], 0)
  grid = softmax(logits)[..., 1].reshape(-1, 6, 6)
  up = zoom(grid, (1, 8, 8), order=1, mode='nearest', grid_mode=True)
  np.testing.assert_allclose(out['map'], up, atol=2e-6)
  smooth = predict({}, frozen, jnp.asarray(text, jnp.float32)[None], None, features, batch, clip=shallow,
                   cfg=configured(dpam__mode='ens1'))['map']
  np.testing.assert_allclose(smooth, [gaussian_filter(m, 4) for m in up], atol=2e-6)


def test_ensembles_average_logits_or_probabilities(shallow, frozen):
  both = [configured(dpam__mode='ens1', dpam__ensemble=e, map__sigma=0.0) for e in ('logits', 'probs')]
  features, batch = features_and_batch(both[0], shallow)
  text = bank_of(learned(), frozen, (), clip=shallow, cfg=both[0])
  logits, probs = (predict({}, frozen, text, None, features, batch, clip=shallow, cfg=c)['map'] for c in both)
  assert np.abs(logits - probs).max() > 1e-2
  single = []
  for mode in ('qq', 'kk', 'vv'):
    only = Features(features.cls, {Tap(mode, 8).name: features.taps[Tap(mode, 8).name]})
    cfg = configured(dpam__mode=mode, map__sigma=0.0)
    single.append(predict({}, frozen, text, None, only, batch, clip=shallow, cfg=cfg)['map'])
  np.testing.assert_allclose(probs, np.mean(single, 0), atol=1e-6)


def test_trap_7_temperature_is_0_07_unless_clips_own_is_asked_for(shallow, frozen):
  features, batch = features_and_batch(configured(), shallow)
  text = bank_of(learned(), frozen, (), clip=shallow, cfg=configured())
  for cfg, temperature in ((configured(), 0.07), (configured(use_logit_scale=True), 0.01)):
    score = predict({}, frozen, text, None, features, batch, clip=shallow, cfg=cfg)['score']
    expected = softmax(unit(np.float64(features.cls)) @ np.float64(text[0]).T / temperature)[:, 1]
    np.testing.assert_allclose(score, expected, rtol=1e-4)


def test_half_precision_features_are_computed_with_in_float32(shallow, frozen):
  cfg = configured()
  features, batch = features_and_batch(cfg, shallow)
  text = bank_of(learned(), frozen, (), clip=shallow, cfg=cfg)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), features)
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), half)
  out = [predict({}, frozen, text, None, f, batch, clip=shallow, cfg=cfg) for f in (half, wide)]
  assert out[0]['map'].dtype == jnp.float32
  jax.tree.map(np.testing.assert_array_equal, *out)


# Loss


def test_loss_terms_switch_off_one_by_one(shallow, frozen):
  features, batch = features_and_batch(configured(), shallow)
  run = lambda **changes: loss(learned(), frozen, features, batch, None, clip=shallow, cfg=configured(**changes))
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


def test_padded_rows_weigh_nothing_in_loss_and_gradient(shallow, frozen):
  features, batch = features_and_batch(configured(), shallow, rows=3)
  grow = lambda x: jnp.concatenate([x, x[-1:] * 0 + 1])
  more, padded = jax.tree.map(grow, features), jax.tree.map(grow, batch)
  padded['valid'] = jnp.array([1, 1, 1, 0], bool)
  alone = step(learned(), frozen, features, batch, None, clip=shallow, cfg=configured())
  again = step(learned(), frozen, more, padded, None, clip=shallow, cfg=configured())
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-6), again, alone)


def test_images_without_a_known_mask_count_in_the_global_term_only(shallow, frozen):
  features, batch = features_and_batch(configured(), shallow)
  known = {**batch, 'has_mask': jnp.array([True, False, True, True])}
  _, parts = loss(learned(), frozen, features, known, None, clip=shallow, cfg=configured())
  _, everything = loss(learned(), frozen, features, batch, None, clip=shallow, cfg=configured())
  _, others = loss(learned(), frozen, features, {**batch, 'valid': known['has_mask']}, None, clip=shallow,
                   cfg=configured())
  assert float(parts['loss_global']) == pytest.approx(float(everything['loss_global']), rel=1e-6)
  assert float(parts['loss_local']) == pytest.approx(float(others['loss_local']), rel=1e-6)


def test_trap_29_the_batch_is_the_mean_of_its_images(shallow, frozen):
  features, batch = features_and_batch(configured(), shallow)
  total, _ = loss(learned(), frozen, features, batch, None, clip=shallow, cfg=configured())
  single = []
  for row in range(4):
    image = jax.tree.map(lambda x: x[row:row + 1], (features, batch))  # noqa: B023
    single.append(float(loss(learned(), frozen, *image, None, clip=shallow, cfg=configured())[0]))
  assert float(total) == pytest.approx(np.mean(single), rel=1e-5)


def test_trap_29_no_partial_batch_is_dropped():
  assert published().train.batch == 8 and published().train.epochs == 15
  assert [-(-count // published().train.batch) for count in (1725, 2162)] == [216, 271]


def test_trap_15_adam_forgets_with_0_5():
  optim = published().optim
  adam = optax.adam(optim.lr, b1=optim.b1, b2=optim.b2, eps=optim.eps)
  parameter = jnp.zeros(())
  state = adam.init(parameter)
  for gradient in (1.0, -1.0):
    update, state = adam.update(jnp.array(gradient), state, parameter)
    parameter = optax.apply_updates(parameter, update)
  assert float(parameter) == pytest.approx(-6.667e-4, abs=1e-6)


@pytest.mark.parametrize('changes', [
  dict(), dict(prompt__deep_mode='concat'),
  dict(t2_object_agnostic=False, t2_off='no_context', prompt__deep_mode='concat', prompt__categories=('nut',)),
])
def test_text_tower_passes_a_gradient_to_every_learned_vector(clip, frozen, changes):
  cfg = configured(**changes)
  one_number = lambda learnable: method.texts(learnable, frozen, ('nut',), clip=clip, cfg=cfg)[..., 0].sum()
  pull = jax.jit(jax.grad(one_number))
  for name, g in pull(method.init(jax.random.key(0), clip, cfg)).items():
    assert np.isfinite(g).all() and (np.abs(g).max(-1) > 0).all(), name


@pytest.mark.parametrize('changes', [
  dict(), dict(prompt__shared_ctx=True), dict(t3_text_tuning=False), dict(prompt__deep_mode='concat'),
  dict(t1_dpam=False), dict(dpam__mode='ens2', dpam__ensemble='probs'), dict(use_logit_scale=True),
  dict(t2_object_agnostic=False, prompt__categories=('bottle',)),
  dict(t2_object_agnostic=False, t2_off='no_context', prompt__deep_mode='concat', prompt__categories=('nut',)),
])
def test_every_learned_vector_gets_a_finite_gradient(shallow, frozen, changes):
  cfg = configured(**changes)
  features, batch = features_and_batch(cfg, shallow)
  learnable = method.init(jax.random.key(0), shallow, cfg)
  (total, _), gradient = step(learnable, frozen, features, batch, jax.random.key(1), clip=shallow, cfg=cfg)
  assert np.isfinite(total)
  for name, g in gradient.items():
    assert np.isfinite(g).all() and (np.abs(g).max(-1) > 0).all(), name


def test_object_re_changes_evaluation_only(shallow, frozen):
  features, batch = features_and_batch(configured(), shallow)
  plain, renamed = (loss(learned(), frozen, features, batch, None, clip=shallow, cfg=c)[0]
                    for c in (configured(), configured(prompt__object_re=True)))
  assert float(plain) == float(renamed)


# What is refused


@pytest.mark.parametrize('changes,message', [
  (dict(local_layers=(6, 12)), r'local_layers 12 is not in 1\.\.8: the image tower of small has 8 blocks'),
  (dict(local_layers=(0,)), r'local_layers 0 is not in 1\.\.8'),
  (dict(local_layers=()), 'local_layers is empty'),
  (dict(dpam__first_block=9), r'dpam\.first_block 9 is not in 1\.\.8'),
  (dict(dpam__mode='qv'), r"dpam\.mode 'qv' is not one of vv, qq, kk, qk, ens1, ens2"),
  (dict(dpam__ensemble='mean'), r"dpam\.ensemble 'mean' is not one of logits, probs"),
  (dict(prompt__deep_mode='insert'), r"prompt\.deep_mode 'insert' is not one of overwrite, concat"),
  (dict(t2_off='none'), "t2_off 'none' is not one of object_aware, no_context"),
  (dict(prompt__depth=7), r'prompt\.depth \(M\) 7 is not in 1\.\.6: its text tower has 6 blocks'),
  (dict(prompt__n_ctx=3), r'prompt\.deep_len \(L\) 4 is not in 1\.\.3: they may overwrite only the 3 context vectors'),
  (dict(prompt__n_ctx=0), r'prompt\.n_ctx \(E\) 0 is not in 1\.\.74'),
  (dict(prompt__n_ctx=75), r'prompt\.n_ctx \(E\) 75 is not in 1\.\.74: its texts have 77 tokens'),
  (dict(prompt__deep_mode='concat', prompt__deep_len=0), r'prompt\.deep_len \(L\) 0 is not in 1\.\.77'),
  (dict(temperature=0.0), r'temperature 0\.0 is not positive'),
  (dict(prompt__init_std=-1.0), r'prompt\.init_std -1\.0 is not positive'),
  (dict(loss__lambda_local=-4.0), r'loss\.lambda_local -4\.0 is not 0 or more'),
  (dict(map__sigma=float('nan')), r'map\.sigma nan is not 0 or more'),
  (dict(prompt__deep_len=0), r'prompt\.deep_len \(L\) 0 is not in 1\.\.12'),
  (dict(t2_object_agnostic=False, t2_off='no_context'), r'they may overwrite only the 0 context vectors'),
  (dict(t2_object_agnostic=False, prompt__object_re=True), r'prompt\.object_re renames the object of agnostic prompts'),
])
def test_keys_that_do_not_fit_are_named(clip, changes, message):
  for use in (method.spec, functools.partial(method.init, jax.random.key(0))):
    with pytest.raises(ValueError, match=message):
      use(clip, configured(**changes))


def test_training_is_refused_without_a_term_or_anything_to_learn(clip, frozen):
  features, batch = features_and_batch(configured(), clip)
  none = configured(loss__ce=False, loss__focal=False, loss__dice=False)
  with pytest.raises(ValueError, match=r'loss\.ce, loss\.focal and loss\.dice are all off'):
    method.loss(learned(), frozen, features, batch, None, clip=clip, cfg=none)
  base = configured(t2_object_agnostic=False, t2_off='no_context', t3_text_tuning=False)
  with pytest.raises(ValueError, match='nothing to learn'):
    method.loss(method.init(jax.random.key(0), clip, base), frozen, features, batch, None, clip=clip, cfg=base)


def test_masks_of_another_size_are_refused(clip, frozen):
  features, batch = features_and_batch(configured(), clip)
  batch['mask'] = batch['mask'][:, ::2, ::2]
  with pytest.raises(ValueError, match='masks are 24x24; the loss needs them at image_size 48'):
    method.loss(learned(), frozen, features, batch, None, clip=clip, cfg=configured())


def test_table_4_base_is_two_fixed_prompts_without_training(clip, frozen):
  cfg = configured(t1_dpam=False, t2_object_agnostic=False, t2_off='no_context', t3_text_tuning=False)
  features, batch = features_and_batch(cfg, clip)
  bank = method.bank({}, frozen, ('bottle',), clip=clip, cfg=cfg)
  ids = clip.tokenize(['bottle.', 'damaged bottle.'])
  plain = clip.text(frozen, clip.embed(frozen, jnp.asarray(ids)), jnp.asarray(clip.eot(ids), jnp.int32))
  np.testing.assert_allclose(bank[0], unit(np.asarray(plain)), atol=1e-5)
  assert np.isfinite(predict({}, frozen, bank, None, features, batch, clip=clip, cfg=cfg)['map']).all()


# Released checkpoints


def released(depth=9, width=768):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  deep = {f'compound_prompts_text.{i}': draw(4, width) for i in reversed(range(depth - 1))}
  unused = {f'compound_prompt_projections.{i}.{part}': np.zeros(3)
            for i in range(depth - 1) for part in ('weight', 'bias')}
  buffers = {f'{name}_{sign}': np.zeros(2) for name in ('token_prefix', 'token_suffix', 'tokenized_prompts')
             for sign in ('pos', 'neg')}
  return {'ctx_pos': draw(1, 1, 12, width), 'ctx_neg': draw(1, 1, 12, width), **deep, **unused, **buffers}


@pytest.mark.parametrize('prefix', ['', 'prompt_learner.'])
@pytest.mark.parametrize('depth', [9, 12])
def test_released_checkpoint_loads_in_numeric_order(prefix, depth):
  arrays = released(depth)
  out = method.load_official({prefix + k: v for k, v in arrays.items()}, clip=L14, cfg=published(prompt__depth=depth))
  assert out.keys() == {'ctx_pos', 'ctx_neg', 'deep'}
  np.testing.assert_array_equal(out['ctx_neg'], arrays['ctx_neg'][0, 0])
  np.testing.assert_array_equal(out['deep'][depth - 2], arrays[f'compound_prompts_text.{depth - 2}'])
  assert jax.tree.map(jnp.shape, out) == jax.tree.map(
    jnp.shape, method.init(jax.random.key(0), L14, published(prompt__depth=depth)))


def test_released_checkpoint_of_another_shape_or_with_other_names_is_refused():
  arrays = released()
  arrays['ctx_pos'] = arrays['ctx_pos'][:, :, :11]
  arrays['adapter.weight'] = np.zeros((2, 3))
  del arrays['compound_prompts_text.3']
  with pytest.raises(ValueError) as error:
    method.load_official(arrays, clip=L14, cfg=published())
  for part in ('missing compound_prompts_text.3', 'unknown adapter.weight (2, 3)',
               'ctx_pos is (1, 1, 11, 768), not (1, 1, 12, 768)'):
    assert part in str(error.value)


# At full size and on many devices


def test_published_shapes_without_a_single_weight():
  whole = dataclasses.replace(L14, tokenizer=tokenizer.load())
  cfg = published()
  frozen = clip_lib.template(L14.arch)
  learnable = jax.eval_shape(lambda: method.init(jax.random.key(0), whole, cfg))
  array = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
  features = Features(array(8, 768), {tap.name: array(8, 1369, 768) for tap in method.spec(whole, cfg).taps})
  batch = dict(mask=array(8, 518, 518, dtype=jnp.uint8), label=array(8, dtype=jnp.int32),
               category=array(8, dtype=jnp.int32), valid=array(8, dtype=bool))
  bank = jax.eval_shape(functools.partial(method.bank, categories=(), clip=whole, cfg=cfg), learnable, frozen)
  assert bank.shape == (1, 2, 768)
  given = functools.partial(functools.partial, clip=whole, cfg=cfg)
  total, _ = jax.eval_shape(given(method.loss), learnable, frozen, features, batch, None)
  out = jax.eval_shape(given(method.predict), learnable, frozen, bank, None, features, batch)
  assert total.shape == () and out['score'].shape == (8,) and out['map'].shape == (8, 518, 518)


def test_eight_devices_give_the_loss_and_gradient_of_one(shallow, frozen):
  features, batch = features_and_batch(configured(), shallow, rows=8)
  batch['valid'] = jnp.array([1] * 6 + [0, 0], bool)
  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  one = step(learned(), frozen, features, batch, None, clip=shallow, cfg=configured())
  spread = step(jax.device_put(learned(), whole), jax.device_put(frozen, whole), jax.device_put(features, split),
                jax.device_put(batch, split), None, clip=shallow, cfg=configured())
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-6), spread, one)


def rows_of_the_docstring():
  """Every row of ablations in the config's docstring, as (name, changes); a row may offer several settings."""
  table = config.__doc__.split('as changes to this config:')[1]
  rows = []
  for name, text in re.findall(r'^  (\S.*?)  +(.*)$', table, re.M):
    changes = {}
    for key, value in re.findall(r'([\w.]+)=(\([\d,]+\)|[\w.]+)', text):
      with contextlib.suppress(ValueError):  # a bare word is a string
        value = ast.literal_eval(value)
      changes[key.replace('.', '__')] = float(value) if key == 'loss.lambda_local' else value
    rows.append(pytest.param(changes, id=name))
  return rows


@pytest.mark.parametrize('changes', rows_of_the_docstring())
def test_ablation_rows_of_the_docstring_build(changes):
  assert changes
  cfg = published(**changes)
  assert method.spec(L14, cfg).taps
  jax.eval_shape(lambda: method.init(jax.random.key(0), L14, cfg))
