"""The tokenizer: OpenAI's ids exactly, every kind of vocabulary file, and a late import of transformers."""

import gzip
import html
import itertools
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import ftfy
import numpy as np
import pytest
import regex
from huggingface_hub import constants

from zsad_jax.clip import tokenizer

GOLDEN = Path(__file__).parents[1] / 'golden' / 'tokens.json'
X = [343] * 12


@pytest.fixture(scope='module')
def clip_tokenizer():
  return tokenizer.load()


class Reference:
  """OpenAI's algorithm (simple_tokenizer.py) rewritten: merge the best-ranked pair until none is left."""

  def __init__(self):
    lines = gzip.decompress(tokenizer.VOCABULARY.read_bytes()).decode().split('\n')[1:48895]
    merges = [tuple(line.split()) for line in lines]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    self.byte = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    base = [self.byte[b] for b in printable + others]
    words = base + [b + '</w>' for b in base] + [a + b for a, b in merges] + ['<|startoftext|>', '<|endoftext|>']
    self.ids = {word: i for i, word in enumerate(words)}
    self.rank = {merge: i for i, merge in enumerate(merges)}
    self.split = regex.compile(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|"
                               r"[^\s\p{L}\p{N}]+", regex.IGNORECASE)

  def __call__(self, text):
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    text = regex.sub(r'\s+', ' ', text).strip().lower()
    ids = []
    for word in self.split.findall(text):
      if word in ('<|startoftext|>', '<|endoftext|>'):
        ids.append(self.ids[word])
        continue
      parts = [self.byte[b] for b in word.encode()]
      parts[-1] += '</w>'
      while len(parts) > 1:
        best = min(itertools.pairwise(parts), key=lambda pair: self.rank.get(pair, 10 ** 9))
        if best not in self.rank:
          break
        merged, i = [], 0
        while i < len(parts):
          whole = i + 1 < len(parts) and (parts[i], parts[i + 1]) == best
          merged.append(parts[i] + parts[i + 1] if whole else parts[i])
          i += 1 + whole
        parts = merged
      ids += [self.ids[part] for part in parts]
    return ids


def strings():
  rng = random.Random(0)
  pools = [
      'abcdefghijklmnopqrstuvwxyz ABC  ', "it's they'll I'd we've don't'S ", '0123456789.,-+%/()[]{}#@!?_ ',
      'äöüßéèêñçøåœÆŁžİı ', '“”‘’…–—•™©®°±½²µ«» ', '表面有缺陷的瓶子한국어日本語のテスト ',
      'αβγΔΣς абвгдЖ עברית العربية हिन्दी ', '😀😅🔧🧪👨‍👩‍👧🏳️‍🌈✅❌ ', '\t\n \u3000 \u200b\u200d\ufeff ab',
      '&amp;lt;&gt;&quot;&eacute;&#39;&#x2019;&nbsp; ', 'ﬁﬂÅ½ⅷ①e\u0301a\u0308o\u0302 ',
      '<|startoftext|> <|endoftext|> <start> ']
  words = ['photo', 'damaged', 'object', 'surface', 'metal_nut', 'scratch', 'flawless', 'pcb1', 'crack', 'hole']
  for i in range(300):
    pool = pools[i % len(pools)]
    text = ''.join(rng.choice(pool) for _ in range(rng.randrange(1, 25)))
    if i % 3 == 0:
      text = f'{rng.choice(words)} {text} {rng.choice(words)}.'
    yield text
  yield from ('A photo of a &amp;lt;damaged&amp;gt; “object”', '', ' ', 'caf&eacute; e&#769;', '  Two\u00a0 spaces ',
              'schÃ¶n â€œquotedâ€\x9d', '&lt;b&gt;bold&lt;/b&gt; <|endoftext|> after')


def test_equals_openais_algorithm(clip_tokenizer):
  reference = Reference()
  texts = list(strings())
  ids = clip_tokenizer.encode(texts, context=400)
  for text, row in zip(texts, ids):
    expected = [49406, *reference(text), 49407]
    assert row[:len(expected)].tolist() == expected, repr(text)
    assert not row[len(expected):].any()


def test_equals_open_clips_recorded_ids(clip_tokenizer):
  record = json.loads(GOLDEN.read_text())['ids']
  ids = clip_tokenizer.encode(list(record), 77)
  for (text, expected), row in zip(record.items(), ids):
    assert row[:len(expected)].tolist() == expected, repr(text)
    assert not row[len(expected):].any()
    assert row.argmax() == len(expected) - 1


@pytest.mark.parametrize('words, ids', [
    ('', []), ('damaged ', [13568]), ('anomalous ', [21612, 526, 879]), ('flawed ', [35136]),
    ('defective ', [4148, 9313]), ('blemished ', [1447, 714, 1492]),
])
def test_anomalyclips_prompts(clip_tokenizer, words, ids):
  row = clip_tokenizer.encode(['X ' * 12 + words + 'object.'])[0]
  expected = [49406, *X, *ids, 14115, 269, 49407]
  assert row.tolist() == expected + [0] * (77 - len(expected))
  assert row.dtype == np.int32


def test_long_texts_are_refused_or_keep_their_end(clip_tokenizer):
  text = 'object ' * 76
  with pytest.raises(ValueError, match=r"'object .* 78 tokens .*room for 77.*truncate"):
    clip_tokenizer.encode(['short', text])
  ids = clip_tokenizer.encode([text], truncate=True)
  assert ids[0].tolist() == [49406] + [14115] * 75 + [49407]
  np.testing.assert_array_equal(clip_tokenizer.encode(['object ' * 75]), ids)


