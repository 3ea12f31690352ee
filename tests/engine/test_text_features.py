"""Text features in a store: each text is encoded once, cut short without changing its feature, and kept over a kill."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax.clip import model as clip_lib
from zsad_jax.engine import runtime, text_features

PAIRS = [(f'a photo of {i} thing{"s" * i}', f'w{i} a broken thing') for i in range(5)]
ONE = runtime.place(jax.devices()[:1])


@pytest.fixture(scope='module')
def clip():
  return clip_lib.load('tiny', image_size=64)


@pytest.fixture(scope='module')
def whole(clip):
  """[5, 2, E] at the full context."""
  ids = clip.tokenize([text for pair in PAIRS for text in pair])
  texts = jax.jit(clip.text)(clip.params, clip.embed(clip.params, ids), jnp.asarray(clip.eot(ids)))
  return np.asarray(texts).reshape(5, 2, -1)


@pytest.fixture
def shards(monkeypatch):
  """Texts are encoded two pairs at a time; a list of the pairs of each time."""
  monkeypatch.setattr(text_features, 'TEXTS', 4)
  rows, indices = text_features._rows, []

  def spy(*args, **options):
    for part in rows(*args, **options):
      indices.append(part[0].tolist())
      yield part

  monkeypatch.setattr(text_features, '_rows', spy)
  return indices


def store(root, clip, pairs=PAIRS):
  return text_features.store(root, pairs, clip, max_gb=1, place=ONE)


@pytest.mark.slow
def test_features_are_those_of_the_whole_context_although_texts_are_cut(clip, whole, shards, tmp_path, monkeypatch):
  embed, shapes = clip_lib.Clip.embed, []
  monkeypatch.setattr(clip_lib.Clip, 'embed', lambda *args: (shapes.append(args[2].shape), embed(*args))[1])
  features = store(tmp_path, clip)
  longest = int(clip.eot(clip.tokenize([text for pair in PAIRS for text in pair])).max()) + 1
  (rows, length), = shapes  # traced once: the last two texts are padded to four
  assert shards == [[0, 1], [2, 3], [4]] and rows == 4
  assert longest <= length < longest + 8 <= 77 and length % 8 == 0
  texts = features.read([4, 0, 3, 1, 2])['texts']
  np.testing.assert_allclose(texts, whole[[4, 0, 3, 1, 2]], atol=2e-5)
  assert not np.allclose(np.linalg.norm(texts, axis=-1), 1, atol=0.1)  # not normalised
  again = store(tmp_path, clip)
  assert len(shards) == 3, 'nothing is encoded twice'
  np.testing.assert_array_equal(again.read([2])['texts'], features.read([2])['texts'])


@pytest.mark.slow
def test_finished_shards_survive_a_kill_and_other_texts_have_another_store(clip, whole, shards, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    rows = text_features._rows

    def interrupted(*args, **options):
      yield next(rows(*args, **options))
      raise KeyboardInterrupt

    patch.setattr(text_features, '_rows', interrupted)
    with pytest.raises(KeyboardInterrupt):
      store(tmp_path, clip)
  assert len(list(tmp_path.rglob('*.shard'))) == 1 and not list(tmp_path.rglob('*.tmp'))
  shards.clear()
  complete = store(tmp_path, clip)
  assert shards == [[2, 3], [4]]
  np.testing.assert_allclose(complete.read(range(5))['texts'], whole, atol=2e-5)
  assert store(tmp_path, clip, PAIRS[:4] + [('something', 'else')]).path != complete.path


@pytest.mark.parametrize('groups', [[], [()], [('a', 'b'), ('c',)]])
def test_groups_of_different_sizes_are_refused(clip, tmp_path, groups):
  with pytest.raises(ValueError, match='same number of texts, at least one'):
    store(tmp_path, clip, groups)
