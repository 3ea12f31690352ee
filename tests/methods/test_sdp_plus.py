"""SDP+: the whole pipeline and its loss against their transcription, its known pitfalls, its recipe and bad keys."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import method_checks
import numpy as np
import optax
import pytest
from golden import record_sdp

from zsad_jax.clip import encoder
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.archs import resnet_vision
from zsad_jax.clip.feature_spec import Features, Tap
from zsad_jax.configs import sdp_plus as config
from zsad_jax.engine import optimizers
from zsad_jax.methods import Context
from zsad_jax.methods import sdp_plus as method

pytestmark = pytest.mark.usefixtures('highest_precision')
DIMS = record_sdp.DIMS
SIZE = DIMS.image_size
BPLUS = clip_lib.Clip(clip_lib.ARCHS['vit_b16_plus_240'], 240, params=None)
RN50 = clip_lib.Clip(clip_lib.ARCHS['rn50'], 224, params=None)
predict = jax.jit(method.predict, static_argnames=('clip', 'cfg'))
step = jax.jit(jax.value_and_grad(method.loss, has_aux=True), static_argnames=('clip', 'cfg'))


def configured(arg=None, **changes):
  return method_checks.with_keys(config.get_config(arg), **changes)


def small(**changes):
  return configured(**{'image_size': SIZE, 'map__sigma': float(record_sdp.SIGMA), **changes})


@pytest.fixture(scope='module')
def clip():
  arch = clip_lib.Arch('small', DIMS.embed, clip_lib.Vision(SIZE, DIMS.patch, DIMS.width, DIMS.layers, DIMS.heads),
                       clip_lib.Text(DIMS.context, DIMS.vocab, DIMS.text_width, DIMS.text_layers, DIMS.text_heads),
                       DIMS.activation)
  return clip_lib.from_state_dict(arch, record_sdp.inputs()[0])


@pytest.fixture(scope='module')
def golden():
  with np.load(record_sdp.HERE / 'sdp.npz') as file:
    return dict(file)


def golden_inputs(clip, cfg):
  """(params, context, features, batch, clip without weights) of the golden."""
  _, images, category, texts, layers, masks = record_sdp.inputs()
  shell = dataclasses.replace(clip, params=None)
  features = encoder.encode(clip, method.feature_spec(clip, cfg))(clip.params, images)
  context = Context(None, jnp.asarray(method.reduce_text_features(texts, 'mvtec_ad', cfg=cfg)))
  batch = dict(mask=jnp.asarray(masks), category=jnp.asarray(category), label=jnp.array([0, 1, 0]),
               valid=jnp.ones(len(images), bool))
  return method.load_released(layers, clip=shell, cfg=cfg), context, features, batch, shell


# The pipeline


def test_the_pipeline_and_its_gradients_against_the_recorded_transcription(clip, golden):
  cfg = small()
  params, context, features, batch, shell = golden_inputs(clip, cfg)
  out = predict(params, context, features, batch, clip=shell, cfg=cfg)
  np.testing.assert_allclose(out.map, golden['sdp_plus'], atol=1e-4)
  np.testing.assert_allclose(out.score, golden['probability'], atol=1e-4)
  (total, terms), grads = step(params, context, features, batch, None, clip=shell, cfg=cfg)
  assert float(total) == pytest.approx(float(golden['loss']), rel=1e-5)
  assert float(terms['loss_focal'] + terms['loss_dice']) == pytest.approx(float(total), rel=1e-6)
  for i, block in enumerate(cfg.layers):
    want = golden[f'grad_{i}']
    np.testing.assert_allclose(grads[f'block{block}']['affine1']['kernel'], want, atol=1e-4 * np.abs(want).max())


@pytest.mark.slow
def test_without_the_alias_the_layers_read_the_blocks_own_outputs(clip, golden):
  cfg = small(tap_alias=False)
  params, context, features, batch, shell = golden_inputs(clip, cfg)
  out = predict(params, context, features, batch, clip=shell, cfg=cfg)
  np.testing.assert_allclose(out.map, golden['sdp_plus_paper'], atol=1e-4)
  assert np.abs(golden['sdp_plus_paper'] - golden['sdp_plus']).max() > 0.05


# Features and layers


def test_layers_read_raw_tokens_of_clips_own_stream():
  spec = method.feature_spec(BPLUS, configured())
  assert spec.taps[-4:] == (Tap('clip', 4, 'attention', read='none'), Tap('clip', 7, 'attention', read='none'),
                            Tap('clip', 10, 'attention', read='none'), Tap('clip', 12, read='none'))
  shapes = encoder.features_shape(BPLUS, spec)
  assert shapes.taps['clip/4/attention/none'] == (225, 896) and shapes.taps['sdp/3/block'] == (225, 640)
  assert method.feature_spec(BPLUS, configured(tap_alias=False)).taps[-4] == Tap('clip', 3, read='none')


@pytest.mark.slow
def test_every_tap_has_an_affine_layer_initialised_as_torch_does():
  params = method.init(jax.random.key(0), BPLUS, configured())
  assert sum(x.size for x in jax.tree.leaves(params)) == 4 * (896 * 640 + 640)
  assert list(params) == ['block3', 'block6', 'block9', 'block12']
  for x in jax.tree.leaves(params):
    assert np.abs(x).max() <= np.float32(896 ** -0.5) and np.std(x) == pytest.approx((896 * 3) ** -0.5, rel=0.06)
  kernels = [layer['affine1']['kernel'].ravel() for layer in params.values()]
  assert np.abs(np.corrcoef(kernels) - np.eye(4)).max() < 0.01


def test_a_resnets_taps_have_widths_and_grids_of_their_own():
  cfg = configured(layers=(1, 2, 3, 4), image_size=224)
  spec = method.feature_spec(RN50, cfg)
  params = jax.eval_shape(lambda: method.init(jax.random.key(0), RN50, cfg))
  assert [params[f'block{b}']['affine1']['kernel'].shape for b in cfg.layers] == [
    (256, 1024), (512, 1024), (1024, 1024), (2048, 1024)]
  shapes = encoder.features_shape(RN50, spec)
  assert [shapes.taps[f'clip/{b}/block/none'][0] for b in cfg.layers] == [56 ** 2, 28 ** 2, 14 ** 2, 7 ** 2]
  features = Features(jax.ShapeDtypeStruct((2, 1024), np.float32), {
    name: jax.ShapeDtypeStruct((2, *shape), np.float32) for name, shape in shapes.taps.items()})
  out = jax.eval_shape(functools.partial(method.predict, clip=RN50, cfg=cfg), params,
                       Context(None, jax.ShapeDtypeStruct((1, 2, 1024), np.float32)), features,
                       {'category': jax.ShapeDtypeStruct((2,), np.int32)})
  assert out.map.shape == (2, 224, 224) and out.score.shape == (2,)


@pytest.mark.slow
def test_a_small_resnet_from_images_to_maps():
  """SDP's half is feature surgery on the pool's patches, whose class token classifies too."""
  arch = clip_lib.Arch('small', 12, resnet_vision(64, 4, (1, 1, 1, 1), head_width=32), clip_lib.Text(4, 5, 8, 1, 2))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda s: np.float32(0.3) + 0.3 * rng.random(s.shape, np.float32), clip_lib.template(arch))
  params['visual'] = jax.tree.map(lambda x: x * rng.choice(np.float32([-1, 1]), x.shape), params['visual'])
  params['visual'] = jax.tree_util.tree_map_with_path(
    lambda path, x: np.abs(x) + 1 if path[-1].key == 'var' else x, params['visual'])
  cfg = configured(layers=(1, 2, 3, 4), image_size=64, map__sigma=0.0, score_norm='none')
  small = clip_lib.build(arch, params, image_size=64)
  shell = dataclasses.replace(small, params=None)
  images = rng.standard_normal((2, 64, 64, 3), np.float32)
  features = encoder.encode(small, method.feature_spec(small, cfg))(small.params, images)
  text = rng.standard_normal((1, 2, 12)).astype(np.float32)
  text /= np.linalg.norm(text, axis=-1, keepdims=True)
  zero = jax.tree.map(jnp.zeros_like, method.init(jax.random.key(0), small, cfg))
  out = predict(zero, Context(None, jnp.asarray(text)), features, {'category': jnp.zeros(2, int)}, clip=shell, cfg=cfg)
  unit = lambda x: np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True)
  cls = unit(features.taps['clip/4/pool_vv/cls'][:, 0]) @ text[0].T
  weights = 2 * np.exp(cls) / np.exp(cls).sum(-1, keepdims=True)
  cosine = unit(features.taps['clip/4/pool_cosine']) @ text[0].T  # [2, 4, 2]
  want = (weights[:, None, 1] * cosine[..., 1] - weights[:, None, 0] * cosine[..., 0]) / 2
  np.testing.assert_allclose(out.map[:, ::63, ::63].reshape(2, 4) - 4 * 0.5, want, atol=1e-5)
  probability = 1 / (1 + np.exp(-100 * (cls[:, 1] - cls[:, 0])))
  np.testing.assert_allclose(out.score, probability + out.map.max((1, 2)), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('relu', [False, True])
def test_deeper_mappings_are_chains(clip, relu):
  cfg = small(mapping__depth=3, mapping__relu=relu, mapping__hidden=5, layers=(12,))
  params = method.init(jax.random.key(0), clip, cfg)
  chain = params['block12']
  assert [layer['kernel'].shape for layer in chain.values()] == [(32, 5), (5, 5), (5, 16)]
  _, _, features, batch, shell = golden_inputs(clip, small())
  x = np.asarray(features.taps['clip/12/block/none'])
  for i, layer in enumerate(chain.values()):
    x = np.maximum(x, 0) if relu and i else x
    x = x @ np.asarray(layer['kernel']) + np.asarray(layer['bias'])
  text = np.random.default_rng(0).standard_normal((2, DIMS.embed)).astype(np.float32)
  odds = 100 * x / np.linalg.norm(x, axis=-1, keepdims=True) @ (text[1] - text[0])
  context = Context(None, jnp.asarray(text[None]))
  out = predict(params, context, features, batch, clip=shell,
                cfg=small(mapping__depth=3, mapping__relu=relu, mapping__hidden=5, layers=(12,), map__sigma=0.0))
  # SDP adds little to a saturated probability; corners are aligned.
  zero = predict(jax.tree.map(jnp.zeros_like, params), context, features, batch, clip=shell,
                 cfg=small(mapping__depth=3, layers=(12,), map__sigma=0.0)).map - 0.5
  np.testing.assert_allclose((out.map - zero)[:, 0, 0], 1 / (1 + np.exp(-odds[:, 0])), atol=1e-4)
  hidden = jax.eval_shape(lambda: method.init(jax.random.key(0), clip, small(mapping__depth=5)))['block3']
  assert [layer['kernel'].shape for layer in hidden.values()] == [(32, 16)] + [(16, 16)] * 4


# Maps


def trained_maps(logits, cfg):
  """The map of one image whose tap at `block` has these logits of the abnormal text, [15, 15], and no SDP."""
  taps, params = {}, {}
  for block, values in logits.items():
    angle = np.pi / 4 + np.arcsin(np.asarray(values, float) / 100 / 2 ** 0.5)
    tokens = np.stack([np.cos(angle), np.sin(angle)], -1).reshape(1, -1, 2)
    taps[f'clip/{block + 1}/attention/none'] = jnp.asarray(tokens, jnp.float32)
    params[f'block{block}'] = {'affine1': {'kernel': jnp.eye(2), 'bias': jnp.zeros(2)}}
    side = jnp.full((1, 225, 2), 0.5)
    taps |= {f'sdp/{block}/block': side, f'clip/{block + 1}/attention/cls': side[:, :1]}
  return predict(params, Context(None, jnp.eye(2)[None]), Features(jnp.full((1, 2), 0.5), taps),
                 {'category': jnp.zeros(1, int)}, clip=BPLUS, cfg=cfg).map[0]


@pytest.mark.slow
def test_every_taps_softmax_follows_upsampling_between_aligned_corners():
  cfg = configured(layers=(3, 6), map__sigma=0.0)
  flat = np.full((15, 15), 5.0)
  np.testing.assert_allclose(trained_maps({3: flat, 6: -flat}, cfg), np.ones((240, 240)), atol=1e-5)
  one = configured(layers=(3,), map__sigma=0.0)
  ramp = np.broadcast_to(np.arange(15) - 7.0, (15, 15))
  out = trained_maps({3: ramp}, one)
  want = 1 / (1 + np.exp(-(np.arange(240) * 14 / 239 - 7)))
  np.testing.assert_allclose(out[100], want, atol=1e-4)
  assert abs(out[0, 7] - out[0, 0]) > 1e-4  # with half-pixel centres it would still be the corner patch


# Recipe, released checkpoints and bad keys


def test_the_recipe():
  c = configured()
  assert dict(c.optim) == dict(lr=1e-4, b1=0.9, b2=0.999, eps=1e-8)
  assert (c.train.epochs, c.train.batch, c.train.shuffle, c.seed, c.temperature) == (5, 8, False, 42, 0.01)
  assert (c.data.aux, c.data.target, c.map.sigma, c.eval.oracle_epoch) == ('visa', 'mvtec_ad', 8, False)
  other = configured('visa')
  assert (other.data.aux, other.data.target, other.map.sigma) == ('mvtec_ad', 'visa', 2)
  tx, params, state = optimizers.make_tx(c.optim), {'w': jnp.zeros(1)}, None
  state, m, v, w = tx.init(params), 0.0, 0.0, 0.0
  for t, g in enumerate((2.0, -1.0), 1):
    updates, state = tx.update({'w': jnp.full(1, g)}, state, params)
    params = optax.apply_updates(params, updates)
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    w -= 1e-4 * (m / (1 - 0.9 ** t)) / ((v / (1 - 0.999 ** t)) ** 0.5 + 1e-8)
  assert float(params['w'][0]) == pytest.approx(w, rel=1e-5)


def test_texts_of_training_are_the_auxiliary_sets(clip):
  """VisA's clusters also if it is the auxiliary set, and the words of an auxiliary medical set."""
  tiny = clip_lib.load('tiny', image_size=64)
  cfg = configured('demo', data__aux='brain_mri', data__target='visa')
  shapes = lambda make: jax.tree.map(jnp.shape, jax.eval_shape(make, clip_lib.template('tiny')))
  precompute = functools.partial(method.precompute, names=('a', 'b'), clip=tiny, cfg=cfg)
  encode_text = functools.partial(method.encode_text, {}, names=('a', 'b'), clip=tiny, cfg=cfg)
  assert shapes(precompute) == Context(None, ((2, 8 * 22, 128), (2, 9 * 22, 128)))
  assert shapes(encode_text) == ((2, 9 * 22, 128), (2, 10 * 22, 128))
  texts, reduce = record_sdp.inputs()[3], functools.partial(method.reduce_text_features, cfg=cfg)
  assert np.abs(reduce(texts, 'visa') - reduce(texts, 'mvtec_ad')).max() > 1e-3


