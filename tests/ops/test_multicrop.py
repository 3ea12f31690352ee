"""Multi-crop prediction: scores computed by hand, every method, and whole runs."""

import importlib
import json

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np
import pytest
from drawn_folders import draw

from zsad_jax import methods
from zsad_jax.clip import encoder
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import Features
from zsad_jax.configs import anomalyclip, april_gan, clip, common, winclip
from zsad_jax.experiment import experiment, setup
from zsad_jax.experiment.run import Run
from zsad_jax.methods import Context
from zsad_jax.ops import maps, multicrop

# Unit vectors by angle: cosines with the two texts, at 0 and 90 degrees, are cos and sin.
TEXT = np.eye(2, dtype=np.float32)


def keys(recipe='clip_ad', average='prob', resize=0):
  c = common.multicrop()
  c.recipe, c.average, c.resize = recipe, average, resize
  return mlc.FrozenConfigDict(c)


def at(*degrees):
  return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], -1).astype(np.float32)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def test_golden_score():
  """One image at 45 degrees, nine crops at 0 and one at 90: p = sigmoid((sin - cos) / T), T = 0.5."""
  features = Features(3 * at(45), {}, crops=np.stack([np.r_[7 * at(*[0] * 9), 2 * at(90)]]))
  score = lambda *names: float(multicrop.score(features, TEXT, 0.5, keys(*names))[0])
  low, high = sigmoid(-2), sigmoid(2)  # 0.119203, 0.880797
  crops = 0.9 * low + 0.1 * high
  assert score('none') == pytest.approx(0.5)
  assert score('ten') == pytest.approx(crops) and crops == pytest.approx(0.1953623)
  assert score('clip_ad') == pytest.approx((crops + 0.5) / 2)
  # Logits of a crop: +-2 apart; the image's are equal.
  assert score('ten', 'logit') == pytest.approx(sigmoid(0.9 * -2 + 0.1 * 2))
  assert score('clip_ad', 'logit') == pytest.approx(sigmoid((0.9 * -2 + 0.1 * 2) / 2))
  # The mean class token of the crops is (0.9, 0.1) before it is normalised, whatever their lengths were.
  mean = np.array([0.9, 0.1])
  assert score('ten', 'embedding') == pytest.approx(sigmoid((mean[1] - mean[0]) / np.linalg.norm(mean) / 0.5))
  mean = (mean + np.sqrt(0.5)) / 2
  assert score('clip_ad', 'embedding') == pytest.approx(sigmoid((mean[1] - mean[0]) / np.linalg.norm(mean) / 0.5))


@pytest.mark.slow
@pytest.mark.parametrize('average', multicrop.AVERAGES)
@pytest.mark.parametrize('recipe', ['ten', 'clip_ad'])
def test_crops_equal_to_the_image_do_not_change_the_score(recipe, average):
  rng = np.random.default_rng(0)
  cls = rng.standard_normal((3, 5)).astype(np.float32)
  text = np.asarray(maps.normalize(rng.standard_normal((3, 2, 5)).astype(np.float32)))
  same = Features(cls, {}, crops=np.repeat(cls[:, None], 10, axis=1))
  np.testing.assert_allclose(multicrop.score(same, text, 0.07, keys(recipe, average)),
                             maps.states(cls[:, None], text, 0.07)[:, 0, 1], rtol=2e-5)


@pytest.mark.slow
def test_every_image_has_its_own_crops_and_texts_and_bfloat16_is_widened_first():
  rng = np.random.default_rng(1)
  cls, crops = rng.standard_normal((4, 6)), rng.standard_normal((4, 10, 6))
  text = np.asarray(maps.normalize(rng.standard_normal((4, 2, 6)).astype(np.float32)))
  half = Features(jnp.asarray(cls, jnp.bfloat16), {}, crops=jnp.asarray(crops, jnp.bfloat16))
  whole = multicrop.score(half, text, 0.07, keys())
  assert whole.dtype == jnp.float32
  for i in range(4):
    row = jax.tree.map(lambda x, i=i: x[i:i + 1].astype(jnp.float32), half)
    np.testing.assert_allclose(multicrop.score(row, text[i], 0.07, keys())[0], whole[i], rtol=1e-5)


