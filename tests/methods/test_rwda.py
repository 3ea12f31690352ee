"""RWDA: its sentences, its training against torch and a golden, its scores worked out by hand, and bad keys."""

import dataclasses
import itertools
import math
import re

import jax
import jax.numpy as jnp
import method_checks
import numpy as np
import pytest
from golden import record_rwda

from zsad_jax import metrics
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import Features, Tap
from zsad_jax.configs import rwda as config
from zsad_jax.experiment import results
from zsad_jax.methods import Context, Prediction
from zsad_jax.methods import rwda as method
from zsad_jax.ops import multicrop

EMBED = 6
ARCH = dataclasses.replace(clip_lib.ARCHS['tiny'], embed_dim=EMBED)
CLIP = clip_lib.Clip(ARCH, 64, params=None)
RNG = np.random.default_rng(0)
train = jax.jit(method.train, static_argnames=('clip', 'cfg'))
value_and_grad = jax.jit(jax.value_and_grad(method._loss, has_aux=True), static_argnames='cfg')
predict = jax.jit(method.predict, static_argnames=('clip', 'cfg'))


def configured(arg=None, **changes):
  return method_checks.with_keys(config.get_config(arg), **changes)


def small(**changes):
  return configured(**{'fnn__hidden': (8, 7, 5), 'multicrop__recipe': 'none', **changes})


def normals(*shape):
  return RNG.standard_normal(shape).astype(np.float32)


# Sentences.


def test_words_have_five_to_ten_characters_all_lengths_equally_often():
  words = method._random_words(np.random.default_rng(0), 30000, configured().sentences)
  lengths = np.bincount([len(word) for word in words])
  assert np.flatnonzero(lengths).tolist() == [5, 6, 7, 8, 9, 10]
  chi2 = np.sum((lengths[5:] - 5000) ** 2 / 5000)
  assert chi2 < 20.5  # 5 degrees of freedom, p = 0.001


@pytest.mark.parametrize(('alphabet', 'digits'), [(62, 10 / 62), (36, 10 / 36)])
def test_all_characters_of_the_alphabet_are_equally_frequent(alphabet, digits):
  keys = configured(sentences__alphabet=alphabet).sentences
  text = ''.join(method._random_words(np.random.default_rng(1), 20000, keys))
  assert len(set(text)) == alphabet == len(method.ALPHABETS[alphabet])
  assert np.mean([c.isdigit() for c in text]) == pytest.approx(digits, abs=0.005)
  assert text.isascii() and text.isalnum() and (alphabet == 62) == (text != text.lower())


def parsed(pair, anomalous='a damaged'):
  """The ten random words of a pair; fails if the sentences are others."""
  matches = [re.fullmatch(rf'(\w+) a (\w+) photo (\w+) of (\w+) {word} (\w+)', text)
           for word, text in zip(('a', anomalous), pair)]
  return [word for match in matches for word in match.groups()]


def test_every_sentence_has_words_of_its_own_and_no_object():
  pairs = method.training_texts(3, cfg=configured(sentences__pairs=2000))
  words = [parsed(pair) for pair in pairs]
  flat = [w for row in words for w in row]
  assert len(pairs) == 2000 and len(flat) == 20000 and len(set(flat)) > 19990
  assert not any(w[i] == w[i + 5] for w in words for i in range(5))
  assert 'object' not in {piece for pair in pairs for text in pair for piece in text.split()}
  assert method.training_texts(3, cfg=configured(sentences__pairs=2000)) == pairs != method.training_texts(
    4, cfg=configured(sentences__pairs=2000))
  other = method.training_texts(3, cfg=configured(sentences__pairs=5, words__anomalous='a broken'))
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
  assert method._guide_prompts(name, configured(**changes)) == [f'a photo of {text}' for text in want]


# The network.


def network(cfg, seed=0):
  return jax.tree.map(np.asarray, method.init(jax.random.key(seed), CLIP, cfg))


