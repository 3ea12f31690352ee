"""FuzzyCLIP: its prompts, the images and texts that each part is trained on, its known pitfalls, and bad keys."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import method_checks
import numpy as np
import pytest

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import Features, Tap
from zsad_jax.configs import april_gan as april_config
from zsad_jax.configs import fuzzyclip as config
from zsad_jax.engine import optimizers, train
from zsad_jax.methods import Context, Stage, april_gan
from zsad_jax.methods import fuzzyclip as method
from zsad_jax.methods.parts import clustering, prompts

SIZE, GRID, EMBED, WIDTH = 64, 8, 128, 128  # of the tiny CLIP
NAMES, GROUPS = ('leather', 'jar_lid', 'mesh'), (0, 1, 0)
L14 = clip_lib.Clip(clip_lib.ARCHS['vit_l14_336'], 518, params=None)
FEW = ((('{}',), ('damaged {}', '{} with flaw')), ('a photo of a {}.', 'there is the {}.'))
loss = jax.jit(method.loss, static_argnames=('clip', 'cfg'))
step = jax.jit(jax.value_and_grad(method.loss, has_aux=True), static_argnames=('clip', 'cfg'))
predict = jax.jit(method.predict, static_argnames=('clip', 'cfg'))


def configured(arg='demo', **changes):
  c = config.get_config(arg)
  fitted = dict(image_size=SIZE, prompt__categories=NAMES, csp__groups=GROUPS, layers=(3, 6)) if arg == 'demo' else {}
  return method_checks.with_keys(c, **{**fitted, **changes})


@pytest.fixture(scope='module')
def clip():
  return clip_lib.load('tiny', image_size=SIZE)


@pytest.fixture(scope='module')
def shell(clip):
  """Without weights, so that nothing is computed from its own."""
  return dataclasses.replace(clip, params=None)


@pytest.fixture
def few(monkeypatch):
  """An ensemble of a few texts."""
  monkeypatch.setitem(method.ENSEMBLES, 'april', FEW)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def precomputed(clip, cfg):
  return jax.jit(functools.partial(method.precompute, names=NAMES, clip=clip, cfg=cfg))(clip.params)


def encode_text(params, clip, cfg, names=('cable', 'leaf')):
  return jax.jit(functools.partial(method.encode_text, names=names, clip=clip, cfg=cfg))(params, clip.params)


def random_texts(rng, cfg, pairs=1, categories=2):
  """Random text features of as many categories."""
  draw = lambda *shape: jnp.asarray(unit(rng.standard_normal((*shape, EMBED))), jnp.float32)
  stacks = draw(categories, max(cfg.csp.groups) + 1, 2)
  return {'stacks': stacks, 'near': stacks[:, :, 0], 'image': draw(1, pairs, 2)}


def random_context(rng, cfg, pairs=1):
  """The Context of the loss with random texts and no text tower."""
  draw = lambda *shape: jnp.asarray(unit(rng.standard_normal((*shape, EMBED))), jnp.float32)
  return Context(None, {'stacks': draw(max(cfg.csp.groups) + 1, 2), 'prior': draw(pairs, 2)})


def random_inputs(cfg, rows=4, seed=0):
  """Random features of every tap, and a batch whose odd rows are anomalous; row i is of category i modulo 3."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(5 * rng.standard_normal(shape), jnp.float32)
  features = Features(draw(rows, EMBED), {f'clip/{b}/block': draw(rows, GRID ** 2, WIDTH) for b in cfg.layers})
  mask = np.zeros((rows, SIZE, SIZE), np.uint8)
  mask[1::2, 10:30, 20:50] = 1
  batch = dict(mask=jnp.asarray(mask), label=jnp.arange(rows) % 2, category=jnp.arange(rows) % 3,
               valid=jnp.ones(rows, bool))
  return features, batch


def init(clip, cfg, seed=0):
  return jax.jit(functools.partial(method.init, clip=clip, cfg=cfg))(jax.random.key(seed))


# The recipe