@pytest.mark.parametrize(('size', 'side'), [(240, 270), (518, 582), (336, 378), (224, 252), (112, 126), (56, 64)])
def test_crops_are_cut_from_an_image_an_eighth_larger(size, side):
  assert multicrop.side(size, keys()) == side
  assert multicrop.side(size, keys('ten', resize=size + 5)) == size + 5
  assert multicrop.side(size, keys('none', resize=size + 5)) == 0


@pytest.mark.parametrize(('values', 'message'), [
  (('five',), r"multicrop\.recipe='five' is not one of none, clip_ad, ten"),
  (('clip_ad', 'score'), r"multicrop\.average='score' is not one of prob, embedding, logit"),
  (('none', 'score'), r"multicrop\.average='score' is not one of"),
  (('ten', 'prob', 239), r'multicrop\.resize=239 is smaller than .* image_size=240'),
  (('ten', 'prob', -1), r'multicrop\.resize=-1 is smaller than .* image_size=240')])
def test_keys_out_of_range_are_named(values, message):
  with pytest.raises(ValueError, match=message):
    multicrop.side(240, keys(*values))


def test_features_without_crops_are_rejected():
  with pytest.raises(ValueError, match=r"multicrop\.recipe is 'ten', but these features have no crops"):
    multicrop.score(Features(at(45), {}), TEXT, 0.07, keys('ten'))


@pytest.fixture(scope='module')
def tiny():
  return clip_lib.load('tiny', image_size=32)


@pytest.mark.slow
@pytest.mark.parametrize('name', [
  'anomalyclip', 'april_gan', 'clip', 'clip_surgery', 'cocoop', 'coop', 'winclip'])
def test_crops_change_the_score_of_every_method_and_not_its_map(name, tiny):
  method, c = methods.get(name), importlib.import_module(f'zsad_jax.configs.{name}').get_config('demo')
  c.image_size = 32

  def configured(recipe):
    changed = mlc.ConfigDict(c.to_dict())
    changed.multicrop.recipe = recipe
    return mlc.FrozenConfigDict(changed)

  cfgs = {recipe: configured(recipe) for recipe in multicrop.RECIPES}
  spec = method.feature_spec(tiny, cfgs['clip_ad'])
  assert spec.crops == 36 and method.feature_spec(tiny, cfgs['none']) == spec._replace(crops=0)
  if method.loss is not None:
    assert 'multicrop' in method.traits.evaluation_keys
  draws, shape = np.random.default_rng(0), encoder.features_shape(tiny, spec)
  random = lambda shape: draws.standard_normal((3, *shape), np.float32)
  features = Features(random(shape.cls), {k: random(s) for k, s in shape.taps.items()},
                      {k: random(s) for k, s in shape.windows.items()}, random(shape.crops))
  same = features._replace(crops=np.repeat(features.cls[:, None], 10, axis=1))

  @jax.jit
  def run(clip_params, features, same):
    cfg = cfgs['none']
    params = method.init(jax.random.key(0), tiny, cfg)
    text = method.encode_text(params, clip_params, ('bolt',), clip=tiny, cfg=cfg)
    if name == 'clip_surgery':  # which reduces texts on the host; here to their means
      text = jnp.concatenate([state.mean(1, keepdims=True) for state in text], axis=1)
    predict = lambda features, recipe: method.predict(
      params, Context(clip_params, text), features, {'category': jnp.zeros(3, jnp.int32)}, clip=tiny, cfg=cfgs[recipe])
    return {recipe: predict(features, recipe) for recipe in cfgs} | {'same': predict(same, 'clip_ad')}

  out = jax.device_get(run(tiny.params, features, same))
  for other in out.values():
    np.testing.assert_array_equal(other.map, out['none'].map)
  score = {recipe: out[recipe].score for recipe in out}
  assert np.abs(score['ten'] - score['none']).min() > 1e-4
  np.testing.assert_allclose(score['clip_ad'], (score['none'] + score['ten']) / 2, atol=1e-6)
  np.testing.assert_allclose(score['same'], score['none'], atol=1e-5)


