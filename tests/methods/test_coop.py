"""CoOp: parity with the PyTorch transcription of golden/record_coop.py, its pitfalls, and configs that it refuses."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np
import optax
import pytest
from golden import record_anomalyclip as small
from golden import record_coop as reference
from method_checks import check, with_keys
from ml_collections.config_flags import config_path

from zsad_jax.clip import encoder, tokenizer
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import Features
from zsad_jax.configs import clip as clip_config
from zsad_jax.configs import coop as config
from zsad_jax.engine import optimizers, train
from zsad_jax.methods import Context
from zsad_jax.methods import clip as clip_method
from zsad_jax.methods import coop as method
from zsad_jax.methods.parts import prompts

GOLDEN = Path(__file__).parents[1] / 'golden' / 'coop.npz'
ARCH = clip_lib.Arch('small', small.EMBED, clip_lib.Vision(**small.VISION), clip_lib.Text(**small.TEXT))
L14 = clip_lib.Clip(clip_lib.ARCHS['vit_l14_336'], 518, params=None)
TAP = 'clip/8/block'
PER_EPOCH = reference.ROWS // reference.BATCH
pytestmark = pytest.mark.usefixtures('highest_precision')
loss_of = jax.jit(method.loss, static_argnames=('clip', 'cfg'))
grad_of = jax.jit(jax.value_and_grad(method.loss, has_aux=True), static_argnames=('clip', 'cfg'))
encode_text = jax.jit(method.encode_text, static_argnames=('names', 'clip', 'cfg'))
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


def trained():
  return {'ctx': jnp.asarray(reference.initial_params('coop')['ctx'])}


def rows(golden, chosen):
  """Features of the recorded images, and a batch without masks: the loss reads none."""
  _, labels, categories = reference.batch()
  features = Features(jnp.asarray(golden['cls'][chosen]), {TAP: jnp.asarray(golden['tokens'][chosen])})
  return features, dict(label=jnp.asarray(labels[chosen]), category=jnp.asarray(categories[chosen]),
                        valid=jnp.ones(len(labels[chosen]), bool))


def fit(clip, cfg, golden):
  """Returns the losses of the recorded steps and the trained params, with the configured optimizer."""
  tx = optimizers.make_tx(cfg.optim)
  step = train.make_step(functools.partial(method.loss, clip=clip, cfg=cfg), tx, steps_per_epoch=PER_EPOCH)
  state, history = train.initial(trained(), tx, 0), []
  for at in list(range(PER_EPOCH)) * reference.EPOCHS:
    chosen = slice(at * reference.BATCH, (at + 1) * reference.BATCH)
    state, metrics = step(state, Context(clip.params), *rows(golden, chosen))
    history.append(float(metrics['loss']))
  return history, state.params


def predict(clip, cfg, params, golden):
  text = encode_text(params, clip.params, reference.NAMES, clip=clip, cfg=cfg)
  return predict_of(params, Context(clip.params, text), *rows(golden, slice(None)), clip=clip, cfg=cfg)


def assert_predictions(out, golden, suffix=''):
  np.testing.assert_allclose(out.score, golden[f'score{suffix}'], atol=1e-4)
  np.testing.assert_allclose(out.map, golden[f'map{suffix}'], atol=1e-4)


# Parity


def test_three_epochs_of_sgd_and_predictions_equal_the_recorded_ones(clip, golden):
  cfg = configured(train__epochs=reference.EPOCHS)
  assert_predictions(predict(clip, cfg, trained(), golden), golden)
  history, after = fit(clip, cfg, golden)
  np.testing.assert_allclose(history, golden['losses'], rtol=1e-5)
  moved = np.abs(golden['after_ctx'] - reference.initial_params('coop')['ctx']).max()
  np.testing.assert_allclose(after['ctx'], golden['after_ctx'], atol=1e-4 * moved)
  assert_predictions(predict(clip, cfg, after, golden), golden, '_after')


@pytest.mark.slow
def test_first_gradient_is_the_recorded_one(clip, golden):
  (value, _), gradient = grad_of(trained(), Context(clip.params), *rows(golden, slice(0, 4)), None, clip=clip,
                                 cfg=configured())
  assert float(value) == pytest.approx(golden['losses'][0], rel=1e-5)
  np.testing.assert_allclose(gradient['ctx'], golden['grad_ctx'], atol=2e-5 * np.abs(golden['grad_ctx']).max())


@pytest.mark.parametrize('changes', [
  dict(momentum=0.8), dict(weight_decay=5e-2), dict(warmup_epochs=0), dict(epochs=4)])
def test_parity_would_notice(clip, golden, changes):
  """Each departure from the optimizer moves the context by more than the tolerance above."""
  cfg = configured()
  tx, params = optimizers.make_tx({**cfg.optim, 'epochs': reference.EPOCHS} | changes), trained()
  state = tx.init(params)
  for at in range(PER_EPOCH * reference.EPOCHS):
    epoch, half = divmod(at, PER_EPOCH)
    chosen = slice(half * reference.BATCH, (half + 1) * reference.BATCH)
    _, gradient = grad_of(params, Context(clip.params), *rows(golden, chosen), None, clip=clip, cfg=cfg)
    updates, state = tx.update(gradient, state, params, epoch=epoch)
    params = optax.apply_updates(params, updates)
  moved = np.abs(golden['after_ctx'] - reference.initial_params('coop')['ctx']).max()
  assert np.abs(params['ctx'] - golden['after_ctx']).max() > 3e-3 * moved


@pytest.mark.slow
def test_image_tower_reads_plain_clip(clip, golden):
  images, _, _ = reference.batch()
  features = encoder.encode(clip, method.feature_spec(clip, configured()))(clip.params, jnp.asarray(images))
  np.testing.assert_allclose(features.cls, golden['cls'], atol=1e-4)
  np.testing.assert_allclose(features.taps[TAP], golden['tokens'], atol=1e-4)


def test_goldens_are_what_the_transcription_says_today(golden, torch):
  again = reference.run('coop', epochs=1)
  for name in ('cls', 'tokens', 'score', 'map', 'grad_ctx'):
    np.testing.assert_allclose(again[name], golden[name], atol=1e-4 * np.abs(golden[name]).max(), err_msg=name)


# Trainable parameters and texts


def test_12288_trainable_parameters_shared_by_both_states():
  template = jax.eval_shape(lambda: method.init(jax.random.key(0), L14, mlc.FrozenConfigDict(config.get_config())))
  assert {name: leaf.shape for name, leaf in template.items()} == {'ctx': (16, 768)}
  assert sum(leaf.size for leaf in template.values()) == 12288
  drawn = method.init(jax.random.key(0), L14, mlc.FrozenConfigDict(config.get_config()))['ctx']
  assert drawn.dtype == jnp.float32 and np.std(drawn) == pytest.approx(0.02, rel=0.03)


def test_context_may_start_from_words(clip):
  cfg = configured(prompt__ctx_init='a photo of a', prompt__n_ctx=4)
  table = small.weights()['token_embedding.weight']
  ids = [reference.Words.vocabulary.index(word) for word in ('a', 'photo', 'of', 'a')]
  np.testing.assert_array_equal(method.init(jax.random.key(0), clip, cfg)['ctx'], table[ids])
  with pytest.raises(ValueError, match=r"ctx_init='a photo of a' has 4 tokens, but prompt\.n_ctx=16"):
    method.init(jax.random.key(0), clip, configured(prompt__ctx_init='a photo of a'))


def test_token_ids_of_the_prompts():
  lines = prompts.context_texts(('metal_nut',), configured().prompt)
  assert lines == ['X ' * 16 + 'normal metal nut.', 'X ' * 16 + 'anomalous metal nut.']
  ids = tokenizer.load().encode(lines, 77)
  assert ids[0].tolist() == [49406] + [343] * 16 + [5967, 4044, 6491, 269, 49407] + [0] * 55
  assert ids[1].tolist() == [49406] + [343] * 16 + [21612, 526, 879, 4044, 6491, 269, 49407] + [0] * 53
  assert L14.eot(ids).tolist() == [21, 23]


@dataclasses.dataclass(frozen=True, eq=False)
class Watched(clip_lib.Clip):
  """A Clip that records the inputs of its text tower, and answers with features of the right shape."""
  seen: list = dataclasses.field(default_factory=list)

  def text(self, params, embeddings, eot, *, deep=None, deep_mode='overwrite'):
    assert deep is None
    self.seen.append((embeddings, eot))
    return embeddings[:, -1, :self.arch.embed_dim]


@pytest.mark.slow
def test_both_prompts_of_every_category_start_with_the_same_context(clip):
  watched = Watched(**{f.name: getattr(clip, f.name) for f in dataclasses.fields(clip)})
  params = trained()
  out = method.encode_text(params, clip.params, ('bottle', 'metal_nut'), clip=watched, cfg=configured())
  (embeddings, eot), = watched.seen
  table, index = small.weights()['token_embedding.weight'], reference.Words.vocabulary.index
  assert out.shape == (2, 2, small.EMBED) and embeddings.shape == (4, 22, 64) and eot.tolist() == [20, 20, 21, 21]
  prompts_in_order = ('normal bottle . |', 'anomalous bottle . |', 'normal metal nut .', 'anomalous metal nut .')
  for row, words in zip(embeddings, prompts_in_order):
    np.testing.assert_array_equal(row[0], table[46])
    np.testing.assert_array_equal(row[1:17], params['ctx'])
    ids = [47 if word == '|' else index(word) for word in words.split()]
    np.testing.assert_array_equal(row[17:17 + len(ids)], table[jnp.array(ids)])


# Loss and predictions


def hand_made(gap, rows=2):
  """Features and texts whose cosines with the two states differ by `gap`: 0 and `gap`."""
  unit = np.eye(small.EMBED, dtype=np.float32)
  text = jnp.asarray(np.stack([unit[1], unit[2]]))[None]
  image = np.tile(gap * unit[2] + np.sqrt(1 - gap ** 2) * unit[0], (rows, 1)) * 7
  tokens = np.tile(image[:, None], (1, 36, 1))
  return Features(jnp.asarray(image), {TAP: jnp.asarray(tokens)}), text


@pytest.mark.slow
def test_trained_at_a_logit_scale_of_100_and_scored_at_1_over_007(clip, monkeypatch):
  features, text = hand_made(0.1)
  monkeypatch.setattr(method, 'encode_text', lambda *args, **kw: text)
  batch = dict(label=jnp.array([1, 1]), category=jnp.zeros(2, int), valid=jnp.array([True, False]))
  ask = lambda **changes: float(method.loss({}, Context(clip.params), features, batch, None, clip=clip,
                                            cfg=configured(**changes))[0])
  assert ask() == pytest.approx(np.log1p(np.exp(-10)), rel=1e-3)
  assert ask(loss__temperature=0.07) == pytest.approx(np.log1p(np.exp(-.1 / .07)), rel=1e-4)
  assert ask(loss__temperature=0.07, loss__use_logit_scale=True) == pytest.approx(ask(), rel=1e-3)
  out = method.predict({}, Context(clip.params, text), features, batch, clip=clip, cfg=configured(map__sigma=0.))
  np.testing.assert_allclose(out.score, 0.806679, rtol=1e-5)
  np.testing.assert_allclose(out.map, 0.806679, rtol=1e-5)
  out = method.predict({}, Context({'logit_scale': jnp.log(5.)}, text), features, batch, clip=clip,
                       cfg=configured(use_logit_scale=True))
  np.testing.assert_allclose(out.score, 1 / (1 + np.exp(-.5)), rtol=1e-5)


@pytest.mark.slow
def test_every_image_meets_its_own_category_and_padding_weighs_nothing(clip, golden):
  features, batch = rows(golden, slice(None))
  mixed = float(loss_of(trained(), Context(clip.params), features, batch, None, clip=clip, cfg=configured())[0])
  alone = []
  for category, name in enumerate(reference.NAMES):
    chosen = {**batch, 'valid': batch['category'] == category, 'category': jnp.zeros_like(batch['category'])}
    alone.append(float(loss_of(trained(), Context(clip.params), features, chosen, None, clip=clip,
                               cfg=configured(prompt__categories=(name,)))[0]))
  assert mixed == pytest.approx(np.mean(alone), rel=1e-5) and alone[0] != pytest.approx(alone[1], rel=1e-3)


@pytest.mark.slow
def test_evaluation_keys_do_not_reach_the_loss(clip, golden):
  ask = lambda **changes: float(loss_of(trained(), Context(clip.params), *rows(golden, slice(0, 4)), None, clip=clip,
                                        cfg=configured(**changes))[0])
  assert method.TRAITS.evaluation_keys == ('map.sigma', 'multicrop', 'temperature', 'use_logit_scale')
  assert ask() == ask(map__sigma=1., temperature=1., use_logit_scale=True, multicrop__recipe='clip_ad')


def test_a_category_without_texts_does_not_pass_for_another(clip, golden):
  text = encode_text(trained(), clip.params, reference.NAMES, clip=clip, cfg=configured())
  features, batch = rows(golden, slice(0, 2))
  batch['category'] = jnp.array([1, 2])
  score = predict_of({}, Context(clip.params, text), features, batch, clip=clip, cfg=configured()).score
  assert np.isnan(score).tolist() == [False, True]


def test_reads_the_same_features_as_plain_clip(clip):
  """So that both share one feature store."""
  plain = clip_config.get_config()
  plain.image_size = small.SIZE
  assert method.feature_spec(clip, configured()) == clip_method.feature_spec(clip, mlc.FrozenConfigDict(plain))


# Configs


def test_presets():
  c = config.get_config()
  assert (c.train.batch, c.train.epochs, c.image_size, c.optim.epochs) == (8, 15, 518, 15)
  assert (c.optim.lr, c.optim.momentum, c.optim.weight_decay, c.optim.warmup_lr) == (.002, .9, 5e-4, 1e-5)
  original = config.get_config('original')
  assert (original.train.batch, original.train.epochs, original.optim.epochs) == (32, 200, 200)
  assert original.prompt == c.prompt and original.loss == c.loss
  with pytest.raises(ValueError, match='unknown variant :200; this config has :original, :demo'):
    config.get_config('200')


@pytest.mark.parametrize('key', ['train.epochs', 'optim.epochs'])
def test_the_cosine_is_as_long_as_the_training_also_when_a_flag_says_so(key):
  c = config.get_config('demo')
  config_path.set_value(key, c, 4)  # what --config.KEY=4 does
  assert c.train.epochs == c.optim.epochs == 4
  assert float(optimizers.learning_rate(mlc.FrozenConfigDict(c).optim)(3)) == pytest.approx(.001)


@pytest.mark.parametrize('changes, message', [
  (dict(prompt__n_ctx=0), r'prompt\.n_ctx=0.*\[1, 73\].*77 tokens'),
  (dict(prompt__n_ctx=74), r'prompt\.n_ctx=74.*\[1, 73\]'),
  (dict(prompt__normal_word='anomalous'), "'anomalous' must be two different words"),
  (dict(prompt__abnormal_word=''), "prompt.abnormal_word='' must be two different words"),
  (dict(prompt__init_std=0.), r'prompt\.init_std=0\.0.*positive'),
  (dict(temperature=0.), r'^temperature=0\.0.*positive'),
  (dict(loss__temperature=-1.), r'loss\.temperature=-1\.0.*positive'),
  (dict(map__sigma=-1.), r'map\.sigma=-1\.0.*at least 0')])
def test_bad_keys(changes, message):
  with pytest.raises(ValueError, match=message):
    check(method, L14, configured(**changes))


def test_training_without_names_is_refused(clip, golden):
  with pytest.raises(ValueError, match=r'prompt\.categories=\(\) does not name the auxiliary categories'):
    method.loss(trained(), Context(clip.params), *rows(golden, slice(0, 2)), None, clip=clip,
                cfg=configured(prompt__categories=()))
