"""SDP: the whole pipeline against its transcription, its known pitfalls, and bad keys."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import method_checks
import numpy as np
import pytest
from golden import record_sdp
from scipy.ndimage import gaussian_filter

from zsad_jax.clip import encoder
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import Features, FeatureSpec, SideStream, Tap
from zsad_jax.configs import sdp as config
from zsad_jax.methods import Context, Prediction
from zsad_jax.methods import sdp as method
from zsad_jax.methods.parts import dual_path, prompts, representative_vectors
from zsad_jax.ops import maps

pytestmark = pytest.mark.usefixtures('highest_precision')
DIMS = record_sdp.DIMS
SIZE = DIMS.image_size
BPLUS = clip_lib.Clip(clip_lib.ARCHS['vit_b16_plus_240'], 240, params=None)
predict = jax.jit(method.predict, static_argnames=('clip', 'cfg'))


def configured(arg=None, **changes):
  return method_checks.with_keys(config.get_config(arg), **changes)


def small(**changes):
  """The config for the golden's tower."""
  return configured(**{'image_size': SIZE, 'map__sigma': float(record_sdp.SIGMA), **changes})


@pytest.fixture(scope='module')
def clip():
  arch = clip_lib.Arch('small', DIMS.embed, clip_lib.Vision(SIZE, DIMS.patch, DIMS.width, DIMS.layers, DIMS.heads),
                       clip_lib.Text(DIMS.context, DIMS.vocab, DIMS.text_width, DIMS.text_layers, DIMS.text_heads),
                       DIMS.activation)
  return clip_lib.from_state_dict(arch, record_sdp.inputs()[0])


@pytest.fixture(scope='module')
def shell(clip):
  return dataclasses.replace(clip, params=None)


@pytest.fixture(scope='module')
def golden():
  with np.load(record_sdp.HERE / 'sdp.npz') as file:
    return dict(file)


def run(clip, cfg):
  """The Prediction of the golden's images, from text vectors to maps."""
  _, images, category, texts, _, _ = record_sdp.inputs()
  features = encoder.encode(clip, method.feature_spec(clip, cfg))(clip.params, images)
  text = jnp.asarray(method.reduce_text_features(texts, 'mvtec_ad', cfg=cfg))
  return predict({}, Context(None, text), features, {'category': jnp.asarray(category)},
                 clip=dataclasses.replace(clip, params=None), cfg=cfg)


def predict_one(cfg, features, text, clip=BPLUS):
  """The Prediction of images of one category, whose texts are [2, E]."""
  return predict({}, Context(None, jnp.asarray(text, jnp.float32)[None]), features, {'category': jnp.zeros(1, int)},
                 clip=clip, cfg=cfg)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


# The pipeline


def test_the_pipeline_against_the_recorded_transcription(clip, golden):
  out = run(clip, small())
  np.testing.assert_allclose(out.map, golden['sdp'], atol=1e-5)
  np.testing.assert_allclose(out.score, golden['probability'], atol=1e-4)
  assert np.ptp(golden['sdp']) > 0.02


@pytest.mark.slow
def test_without_the_alias_it_is_the_papers(clip, golden):
  out = run(clip, small(tap_alias=False))
  np.testing.assert_allclose(out.map, golden['sdp_paper'], atol=1e-5)
  assert np.abs(golden['sdp_paper'] - golden['sdp']).max() > 1e-4
  np.testing.assert_array_equal(golden['probability_paper'], golden['probability'])  # the last tap is the same


def test_the_transcription_still_matches_the_golden(golden, torch):
  recorded = record_sdp.record()
  assert recorded.keys() == golden.keys()
  for name, value in recorded.items():
    np.testing.assert_allclose(value, golden[name], atol=2e-6, err_msg=name)


# Features


def test_stages_of_the_published_model():
  spec = method.feature_spec(BPLUS, configured())
  assert spec.sides == (SideStream('sdp', 'vv', first_block=1, residual_base=False, reset_every=3, ffn=False),)
  assert (spec.cls, spec.read, spec.crops) == ('ln_post_proj', 'ln_post_proj', 0)
  assert spec.taps == (
    Tap('sdp', 3), Tap('clip', 4, 'attention', 'cls'), Tap('sdp', 6), Tap('clip', 7, 'attention', 'cls'),
    Tap('sdp', 9), Tap('clip', 10, 'attention', 'cls'), Tap('sdp', 12))
  assert encoder.features_shape(BPLUS, spec).taps['sdp/3/block'] == (225, 640)
  plain = method.feature_spec(BPLUS, configured(tap_alias=False)).taps
  assert plain[::2] == spec.taps[::2] and plain[1] == Tap('clip', 3, token='cls')
  large = clip_lib.Clip(clip_lib.ARCHS['vit_l14'], 224, params=None)
  assert method.feature_spec(large, configured(layers=(6, 12, 18, 24))).sides[0].reset_every == 6