def configured(module, tmp, **changes):
  c = module.get_config('demo')
  c.update_from_flattened_dict({
    'image_size': 32, 'machine.encode_batch': 4, 'machine.eval_batch': 4, 'report.pictures': 0,
    'machine.data_dir': str(tmp / 'data'), 'data.aux': f'folder:{tmp / "aux"}',
    'data.target': f'folder:{tmp / "target"}'} | changes)
  return mlc.FrozenConfigDict(c)


@pytest.fixture
def folder(tmp_path):
  draw(tmp_path / 'target', {'wood': (90, 60, 30)}, images=3)
  return tmp_path


def specs(tmp):
  """The feature specs of all stores."""
  return [json.loads(path.read_text())['key']['spec'] for path in tmp.glob('data/features/*/meta.json')]


@pytest.mark.slow
def test_a_run_with_crops_reuses_the_store_of_a_run_without(folder, monkeypatch):
  results, run = [], experiment.evaluate.run
  monkeypatch.setattr(experiment.evaluate, 'run',
                      lambda *args, **rest: results.append(run(*args, **rest)) or results[-1])
  for recipe in ('none', 'clip_ad'):
    cfg = configured(clip, folder, **{'multicrop.recipe': recipe})
    experiment.run(cfg, folder / recipe, 'run')
  assert np.abs(results[0].scores - results[1].scores).min() > 1e-4
  manifest, = folder.glob('clip_ad/results/clip/*/*/manifest.json')
  config = json.loads(manifest.read_text())['config']
  assert config['multicrop'] == {'average': 'prob', 'recipe': 'clip_ad', 'resize': 0}
  assert sorted('crops=36' in spec for spec in specs(folder)) == [False, True]


@pytest.mark.slow
def test_a_winclip_run_with_crops(folder):
  experiment.run(configured(winclip, folder, windows=(2,), **{'multicrop.recipe': 'clip_ad'}), folder / 'work', 'run')
  path, = folder.glob('work/results/winclip/*/*/metrics.json')
  assert json.loads(path.read_text())['mean']['image_auroc']['count'] == 1
  stores = sorted(('crops=36' in spec, 'windows=(2,)' in spec) for spec in specs(folder))
  assert stores == [(False, True), (True, False)]


@pytest.mark.slow
def test_crops_are_the_same_from_the_store_and_past_it(folder):
  reads = []
  for store in (True, False):
    run = Run.load(configured(clip, folder, **{'multicrop.recipe': 'ten', 'machine.store_features': store}))
    reads.append(run.reader(setup.open_data(run.cfg, 'target'))(np.array([4, 1])))
  (stored, batch), (direct, other) = reads
  assert stored.crops.shape == (2, 10, 128) and batch['id'] == other['id']
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), stored, direct)
  assert np.abs(stored.crops[0] - stored.crops[1]).max() > 1e-2


@pytest.mark.slow
def test_references_are_encoded_without_crops(folder, monkeypatch):
  monkeypatch.setattr(encoder, 'encode_crops', None)  # would fail if it were called
  run = Run.load(configured(april_gan, folder, layers=(2,), **{'multicrop.recipe': 'ten', 'fewshot.shots': 1}))
  memory_bank, ids = run.reference_bank()
  assert memory_bank['clip/2/block'].shape == (1, 16, 128) and list(ids) == ['wood']


def test_keys_out_of_range_are_rejected_before_data_is_read(tmp_path):
  with pytest.raises(ValueError, match=r'multicrop\.resize=31 is smaller than .* image_size=32'):
    experiment.run(configured(anomalyclip, tmp_path, **{'multicrop.resize': 31}), tmp_path, 'run')
