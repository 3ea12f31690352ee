"""CoCoOp: parity with the PyTorch transcription of golden/record_coop.py, texts per image in a batch, its pitfalls."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np
import pytest
from golden import record_anomalyclip as small
from golden import record_coop as reference
from method_checks import check, with_keys

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip import tokenizer
from zsad_jax.clip.feature_spec import Features
from zsad_jax.configs import cocoop as config
from zsad_jax.configs import coop as coop_config
from zsad_jax.engine import optimizers, train
from zsad_jax.methods import Context, coop
from zsad_jax.methods import cocoop as method
from zsad_jax.methods.parts import prompts

GOLDEN = Path(__file__).parents[1] / 'golden' / 'cocoop.npz'
ARCH = clip_lib.Arch('small', small.EMBED, clip_lib.Vision(**small.VISION), clip_lib.Text(**small.TEXT))
L14 = clip_lib.Clip(clip_lib.ARCHS['vit_l14_336'], 518, params=None, tokenizer=tokenizer.load())
TAP = 'clip/8/block'
PER_EPOCH = reference.ROWS // reference.BATCH
pytestmark = pytest.mark.usefixtures('highest_precision')
loss_of = jax.jit(method.loss, static_argnames=('clip', 'cfg'))
grad_of = jax.jit(jax.value_and_grad(method.loss, has_aux=True), static_argnames=('clip', 'cfg'))
predict_of = jax.jit(method.predict, static_argnames=('clip', 'cfg'))


def configured(arg=None, **changes):
  c = config.get_config(arg)
  fitted = dict(image_size=small.SIZE, prompt__categories=reference.NAMES)
  return with_keys(c, **{**fitted, **changes})


@pytest.fixture(scope='module')
def clip():
  return clip_lib.from_state_dict(ARCH, small.weights(), image_size=small.SIZE, tokenizer=reference.Words())


@pytest.fixture(scope='module')
def golden():
  return dict(np.load(GOLDEN))


def ours(arrays, prefix=''):
  """The transcription's names as our tree; torch's Linear layers are [out, in]."""
  layer = lambda name: {'kernel': jnp.asarray(arrays[f'{prefix}meta_net.{name}.weight'].T),
                        'bias': jnp.asarray(arrays[f'{prefix}meta_net.{name}.bias'])}
  return {'ctx': jnp.asarray(arrays[f'{prefix}ctx']),
          'meta_net': {name: layer(name) for name in ('linear1', 'linear2')}}


def trained():
  return ours(reference.initial_params('cocoop'))


def rows(golden, chosen):
  """Features of the recorded images, and a batch without masks: the loss reads none."""
  _, labels, categories = reference.batch()
  features = Features(jnp.asarray(golden['cls'][chosen]), {TAP: jnp.asarray(golden['tokens'][chosen])})
  return features, dict(label=jnp.asarray(labels[chosen]), category=jnp.asarray(categories[chosen]),
                        valid=jnp.ones(len(labels[chosen]), bool))


def predict(clip, cfg, params, golden):
  words = method.encode_text(params, clip.params, reference.NAMES, clip=clip, cfg=cfg)
  return predict_of(params, Context(clip.params, words), *rows(golden, slice(None)), clip=clip, cfg=cfg)


def assert_predictions(out, golden, suffix=''):
  np.testing.assert_allclose(out.score, golden[f'score{suffix}'], atol=1e-4)
  np.testing.assert_allclose(out.map, golden[f'map{suffix}'], atol=1e-4)


def assert_trees(ours, theirs, scales, share):
  """Every leaf to `share` of the largest entry of its `scales`."""
  for (path, a), b, scale in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), jax.tree.leaves(scales)):
    np.testing.assert_allclose(a, b, atol=share * np.abs(scale).max(), err_msg=jax.tree_util.keystr(path))


# Parity


def test_three_epochs_of_sgd_and_predictions_equal_the_recorded_ones(clip, golden):
  cfg = configured(train__epochs=reference.EPOCHS)
  assert_predictions(predict(clip, cfg, trained(), golden), golden)
  tx = optimizers.make_tx(cfg.optim)
  step = train.make_step(functools.partial(method.loss, clip=clip, cfg=cfg), tx, steps_per_epoch=PER_EPOCH)
  state, history = train.initial(trained(), tx, 0), []
  for at in list(range(PER_EPOCH)) * reference.EPOCHS:
    chosen = slice(at * reference.BATCH, (at + 1) * reference.BATCH)
    state, metrics = step(state, Context(clip.params), *rows(golden, chosen))
    history.append(float(metrics['loss']))
  np.testing.assert_allclose(history, golden['losses'], rtol=1e-5)
  after = ours(golden, 'after_')
  moved = jax.tree.map(lambda a, b: a - b, after, trained())
  assert_trees(state.params, after, moved, 1e-3)
  assert_predictions(predict(clip, cfg, state.params, golden), golden, '_after')


@pytest.mark.slow
def test_first_gradient_is_the_recorded_one(clip, golden):
  (value, _), gradient = grad_of(trained(), Context(clip.params), *rows(golden, slice(0, 4)), None, clip=clip,
                                 cfg=configured())
  assert float(value) == pytest.approx(golden['losses'][0], rel=1e-5)
  theirs = ours(golden, 'grad_')
  assert_trees(gradient, theirs, theirs, 3e-5)


def test_goldens_are_what_the_transcription_says_today(golden, torch):
  again = reference.run('cocoop', epochs=1)
  for name in ('cls', 'tokens', 'score', 'map', 'grad_ctx', 'grad_meta_net.linear1.weight'):
    np.testing.assert_allclose(again[name], golden[name], atol=1e-4 * np.abs(golden[name]).max(), err_msg=name)


# Trainable parameters


def published(clip, **changes):
  """The shapes of init's parameters, with the token table as an argument."""
  c = mlc.FrozenConfigDict(config.get_config())
  table = jax.ShapeDtypeStruct((clip.arch.text.vocab, clip.arch.text.width), jnp.float32)
  params = lambda table: {'text': {'token_embedding': {'embedding': table}}}
  return jax.eval_shape(lambda t: method.init(jax.random.key(0), dataclasses.replace(clip, params=params(t)), c), table)