def test_the_recipe_is_the_papers():
  cfg = configured(None)
  assert dict(cfg.optim) == dict(lr=1e-3, b1=0.5, b2=0.999, eps=1e-8)
  assert (cfg.train.epochs, cfg.train.batch, cfg.rpl.epochs, cfg.rpl.lr) == (2, 16, 1, 1e-3)
  assert (cfg.rpl.n_ctx, cfg.rpl.depth, cfg.rpl.deep_len, cfg.layers) == (12, 9, 20, (6, 12, 18, 24))
  other = configured('visa')
  assert (other.data.aux, other.data.target, other.optim.lr, other.rpl.lr) == ('mvtec_ad', 'visa', 1e-4, 1e-3)
  spec = method.feature_spec(L14, cfg)
  assert spec.taps == tuple(Tap('clip', block) for block in (6, 12, 18, 24))
  assert (spec.cls, spec.read, spec.positions) == ('ln_post_proj', 'none', 'bicubic_antialias')
  assert method.architecture(L14.arch, cfg).activation == 'gelu'


def test_published_numbers_are_in_the_columns_of_their_metrics():
  row = configured(None).published.mvtec_ad  # table 2: AUPRO, AP, F1-max of pixels; AUROC, AP, F1-max of images
  assert (row.aupro_200, row.pixel_ap, row.pixel_f1max) == (86.4, 46.0, 47.6)
  assert (row.image_auroc, row.image_ap, row.image_f1max) == (91.7, 96.6, 92.7)


def test_each_group_has_layers_and_all_have_one_pair():
  cfg = configured(None, prompt__categories=NAMES, csp__groups=GROUPS, rpl__init='random')
  shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), L14, cfg))
  count = lambda name: sum(x.size for x in jax.tree.leaves(shapes[name]))
  assert list(shapes) == ['efa0', 'efa1', 'rpl0']
  assert count('efa0') == count('efa1') == 3_148_800 and count('rpl0') == 2 * 12 * 768 + 9 * 2 * 20 * 768
  shared = configured(None, csp__groups=(0,), rpl__init='random', rpl__deep_shared=True, rpl__deep='overwrite')
  pair = jax.eval_shape(lambda: method.init(jax.random.key(0), L14, shared))['rpl0']
  assert pair['deep'].shape == (8, 1, 20, 768)  # blocks 2 to 9


def test_stages_split_the_images_by_group_and_give_rpl_its_own_recipe():
  cfg = configured(rpl__lr=0.5, rpl__epochs=4, rpl__batch=6)
  recipe = {'train.epochs': 4, 'train.batch': 6, 'optim.lr': 0.5}
  assert method.stages(cfg) == (Stage('efa0', (0, 2)), Stage('efa1', (1,)), Stage('rpl0', None, recipe))
  assert method.stages(configured(rpl__k=0, rpl__lr=0.5, rpl__epochs=4, rpl__batch=6))[2:] == (
    Stage('rpl0', (0, 2), recipe), Stage('rpl1', (1,), recipe))
  assert [s.name for s in method.stages(configured(score__text='precise'))] == ['efa0', 'efa1']
  with pytest.raises(ValueError, match=r'csp\.groups=\(\)'):
    method.stages(configured(csp__groups=()))
  with pytest.raises(ValueError, match=r'prompt\.categories=\(\)'):
    method.auxiliary_overrides(None, None, clip=None, cfg=configured(prompt__categories=()))


# CSP


@pytest.mark.slow
@pytest.mark.parametrize('points', method.BOUNDS['csp.points'].values)
def test_groups_are_those_of_the_chosen_points(clip, few, monkeypatch, points):
  calls, cfg = [], configured(csp__points=points, csp__groups=())
  monkeypatch.setattr(clustering, 'group', lambda points, keys: calls.append(points) or
                      clustering.Grouping((0, 0, 1), {2: 1.}))
  means = lambda *, normalize: np.full((3, EMBED), float(normalize))
  assert method.auxiliary_overrides(clip.params, means, clip=clip, cfg=cfg) == {'csp.groups': (0, 0, 1)}
  text = lambda states, templates: np.asarray(jax.jit(lambda p: prompts.ensemble(
    clip, p, NAMES, states, templates, raw_names=True))(clip.params))
  if points == 'image_mean':
    expected = np.ones((3, EMBED))
  elif points == 'name_only':
    expected = text((('{}',),), ('{}',))[:, 0]
  else:
    expected = text(*FEW).reshape(3, -1)[:, :EMBED if points == 'text_normal' else None]
  np.testing.assert_allclose(calls[0], expected, atol=1e-5)