@pytest.mark.slow
def test_layers_start_as_torchs_and_score_clip_trains_nothing():
  clip = dataclasses.replace(CLIP, arch=clip_lib.ARCHS['vit_b16_plus_240'])
  params = method.init(jax.random.key(0), clip, configured())
  assert [params[f'linear{i}']['kernel'].shape for i in (1, 2, 3, 4)] == [(640, 512), (512, 256), (256, 128), (128, 1)]
  for i, fan_in in enumerate((640, 512, 256, 128), 1):
    for array in params[f'linear{i}'].values():
      assert jnp.max(jnp.abs(array)) <= fan_in ** -0.5
    kernel = params[f'linear{i}']['kernel']
    assert float(jnp.std(kernel)) == pytest.approx((3 * fan_in) ** -0.5, rel=0.1)
  assert float(params['norm1']['scale'].min()) == 1 and float(jnp.abs(params['norm3']['bias']).max()) == 0
  assert {name: {k: x.shape for k, x in node.items()} for name, node in params['statistics'].items()} == {
    f'norm{i}': {'mean': (w,), 'var': (w,)} for i, w in enumerate((512, 256, 128), 1)}
  assert method.init(jax.random.key(0), CLIP, small(score='clip')) == {}
  lecun = method.init(jax.random.key(0), CLIP, small(fnn__init='lecun'))
  assert not lecun['linear1']['bias'].any() and jnp.max(jnp.abs(lecun['linear1']['kernel'])) > EMBED ** -0.5


def torch_network(torch, params, cfg):
  """The same network in torch, with the same weights."""
  tensor = lambda x: torch.tensor(np.asarray(x))
  layers, parts = [], {'norm': torch.nn.BatchNorm1d, 'relu': lambda _: torch.nn.ReLU(),
                       'dropout': lambda _: torch.nn.Dropout(cfg.fnn.dropout)}
  widths = (EMBED, *cfg.fnn.hidden, 1)
  for i, (before, after) in enumerate(itertools.pairwise(widths), 1):
    linear, ours = torch.nn.Linear(before, after), params[f'linear{i}']
    linear.weight.data, linear.bias.data = tensor(ours['kernel'].T), tensor(ours['bias'])
    layers += [linear, *(parts[part](after) for part in cfg.fnn.order if i < len(widths) - 1)]
  return torch.nn.Sequential(*layers)


@pytest.mark.parametrize('order', [('norm', 'relu', 'dropout'), ('relu', 'dropout', 'norm')])
def test_trains_and_scores_as_torch_does(order, torch):
  """Three steps of AdamW and running statistics, eps and momentum torch's own; the last batch is half padding.

  A bias before a norm has no gradient but rounding, of which Adam's eps of 1e-8 would make whole steps.
  """
  cfg = small(fnn__dropout=0.0, fnn__order=order, optim__eps=1e-4, train__batch=8)
  theirs = torch_network(torch, network(cfg), cfg)
  optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3, weight_decay=1e-4, eps=1e-4)
  pairs, losses, accuracies = 3 * normals(20, 2, EMBED) + 1, [], []
  for rows in (slice(0, 8), slice(8, 16), slice(16, 20)):
    labels = torch.tensor([0., 1.] * len(pairs[rows]))
    logits = theirs(torch.tensor(pairs[rows].reshape(-1, EMBED)))[:, 0]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    accuracies.append(((logits > 0) == (labels > 0)).float().mean().item())
  params, curve = train(pairs, np.arange(20)[None], jax.random.key(0), clip=CLIP, cfg=cfg)
  assert float(curve['loss'][0]) == pytest.approx(np.mean(losses), rel=1e-5)
  assert float(curve['accuracy'][0]) == pytest.approx(np.mean(accuracies))
  norms = [layer for layer in theirs if isinstance(layer, torch.nn.BatchNorm1d)]
  for i, norm in enumerate(norms, 1):
    statistics = params['statistics'][f'norm{i}']
    np.testing.assert_allclose(statistics['mean'], norm.running_mean, atol=2e-5)
    np.testing.assert_allclose(statistics['var'], norm.running_var, atol=2e-5)
    np.testing.assert_allclose(params[f'norm{i}']['scale'], norm.weight.detach(), atol=5e-5)
  images = normals(5, EMBED)
  with torch.no_grad():
    want = theirs.eval()(torch.tensor(images))[:, 0].numpy()
  np.testing.assert_allclose(method._logits(params, images, cfg), want, atol=2e-4)


