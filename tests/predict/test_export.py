"""Exported programs say what the Python path says, carry what they need, and are held to their digests."""

import functools
import importlib
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np
import pytest
from drawn_folders import draw
from PIL import Image

from zsad_jax import methods
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip import preprocess
from zsad_jax.experiment import experiment, setup
from zsad_jax.methods.parts import prompts
from zsad_jax.predict import export

SIZE = 64
PICTURES = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (50 + 9 * i, 70, 3)).astype(np.uint8))
            for i in range(3)]


def config(name, **changes):
  c = importlib.import_module(f'zsad_jax.configs.{name}').get_config('demo')
  c.update_from_flattened_dict({'image_size': SIZE} | changes)
  return mlc.FrozenConfigDict(c)


@pytest.fixture(scope='module')
def clip():
  return clip_lib.load('tiny', image_size=SIZE)


@pytest.fixture
def short(monkeypatch):
  """Four texts of an ensemble in place of hundreds."""
  whole = prompts.compose
  monkeypatch.setattr(prompts, 'compose', lambda *args, **how: whole(*args, **how)[:4])


def made(clip, name, **changes):
  """A Model with what a method starts from, and references of its own pictures where it has any."""
  cfg, method = config(name, **changes), methods.get(name)
  spec, learnable = method.spec(clip, cfg), method.init(jax.random.key(0), clip, cfg)
  shots, memory = (cfg.fewshot.shots if 'fewshot' in cfg else 0), None
  if shots:
    features = jax.jit(lambda params, x: clip.image(params, x, spec))(clip.params, pixels(clip, PICTURES[:shots]))
    memory = jax.jit(functools.partial(method.memory, clip=clip, cfg=cfg))(
      clip.params, jax.tree.map(lambda x: x[None], features))
  bank = jax.jit(lambda frozen: method.bank(learnable, frozen, ('bolt',), clip=clip, cfg=cfg))(clip.params)
  weights = {'frozen': clip.params, 'learnable': learnable, 'memory': memory}
  return export.Model(method, clip, cfg, spec, *jax.device_get((weights, bank)))


def pixels(clip, pictures):
  transform = preprocess.image_transform(clip.arch, SIZE)
  return jnp.stack([transform(picture) for picture in pictures])


def python_path(model, pictures):
  """Score and map as an evaluation computes them: features, then predict, of a whole batch."""
  method, clip, cfg = model.method, model.clip, model.cfg
  features = jax.jit(lambda params, x: clip.image(params, x, model.spec))(clip.params, pixels(clip, pictures))
  count = len(pictures)
  batch = {'category': jnp.zeros(count, int), 'valid': jnp.ones(count, bool), 'index': jnp.arange(count)}
  out = jax.jit(functools.partial(method.predict, clip=clip, cfg=cfg))(
    model.weights['learnable'], model.weights['frozen'], model.bank, model.weights['memory'], features, batch)
  out = jax.device_get(out)
  return method.finish(out, cfg=cfg) if hasattr(method, 'finish') else out


@pytest.mark.parametrize(('name', 'changes'), [
  ('anomalyclip', {}), ('cocoop', {}), ('padim_clip', {'fewshot.shots': 2}),
  ('april_gan', {'fewshot.shots': 1, 'score_norm': 'none'}),
  ('rwda', {'multicrop.recipe': 'none'})], ids=lambda x: x if isinstance(x, str) else '')
def test_programs_score_as_the_python_path(clip, short, tmp_path, name, changes):
  model = made(clip, name, **changes)
  predict, about = export.load(export.write(model, tmp_path / 'export'))
  want = python_path(model, PICTURES)
  assert about['threshold'] is None and about['weights'] == 'inside the program'
  assert about['platforms'] == ['cpu', 'cuda', 'tpu']
  for pictures in (PICTURES, PICTURES[1:2]):
    found = predict(pictures)
    rows = slice(None) if len(pictures) == 3 else slice(1, 2)
    assert found.keys() == want.keys() & {'score', 'map'}
    for key, value in found.items():
      scale = max(1, np.abs(want[key]).max())  # distances are not bounded by 1
      assert value.shape == want[key][rows].shape
      assert np.abs(value - want[key][rows]).max() <= 1e-5 * scale, key


def test_weights_beside_the_program_and_a_fixed_batch(clip, short, tmp_path):
  model = made(clip, 'clip', **{'export.inline_gb': 0.0, 'export.batch': 2, 'export.platforms': 'cpu',
                                'export.threshold': '0.25'})
  predict, about = export.load(export.write(model, tmp_path / 'export'))
  assert about['weights'] == 'beside the program' and about['platforms'] == ['cpu']
  assert (about['threshold'], about['image_size'], about['resize']) == (0.25, SIZE, 'bicubic')
  weights = tmp_path / 'export' / about['files']['weights']['name']
  program = (tmp_path / 'export' / about['files']['program']['name']).read_bytes()
  assert b'.py' not in program  # no paths of this machine
  assert weights.stat().st_size > 10 * len(program) and b'0.25' not in program
  # The text tower made the text features and is not needed again.
  assert not [name for name in export.safetensors.numpy.load_file(weights) if '/text/' in name]
  want, found = python_path(model, PICTURES), predict(PICTURES)
  for key in ('score', 'map'):
    np.testing.assert_allclose(found[key], want[key], atol=1e-5, rtol=0)