def test_stated_groups_stay_and_are_checked():
  overrides = lambda **changes: method.auxiliary_overrides(None, None, clip=None, cfg=configured(**changes))
  assert overrides() == {}
  for wrong in ((0, 1), (0, 2, 0), (1, 1, 1)):
    with pytest.raises(ValueError, match=r'each of the 3 auxiliary categories \(leather, jar'):
      overrides(csp__groups=wrong)


# Texts


def test_a_groups_prompt_names_the_category_under_test_first():
  form = lambda name, cluster, **changes: method._test_stack(name, cluster, configured(**changes))
  assert form('metal_nut', 'candle capsules') == 'metal_nut candle capsules'
  assert form('bottle', 'candle', stack__test_form='test_cluster_test') == 'bottle candle bottle'
  assert form('bottle', 'candle', stack__test_form='test') == 'bottle'
  assert form('bottle', 'candle', stack__test_form='cluster') == 'candle'
  assert form('metal_nut', 'candle', prompt__raw_names=False, stack__sep=', ') == 'metal nut, candle'
  assert form('bottle', 'object', stack__names='object') == 'object'
  (_, (state, *_)), (template, *_) = method.ENSEMBLES['april']
  texts = prompts.compose((state,), (template,), form('bottle', 'candle capsules'), raw_names=True)
  assert texts == ['a bad photo of a damaged bottle candle capsules.']
  assert method.ENSEMBLES['april'] == (prompts.COMPOUND_STATES, prompts.COMPOUND_TEMPLATES)


class Spy:
  """A tokenizer that records its texts."""

  def __init__(self, tokenizer):
    self.tokenizer, self.texts = tokenizer, []

  def encode(self, texts, context):
    self.texts += texts
    return self.tokenizer.encode(texts, context)


@pytest.mark.slow
def test_texts_of_training_name_auxiliary_categories_alone(clip, few):
  cfg, spy = configured(), Spy(clip.tokenizer)
  spied = dataclasses.replace(clip, tokenizer=spy)
  context, params = precomputed(spied, cfg), init(spied, cfg)
  method._encode_pair(params['rpl0'], clip.params, method._pair_names(cfg)[0], spied, cfg)
  assert set(context.clip_params) == {'text'} and context.memory_bank is None
  assert jax.tree.map(jnp.shape, context.text_features) == {'stacks': (2, 2, EMBED), 'prior': (1, 2, EMBED)}
  assert 'a photo of a damaged leather mesh.' in spy.texts and 'there is the jar_lid.' in spy.texts
  assert 'a photo of a leather jar_lid mesh.' in spy.texts and 'leather jar_lid mesh.' in spy.texts
  trained, spy.texts = ' '.join(spy.texts), []
  encode_text(params, spied, cfg)
  assert 'a photo of a cable leather mesh.' in spy.texts and 'there is the leaf jar_lid with flaw.' in spy.texts
  assert 'cable' not in trained and 'leaf' not in trained
  assert not [text for text in spy.texts if 'cable' in text and 'leaf' in text]


@pytest.mark.slow
def test_precomputed_texts_are_those_of_the_groups_and_of_all_names(clip, few):
  cfg = configured()
  text, names = precomputed(clip, cfg).text_features, ('leather mesh', 'jar_lid', 'leather jar_lid mesh')
  plain = jax.jit(lambda p: prompts.ensemble(clip, p, names, *FEW, raw_names=True))(clip.params)
  np.testing.assert_allclose(text['stacks'], plain[:2], atol=1e-5)
  np.testing.assert_allclose(text['prior'], plain[2:], atol=1e-5)
  raw = precomputed(clip, configured(rpl__feat='raw')).text_features['prior']
  assert np.abs(np.linalg.norm(raw, axis=-1) - 1).min() > 0.1
  abstract = precomputed(clip, configured(stack__names='object', rpl__k=0, rpl__names='object')).text_features
  assert abstract['prior'].shape == (2, 2, EMBED)


