"""Byte-pair tokenizer like CLIP's, trained on captions."""

import json
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

START, END = '<|startoftext|>', '<|endoftext|>'
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train(lines: Iterable[str], merges: int) -> tokenizers.Tokenizer:
  """Returns a tokenizer in CLIP's layout: 256 bytes, the same at the end of a word, `merges` pairs, START and END.

  It lower-cases. Nothing is unknown to it, since every byte has an id. END has the largest id, START the one before.
  """
  trainee = _tokenizer(models.BPE(end_of_word_suffix='</w>'))
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  # Ties between pairs are broken by id, and ids of word ends follow the order of a hash map unless they are preset.
  trainee.train_from_iterator(lines, trainers.BpeTrainer(
      vocab_size=merges + 512, show_progress=False, initial_alphabet=alphabet, end_of_word_suffix='</w>',
      special_tokens=[c + '</w>' for c in alphabet]))
  pairs = [tuple(pair) for pair in json.loads(trainee.to_str())['model']['merges']][:merges]
  words = alphabet + [c + '</w>' for c in alphabet] + [a + b for a, b in pairs] + [START, END]
  # Two pairs may spell one token; it keeps its first id.
  vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
  tokenizer = _tokenizer(models.BPE(vocab=vocab, merges=pairs, end_of_word_suffix='</w>', unk_token=END,
                                    continuing_subword_prefix='', fuse_unk=False))
  tokenizer.add_special_tokens([START, END])
  tokenizer.post_processor = processors.RobertaProcessing((END, vocab[END]), (START, vocab[START]), False, False)
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


def encode(tokenizer: tokenizers.Tokenizer, texts: Sequence[str], length: int = 77) -> np.ndarray:
  """Returns ids [B, length] int32, padded with 0; raises ValueError for a text that does not fit."""
  ids = np.zeros((len(texts), length), np.int32)
  for row, encoding in enumerate(tokenizer.encode_batch(list(texts))):
    if len(encoding.ids) > length:
      raise ValueError(f'{len(encoding.ids)} tokens do not fit in {length}: {texts[row]!r}')
    ids[row, :len(encoding.ids)] = encoding.ids
  return ids


def _tokenizer(model: models.BPE) -> tokenizers.Tokenizer:
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.normalizer = normalizers.Sequence(
      [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r'\s+'), ' '), normalizers.Lowercase()])
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
      pre_tokenizers.Split(tokenizers.Regex(_WORDS), behavior='removed', invert=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False)])
  return tokenizer
