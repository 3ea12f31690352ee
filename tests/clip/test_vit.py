"""The image tower against a plain loop over blocks, recorded features of the released encoder, and known pitfalls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import record_clip
from hypothesis import given, settings
from hypothesis import strategies as st

from zsad_jax.clip import archs, attention, vit
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import Features, FeatureSpec, SideStream, Tap

pytestmark = pytest.mark.usefixtures('highest_precision')
DIMS = record_clip.Dims()
SIZE, FIRST = record_clip.SIZE, record_clip.FIRST_BLOCK
DPAM = (SideStream('vv', 'vv', FIRST),)


def arch_of(dims):
  return clip_lib.Arch('small', dims.embed,
                   clip_lib.Vision(dims.image_size, dims.patch, dims.width, dims.layers, dims.heads),
                   clip_lib.Text(dims.context, dims.vocab, dims.text_width, dims.text_layers, dims.text_heads),
                   dims.activation)


@pytest.fixture(scope='module')
def small():
  """Returns a CLIP with the weights of the golden files, and their images."""
  arrays = record_clip.weights(DIMS, np.random.RandomState(0))
  images, _, _ = record_clip.inputs(DIMS, np.random.RandomState(1))
  return clip_lib.from_state_dict(arch_of(DIMS), arrays), images


@pytest.fixture(scope='module')
def golden():
  with np.load(record_clip.HERE / 'clip_quick_gelu.npz') as file:
    return dict(file)


def run(small, spec, params=None):
  clip_, images = small
  return jax.jit(lambda p, x: clip_.image(p, x, spec))(params or clip_.params, images)


@pytest.fixture(scope='module')
def blocks(small):
  """Returns for each block its input, its attention output in every mode, and its two functions."""
  clip_, images = small
  arch, visual = clip_.arch, clip_.params['visual']
  v = arch.vision
  tower = archs.vision_tower(arch, FeatureSpec(SIZE))
  block = vit.block.Block(v.width, v.heads, v.layers, arch.activation)

  @jax.jit
  def step(weights, x):
    bound = block.bind({'params': weights})
    qkv = bound.qkv(x)
    return {mode: bound.attn.out(attention.attend(*qkv, mode)) for mode in attention.MODES}

  feed = jax.jit(lambda weights, x: block.apply({'params': weights}, x, method='feed_forward'))
  x, out = jax.jit(lambda p, x: tower.apply({'params': p}, x, method='embed'))(visual, images), []
  for i in range(v.layers):
    weights = jax.tree.map(lambda leaf, i=i: leaf[i], visual['blocks'])
    delta = jax.tree.map(np.asarray, step(weights, x))
    out.append((np.asarray(x), delta, lambda x, weights=weights: np.asarray(feed(weights, x)),
                lambda x, weights=weights: step(weights, x)))
    x = feed(weights, x + delta['qk'])
  return out


def streams(blocks, sides):
  """Returns {(stream, block, point): [B, N + 1, D]} of every stream, by the papers' equations."""
  out, side = {}, {}
  for number, (x, delta, feed, _) in enumerate(blocks, 1):
    for s in sides:
      since = number - s.first_block
      if since == 0 or (s.reset_every and since > 0 and since % s.reset_every == 0):
        side[s.name] = x if s.residual_base else 0 * x
      if s.ffn and since > 0:
        middle = x + delta[s.mode]
        side[s.name] = feed(middle)
      elif since >= 0:
        middle = side[s.name] = side[s.name] + delta[s.mode]
      else:
        middle, side[s.name] = x + delta['qk'], feed(x + delta['qk'])
      out[s.name, number, 'attention'], out[s.name, number, 'block'] = middle, side[s.name]
    out['clip', number, 'attention'] = x + delta['qk']
    out['clip', number, 'block'] = feed(x + delta['qk'])
  return out


side_records = st.builds(
    SideStream, name=st.just(''), mode=st.sampled_from(attention.MODES), first_block=st.integers(1, DIMS.layers),
    residual_base=st.booleans(), reset_every=st.integers(0, 3), ffn=st.booleans())


