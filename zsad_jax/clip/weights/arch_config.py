"""Architectures as JSON: this project's own format, and the model configs of open_clip and Hugging Face."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zsad_jax.clip import archs


def to_json(arch: archs.Arch) -> dict[str, Any]:
  """Returns an architecture as plain JSON values, the inverse of `from_json`."""
  return json.loads(json.dumps(dataclasses.asdict(arch)))


def from_json(record: Mapping[str, Any], name: str = '') -> archs.Arch:
  """Returns the architecture that a model's JSON describes.

  Args:
    record: the result of `to_json`, open_clip's open_clip_config.json (or its model_cfg), or the config.json of a
      Hugging Face CLIPModel.
    name: name of the architecture if the JSON has none.

  Raises:
    ValueError: another kind of record, or a key or value that this CLIP does not support.
  """
  if 'vision' in record and 'text' in record:
    return _ours(record)
  if 'model_cfg' in record or 'vision_cfg' in record:
    return _open_clip(record, name)
  if record.get('model_type') == 'clip':
    return _huggingface(record, name)
  raise ValueError('it does not describe a CLIP; expected vision and text, model_cfg, or model_type clip, but its keys '
                   f'are {", ".join(list(record)[:10]) or "none"}')


def read(path: str | os.PathLike[str]) -> archs.Arch:
  """Returns the architecture in a JSON file, named after its folder; raises ValueError naming the file."""
  path = Path(path)
  try:
    return from_json(json.loads(path.read_text()), path.parent.name)
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f'{path} does not describe a supported architecture: {error}') from error


def _ours(record):
  record, vision = dict(record), dict(record['vision'])
  if 'stages' in vision:
    vision['stages'] = tuple(vision['stages'])
  record['vision'] = _checked(archs.Vision, vision, 'vision')
  record['text'] = _checked(archs.Text, record['text'], 'text')
  for key in ('mean', 'std'):
    if key in record:
      record[key] = tuple(record[key])
  return _checked(archs.Arch, record, 'the record')


def _checked(kind, values, where):
  """Returns kind(**values); raises ValueError for unknown and missing keys."""
  fields = {f.name: f for f in dataclasses.fields(kind)}
  unknown = sorted(set(values) - set(fields))
  missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]
  if unknown or missing:
    raise ValueError(f'{where} has unknown keys {unknown} and lacks keys {missing}')
  return kind(**values)


def _open_clip(record, name):
  model, pre = record.get('model_cfg', record), record.get('preprocess_cfg', {})
  vision, text = dict(model['vision_cfg']), dict(model['text_cfg'])
  _only(vision, 'vision_cfg', {'image_size', 'patch_size', 'width', 'layers', 'head_width', 'mlp_ratio'},
        mlp_ratio=4.0)
  _only(text, 'text_cfg', {'context_length', 'vocab_size', 'width', 'layers', 'heads', 'mlp_ratio'},
        mlp_ratio=4.0)
  _only(model, 'model_cfg', {'embed_dim', 'quick_gelu', 'vision_cfg', 'text_cfg', 'custom_text'})
  _only(pre, 'preprocess_cfg', {'mean', 'std', 'interpolation', 'resize_mode', 'size', 'mode', 'fill_color'},
        mode='RGB')
  extra = {k: tuple(pre[k]) for k in ('mean', 'std') if k in pre}
  extra |= {'resize': pre['interpolation']} if 'interpolation' in pre else {}
  return archs.Arch(
      name, model['embed_dim'], _open_clip_vision(vision),
      archs.Text(text.get('context_length', 77), text.get('vocab_size', 49408), text['width'], text['layers'],
                text['heads']),
      'quick_gelu' if model.get('quick_gelu') else 'gelu', **extra)


def _open_clip_vision(vision):
  """Returns the image tower of a vision_cfg: a ResNet if `layers` is a list, whose patch_size is meaningless."""
  size, width, head_width = vision['image_size'], vision['width'], vision.get('head_width', 64)
  if isinstance(vision['layers'], list):
    if len(vision['layers']) != 4:
      raise ValueError(f'vision_cfg: layers={vision["layers"]}, but a ResNet must have four stages')
    return archs.resnet_vision(size, width, tuple(vision['layers']), head_width)
  return archs.Vision(size, vision['patch_size'], width, vision['layers'], width // head_width)


def _huggingface(record, name):
  # Files may omit the values of OpenAI's ViT-B/32, which are the defaults.
  vision = {'hidden_size': 768, 'num_hidden_layers': 12, 'num_attention_heads': 12, 'image_size': 224,
            'patch_size': 32, 'hidden_act': 'quick_gelu', **record.get('vision_config', {})}
  text = {'hidden_size': 512, 'num_hidden_layers': 12, 'num_attention_heads': 8, 'vocab_size': 49408,
          'max_position_embeddings': 77, 'hidden_act': 'quick_gelu', **record.get('text_config', {})}
  for where, tower in (('vision_config', vision), ('text_config', text)):
    _only(tower, where, None, layer_norm_eps=1e-5, intermediate_size=4 * tower['hidden_size'], num_channels=3,
          hidden_act=vision['hidden_act'])
  if vision['hidden_act'] not in ('quick_gelu', 'gelu'):
    raise ValueError(f'vision_config: hidden_act={vision["hidden_act"]!r} is not quick_gelu or gelu')
  return archs.Arch(
      name, record.get('projection_dim', 512),
      archs.Vision(vision['image_size'], vision['patch_size'], vision['hidden_size'],
                  vision['num_hidden_layers'], vision['num_attention_heads']),
      archs.Text(text['max_position_embeddings'], text['vocab_size'], text['hidden_size'],
                text['num_hidden_layers'], text['num_attention_heads']),
      vision['hidden_act'])


def _only(values, where, allowed, **required):
  """Raises ValueError for keys that are not `allowed` (None allows all) and values other than the `required` ones."""
  unknown = sorted(set(values) - allowed) if allowed else []
  if unknown:
    raise ValueError(f'{where}: unsupported keys {", ".join(unknown)}')
  for key, value in required.items():
    if values.get(key, value) != value:
      raise ValueError(f'{where}: {key}={values[key]!r} is not supported; it must be {value!r}')