@pytest.mark.parametrize('seed', record_rwda.SEEDS)
def test_training_gives_the_numbers_of_the_golden(seed):
  clip = dataclasses.replace(CLIP, arch=dataclasses.replace(ARCH, embed_dim=record_rwda.EMBED))
  cfg = method_checks.with_keys(config.get_config(), **{
    key.replace('.', '__'): value for key, value in record_rwda.CHANGES.items()})
  with np.load(record_rwda.HERE / 'rwda.npz') as file:
    want = {name.partition('/')[2]: file[name] for name in file if name.startswith(f'{seed}/')}
  params, curve = train(record_rwda.text_features(seed), record_rwda.order(seed), jax.random.key(seed), clip=clip,
                        cfg=cfg)
  ours = {'/'.join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)} | curve
  assert ours.keys() == want.keys()
  for name, value in ours.items():
    np.testing.assert_allclose(value, want[name], atol=1e-6, err_msg=name)


def loss_of(params, pairs, valid, cfg, seed=0):
  """((loss, (metrics, running moments)), gradient) of one batch."""
  params = dict(params)
  return value_and_grad(params, params.pop('statistics'), pairs, np.array(valid, bool), jax.random.key(seed), cfg=cfg)


@pytest.mark.slow
def test_padding_weighs_nothing_in_loss_gradient_and_statistics():
  cfg, pairs = small(fnn__dropout=0.0), normals(4, 2, EMBED)
  params = network(cfg)
  unpadded = loss_of(params, pairs[:3], [1, 1, 1], cfg)
  pairs[3] = 1e3
  for one, other in zip(jax.tree.leaves(loss_of(params, pairs, [1, 1, 1, 0], cfg)), jax.tree.leaves(unpadded)):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_dropout_is_of_training_alone_and_keeps_the_mean():
  cfg, pairs = small(fnn__dropout=0.5), normals(4, 2, EMBED)
  params = network(cfg)
  losses = {float(loss_of(params, pairs, [1] * 4, cfg, seed)[0][0]) for seed in range(3)}
  assert len(losses) == 3
  off = small(fnn__dropout=0.0)
  assert float(loss_of(params, pairs, [1] * 4, off)[0][0]) not in losses
  np.testing.assert_array_equal(method._logits(params, pairs, cfg), method._logits(params, pairs, off))
  # With norms before and one hidden layer the logit is linear in the dropped activations: its mean stays.
  one = small(fnn__hidden=(64,), fnn__order=('norm', 'relu', 'dropout'))
  params = network(one)
  statistics = params.pop('statistics')
  losses = jax.jit(jax.vmap(lambda key: method._loss(params, statistics, pairs, np.ones(4, bool), key, one)[0]))
  plain = float(loss_of(network(one), pairs, [1] * 4, small(fnn__hidden=(64,), fnn__dropout=0.0))[0][0])
  assert float(losses(jax.random.split(jax.random.key(0), 400)).mean()) == pytest.approx(plain, abs=0.03)


def train_on(cfg, pairs, epochs=2):
  """The trained network of pairs [n, 2, E]."""
  order = np.stack([np.random.default_rng(epoch).permutation(len(pairs)) for epoch in range(epochs)])
  return jax.tree.map(np.asarray, train(pairs, order, jax.random.key(0), clip=CLIP, cfg=cfg)[0])


@pytest.fixture(scope='module')
def pairs():
  """Raw features far from the origin and of tiny variance; the two states differ in one channel."""
  features = 0.05 * np.random.default_rng(5).standard_normal((2560, 2, EMBED)).astype(np.float32) + 0.3
  features[:, 1, 2] += 0.15
  return features


@pytest.mark.slow
def test_running_statistics_are_those_of_the_whole_set_after_training(pairs):
  """With flax's default momentum, 0.01 in torch's convention, a part of the first (0, 1) would remain."""
  def errors(cfg):
    params = train_on(cfg, pairs, epochs=8)  # 320 steps, as the paper's 314
    first = pairs.reshape(-1, EMBED) @ params['linear1']['kernel'] + params['linear1']['bias']
    running = params['statistics']['norm1']
    return [np.median(np.abs(a - b) / scale) for a, b, scale in (
      (running['mean'], first.mean(0), first.std(0)), (running['var'], first.var(0), first.var(0)))]

  mean, var = errors(small())
  assert mean < 0.1 and var < 0.05
  assert errors(small(fnn__bn_momentum=0.01))[1] > 1


