"""PaDiM on CLIP features: covariances formed and inverted in PyTorch, few images, and bad configs."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest
from method_checks import check, with_keys

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import Features, Tap
from zsad_jax.configs import padim_clip as config
from zsad_jax.methods import Context
from zsad_jax.methods import padim_clip as method

SIZE, GRID, WIDTH = 32, 4, 128
CLIP = clip_lib.Clip(clip_lib.ARCHS['tiny'], SIZE, params=None)
predict = jax.jit(method.predict, static_argnames=('clip', 'cfg'))
memory_bank = jax.jit(method.build_memory_bank, static_argnames=('clip', 'cfg'))


def configured(arg='demo', **changes):
  c = config.get_config(arg)
  return with_keys(c, **{'image_size': SIZE if arg == 'demo' else c.image_size, **changes})


def random_features(cfg, *rows, seed=0, scale=1.0):
  rng = np.random.default_rng(seed)
  draw = lambda: jnp.asarray(scale * rng.standard_normal((*rows, GRID ** 2, WIDTH)), jnp.float32)
  return Features(None, {f'clip/{block}/block': draw() for block in cfg.layers})


def run(cfg, features, references, category):
  bank = memory_bank(None, references, clip=CLIP, cfg=cfg)
  return predict({}, Context(memory_bank=bank), features, {'category': jnp.asarray(category)}, clip=CLIP, cfg=cfg)


def tokens(features, cfg):
  """[..., N, d] in float64."""
  every = np.concatenate([np.asarray(features.taps[f'clip/{b}/block'], np.float64) for b in cfg.layers], -1)
  return every[..., method._dimensions(every.shape[-1], cfg)]


def test_reads_three_blocks_raw_and_is_labelled_as_on_clip_features():
  cfg = configured(None)
  big = clip_lib.Clip(clip_lib.ARCHS['vit_b16_plus_240'], 240, params=None)
  spec = method.feature_spec(big, cfg)
  assert (spec.cls, spec.read) == ('', 'none') and spec.taps == tuple(Tap('clip', b) for b in (3, 6, 9))
  assert cfg.padim.dims == 550 and cfg.padim.eps == 0.01
  assert cfg.label == 'PaDiM on CLIP features' and 'published' not in cfg


@pytest.mark.parametrize('shots', [1, 3, 150])
def test_parity_with_a_covariance_that_is_formed_and_inverted(shots, torch):
  cfg = configured(map__sigma=0.0)
  features, references, category = random_features(cfg, 3), random_features(cfg, 2, shots, seed=1, scale=2.0), (1, 0, 1)
  out = run(cfg, features, references, category)
  x, ref = torch.tensor(tokens(features, cfg)), torch.tensor(tokens(references, cfg))
  assert x.shape[-1] == 100
  for i, c in enumerate(category):
    distances = []
    for place in range(GRID ** 2):
      own = ref[c, :, place]
      covariance = 0.01 * torch.eye(100, dtype=torch.float64)
      covariance += torch.cov(own.T) if shots > 1 else 0
      off = x[i, place] - own.mean(0)
      distances.append((off @ torch.linalg.inv(covariance) @ off).sqrt())
    grid = torch.stack(distances).reshape(1, 1, GRID, GRID)
    expected = torch.nn.functional.interpolate(grid, SIZE, mode='bilinear')[0, 0].numpy()
    np.testing.assert_allclose(out.map[i], expected, rtol=1e-4)
    np.testing.assert_allclose(out.score[i], expected.max(), rtol=1e-4)


def test_one_image_gives_the_distance_to_it_over_a_tenth():
  cfg = configured(map__sigma=0.0)
  features, references = random_features(cfg, 2), random_features(cfg, 1, 1, seed=1)
  out = run(cfg, features, references, (0, 0))
  expected = np.linalg.norm(tokens(features, cfg) - tokens(references, cfg)[0, 0][None], axis=-1) / 0.1
  np.testing.assert_allclose(out.map[:, ::SIZE - 1, ::SIZE - 1],
                             expected.reshape(2, GRID, GRID)[:, ::GRID - 1, ::GRID - 1], rtol=1e-4)


@pytest.mark.slow
def test_the_mean_itself_is_at_0_and_the_same_image_twice_is_one_image():
  cfg = configured(map__sigma=0.0)
  references = random_features(cfg, 1, 1)
  twice = jax.tree.map(lambda x: jnp.concatenate([x, x], axis=1), references)
  np.testing.assert_array_equal(run(cfg, jax.tree.map(lambda x: x[0], references), twice, (0,)).map,
                                np.zeros((1, SIZE, SIZE)))
  features = random_features(cfg, 1, seed=1)
  np.testing.assert_allclose(run(cfg, features, twice, (0,)).map, run(cfg, features, references, (0,)).map,
                             rtol=1e-5)


@pytest.mark.slow
def test_the_score_is_the_maximum_of_the_smoothed_map():
  cfg = configured()
  out = run(cfg, random_features(cfg, 2), random_features(cfg, 1, 2, seed=1), (0, 0))
  np.testing.assert_array_equal(out.score, out.map.max((1, 2)))
  plain = run(configured(map__sigma=0.0), random_features(cfg, 2), random_features(cfg, 1, 2, seed=1), (0, 0))
  assert np.all(out.score < plain.score)


def test_dimensions_are_sampled_by_seed_without_repetition():
  kept = method._dimensions(384, configured())
  assert len(set(kept.tolist())) == 100 and kept.min() >= 0 and kept.max() < 384
  np.testing.assert_array_equal(kept, method._dimensions(384, configured()))
  assert kept.tolist() != method._dimensions(384, configured(padim__seed=1)).tolist()


@pytest.mark.parametrize('changes, message', [
  (dict(fewshot__shots=0), r'fewshot\.shots=0.*at least 1.*normal images'),
  (dict(layers=(7,)), r'layers .*\[1, 6\].*\(7,\)'),
  (dict(padim__dims=0), r'padim\.dims=0.*\[1, 384\]'),
  (dict(padim__dims=400), r'padim\.dims=400.*\[1, 384\].*layers=\(2, 3, 5\)'),
  (dict(padim__eps=0.0), r'padim\.eps=0\.0.*positive'), (dict(map__sigma=-1.0), r'map\.sigma=-1\.0.*at least 0')])
def test_bad_keys(changes, message):
  with pytest.raises(ValueError, match=message):
    check(method, CLIP, configured(**changes))
