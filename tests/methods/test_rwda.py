"""RWDA: its sentences, its network against torch, its scores by hand, its traps, and whole trainings in miniature."""

import dataclasses
import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np
import pytest

from zsad_jax import metrics
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import Features, Tap
from zsad_jax.configs import rwda as config
from zsad_jax.engine import train
from zsad_jax.experiment import generated, results
from zsad_jax.methods import rwda as method
from zsad_jax.ops import multicrop

EMBED = 6
ARCH = dataclasses.replace(clip_lib.ARCHS['tiny'], embed_dim=EMBED)
CLIP = clip_lib.Clip(ARCH, 64, params=None)
RNG = np.random.default_rng(0)
step = jax.jit(jax.value_and_grad(method.loss, has_aux=True), static_argnames=('clip', 'cfg'))
predict = jax.jit(method.predict, static_argnames=('clip', 'cfg'))


def configured(arg=None, **changes):
  c = config.get_config(arg)
  for key, value in changes.items():
    *path, last = key.split('__')
    setattr(functools.reduce(getattr, path, c), last, value)
  return mlc.FrozenConfigDict(c)


def small(**changes):
  return configured(**{'fnn__hidden': (8, 7, 5), 'multicrop__recipe': 'none', **changes})


def normals(*shape):
  return RNG.standard_normal(shape).astype(np.float32)


# Sentences.


def test_words_have_five_to_ten_characters_all_lengths_alike():
  lengths = np.bincount([len(w) for w in method.random_words(np.random.default_rng(0), 30000, configured().examples)])
  assert np.flatnonzero(lengths).tolist() == [5, 6, 7, 8, 9, 10]
  chi2 = np.sum((lengths[5:] - 5000) ** 2 / 5000)
  assert chi2 < 20.5  # 5 degrees of freedom, p = 0.001


@pytest.mark.parametrize(('alphabet', 'digits'), [(62, 10 / 62), (36, 10 / 36)])
def test_characters_are_drawn_alike_from_the_alphabet(alphabet, digits):
  keys = configured(examples__alphabet=alphabet).examples
  text = ''.join(method.random_words(np.random.default_rng(1), 20000, keys))
  assert len(set(text)) == alphabet == len(method.ALPHABETS[alphabet])
  assert np.mean([c.isdigit() for c in text]) == pytest.approx(digits, abs=0.005)
  assert text.isascii() and text.isalnum() and (alphabet == 62) == (text != text.lower())


def parsed(pair, anomalous='a damaged'):
  """The ten random words of a pair; fails where the sentences are others."""
  found = [re.fullmatch(rf'(\w+) a (\w+) photo (\w+) of (\w+) {word} (\w+)', text)
           for word, text in zip(('a', anomalous), pair)]
  return [word for one in found for word in one.groups()]


def test_every_sentence_has_words_of_its_own_and_no_object():
  pairs = method.examples(3, cfg=configured(examples__pairs=2000))
  words = [parsed(pair) for pair in pairs]
  flat = [w for row in words for w in row]
  assert len(pairs) == 2000 and len(flat) == 20000 and len(set(flat)) > 19990
  assert not any(w[i] == w[i + 5] for w in words for i in range(5))
  assert 'object' not in {piece for pair in pairs for text in pair for piece in text.split()}
  assert method.examples(3, cfg=configured(examples__pairs=2000)) == pairs != method.examples(
    4, cfg=configured(examples__pairs=2000))
  other = method.examples(3, cfg=configured(examples__pairs=5, words__anomalous='a broken'))
  assert [parsed(pair, 'a broken') for pair in other] != words[:5]


@pytest.mark.parametrize(('changes', 'name', 'want'), [
  ({}, 'object', ('an object', 'a damaged object')),
  ({'prompt__article': 'a'}, 'object', ('a object', 'a damaged object')),
  ({}, 'orange nut', ('a orange nut', 'a damaged orange nut')),
  ({'prompt__article': 'auto'}, 'orange nut', ('an orange nut', 'a damaged orange nut')),
  ({'prompt__article': 'auto'}, 'bottle', ('a bottle', 'a damaged bottle')),
  ({'words__normal': 'a good', 'words__anomalous': 'an anomalous'}, 'object', ('a good object', 'an anomalous object')),
])
def test_guide_prompts(changes, name, want):
  assert method.guides(name, configured(**changes)) == [f'a photo of {text}' for text in want]