@pytest.mark.slow
@settings(max_examples=8)  # each compiles
@given(data=st.data())
def test_any_side_streams_and_taps_equal_the_loop(small, blocks, data):
  sides = data.draw(st.lists(side_records, max_size=3))
  sides = tuple(side._replace(name=f's{i}') for i, side in enumerate(sides))
  every = [Tap(stream, block, point, token) for stream in ('clip', *(s.name for s in sides))
           for block in range(1, DIMS.layers + 1) for point in vit.POINTS for token in vit.TOKENS]
  taps = tuple(data.draw(st.lists(st.sampled_from(every), unique=True, min_size=1, max_size=8)))
  out = run(small, FeatureSpec(SIZE, taps=taps, sides=sides, read='none'))
  want = streams(blocks, sides)
  assert out.taps.keys() == {tap.name for tap in taps}
  for tap in taps:
    rows = slice(0, 1) if tap.token == 'cls' else slice(1, None)
    np.testing.assert_allclose(out.taps[tap.name], want[tap[:3]][:, rows], atol=1e-5, err_msg=tap.name)
  np.testing.assert_allclose(out.cls, want['clip', DIMS.layers, 'block'][:, 0]
                             @ small[0].params['visual']['proj']['kernel'], atol=1e-5)


@pytest.mark.slow
def test_features_equal_the_released_encoders(small, golden):
  """Every block of both paths, the second path with a feed-forward network, and both read-outs."""
  taps = tuple(Tap(stream, block) for stream in ('clip', 'vv', 'fed') for block in range(1, DIMS.layers + 1))
  sides = (*DPAM, SideStream('fed', 'vv', FIRST, ffn=True))
  out = run(small, FeatureSpec(SIZE, taps=taps, sides=sides, read='none'))
  for stream, key in (('clip', 'original'), ('vv', 'surgical'), ('fed', 'fed')):
    for block in range(1, DIMS.layers + 1):
      np.testing.assert_allclose(out.taps[f'{stream}/{block}/block'], golden[key][block - 1][:, 1:], atol=1e-4)
  np.testing.assert_allclose(out.cls, golden['cls'], atol=1e-4)
  out = run(small, FeatureSpec(SIZE, taps=(Tap('vv', DIMS.layers),), sides=DPAM))
  np.testing.assert_allclose(out.taps[f'vv/{DIMS.layers}/block'], golden['read'], atol=1e-4)


@pytest.mark.slow
def test_features_with_exact_gelu_equal_the_released_encoders():
  dims = record_clip.RECORDS['gelu']
  arrays = record_clip.weights(dims, np.random.RandomState(0))
  images, _, _ = record_clip.inputs(dims, np.random.RandomState(1))
  small = clip_lib.from_state_dict(arch_of(dims), arrays), images
  out = run(small, FeatureSpec(SIZE, taps=(Tap('vv', dims.layers),), sides=DPAM))
  with np.load(record_clip.HERE / 'clip_gelu.npz') as golden:
    np.testing.assert_allclose(out.cls, golden['cls'], atol=1e-4)
    np.testing.assert_allclose(out.taps[f'vv/{dims.layers}/block'], golden['read'], atol=1e-4)


@pytest.mark.slow
def test_class_feature_skips_ln_post_by_default(small, golden):
  visual = jax.tree.map(np.asarray, small[0].params['visual'])
  last = golden['original'][-1][:, 0]
  out = run(small, FeatureSpec(SIZE, cls='proj')).cls
  np.testing.assert_allclose(out, last @ visual['proj']['kernel'], atol=1e-4)
  normed = (last - last.mean(-1, keepdims=True)) / np.sqrt(last.var(-1, keepdims=True) + 1e-5)
  normed = normed * visual['ln_post']['scale'] + visual['ln_post']['bias']
  other = run(small, FeatureSpec(SIZE, cls='ln_post_proj')).cls
  np.testing.assert_allclose(other, normed @ visual['proj']['kernel'], atol=1e-4)
  assert np.abs(out - other).max() > 0.1


@pytest.mark.slow
def test_side_stream_reads_clips_stream_and_not_its_own(small, blocks):
  """Closed form of DPAM: y^L = x^{f-1} + sum over l >= f of VV_l(LN1(x^{l-1})); no feed-forward network."""
  closed = own_path = blocks[FIRST - 1][0]
  for _, delta, _, attend in blocks[FIRST - 1:]:
    closed = closed + delta['vv']
    own_path = own_path + attend(own_path)['vv']
  last = Tap('vv', DIMS.layers)
  out = run(small, FeatureSpec(SIZE, taps=(last,), sides=DPAM, read='none')).taps[last.name]
  np.testing.assert_allclose(out, closed[:, 1:], atol=1e-5)
  assert np.abs(out - own_path[:, 1:]).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize('stream', ['vv', 'qk', 'clip'])
