"""The text tower: causality, pooling, and deep prompt tokens in every mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip.test_vit import arch_of
from golden import record_clip

from zsad_jax.clip import attention, block
from zsad_jax.clip import model as clip_lib

pytestmark = pytest.mark.usefixtures('highest_precision')
DIMS = record_clip.Dims()


@pytest.fixture(scope='module')
def small():
  """Returns a CLIP with the weights of the golden files, and their ids and deep tokens."""
  _, ids, deep = record_clip.inputs(DIMS, np.random.RandomState(1))
  return clip_lib.from_state_dict(arch_of(DIMS), record_clip.weights(DIMS, np.random.RandomState(0))), ids, deep


@pytest.fixture(scope='module')
def golden():
  with np.load(record_clip.HERE / 'clip_quick_gelu.npz') as file:
    return dict(file)


def encode(clip_, ids, deep=None, mode='overwrite', eot=None):
  def run(params, ids, eot, deep):
    return clip_.text(params, clip_.embed(params, ids), eot, deep=deep, deep_mode=mode)
  return jax.jit(run)(clip_.params, jnp.asarray(ids), clip_.eot(ids) if eot is None else jnp.asarray(eot), deep)


def halved(deep):
  """Returns deep tokens rounded to half precision, as in the released code."""
  return deep.astype(np.float16).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize('name', record_clip.RECORDS)
def test_features_equal_the_released_encoders(name):
  dims = record_clip.RECORDS[name]
  small = clip_lib.from_state_dict(arch_of(dims), record_clip.weights(dims, np.random.RandomState(0)))
  _, ids, deep = record_clip.inputs(dims, np.random.RandomState(1))
  with np.load(record_clip.HERE / f'clip_{name}.npz') as golden:
    np.testing.assert_allclose(encode(small, ids), golden['text'], atol=1e-4)
    out = encode(small, ids, halved(deep))
    np.testing.assert_allclose(out, golden['deep_text'], atol=1e-4)
    assert np.abs(out - golden['text']).max() > 0.1


@pytest.mark.slow
def test_deep_tokens_overwrite_positions_1_to_k_from_block_2_on(small, golden, monkeypatch):
  clip_, ids, deep = small
  deep = halved(deep)
  entering, qkv = [], block.Block.qkv

  def spy(self, x):
    jax.debug.callback(lambda x: entering.append(np.array(x)), x, ordered=True)
    return qkv(self, x)

  monkeypatch.setattr(block.Block, 'qkv', spy)
  encode(clip_, ids, deep)
  jax.effects_barrier()
  assert [x.shape for x in entering] == [(2, DIMS.context, DIMS.text_width)] * DIMS.text_layers
  k = deep.shape[1]
  for number, x in enumerate(entering, 1):
    same = [np.array_equal(x[:, 1:1 + k], np.broadcast_to(d, (2, *d.shape))) for d in deep]
    assert same == [number - 2 == i for i in range(len(deep))], f'block {number}'
    np.testing.assert_allclose(x, golden['entering'][number - 1], atol=1e-4)
  table = clip_.params['text']
  context = table['token_embedding']['embedding'][ids] + table['positional_embedding'][None]
  np.testing.assert_allclose(entering[0], context, atol=1e-6)


def by_hand(clip_, ids, deep, stay=False):
  """Computes the concat mode as the paper describes it: slots are inserted before a block and removed after it.

  With `stay`, computes the insert mode: in each of the first blocks new slots replace the last ones, then they stay.
  """
  t, tree = clip_.arch.text, jax.tree.map(np.asarray, clip_.params['text'])
  x = tree['token_embedding']['embedding'][ids] + tree['positional_embedding'][None, :ids.shape[1]]
  for i in range(t.layers):
    b = block.Block(t.width, t.heads, t.layers, clip_.arch.activation).bind(
        {'params': jax.tree.map(lambda leaf, i=i: leaf[i], tree['blocks'])})
    k = 0
    if i < len(deep):
      k = deep.shape[1]
      rest = x[:, 1 + (k if stay and i else 0):]
      x = jnp.concatenate([x[:, :1], jnp.broadcast_to(deep[i][None], (len(x), *deep[i].shape)), rest], 1)
    mask = np.tril(np.ones((x.shape[1], x.shape[1]), bool))
    x = x + b.attn.out(attention.attend(*b.qkv(x), 'qk', mask))
    x = b.feed_forward(x)
    x = x if stay else jnp.concatenate([x[:, :1], x[:, 1 + k:]], 1)
  x = np.asarray(x)[np.arange(len(ids)), ids.argmax(-1) + (deep.shape[1] if stay else 0)]
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
  return (x * tree['ln_final']['scale'] + tree['ln_final']['bias']) @ tree['text_projection']['kernel']


@pytest.mark.slow
@pytest.mark.parametrize('blocks', [1, 3, DIMS.text_layers])
def test_concat_inserts_slots_and_drops_them(small, blocks):
  clip_, ids, _ = small
  deep = np.random.default_rng(0).standard_normal((blocks, 2, DIMS.text_width)).astype(np.float32)
  out = encode(clip_, ids, deep, 'concat')
  np.testing.assert_allclose(out, by_hand(clip_, ids, deep), atol=2e-5)
  assert np.abs(out - encode(clip_, ids)).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize('blocks', [1, 3, DIMS.text_layers])
def test_inserted_slots_stay(small, blocks):
  clip_, ids, _ = small
  deep = np.random.default_rng(0).standard_normal((blocks, 2, DIMS.text_width)).astype(np.float32)
  out = encode(clip_, ids, deep, 'insert')
  np.testing.assert_allclose(out, by_hand(clip_, ids, deep, stay=True), atol=2e-5)
  # Slots in the last block are read by that block alone, so that both modes are equal.
  assert (np.abs(out - encode(clip_, ids, deep, 'concat')).max() > 0.01) == (blocks < DIMS.text_layers)


@pytest.mark.slow
def test_inserting_nothing_changes_nothing(small):
  clip_, ids, _ = small
  nothing = np.zeros((3, 0, DIMS.text_width), np.float32)
  np.testing.assert_allclose(encode(clip_, ids, nothing, 'insert'), encode(clip_, ids), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['overwrite', 'concat', 'insert'])
def test_deep_tokens_may_carry_a_batch_axis(small, mode):
  clip_, ids, deep = small
  each = np.stack([deep, 2 * deep], 1)  # [n, B, K, W]
  out = encode(clip_, ids, each, mode)
  for row in range(2):
    alone = encode(clip_, ids[row:row + 1], each[:, row], mode)
    np.testing.assert_allclose(out[row:row + 1], alone, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['overwrite', 'concat', 'insert'])
def test_text_cut_after_its_end_is_exact(small, mode):
  clip_, ids, deep = small
  end = int(ids.argmax(-1).max()) + 1
  np.testing.assert_allclose(encode(clip_, ids[:, :end], deep, mode), encode(clip_, ids, deep, mode), atol=2e-6)


def test_tokens_after_the_end_change_nothing(small):
  clip_, ids, _ = small
  other = np.where(np.arange(DIMS.context)[None] > ids.argmax(-1)[:, None], 7, ids)
  np.testing.assert_allclose(encode(clip_, other), encode(clip_, ids), atol=1e-6)
  other = np.where(np.arange(DIMS.context)[None] == 1, 7, ids)
  assert np.abs(encode(clip_, other) - encode(clip_, ids)).max() > 0.01


def test_the_end_of_text_is_the_first_maximum(small):
  """Hugging Face pads with the end token itself."""
  clip_, ids, _ = small
  padded = np.where(ids == 0, DIMS.vocab - 1, ids)
  np.testing.assert_array_equal(clip_.eot(padded), clip_.eot(ids))


@pytest.mark.slow
def test_gradients_reach_prompts_and_deep_tokens(small):
  clip_, ids, deep = small
  embeddings = clip_.embed(clip_.params, jnp.asarray(ids))
  loss = lambda e, d: clip_.text(clip_.params, e, clip_.eot(ids), deep=d)[:, :3].sum()
  by_embedding, by_deep = jax.jit(jax.grad(loss, (0, 1)))(embeddings, jnp.asarray(deep))
  end = ids.argmax(-1)
  for row in range(2):
    per_position = np.abs(by_embedding[row]).max(-1)
    assert (per_position[:end[row] + 1] > 0).all() and (per_position[end[row] + 1:] == 0).all()
  assert np.isfinite(by_deep).all() and (np.abs(by_deep).max(-1) > 0).all()


@pytest.mark.parametrize('change, message', [
    ({'length': 17}, '17 tokens .* context of 16'), ({'mode': 'prepend'}, "deep_mode='prepend' is not one of"),
    ({'n': 5}, "5 blocks; deep_mode='overwrite' .*1 to 4"), ({'n': 6, 'mode': 'concat'}, "6 blocks; .*1 to 5"),
    ({'n': 6, 'mode': 'insert'}, "6 blocks; deep_mode='insert' .*1 to 5"), ({'n': 0}, '0 blocks'),
    ({'k': 16}, '16 deep tokens do not fit .* 16 tokens')])
def test_bad_input_is_refused(small, change, message):
  clip_, _, _ = small
  setting = {'length': 16, 'mode': 'overwrite', 'n': 2, 'k': 2} | change
  deep = np.zeros((setting['n'], setting['k'], DIMS.text_width), np.float32)
  with pytest.raises(ValueError, match=message):
    clip_.text(clip_.params, np.zeros((1, setting['length'], DIMS.text_width), np.float32), np.zeros(1, np.int32),
               deep=deep, deep_mode=setting['mode'])