@pytest.mark.slow
@pytest.mark.parametrize('text, side', [('test_stack', 'normal'), ('train_stack', 'normal'), ('test_stack', 'mean')])
def test_texts_that_weigh_the_groups(clip, few, text, side):
  cfg = configured(efa__weight_text=text, efa__weight_side=side, score__text='precise')
  encoded = encode_text({}, clip, cfg)
  stacks = encoded['stacks'] if text == 'test_stack' else precomputed(clip, cfg).text_features['stacks'][None]
  expected = stacks[:, :, 0] if side == 'normal' else unit(np.asarray(stacks.mean(2)))
  np.testing.assert_allclose(encoded['near'], expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('text, stacks', [('precise', ('cable', 'leaf')), ('stack_target', ('cable leaf',)),
                                        ('stack_aux', ('leather jar_lid mesh',))])
def test_untrained_image_texts(clip, few, text, stacks):
  image = encode_text({}, clip, configured(score__text=text))['image']
  plain = jax.jit(lambda p: prompts.ensemble(clip, p, stacks, *FEW, raw_names=True))(clip.params)
  np.testing.assert_allclose(image, plain[:, None], atol=1e-5)


# Groups: EFA


@pytest.mark.slow
def test_every_image_has_weights_of_its_own(shell):
  cfg = configured()
  rng = np.random.default_rng(0)
  features, _ = random_inputs(cfg)
  near = jnp.asarray(unit(rng.standard_normal((4, 2, EMBED))), jnp.float32)
  share = method._group_weights(features, near, 100.)
  assert share.shape == (4, 2)
  np.testing.assert_allclose(share.sum(1), 1, rtol=1e-6)
  order = jnp.array([2, 0, 3, 1])
  np.testing.assert_allclose(method._group_weights(features._replace(cls=features.cls[order]), near[order], 100.),
                             share[order], rtol=1e-6)
  # A gap of 0.02 between the cosines.
  one, other = np.eye(2, EMBED, dtype=np.float32)
  cls = jnp.asarray(7 * (0.62 * one + 0.60 * other + np.sqrt(1 - 0.62 ** 2 - 0.6 ** 2) * np.eye(3, EMBED)[2]))[None]
  texts = jnp.stack([one, other])
  for scale, expected in ((1., 0.505), (100., 0.881)):
    assert float(method._group_weights(Features(cls.astype(jnp.float32), {}), texts, scale)[0, 0]) == pytest.approx(
      expected, abs=5e-4)


@pytest.mark.slow
def test_the_map_is_the_weighted_sum_of_the_groups(shell):
  cfg = configured(score__text='precise')
  rng = np.random.default_rng(0)
  texts, (features, batch) = random_texts(rng, cfg), random_inputs(cfg)
  batch['category'] = jnp.array([0, 1, 1, 0])
  params = init(shell, cfg)
  whole = predict(params, Context(None, texts), features, batch, clip=shell, cfg=cfg)
  share = method._group_weights(features, texts['near'][batch['category']], cfg.efa.scale)
  single = configured(score__text='precise', csp__groups=(0, 0, 0))
  total = 0
  for g in range(2):
    alone = {'stacks': texts['stacks'][:, g:g + 1], 'near': texts['near'][:, g:g + 1], 'image': texts['image']}
    out = predict({'efa0': params[f'efa{g}']}, Context(None, alone), features, batch, clip=shell, cfg=single)
    total += np.asarray(share[:, g, None, None] * out.map)
  np.testing.assert_allclose(whole.map, total, atol=1e-5)
  assert np.abs(whole.map - out.map).max() > 0.1


@pytest.mark.slow
def test_one_group_is_april_gan_with_a_stacked_prompt_bit_for_bit(shell):
  cfg = configured(csp__groups=(0, 0, 0), score__text='precise')
  other = april_config.get_config('demo')
  other.update(image_size=SIZE, layers=(3, 6))
  other = method_checks.with_keys(other)
  rng = np.random.default_rng(0)
  context, texts, (features, batch) = random_context(rng, cfg), random_texts(rng, cfg), random_inputs(cfg)
  params = init(shell, cfg)
  (total, terms), gradient = step(params, context, features, batch, None, clip=shell, cfg=cfg)
  (theirs, others), direction = jax.jit(jax.value_and_grad(april_gan.loss, has_aux=True),
                                        static_argnames=('clip', 'cfg'))(
    params['efa0'], Context(None, context.text_features['stacks']), features, batch, None, clip=shell, cfg=other)
  assert float(total) == float(theirs) and jax.device_get(terms) == jax.device_get(others)
  jax.tree.map(np.testing.assert_array_equal, gradient['efa0'], direction)
  batch['category'] = jnp.array([0, 1, 1, 0])
  texts['image'] = texts['stacks']
  ours = predict(params, Context(None, texts), features, batch, clip=shell, cfg=cfg)
  april = jax.jit(april_gan.predict, static_argnames=('clip', 'cfg'))(
    params['efa0'], Context(None, texts['stacks'][:, 0]), features, batch, clip=shell, cfg=other)
  np.testing.assert_array_equal(ours.map, april.map)
  np.testing.assert_array_equal(ours.score, april.score)


@pytest.mark.slow
def test_images_of_another_group_weigh_nothing(shell):
  cfg = configured(score__text='precise')
  context, (features, batch) = random_context(np.random.default_rng(0), cfg), random_inputs(cfg)
  params = init(shell, cfg)
  run = lambda parts, features, batch: step({k: params[k] for k in parts}, context, features, batch, None,
                                            clip=shell, cfg=cfg)
  (total, _), both = run(('efa0', 'efa1'), features, batch)
  sums = 0
  for name, rows in (('efa0', np.array([0, 2, 3])), ('efa1', np.array([1]))):
    (alone, _), gradient = run((name,), *jax.tree.map(lambda x, rows=rows: x[rows], (features, batch)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient[name], both[name])
    sums += float(alone)
  assert float(total) == pytest.approx(sums, rel=1e-5)


@pytest.mark.slow
def test_literal_alpha_drops_the_normal_pixels(shell):
  both, literal = (configured(score__text='precise', loss__alpha=alpha) for alpha in ('both1', 'literal'))
  context, (features, batch) = random_context(np.random.default_rng(0), both), random_inputs(both)
  batch['mask'] = jnp.zeros_like(batch['mask'])
  params = init(shell, both)
  focal = lambda cfg: float(loss(params, context, features, batch, None, clip=shell, cfg=cfg)[1]['loss_focal'])
  assert focal(both) > 0.1 and focal(literal) == 0


# The pair: RPL


@pytest.mark.slow
def test_template_words_without_deep_tokens_are_the_plain_text(clip):
  """Seven trained words hold 'There is a damaged in the photo'; the other text's eighth token remains a word."""
  cfg = configured(rpl__n_ctx=7, rpl__deep_len=0)
  prompt, names = init(clip, cfg)['rpl0'], 'leather mesh'
  assert list(prompt) == ['words']
  ids = clip.tokenize([f'{form.format("")} leather mesh.' for form in prompts.FUZZY_TEMPLATES['there_is']])
  plain = jax.jit(lambda p: clip.text(p, clip.embed(p, ids), clip.eot(ids)))(clip.params)
  run = jax.jit(lambda prompt, p, cfg: method._encode_pair(prompt, p, names, clip, cfg), static_argnames='cfg')
  np.testing.assert_allclose(run(prompt, clip.params, cfg=cfg), plain, atol=1e-5)
  longer = configured(rpl__n_ctx=7)
  inserted = run(init(clip, longer)['rpl0'], clip.params, cfg=longer)
  assert np.abs(inserted - plain).max() > 1e-3


@pytest.mark.slow
def test_words_start_as_the_template_and_the_others_at_random(clip):
  normal, abnormal = init(clip, configured())['rpl0']['words']
  ids = clip.tokenize(['There is not a damaged in the photo', 'There is a damaged in the photo'])
  embedded = np.asarray(clip.embed(clip.params, ids))
  np.testing.assert_array_equal(normal[:8], embedded[0, 1:9])
  np.testing.assert_array_equal(abnormal[:7], embedded[1, 1:8])
  assert np.std(normal[8:]) == pytest.approx(0.02, rel=0.2) and np.abs(normal[8:] - abnormal[8:]).min() > 0
  random = init(clip, configured(rpl__init='random'))['rpl0']
  assert np.std(random['words']) == pytest.approx(0.02, rel=0.1)
  assert random['deep'].shape == (3, 2, 4, WIDTH)


@pytest.fixture(scope='module')
def rpl(clip):
  """(params, context, features, batch) of RPL with its defaults; T' is that of a few texts."""
  cfg = configured()
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(method.ENSEMBLES, 'april', FEW)
    context = precomputed(clip, cfg)
  return ({'rpl0': init(clip, cfg)['rpl0']}, context, *random_inputs(cfg))


@pytest.mark.slow
def test_the_two_texts_differ_and_both_prompts_are_trained(clip, shell, rpl):
  params, context, features, batch = rpl
  cfg = configured()
  tx = optimizers.make_tx(cfg.optim)
  one_step = train.make_step(functools.partial(method.loss, clip=shell, cfg=cfg), tx)
  _, gradient = step(params, context, features, batch, None, clip=shell, cfg=cfg)
  assert jax.tree.all(jax.tree.map(lambda x: bool((jnp.abs(x).max((-1, -2)) > 0).all()), gradient))
  state, _ = one_step(train.initial(params, tx, 0), context, features, batch)
  encode_pair = jax.jit(lambda prompt, p: method._encode_pair(prompt, p, 'leather mesh', shell, cfg))
  for before_or_after in (params, state.params):
    normal, abnormal = unit(np.asarray(encode_pair(before_or_after['rpl0'], clip.params)))
    assert normal @ abnormal < 0.9999


@pytest.mark.slow
def test_overwriting_the_end_of_a_text_is_refused(clip):
  cfg = configured(rpl__deep='overwrite', rpl__deep_len=20, rpl__names='object', rpl__deep_shared=True)
  prompt = init(clip, cfg)['rpl0']
  with pytest.raises(ValueError, match=r"rpl\.deep_len=20 .* end of a text at 1\d; set rpl\.deep='insert'"):
    method._encode_pair(prompt, clip.params, 'object', clip, cfg)


@pytest.mark.slow
def test_the_regulariser_is_a_term_of_its_own_and_counts(shell, rpl):
  params, context, features, batch = rpl
  run = lambda **changes: jax.device_get(loss(params, context, features, batch, None, clip=shell,
                                              cfg=configured(**changes)))
  total, terms = run()
  assert set(terms) == {'loss_cls', 'loss_text'}
  assert total == pytest.approx(terms['loss_cls'] + terms['loss_text'])
  assert terms['loss_text'] / terms['loss_cls'] > 1e-3
  assert run(rpl__lambda_text=100.)[1]['loss_text'] == pytest.approx(100 * terms['loss_text'], rel=1e-5)
  assert run(rpl__lambda_text=float(EMBED))[1]['loss_text'] == pytest.approx(
    run(rpl__reduction='sum')[1]['loss_text'], rel=1e-5)
  assert run(rpl__lambda_text=0.)[1]['loss_text'] == 0
  assert terms['loss_text'] <= 2 * 4 / EMBED


@pytest.mark.slow
def test_the_prior_does_not_change_in_training(clip, shell, rpl):
  params, context, features, batch = rpl
  cfg = configured()
  tx = optimizers.make_tx(cfg.optim)
  one_step = train.make_step(functools.partial(method.loss, clip=shell, cfg=cfg), tx)
  before, state = np.array(context.text_features['prior']), train.initial(params, tx, 0)
  for _ in range(2):
    state, metrics = one_step(state, context, features, batch)
  np.testing.assert_array_equal(context.text_features['prior'], before)
  text = unit(np.asarray(method._encode_pair(state.params['rpl0'], clip.params, ' '.join(NAMES), clip, cfg)))
  after = loss(state.params, context, features, batch, None, clip=shell, cfg=cfg)[1]['loss_text']
  assert float(after) == pytest.approx(((text - before[0]) ** 2).sum() / EMBED, rel=1e-4)
  assert float(after) != float(metrics['loss_text'])


@pytest.mark.slow
def test_a_pair_for_each_group_is_trained_and_weighted_by_group(clip, shell, few):
  cfg = configured(rpl__k=0)
  params, context, (features, batch) = init(clip, cfg), precomputed(clip, cfg), random_inputs(cfg)
  assert [k for k in params if k.startswith('rpl')] == ['rpl0', 'rpl1']
  own = lambda cls: float(loss({'rpl1': params['rpl1']}, context, features._replace(cls=cls), batch, None, clip=shell,
                               cfg=cfg)[1]['loss_cls'])
  cls = features.cls
  assert own(cls) == own(cls.at[0].set(-cls[0])) != own(cls.at[1].set(-cls[1]))  # row 1 alone is of group 1
  texts = encode_text(params, clip, cfg)
  assert texts['image'].shape == (1, 2, 2, EMBED)
  batch['category'] = jnp.array([0, 1, 1, 0])
  out = predict(params, Context(None, texts), features, batch, clip=shell, cfg=cfg).score
  share = np.asarray(method._group_weights(features, texts['near'][batch['category']], cfg.efa.scale))
  logits = np.einsum('be,pse->bps', unit(np.asarray(features.cls)), texts['image'][0]) / cfg.rpl.tau
  each = 1 / (1 + np.exp(logits[..., 0] - logits[..., 1]))
  np.testing.assert_allclose(out, (share * each).sum(1), rtol=1e-4)


@pytest.mark.slow
def test_the_score_is_the_pairs_and_may_take_the_maps_peak(shell):
  cfg, peaked, cool = configured(), configured(rpl__add_map_max=True), configured(rpl__tau=0.1)
  rng = np.random.default_rng(0)
  texts, (features, batch) = random_texts(rng, cfg), random_inputs(cfg)
  batch['category'] = jnp.zeros(4, int)
  params = init(shell, configured(score__text='precise'))
  run = lambda cfg: jax.device_get(predict(params, Context(None, texts), features, batch, clip=shell, cfg=cfg))
  out, with_peak = run(cfg), run(peaked)
  logits = np.einsum('be,se->bs', unit(np.asarray(features.cls)), texts['image'][0, 0])
  for tau, score in ((0.01, out.score), (0.1, run(cool).score)):
    np.testing.assert_allclose(score, 1 / (1 + np.exp((logits[:, 0] - logits[:, 1]) / tau)), rtol=1e-4)
  np.testing.assert_allclose(with_peak.score, out.score + out.map.max((1, 2)) / 2, rtol=1e-5)


# Bad keys


@pytest.mark.parametrize('changes, message', [
  (dict(layers=(2, 7)), r'\(2, 7\)'), (dict(act='relu'), "act='relu'"), (dict(temperature=0.0), r'temperature=0\.0'),
  (dict(prompt__ensemble='own'), r"prompt\.ensemble='own' .* april, winclip, clipad"),
  (dict(csp__points='words'), r"csp\.points='words'"), (dict(csp__kmax=0), r'csp\.kmax=0'),
  (dict(stack__test_form='all'), r"stack\.test_form='all'"), (dict(rpl__k=2), r'rpl\.k=2 .* 0, 1'),
  (dict(efa__scale=0.0), r'efa\.scale=0\.0'), (dict(loss__alpha='1'), r"loss\.alpha='1' .* both1, literal"),
  (dict(rpl__n_ctx=0), r'rpl\.n_ctx=0 .*\[1, 74\]'), (dict(rpl__depth=5), r'rpl\.depth=5 .*\[0, 4\]'),
  (dict(rpl__epochs=0), r'rpl\.epochs=0'), (dict(rpl__tau=0.0), r'rpl\.tau=0\.0'),
  (dict(rpl__lambda_text=-1.0), r'rpl\.lambda_text=-1\.0'), (dict(score__text=''), r"score\.text=''"),
  (dict(map__sigma=-1.0), r'map\.sigma=-1\.0'), (dict(mosaic=2.0), r'mosaic=2\.0')])
def test_keys_out_of_range_are_refused(shell, changes, message):
  with pytest.raises(ValueError, match=message):
    method_checks.check(method, shell, configured(**changes))