@pytest.mark.slow
def test_learns_which_member_of_a_pair_is_anomalous(pairs):
  cfg = small(optim__lr=1e-2)
  logits = np.asarray(method._logits(train_on(cfg, pairs), pairs, cfg))
  assert logits[:, 1].mean() > 0 > logits[:, 0].mean()
  assert metrics.auroc(np.tile([0, 1], len(pairs)), logits.ravel()) > 0.95


@pytest.mark.slow
def test_hidden_layers_are_those_before_the_last(pairs):
  cfg = small()
  params = network(cfg)
  layers = method.hidden_layers(params, pairs[:3, 0], cfg=cfg)
  assert {name: x.shape for name, x in layers.items()} == {'layer 1': (3, 8), 'layer 2': (3, 7), 'layer 3': (3, 5)}
  last = np.asarray(layers['layer 3']) @ params['linear4']['kernel'] + params['linear4']['bias']
  np.testing.assert_allclose(last[:, 0], method._logits(params, pairs[:3, 0], cfg), atol=1e-6)
  assert method.hidden_layers({}, pairs[:3, 0], cfg=cfg) == {}


# Scores.

TEXT = np.eye(2, EMBED, dtype=np.float32)[None]  # [1, 2, E]: normal along the first axis, anomalous along the second


def at(normal, anomalous):
  """A unit vector of these two cosines."""
  rest = math.sqrt(max(1 - normal ** 2 - anomalous ** 2, 0))
  return np.array([normal, anomalous, rest, *[0] * (EMBED - 3)], np.float32)


def prediction(cfg, features, params=None, memory_bank=None, category=None, text=TEXT):
  count = len(features.cls)
  batch = {'category': np.zeros(count, np.int32) if category is None else np.array(category, np.int32)}
  params = network(cfg) if params is None else params
  out = predict(params, Context(None, text, memory_bank), features, batch, clip=CLIP, cfg=cfg)
  assert out.map is None
  return jax.tree.map(np.asarray, out)


def score_of(*args, **kwargs):
  return prediction(*args, **kwargs).score


def test_a_cosine_gap_of_a_hundredth_is_0_73_under_the_temperature():
  cls = np.stack([3 * at(0.2, 0.21), 5 * at(0.21, 0.2)])
  score = score_of(small(score='clip'), Features(cls, {}), params={})
  np.testing.assert_allclose(score, [0.73106, 1 - 0.73106], atol=2e-4)


@pytest.mark.slow
def test_probabilities_are_summed():
  cfg, features = small(), Features(10 * normals(50, EMBED), {})
  both, ours, clip = (score_of(small(score=s), features) for s in ('sum', 'fnn', 'clip'))
  np.testing.assert_allclose(both, ours + clip, atol=1e-6)
  logits = np.asarray(method._logits(network(cfg), features.cls, cfg))
  np.testing.assert_allclose(ours, 1 / (1 + np.exp(-logits)), atol=1e-6)
  assert both.min() >= 0 and both.max() <= 2 and ours.max() < 1
  assert not prediction(cfg, features).extras


@pytest.mark.slow
def test_a_score_does_not_depend_on_the_batch(pairs):
  cfg = small()
  params, cls = train_on(cfg, pairs[:640]), normals(6, EMBED)
  whole = score_of(cfg, Features(cls, {}), params)
  alone = [score_of(cfg, Features(one[None], {}), params)[0] for one in cls]
  np.testing.assert_allclose(whole, alone, atol=1e-6)
  assert np.ptp(alone) > 1e-4


@pytest.mark.slow
def test_inputs_are_normalised_in_training_and_in_testing_or_in_neither():
  cls, pairs = normals(4, EMBED), 7 * normals(4, 2, EMBED)
  for kind in ('raw', 'l2'):
    cfg = small(fnn__input=kind, score='fnn')
    same = np.allclose(score_of(cfg, Features(cls, {})), score_of(cfg, Features(9 * cls, {})), atol=1e-6)
    norm = float(loss_of(network(cfg), pairs, [1] * 4, cfg)[0][1][0]['input_norm'])
    assert same == (kind == 'l2')
    assert norm == pytest.approx(1 if same else np.linalg.norm(pairs, axis=-1).mean(), rel=1e-5)


