"""A small random ResNet in open_clip's format: loaded by path, evaluated by one method, and refused by others."""

import json
import shutil
from pathlib import Path

import ml_collections as mlc
import numpy as np
import pytest
from drawn_folders import draw
from golden import record_resnet

from zsad_jax import methods
from zsad_jax.clip import encoder
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import FeatureSpec
from zsad_jax.clip.weights import safetensors_files
from zsad_jax.configs import anomalyclip, april_gan, winclip
from zsad_jax.configs import clip as clip_config
from zsad_jax.experiment import experiment

TINY = Path(__file__).parents[2] / 'checkpoints' / 'tiny'
DIMS = record_resnet.Dims(stages=(1, 2, 1, 1), context=77, vocab=4096)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Returns a folder as open_clip has them on the hub: weights in half precision with batch counters, and a config."""
  folder = tmp_path_factory.mktemp('rn_tiny')
  arrays = record_resnet.weights(DIMS, np.random.RandomState(0))
  halved = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in arrays.items()}
  safetensors_files.write(folder / 'open_clip_model.safetensors', halved)
  (folder / 'open_clip_config.json').write_text(json.dumps({
      'model_cfg': {
          'embed_dim': DIMS.embed, 'quick_gelu': True,
          'vision_cfg': {'image_size': 64, 'layers': list(DIMS.stages), 'width': DIMS.width, 'patch_size': None},
          'text_cfg': {'context_length': 77, 'vocab_size': 4096, 'width': DIMS.text_width, 'heads': DIMS.text_heads,
                       'layers': DIMS.text_layers}},
      'preprocess_cfg': {'mean': [0.5, 0.5, 0.5], 'std': [0.25, 0.25, 0.25]}}))
  shutil.copy(TINY / 'tokenizer.json', folder)
  return folder


def config(module, folder, tmp, **changes):
  c = module.get_config('demo')
  c.update_from_flattened_dict({
      'clip': str(folder), 'image_size': 64, 'machine.encode_batch': 4, 'machine.eval_batch': 4, 'report.pictures': 0,
      'machine.data_dir': str(tmp / 'data'), 'data.aux': f'folder:{tmp / "aux"}',
      'data.target': f'folder:{tmp / "target"}'} | changes)
  return mlc.FrozenConfigDict(c)


def test_features_of_the_folder_equal_the_transcription(folder, torch):
  ours = clip_lib.load(folder, offline=True)
  assert ours.arch.vision.stages == DIMS.stages and ours.grid == 2 and len(ours.fingerprint) == 64
  arrays = record_resnet.weights(DIMS, np.random.RandomState(0))
  arrays = {k: v.astype(np.float16).astype(np.float32) if v.dtype == np.float32 else v for k, v in arrays.items()}
  images = record_resnet.images(64, np.random.RandomState(1))
  official = record_resnet.Official(arrays, DIMS)
  with torch.no_grad():
    want = official.pool(official.maps(images)[-1])[:, 0]
  np.testing.assert_allclose(encoder.encode(ours, FeatureSpec(64))(ours.params, images).cls, want, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('recipe', ['none', 'clip_ad'])
def test_method_clip_evaluates_a_resnet(folder, tmp_path, recipe):
  draw(tmp_path / 'target', {'wood': (90, 60, 30), 'metal_nut': (60, 60, 90)}, images=3)
  cfg = config(clip_config, folder, tmp_path, **{'multicrop.recipe': recipe})
  experiment.run(cfg, tmp_path / 'work', 'run')
  path, = tmp_path.glob('work/results/clip/nothing-to-target/seed*/metrics.json')
  metrics = json.loads(path.read_text())
  assert metrics['counts']['wood'] == {'normal': 3, 'anomalous': 3, 'vanished': 0, 'contradicted': 0}
  assert 0 <= metrics['mean']['pixel_auroc']['value'] <= 1 and 0 <= metrics['mean']['image_auroc']['value'] <= 1


@pytest.mark.parametrize('module', [anomalyclip, april_gan, winclip], ids=lambda m: m.__name__)
def test_methods_for_transformers_refuse_it_before_reading_weights(folder, tmp_path, module, monkeypatch):
  monkeypatch.setattr(clip_lib, 'load', lambda *args, **kwargs: pytest.fail('weights were read'))
  cfg = config(module, folder, tmp_path)
  with pytest.raises(ValueError, match=rf'^{cfg.method} cannot read {folder.name}.*resnet.*(: |, )clip\b'):
    experiment.run(cfg, tmp_path, 'run')


def test_image_sizes_off_the_grid_are_refused(folder, tmp_path):
  with pytest.raises(ValueError, match=r'image_size=72 .*multiple of 32'):
    experiment.run(config(clip_config, folder, tmp_path, image_size=72), tmp_path, 'run')


def test_every_method_reads_transformers():
  for name in methods.names():
    methods.check_tower(methods.get(name), clip_lib.ARCHS['tiny'])