@pytest.mark.slow
def test_padding_and_unknown_masks_weigh_nothing(clip):
  cfg = small()
  params, context, features, batch, shell = golden_inputs(clip, cfg)
  run = lambda features, batch: float(step(params, context, features, batch, None, clip=shell, cfg=cfg)[0][0])
  two = jnp.array([True, True, False])
  half = jax.tree.map(lambda x: jnp.concatenate([x[:2], x[:1]]), (features, batch))
  assert run(features, {**batch, 'valid': two}) == pytest.approx(run(half[0], {**half[1], 'valid': two}), rel=1e-5)
  assert run(features, {**batch, 'has_mask': two}) == pytest.approx(run(features, {**batch, 'valid': two}), rel=1e-5)
  assert run(features, {**batch, 'valid': two}) != pytest.approx(run(features, batch), rel=1e-5)
  with pytest.raises(ValueError, match='masks are 16x16; the loss needs them at image_size 32'):
    method.loss(params, context, features, {**batch, 'mask': batch['mask'][:, ::2, ::2]}, None, clip=shell, cfg=cfg)


def test_released_checkpoints_are_read(clip):
  cfg = small()
  layers = record_sdp.inputs()[4]
  wrapped = {f'trainable_linearlayer.{name}': value for name, value in layers.items()}
  params = method.load_released(wrapped, clip=clip, cfg=cfg)
  shapes = jax.eval_shape(lambda: method.init(jax.random.key(0), clip, cfg))
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
  np.testing.assert_array_equal(params['block6']['affine1']['kernel'], layers['fc.1.weight'].T)
  wrong = {**layers, 'fc.4.bias': np.zeros(3), 'fc.0.bias': np.zeros(3)}
  del wrong['fc.2.bias']
  with pytest.raises(ValueError, match=r'missing fc\.2\.bias; unknown fc\.4\.bias \(3,\); fc\.0\.bias is \(3,\), not'):
    method.load_released(wrong, clip=clip, cfg=cfg)
  with pytest.raises(ValueError, match=r'mapping\.depth=3, but released checkpoints have 1 layer'):
    method.load_released(layers, clip=clip, cfg=small(mapping__depth=3))


@pytest.mark.parametrize('changes, message', [
  (dict(mapping__depth=0), r'mapping\.depth=0'), (dict(mapping__hidden=-1), r'mapping\.hidden=-1'),
  (dict(layers=(0, 3)), r'\(0, 3\)'), (dict(rvs__kde_bandwidth=0.0), r'rvs\.kde_bandwidth=0\.0')])
def test_keys_out_of_range_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    method_checks.check(method, BPLUS, configured(**changes))