# The network.


def network(cfg, seed=0):
  return jax.tree.map(np.asarray, method.init(jax.random.key(seed), CLIP, cfg))


def test_starts_as_torch_does_and_scores_alone_learn_nothing():
  clip = dataclasses.replace(CLIP, arch=clip_lib.ARCHS['vit_b16_plus_240'])
  made = method.init(jax.random.key(0), clip, configured())
  assert [made[f'linear{i}']['kernel'].shape for i in (1, 2, 3, 4)] == [(640, 512), (512, 256), (256, 128), (128, 1)]
  for i, fan_in in enumerate((640, 512, 256, 128), 1):
    for array in made[f'linear{i}'].values():
      assert jnp.max(jnp.abs(array)) <= fan_in ** -0.5
    kernel = made[f'linear{i}']['kernel']
    assert float(jnp.std(kernel)) == pytest.approx((3 * fan_in) ** -0.5, rel=0.1)
  assert float(made['norm1']['scale'].min()) == 1 and float(jnp.abs(made['norm3']['bias']).max()) == 0
  assert {name: {k: x.shape for k, x in node.items()} for name, node in made['statistics'].items()} == {
    f'norm{i}': {'mean': (w,), 'var': (w,)} for i, w in enumerate((512, 256, 128), 1)}
  assert method.init(jax.random.key(0), CLIP, small(score='clip')) == {}
  lecun = method.init(jax.random.key(0), CLIP, small(fnn__init='lecun'))
  assert not lecun['linear1']['bias'].any() and jnp.max(jnp.abs(lecun['linear1']['kernel'])) > EMBED ** -0.5


def torch_network(torch, learnable, cfg):
  """The same in torch, from the same numbers."""
  tensor = lambda x: torch.tensor(np.asarray(x))
  layers, made = [], {'norm': torch.nn.BatchNorm1d, 'relu': lambda _: torch.nn.ReLU(),
                      'dropout': lambda _: torch.nn.Dropout(cfg.fnn.dropout)}
  widths = (EMBED, *cfg.fnn.hidden, 1)
  for i, (before, after) in enumerate(itertools.pairwise(widths), 1):
    linear, ours = torch.nn.Linear(before, after), learnable[f'linear{i}']
    linear.weight.data, linear.bias.data = tensor(ours['kernel'].T), tensor(ours['bias'])
    layers += [linear, *(made[part](after) for part in cfg.fnn.order if i < len(widths) - 1)]
  return torch.nn.Sequential(*layers)


@pytest.mark.parametrize('order', [('norm', 'relu', 'dropout'), ('relu', 'dropout', 'norm')])
def test_trains_and_scores_as_torch_does(order, torch):
  """Three steps of AdamW and running statistics, eps and momentum torch's own; the last batch is half padding.

  A bias before a norm has no gradient but rounding, of which Adam's eps of 1e-8 would make whole steps.
  """
  cfg = small(fnn__dropout=0.0, fnn__order=order, optim__eps=1e-4)
  learnable = network(cfg)
  theirs = torch_network(torch, learnable, cfg)
  optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3, weight_decay=1e-4, eps=1e-4)
  tx = train.make_tx(cfg.optim)
  ours = train.make_step(functools.partial(method.loss, clip=CLIP, cfg=cfg), tx, per_epoch=9)
  state = train.initial(learnable, tx, 0)
  for count in (8, 8, 4):
    pairs = 3 * normals(8, 2, EMBED) + 1
    state, found = ours(state, {}, pairs, {'valid': np.arange(8) < count})
    logits = theirs(torch.tensor(pairs[:count].reshape(-1, EMBED)))[:, 0]
    value = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor([0., 1.] * count))
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    assert float(found['loss']) == pytest.approx(value.item(), rel=1e-5)
    right = ((logits > 0) == torch.tensor([False, True] * count)).float().mean().item()
    assert float(found['accuracy']) == pytest.approx(right)
  norms = [layer for layer in theirs if isinstance(layer, torch.nn.BatchNorm1d)]
  for i, norm in enumerate(norms, 1):
    kept = state.learnable['statistics'][f'norm{i}']
    np.testing.assert_allclose(kept['mean'], norm.running_mean, atol=2e-5)
    np.testing.assert_allclose(kept['var'], norm.running_var, atol=2e-5)
    np.testing.assert_allclose(state.learnable[f'norm{i}']['scale'], norm.weight.detach(), atol=5e-5)
  images = normals(5, EMBED)
  with torch.no_grad():
    want = theirs.eval()(torch.tensor(images))[:, 0].numpy()
  np.testing.assert_allclose(method.network(state.learnable, images, cfg), want, atol=2e-4)


