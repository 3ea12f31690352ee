"""SPADE on CLIP features: a PyTorch transcription, which images are compared, and bad configs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from method_checks import check, with_keys

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import Features, Tap
from zsad_jax.configs import spade_clip as config
from zsad_jax.methods import Context
from zsad_jax.methods import spade_clip as method

SIZE, GRID, WIDTH, EMBED = 64, 8, 128, 128
CLIP = clip_lib.Clip(clip_lib.ARCHS['tiny'], SIZE, params=None)
predict = jax.jit(method.predict, static_argnames=('clip', 'cfg'))


def configured(arg='demo', **changes):
  c = config.get_config(arg)
  return with_keys(c, **{'image_size': SIZE if arg == 'demo' else c.image_size, **changes})


def random_features(cfg, *rows, seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.standard_normal((*rows, *shape)), jnp.float32)
  return Features(draw(EMBED), {f'clip/{block}/block': draw(GRID ** 2, WIDTH) for block in cfg.layers})


def run(cfg, features, references, category):
  bank = method.build_memory_bank(None, references, clip=CLIP, cfg=cfg)
  return predict({}, Context(memory_bank=bank), features, {'category': jnp.asarray(category)}, clip=CLIP, cfg=cfg)


def test_reads_the_class_token_and_three_blocks_and_is_labelled_as_on_clip_features():
  cfg = configured(None)
  big = clip_lib.Clip(clip_lib.ARCHS['vit_b16_plus_240'], 240, params=None)
  spec = method.feature_spec(big, cfg)
  assert (spec.cls, spec.read) == ('ln_post_proj', 'none') and spec.taps == tuple(Tap('clip', b) for b in (3, 6, 9))
  assert cfg.label == 'SPADE on CLIP features' and 'published' not in cfg


@pytest.mark.parametrize('neighbours', [50, 2])
def test_parity_with_a_transcription(neighbours, torch):
  cfg = configured(map__sigma=0.0, spade__neighbours=neighbours)
  features, references, category = random_features(cfg, 3), random_features(cfg, 2, 4, seed=1), (1, 0, 1)
  out = run(cfg, features, references, category)
  tensor = lambda x: torch.tensor(np.asarray(x))
  cdist = functools.partial(torch.cdist, compute_mode='donot_use_mm_for_euclid_dist')
  for i, c in enumerate(category):
    near = cdist(tensor(features.cls[i])[None], tensor(references.cls[c]))[0].topk(min(neighbours, 4), largest=False)
    queries = torch.cat([tensor(x[i]) for x in features.taps.values()], -1)
    rows = torch.cat([tensor(x[c]) for x in references.taps.values()], -1)[near.indices].flatten(0, 1)
    nearest_patch = cdist(queries, rows).min(1).values.reshape(1, 1, GRID, GRID)
    expected = torch.nn.functional.interpolate(nearest_patch, SIZE, mode='bilinear')[0, 0]
    np.testing.assert_allclose(out.score[i], near.values.mean().numpy(), atol=1e-4)
    np.testing.assert_allclose(out.map[i], expected.numpy(), atol=1e-4)


def test_blocks_are_concatenated_in_the_configs_order_however_jit_sorts_their_names():
  cfg = configured(layers=(5, 2))
  references = random_features(cfg, 1, 1)
  sorted_taps = jax.jit(lambda x: x)(references)
  assert list(sorted_taps.taps) != list(references.taps)
  features = Features(references.cls[0], {k: x[0] for k, x in references.taps.items()})
  np.testing.assert_array_equal(run(cfg, features, sorted_taps, (0,)).map, np.zeros((1, SIZE, SIZE)))


@pytest.mark.slow
def test_only_the_nearest_images_are_compared():
  cfg = configured(map__sigma=0.0, spade__neighbours=1)
  references = random_features(cfg, 1, 2)
  features = jax.tree.map(lambda x: x[0], references)
  features = features._replace(cls=features.cls[::-1])  # by its class token each resembles the other
  out = run(cfg, features, references, (0, 0))
  np.testing.assert_allclose(out.score, [0, 0], atol=1e-6)
  assert out.map.min() > 1
  np.testing.assert_array_equal(run(configured(map__sigma=0.0), features, references, (0, 0)).map,
                                np.zeros((2, SIZE, SIZE)))


@pytest.mark.parametrize('changes, message', [
  (dict(fewshot__shots=0), r'fewshot\.shots=0.*at least 1.*normal images'),
  (dict(layers=()), r'layers .*\[1, 6\].*\(\)'),
  (dict(spade__neighbours=0), r'spade\.neighbours=0.*at least 1'),
  (dict(map__sigma=-1.0), r'map\.sigma=-1\.0.*at least 0')])
def test_bad_keys(changes, message):
  with pytest.raises(ValueError, match=message):
    check(method, CLIP, configured(**changes))
