"""Records tokens.json and open_clip_keys.json from open_clip_torch 3.3.0 (with torch, torchvision and timm).

  python tests/golden/record_open_clip.py
"""

import json
from pathlib import Path

import open_clip
import torch

HERE = Path(__file__).parent


def main():
  old = json.loads((HERE / 'tokens.json').read_text())
  ids = open_clip.SimpleTokenizer()(list(old['ids'])).numpy()
  tokens = {text: row[:row.argmax() + 1].tolist() for text, row in zip(old['ids'], ids)}
  write('tokens.json', {'tokenizer': old['tokenizer'], 'ids': tokens})
  with torch.device('meta'):
    state = open_clip.create_model('ViT-B-16-plus-240').state_dict()
  write('open_clip_keys.json', {'model': 'ViT-B-16-plus-240, open_clip_torch 3.3.0',
                                'state_dict': {k: list(v.shape) for k, v in state.items()}})


def write(name, record):
  (HERE / name).write_text(json.dumps(record, ensure_ascii=False, separators=(',', ':')) + '\n')


if __name__ == '__main__':
  main()