def batch(valid):
  return {'valid': np.array(valid, bool)}


def run_step(learnable, pairs, valid, cfg, rng=0):
  (value, found), grads = step(learnable, {}, pairs, batch(valid), jax.random.key(rng), clip=CLIP, cfg=cfg)
  return value, found, grads


def test_padding_weighs_nothing_in_loss_gradient_and_statistics():
  cfg, pairs = small(fnn__dropout=0.0), normals(4, 2, EMBED)
  learnable = network(cfg)
  alone = run_step(learnable, pairs[:3], [1, 1, 1], cfg)
  pairs[3] = 1e3
  for one, other in zip(jax.tree.leaves(run_step(learnable, pairs, [1, 1, 1, 0], cfg)), jax.tree.leaves(alone)):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_dropout_is_of_training_alone_and_keeps_the_mean():
  cfg, pairs = small(fnn__dropout=0.5), normals(4, 2, EMBED)
  learnable = network(cfg)
  losses = {float(run_step(learnable, pairs, [1] * 4, cfg, rng)[0]) for rng in range(3)}
  assert len(losses) == 3
  off = small(fnn__dropout=0.0)
  assert float(run_step(learnable, pairs, [1] * 4, off)[0]) not in losses
  np.testing.assert_array_equal(method.network(learnable, pairs, cfg), method.network(learnable, pairs, off))
  # With norms before and one hidden layer the logit is linear in what is dropped: its mean stays.
  one = small(fnn__hidden=(64,), fnn__order=('norm', 'relu', 'dropout'))
  made = network(one)
  drawn = jax.jit(jax.vmap(lambda key: method.loss(made, {}, pairs, batch([1] * 4), key, clip=CLIP, cfg=one)[0]))
  plain = float(run_step(made, pairs, [1] * 4, small(fnn__hidden=(64,), fnn__dropout=0.0))[0])
  assert float(drawn(jax.random.split(jax.random.key(0), 400)).mean()) == pytest.approx(plain, abs=0.03)


def train_on(cfg, pairs, epochs=2):
  """What is learned of pairs [n, 2, E], by the trainer."""
  return train.fit(functools.partial(method.loss, clip=CLIP, cfg=cfg), train.make_tx(cfg.optim), network(cfg), {},
                   lambda rows: (pairs[rows], {}), len(pairs), epochs=epochs, batch=cfg.train.batch, seed=0)


@pytest.fixture(scope='module')
def pairs():
  """Raw features far from the origin and of tiny variance; the two states differ in one channel."""
  made = 0.05 * np.random.default_rng(5).standard_normal((2560, 2, EMBED)).astype(np.float32) + 0.3
  made[:, 1, 2] += 0.15
  return made


def test_running_statistics_are_those_of_the_whole_set_after_training(pairs):
  """With flax's default momentum, 0.01 as torch counts it, a part of the first (0, 1) would remain."""
  def off(cfg):
    learned = jax.tree.map(np.asarray, train_on(cfg, pairs, epochs=8))  # 320 steps, as the paper's 314
    first = pairs.reshape(-1, EMBED) @ learned['linear1']['kernel'] + learned['linear1']['bias']
    kept = learned['statistics']['norm1']
    return [np.median(np.abs(a - b) / scale) for a, b, scale in (
      (kept['mean'], first.mean(0), first.std(0)), (kept['var'], first.var(0), first.var(0)))]

  mean, var = off(small())
  assert mean < 0.1 and var < 0.05
  assert off(small(fnn__bn_momentum=0.01))[1] > 1


