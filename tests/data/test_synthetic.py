"""Procedural data: determinism, disjoint groups, exact masks, captions, tokenizer, builders."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from zsad_jax import data
from zsad_jax.data import synthetic
from zsad_jax.data.synthetic import bpe, builder, captions, defects, pretraining

GROUPS = ('pretrain', 'aux', 'target')
STATES = ('damaged', 'anomalous', 'flawed', 'defective', 'blemished', 'broken', 'imperfect', 'flawless', 'perfect',
          'unblemished', 'normal', 'good', 'flaw', 'defect', 'damage', 'scratch', 'crack', 'contamination', 'without')


@pytest.fixture(scope='module')
def tokenizer():
  return pretraining.tokenizer(3072)


def kinds(group):
  return {d for c in synthetic.group(group) for d in c.defects}


def test_there_are_many_categories_and_defects():
  surfaces = [c for c in synthetic.CATEGORIES if c.surface]
  assert len(surfaces) >= 10 and len(synthetic.CATEGORIES) - len(surfaces) >= 10
  assert len(kinds('pretrain') | kinds('aux') | kinds('target')) >= 8


def test_groups_are_disjoint_and_hold_surfaces_and_objects():
  for a, b in itertools.combinations(GROUPS, 2):
    assert not {c.name for c in synthetic.group(a)} & {c.name for c in synthetic.group(b)}
    assert not {c.draw for c in synthetic.group(a)} & {c.draw for c in synthetic.group(b)}
  for name in GROUPS:
    assert {c.surface for c in synthetic.group(name)} == {True, False}


def test_target_has_defects_of_its_own():
  assert kinds('target') - kinds('pretrain') - kinds('aux') == {'thread', 'swap', 'glue'}


@settings(deadline=None, max_examples=12)
@given(st.sampled_from(synthetic.CATEGORIES), st.integers(0, 10**6), st.integers(0, 99))
def test_an_example_is_a_function_of_its_key(kind, index, seed):
  first = synthetic.example(kind, 'test', index, size=40, seed=seed)
  synthetic.example('gear', 'train', 3, size=40)
  again = synthetic.example(kind.name, 'test', index, size=40, seed=seed)
  np.testing.assert_array_equal(first.image, again.image)
  np.testing.assert_array_equal(first.mask, again.mask)
  assert first[3:] == again[3:]
  for other in (dict(index=index + 1), dict(seed=seed + 1), dict(split='train')):
    key = dict(split='test', index=index, seed=seed) | other
    assert (synthetic.example(kind, size=40, **key).twin != first.twin).any()


def test_drawings_do_not_change_by_accident():
  """A change of the drawings needs a new VERSION of DrawnBuilder."""
  drawing = synthetic.example('jar_lid', 'test', 0, size=32, defect='thread')
  assert drawing.colour == 'orange'
  assert abs(float(drawing.image.mean()) - 116.727) < .02


@pytest.mark.slow
@pytest.mark.parametrize('kind', synthetic.CATEGORIES, ids=lambda c: c.name)
def test_mask_covers_the_difference_of_the_twins(kind):
  size = 72
  for defect in kind.defects:
    drawing = synthetic.example(kind, 'test', 0, size=size, defect=defect)
    assert drawing.defect == defect and set(np.unique(drawing.mask)) == {0, 255}, defect
    assert (drawing.mask > 0).mean() < .4, defect
    change = np.abs(drawing.image.astype(int) - drawing.twin).max(-1)
    near = np.asarray(Image.fromarray(drawing.mask).filter(ImageFilter.MaxFilter(3))) > 0
    # Below the threshold of visibility, plus rounding and what a saturated pixel hides.
    assert change[~near].max(initial=0) <= 255 * synthetic.VISIBLE + 2, defect
    assert change[drawing.mask > 0].max() > 255 * synthetic.VISIBLE - 2, defect


@pytest.mark.parametrize('kind', synthetic.CATEGORIES, ids=lambda c: c.name)
def test_a_normal_image_is_its_own_twin(kind):
  drawing = synthetic.example(kind, 'train', 5, size=48, defect='good')
  assert drawing.defect == 'good' and not drawing.mask.any()
  np.testing.assert_array_equal(drawing.image, drawing.twin)
  assert drawing.image.dtype == np.uint8 and drawing.image.shape == (48, 48, 3) and drawing.image.std() > 3


def test_every_defect_is_used():
  drawn = {name for name in vars(defects) if name in kinds('pretrain') | kinds('aux') | kinds('target')}
  assert drawn == kinds('pretrain') | kinds('aux') | kinds('target')


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match=r"no group 'tset'.*'target'"):
    synthetic.group('tset')
  with pytest.raises(ValueError, match=r"no procedural category 'laef'.*leaf"):
    synthetic.example('laef', 'test', 0, size=32)
  with pytest.raises(ValueError, match=r"no split 'val'.*'train'"):
    synthetic.example('leaf', 'val', 0, size=32)
  with pytest.raises(ValueError, match=r"leaf has no defect 'crack'.*'hole'"):
    synthetic.example('leaf', 'test', 0, size=32, defect='crack')


def caption(seed, defect='crack'):
  return captions.pair(np.random.default_rng(seed), noun='gear', colour='red', material='metal', defect=defect,
                       indices=captions.Claim(3, 1, 2, 4, 5))


def test_caption_pairs_differ_in_their_state_alone():
  for seed in range(200):
    good, bad, claim = caption(seed)
    assert good != bad and claim.state == -1
    for word, index in (('gear', claim.category), ('red', claim.colour), ('metal', claim.material)):
      assert (word in good.split(' ') or word in good.rstrip('.').split(' ')) == (index != -1), good
      assert (word in bad.rstrip('.').split(' ')) == (index != -1), bad


def test_object_stands_for_the_noun_in_a_share_of_captions():
  share = np.mean(['object' in caption(seed)[0] for seed in range(400)])
  assert .15 < share < .45


def test_claims_are_compared_with_the_facts_of_an_image():
  facts = np.array([[3, 1, 2, 4, 5], [3, 0, -2, 4, 5]])
  claims = np.array([[-1, 1, -1, -1, -1], [3, 0, -1, -1, -1], [3, 1, 2, -1, -1], [3, 1, 1, -1, -1], [-1, 0, -1, 9, -1]])
  np.testing.assert_array_equal(captions.true_of(claims, facts), [[1, 0, 1, 0, 0], [0, 1, 0, 0, 0]])


@pytest.mark.slow
def test_tokenizer_has_clips_layout(tokenizer):
  vocab = tokenizer.get_vocab()
  assert sorted(vocab.values()) == list(range(len(vocab))) and len(vocab) <= 4096
  assert (vocab[bpe.START], vocab[bpe.END]) == (len(vocab) - 2, len(vocab) - 1)
  ids = bpe.encode(tokenizer, ['a Damaged object', ''], 8)
  assert ids.dtype == np.int32 and ids.shape == (2, 8)
  assert [tokenizer.id_to_token(i) for i in ids[0]][:5] == [bpe.START, 'a</w>', 'damaged</w>', 'object</w>', bpe.END]
  assert ids[0, 5:].tolist() == [0, 0, 0] and ids[1, 1] == vocab[bpe.END]
  with pytest.raises(ValueError, match="tokens do not fit in 4: 'a damaged object'"):
    bpe.encode(tokenizer, ['a damaged object'], 4)


@pytest.mark.slow
def test_tokenizer_training_is_deterministic(tokenizer):
  assert pretraining.tokenizer(3072).to_str() == tokenizer.to_str()


@pytest.mark.slow
def test_tokenizer_knows_the_prompt_words(tokenizer):
  for word in (*STATES, 'object', 'photo', *captions.WORDS, *(w for c in synthetic.CATEGORIES for w in c.noun.split())):
    tokens = tokenizer.encode(word).tokens[1:-1]
    assert bpe.END not in tokens and ''.join(t.removesuffix('</w>') for t in tokens) == word.lower()
    if word in STATES:
      assert tokens == [word + '</w>']


@pytest.mark.slow
@settings(deadline=None, max_examples=50)
@given(st.text(max_size=20))
def test_no_text_is_unknown(tokenizer, text):
  assert tokenizer.encode(text).tokens[1:-1].count(bpe.END) == text.lower().count(bpe.END)


@pytest.fixture
def options():
  return dict(phases=SimpleNamespace(steps=(3, 2), image_size=(32, 48), batch=(8, 6), crop=((.5, 1.), (1., 1.))),
              pool=SimpleNamespace(count=19, size=48, reuse=2, workers=1), patch=8, seed=0)


def test_batches_resume_at_any_step(tmp_path, tokenizer, options):
  straight = list(pretraining.batches(tokenizer, tmp_path / 'a', **options))
  resumed = list(pretraining.batches(tokenizer, tmp_path / 'a', start=3, **options))
  assert [b['image'].shape for b in straight] == [(8, 32, 32, 3)] * 3 + [(6, 48, 48, 3)] * 2
  assert len(resumed) == 2
  for a, b in zip(straight[3:], resumed):
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])


def test_batch_describes_what_its_crops_show(tokenizer, options):
  chunk, words = pretraining.draw('pretrain', 0, 38, 64, 0), pretraining.vocabulary('pretrain')
  batch = pretraining.batch_of(chunk, words, tokenizer, np.random.default_rng(0), batch=38, image_size=64, patch=8,
                               crop=(.5, 1.))
  assert batch['cover'].shape == (38, 8, 8) and batch['ids'].shape == (38, pretraining.LENGTH)
  assert not batch['label'][::2].any() and batch['known'][::2].all()
  np.testing.assert_array_equal(batch['label'] > 0, batch['cover'].max((1, 2)) > 0)
  good, bad = np.split(batch['true'], 2, axis=1)
  damaged = batch['label'] > 0
  assert not bad[~damaged].any() and not good[damaged].any()
  own = np.arange(38), np.arange(38) // 2
  assert good[own][~damaged].all() and bad[own][damaged].all()


def test_a_failed_drawing_process_is_reported(tmp_path, options):
  stream = pretraining.chunks(tmp_path, 'no such group', count=2, size=32, seed=0)
  with pytest.raises(RuntimeError, match=r'drawing .*no such group.* failed with exit code 1'):
    next(stream)


def test_chunks_are_written_once_and_removed(tmp_path):
  stream = pretraining.chunks(tmp_path, 'aux', count=6, size=24, seed=0, keep=1)
  stored = [next(stream) for _ in range(3)]
  np.testing.assert_array_equal(stored[1].image, pretraining.draw('aux', 1, 6, 24, 0).image)
  stream.close()
  assert not (tmp_path / pretraining._name('aux', 0, 6, 24, 0)).exists()


@pytest.mark.parametrize('group', ['aux', 'target'])
def test_builder_prepares_the_categories_of_its_group(tmp_path, monkeypatch, group):
  for name, value in dict(SIZE=24, TRAIN=2, NORMAL=1, EACH_DEFECT=1).items():
    monkeypatch.setattr(builder, name, value)
  test = data.load(f'synthetic_{group}', root=tmp_path)
  train = data.load(f'synthetic_{group}', root=tmp_path, split='train')
  expected = sorted(synthetic.group(group))
  assert test.categories == tuple(c.name for c in expected) and len(train) == 2 * len(expected)
  assert len(test) == sum(1 + len(c.defects) for c in expected)
  assert not any(train[i]['label'] for i in range(len(train))) and len(set(test.ids)) == len(test)
  for record in (test[i] for i in range(len(test))):
    assert record['image'].size == (24, 24) and record['has_mask']
    assert record['mask'].any() == record['label'] == (record['defect_type'] != 'good')
    assert record['object_name'] == record['category'].replace('_', ' ')
  drawing = synthetic.example(expected[0], 'test', 0, size=24, defect=sorted(('good', *expected[0].defects))[0])
  np.testing.assert_array_equal(np.asarray(test[0]['image']), drawing.image)
