"""bfloat16 products: close to float32 in every method, part of what results and stores are known by."""

import dataclasses
import functools
import importlib

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np
import pytest

from zsad_jax import methods
from zsad_jax.clip import encoder
from zsad_jax.clip import model as clip_lib
from zsad_jax.experiment import experiment, setup
from zsad_jax.methods.parts import prompts

SIZE, NAMES = 64, ('metal nut', 'wood')
# Stated tolerance: the mean difference, over the standard deviation among pixels of maps and among images of scores.
TOLERANCE = {'map': 0.05, 'score': 0.1, 'distance': 0.1}
IMAGES = np.random.default_rng(0).normal(size=(4, SIZE // 8, SIZE // 8, 3)).astype(np.float32).repeat(8, 1).repeat(8, 2)
OF_THEIR_OWN = ('anomalyclip', 'april_gan', 'cocoop', 'sdp', 'winclip')  # what they read of the towers, others do too


@pytest.fixture(scope='module')
def clips():
  loaded = clip_lib.load('tiny', image_size=SIZE)
  return loaded, clip_lib.with_precision(loaded, 'bfloat16')


def config(name):
  c = importlib.import_module(f'zsad_jax.configs.{name}').get_config('demo')
  changes = {'image_size': SIZE} | ({'prompt.categories': NAMES, 'csp.groups': (0, 1)} if name == 'fuzzyclip' else {})
  c.update_from_flattened_dict(changes)
  return mlc.FrozenConfigDict(c)


def outputs(clip, learnable, cfg, method):
  """Scores and maps of IMAGES, the last two of them also the references, under one precision."""
  spec = method.spec(clip, cfg)
  shots = cfg.fewshot.shots if 'fewshot' in cfg else 0

  @jax.jit
  def run(learnable, params, images):
    features = clip.image(params, images, spec._replace(crops=0))
    if spec.crops:
      features = features._replace(crops=jnp.repeat(features.cls[:, None], 10, axis=1))
    few = jax.tree.map(lambda x: x[2:, None].repeat(shots, 1), features)
    memory = method.memory(params, few._replace(crops=None), clip=clip, cfg=cfg) if shots else None
    return features, memory, method.bank(learnable, params, NAMES, clip=clip, cfg=cfg)

  features, memory, bank = run(learnable, clip.params, jnp.asarray(IMAGES))
  bank = experiment.selected(cfg, method, bank, cfg.data.target)
  batch = {'category': jnp.array([0, 1, 0, 1]), 'valid': jnp.ones(4, bool), 'index': jnp.arange(4)}
  predict = jax.jit(functools.partial(method.predict, clip=clip, cfg=cfg))
  assert {x.dtype for x in jax.tree.leaves(features)} == {jnp.dtype('float32')}
  return {k: np.asarray(v) for k, v in predict(learnable, clip.params, bank, memory, features, batch).items()}


@pytest.mark.parametrize('name', [
  name if name in OF_THEIR_OWN else pytest.param(name, marks=pytest.mark.exhaustive) for name in methods.names()])
def test_every_method_scores_alike_in_bfloat16(clips, name, monkeypatch):
  whole_ensemble = prompts.compose
  monkeypatch.setattr(prompts, 'compose', lambda *args, **how: whole_ensemble(*args, **how)[:4])  # hundreds of texts
  method, cfg = methods.get(name), config(name)
  whole, half = (dataclasses.replace(clip, arch=method.arch(clip.arch, cfg) if hasattr(method, 'arch') else clip.arch)
                 for clip in clips)
  learnable = method.init(jax.random.key(1), whole, cfg)
  wide, narrow = outputs(whole, learnable, cfg, method), outputs(half, learnable, cfg, method)
  assert wide.keys() == narrow.keys()
  for key, value in wide.items():
    assert narrow[key].dtype == value.dtype == np.float32
    difference, scale = np.abs(narrow[key] - value).mean(), max(value.std(), np.abs(value).mean() / 10)
    print(name, key, difference / scale)
    assert 0 < difference <= TOLERANCE[key] * scale, f'{key}: {difference} of {scale}'


def test_only_kernels_are_rounded_and_only_once(clips):
  whole, half = clips
  for path, leaf in jax.tree_util.tree_leaves_with_path(half.params):
    assert leaf.dtype == (jnp.bfloat16 if path[-1].key == 'kernel' else jnp.float32), path
  assert clip_lib.with_precision(half, 'bfloat16') is half and clip_lib.with_precision(whole, 'float32') is whole
  with pytest.raises(ValueError, match='were rounded to bfloat16; load the weights again for float32'):
    clip_lib.with_precision(half, 'float32')
  with pytest.raises(ValueError, match="precision 'float16' is not one of float32, bfloat16"):
    clip_lib.with_precision(whole, 'float16')


def test_products_run_in_bfloat16_and_what_adds_up_in_float32(clips):
  _, half = clips
  spec = methods.get('clip').spec(half, config('clip'))
  text = str(jax.make_jaxpr(lambda params, images: half.image(params, images, spec))(half.params, IMAGES))
  products = [line for line in text.splitlines() if ' = dot_general[' in line]
  assert products and 'bf16[128,512]' in text
  jaxpr = jax.make_jaxpr(lambda params, images: encoder.encode(half, spec)(params, images))(half.params, IMAGES)
  assert all(x.aval.dtype == jnp.float32 for x in jaxpr.jaxpr.outvars)


def test_results_stores_and_trainings_know_the_precision(clips):
  whole, half = clips
  assert 'precision' not in whole.identity and half.identity['precision'] == 'bfloat16'
  method, cfg = methods.get('anomalyclip'), config('anomalyclip')
  dataset = type('Data', (), {'fingerprint': 'x'})
  recipe = experiment.identity(cfg, method, whole, dataset)
  assert 'precision' not in recipe and 'machine.max_memory_gb' not in recipe
  narrow = setup.with_changes(cfg, {'precision': 'bfloat16'})
  assert experiment.identity(narrow, method, half, dataset) == {**recipe, 'precision': 'bfloat16'}
  assert setup.load_clip(narrow, method).precision == 'bfloat16'


def test_another_precision_is_refused_before_anything_is_loaded(tmp_path):
  cfg = setup.with_changes(config('clip'), {'precision': 'fp8'})
  with pytest.raises(ValueError, match=r"precision is 'fp8'; it must be one of float32, bfloat16"):
    experiment.run(cfg, tmp_path, 'evaluate')
