"""WinCLIP and WinCLIP+: golden values, pitfalls of the published descriptions, and parity with a PyTorch loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip.test_vit import arch_of
from golden import record_clip, torch_winclip
from method_checks import check, with_keys

from zsad_jax.clip import encoder
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import Features
from zsad_jax.configs import winclip as config
from zsad_jax.methods import Context
from zsad_jax.methods import winclip as method
from zsad_jax.methods.parts import prompts
from zsad_jax.ops import windows as windows_lib

pytestmark = pytest.mark.usefixtures('highest_precision')
SIZE, GRID, EMBED, WIDTH = 64, 8, 128, 128
PLACES = {2: 49, 3: 36}


def configured(arg=None, size=SIZE, **changes):
  c = config.get_config(arg)
  return with_keys(c, **{'image_size': size, **changes})


@pytest.fixture(scope='module')
def clip():
  return clip_lib.load('tiny', image_size=SIZE)


encode_text = jax.jit(method.encode_text, static_argnames=('names', 'clip', 'cfg'))


@functools.partial(jax.jit, static_argnames=('clip', 'cfg'))
def predict(text, bank, features, category, clip, cfg):
  return method.predict({}, Context({}, text, bank), features, {'category': category}, clip=clip, cfg=cfg)


@pytest.fixture
def draw():
  """Random features of so many images: draw(cfg, *leading axes)."""
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)

  def features(cfg, *lead):
    taps = {'clip/6/block': normal(*lead, GRID ** 2, WIDTH)} if cfg.fewshot.shots else {}
    return Features(normal(*lead, EMBED), taps, {side: normal(*lead, PLACES[side], EMBED) for side in cfg.windows})

  return features


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def pairs(count, seed=3):
  return unit(np.random.default_rng(seed).standard_normal((count, 2, EMBED)).astype(np.float32))


def probability(features, pair):
  """The second state's share, of features [..., E] and pair [2, E]."""
  cosines = unit(features) @ pair.T / 0.07
  return 1 / (1 + np.exp(cosines[..., 0] - cosines[..., 1]))


def covering(grid, side):
  """{patch: windows over it}, by walking over all pairs."""
  places = [(i, j) for i in range(grid - side + 1) for j in range(grid - side + 1)]
  return {(y, x): [n for n, (i, j) in enumerate(places) if i <= y < i + side and j <= x < j + side]
          for y in range(grid) for x in range(grid)}


def harmonic(scores, grid, side):
  out = np.zeros((grid, grid))
  for patch, windows in covering(grid, side).items():
    out[patch] = len(windows) / sum(1 / np.float64(scores[w]) for w in windows)
  return out


def test_harmonic_aggregation_of_the_published_example():
  out = windows_lib.cover_mean(jnp.array([[1., .75, .5, .25]]), 3, 2)
  np.testing.assert_allclose(out[0], [[1, .857143, .75], [.666667, .48, .375], [.5, .333333, .25]], atol=1e-6)