def test_learns_which_member_of_a_pair_is_anomalous(pairs):
  cfg = small(optim__lr=1e-2)
  logits = np.asarray(method.network(train_on(cfg, pairs), pairs, cfg))
  assert logits[:, 1].mean() > 0 > logits[:, 0].mean()
  assert metrics.auroc(np.tile([0, 1], len(pairs)), logits.ravel()) > 0.95


# Scores.

TEXT = np.eye(2, EMBED, dtype=np.float32)[None]  # [1, 2, E]: normal along the first axis, anomalous along the second


def at(normal, anomalous):
  """A unit vector of these two cosines."""
  rest = math.sqrt(max(1 - normal ** 2 - anomalous ** 2, 0))
  return np.array([normal, anomalous, rest, *[0] * (EMBED - 3)], np.float32)


def scored(cfg, features, learnable=None, memory=None, category=None, text=TEXT):
  count = len(features.cls)
  known = {'category': np.zeros(count, np.int32) if category is None else np.array(category, np.int32)}
  learnable = network(cfg) if learnable is None else learnable
  return jax.tree.map(np.asarray, predict(learnable, {}, text, memory, features, known, clip=CLIP, cfg=cfg))


def test_a_cosine_gap_of_a_hundredth_is_0_73_under_the_temperature():
  cls = np.stack([3 * at(0.2, 0.21), 5 * at(0.21, 0.2)])
  found = scored(small(score='clip'), Features(cls, {}), learnable={})['score']
  np.testing.assert_allclose(found, [0.73106, 1 - 0.73106], atol=2e-4)


def test_probabilities_are_summed():
  cfg, features = small(), Features(10 * normals(50, EMBED), {})
  both, ours, clip = (scored(small(score=s), features)['score'] for s in ('sum', 'fnn', 'clip'))
  np.testing.assert_allclose(both, ours + clip, atol=1e-6)
  logits = np.asarray(method.network(network(cfg), features.cls, cfg))
  np.testing.assert_allclose(ours, 1 / (1 + np.exp(-logits)), atol=1e-6)
  assert both.min() >= 0 and both.max() <= 2 and ours.max() < 1
  assert set(scored(cfg, features)) == {'score'}


def test_a_score_does_not_depend_on_the_batch(pairs):
  cfg = small()
  learnable, cls = train_on(cfg, pairs[:640]), normals(6, EMBED)
  whole = scored(cfg, Features(cls, {}), learnable)['score']
  alone = [scored(cfg, Features(one[None], {}), learnable)['score'][0] for one in cls]
  np.testing.assert_allclose(whole, alone, atol=1e-6)
  assert np.ptp(alone) > 1e-4


def test_inputs_are_normalised_in_training_and_in_testing_or_in_neither():
  cls, pairs = normals(4, EMBED), 7 * normals(4, 2, EMBED)
  for kind in ('raw', 'l2'):
    cfg = small(fnn__input=kind, score='fnn')
    same = np.allclose(scored(cfg, Features(cls, {}))['score'], scored(cfg, Features(9 * cls, {}))['score'], atol=1e-6)
    norm = float(run_step(network(cfg), pairs, [1] * 4, cfg)[1]['input_norm'])
    assert same == (kind == 'l2')
    assert norm == pytest.approx(1 if same else np.linalg.norm(pairs, axis=-1).mean(), rel=1e-5)