def test_class_feature_does_not_depend_on_taps(small, stream):
  """Side streams never feed back, and a last block that updates the class token alone is exact."""
  sides = (*DPAM, SideStream('qk', 'qk', FIRST))
  with_tap = run(small, FeatureSpec(SIZE, taps=(Tap(stream, DIMS.layers),), sides=sides)).cls
  np.testing.assert_allclose(with_tap, run(small, FeatureSpec(SIZE)).cls, atol=2e-6)


@pytest.mark.slow
def test_dpam_covers_blocks_6_to_24():
  """With attention that adds exactly one per block, the stream of a 24-block tower collects 19 of them."""
  arch = clip_lib.Arch('deep', 8, clip_lib.Vision(8, 4, 8, 24, 2), clip_lib.Text(4, 5, 8, 1, 2))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda s: 0.1 * rng.standard_normal(s.shape, np.float32), clip_lib.template(arch))
  out = params['visual']['blocks']['attn']['out']
  out['kernel'], out['bias'] = np.zeros_like(out['kernel']), np.ones_like(out['bias'])
  side = SideStream('vv')
  assert side.first_block == 6
  taps = tuple(Tap(stream, block) for stream in ('clip', 'vv') for block in (5, 6, 24))
  small = clip_lib.build(arch, params), rng.standard_normal((1, 8, 8, 3), np.float32)
  taps = run(small, FeatureSpec(8, taps=taps, sides=(side,), read='none')).taps
  np.testing.assert_array_equal(taps['vv/5/block'], taps['clip/5/block'])
  np.testing.assert_allclose(taps['vv/6/block'] - taps['clip/5/block'], 1, atol=1e-5)
  np.testing.assert_allclose(taps['vv/24/block'] - taps['clip/5/block'], 19, atol=1e-4)
  assert np.abs(taps['vv/6/block'] - taps['clip/6/block']).max() > 1e-3


@pytest.mark.slow
def test_patches_are_row_major_and_the_class_token_dropped(small):
  """A change of patch (row 1, column 0) shows at patch G of the tap, token 1 + G of the tower."""
  clip_, _ = small
  grid, p = SIZE // DIMS.patch, DIMS.patch
  marked = np.zeros((2, SIZE, SIZE, 3), np.float32)
  marked[1, p:2 * p, :p] = np.random.default_rng(0).standard_normal((p, p, 3))
  tower = archs.vision_tower(clip_.arch, FeatureSpec(SIZE))
  plain, other = tower.apply({'params': clip_.params['visual']}, marked, method='embed')
  assert np.flatnonzero(np.abs(other - plain).max(-1) > 1e-6).tolist() == [1 + grid]
  out = run((clip_, marked), FeatureSpec(SIZE, taps=(Tap('clip', 1),), read='none')).taps['clip/1/block']
  assert out.shape[1] == grid * grid
  assert np.abs(out[1] - out[0]).max(-1).argmax() == grid