def test_arithmetic_mean_of_the_same():
  out = windows_lib.cover_mean(jnp.array([[1., .75, .5, .25]]), 3, 2, 'arithmetic')
  np.testing.assert_allclose(out[0], [[1, .875, .75], [.75, .625, .5], [.5, .375, .25]], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('side, count', [(2, 196), (3, 169), (15, 1), (1, 225)])
def test_constant_scores_stay_at_every_coverage_count(side, count):
  for mean in windows_lib.MEANS:
    np.testing.assert_allclose(windows_lib.cover_mean(jnp.full((2, count), .3), 15, side, mean), .3, rtol=1e-6)


@pytest.mark.parametrize('side', [2, 3])
def test_aggregation_at_the_published_grid(side):
  scores = np.random.default_rng(0).uniform(.01, 1, (2, (16 - side) ** 2)).astype(np.float32)
  out = windows_lib.cover_mean(jnp.asarray(scores), 15, side)
  for i in range(2):
    np.testing.assert_allclose(out[i], harmonic(scores[i], 15, side), rtol=1e-5)


def test_a_score_of_zero_makes_the_mean_zero_and_nothing_else():
  scores = np.full((1, 36), .5, np.float32)
  scores[0, 7] = 0  # the window at (1, 1) of 6 x 6
  out = np.array(windows_lib.cover_mean(jnp.asarray(scores), 8, 3)[0])
  assert np.all(out[1:4, 1:4] < 1e-20) and np.isfinite(out).all()
  out[1:4, 1:4] = .5
  np.testing.assert_allclose(out, .5, rtol=1e-6)


@pytest.mark.slow
def test_zero_shot_scores_and_maps_written_out(clip, draw):
  cfg, text = configured(), pairs(2)
  features, category = draw(cfg, 3), np.array([1, 0, 1])
  out = predict(text, None, features, category, clip, cfg)
  assert out.map.shape == (3, SIZE, SIZE)
  for i, k in enumerate(category):
    image = probability(features.cls[i], text[k])
    np.testing.assert_allclose(out.score[i], image, rtol=1e-5)  # of the image alone, whatever its map
    scales = [harmonic(probability(features.windows[side][i], text[k]), GRID, side) for side in (2, 3)]
    small = 3 / (1 / scales[0] + 1 / scales[1] + 1 / image)
    # A corner pixel is its patch alone: bilinear, half-pixel centres, no smoothing.
    corners = np.asarray(out.map[i])[[0, 0, -1, -1], [0, -1, 0, -1]]
    np.testing.assert_allclose(corners, small[[0, 0, -1, -1], [0, -1, 0, -1]], rtol=1e-4)


def test_a_cosine_gap_of_the_temperature_scores_as_published(clip):
  cfg, text = configured(windows=()), np.eye(2, EMBED, dtype=np.float32)[None]
  feature = np.zeros((1, EMBED), np.float32)
  feature[0, :3] = .5, .57, np.sqrt(1 - .5 ** 2 - .57 ** 2)
  out = predict(text, None, Features(5 * feature, {}), np.zeros(1, int), clip, cfg)
  np.testing.assert_allclose(out.score, .73106, atol=1e-5)
  np.testing.assert_allclose(out.map, .73106, atol=1e-5)  # with no windows there is only the image


@pytest.mark.slow
def test_mixed_batch_equals_batches_of_one_category(clip, draw):
  cfg, text = configured('plus'), pairs(2)
  features, category = draw(cfg, 4), np.array([0, 1, 1, 0])
  bank = method.build_memory_bank({}, draw(cfg, 2, 1), clip=clip, cfg=cfg)
  mixed = predict(text, bank, features, category, clip, cfg)
  for k in (0, 1):
    rows = category == k
    one = lambda tree, k=k: jax.tree.map(lambda x: x[k:k + 1], tree)
    alone = predict(one(text), one(bank), jax.tree.map(lambda x, rows=rows: x[rows], features), np.zeros(2, int),
                    clip, cfg)
    jax.tree.map(lambda a, b, rows=rows: np.testing.assert_allclose(a, b[rows], atol=1e-6), alone, mixed)


def test_the_memory_bank_pools_all_references_and_places(clip, draw):
  cfg = configured('plus2')
  features = draw(cfg, 3, 2)
  bank = method.build_memory_bank({}, features, clip=clip, cfg=cfg)
  assert jax.tree.map(np.shape, bank) == {
    'windows': {2: (3, 98, EMBED), 3: (3, 72, EMBED)}, 'patches': (3, 128, WIDTH)}
  np.testing.assert_array_equal(bank['windows'][2][1, 49 + 5], features.windows[2][1, 1, 5])


@pytest.mark.slow
def test_few_shot_scores_and_maps_written_out(clip, draw):
  cfg, text = configured('plus2'), pairs(1)
  features, references = draw(cfg, 2), draw(cfg, 1, 2)
  bank = method.build_memory_bank({}, references, clip=clip, cfg=cfg)
  out = predict(text, bank, features, np.zeros(2, int), clip, cfg)
  text_only = predict(text, None, features, np.zeros(2, int), clip, configured())
  nearest = lambda x, rows: (1 - (unit(x) @ unit(rows.reshape(-1, rows.shape[-1])).T).max(-1)) / 2
  corner = np.asarray([0, 0, -1, -1]), np.asarray([0, -1, 0, -1])
  for i in range(2):
    window_maps = [harmonic(nearest(features.windows[side][i], references.windows[side][0]), GRID, side)
                   for side in (2, 3)]
    patches = nearest(features.taps['clip/6/block'][i], references.taps['clip/6/block'][0])
    distance = (window_maps[0] + window_maps[1] + patches.reshape(GRID, GRID)) / 3
    np.testing.assert_allclose(out.score[i], (text_only.score[i] + distance.max()) / 2, rtol=1e-5)
    want = (text_only.map[i][corner] + distance[corner]) / 2
    np.testing.assert_allclose(out.map[i][corner], want, rtol=1e-5)
  summed = predict(text, bank, features, np.zeros(2, int), clip, configured('plus2', fewshot__combine='sum'))
  np.testing.assert_allclose(summed.map, 2 * out.map, rtol=1e-6)
  np.testing.assert_allclose(summed.score, out.score, rtol=1e-6)


@pytest.mark.slow
def test_an_image_that_is_its_own_reference_is_at_no_distance(clip, draw):
  cfg, text = configured('plus'), pairs(1)
  features = draw(cfg, 1)
  bank = method.build_memory_bank({}, jax.tree.map(lambda x: x[None], features), clip=clip, cfg=cfg)
  out = predict(text, bank, features, np.zeros(1, int), clip, cfg)
  text_only = predict(text, None, features, np.zeros(1, int), clip, configured())
  np.testing.assert_allclose(2 * out.map, text_only.map, atol=1e-4)
  np.testing.assert_allclose(2 * out.score, text_only.score, atol=1e-4)


@pytest.mark.slow
def test_anomalies_that_the_texts_alone_see_leave_the_few_shot_score(clip, draw):
  """The score takes the maximum of M_ref, not of the fused map."""
  cfg, text = configured('plus'), pairs(1)
  features = draw(cfg, 1)._replace(cls=text.sum(1))  # the image itself is as normal as anomalous
  loud = {side: np.broadcast_to(text[0, 1] - text[0, 0], x.shape) for side, x in features.windows.items()}
  bank = method.build_memory_bank({}, jax.tree.map(lambda x: x[None], features), clip=clip, cfg=cfg)
  bank['windows'] = {side: np.concatenate([rows, loud[side]], 1) for side, rows in bank['windows'].items()}
  quiet = predict(text, bank, features, np.zeros(1, int), clip, cfg)
  raised = predict(text, bank, features._replace(windows=loud), np.zeros(1, int), clip, cfg)
  assert (raised.map - quiet.map).min() > .05
  np.testing.assert_allclose(raised.score, quiet.score, atol=1e-6)


class Loud:
  """A CLIP whose text features are e_0 of length 1, or e_1 of length 10 for texts with 'flaw' in them."""
  tokenize = staticmethod(lambda texts: np.array([[1, int('flaw' in text), 2] for text in texts], np.int32))
  eot = staticmethod(lambda ids: ids.argmax(-1))
  embed = staticmethod(lambda params, ids: jnp.eye(2)[ids.clip(max=1)])
  text = staticmethod(lambda params, tokens, eot: tokens[:, 1] * jnp.array([1., 10.])[None])


@pytest.mark.slow
def test_prototypes_follow_long_texts_unless_each_is_normalised():
  cfg = configured()
  text = method.encode_text({}, {}, ('pill',), clip=Loud, cfg=cfg)
  assert text.shape == (1, 2, 2)
  share = lambda loud, quiet: np.array([quiet, loud]) / np.hypot(loud, quiet)
  np.testing.assert_allclose(text[0, 0], share(2 * 10, 5), atol=1e-6)  # flawless, without flaw; five others
  np.testing.assert_allclose(text[0, 1], share(10, 3), atol=1e-6)  # with flaw; three others
  each = method.encode_text({}, {}, ('pill',), clip=Loud, cfg=configured(text__normalize_each=True))
  np.testing.assert_allclose(each[0, 1], share(1, 3), atol=1e-6)


@pytest.mark.slow
def test_names_keep_underscores_unless_raw_names_is_false(clip):
  lines = []

  class Listening(Loud):
    tokenize = staticmethod(lambda texts: lines.extend(texts) or Loud.tokenize(texts))

  method.encode_text({}, {}, ('metal_nut',), clip=Listening, cfg=configured())
  assert len(lines) == 154 + 88 and lines[0] == 'a cropped photo of the metal_nut.'
  assert lines[-1] == 'a photo of a metal_nut with damage for anomaly detection.'
  lines.clear()
  changes = dict(prompt__raw_names=False, prompt__templates='accurate21')
  method.encode_text({}, {}, ('metal_nut',), clip=Listening, cfg=configured(**changes))
  assert len(lines) == 147 + 84 and lines[0] == 'a cropped photo of the metal nut.'
  lines.clear()
  text = method.encode_text({}, {}, ('pill', 'nut'), clip=Listening, cfg=configured(prompt__class_word='object'))
  assert text.shape[0] == 1
  assert 'a photo of the object without flaw.' in lines


def test_template_counts():
  assert len(prompts.WINCLIP_TEMPLATES) == len(set(prompts.WINCLIP_TEMPLATES)) == 22
  assert len(prompts.ACCURATE_TEMPLATES) == 21 and len(set(prompts.ACCURATE_TEMPLATES)) == 20
  assert prompts.ACCURATE_TEMPLATES.count('a jpeg corrupted photo of the {}.') == 2
  assert [len(forms) for forms in prompts.WINCLIP_STATES] == [7, 4]
  assert all(text.count('{}') == 1 for forms in prompts.WINCLIP_STATES for text in forms)
  assert all(text.count('{}') == 1 for text in prompts.WINCLIP_TEMPLATES)


def test_feature_spec_of_zero_shot_and_few_shot(clip):
  zero, few = method.feature_spec(clip, configured()), method.feature_spec(clip, configured('plus'))
  assert (zero.cls, zero.taps, zero.windows) == ('ln_post_proj', (), (2, 3))
  assert ([tap.name for tap in few.taps], few.read, few.windows) == (['clip/6/block'], 'none', (2, 3))
  other = method.feature_spec(clip, configured('plus', fewshot__patch_ln_post=True, fewshot__patch_block=5))
  assert ([tap.name for tap in other.taps], other.read) == (['clip/5/block'], 'ln_post')


def test_published_defaults():
  cfg = configured(size=240)
  assert (cfg.clip, cfg.image_size) == ('vit_b16_plus_240:laion400m_e31', 240)
  assert (cfg.temperature, cfg.windows) == (0.07, (2, 3))
  assert (cfg.map.sigma, cfg.fewshot.shots, cfg.prompt.templates) == (0., 0, 'winclip22')
  assert cfg.published.mvtec_ad.pixel_ap == 18.2 and cfg.published.mvtec_ad.pixel_f1max == 31.7
  assert [configured(arg).fewshot.shots for arg in ('plus', 'plus2', 'plus4')] == [1, 2, 4]
  assert configured('plus4').published.visa.image_auroc == 87.3
  with pytest.raises(ValueError, match='unknown variant :minus; this config has :plus, :plus2, :plus4, :demo'):
    configured('minus')


@pytest.mark.parametrize('changes, message', [
  (dict(prompt__templates='winclip'), r"prompt\.templates='winclip'.*one of winclip22, accurate21"),
  (dict(mean__windows='geometric'), r"mean\.windows='geometric'.*one of harmonic, arithmetic"),
  (dict(mean__scales='max'), r"mean\.scales='max'.*one of harmonic, arithmetic"),
  (dict(fewshot__combine='max'), r"fewshot\.combine='max'.*one of mean, sum"),
  (dict(temperature=0.), r'temperature=0\.0.*positive'),
  (dict(map__sigma=-1.), r'map\.sigma=-1\.0.*at least 0'),
  (dict(windows=(2, 9)), r'windows=\(2, 9\).*different sides in \[1, 8\]'),
  (dict(windows=(2, 2)), r'windows=\(2, 2\).*different sides'),
  (dict(fewshot__patch_block=7), r'fewshot\.patch_block=7.*\[0, 6\].*0 for the last')])
def test_bad_keys(clip, changes, message):
  with pytest.raises(ValueError, match=message):
    check(method, clip, configured(**changes))


class Words:
  """A tokenizer of whole words in the order they come; start 98, end 99, padding 0."""

  def __init__(self):
    self.vocabulary = {}

  def encode(self, texts, context):
    ids = np.zeros((len(texts), context), np.int32)
    for row, text in zip(ids, texts):
      words = [self.vocabulary.setdefault(w, 1 + len(self.vocabulary)) for w in text.replace('.', ' .').split()]
      row[:len(words) + 2] = [98, *words, 99]
    return ids


@pytest.fixture
def torch(torch):
  """PyTorch with one thread: a loop over small windows spends its time waiting for more."""
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  yield torch
  torch.set_num_threads(threads)


def test_from_pixels_to_maps_as_the_pytorch_loop_has_them(torch):
  """Random weights; window encoding, prototypes, zero-shot and 2-shot scores and maps, 1e-4."""
  dims = record_clip.Dims(image_size=56, vocab=100, layers=3, text_layers=2, activation='gelu')
  arrays, words, rng = record_clip.weights(dims, np.random.RandomState(0)), Words(), np.random.default_rng(1)
  small = clip_lib.from_state_dict(arch_of(dims), arrays, tokenizer=words)
  images, references = rng.standard_normal((2, 2, 56, 56, 3)).astype(np.float32)
  text = encode_text({}, small.params, ('metal_nut',), clip=small, cfg=configured(prompt__templates='accurate21'))
  ids = [words.encode(prompts.compose(forms, prompts.ACCURATE_TEMPLATES, 'metal_nut', raw_names=True), dims.context)
         for forms in prompts.WINCLIP_STATES]

  with torch.no_grad():
    loop = torch_winclip.Official(arrays, dims)
    theirs = loop.prototypes(*ids)
    zero, few = loop.score(images, theirs, (2, 3)), loop.score(images, theirs, (2, 3), references)
  np.testing.assert_allclose(text[0], unit(theirs.numpy()), atol=1e-4)
  cfg = configured('plus2', size=56)
  encode = encoder.encode(small, method.feature_spec(small, cfg))
  features, shots = encode(small.params, images), encode(small.params, references)
  bank = method.build_memory_bank({}, jax.tree.map(lambda x: x[None], shots), clip=small, cfg=cfg)
  for memory_bank, (scores, maps), arg in ((None, zero, None), (bank, few, 'plus2')):
    out = predict(text, memory_bank, features, np.zeros(2, int), small, configured(arg, size=56))
    np.testing.assert_allclose(out.score, scores, atol=1e-4)
    np.testing.assert_allclose(out.map, maps, atol=1e-4)
  assert np.abs(few[1] - zero[1] / 2).max() > .02 and np.ptp(zero[1]) > .02  # neither map is flat
