"""PatchCore on CLIP features: a PyTorch transcription, the coreset against a plain loop, and pitfalls of distances."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest
from method_checks import check, with_keys

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import Features, Tap
from zsad_jax.configs import patchcore_clip as config
from zsad_jax.methods import Context
from zsad_jax.methods import patchcore_clip as method

SIZE, GRID, WIDTH = 64, 8, 128
CLIP = clip_lib.Clip(clip_lib.ARCHS['tiny'], SIZE, params=None)
predict = jax.jit(method.predict, static_argnames=('clip', 'cfg'))
memory_bank = jax.jit(method.build_memory_bank, static_argnames=('clip', 'cfg'))
coreset = jax.jit(method._coreset, static_argnames='count')


def configured(arg='demo', **changes):
  c = config.get_config(arg)
  return with_keys(c, **{'image_size': SIZE if arg == 'demo' else c.image_size, **changes})


def random_features(cfg, *rows, seed=0):
  rng = np.random.default_rng(seed)
  return Features(None, {f'clip/{block}/block': jnp.asarray(rng.standard_normal((*rows, GRID ** 2, WIDTH)), jnp.float32)
                         for block in cfg.layers})


def run(cfg, features, references, category):
  bank = memory_bank(None, references, clip=CLIP, cfg=cfg)
  return predict({}, Context(memory_bank=bank), features, {'category': jnp.asarray(category)}, clip=CLIP, cfg=cfg)


def test_reads_two_middle_blocks_raw_and_is_labelled_as_on_clip_features():
  cfg = configured(None)
  big = clip_lib.Clip(clip_lib.ARCHS['vit_b16_plus_240'], 240, params=None)
  spec = method.feature_spec(big, cfg)
  assert (spec.cls, spec.read, spec.taps) == ('', 'none', (Tap('clip', 6), Tap('clip', 9)))
  # Its rows in tables must not pass for PatchCore's own.
  assert cfg.label == 'PatchCore on CLIP features' and 'published' not in cfg


@pytest.mark.parametrize('reweight', [False, True])
def test_parity_with_a_transcription(reweight, torch):
  cfg = configured(map__sigma=0.0, patchcore__reweight=reweight, patchcore__neighbours=4)
  features, references, category = random_features(cfg, 3), random_features(cfg, 2, 2, seed=1), (1, 0, 1)
  out = run(cfg, features, references, category)
  F = torch.nn.functional

  def pooled(taps, row):
    grids = [torch.tensor(np.asarray(x[row])).reshape(-1, GRID, GRID, WIDTH).permute(0, 3, 1, 2) for x in taps.values()]
    return F.avg_pool2d(torch.cat(grids, 1), 3, 1, 1).permute(0, 2, 3, 1).flatten(0, 2)

  for i, c in enumerate(category):
    patches, bank = pooled(features.taps, i), pooled(references.taps, c)
    distances = torch.cdist(patches, bank, compute_mode='donot_use_mm_for_euclid_dist')
    nearest_distance, nearest = distances.min(1)
    score, worst = nearest_distance.max(0)
    if reweight:
      b = bank[nearest[worst]][None]
      around = torch.cdist(b, bank, compute_mode='donot_use_mm_for_euclid_dist')[0].topk(4, largest=False).indices
      shares = torch.cdist(patches[worst][None], bank[around])[0].softmax(0)
      assert around[0] == nearest[worst]
      score = (1 - shares[0]) * score
    expected = F.interpolate(nearest_distance.reshape(1, 1, GRID, GRID), SIZE, mode='bilinear')[0, 0]
    np.testing.assert_allclose(out.map[i], expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(out.score[i], score.numpy(), atol=1e-4)


def test_twice_the_features_double_the_scores_and_a_reference_scores_0():
  cfg = configured(map__sigma=0.0)
  features, references = random_features(cfg, 2), random_features(cfg, 1, 2, seed=1)
  once = run(cfg, features, references, (0, 0))
  twice = run(cfg, *jax.tree.map(lambda x: 2 * x, (features, references)), (0, 0))
  np.testing.assert_allclose(twice.score, 2 * once.score, rtol=1e-5)
  itself = run(cfg, jax.tree.map(lambda x: x[0], references), references, (0, 0))
  np.testing.assert_allclose(itself.map, np.zeros((2, SIZE, SIZE)), atol=1e-6)  # averaging rounds by program


@pytest.mark.parametrize('scale', [1e-3, 1.0, 1e4])
def test_the_weight_is_between_0_and_1_at_any_scale(scale):
  rng = np.random.default_rng(0)
  bank = jnp.asarray(scale * rng.standard_normal((1, 20, 6)), jnp.float32)
  patch = jnp.asarray(scale * rng.standard_normal((5, 6)), jnp.float32)
  every = np.linalg.norm(patch[:, None] - bank[0][None], axis=-1)
  w = jax.jit(method._weight, static_argnames='support')(
    patch, bank, jnp.zeros(5, int), jnp.asarray(every.argmin(1)), jnp.asarray(every.min(1)), support=9)
  # The nearest reference has the smallest share of nine.
  assert np.all(w >= 1 - 1 / 9 - 1e-5) and np.all(w <= 1)


@pytest.mark.slow
def test_one_neighbour_leaves_the_score_as_it_is():
  features, references = random_features(configured(), 2), random_features(configured(), 1, 1, seed=1)
  plain = run(configured(), features, references, (0, 0)).score
  alone = run(configured(patchcore__reweight=True, patchcore__neighbours=1), features, references, (0, 0)).score
  np.testing.assert_array_equal(plain, alone)
  weighed = run(configured(patchcore__reweight=True), features, references, (0, 0)).score
  assert np.all(weighed < plain)


def test_the_coreset_is_the_greedy_one_and_its_radius_never_grows():
  rows = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
  indices, radius = coreset(jnp.asarray(rows), count=12, start=7)
  expected, distance = [7], np.linalg.norm(rows - rows[7], axis=1)
  radii = [distance.max()]
  for _ in range(11):
    expected.append(int(distance.argmax()))
    distance = np.minimum(distance, np.linalg.norm(rows - rows[expected[-1]], axis=1))
    radii.append(distance.max())
  assert indices.tolist() == expected
  np.testing.assert_allclose(radius, radii, rtol=1e-5)
  assert np.all(np.diff(radius) <= 0)
  assert sorted(coreset(jnp.asarray(rows), count=40, start=0)[0].tolist()) == list(range(40))


@pytest.mark.slow
@pytest.mark.parametrize('count', [1, 12, 250, 399])
def test_a_coreset_reports_its_progress(count):
  rows, reports = jnp.asarray(np.random.default_rng(1).standard_normal((400, 3)), jnp.float32), []
  silent = coreset(rows, count=count, start=0)
  reported = jax.jit(lambda rows: method._coreset(rows, count, 0, lambda n: reports.append(int(n))))(rows)
  jax.effects_barrier()
  jax.tree.map(np.testing.assert_array_equal, reported, silent)
  assert sum(reports) == count and len(reports) <= 201


@pytest.mark.slow
def test_the_coreset_of_all_categories_has_one_bar_a_run(capsys):
  for _ in range(2):
    memory_bank(None, random_features(configured(), 2, 2, seed=1), clip=CLIP, cfg=configured(coreset__ratio=0.1))
    jax.effects_barrier()
    assert capsys.readouterr().err.count('24/24') == 1


@pytest.mark.slow
def test_a_share_of_the_patches_by_seed():
  thin = lambda **changes: memory_bank(None, random_features(configured(), 2, 2, seed=1), clip=CLIP,
                                     cfg=configured(coreset__ratio=0.1, **changes))
  whole = memory_bank(None, random_features(configured(), 2, 2, seed=1), clip=CLIP, cfg=configured())
  first = thin()
  assert whole.shape == (2, 2 * GRID ** 2, 2 * WIDTH) and first.shape == (2, 12, 2 * WIDTH)
  np.testing.assert_array_equal(first, thin())
  assert np.any(first != thin(coreset__seed=1))
  for kept, every in zip(first, whole):
    assert len(np.unique(kept[:, 0])) == 12 and np.isin(kept[:, 0], every[:, 0]).all()


@pytest.mark.slow
def test_smoothing_is_in_pixels_of_the_map_and_after_upsampling():
  cfg = configured(map__sigma=3.0, pool=1)
  references = random_features(cfg, 1, 1)
  features = Features(None, {k: x[0].at[0, 27].add(5.0) for k, x in references.taps.items()})  # one patch is off
  smooth, plain = (np.asarray(run(configured(map__sigma=s, pool=1), features, references, (0,)).map[0])
                  for s in (3.0, 0.0))
  variance = lambda m: np.sum(m * (np.arange(SIZE) - np.sum(m * np.arange(SIZE)) / m.sum()) ** 2) / m.sum()
  assert variance(smooth.sum(0)) - variance(plain.sum(0)) == pytest.approx(9, rel=0.02)


@pytest.mark.parametrize('changes, message', [
  (dict(fewshot__shots=0), r'fewshot\.shots=0.*at least 1.*normal images'),
  (dict(layers=(0, 3)), r'layers .*\[1, 6\].*\(0, 3\)'), (dict(pool=2), 'pool=2.*odd'),
  (dict(coreset__ratio=0.0), r'coreset\.ratio=0\.0.*\(0, 1\]'), (dict(coreset__dims=0), r'coreset\.dims=0.*at least 1'),
  (dict(patchcore__neighbours=0), r'patchcore\.neighbours=0.*at least 1'),
  (dict(map__sigma=-1.0), r'map\.sigma=-1\.0.*at least 0')])
def test_bad_keys(changes, message):
  with pytest.raises(ValueError, match=message):
    check(method, CLIP, configured(**changes))
