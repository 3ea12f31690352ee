"""bfloat16 products: close to float32 in every method, and part of the identity of features and trainings."""

import dataclasses
import functools
import importlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np
import pytest

from zsad_jax import methods
from zsad_jax.clip import encoder
from zsad_jax.clip import model as clip_lib
from zsad_jax.experiment import experiment, setup
from zsad_jax.experiment.run import Run
from zsad_jax.methods import Context
from zsad_jax.methods.parts import prompts

SIZE, NAMES = 64, ('metal nut', 'wood')
# Tolerance of the mean difference, relative to the standard deviation over pixels of maps and over images of scores.
TOLERANCE = {'map': 0.05, 'score': 0.1, 'distance': 0.1}
IMAGES = np.random.default_rng(0).normal(size=(4, SIZE // 8, SIZE // 8, 3)).astype(np.float32).repeat(8, 1).repeat(8, 2)
EVERYDAY = ('anomalyclip', 'winclip')  # the other methods are in the slow tier


@pytest.fixture(scope='module')
def clips():
  loaded = clip_lib.load('tiny', image_size=SIZE)
  return loaded, clip_lib.with_precision(loaded, 'bfloat16')


def config(name):
  c = importlib.import_module(f'zsad_jax.configs.{name}').get_config('demo')
  changes = {'image_size': SIZE} | ({'prompt.categories': NAMES, 'csp.groups': (0, 1)} if name == 'fuzzyclip' else {})
  c.update_from_flattened_dict(changes)
  return mlc.FrozenConfigDict(c)


def outputs(clip, params, cfg, method):
  """Returns the scores and maps of IMAGES, the last two of which are also the references, for one precision."""
  spec = method.feature_spec(clip, cfg)
  shots = cfg.fewshot.shots if method.build_memory_bank else 0

  @jax.jit
  def prepare(params, clip_params, images):
    features = clip.image(clip_params, images, spec._replace(crops=0))
    if spec.crops:
      features = features._replace(crops=jnp.repeat(features.cls[:, None], 10, axis=1))
    references = jax.tree.map(lambda x: x[2:, None].repeat(shots, 1), features)._replace(crops=None)
    bank = method.build_memory_bank(clip_params, references, clip=clip, cfg=cfg) if shots else None
    return features, bank, method.encode_text(params, clip_params, NAMES, clip=clip, cfg=cfg)

  features, bank, text = prepare(params, clip.params, jnp.asarray(IMAGES))
  text = method.reduce_text_features(text, cfg.data.target, cfg=cfg)
  batch = {'category': jnp.array([0, 1, 0, 1]), 'valid': jnp.ones(4, bool), 'index': jnp.arange(4)}
  predict = jax.jit(functools.partial(method.predict, clip=clip, cfg=cfg))
  assert {x.dtype for x in jax.tree.leaves(features)} == {jnp.dtype('float32')}
  score, anomaly_map, extras = predict(params, Context(clip.params, text, bank), features, batch)
  arrays = {'score': score, 'map': anomaly_map, **extras}
  return {name: np.asarray(array) for name, array in arrays.items() if array is not None}


@pytest.mark.parametrize('name', [
  name if name in EVERYDAY else pytest.param(name, marks=pytest.mark.slow) for name in methods.names()])
def test_scores_of_every_method_are_close_in_bfloat16(clips, name, monkeypatch):
  whole_ensemble = prompts.compose
  monkeypatch.setattr(prompts, 'compose', lambda *args, **how: whole_ensemble(*args, **how)[:4])  # hundreds of texts
  method, cfg = methods.get(name), config(name)
  whole, half = (dataclasses.replace(clip, arch=method.architecture(clip.arch, cfg)) for clip in clips)
  params = method.init(jax.random.key(1), whole, cfg)
  wide, narrow = outputs(whole, params, cfg, method), outputs(half, params, cfg, method)
  assert wide.keys() == narrow.keys()
  for key, value in wide.items():
    assert narrow[key].dtype == value.dtype == np.float32
    difference, scale = np.abs(narrow[key] - value).mean(), max(value.std(), np.abs(value).mean() / 10)
    print(name, key, difference / scale)
    assert 0 < difference <= TOLERANCE[key] * scale, f'{key}: {difference} of {scale}'


def test_only_kernels_are_cast_and_only_once(clips):
  whole, half = clips
  for path, leaf in jax.tree_util.tree_leaves_with_path(half.params):
    assert leaf.dtype == (jnp.bfloat16 if path[-1].key == 'kernel' else jnp.float32), path
  assert clip_lib.with_precision(half, 'bfloat16') is half and clip_lib.with_precision(whole, 'float32') is whole
  with pytest.raises(ValueError, match='already bfloat16; load the weights again for float32'):
    clip_lib.with_precision(half, 'float32')
  with pytest.raises(ValueError, match="precision='float16' is not one of float32, bfloat16"):
    clip_lib.with_precision(whole, 'float16')


def test_products_are_bfloat16_and_features_float32(clips):
  _, half = clips
  spec = methods.get('clip').feature_spec(half, config('clip'))
  text = str(jax.make_jaxpr(lambda params, images: half.image(params, images, spec))(half.params, IMAGES))
  products = [line for line in text.splitlines() if ' = dot_general[' in line]
  assert products and 'bf16[128,512]' in text
  jaxpr = jax.make_jaxpr(lambda params, images: encoder.encode(half, spec)(params, images))(half.params, IMAGES)
  assert all(x.aval.dtype == jnp.float32 for x in jaxpr.jaxpr.outvars)


def test_features_and_trainings_are_identified_by_the_precision(clips):
  whole, half = clips
  assert 'precision' not in whole.identity and half.identity['precision'] == 'bfloat16'
  cfg, dataset = config('anomalyclip'), SimpleNamespace(fingerprint='x')
  narrow = setup.with_overrides(cfg, {'precision': 'bfloat16'})
  identity = Run.load(cfg, whole).identity(dataset)
  assert Run.load(narrow, half).identity(dataset) == {**identity, 'precision': 'bfloat16'} != identity
  assert setup.load_clip(narrow, methods.get('anomalyclip')).precision == 'bfloat16'


def test_unknown_precisions_are_refused_before_anything_is_loaded(tmp_path):
  cfg = setup.with_overrides(config('clip'), {'precision': 'fp8'})
  with pytest.raises(ValueError, match=r"precision='fp8' .*float32, bfloat16"):
    experiment.run(cfg, tmp_path, 'evaluate')