def test_crops_average_probabilities_and_not_embeddings():
  cls, crops = normals(3, EMBED), normals(3, 10, EMBED)
  features, kinds = Features(cls, {}, crops=crops), {}
  for average in multicrop.AVERAGES:
    cfg = small(score='fnn', multicrop__recipe='clip_ad', multicrop__average=average)
    kinds[average] = scored(cfg, features)['score']
  views = np.concatenate([cls[:, None], crops], 1)
  logits = np.asarray(method.network(network(small()), views, small()))
  weights, sigmoid = np.array([0.5] + [0.05] * 10), lambda x: 1 / (1 + np.exp(-x))
  np.testing.assert_allclose(kinds['prob'], sigmoid(logits) @ weights, atol=1e-6)
  np.testing.assert_allclose(kinds['logit'], sigmoid(logits @ weights), atol=1e-6)
  mean = np.einsum('v,bve->be', weights, views).astype(np.float32)
  joint = np.asarray(method.network(network(small()), mean, small()))
  np.testing.assert_allclose(kinds['embedding'], sigmoid(joint), atol=1e-6)
  assert np.abs(kinds['prob'] - kinds['embedding']).max() > 1e-4
  assert configured().multicrop.recipe == 'clip_ad' and configured().multicrop.average == 'prob'


def test_references_add_half_the_distance_from_the_nearest_of_their_category():
  memory = np.stack([[at(1, 0), 2 * at(0, 1)], [at(0, 0), at(0, 0)]])  # [C, K, E]
  features = Features(np.stack([4 * at(0.6, 0.8), 4 * at(0.6, 0.8)]), {})
  cfg = small(fewshot__shots=2, prompt__class_word='')
  text = np.concatenate([TEXT, TEXT])
  out = scored(cfg, features, memory=memory, category=[0, 1], text=text)
  np.testing.assert_allclose(out['distance'], [(1 - 0.8) / 2, 0.5], atol=1e-6)
  zero = scored(small(prompt__class_word=''), features, category=[0, 1], text=text)['score']
  np.testing.assert_allclose(method.finish(out, cfg=cfg)['score'], zero + [0.1, 0.5], atol=1e-6)
  scaled = method.finish(out, cfg=small(fewshot__shots=2, fewshot__s_img='cls_minmax'))
  np.testing.assert_allclose(scaled['score'], zero + [0, 1], atol=1e-6)
  same = {'score': np.ones(2), 'distance': np.full(2, 0.3)}
  np.testing.assert_array_equal(method.finish(same, cfg=small(fewshot__s_img='cls_minmax'))['score'], [1, 1])
  crops = np.repeat(memory[:, :1], 10, axis=1)  # of the first image all like its first reference, of the second too
  crowded = scored(small(fewshot__shots=2, multicrop__recipe='clip_ad'), Features(features.cls, {}, crops=crops),
                   memory=memory, category=[0, 1])
  np.testing.assert_allclose(crowded['distance'], [0.05, 0.25], atol=1e-6)
  with pytest.raises(ValueError, match=r'fewshot\.shots is 2, but predict was given no memory'):
    scored(cfg, features, category=[0, 1], text=text)


def test_the_maximum_of_winclips_map_may_stand_for_the_distance():
  clip = dataclasses.replace(CLIP, image_size=24)  # 3 x 3 patches of 8 px
  cfg = small(fewshot__shots=1, fewshot__s_img='winclip_map_max', score='sum', prompt__class_word='')
  read = method.spec(clip, cfg)
  assert (read.windows, read.taps, read.read) == ((2, 3), (Tap('clip', 6),), 'none')
  assert method.spec(clip, small(fewshot__s_img='winclip_map_max')).windows == ()
  shape = {2: (4, EMBED), 3: (1, EMBED)}
  sizes = {side: normals(1, *s) for side, s in shape.items()}
  features = Features(normals(1, EMBED), {'clip/6/block': normals(1, 9, 5)}, sizes)
  memory = method.memory({}, jax.tree.map(lambda x: x[None], features), clip=clip, cfg=cfg)
  category = {'category': np.zeros(1, np.int32)}
  near = predict(network(cfg), {}, TEXT, memory, features, category, clip=clip, cfg=cfg)['distance']
  np.testing.assert_allclose(near, 0, atol=1e-5)
  moved = {k: x.at[0, 4].multiply(-1) for k, x in jax.tree.map(jnp.asarray, features.taps).items()}
  far = predict(network(cfg), {}, TEXT, memory, features._replace(taps=moved), category, clip=clip, cfg=cfg)['distance']
  own = np.asarray(features.taps['clip/6/block'][0])
  unit = own / np.linalg.norm(own, axis=-1, keepdims=True)
  want = (1 - np.max(-unit[4] @ unit.T)) / 2 / 3  # the mean over two sizes of window, at 0, and this patch
  np.testing.assert_allclose(far, [want], atol=1e-5)


