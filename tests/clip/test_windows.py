"""Windows of the image tower: their patches, their independence of other pixels, and parity with a PyTorch loop."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip.test_vit import arch_of
from golden import record_clip, torch_winclip

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip import vit
from zsad_jax.clip.feature_spec import FeatureSpec, SideStream, Tap

pytestmark = pytest.mark.usefixtures('highest_precision')
DIMS = record_clip.Dims(image_size=56, activation='gelu')  # 7 x 7 patches of 8 px
GRID, PATCH = 7, 8
PLAIN = FeatureSpec(56, cls='ln_post_proj')
PAIR = PLAIN._replace(windows=(2, 3))


@pytest.fixture(scope='module')
def arrays():
  return record_clip.weights(DIMS, np.random.RandomState(0))


@pytest.fixture(scope='module')
def small(arrays):
  return clip_lib.from_state_dict(arch_of(DIMS), arrays)


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(1).standard_normal((2, 56, 56, 3)).astype(np.float32)


@functools.lru_cache
def compiled(clip_, spec):
  return jax.jit(lambda params, x: clip_.image(params, x, spec))


def run(clip_, images, spec):
  return compiled(clip_, spec)(clip_.params, jnp.asarray(images))


def test_published_index_tables():
  two, three = vit.window_table(15, 2), vit.window_table(15, 3)
  assert two.shape == (196, 4) and three.shape == (169, 9)
  assert two[0].tolist() == [0, 1, 15, 16] and two[-1].tolist() == [208, 209, 223, 224]
  assert two[14].tolist() == [15, 16, 30, 31]  # the second row of windows
  assert three[0].tolist() == [0, 1, 2, 15, 16, 17, 30, 31, 32]
  for table in (two, three):
    assert (table.min(), table.max()) == (0, 224)
  assert vit.window_table(14, 14).tolist() == [list(range(196))]


def test_windows_cover_borders_less():
  """Nothing is padded, so fewer windows cover the patches at the border."""
  count = lambda side: np.unique(np.bincount(vit.window_table(15, side).ravel()), return_counts=True)
  assert [x.tolist() for x in count(2)] == [[1, 2, 4], [4, 52, 169]]
  assert [x.tolist() for x in count(3)] == [[1, 2, 3, 4, 6, 9], [4, 8, 44, 4, 44, 121]]


@pytest.mark.slow
def test_window_of_all_patches_is_the_image(small, images):
  """With ln_post and the projection, even if the image's own class token has another read-out."""
  out = run(small, images, PLAIN._replace(cls='proj', windows=(GRID,)))
  assert out.windows[GRID].shape == (2, 1, DIMS.embed)
  np.testing.assert_allclose(out.windows[GRID][:, 0], run(small, images, PLAIN).cls, atol=5e-6)
  assert np.abs(out.windows[GRID][:, 0] - out.cls).max() > 0.1


@pytest.mark.slow
def test_windows_depend_on_their_own_pixels_alone(small, images):
  """Pixels outside of a window do not change a bit of its feature; pixels inside do."""
  row, column, side = 3, 2, 2
  inside = np.zeros((56, 56, 1), bool)
  inside[row * PATCH:(row + side) * PATCH, column * PATCH:(column + side) * PATCH] = True
  other = np.where(inside, images, -3 * images[::-1])
  nudged = images.copy()
  nudged[:, (row + 1) * PATCH, (column + 1) * PATCH] += 1
  at = row * (GRID - 1) + column
  feature = lambda x: np.asarray(run(small, x, PAIR).windows[2])
  before, after = feature(images), feature(other)
  np.testing.assert_array_equal(before[:, at], after[:, at])
  assert (np.abs(before - after).max((0, 2)) > 1e-2).sum() == (GRID - 1) ** 2 - 1
  moved = np.abs(before - feature(nudged)).max((0, 2)) > 1e-4
  assert np.flatnonzero(moved).tolist() == [at, at + 1, at + GRID - 1, at + GRID]  # those that cover that patch