def test_a_tap_inside_a_stage_gives_the_stages_end_as_the_released_code_does():
  vision = BPLUS.arch.vision
  inside = dual_path.stages(vision, configured(layers=(4, 5)))
  assert [stage.patches for stage in inside] == [Tap('sdp', 6)] * 2
  assert [stage.cls.block for stage in inside] == [5, 6]
  assert len(method.feature_spec(BPLUS, configured(layers=(4, 5))).taps) == 3  # read once
  exact = dual_path.stages(vision, configured(layers=(4, 5), tap_alias=False))
  assert [stage.patches for stage in exact] == [Tap('sdp', 4), Tap('sdp', 5)]
  assert dual_path.stages(vision, configured(layers=(12, 3)))[-1].patches == Tap('sdp', 12)  # by depth, not as listed


@pytest.mark.slow
def test_a_stage_adds_up_its_own_attention_from_zero():
  """With attention that adds exactly one a block, the second stream counts 1 2 3 1 2 3."""
  arch = clip_lib.Arch('deep', 8, clip_lib.Vision(8, 4, 8, 12, 2), clip_lib.Text(4, 5, 8, 1, 2))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda s: 0.1 * rng.standard_normal(s.shape, np.float32), clip_lib.template(arch))
  out = params['visual']['blocks']['attn']['out']
  out['kernel'], out['bias'] = np.zeros_like(out['kernel']), np.ones_like(out['bias'])
  deep = clip_lib.build(arch, params)
  side, = dual_path.feature_spec(clip_lib.Clip(arch, 8, None), configured(image_size=8)).sides
  spec = FeatureSpec(8, taps=tuple(Tap('sdp', block) for block in range(1, 13)), sides=(side,), read='none')
  taps = encoder.encode(deep, spec)(deep.params, rng.standard_normal((1, 8, 8, 3), np.float32)).taps
  assert [float(taps[f'sdp/{block}/block'].mean()) for block in range(1, 13)] == [1, 2, 3] * 4
  based = spec._replace(sides=(side._replace(residual_base=True),))
  with_base = encoder.encode(deep, based)(deep.params, np.ones((1, 8, 8, 3), np.float32)).taps['sdp/3/block']
  assert np.abs(with_base - 3).max() > 0.01


@pytest.mark.slow
def test_the_last_stages_class_token_is_clips_own(clip):
  cfg = small(layers=(3, 12))
  stages = dual_path.stages(clip.arch.vision, cfg)
  assert stages[-1].cls is None and stages[0].cls is not None
  images = record_sdp.inputs()[1][:1]
  features = encoder.encode(clip, method.feature_spec(clip, cfg))(clip.params, images)
  own = encoder.encode(clip, FeatureSpec(SIZE, cls='ln_post_proj'))(clip.params, images).cls
  np.testing.assert_allclose(features.cls, own, atol=1e-5)
  # The deepest listed tap classifies, also if that is not the last block.
  text = jnp.asarray(unit(np.random.default_rng(0).standard_normal((2, DIMS.embed))), jnp.float32)
  probability = dual_path.probability(features, text, clip.arch.vision, small(layers=(3,)))
  token = unit(np.asarray(features.taps['clip/4/attention/cls'][:, 0]))
  odds = 100 * token @ np.asarray(text[1] - text[0])
  np.testing.assert_allclose(probability, 1 / (1 + np.exp(-odds)), atol=1e-4)


def test_a_resnet_is_read_at_its_pool():
  resnet = clip_lib.Clip(clip_lib.ARCHS['rn50'], 224, params=None)
  spec = method.feature_spec(resnet, configured(layers=(4,), image_size=224))
  assert spec.taps == (Tap('clip', 4, 'pool_cosine'), Tap('clip', 4, 'pool_vv', 'cls'))
  assert (spec.sides, spec.cls, spec.read) == ((), 'proj', 'none')
  shapes = encoder.features_shape(resnet, spec)
  assert shapes.taps == {'clip/4/pool_cosine': (49, 1024), 'clip/4/pool_vv/cls': (1, 1024)}
  assert method.feature_spec(resnet, configured(layers=(4,), path='direct')).taps == (Tap('clip', 4, 'pool'),)


# Texts