def test_77616_trainable_parameters():
  assert jax.tree.map(lambda leaf: leaf.shape, published(L14)) == {
    'ctx': (4, 768), 'meta_net': {'linear1': {'kernel': (768, 48), 'bias': (48,)},
                                  'linear2': {'kernel': (48, 768), 'bias': (768,)}}}
  sizes = jax.tree.map(lambda leaf: leaf.size, published(L14))
  assert sum(jax.tree.leaves(sizes)) == 77616 and sum(jax.tree.leaves(sizes['meta_net'])) == 74544


@pytest.mark.slow
def test_starts_from_a_photo_of_a_and_torchs_linear_layers(clip):
  wide = dataclasses.replace(clip, arch=dataclasses.replace(ARCH, embed_dim=4096))  # enough numbers for statistics
  start = method.init(jax.random.key(0), wide, configured())
  ids = [reference.Words.vocabulary.index(word) for word in ('a', 'photo', 'of', 'a')]
  np.testing.assert_array_equal(start['ctx'], small.weights()['token_embedding.weight'][ids])
  for layer, inputs, outputs in (('linear1', 4096, 256), ('linear2', 256, 64)):
    drawn = start['meta_net'][layer]
    assert drawn['kernel'].shape == (inputs, outputs)
    for numbers in drawn.values():
      assert np.abs(numbers).max() <= inputs ** -0.5
      assert np.std(numbers) == pytest.approx((3 * inputs) ** -0.5, rel=0.15)
    assert not np.array_equal(drawn['kernel'][0], drawn['bias'])


@pytest.mark.slow
def test_random_contexts_and_contexts_that_do_not_fit(clip):
  drawn = method.init(jax.random.key(0), clip, configured(prompt__ctx_init='', prompt__n_ctx=64))['ctx']
  assert drawn.shape == (64, 64) and np.std(drawn) == pytest.approx(0.02, rel=0.05)
  with pytest.raises(ValueError, match=r"ctx_init='a photo of a' has 4 tokens, but prompt\.n_ctx=5"):
    method.init(jax.random.key(0), clip, configured(prompt__n_ctx=5))


