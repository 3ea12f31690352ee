"""Texts in a store: what the text tower says of each, cut short, kept over a kill, and known by what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.clip import model as clip_lib
from zsad_jax.engine import text_features

PAIRS = [(f'a photo of {i} thing{"s" * i}', f'w{i} a broken thing') for i in range(5)]


@pytest.fixture(scope='module')
def clip():
  return clip_lib.load('tiny', image_size=64)


@pytest.fixture(scope='module')
def whole(clip):
  """[5, 2, E] at the full context."""
  ids = clip.tokenize([text for pair in PAIRS for text in pair])
  found = jax.jit(clip.text)(clip.params, clip.embed(clip.params, ids), jnp.asarray(clip.eot(ids)))
  return np.asarray(found).reshape(5, 2, -1)


def test_cut_after_the_longest_text_the_features_are_those_of_the_whole_context(clip, whole, tmp_path, monkeypatch):
  monkeypatch.setattr(text_features, 'TEXTS', 4)
  encode, lengths = text_features.encoder(clip), []

  def spy(params, ids, eot):
    lengths.append(ids.shape)
    return encode(params, ids, eot)

  store = text_features.store(tmp_path, PAIRS, clip, spy, max_gb=1)
  longest = int(clip.eot(clip.tokenize([text for pair in PAIRS for text in pair])).max()) + 1
  assert len(lengths) == 3 and len(set(lengths)) == 1  # two pairs at a time and one shape, the last one padded
  rows, cut = lengths[0]
  assert rows == 8 and longest <= cut < longest + 8 <= 77 and cut % 8 == 0  # devices, of which there are eight
  found = store.read([4, 0, 3, 1, 2])['texts']
  np.testing.assert_allclose(found, whole[[4, 0, 3, 1, 2]], atol=2e-5)
  assert not np.allclose(np.linalg.norm(found, axis=-1), 1, atol=0.1)  # as they come
  again = text_features.store(tmp_path, PAIRS, clip, lambda *_: pytest.fail('encoded twice'), max_gb=1)
  np.testing.assert_array_equal(again.read([2])['texts'], store.read([2])['texts'])


def test_what_a_kill_left_is_kept_and_other_texts_are_another_store(clip, whole, tmp_path, monkeypatch):
  monkeypatch.setattr(text_features, 'TEXTS', 4)
  encode, calls = text_features.encoder(clip), []

  def killed(params, ids, eot):
    if calls:
      raise KeyboardInterrupt
    calls.append(len(ids))
    return encode(params, ids, eot)

  with pytest.raises(KeyboardInterrupt):
    text_features.store(tmp_path, PAIRS, clip, killed, max_gb=1)
  assert len(list(tmp_path.rglob('*.shard'))) == 1 and not list(tmp_path.rglob('*.tmp'))
  left = []
  done = text_features.store(tmp_path, PAIRS, clip, lambda *rest: left.append(1) or encode(*rest), max_gb=1)
  assert len(left) == 2
  np.testing.assert_allclose(done.read(range(5))['texts'], whole, atol=2e-5)
  other = text_features.store(tmp_path, PAIRS[:4] + [('something', 'else')], clip, encode, max_gb=1)
  assert other.path != done.path


@pytest.mark.parametrize('groups', [[], [()], [('a', 'b'), ('c',)]])
def test_groups_are_all_of_one_size(clip, tmp_path, groups):
  with pytest.raises(ValueError, match='texts come in one group or more, all of equally many'):
    text_features.store(tmp_path, groups, clip, None, max_gb=1)
