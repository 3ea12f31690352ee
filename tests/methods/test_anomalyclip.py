"""AnomalyCLIP: its feature spec, prompts and switches, released checkpoints, and configs that it refuses."""

import ast
import contextlib
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from anomalyclip_small import (
  L14,
  configured,
  encode_prompts,
  encode_text,
  features_and_batch,
  loaded,
  predict,
  published,
  trained,
  unit,
  without_weights,
)
from golden import record_anomalyclip as small
from method_checks import check

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip import tokenizer
from zsad_jax.clip.feature_spec import Features, SideStream, Tap
from zsad_jax.configs import anomalyclip as config
from zsad_jax.methods import Context
from zsad_jax.methods import anomalyclip as method
from zsad_jax.methods.parts import prompts


@pytest.fixture(scope='module')
def clip():
  return without_weights()


@pytest.fixture(scope='module')
def clip_params():
  return loaded().params


# Feature spec


def test_released_feature_spec():
  spec = method.feature_spec(L14, published())
  assert spec.cls == 'proj' and spec.read == 'ln_post_proj' and spec.positions == 'bilinear'
  assert spec.taps == (Tap('vv', 24),) and spec.image_size == 518
  assert spec.sides == (SideStream('vv', 'vv', first_block=6, residual_base=True, reset_every=0, ffn=False),)
  assert L14.arch.vision.layers - spec.sides[0].first_block + 1 == 19


def test_ln_post_on_the_class_token_is_a_switch():
  assert method.feature_spec(L14, published(cls_ln_post=True)).cls == 'ln_post_proj'


def test_t1_off_reads_clips_own_stream():
  off = method.feature_spec(L14, published(t1_dpam=False))
  assert off == method.feature_spec(L14, published(dpam__mode='qk'))
  assert off.sides == () and off.taps == (Tap('clip', 24),)


@pytest.mark.parametrize('mode,streams', [('qq', ['qq']), ('kk', ['kk']), ('ens1', ['qq', 'kk', 'vv']),
                                          ('ens2', ['qk', 'qq', 'kk', 'vv'])])
def test_dpam_modes_are_side_streams(mode, streams):
  spec = method.feature_spec(L14, published(dpam__mode=mode, local_layers=(12, 24)))
  assert [side.mode for side in spec.sides] == streams
  assert spec.taps == tuple(Tap(s, layer) for layer in (12, 24) for s in streams)


def test_ffn_switch_reaches_the_stream():
  assert method.feature_spec(L14, published(dpam__ffn=True)).sides[0].ffn


# Layers and their weight


@pytest.mark.parametrize('chosen,t1,expected', [
  ((6, 12, 18, 24), True, {24: 4}), ((5, 12), True, {24: 2}), ((4, 12, 24), True, {4: 1, 24: 2}),
  ((6, 12, 18, 24), False, {6: 1, 12: 1, 18: 1, 24: 1})])
def test_aliasing_emulation_reads_the_last_block_from_the_one_before_dpam_on(chosen, t1, expected):
  cfg = published(t4_emulate_aliasing=True, local_layers=chosen, t1_dpam=t1)
  assert method._layers(L14, cfg) == expected
  assert {tap.block for tap in method.feature_spec(L14, cfg).taps} == set(expected)


# Prompts


@pytest.mark.slow
def test_published_prompts_have_43008_independent_parameters():
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
def test_switches_decide_what_is_trained(changes, shapes):
  template = jax.eval_shape(lambda: method.init(jax.random.key(0), L14, published(**changes)))
  assert {k: v.shape for k, v in template.items()} == shapes


def test_token_ids_of_the_published_prompts():
  lines = method._prompt_texts(('object',), published())
  assert lines == ['X ' * 12 + 'object.', 'X ' * 12 + 'damaged object.']
  ids = tokenizer.load().encode(lines, 77)
  assert ids[0].tolist() == [49406] + [343] * 12 + [14115, 269, 49407] + [0] * 61
  assert ids[1].tolist() == [49406] + [343] * 12 + [13568, 14115, 269, 49407] + [0] * 60
  assert L14.eot(ids).tolist() == [15, 16]