def test_token_ids_of_the_prompts():
  lines = prompts.context_texts(('metal_nut',), configured().prompt)
  assert lines == ['X X X X good metal nut.', 'X X X X damaged metal nut.']
  ids = tokenizer.load().encode(lines, 77)[:, :11]
  assert ids.tolist() == [[49406, 343, 343, 343, 343, 886, 4044, 6491, 269, 49407, 0],
                          [49406, 343, 343, 343, 343, 13568, 4044, 6491, 269, 49407, 0]]


# Texts per image


@dataclasses.dataclass(frozen=True, eq=False)
class Watched(clip_lib.Clip):
  """A Clip whose text tower compiles quickly and records its calls."""
  calls: list = dataclasses.field(default_factory=list)

  def text(self, params, embeddings, eot, *, deep=None, deep_mode='overwrite'):
    assert deep is None
    self.calls.append(embeddings.shape)
    upto = (jnp.arange(embeddings.shape[1])[None] <= eot[:, None])[..., None]
    weight = jnp.arange(1, embeddings.shape[1] + 1)[None, :, None]
    return jnp.tanh((embeddings * weight * upto).sum(1)) @ params['text']['text_projection']['kernel']


class Wide(Watched):
  """A Clip whose text tower has activations much larger than its inputs."""

  def text(self, params, embeddings, eot, *, deep=None, deep_mode='overwrite'):
    return jnp.tanh(jnp.repeat(embeddings, 32, axis=-1) * embeddings.sum()).sum(1)[:, :self.arch.embed_dim]


class Open(Watched):
  """A Clip whose text features are the inputs of the text tower."""

  def text(self, params, embeddings, eot, *, deep=None, deep_mode='overwrite'):
    return embeddings.reshape(len(embeddings), -1)


def another(kind, clip):
  return kind(**{f.name: getattr(clip, f.name) for f in dataclasses.fields(clip)})


@pytest.fixture(scope='module')
def watched(clip):
  return another(Watched, clip)


def images(count, seed=5):
  """Normalised features [B, E] and categories [B]."""
  rng = np.random.default_rng(seed)
  x = rng.standard_normal((count, small.EMBED)).astype(np.float32)
  return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True)), jnp.asarray(rng.integers(0, 2, count))


@pytest.mark.slow
def test_one_call_of_the_text_tower_serves_a_batch(clip):
  watched = another(Watched, clip)
  words = method.encode_text({}, watched.params, reference.NAMES, clip=watched, cfg=configured())
  image, category = images(6)
  together = method._texts_of_images(trained(), watched.params, words, image, category, clip=watched)
  assert together.shape == (6, 2, small.EMBED) and watched.calls == [(2, 10, 64)]
  for i in range(6):
    alone = method._texts_of_images(trained(), watched.params, words, image[i:i + 1], category[i:i + 1], clip=watched)
    np.testing.assert_allclose(together[i], alone[0], atol=1e-6)
  np.testing.assert_allclose(jnp.linalg.norm(together, axis=-1), 1, rtol=1e-6)


@pytest.mark.slow
def test_a_large_batch_goes_through_in_parts_with_the_same_gradient(watched, monkeypatch):
  words = method.encode_text({}, watched.params, reference.NAMES, clip=watched, cfg=configured())
  image, category = images(7)
  weigh = jnp.asarray(np.random.default_rng(1).standard_normal((7, 2, small.EMBED)), jnp.float32)

  def pulled():
    pull = lambda p: jnp.sum(weigh * method._texts_of_images(p, watched.params, words, image, category, clip=watched))
    return jax.jit(jax.value_and_grad(pull))(trained())

  whole, gradient = pulled()
  monkeypatch.setattr(prompts, 'CHUNK', 4)  # two images at a time, and one left over
  parts, again = pulled()
  assert float(whole) == pytest.approx(float(parts), rel=1e-5)
  assert_trees(again, gradient, gradient, 1e-5)


@pytest.mark.slow
def test_parts_need_the_memory_of_a_part(clip, monkeypatch):
  """Temporary memory of a gradient over 256 images, 16 at a time and all at once."""
  wide = another(Wide, clip)
  words = method.encode_text({}, clip.params, reference.NAMES, clip=wide, cfg=configured())
  image, category = images(256)

  def needs(chunk):
    monkeypatch.setattr(prompts, 'CHUNK', chunk)
    pull = lambda p: method._texts_of_images(p, clip.params, words, image, category, clip=wide).sum()
    return jax.jit(jax.grad(pull)).lower(trained()).compile().memory_analysis().temp_size_in_bytes

  assert needs(32) < needs(512) / 4