# Config.


def test_the_recipe_is_the_papers():
  cfg = configured()
  assert (cfg.train.epochs, cfg.train.batch, cfg.seeds, cfg.seed) == (2, 64, 10, 0)
  assert generated.seeds(cfg) == tuple(range(10))
  assert cfg.train.epochs * math.ceil(cfg.examples.pairs / cfg.train.batch) == 314
  rates = [train.learning_rate(cfg.optim)(epoch) for epoch in (0, 1)]
  np.testing.assert_allclose(rates, [1e-3, 1e-4])
  assert method.spec(dataclasses.replace(CLIP, image_size=240), cfg).crops == 270


@pytest.mark.parametrize(('arg', 'changes', 'want'), [
  (None, {}, (92.2, 96.0, 92.8)), ('ours', {}, (91.0, 95.4, 92.2)),
  ('known', {'data__target': 'visa'}, (79.8, 82.8, 79.9)),
  ('plus2', {}, (94.0, 96.9, 94.1)), ('ours', {'data__target': 'sewer_ml'}, (82.6, 81.0, 77.4)),
  (None, {'score': 'fnn'}, None), (None, {'prompt__class_word': ''}, None), ('plus2', {'fewshot__shots': 4}, None),
  (None, {'clip': 'tiny'}, None)])
def test_published_means_stand_beside_what_they_were_measured_with(arg, changes, want):
  found = results.published(configured(arg, **changes))
  assert found == (want and dict(zip(('image_auroc', 'image_ap', 'image_f1max'), want)))


@pytest.mark.parametrize(('key', 'value', 'message'), [
  ('score', 'both', r"score 'both' is not one of sum, fnn, clip"),
  ('prompt__article', 'an', r"prompt\.article 'an' is not one of an_object, a, auto"),
  ('fewshot__s_img', 'map', r"fewshot\.s_img 'map'"), ('fewshot__shots', -1, r'fewshot\.shots -1 is negative'),
  ('examples__alphabet', 26, r'examples\.alphabet 26 is not one of 62, 36'), ('examples__pairs', 0, 'examples.pairs 0'),
  ('examples__shortest', 11, r'examples\.shortest 11 is not in 1\.\.10'), ('fnn__init', 'zero', "fnn.init 'zero'"),
  ('fnn__order', ('norm', 'relu'), r"fnn\.order \('norm', 'relu'\) does not name each of norm, relu, dropout once"),
  ('fnn__hidden', (8, 0), r'fnn\.hidden \(8, 0\)'), ('fnn__dropout', 1.0, r'fnn\.dropout 1.0 is not in \[0, 1\)'),
  ('fnn__bn_momentum', 0.0, r'fnn\.bn_momentum 0.0'), ('fnn__bn_eps', 0.0, r'fnn\.bn_eps 0.0 is not positive'),
  ('fnn__input', 'unit', r"fnn\.input 'unit'"), ('temperature', 0.0, 'temperature 0.0 is not positive'),
  ('seeds', 0, 'seeds 0 is not 1 or more'),
  ('words__normal', 'a {}', r"words\.normal and words\.anomalous must be text"),
  ('words__normal', 'a damaged', r"words\.normal and words\.anomalous are both 'a damaged'")])
def test_values_out_of_range_are_refused(key, value, message):
  with pytest.raises(ValueError, match=message):
    method.spec(CLIP, small(**{key: value}))


def test_references_go_with_the_sum_alone():
  with pytest.raises(ValueError, match=r"fewshot\.shots is 1, but score 'fnn' has no part of references"):
    method.spec(CLIP, small(fewshot__shots=1, score='fnn'))