@pytest.mark.parametrize('word,middle,eot', [
  ('damaged', [13568], 16), ('anomalous', [21612, 526, 879], 18), ('flawed', [35136], 16),
  ('defective', [4148, 9313], 17), ('blemished', [1447, 714, 1492], 18)])
def test_the_end_of_text_moves_with_the_state_word(word, middle, eot):
  assert word in prompts.STATE_WORDS
  ids = tokenizer.load().encode(method._prompt_texts(('object',), published(prompt__state_word=word)), 77)
  assert ids[1, 13:13 + len(middle)].tolist() == middle and L14.eot(ids)[1] == eot


def test_prompt_texts_of_the_other_switches():
  lines = functools.partial(method._prompt_texts, ('metal_nut',))
  assert lines(published(prompt__n_ctx=2, prompt__trailing='')) == ['X X metal nut', 'X X damaged metal nut']
  assert lines(published(t2_object_agnostic=False, t2_off='no_context')) == ['metal nut.', 'damaged metal nut.']


@dataclasses.dataclass(frozen=True, eq=False)
class Watched(clip_lib.Clip):
  """A Clip that records the inputs of its text tower."""
  seen: dict = dataclasses.field(default_factory=dict)

  def text(self, params, embeddings, eot, *, deep=None, deep_mode='overwrite'):
    self.seen.update(embeddings=embeddings, eot=eot, deep=deep, deep_mode=deep_mode)
    return super().text(params, embeddings, eot, deep=deep, deep_mode=deep_mode)


def watched(clip, clip_params, cfg, params, names=('object',)):
  watcher = Watched(**{f.name: getattr(clip, f.name) for f in dataclasses.fields(clip)})
  out = method._encode_prompts(params, clip_params, names, clip=watcher, cfg=cfg)
  return out, watcher.seen


@pytest.mark.slow
def test_prompt_is_start_then_context_then_frozen_words(clip, clip_params):
  params = trained()
  out, seen = watched(clip, clip_params, configured(), params)
  assert out.shape == (1, 2, small.EMBED)
  assert seen['embeddings'].shape == (2, 17, 64)  # cut after the longest text's end
  assert seen['eot'].tolist() == [15, 16]
  table = clip_params['text']['token_embedding']['embedding']
  for row, name, words in ((0, 'ctx_pos', [3, 2, 47, 0]), (1, 'ctx_neg', [4, 3, 2, 47])):
    np.testing.assert_array_equal(seen['embeddings'][row, 0], table[46])
    np.testing.assert_array_equal(seen['embeddings'][row, 1:13], params[name])
    np.testing.assert_array_equal(seen['embeddings'][row, 13:], table[jnp.array(words)])


@pytest.mark.slow
def test_deep_tokens_overwrite_from_block_2_on(clip, clip_params):
  params = trained()
  _, seen = watched(clip, clip_params, configured(), params)
  assert seen['deep_mode'] == 'overwrite' and seen['deep'].shape == (small.DEPTH - 1, 2, 4, 64)
  feature = lambda params, cfg: encode_prompts(params, clip_params, ('object',), clip=clip, cfg=cfg)[0, 0]
  # Block 1 still attends to the context vectors that are overwritten after it.
  pulled = jax.jit(jax.grad(lambda ctx: feature({**params, 'ctx_pos': ctx}, configured())[0]))
  gradient = pulled(params['ctx_pos'])
  assert (np.abs(gradient).max(1) > 0).all()
  # What would enter block 1 if the tokens were inserted, as the paper words it, gives other features.
  concat = {**params, 'deep': jnp.concatenate([params['deep'][:1], params['deep']])}
  inserted = feature(concat, configured(prompt__deep_mode='concat'))
  assert np.abs(inserted - feature(params, configured())).max() > 1e-2