def test_patch_embedding_is_the_unpadded_convolution():
  rng = np.random.default_rng(0)
  images = rng.standard_normal((2, 12, 12, 3)).astype(np.float32)
  kernel = rng.standard_normal((4, 4, 3, 5)).astype(np.float32)
  want = jax.lax.conv_general_dilated(images, kernel, (4, 4), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  out = vit.PatchEmbed(4, 5).apply({'params': {'kernel': kernel}}, images)
  np.testing.assert_allclose(out, want.reshape(2, 9, 5), atol=1e-4)
  padless = jax.lax.conv_general_dilated(np.ones((1, 240, 240, 3)), np.ones((14, 14, 3, 1)), (14, 14), 'VALID',
                                         dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  assert padless.shape[1:3] == (17, 17)  # the reference drops pixels where this project raises an error


def half_pixel(table, grid):
  """Returns [g, g, D] resampled bilinearly by definition: pixel centres at i + 1/2, edges repeated."""
  g = len(table)
  at = np.clip((np.arange(grid) + 0.5) * g / grid - 0.5, 0, g - 1)
  low = np.minimum(np.floor(at).astype(int), g - 2)
  t = (at - low)[:, None]
  mix = lambda x: x[low] * (1 - t[..., None]) + x[low + 1] * t[..., None]
  return mix(mix(table).swapaxes(0, 1)).swapaxes(0, 1)


@pytest.mark.slow
@pytest.mark.parametrize('side, grid', [(24, 37), (14, 9)])
def test_positions_are_bilinear_and_keep_the_class_row(side, grid):
  """Only the smaller grid would reveal a missing antialias=False (by 0.03 and more)."""
  table = np.random.default_rng(0).standard_normal((1 + side * side, 6)).astype(np.float32)
  out = vit.resample_positions(jnp.asarray(table), grid)
  np.testing.assert_array_equal(out[0], table[0])
  want = half_pixel(table[1:].reshape(side, side, 6), grid)
  np.testing.assert_allclose(out[1:], want.reshape(grid * grid, 6), atol=1e-5)
  for method in ('bicubic', 'bicubic_antialias'):
    assert np.abs(out - vit.resample_positions(jnp.asarray(table), grid, method)).max() > 0.03
  assert vit.resample_positions(table, side) is table


@pytest.mark.slow
def test_positions_come_from_the_pretrained_table_every_time(small):
  clip_, _ = small
  images = np.zeros((1, 24, 24, 3), np.float32)
  embed = lambda: run((clip_, images), FeatureSpec(24)).cls
  before = embed()
  run((clip_, np.zeros((1, 72, 72, 3), np.float32)), FeatureSpec(72))
  np.testing.assert_array_equal(before, embed())


@pytest.mark.parametrize('side, grid', [(7, 10), (10, 7), (5, 5), (3, 1)])
@pytest.mark.parametrize('method, torch_mode', [
    ('bilinear', {'mode': 'bilinear'}), ('bicubic', {'mode': 'bicubic'}),
    ('bicubic_antialias', {'mode': 'bicubic', 'antialias': True})])
def test_positions_against_torch(side, grid, method, torch_mode, torch):
  table = np.random.default_rng(0).standard_normal((1 + side * side, 3)).astype(np.float32)
  patches = torch.from_numpy(table[1:].reshape(1, side, side, 3)).permute(0, 3, 1, 2)
  want = torch.nn.functional.interpolate(patches, (grid, grid), align_corners=False, **torch_mode)
  out = vit.resample_positions(jnp.asarray(table), grid, method)
  np.testing.assert_allclose(out[1:], want[0].permute(1, 2, 0).reshape(-1, 3), atol=2e-6)


def test_published_size_has_the_right_shapes():
  arch = clip_lib.ARCHS['vit_l14_336']
  taps = tuple(Tap('vv', block) for block in (6, 12, 18, 24))
  big = clip_lib.Clip(arch, 518, params=None)
  images = jax.ShapeDtypeStruct((2, 518, 518, 3), np.float32)
  out = jax.eval_shape(lambda p, x: big.image(p, x, FeatureSpec(518, taps=taps, sides=(SideStream('vv'),))),
                       clip_lib.template(arch), images)
  assert out.cls.shape == (2, 768)
  assert {name: tap.shape for name, tap in out.taps.items()} == {tap.name: (2, 1369, 768) for tap in taps}


@pytest.mark.slow
@pytest.mark.parametrize('read, width', [('none', 64), ('ln_post', 64), ('proj', 24), ('ln_post_proj', 24)])
def test_read_outs(small, read, width):
  visual = jax.tree.map(np.asarray, small[0].params['visual'])
  raw = np.asarray(run(small, FeatureSpec(SIZE, taps=(Tap('clip', 2),), read='none')).taps['clip/2/block'])
  if read.startswith('ln_post'):
    raw = (raw - raw.mean(-1, keepdims=True)) / np.sqrt(raw.var(-1, keepdims=True) + 1e-5)
    raw = raw * visual['ln_post']['scale'] + visual['ln_post']['bias']
  want = raw @ visual['proj']['kernel'] if read.endswith('proj') else raw
  out = run(small, FeatureSpec(SIZE, cls='', taps=(Tap('clip', 2),), read=read))
  assert out.cls is None and out.taps['clip/2/block'].shape == (2, 49, width)
  np.testing.assert_allclose(out.taps['clip/2/block'], want, atol=1e-4)


@pytest.mark.slow
def test_a_tap_may_have_its_own_read_out(small):
  """Raw patches and projected class tokens in one pass; the class token of the last block needs no patches there."""
  last = DIMS.layers
  taps = (Tap('clip', 2), Tap('clip', 2, token='cls', read='ln_post_proj'), Tap('clip', last, token='cls', read='proj'))
  assert [tap.name for tap in taps] == ['clip/2/block', 'clip/2/block/cls/ln_post_proj', f'clip/{last}/block/cls/proj']
  spec = FeatureSpec(SIZE, taps=taps, read='none')
  out = run(small, spec)
  raw, other, end = out.taps.values()
  np.testing.assert_array_equal(raw, run(small, FeatureSpec(SIZE, taps=taps[:1], read='none')).taps['clip/2/block'])
  assert other.shape == (2, 1, DIMS.embed)
  np.testing.assert_allclose(end[:, 0], out.cls, atol=1e-6)
  own = run(small, FeatureSpec(SIZE, taps=(Tap('clip', 2, token='cls'),))).taps['clip/2/block/cls']
  np.testing.assert_allclose(other, own, atol=1e-6)
  assert not vit.VisionTower(SIZE, DIMS.patch, DIMS.width, last, DIMS.heads, DIMS.embed, DIMS.activation,
                             spec)._reads_last_patches()


@pytest.mark.parametrize('tap, message', [
  (Tap('clip', 1, token='class'), r"spec\.taps\[0\]\.token='class' is not one of patches, cls"),
  (Tap('clip', 1, read='raw'), r"spec\.taps\[0\]\.read='raw' is not one of '', ln_post_proj")])
def test_unknown_tokens_and_read_outs_are_refused(tap, message):
  with pytest.raises(ValueError, match=message):
    vit.validate(FeatureSpec(SIZE, taps=(tap,)), patch=DIMS.patch, layers=DIMS.layers)


@pytest.mark.slow
def test_features_is_a_pytree_of_the_taps_in_order(small):
  taps = (Tap('clip', 5), Tap('clip', 1), Tap('clip', 3, 'attention'))
  out = run(small, FeatureSpec(SIZE, taps=taps))
  assert isinstance(out, Features)
  assert all(np.abs(out.taps[a.name] - out.taps[b.name]).max() > 0.1 for a in taps for b in taps if a != b)


def test_images_of_another_size_are_refused(small):
  with pytest.raises(ValueError, match=r'\(2, 56, 56, 3\); spec\.image_size=64 needs \[B, 64, 64, 3\]'):
    small[0].image(small[0].params, small[1], FeatureSpec(64))


@pytest.mark.slow
def test_attention_maps_are_those_of_the_requested_block(small):
  clip_, images = small
  block = 3
  taps = tuple(Tap('clip', block - 1, token=token, read='none') for token in ('cls', 'patches'))
  before = jax.jit(lambda p, x: clip_.image(p, x, FeatureSpec(SIZE, taps=taps)).taps)(clip_.params, images)
  x = np.concatenate([before[tap.name] for tap in taps], 1)
  own = jax.tree.map(lambda w: np.asarray(w[block - 1]), clip_.params['visual']['blocks'])
  y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
  y = y * own['ln_1']['scale'] + own['ln_1']['bias']
  packed = np.einsum('bnd,dchk->bnchk', y, own['attn']['qkv']['kernel']) + own['attn']['qkv']['bias']
  q, _, v = np.moveaxis(packed, 2, 0)
  maps = jax.jit(lambda p, x: clip_.attention(p, x, FeatureSpec(SIZE), block))(clip_.params, images)
  for mode, vectors in (('qq', q), ('vv', v)):
    scores = np.einsum('bnhd,bmhd->bhnm', vectors, vectors) * vectors.shape[-1] ** -.5
    np.testing.assert_allclose(maps[mode], np.asarray(jax.nn.softmax(scores)).mean(1), atol=1e-5)
  with pytest.raises(ValueError, match=r'block=0 must be in \[1, 5\]'):
    clip_.attention(clip_.params, images, FeatureSpec(SIZE), 0)