@pytest.mark.slow
def test_windows_keep_their_positions(small):
  """Equal pixels at two places have different features, unless all rows of the positional table are equal."""
  tile = np.random.default_rng(2).standard_normal((PATCH, PATCH, 3)).astype(np.float32)
  images = np.tile(tile, (GRID, GRID, 1))[None]
  features = run(small, images, PAIR).windows[2][0]
  assert np.abs(features[1:] - features[:1]).max(-1).min() > 1e-2
  visual = small.params['visual']
  flat = visual['positional_embedding'].at[1:].set(visual['positional_embedding'][1:2])
  params = small.params | {'visual': visual | {'positional_embedding': flat}}
  same = compiled(small, PAIR)(params, images).windows[2][0]
  np.testing.assert_allclose(same, np.broadcast_to(same[:1], same.shape), atol=5e-6)


@pytest.mark.slow
def test_windows_change_no_other_feature(small, images):
  spec = PLAIN._replace(taps=(Tap('clip', 3), Tap('vv', 5)), sides=(SideStream('vv', 'vv', 2),), read='none')
  plain, both = run(small, images, spec), run(small, images, spec._replace(windows=(3, 2)))
  np.testing.assert_allclose(both.cls, plain.cls, atol=5e-6)
  for name, tap in plain.taps.items():
    np.testing.assert_allclose(both.taps[name], tap, atol=5e-6)
  assert plain.windows == {} and set(both.windows) == {2, 3}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), both.windows,
               run(small, images, PAIR).windows)


@pytest.mark.slow
@pytest.mark.parametrize('tokens', [1, 70])  # one window per pass; an incomplete last pass; by default a single pass
def test_number_of_passes_does_not_matter(small, images, monkeypatch, tokens):
  want = run(small, images, PAIR).windows[3]
  monkeypatch.setattr(vit, '_WINDOW_TOKENS_CPU', tokens)
  spec = PLAIN._replace(cls='', windows=(3,))
  out = jax.jit(lambda p, x: small.image(p, x, spec))(small.params, images)
  np.testing.assert_allclose(out.windows[3], want, atol=5e-6)


@pytest.mark.slow
def test_memory_is_bounded(small, monkeypatch):
  """Several passes over the windows need less than half of the memory of a single one."""
  spec, shape = PLAIN._replace(windows=(3,)), jax.ShapeDtypeStruct((16, 56, 56, 3), np.float32)

  def size():
    program = jax.jit(lambda p, x: small.image(p, x, spec)).lower(small.params, shape).compile()
    return program.memory_analysis().temp_size_in_bytes

  bounded = size()
  monkeypatch.setattr(vit, '_WINDOW_TOKENS_CPU', 10 ** 6)
  assert size() > 2 * bounded


@pytest.fixture
def torch(torch):
  """PyTorch with one thread; with more, a loop over small windows mostly waits for threads."""
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  yield torch
  torch.set_num_threads(threads)


def test_windows_equal_a_loop_in_pytorch(small, arrays, images, torch):
  with torch.no_grad():
    cls, windows, patches = torch_winclip.Official(arrays, DIMS).encode(images, (2, 3))
  spec = PAIR._replace(taps=(Tap('clip', DIMS.layers),), read='none')
  out = run(small, images, spec)
  np.testing.assert_allclose(out.cls, cls, atol=1e-4)
  np.testing.assert_allclose(out.taps[f'clip/{DIMS.layers}/block'], patches, atol=1e-4)
  for side in (2, 3):
    np.testing.assert_allclose(out.windows[side], windows[side], atol=1e-4)


def test_shapes_of_the_published_size():
  big = clip_lib.Clip(clip_lib.ARCHS['vit_b16_plus_240'], 240, params=None)
  out = jax.eval_shape(lambda p, x: big.image(p, x, FeatureSpec(240, windows=(2, 3))),
                       clip_lib.template(big.arch), jax.ShapeDtypeStruct((2, 240, 240, 3), np.float32))
  assert {side: x.shape for side, x in out.windows.items()} == {2: (2, 196, 640), 3: (2, 169, 640)}