def test_states_and_templates_are_the_papers():
  normal, abnormal = prompts.clip_ad_states('mvtec_ad')
  assert (len(normal), len(abnormal), len(prompts.WINCLIP_TEMPLATES)) == (9, 10, 22)
  assert '{}' not in normal and 'imperfect {}' in abnormal and '{} without contamination' in normal
  assert prompts.clip_ad_states('visa/1cls') == prompts.clip_ad_states('isic2016') == (normal, abnormal)


@pytest.mark.parametrize('dataset, words', [
  ('head_ct', ['hemorrhage']), ('brain_mri', ['tumor']), ('cvc_clinicdb', ['polypus', 'polyp'])])
def test_medical_states_name_the_finding_instead_of_scratches_and_cracks(dataset, words):
  for states, form in zip(prompts.clip_ad_states(dataset), ('without', 'with')):
    assert not any('scratch' in state or 'crack' in state for state in states)
    assert list(states[-len(words):]) == [f'{{}} {form} {word}' for word in words]
    assert len(states) == (9 if form == 'without' else 10) - 2 + len(words)
  assert prompts.clip_ad_states(dataset, ('burn',))[1][-1] == '{} with burn'


@pytest.mark.slow
def test_every_text_is_encoded_before_texts_are_reduced():
  tiny = clip_lib.load('tiny', image_size=64)
  cfg = configured('demo', data__target='brain_mri')
  encode_text = functools.partial(method.encode_text, {}, names=('brain',), clip=tiny, cfg=cfg)
  normal, abnormal = jax.jit(encode_text)(tiny.params)
  assert (normal.shape, abnormal.shape) == ((1, 8 * 22, 128), (1, 9 * 22, 128))
  texts = [t.format('brain ct with tumor') for t in prompts.WINCLIP_TEMPLATES]
  encode = jax.jit(lambda params, ids: tiny.text(params, tiny.embed(params, ids), tiny.eot(ids)))
  want = unit(np.asarray(encode(tiny.params, tiny.tokenize(texts)[:, :24])))
  np.testing.assert_allclose(abnormal[0, -22:], want, atol=3e-6)
  text = method.reduce_text_features(jax.device_get((normal, abnormal)), 'brain_mri', cfg=cfg)
  assert text.shape == (1, 2, 128) and text.dtype == np.float32
  np.testing.assert_array_equal(text[0, 1], representative_vectors.represent(abnormal[0], cfg.rvs, 'brain_mri'))


# Maps and scores


@pytest.mark.slow
def test_cosines_in_the_weights_of_texts_are_multiplied_by_prob_scale_alone():
  text = jnp.eye(2)
  features, cls = jnp.array([[[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]]]), jnp.array([[0.6, 0.8]])
  surgery = maps.surgery(features, cls, text, configured().surgery.prob_scale)[0, :, 1]
  np.testing.assert_allclose(surgery, [0.1697676, -0.4501660, 0.5498340], atol=1e-6)
  np.testing.assert_allclose(maps.surgery(features, cls, text, 2.0)[0, :, 1], [0.2381627, -0.4013123, 0.5986877],
                             atol=1e-6)


def planted_patches(grid, values):
  """Features of one stage (3 of 12 blocks) whose class token is as near to either text; similarity = values / 2."""
  angle = np.pi / 4 + np.arcsin(np.asarray(values, float) / 2 ** 0.5)
  patches = np.stack([np.cos(angle), np.sin(angle)], -1).reshape(1, grid * grid, 2)
  cls = jnp.full((1, 1, 2), 0.5)
  return Features(cls[:, 0], {'sdp/3/block': jnp.asarray(patches, jnp.float32), 'clip/4/attention/cls': cls})


def test_maps_are_upsampled_between_half_pixels():
  ramp = np.broadcast_to(np.arange(15) / 20, (15, 15))
  cfg = configured(layers=(3,), map__sigma=0.0, score_norm='none')
  out = predict_one(cfg, planted_patches(15, ramp), np.eye(2)).map[0]
  np.testing.assert_allclose(out[0, :8], np.zeros(8), atol=1e-6)  # still the corner patch
  np.testing.assert_allclose(out[120, 8:232], (np.arange(224) + 0.5) / 16 / 20 / 2, atol=1e-5)


def test_the_maximum_is_the_smoothed_maps():
  hot = np.zeros((15, 15))
  hot[7, 7] = 0.9
  cfg = configured(layers=(3,), score_norm='none')
  out = predict_one(cfg, planted_patches(15, hot), np.eye(2))
  sharp = maps.upsample(jnp.asarray(hot[None] / 2, jnp.float32), 240)[0]
  blurred = gaussian_filter(np.asarray(sharp), 8)
  np.testing.assert_allclose(out.map[0], blurred, atol=1e-5)
  assert float(out.score[0]) == pytest.approx(0.5 + blurred.max(), abs=1e-4)
  assert blurred.max() < 0.8 * sharp.max()


