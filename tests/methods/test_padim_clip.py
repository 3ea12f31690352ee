"""PaDiM on CLIP features: covariances built and inverted in PyTorch, few images, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np
import pytest

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import Features, Tap
from zsad_jax.configs import padim_clip as config
from zsad_jax.methods import padim_clip as method

SIZE, GRID, WIDTH = 32, 4, 128
CLIP = clip_lib.Clip(clip_lib.ARCHS['tiny'], SIZE, params=None)
predict = jax.jit(method.predict, static_argnames=('clip', 'cfg'))
memory_of = jax.jit(method.memory, static_argnames=('clip', 'cfg'))


def configured(arg='demo', **changes):
  c = config.get_config(arg)
  for key, value in {'image_size': SIZE if arg == 'demo' else c.image_size, **changes}.items():
    *path, last = key.split('__')
    setattr(functools.reduce(getattr, path, c), last, value)
  return mlc.FrozenConfigDict(c)


def drawn(cfg, *rows, seed=0, scale=1.0):
  rng = np.random.default_rng(seed)
  draw = lambda: jnp.asarray(scale * rng.standard_normal((*rows, GRID ** 2, WIDTH)), jnp.float32)
  return Features(None, {f'clip/{block}/block': draw() for block in cfg.layers})


def run(cfg, features, references, category):
  memory = memory_of(None, references, clip=CLIP, cfg=cfg)
  return predict({}, None, {}, memory, features, {'category': jnp.asarray(category)}, clip=CLIP, cfg=cfg)


def tokens(features, cfg):
  """[..., N, d] in float64."""
  every = np.concatenate([np.asarray(features.taps[f'clip/{b}/block'], np.float64) for b in cfg.layers], -1)
  return every[..., method.dimensions(every.shape[-1], cfg)]


def test_reads_three_blocks_raw_and_says_what_it_is():
  cfg = configured(None)
  big = clip_lib.Clip(clip_lib.ARCHS['vit_b16_plus_240'], 240, params=None)
  spec = method.spec(big, cfg)
  assert (spec.cls, spec.read) == ('', 'none') and spec.taps == tuple(Tap('clip', b) for b in (3, 6, 9))
  assert cfg.padim.dims == 550 and cfg.padim.eps == 0.01
  assert cfg.label == 'PaDiM on CLIP features' and 'published' not in cfg
  assert 'sanity row' in method.__doc__ and 'sanity row' in config.__doc__


@pytest.mark.parametrize('shots', [1, 3, 150])
def test_parity_with_a_covariance_that_is_built_and_inverted(shots, torch):
  cfg = configured(map__sigma=0.0)
  features, references, category = drawn(cfg, 3), drawn(cfg, 2, shots, seed=1, scale=2.0), (1, 0, 1)
  out = run(cfg, features, references, category)
  x, ref = torch.tensor(tokens(features, cfg)), torch.tensor(tokens(references, cfg))
  assert x.shape[-1] == 100
  for i, c in enumerate(category):
    found = []
    for place in range(GRID ** 2):
      own = ref[c, :, place]
      covariance = 0.01 * torch.eye(100, dtype=torch.float64)
      covariance += torch.cov(own.T) if shots > 1 else 0
      off = x[i, place] - own.mean(0)
      found.append((off @ torch.linalg.inv(covariance) @ off).sqrt())
    grid = torch.stack(found).reshape(1, 1, GRID, GRID)
    expected = torch.nn.functional.interpolate(grid, SIZE, mode='bilinear')[0, 0].numpy()
    np.testing.assert_allclose(out['map'][i], expected, rtol=1e-4)
    np.testing.assert_allclose(out['score'][i], expected.max(), rtol=1e-4)


def test_trap_4_one_image_gives_the_distance_to_it_over_a_tenth():
  cfg = configured(map__sigma=0.0)
  features, references = drawn(cfg, 2), drawn(cfg, 1, 1, seed=1)
  out = run(cfg, features, references, (0, 0))
  expected = np.linalg.norm(tokens(features, cfg) - tokens(references, cfg)[0, 0][None], axis=-1) / 0.1
  np.testing.assert_allclose(out['map'][:, ::SIZE - 1, ::SIZE - 1],
                             expected.reshape(2, GRID, GRID)[:, ::GRID - 1, ::GRID - 1], rtol=1e-4)


def test_the_mean_itself_is_at_0_and_the_same_image_twice_is_one_image():
  cfg = configured(map__sigma=0.0)
  references = drawn(cfg, 1, 1)
  twice = jax.tree.map(lambda x: jnp.concatenate([x, x], axis=1), references)
  np.testing.assert_array_equal(run(cfg, jax.tree.map(lambda x: x[0], references), twice, (0,))['map'],
                                np.zeros((1, SIZE, SIZE)))
  features = drawn(cfg, 1, seed=1)
  np.testing.assert_allclose(run(cfg, features, twice, (0,))['map'], run(cfg, features, references, (0,))['map'],
                             rtol=1e-5)


def test_the_score_is_the_maximum_of_the_smoothed_map():
  cfg = configured()
  out = run(cfg, drawn(cfg, 2), drawn(cfg, 1, 2, seed=1), (0, 0))
  np.testing.assert_array_equal(out['score'], out['map'].max((1, 2)))
  plain = run(configured(map__sigma=0.0), drawn(cfg, 2), drawn(cfg, 1, 2, seed=1), (0, 0))
  assert np.all(out['score'] < plain['score'])


def test_dimensions_are_drawn_by_seed_without_repetition():
  kept = method.dimensions(384, configured())
  assert len(set(kept.tolist())) == 100 and kept.min() >= 0 and kept.max() < 384
  np.testing.assert_array_equal(kept, method.dimensions(384, configured()))
  assert kept.tolist() != method.dimensions(384, configured(padim__seed=1)).tolist()


def test_a_score_needs_references():
  cfg = configured()
  with pytest.raises(ValueError, match=r'fewshot\.shots is 1, but predict was given no memory'):
    method.predict({}, None, {}, None, drawn(cfg, 1), {'category': jnp.zeros(1, int)}, clip=CLIP, cfg=cfg)


@pytest.mark.parametrize('changes, message', [
  (dict(fewshot__shots=0), 'fewshot.shots 0 is not 1 or more: without normal images there is no score'),
  (dict(layers=(7,)), r'layers \(7,\) are not different blocks in 1\.\.6'),
  (dict(padim__dims=0), 'padim.dims 0 is not 1 or more'),
  (dict(padim__dims=400), r'padim.dims 400 is more than the 384 dimensions of layers \(2, 3, 5\)'),
  (dict(padim__eps=0.0), 'padim.eps 0.0 is not positive'), (dict(map__sigma=-1.0), 'map.sigma -1.0 is not 0 or more')])
def test_bad_keys(changes, message):
  with pytest.raises(ValueError, match=message):
    method.spec(CLIP, configured(**changes))
