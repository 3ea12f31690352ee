"""CLIP Surgery: its feature spec, its formulas written out again in PyTorch, its switches, bad configs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from method_checks import check, with_keys

from zsad_jax.clip import encoder, tokenizer
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import Features, SideStream, Tap
from zsad_jax.configs import clip_surgery as config
from zsad_jax.methods import Context
from zsad_jax.methods import clip_surgery as method
from zsad_jax.methods.parts import prompts, representative_vectors

SIZE, GRID, EMBED = 64, 8, 128
BPLUS = clip_lib.Clip(clip_lib.ARCHS['vit_b16_plus_240'], 240, params=None)
predict = jax.jit(method.predict, static_argnames=('clip', 'cfg'))


def configured(arg='demo', **changes):
  c = config.get_config(arg)
  return with_keys(c, **{'image_size': SIZE if arg == 'demo' else c.image_size, **changes})


@pytest.fixture(scope='module')
def clip():
  return clip_lib.load('tiny', image_size=SIZE)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def random_inputs(seed=0, states=2):
  """Features of three images, text features of two categories and the images' categories."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(5 * rng.standard_normal(shape), jnp.float32)
  text = jnp.asarray(unit(rng.standard_normal((2, states, EMBED))), jnp.float32)
  return Features(draw(3, EMBED), {'surgery/6/block': draw(3, GRID ** 2, EMBED)}), text, jnp.array([1, 0, 1])


def run(clip, cfg, features, text, category):
  return predict({}, Context(None, text), features, {'category': category},
                 clip=dataclasses.replace(clip, params=None), cfg=cfg)


def encode_text(clip, cfg, names):
  encode = jax.jit(functools.partial(method.encode_text, {}, names=names, clip=clip, cfg=cfg))
  return jax.device_get(encode(clip.params))


def test_the_last_six_blocks_of_the_stream_that_keeps_clips_own_below_it():
  spec = method.feature_spec(BPLUS, configured(None))
  assert spec.sides == (SideStream('surgery', 'vv', first_block=7, residual_base=True, reset_every=0, ffn=False),)
  assert spec.taps == (Tap('surgery', 12),) and (spec.cls, spec.read) == ('ln_post_proj', 'ln_post_proj')
  assert encoder.features_shape(BPLUS, spec).taps == {'surgery/12/block': (225, 640)}


