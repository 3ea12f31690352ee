"""Architectures as JSON: our own format both ways, and the published configs of open_clip and Hugging Face."""

import dataclasses
import json

import pytest

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.weights import arch_config

# model_configs/ViT-L-14-336-quickgelu.json and the config.json of openai/clip-vit-large-patch14-336, shortened
OPEN_CLIP = {
    'model_cfg': {'embed_dim': 768, 'quick_gelu': True,
                  'vision_cfg': {'image_size': 336, 'layers': 24, 'width': 1024, 'patch_size': 14},
                  'text_cfg': {'context_length': 77, 'vocab_size': 49408, 'width': 768, 'heads': 12, 'layers': 12}},
    'preprocess_cfg': {'mean': [0.48145466, 0.4578275, 0.40821073], 'std': [0.26862954, 0.26130258, 0.27577711]},
}
HUGGINGFACE = {
    'model_type': 'clip', 'projection_dim': 768, 'architectures': ['CLIPModel'],
    'vision_config': {'hidden_size': 1024, 'intermediate_size': 4096, 'num_hidden_layers': 24, 'patch_size': 14,
                      'num_attention_heads': 16, 'image_size': 336, 'layer_norm_eps': 1e-05, 'dropout': 0.0},
    'text_config': {'hidden_size': 768, 'intermediate_size': 3072, 'num_attention_heads': 12, 'eos_token_id': 2},
}


@pytest.mark.parametrize('name', clip_lib.ARCHS)
def test_our_own_format_round_trips(name):
  record = json.loads(json.dumps(arch_config.to_json(clip_lib.ARCHS[name])))
  assert arch_config.from_json(record) == clip_lib.ARCHS[name]


@pytest.mark.parametrize('record', [OPEN_CLIP, OPEN_CLIP['model_cfg'], HUGGINGFACE])
def test_published_configs_of_transformers(record):
  assert arch_config.from_json(record, 'vit_l14_336') == clip_lib.ARCHS['vit_l14_336']


@pytest.mark.parametrize('name, embed, stages', [('rn50', 1024, [3, 4, 6, 3]), ('rn101', 512, [3, 4, 23, 3])])
def test_published_configs_of_resnets(name, embed, stages):
  record = {'embed_dim': embed, 'quick_gelu': True,  # model_configs/RN50-quickgelu.json and RN101-quickgelu.json
            'vision_cfg': {'image_size': 224, 'layers': stages, 'width': 64, 'patch_size': None},
            'text_cfg': {'context_length': 77, 'vocab_size': 49408, 'width': 512, 'heads': 8, 'layers': 12}}
  assert arch_config.from_json(record, name) == clip_lib.ARCHS[name]
  record['vision_cfg']['layers'] = stages[:3]
  with pytest.raises(ValueError, match=r'vision_cfg: layers=\[3, 4, .*four stages'):
    arch_config.from_json(record, name)


def test_keys_with_defaults_may_be_missing():
  """As in checkpoints/tiny/config.json."""
  record = arch_config.to_json(clip_lib.ARCHS['vit_b32'])
  for key in ('kind', 'stages'):
    del record['vision'][key]
  assert arch_config.from_json(record) == clip_lib.ARCHS['vit_b32']


def test_values_that_hugging_face_omits_are_vit_b32s():
  assert arch_config.from_json({'model_type': 'clip'}, 'vit_b32') == clip_lib.ARCHS['vit_b32']


def test_activation_and_preprocessing_come_from_the_file():
  plain = {**OPEN_CLIP['model_cfg'], 'quick_gelu': False}
  arch = arch_config.from_json({'model_cfg': plain, 'preprocess_cfg': {
      'mean': [0.5, 0.5, 0.5], 'std': [0.5, 0.5, 0.5], 'interpolation': 'bilinear'}}, 'x')
  assert (arch.activation, arch.mean, arch.std, arch.resize) == ('gelu', (0.5,) * 3, (0.5,) * 3, 'bilinear')
  both = {k: {'hidden_act': 'gelu'} for k in ('vision_config', 'text_config')}
  assert arch_config.from_json({'model_type': 'clip', **both}).activation == 'gelu'


@pytest.mark.parametrize('record, message', [
    ({'architecture': 'vit_base', 'num_classes': 0}, 'does not describe a CLIP.*architecture, num_classes'),
    ({'model_type': 'clip', 'vision_config': {'hidden_act': 'gelu'}}, "text_config: hidden_act='quick_gelu'"),
    ({'model_type': 'clip', 'text_config': {'layer_norm_eps': 1e-6}}, 'text_config: layer_norm_eps=1e-06'),
    ({'model_type': 'clip', 'vision_config': {'intermediate_size': 1}}, 'intermediate_size=1 .*3072'),
    ({'model_type': 'clip', 'vision_config': {'hidden_act': 'gelu_new'}, 'text_config': {'hidden_act': 'gelu_new'}},
     "hidden_act='gelu_new' is not quick_gelu or gelu"),
    ({**OPEN_CLIP['model_cfg'], 'text_cfg': {'hf_model_name': 'roberta'}}, 'text_cfg: .*hf_model_name'),
    ({**OPEN_CLIP['model_cfg'], 'init_logit_bias': -10}, 'model_cfg: .*init_logit_bias'),
])
def test_unsupported_configs_are_refused(record, message):
  with pytest.raises(ValueError, match=message):
    arch_config.from_json(record)


def test_errors_name_the_file(tmp_path):
  record = arch_config.to_json(clip_lib.ARCHS['tiny'])
  record['vision'] = {**record['vision'], 'widht': 3}
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(record))
  with pytest.raises(ValueError, match=r"config.json .*vision has unknown keys \['widht'\]"):
    arch_config.read(path)
  path.write_text('{')
  with pytest.raises(ValueError, match=r'config.json does not describe'):
    arch_config.read(path)
  path.write_text(json.dumps({'model_cfg': {'embed_dim': 3}}))
  with pytest.raises(ValueError, match=r'config.json .*vision_cfg'):
    arch_config.read(path)


def test_an_architecture_is_named_after_its_folder(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(HUGGINGFACE))
  assert arch_config.read(tmp_path / 'config.json') == dataclasses.replace(
      clip_lib.ARCHS['vit_l14_336'], name=tmp_path.name)
