"""A byte-pair tokenizer like CLIP's, trained on captions."""

import json
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

START, END = '<|startoftext|>', '<|endoftext|>'
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train(lines: Iterable[str], merges: int) -> tokenizers.Tokenizer:
  """Tokenizer in CLIP's layout: 256 bytes, the same ending a word, at most `merges` pairs, then START and END.

  Lower-cases; nothing is unknown to it, since every byte has an id; END has the largest id, START the one before.
  """
  learner = _tokenizer(models.BPE(end_of_word_suffix='</w>'))
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  # Ties between pairs go by id, and ids of word ends by the order of a hash map, unless they are given beforehand.
  learner.train_from_iterator(lines, trainers.BpeTrainer(
      vocab_size=merges + 512, show_progress=False, initial_alphabet=alphabet, end_of_word_suffix='</w>',
      special_tokens=[c + '</w>' for c in alphabet]))
  pairs = [tuple(pair) for pair in json.loads(learner.to_str())['model']['merges']][:merges]
  words = alphabet + [c + '</w>' for c in alphabet] + [a + b for a, b in pairs] + [START, END]
  # Two pairs may spell one token; it keeps its first id.
  vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
  made = _tokenizer(models.BPE(vocab=vocab, merges=pairs, end_of_word_suffix='</w>', unk_token=END,
                               continuing_subword_prefix='', fuse_unk=False))
  made.add_special_tokens([START, END])
  made.post_processor = processors.RobertaProcessing((END, vocab[END]), (START, vocab[START]), False, False)
  made.decoder = decoders.ByteLevel()
  return made


def encode(tokenizer: tokenizers.Tokenizer, texts: Sequence[str], length: int = 77) -> np.ndarray:
  """ids [B, length] int32, padded with 0; ValueError for a text that does not fit."""
  ids = np.zeros((len(texts), length), np.int32)
  for row, found in enumerate(tokenizer.encode_batch(list(texts))):
    if len(found.ids) > length:
      raise ValueError(f'{len(found.ids)} tokens do not fit in {length}: {texts[row]!r}')
    ids[row, :len(found.ids)] = found.ids
  return ids


def _tokenizer(model) -> tokenizers.Tokenizer:
  made = tokenizers.Tokenizer(model)
  made.normalizer = normalizers.Sequence(
      [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r'\s+'), ' '), normalizers.Lowercase()])
  made.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior='removed', invert=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False)])
  return made