@pytest.mark.slow
def test_the_shift_is_one_vector_for_the_whole_context_and_both_states(clip):
  params, (image, category) = trained(), images(3)
  words = method.encode_text({}, clip.params, reference.NAMES, clip=clip, cfg=configured())
  texts = method._texts_of_images(params, clip.params, words, image, category, clip=another(Open, clip))
  h = method._meta_net(params, image)
  table, index = small.weights()['token_embedding.weight'], reference.Words.vocabulary.index
  for i, state in ((i, state) for i in range(3) for state in (0, 1)):
    prompt = [('good', 'damaged')[state], *reference.NAMES[int(category[i])].split(), '.']
    ids = [*(index(word) for word in prompt), 47, 0][:10 - 5]
    whole = np.concatenate([table[46][None], params['ctx'] + h[i][None], table[np.array(ids)]]).ravel()
    np.testing.assert_allclose(texts[i, state], whole / np.linalg.norm(whole), atol=1e-6)
  assert np.abs(h[0] - h[1]).max() > 1e-4 and len(set(category.tolist())) == 2


def test_the_meta_net_is_relu_between_two_layers():
  net = {'linear1': {'kernel': jnp.array([[1., -1.], [0., 0.]]), 'bias': jnp.array([0., .5])},
         'linear2': {'kernel': jnp.array([[2., 0., 1.], [0., 3., 1.]]), 'bias': jnp.array([0., 0., 10.])}}
  shift = method._meta_net({'meta_net': net}, jnp.array([[1., 5.], [-1., 5.]]))
  np.testing.assert_allclose(shift, [[2., 0., 11.], [0., 4.5, 11.5]])


@pytest.mark.slow
def test_the_meta_net_sees_normalised_features(clip, golden):
  cfg = configured()
  features, batch = rows(golden, slice(0, 4))
  scaled = features._replace(cls=features.cls * jnp.array([1., 7., .1, 50.])[:, None])
  value = lambda features: float(loss_of(trained(), Context(clip.params), features, batch, None, clip=clip, cfg=cfg)[0])
  assert value(scaled) == pytest.approx(value(features), rel=1e-5)


@pytest.mark.slow
def test_without_a_shift_it_is_coop(clip, golden):
  still = trained()
  still['meta_net']['linear2'] = jax.tree.map(jnp.zeros_like, still['meta_net']['linear2'])
  c = coop_config.get_config()
  c.image_size, c.prompt.categories, c.prompt.n_ctx = small.SIZE, reference.NAMES, 4
  c.prompt.normal_word, c.prompt.abnormal_word = 'good', 'damaged'
  their_cfg = mlc.FrozenConfigDict(c)
  text = jax.jit(functools.partial(coop.encode_text, names=reference.NAMES, clip=clip, cfg=their_cfg))(
    still, clip.params)
  features, batch = rows(golden, slice(None))
  theirs = jax.jit(functools.partial(coop.predict, clip=clip, cfg=their_cfg))(
    {}, Context(clip.params, text), features, batch)
  out = predict(clip, configured(), still, golden)
  np.testing.assert_allclose(out.score, theirs.score, atol=1e-5)
  np.testing.assert_allclose(out.map, theirs.map, atol=1e-5)
  # One feature store serves both.
  assert coop.feature_spec(clip, their_cfg) == method.feature_spec(clip, configured())


# Loss and predictions


@pytest.mark.slow
def test_every_image_meets_its_own_category_and_padding_weighs_nothing(watched, golden):
  value = lambda batch, names: float(loss_of(trained(), Context(watched.params), features, batch, None, clip=watched,
                                             cfg=configured(prompt__categories=names))[0])
  features, batch = rows(golden, slice(None))
  alone = [value({**batch, 'valid': batch['category'] == c, 'category': jnp.zeros_like(batch['category'])}, (name,))
           for c, name in enumerate(reference.NAMES)]
  assert value(batch, reference.NAMES) == pytest.approx(np.mean(alone), rel=1e-5)
  assert alone[0] != pytest.approx(alone[1], rel=1e-3)


