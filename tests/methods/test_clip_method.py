"""CLIP and CLIP-AC: the read-out and the ensembles written out again, and configs that are refused."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest
from method_checks import check, with_keys

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import Features
from zsad_jax.configs import clip as config
from zsad_jax.methods import Context
from zsad_jax.methods import clip as method
from zsad_jax.methods.parts import prompts

SIZE = 64
GRID = SIZE // 8
EMBED = 128
encode_text = jax.jit(method.encode_text, static_argnames=('names', 'clip', 'cfg'))


def configured(arg=None, **changes):
  c = config.get_config(arg)
  return with_keys(c, **{'image_size': SIZE, **changes})


@pytest.fixture(scope='module')
def clip():
  return clip_lib.load('tiny', image_size=SIZE)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


encode = jax.jit(lambda params, ids, clip: clip.text(params, clip.embed(params, ids), clip.eot(ids)),
                 static_argnames='clip')


def text_feature(clip, texts):
  """The mean over texts at full context length, normalised before and after."""
  return unit(unit(np.asarray(encode(clip.params, clip.tokenize(texts), clip))).mean(0))


@pytest.mark.slow
@pytest.mark.parametrize('arg, texts', [
  (None, lambda n: (['A photo of a normal ' + n], ['A photo of an anomalous ' + n])),
  ('ac', lambda n: tuple([t.format(f'{s} {n}') for t in prompts.IMAGENET_TEMPLATES] for s in ('normal', 'anomalous')))])
def test_text_features_are_the_normalised_mean_of_normalised_texts(clip, arg, texts):
  names = ('metal_nut', 'pill')
  text = encode_text({}, clip.params, names, clip=clip, cfg=configured(arg))
  assert text.shape == (2, 2, EMBED)
  for row, name in zip(text, ('metal nut', 'pill')):
    for feature, lines in zip(row, texts(name)):
      np.testing.assert_allclose(feature, text_feature(clip, lines), atol=2e-6)


@pytest.mark.slow
def test_one_word_for_all_gives_one_pair(clip):
  cfg = configured(prompt__class_word='object')
  text = encode_text({}, clip.params, ('pill', 'cable'), clip=clip, cfg=cfg)
  assert text.shape == (1, 2, EMBED)
  np.testing.assert_allclose(text[0, 1], text_feature(clip, ['A photo of an anomalous object']), atol=2e-6)


@pytest.mark.slow
def test_scores_are_softmaxes_of_cosines_with_the_images_own_category(clip):
  rng, cfg = np.random.default_rng(0), configured(map__sigma=0.)
  cls = rng.standard_normal((3, EMBED)).astype(np.float32) * 7
  tokens = rng.standard_normal((3, GRID ** 2, EMBED)).astype(np.float32) * 3
  text = unit(rng.standard_normal((2, 2, EMBED)).astype(np.float32))
  tap = method.feature_spec(clip, cfg).taps[0].name
  batch = {'category': jnp.array([1, 0, 1])}
  features = Features(cls, {tap: tokens})
  out = method.predict({}, Context(clip.params, jnp.asarray(text)), features, batch, clip=clip, cfg=cfg)
  for i, k in enumerate((1, 0, 1)):
    logits = text[k] @ unit(cls[i]) / .07
    np.testing.assert_allclose(out.score[i], 1 / (1 + np.exp(logits[0] - logits[1])), rtol=1e-5)
    patch = unit(tokens[i]) @ (text[k, 1] - text[k, 0]) / .07
    small_map = 1 / (1 + np.exp(-patch)).reshape(GRID, GRID)
    np.testing.assert_allclose(out.map[i].mean(), small_map.mean(), rtol=.1)
    assert out.map.shape == (3, SIZE, SIZE) and out.map[i].max() <= small_map.max() + 1e-6


def test_reads_its_own_stream_after_ln_post(clip):
  spec = method.feature_spec(clip, configured())
  assert (spec.cls, spec.read, spec.sides) == ('ln_post_proj', 'ln_post_proj', ())
  assert [t.name for t in spec.taps] == ['clip/6/block']


def test_clips_own_temperature(clip):
  rng, cfg = np.random.default_rng(0), configured(use_logit_scale=True)
  tap = method.feature_spec(clip, cfg).taps[0].name
  features = Features(rng.standard_normal((1, EMBED)), {tap: rng.standard_normal((1, GRID ** 2, EMBED))})
  text = unit(rng.standard_normal((1, 2, EMBED)))
  context = Context({'logit_scale': jnp.log(5.)}, jnp.asarray(text))
  out = method.predict({}, context, features, {'category': jnp.zeros(1, int)}, clip=clip, cfg=cfg)
  logits = 5 * text[0] @ unit(features.cls[0])
  np.testing.assert_allclose(out.score[0], 1 / (1 + np.exp(logits[0] - logits[1])), rtol=1e-5)


@pytest.mark.parametrize('changes, message', [
  (dict(prompt__ensemble='80'), r"prompt\.ensemble='80'.*one of pair, imagenet, compound"),
  (dict(temperature=0.), r'temperature=0\.0.*positive'),
  (dict(map__sigma=-1.), r'map\.sigma=-1\.0.*at least 0')])
def test_bad_keys(clip, changes, message):
  with pytest.raises(ValueError, match=message):
    check(method, clip, configured(**changes))