def two_streams(params, image, first_block):
  """(class token, new stream's patches) of one image before ln_post, in float64: the architecture written out."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params['visual'])

  def norm(x, q):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + 1e-5) * q['scale'] + q['bias']

  def attend(q, k, v, out):  # [N, H, d]
    weights = np.exp(np.einsum('nhd,mhd->hnm', q, k) * q.shape[-1] ** -0.5)
    mixed = np.einsum('hnm,mhd->nhd', weights / weights.sum(-1, keepdims=True), v)
    return np.einsum('nhd,hde->ne', mixed, out['kernel']) + out['bias']

  patches = image.reshape(14, 8, 14, 8, 3).swapaxes(1, 2).reshape(196, -1) @ p['patch_embed']['kernel'].reshape(-1, 128)
  n, h = 0, norm(np.concatenate([p['class_embedding'][None], patches]) + p['positional_embedding'], p['ln_pre'])
  for number in range(1, 7):
    b = jax.tree.map(lambda x: x[number - 1], p['blocks'])  # noqa: B023
    q, k, v = np.moveaxis(np.einsum('nd,dchk->nchk', norm(h, b['ln_1']), b['attn']['qkv']['kernel'])
                          + b['attn']['qkv']['bias'], 1, 0)
    if number >= first_block:
      n = (h if number == first_block else n) + attend(v, v, v, b['attn']['out'])
    h = h + attend(q, k, v, b['attn']['out'])
    u = norm(h, b['ln_2']) @ b['mlp']['c_fc']['kernel'] + b['mlp']['c_fc']['bias']
    h = h + u / (1 + np.exp(-1.702 * u)) @ b['mlp']['c_proj']['kernel'] + b['mlp']['c_proj']['bias']
  read = lambda x: norm(x, p['ln_post']) @ p['proj']['kernel']
  return read(h[0]), read(n[1:])


@pytest.mark.slow
def test_architecture_surgery_written_out(clip):
  native = dataclasses.replace(clip, image_size=112)
  image = np.random.default_rng(0).standard_normal((112, 112, 3))
  spec = method.feature_spec(native, configured(surgery__last_n=3))
  features = encoder.encode(native, spec)(clip.params, jnp.asarray(image[None], jnp.float32))
  cls, patches = two_streams(clip.params, image, first_block=4)
  np.testing.assert_allclose(features.cls[0], cls, atol=1e-4)
  np.testing.assert_allclose(features.taps['surgery/6/block'][0], patches, atol=1e-4)


@pytest.mark.slow
def test_texts_and_the_empty_string(clip):
  assert len(method.EMPTY_TEMPLATES) == len(set(method.EMPTY_TEMPLATES)) == 85
  names = ('metal_nut', 'pill')
  cfg = configured(surgery__single_text=True, prompt__ensemble='compound')
  three = method.reduce_text_features(encode_text(clip, cfg, names), 'mvtec_ad', cfg=cfg)
  assert three.shape == (2, 3, EMBED)
  encode = jax.jit(lambda params, ids: clip.text(params, clip.embed(params, ids), clip.eot(ids)))
  lines = [[t.format(s.format('metal_nut')) for s in states for t in prompts.COMPOUND_TEMPLATES]
          for states in prompts.COMPOUND_STATES] + [[t.format('') for t in method.EMPTY_TEMPLATES]]
  rows = unit(np.asarray(encode(clip.params, clip.tokenize([line for group in lines for line in group])[:, :24])))
  ends = np.cumsum([len(group) for group in lines])
  for feature, part in zip(three[0], np.split(rows, ends[:-1])):
    np.testing.assert_allclose(feature, unit(part.mean(0)), atol=3e-6)
  np.testing.assert_array_equal(three[1, 2], three[0, 2])


@pytest.mark.slow
def test_texts_are_by_default_the_representatives_of_clip_ads(clip):
  cfg = configured()
  texts = encode_text(clip, cfg, ('pill', 'nut'))
  assert [text.shape[:2] for text in texts] == [(2, 9 * 22), (2, 10 * 22)]
  np.testing.assert_array_equal(method.reduce_text_features(texts, 'visa', cfg=cfg),
                                representative_vectors.represent_states(texts, cfg.rvs, 'visa'))


def test_names_keep_their_underscore():
  assert configured(None).prompt.raw_names
  ids = tokenizer.load().encode(['metal_nut'], 77)
  assert ids[0, 1:4].tolist() == [4044, 318, 6491]


def test_parity_with_a_transcription(clip, torch):
  cfg = configured(map__sigma=0.0)
  features, text, category = random_inputs()
  out = run(clip, cfg, features, text, category)
  tensor = lambda x: torch.tensor(np.asarray(x))
  for i, c in enumerate(category):
    tokens = torch.cat([tensor(features.cls[i])[None], tensor(features.taps['surgery/6/block'][i])])  # row 0: CLS
    f, pair = torch.nn.functional.normalize(tokens, dim=-1)[None], tensor(text[c])
    prob = (2 * f[:, :1] @ pair.T).softmax(-1)
    weights = prob / prob.mean(-1, keepdim=True)
    feats = f[:, :, None] * pair[None, None] * weights[..., None]
    similarity = (feats - feats.mean(2, keepdim=True)).sum(-1)[0, 1:, 1]
    expected = torch.nn.functional.interpolate(similarity.reshape(1, 1, GRID, GRID), SIZE, mode='bilinear')[0, 0]
    np.testing.assert_allclose(out.map[i], expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(out.score[i], (100 * f[0, 0] @ pair.T).softmax(-1)[1].numpy(), atol=1e-5)


@pytest.mark.slow
def test_the_scale_inside_the_weights_is_a_switch_and_a_batch_is_its_images(clip):
  features, text, category = random_inputs()
  two, one = (run(clip, configured(surgery__prob_scale=s), features, text, category).map for s in (2.0, 1.0))
  assert np.abs(two - one).max() > 1e-3
  alone = run(clip, configured(), jax.tree.map(lambda x: x[1:2], features), text, category[1:2]).map
  np.testing.assert_allclose(two[1:2], alone, atol=1e-6)


@pytest.mark.slow
def test_one_text_less_the_empty_one(clip):
  features, text, category = random_inputs(states=3)
  out = run(clip, configured(surgery__single_text=True, map__sigma=0.0), features, text, category).map
  f = unit(np.asarray(features.taps['surgery/6/block']))
  for i, c in enumerate(category):
    expected = (f[i] @ np.asarray(text[c, 1] - text[c, 2])).reshape(GRID, GRID)
    np.testing.assert_allclose(out[i].reshape(GRID, 8, GRID, 8).mean((1, 3))[1:-1, 1:-1].mean(),
                               expected[1:-1, 1:-1].mean(), atol=0.02)
    np.testing.assert_allclose(out[i][::SIZE - 1, ::SIZE - 1], expected[::GRID - 1, ::GRID - 1], atol=1e-6)


@pytest.mark.slow
def test_maps_are_stretched_only_when_asked_and_a_constant_one_becomes_0(clip):
  features, text, category = random_inputs()
  stretched = run(clip, configured(surgery__minmax=True, map__sigma=0.0), features, text, category).map
  plain = run(clip, configured(map__sigma=0.0), features, text, category).map
  assert plain.min() < 0
  corners = stretched[:, ::SIZE - 1, ::SIZE - 1]
  assert stretched.min() >= 0 and stretched.max() <= 1 and np.ptp(corners) > 0
  flat = Features(features.cls, {'surgery/6/block': jnp.ones((3, GRID ** 2, EMBED))})
  constant = run(clip, configured(surgery__minmax=True), flat, text, category).map
  np.testing.assert_allclose(constant, np.zeros((3, SIZE, SIZE)), atol=1e-6)


@pytest.mark.parametrize('changes, message', [
  (dict(surgery__last_n=7), r'surgery\.last_n=7.*\[1, 6\], the blocks of the image tower of tiny'),
  (dict(surgery__last_n=0), r'surgery\.last_n=0.*\[1, 6\]'), (dict(temperature=0.0), r'temperature=0\.0.*positive'),
  (dict(prompt__ensemble='april'), r"prompt\.ensemble='april'.*one of clip_ad, compound"),
  (dict(surgery__prob_scale=0.0), r'surgery\.prob_scale=0\.0.*positive'),
  (dict(map__sigma=-1.0), r'map\.sigma=-1\.0.*at least 0'), (dict(rvs__method='median'), r"rvs\.method='median'")])
def test_bad_keys(clip, changes, message):
  with pytest.raises(ValueError, match=message):
    check(method, clip, configured(**changes))
