"""CLIP's byte-pair tokenizer, with OpenAI's text cleaning and ids padded with 0."""

import functools
import gzip
import html
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zsad_jax.clip.weights import hub

VOCABULARY = Path(__file__).with_name('bpe_simple_vocab_16e6.txt.gz')  # OpenAI's, as open_clip ships it (MIT)
MERGES = slice(1, 49152 - 256 - 2 + 1)  # lines of VOCABULARY: the first is a comment, and CLIP uses only these merges
START, END = '<|startoftext|>', '<|endoftext|>'


class Tokenizer:
  """Converts text to token ids by transformers' CLIPTokenizer, which is imported on first use.

  Attributes:
    size: number of tokens in the vocabulary.
    start, end: ids of the start-of-text and end-of-text tokens. `end` is the largest id, because CLIP finds it by
      argmax.
  """

  def __init__(self, vocabulary: dict[str, int], merges: Sequence[tuple[str, str]]):
    """Takes {token: id} and the merges in order of rank.

    Raises:
      ValueError: ids that are not 0 to n - 1, a missing special token, or an end-of-text id that is not the largest.
    """
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
      raise ValueError(f'the ids of the {len(vocabulary)} tokens must be 0 to {len(vocabulary) - 1}')
    if missing := [t for t in (START, END) if t not in vocabulary]:
      raise ValueError(f'the vocabulary has no {" and no ".join(missing)}')
    self.size, self.start, self.end = len(vocabulary), vocabulary[START], vocabulary[END]
    if self.end != self.size - 1:
      raise ValueError(f'{END} has id {self.end}, but must have the largest id, {self.size - 1}, because CLIP finds '
                       'it by argmax')
    self._vocabulary, self._merges = vocabulary, merges

  def encode(self, texts: Sequence[str], context: int = 77, truncate: bool = False) -> np.ndarray:
    """Returns ids [B, context] int32: start of text, the text, end of text, then padding with 0.

    Args:
      texts: any strings, also empty ones.
      context: number of positions.
      truncate: whether to cut a long text, which keeps its end-of-text token; otherwise it is an error.

    Raises:
      ValueError: a text too long for the context, or a single string instead of a sequence.
    """
    if isinstance(texts, str):
      raise ValueError(f'encode takes a sequence of texts, not one string; write [{texts[:40]!r}]')
    ids = np.zeros((len(texts), context), np.int32)
    for row, text, body in zip(ids, texts, self._bodies(texts)):
      tokens = [self.start, *body, self.end]
      if len(tokens) > context:
        if not truncate:
          raise ValueError(f'the text {text[:60]!r}... has {len(tokens)} tokens with start and end, but there is room '
                           f'for {context}; shorten it or pass truncate=True')
        tokens = tokens[:context - 1] + [self.end]
      row[:len(tokens)] = tokens
    return ids

  def _bodies(self, texts):
    if not len(texts):
      return []
    return self._clip([clean(text) for text in texts], add_special_tokens=False)['input_ids']

  @functools.cached_property
  def _clip(self):
    import tokenizers
    import transformers
    result = transformers.CLIPTokenizer(vocab=self._vocabulary, merges=list(self._merges))
    # Its normaliser composes characters that OpenAI's cleaning leaves apart; `clean` replaces it.
    result.backend_tokenizer.normalizer = tokenizers.normalizers.Sequence([])
    return result


def clean(text: str) -> str:
  """Returns text after OpenAI's cleaning: encoding repaired, entities unescaped twice, spaces joined, lower case."""
  import ftfy
  text = html.unescape(html.unescape(ftfy.fix_text(text)))
  return ' '.join(text.split()).lower()


def load(path: str | os.PathLike[str] | None = None) -> Tokenizer:
  """Returns the tokenizer of a path, or CLIP's own (49,408 tokens, part of the package) for None.

  Args:
    path: a tokenizer.json whose model is a byte-level BPE with '</w>' word ends (only its vocabulary and merges are
      read; text is split as CLIP splits it); a CLIP vocabulary bpe_simple_vocab_16e6.txt.gz; a vocab.json next to
      merges.txt; a folder with one of these; or a Hugging Face hub repository 'owner/name', whose tokenizer.json is
      downloaded.

  Raises:
    FileNotFoundError: the path does not exist, and the hub does not have it or cannot be reached.
    ValueError: a file that is not a CLIP vocabulary, named in the message.
  """
  file = VOCABULARY if path is None else Path(path)
  if file.is_dir():
    file = _in_folder(file)
  if not file.exists():
    if file.suffix or len(file.parts) != 2:
      raise FileNotFoundError(f'the tokenizer file {file} does not exist')
    file = _from_hub(file)
  try:
    if file.suffix not in ('.json', '.gz'):
      raise ValueError(f'it must be tokenizer.json, vocab.json or {VOCABULARY.name}')
    read = _clip_vocabulary if file.suffix == '.gz' else \
        _vocab_and_merges if file.name == 'vocab.json' else _tokenizer_json
    return Tokenizer(*read(file))
  except (KeyError, TypeError, ValueError, EOFError, gzip.BadGzipFile) as error:
    raise ValueError(f'{file} is not a CLIP vocabulary: {error}') from error


def _in_folder(folder):
  for name in hub.TOKENIZERS:
    if (folder / name).is_file():
      return folder / name
  raise FileNotFoundError(f'{folder} has no tokenizer; expected {" or ".join(hub.TOKENIZERS)}')


def _from_hub(path):
  return hub.fetch(path.as_posix(), 'tokenizer.json', hub.default_cache() / '--'.join(path.parts))


def _tokenizer_json(path):
  record = json.loads(path.read_text(encoding='utf-8'))
  model = record['model']
  if model.get('type', 'BPE') != 'BPE' or model.get('end_of_word_suffix') != '</w>':
    raise ValueError(f'its model is {model.get("type")} with word end {model.get("end_of_word_suffix")!r}; it must be '
                     "BPE with '</w>'")
  vocabulary = dict(model['vocab'])
  vocabulary |= {token['content']: token['id'] for token in record.get('added_tokens', [])}
  return vocabulary, [tuple(m.split(' ')) if isinstance(m, str) else tuple(m) for m in model['merges']]


def _vocab_and_merges(path):
  lines = path.with_name('merges.txt').read_text(encoding='utf-8').split('\n')
  merges = [tuple(line.split(' ')) for line in lines if line and not line.startswith('#version')]
  return json.loads(path.read_text(encoding='utf-8')), merges


def _clip_vocabulary(path):
  lines = gzip.decompress(path.read_bytes()).decode('utf-8').split('\n')
  merges = [tuple(line.split()) for line in lines[MERGES]]
  tokens = _byte_characters()
  tokens = [*tokens, *(t + '</w>' for t in tokens), *map(''.join, merges), START, END]
  return {token: i for i, token in enumerate(tokens)}, merges


def _byte_characters():
  """Returns the character that stands for each byte, in the order of CLIP's vocabulary: printable ones first."""
  printable = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)]
  return [*map(chr, printable), *(chr(256 + i) for i in range(256 - len(printable)))]