@pytest.mark.slow
def test_deep_tokens_pass_through_half_precision(clip, clip_params):
  params = {**trained(), 'deep': jnp.full((4, 4, 64), 0.1)}
  _, seen = watched(clip, clip_params, configured(), params)
  assert seen['deep'].dtype == jnp.float32 and np.unique(seen['deep']).tolist() == [0.0999755859375]
  _, seen = watched(clip, clip_params, configured(prompt__deep_fp16_round=False), params)
  assert np.unique(seen['deep']).tolist() == [np.float32(0.1)]


def test_each_prompts_gradient_is_rounded_before_their_sum():
  cfg = configured()
  weigh = jnp.array([1.0, 1 + 2 ** -12])[:, None, None]  # the second rounds to 1 in half precision
  pull = lambda deep: (method._deep_tokens({'deep': deep}, 2, cfg) * weigh[None]).sum()
  np.testing.assert_array_equal(np.unique(jax.grad(pull)(jnp.ones((1, 1, 1)))), [2.0])


@pytest.mark.slow
def test_cutting_texts_after_their_end_changes_nothing(clip, clip_params):
  cfg = configured(t2_object_agnostic=False, t2_off='no_context', t3_text_tuning=False)
  ids = jnp.asarray(clip.tokenize(['object.', 'damaged object.']))
  whole = clip.text(clip_params, clip.embed(clip_params, ids), clip.eot(ids))  # all 77 tokens
  cut = encode_prompts({}, clip_params, ('object',), clip=clip, cfg=cfg)[0]
  np.testing.assert_allclose(cut, unit(np.asarray(whole)), atol=1e-6)


# Text features and categories


@pytest.mark.slow
def test_agnostic_text_features_are_one_pair_whatever_the_categories(clip, clip_params):
  text = encode_text(trained(), clip_params, ('bottle', 'metal_nut'), clip=clip, cfg=configured())
  assert text.shape == (1, 2, small.EMBED)
  np.testing.assert_allclose(jnp.linalg.norm(text, axis=-1), 1, rtol=1e-6)
  np.testing.assert_array_equal(text, encode_text(trained(), clip_params, (), clip=clip, cfg=configured()))


@pytest.mark.slow
@pytest.mark.parametrize('changes', [dict(prompt__object_re=True), dict(t2_object_agnostic=False)])
def test_named_text_features_have_one_pair_per_category(clip, clip_params, changes):
  cfg = configured(**changes)
  text = encode_text(trained(), clip_params, ('bottle', 'metal_nut'), clip=clip, cfg=cfg)
  assert text.shape == (2, 2, small.EMBED) and np.abs(text[0] - text[1]).max() > 1e-3
  alone = encode_prompts(trained(), clip_params, ('metal nut',), clip=clip, cfg=cfg)
  np.testing.assert_allclose(text[1:], alone, atol=1e-6)


# Configs that are refused


@pytest.mark.parametrize('changes,message', [
  (dict(local_layers=(6, 12)), r'local_layers=\(6, 12\).*\[1, 8\], the blocks of the image tower of small'),
  (dict(local_layers=(0,)), r'local_layers=\(0,\).*\[1, 8\]'),
  (dict(local_layers=()), r'local_layers=\(\).*at least one block'),
  (dict(dpam__first_block=9), r'dpam\.first_block=9.*\[1, 8\], the blocks of the image tower of small'),
  (dict(dpam__mode='qv'), r"dpam\.mode='qv'.*one of vv, qq, kk, qk, ens1, ens2"),
  (dict(dpam__ensemble='mean'), r"dpam\.ensemble='mean'.*one of logits, probs"),
  (dict(prompt__deep_mode='insert'), r"prompt\.deep_mode='insert'.*one of overwrite, concat"),
  (dict(t2_off='none'), "t2_off='none'.*one of object_aware, no_context"),
  (dict(prompt__depth=7), r'prompt\.depth=7.*\[1, 6\], the blocks of the text tower'),
  (dict(prompt__n_ctx=3), r'prompt\.deep_len=4.*\[1, 3\].*prompt\.n_ctx.*deep_mode=concat'),
  (dict(prompt__n_ctx=0), r'prompt\.n_ctx=0.*\[1, 74\]'),
  (dict(prompt__n_ctx=75), r'prompt\.n_ctx=75.*\[1, 74\].*77 tokens'),
  (dict(prompt__deep_mode='concat', prompt__deep_len=0), r'prompt\.deep_len=0.*\[1, 77\]'),
  (dict(temperature=0.0), r'temperature=0\.0.*positive'),
  (dict(prompt__init_std=-1.0), r'prompt\.init_std=-1\.0.*positive'),
  (dict(loss__lambda_local=-4.0), r'loss\.lambda_local=-4\.0.*at least 0'),
  (dict(map__sigma=float('nan')), r'map\.sigma=nan.*at least 0'),
  (dict(prompt__deep_len=0), r'prompt\.deep_len=0.*\[1, 12\]'),
  (dict(t2_object_agnostic=False, t2_off='no_context'), 'no context vectors to overwrite.*prompt.deep_mode=concat'),
  (dict(t2_object_agnostic=False, prompt__object_re=True), r'prompt\.object_re=True.*t2_object_agnostic=True'),
])
def test_keys_that_do_not_fit_are_named(clip, changes, message):
  with pytest.raises(ValueError, match=message):
    check(method, clip, configured(**changes))