# Whose operations the methods above do not have: groups, stages of clustered texts, windows, searches in banks.
@pytest.mark.parametrize('name', ['fuzzyclip', 'sdp_plus', 'winclip', 'patchcore_clip'])
def test_programs_are_lowered_for_accelerators(clip, short, name):
  changes = {'prompt.categories': ('bolt',), 'csp.groups': (0,)} if name == 'fuzzyclip' else {}
  changes |= {'score_norm': 'none'} if name == 'sdp_plus' else {}
  cfg, method = config(name, **changes), methods.get(name)
  export.check(cfg, method)
  model = made(clip, name, **changes)
  if hasattr(method, 'select'):
    model = model._replace(bank=experiment.selected(cfg, method, model.bank, cfg.data.target))
  exported, _ = export.program(model, ('cuda', 'tpu'), inline=False)
  assert exported.platforms == ('cuda', 'tpu') and str(exported.in_avals[-1].shape[0]) == 'b'


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """(config, workdir) of an untrained method's export, as the command writes it."""
  tmp = tmp_path_factory.mktemp('export')
  draw(tmp / 'target', {'wood': (90, 60, 30), 'metal_nut': (60, 60, 90)}, images=1, train=1)
  cfg = config('patchcore_clip', **{'data.target': f'folder:{tmp / "target"}', 'machine.data_dir': str(tmp / 'data'),
                                    'export.category': 'metal nut', 'machine.encode_batch': 1, 'export.threshold': '7'})
  export.run(cfg, tmp / 'work')
  return cfg, tmp / 'work'


def test_the_command_writes_what_the_documented_loader_reads(written, tmp_path):
  docs = (Path(__file__).parents[2] / 'docs' / 'export.md').read_text()
  loader = re.search(r'```python\n(import hashlib.*?)```', docs, re.DOTALL)[1]
  assert 'zsad_jax' not in loader
  for i, picture in enumerate(PICTURES):
    picture.save(tmp_path / f'{i}.png')
  space = {}
  exec(loader, space)
  predict, about = space['load'](written[1] / 'export')
  ours, _ = export.load(written[1] / 'export')
  found, want = predict([tmp_path / f'{i}.png' for i in range(3)]), ours(PICTURES)
  np.testing.assert_array_equal(found['score'], want['score'])
  np.testing.assert_array_equal(found['map'], want['map'])
  assert about['category'] == 'metal nut'


def test_a_damaged_file_is_refused_and_an_export_replaces_the_old_one(written, tmp_path):
  shutil.copytree(written[1] / 'export', tmp_path / 'export')
  about = json.loads((tmp_path / 'export' / 'export.json').read_text())
  program = tmp_path / 'export' / about['files']['program']['name']
  data = bytearray(program.read_bytes())
  data[len(data) // 2] ^= 1
  program.write_bytes(data)
  with pytest.raises(ValueError, match=rf'{program.name} is damaged or another file: .* export again'):
    export.load(tmp_path / 'export')
  (tmp_path / 'export' / 'export.json').write_text('{"format": "other"}')
  with pytest.raises(ValueError, match="is no zsad_jax export 1, but 'other'"):
    export.load(tmp_path / 'export')


def test_exporting_again_leaves_no_stale_files(clip, short, tmp_path):
  model = made(clip, 'clip')
  folder = export.write(model, tmp_path)
  before = {p.name for p in folder.iterdir()}
  export.write(model._replace(bank=model.bank * 2), tmp_path)
  after = {p.name for p in folder.iterdir()}
  assert len(after) == len(before) == 4 and len(before & after) == 3  # another bank alone


@pytest.mark.parametrize(('name', 'changes', 'message'), [
  ('sdp', {}, r'score_norm=class_minmax scores an image by all images .* --config\.score_norm=none'),
  ('clip', {'multicrop.recipe': 'ten'}, r'--config\.multicrop\.recipe=none'),
  ('clip', {'export.platforms': 'cpu,gpu'}, "export.platforms 'cpu,gpu' are not some of cpu, cuda, rocm, tpu"),
  ('clip', {'export.batch': -1}, 'export.batch is -1'),
  ('clip', {'export.threshold': 'half'}, "export.threshold 'half' is not a number"),
  ('clip', {}, r'clip names the object in its texts .* --config\.export\.category'),
])
def test_what_cannot_be_exported_is_refused_first(tmp_path, name, changes, message):
  with pytest.raises(ValueError, match=message):
    export.run(config(name, **changes), tmp_path)


def test_an_unknown_category_is_refused(written, tmp_path):
  with pytest.raises(ValueError, match=r"export\.category 'screw' is not one of .*metal nut"):
    export.run(setup.with_changes(written[0], {'export.category': 'screw'}), tmp_path)