@pytest.mark.slow
def test_crops_average_probabilities_and_not_embeddings():
  cls, crops = normals(3, EMBED), normals(3, 10, EMBED)
  features, kinds = Features(cls, {}, crops=crops), {}
  for average in multicrop.AVERAGES:
    cfg = small(score='fnn', multicrop__recipe='clip_ad', multicrop__average=average)
    kinds[average] = score_of(cfg, features)
  views = np.concatenate([cls[:, None], crops], 1)
  logits = np.asarray(method._logits(network(small()), views, small()))
  weights, sigmoid = np.array([0.5] + [0.05] * 10), lambda x: 1 / (1 + np.exp(-x))
  np.testing.assert_allclose(kinds['prob'], sigmoid(logits) @ weights, atol=1e-6)
  np.testing.assert_allclose(kinds['logit'], sigmoid(logits @ weights), atol=1e-6)
  mean = np.einsum('v,bve->be', weights, views).astype(np.float32)
  joint = np.asarray(method._logits(network(small()), mean, small()))
  np.testing.assert_allclose(kinds['embedding'], sigmoid(joint), atol=1e-6)
  assert np.abs(kinds['prob'] - kinds['embedding']).max() > 1e-4
  assert configured().multicrop.recipe == 'clip_ad' and configured().multicrop.average == 'prob'


@pytest.mark.slow
def test_references_add_half_the_distance_from_the_nearest_of_their_category():
  bank = np.stack([[at(1, 0), 2 * at(0, 1)], [at(0, 0), at(0, 0)]])  # [C, K, E]
  features = Features(np.stack([4 * at(0.6, 0.8), 4 * at(0.6, 0.8)]), {})
  cfg = small(fewshot__shots=2, prompt__class_word='')
  text = np.concatenate([TEXT, TEXT])
  out = prediction(cfg, features, memory_bank=bank, category=[0, 1], text=text)
  np.testing.assert_allclose(out.extras['distance'], [(1 - 0.8) / 2, 0.5], atol=1e-6)
  zero_shot = score_of(small(prompt__class_word=''), features, category=[0, 1], text=text)
  np.testing.assert_allclose(method.postprocess_category(out, cfg=cfg).score, zero_shot + [0.1, 0.5], atol=1e-6)
  stretched = small(fewshot__shots=2, fewshot__s_img='cls_minmax')
  np.testing.assert_allclose(method.postprocess_category(out, cfg=stretched).score, zero_shot + [0, 1], atol=1e-6)
  same = Prediction(np.ones(2), extras={'distance': np.full(2, 0.3)})
  np.testing.assert_array_equal(method.postprocess_category(same, cfg=stretched).score, [1, 1])
  assert method.single_image_overrides(stretched) == {'fewshot.s_img': 'cls'}
  assert method.single_image_overrides(cfg) == {}
  crops = np.repeat(bank[:, :1], 10, axis=1)  # all crops of an image equal the first reference of its category
  out = prediction(small(fewshot__shots=2, multicrop__recipe='clip_ad'), Features(features.cls, {}, crops=crops),
                   memory_bank=bank, category=[0, 1])
  np.testing.assert_allclose(out.extras['distance'], [0.05, 0.25], atol=1e-6)
  with pytest.raises(ValueError, match=r'fewshot\.shots=2 needs references'):
    prediction(cfg, features, category=[0, 1], text=text)


@pytest.mark.slow
def test_the_distance_may_be_the_maximum_of_winclips_map():
  clip = dataclasses.replace(CLIP, image_size=24)  # 3 x 3 patches of 8 px
  cfg = small(fewshot__shots=1, fewshot__s_img='winclip_map_max', score='sum', prompt__class_word='')
  spec = method.feature_spec(clip, cfg)
  assert (spec.windows, spec.taps, spec.read) == ((2, 3), (Tap('clip', 6),), 'none')
  assert method.feature_spec(clip, small(fewshot__s_img='winclip_map_max')).windows == ()
  shape = {2: (4, EMBED), 3: (1, EMBED)}
  sizes = {side: normals(1, *s) for side, s in shape.items()}
  features = Features(normals(1, EMBED), {'clip/6/block': normals(1, 9, 5)}, sizes)
  bank = method.build_memory_bank({}, jax.tree.map(lambda x: x[None], features), clip=clip, cfg=cfg)
  distance = lambda features: predict(network(cfg), Context(None, TEXT, bank), features,
                                      {'category': np.zeros(1, np.int32)}, clip=clip, cfg=cfg).extras['distance']
  np.testing.assert_allclose(distance(features), 0, atol=1e-5)
  moved = {k: x.at[0, 4].multiply(-1) for k, x in jax.tree.map(jnp.asarray, features.taps).items()}
  far = distance(features._replace(taps=moved))
  own = np.asarray(features.taps['clip/6/block'][0])
  unit = own / np.linalg.norm(own, axis=-1, keepdims=True)
  want = (1 - np.max(-unit[4] @ unit.T)) / 2 / 3  # the mean over two sizes of window, at 0, and this patch
  np.testing.assert_allclose(far, [want], atol=1e-5)