def test_a_category_is_stretched_by_itself_and_a_constant_one_becomes_0():
  rng = np.random.default_rng(0)
  for shift in (0, 100):
    out = Prediction(shift + rng.random(5).astype(np.float32), 3 * shift + rng.random((5, 4, 4), np.float32))
    score = method.postprocess_category(out, cfg=configured()).score
    peak = out.map.max((1, 2))
    stretch = lambda x: (x - x.min()) / (x.max() - x.min())
    np.testing.assert_allclose(score, stretch(out.score) + stretch(peak), atol=1e-5)
  flat = Prediction(np.full(3, 0.7, np.float32), np.ones((3, 4, 4), np.float32))
  assert method.postprocess_category(flat, cfg=configured()).score.tolist() == [0, 0, 0]
  assert method.postprocess_category(flat, cfg=configured(score_norm='none')) is flat
  assert method.postprocess_category(flat, cfg=configured(score_norm='no_map')) is flat


@pytest.mark.slow
def test_the_plain_sum_scores_an_image_by_itself(clip):
  none, stretched = run(clip, small(score_norm='none')), run(clip, small())
  without_map = run(clip, small(score_norm='no_map')).score
  np.testing.assert_array_equal(without_map, stretched.score)
  np.testing.assert_allclose(none.score, stretched.score + stretched.map.max((1, 2)), atol=1e-6)
  np.testing.assert_array_equal(none.map, stretched.map)
  assert method.single_image_overrides(small()) == {'score_norm': 'none'}
  assert method.single_image_overrides(small(score_norm='no_map')) == {}


def test_direct_compares_clips_own_last_patches(clip, shell):
  cfg = small(path='direct', map__sigma=0.0)
  spec = method.feature_spec(clip, cfg)
  assert spec.taps == (Tap('clip', 12),) and spec.sides == ()
  rng = np.random.default_rng(0)
  tokens, text = rng.standard_normal((1, 16, DIMS.embed)), unit(rng.standard_normal((1, 2, DIMS.embed)))
  features = Features(jnp.ones((1, DIMS.embed)), {'clip/12/block': jnp.asarray(tokens, jnp.float32)})
  out = predict_one(cfg, features, text[0], clip=shell)
  cosine = unit(tokens[0]) @ text[0].T
  np.testing.assert_allclose(out.map[0, 0, 0], (cosine[0, 1] - cosine[0, 0]) / 2, atol=1e-5)


# Bad keys, and the recipe


@pytest.mark.parametrize('changes, message', [
  (dict(layers=(3, 13)), r'\(3, 13\)'), (dict(layers=(3, 3)), r'\(3, 3\)'),
  (dict(layers=()), 'layers'),
  (dict(stage=5), r'stage=5 must divide .*\(12\)'), (dict(stage=-1), 'stage=-1'),
  (dict(path='shortcut'), "path='shortcut' .* surgery, direct"),
  (dict(score_norm='all'), "score_norm='all' .* class_minmax, none, no_map"),
  (dict(temperature=0.0), r'temperature=0\.0'), (dict(surgery__prob_scale=-1.0), r'surgery\.prob_scale=-1\.0'),
  (dict(map__sigma=-1.0), r'map\.sigma=-1\.0'), (dict(rvs__method='median'), r"rvs\.method='median'"),
  (dict(layers=(3,), multicrop__recipe='clip_ad'), r"multicrop\.recipe='clip_ad' .*include the last block, 12")])
def test_keys_out_of_range_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    method_checks.check(method, BPLUS, configured(**changes))


def test_six_blocks_have_no_quarter():
  six = clip_lib.Clip(clip_lib.ARCHS['tiny'], 112, params=None)
  with pytest.raises(ValueError, match=r'stage=0 must divide the number of blocks of tiny \(6\)'):
    method.feature_spec(six, configured(layers=(6,), image_size=112))
  assert method.feature_spec(six, configured('demo')).sides[0].reset_every == 2


def test_defaults_are_the_released_ones():
  c = configured()
  assert (c.clip, c.image_size, c.layers) == ('vit_b16_plus_240:laion400m_e31', 240, (3, 6, 9, 12))
  assert c.prompt.raw_names and prompts.compose(('{}',), ('{}',), 'metal_nut', raw_names=True) == ['metal_nut']
  assert (c.tap_alias, c.score_norm, c.map.sigma, c.surgery.prob_scale) == (True, 'class_minmax', 8, 1)
  assert c.rvs.method == 'dbscan' and c.rvs.dbscan.to_dict() == {'default': (0.5, 15), 'visa': (1.5, 25)}