@pytest.mark.slow
def test_table_4_base_is_two_fixed_prompts_without_training(clip, clip_params):
  cfg = configured(t1_dpam=False, t2_object_agnostic=False, t2_off='no_context', t3_text_tuning=False)
  features, batch = features_and_batch(cfg, clip)
  text = method.encode_text({}, clip_params, ('bottle',), clip=clip, cfg=cfg)
  ids = clip.tokenize(['bottle.', 'damaged bottle.'])
  plain = clip.text(clip_params, clip.embed(clip_params, jnp.asarray(ids)), jnp.asarray(clip.eot(ids), jnp.int32))
  np.testing.assert_allclose(text[0], unit(np.asarray(plain)), atol=1e-5)
  assert np.isfinite(predict({}, Context(clip_params, text), features, batch, clip=clip, cfg=cfg).map).all()


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


@pytest.mark.slow
@pytest.mark.parametrize('prefix', ['', 'prompt_learner.'])
@pytest.mark.parametrize('depth', [9, 12])
def test_released_checkpoint_loads_in_numeric_order(prefix, depth):
  arrays = released(depth)
  out = method.load_released({prefix + k: v for k, v in arrays.items()}, clip=L14, cfg=published(prompt__depth=depth))
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
    method.load_released(arrays, clip=L14, cfg=published())
  for part in ('missing compound_prompts_text.3', 'unknown adapter.weight (2, 3)',
               'ctx_pos is (1, 1, 11, 768), not (1, 1, 12, 768)'):
    assert part in str(error.value)


# At full size


@pytest.mark.slow
def test_published_shapes_without_a_single_weight():
  whole = dataclasses.replace(L14, tokenizer=tokenizer.load())
  cfg = published()
  clip_params = clip_lib.template(L14.arch)
  params = jax.eval_shape(lambda: method.init(jax.random.key(0), whole, cfg))
  array = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
  features = Features(array(8, 768), {tap.name: array(8, 1369, 768) for tap in method.feature_spec(whole, cfg).taps})
  batch = dict(mask=array(8, 518, 518, dtype=jnp.uint8), label=array(8, dtype=jnp.int32),
               category=array(8, dtype=jnp.int32), valid=array(8, dtype=bool))
  text = jax.eval_shape(functools.partial(method.encode_text, names=(), clip=whole, cfg=cfg), params, clip_params)
  assert text.shape == (1, 2, 768)
  static = functools.partial(functools.partial, clip=whole, cfg=cfg)
  total, _ = jax.eval_shape(static(method.loss), params, Context(clip_params), features, batch, None)
  out = jax.eval_shape(static(method.predict), params, Context(clip_params, text), features, batch)
  assert total.shape == () and out.score.shape == (8,) and out.map.shape == (8, 518, 518)


def rows_of_the_docstring():
  """Every row of ablations in the config's docstring, as (name, changes); a row can have several settings."""
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
  check(method, L14, cfg)
  jax.eval_shape(lambda: method.init(jax.random.key(0), L14, cfg))