# Config.


def test_the_recipe_is_the_papers():
  cfg = configured()
  assert (cfg.train.epochs, cfg.train.batch, cfg.seeds, cfg.seed) == (2, 64, 10, 0)
  assert cfg.train.epochs * math.ceil(cfg.sentences.pairs / cfg.train.batch) == 314
  optimizer, params = method._optimizer(cfg.optim, 157), {'w': jnp.zeros(1)}
  state, rates = optimizer.init(params), []
  for _ in range(158):
    updates, state = jax.jit(optimizer.update)({'w': jnp.ones(1)}, state, params)
    rates.append(-float(updates['w'][0]))
  np.testing.assert_allclose(rates, [1e-3] * 157 + [1e-4], rtol=1e-4)
  assert method.feature_spec(dataclasses.replace(CLIP, image_size=240), cfg).crops == 270


@pytest.mark.parametrize(('arg', 'changes', 'want'), [
  (None, {}, (92.2, 96.0, 92.8)), ('ours', {}, (91.0, 95.4, 92.2)),
  ('known', {'data__target': 'visa'}, (79.8, 82.8, 79.9)),
  ('plus2', {}, (94.0, 96.9, 94.1)), ('ours', {'data__target': 'sewer_ml'}, (82.6, 81.0, 77.4)),
  (None, {'score': 'fnn'}, None), (None, {'prompt__class_word': ''}, None), ('plus2', {'fewshot__shots': 4}, None),
  (None, {'clip': 'tiny'}, None)])
def test_published_means_need_the_keys_they_were_measured_with(arg, changes, want):
  published = results.published(configured(arg, **changes))
  assert published == (want and dict(zip(('image_auroc', 'image_ap', 'image_f1max'), want)))


@pytest.mark.parametrize(('key', 'value', 'message'), [
  ('score', 'both', "score='both' .* sum, fnn, clip"),
  ('prompt__article', 'an', r"prompt\.article='an' .* an_object, a, auto"),
  ('fewshot__s_img', 'map', r"fewshot\.s_img='map'"), ('sentences__alphabet', 26, r'sentences\.alphabet=26 .* 62, 36'),
  ('sentences__pairs', 0, r'sentences\.pairs=0'), ('sentences__shortest', 11, r'sentences\.shortest=11 .* 10'),
  ('fnn__init', 'zero', r"fnn\.init='zero'"), ('fnn__order', ('norm', 'relu'), r"fnn\.order=\('norm', 'relu'\)"),
  ('fnn__hidden', (8, 0), r'fnn\.hidden=\(8, 0\)'), ('fnn__dropout', 1.0, r'fnn\.dropout=1\.0 .* \[0, 1\)'),
  ('fnn__bn_momentum', 0.0, r'fnn\.bn_momentum=0\.0'), ('fnn__bn_eps', 0.0, r'fnn\.bn_eps=0\.0'),
  ('fnn__input', 'unit', r"fnn\.input='unit'"), ('temperature', 0.0, r'temperature=0\.0'),
  ('optim__name', 'sgd', r"optim\.name='sgd' .* adamw"), ('optim__gamma', 0.0, r'optim\.gamma=0\.0'),
  ('words__normal', 'a {}', r"words\.normal='a {}'"),
  ('words__normal', 'a damaged', r"words\.normal and words\.anomalous are both 'a damaged'")])
def test_keys_out_of_range_are_refused(key, value, message):
  with pytest.raises(ValueError, match=message):
    method_checks.check(method, CLIP, small(**{key: value}))


def test_references_need_the_summed_score():
  with pytest.raises(ValueError, match=r"fewshot\.shots=1 goes with score='sum'"):
    method_checks.check(method, CLIP, small(fewshot__shots=1, score='fnn'))