def test_empty_and_single_texts(clip_tokenizer):
  assert clip_tokenizer.encode([]).shape == (0, 77)
  assert clip_tokenizer.encode(('a', ''), 5).tolist()[1] == [49406, 49407, 0, 0, 0]
  with pytest.raises(ValueError, match=r"not one string; write \['a photo'\]"):
    clip_tokenizer.encode('a photo')


def save_tokenizer_json(path, own):
  own._clip.backend_tokenizer.save(str(path / 'tokenizer.json'))


def save_vocab_and_merges(path, own):
  (path / 'vocab.json').write_text(json.dumps(own._vocabulary))
  (path / 'merges.txt').write_text('#version: 0.2\n' + ''.join(f'{a} {b}\n' for a, b in own._merges))


def save_clip_vocabulary(path, own):
  shutil.copy(tokenizer.VOCABULARY, path)


@pytest.mark.parametrize('save', [save_tokenizer_json, save_vocab_and_merges, save_clip_vocabulary])
def test_every_file_format_gives_the_same_ids(clip_tokenizer, tmp_path, save):
  save(tmp_path, clip_tokenizer)
  texts = ['a photo of a damaged metal nut.', 'caf&eacute; “x”']
  expected = clip_tokenizer.encode(texts)
  loaded = tokenizer.load(tmp_path)
  assert loaded.size == 49408
  np.testing.assert_array_equal(loaded.encode(texts), expected)


def train_tokenizer(path, specials_last=True):
  """Writes a small BPE trained with the tokenizers library, as the tiny CLIP has one; returns its size."""
  import tokenizers
  model = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix='</w>'))
  model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  model.train_from_iterator(['a damaged object on a surface'] * 5, tokenizers.trainers.BpeTrainer(
      vocab_size=560, initial_alphabet=alphabet, end_of_word_suffix='</w>', show_progress=False))
  record = json.loads(model.to_str())
  vocabulary = sorted(record['model']['vocab'], key=record['model']['vocab'].get)
  vocabulary += [c + '</w>' for c in alphabet if c + '</w>' not in vocabulary]
  specials = ['<|startoftext|>', '<|endoftext|>']
  order = vocabulary + specials if specials_last else specials + vocabulary
  record['model']['vocab'] = {token: i for i, token in enumerate(order)}
  (path / 'tokenizer.json').write_text(json.dumps(record))
  return len(order)


def test_a_small_vocabulary_is_read(tmp_path):
  size = train_tokenizer(tmp_path)
  own = tokenizer.load(tmp_path / 'tokenizer.json')
  assert (own.size, own.start, own.end) == (size, size - 2, size - 1)
  ids = own.encode(['A damaged OBJECT', 'é😀'], 20)
  assert ids[0, 0] == own.start
  assert ids[0].argmax() == list(ids[0]).index(own.end)
  assert 4 < ids[0].argmax() + 1 < 18
  assert (own.encode(['a damaged object'], 20)[0] == ids[0]).all()
  assert len(set(ids[1])) > 5


def test_an_end_of_text_that_argmax_would_miss_is_refused(tmp_path):
  train_tokenizer(tmp_path, specials_last=False)
  with pytest.raises(ValueError, match=r'tokenizer.json .*<\|endoftext\|> has id 1, but must have the largest'):
    tokenizer.load(tmp_path)


@pytest.mark.parametrize('name, text, message', [
    ('tokenizer.json', '{', 'is not a CLIP vocabulary'),
    ('tokenizer.json', '{"model": {"type": "WordPiece", "vocab": {}}}', 'its model is WordPiece'),
    ('tokenizer.json', '{"model": {"type": "BPE", "end_of_word_suffix": "</w>", "merges": [], "vocab": {"a": 3}}}',
     'the ids of the 1 tokens must be 0 to 0'),
    ('tokenizer.json', '{"model": {"type": "BPE", "end_of_word_suffix": "</w>", "merges": [], "vocab": {"a": 0}}}',
     r'no <\|startoftext\|> and no <\|endoftext\|>'),
    ('bpe.txt.gz', 'not gzip', 'is not a CLIP vocabulary'),
    ('words.txt', 'a b', 'must be tokenizer.json'),
])
def test_files_that_are_not_vocabularies_are_refused(tmp_path, name, text, message):
  (tmp_path / name).write_text(text)
  with pytest.raises(ValueError, match=message):
    tokenizer.load(tmp_path / name)


def test_missing_files_are_named(tmp_path, monkeypatch):
  with pytest.raises(FileNotFoundError, match=r'tokenizer file .*gone.json does not exist'):
    tokenizer.load(tmp_path / 'gone.json')
  with pytest.raises(FileNotFoundError, match=r'has no tokenizer; expected tokenizer.json or vocab.json or bpe'):
    tokenizer.load(tmp_path)
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  monkeypatch.setenv('ZSAD_CACHE', str(tmp_path))
  with pytest.raises(FileNotFoundError, match=r'openai--clip/tokenizer.json .*offline\. Put that file'):
    tokenizer.load('openai/clip')


def test_transformers_is_imported_on_first_use_and_torch_never():
  code = ('import sys; import zsad_jax; from zsad_jax.clip import tokenizer; t = tokenizer.load(); '
          'assert not {"transformers", "tokenizers", "ftfy"} & set(sys.modules); t.encode(["a"]); '
          'assert "transformers" in sys.modules and "torch" not in sys.modules')
  subprocess.run([sys.executable, '-c', code], check=True, timeout=60)