def test_a_category_without_texts_does_not_pass_for_another(watched, golden):
  words = method.encode_text(trained(), watched.params, reference.NAMES, clip=watched, cfg=configured())
  features, batch = rows(golden, slice(0, 2))
  batch['category'] = jnp.array([1, 2])
  out = predict_of(trained(), Context(watched.params, words), features, batch, clip=watched, cfg=configured())
  assert np.isnan(out.score).tolist() == [False, True]


@pytest.mark.slow
def test_temperatures_of_training_and_of_scores_are_apart(watched, golden, monkeypatch):
  unit = np.eye(small.EMBED, dtype=np.float32)
  image = 3 * (.1 * unit[2] + np.sqrt(.99) * unit[0])[None]
  features = Features(jnp.asarray(image), {TAP: jnp.asarray(np.tile(image[:, None], (1, 36, 1)))})
  monkeypatch.setattr(method, '_texts_of_images', lambda *args, **kw: jnp.asarray(unit[None, 1:3]))
  batch = dict(label=jnp.array([1]), category=jnp.array([0]), valid=jnp.array([True]))
  ask = lambda **changes: float(method.loss(trained(), Context(watched.params), features, batch, None, clip=watched,
                                            cfg=configured(**changes))[0])
  assert ask() == pytest.approx(np.log1p(np.exp(-10)), rel=1e-3)
  assert ask(loss__temperature=0.07) == pytest.approx(np.log1p(np.exp(-.1 / .07)), rel=1e-4)
  assert method.TRAITS.evaluation_keys == ('map.sigma', 'multicrop', 'temperature', 'use_logit_scale')
  assert ask() == ask(map__sigma=1., temperature=1., use_logit_scale=True, multicrop__recipe='clip_ad')
  cfg = configured(map__sigma=0.)
  out = method.predict(trained(), Context(watched.params), features, batch, clip=watched, cfg=cfg)
  np.testing.assert_allclose(out.score, 0.806679, rtol=1e-5)
  np.testing.assert_allclose(out.map, 0.806679, rtol=1e-5)


# Configs


def test_presets():
  c = config.get_config()
  assert (c.train.batch, c.train.epochs, c.image_size, c.optim.epochs) == (8, 15, 518, 15)
  assert c.optim == coop_config.get_config().optim
  original = config.get_config('original')
  assert (original.train.batch, original.train.epochs, original.optim.epochs) == (1, 10, 10)
  assert original.prompt == c.prompt and original.loss == c.loss
  demo = config.get_config('demo')
  demo.train.epochs = 3
  assert (demo.clip, demo.optim.epochs) == ('tiny', 3)
  with pytest.raises(ValueError, match='unknown variant :ctx; this config has :original, :demo'):
    config.get_config('ctx')


@pytest.mark.parametrize('changes, message', [
  (dict(prompt__n_ctx=0), r'prompt\.n_ctx=0.*\[1, 73\].*77 tokens'),
  (dict(prompt__normal_word='damaged'), "prompt.abnormal_word='damaged' must be two different words"),
  (dict(prompt__normal_word=''), "prompt.normal_word='' and prompt.abnormal_word='damaged' must be two"),
  (dict(prompt__reduction=0), r'prompt\.reduction=0.*\[1, 768\], the channels'),
  (dict(prompt__reduction=769), r'prompt\.reduction=769.*\[1, 768\]'),
  (dict(prompt__init_std=0.), r'prompt\.init_std=0\.0.*positive'),
  (dict(temperature=0.), r'^temperature=0\.0.*positive'),
  (dict(loss__temperature=0.), r'loss\.temperature=0\.0.*positive'),
  (dict(map__sigma=-1.), r'map\.sigma=-1\.0.*at least 0')])
def test_bad_keys(changes, message):
  with pytest.raises(ValueError, match=message):
    check(method, L14, configured(**changes))


def test_training_without_names_is_refused(clip, golden):
  with pytest.raises(ValueError, match=r'prompt\.categories=\(\) does not name the auxiliary categories'):
    method.loss(trained(), Context(clip.params), *rows(golden, slice(0, 2)), None, clip=clip,
                cfg=configured(prompt__categories=()))
