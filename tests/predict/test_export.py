"""Exported programs: scores equal to those in Python, files next to them, damaged files, refused configs."""

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

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip import preprocess
from zsad_jax.experiment import setup
from zsad_jax.experiment.run import Run
from zsad_jax.methods import Context
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
  """Four texts of an ensemble instead of hundreds."""
  whole = prompts.compose
  monkeypatch.setattr(prompts, 'compose', lambda *args, **how: whole(*args, **how)[:4])


def features_of(run, pictures):
  """Features of all pictures as one batch."""
  transform = preprocess.image_transform(run.clip.arch, SIZE)
  encode, _ = run.encoder(run.spec)
  return encode(run.clip.params, jnp.stack([transform(picture) for picture in pictures]))


def untrained(clip, name, **changes):
  """The Model of a method's initial parameters; a few-shot method's references are the first pictures."""
  run = Run.load(config(name, **changes), clip)
  params, memory_bank = run.init(), None
  if run.shots:
    memory_bank = run.memory_bank(jax.tree.map(lambda x: x[None, :run.shots], features_of(run, PICTURES)))
  encode = lambda clip_params: run.method.encode_text(params, clip_params, ('bolt',), clip=clip, cfg=run.cfg)
  text_features = run.reduced(jax.jit(encode)(clip.params), run.cfg.data.target)
  weights = {'clip_params': clip.params, 'params': params, 'memory_bank': memory_bank}
  return export.Model(run, *jax.device_get((weights, text_features)))


def in_python(model, pictures):
  """{'score', 'map'} as an evaluation computes them: features, then predict, of a whole batch."""
  run, weights, count = model.run, model.weights, len(pictures)
  batch = {'category': jnp.zeros(count, int), 'valid': jnp.ones(count, bool), 'index': jnp.arange(count)}
  context = Context(weights['clip_params'], model.text_features, weights['memory_bank'])
  predict = lambda *args: run.method.predict(*args, clip=run.clip, cfg=run.cfg)
  prediction = jax.device_get(jax.jit(predict)(weights['params'], context, features_of(run, pictures), batch))
  prediction = run.postprocess(prediction) if run.postprocess else prediction
  return {'score': prediction.score} | ({} if prediction.map is None else {'map': prediction.map})


# Every part at once: params, text features, a memory bank, and a score that is postprocessed.
@pytest.mark.slow
def test_weights_may_lie_next_to_a_program_of_a_fixed_batch(clip, short, tmp_path):
  model = untrained(clip, 'april_gan', **{
    'fewshot.shots': 1, 'score_norm': 'none', 'export.inline_gb': 0.0, 'export.batch': 2, 'export.platforms': 'cpu',
    'export.threshold': '0.25'})
  predict, about = export.load(export.write(model, tmp_path / 'export'))
  assert about['weights'] == 'next to the program' and about['platforms'] == ['cpu']
  assert (about['threshold'], about['image_size'], about['resize']) == (0.25, SIZE, 'bicubic')
  weights = tmp_path / 'export' / about['files']['weights']['name']
  program = (tmp_path / 'export' / about['files']['program']['name']).read_bytes()
  assert b'.py' not in program  # no paths of this machine
  assert weights.stat().st_size > 10 * len(program) and b'0.25' not in program
  # The text tower made the text features and is not needed again.
  assert not [name for name in export.safetensors.numpy.load_file(weights) if '/text/' in name]
  want, scored = in_python(model, PICTURES), predict(PICTURES)
  for key in ('score', 'map'):
    np.testing.assert_allclose(scored[key], want[key], atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'changes'), [
  ('anomalyclip', {}), ('cocoop', {}), ('padim_clip', {'fewshot.shots': 2}),
  ('april_gan', {'fewshot.shots': 1, 'score_norm': 'none'}),
  ('rwda', {'multicrop.recipe': 'none'})], ids=lambda x: x if isinstance(x, str) else '')
def test_programs_score_as_in_python(clip, short, tmp_path, name, changes):
  model = untrained(clip, name, **changes)
  predict, about = export.load(export.write(model, tmp_path / 'export'))
  want = in_python(model, PICTURES)
  assert about['threshold'] is None and about['weights'] == 'inside the program'
  assert about['platforms'] == ['cpu', 'cuda', 'tpu']
  for rows in (slice(None), slice(1, 2)):
    scored = predict(PICTURES[rows])
    assert scored.keys() == want.keys()
    for key, value in scored.items():
      scale = max(1, np.abs(want[key]).max())  # distances are not bounded by 1
      assert value.shape == want[key][rows].shape
      assert np.abs(value - want[key][rows]).max() <= 1e-5 * scale, key


# Methods with operations that those above lack: groups, stages of clustered texts, windows, searches in memory banks.
@pytest.mark.slow
@pytest.mark.parametrize('name', ['fuzzyclip', 'sdp_plus', 'winclip', 'patchcore_clip'])
def test_programs_are_lowered_for_accelerators(clip, short, name):
  changes = {'prompt.categories': ('bolt',), 'csp.groups': (0,)} if name == 'fuzzyclip' else {}
  changes |= {'score_norm': 'none'} if name == 'sdp_plus' else {}
  model = untrained(clip, name, **changes)
  export.check(model.run.cfg)
  exported, _ = export.program(model, ('cuda', 'tpu'), inline=False)
  assert exported.platforms == ('cuda', 'tpu') and str(exported.in_avals[-1].shape[0]) == 'b'


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """(config, workdir) of an untrained method's export, as the command writes it into a folder with older files."""
  tmp = tmp_path_factory.mktemp('export')
  draw(tmp / 'target', {'wood': (90, 60, 30), 'metal_nut': (60, 60, 90)}, images=1, train=1)
  cfg = config('patchcore_clip', **{'data.target': f'folder:{tmp / "target"}', 'machine.data_dir': str(tmp / 'data'),
                                    'export.category': 'metal nut', 'machine.encode_batch': 1, 'export.threshold': '7'})
  folder = tmp / 'work' / 'export'
  folder.mkdir(parents=True)
  for name in ('text-0123456789ab.npz', 'weights-0123456789ab.safetensors', 'my-notes.txt'):
    (folder / name).touch()
  export.run(cfg, tmp / 'work')
  return cfg, tmp / 'work'


@pytest.mark.slow
def test_an_export_replaces_an_older_one_and_leaves_other_files(written):
  about = json.loads((written[1] / 'export' / 'export.json').read_text())
  names = {file['name'] for file in about['files'].values()}
  assert about['weights'] == 'inside the program' and about['platforms'] == ['cpu', 'cuda', 'tpu']
  assert {path.name for path in (written[1] / 'export').iterdir()} == {
    *names, 'export.json', 'threshold.json', 'my-notes.txt'}


@pytest.mark.slow
def test_the_documented_loader_reads_what_the_command_writes(written, tmp_path):
  docs = (Path(__file__).parents[2] / 'docs' / 'export.md').read_text()
  loader = re.search(r'```python\n(import hashlib.*?)```', docs, re.DOTALL)[1]
  assert 'zsad_jax' not in loader
  for i, picture in enumerate(PICTURES):
    picture.save(tmp_path / f'{i}.png')
  space = {}
  exec(loader, space)
  predict, about = space['load'](written[1] / 'export')
  ours, _ = export.load(written[1] / 'export')
  scored, want = predict([tmp_path / f'{i}.png' for i in range(3)]), ours(PICTURES)
  np.testing.assert_array_equal(scored['score'], want['score'])
  np.testing.assert_array_equal(scored['map'], want['map'])
  assert about['category'] == 'metal nut'


@pytest.mark.slow
def test_damaged_files_and_other_formats_are_refused(written, tmp_path):
  shutil.copytree(written[1] / 'export', tmp_path / 'export')
  about = json.loads((tmp_path / 'export' / 'export.json').read_text())
  program = tmp_path / 'export' / about['files']['program']['name']
  data = bytearray(program.read_bytes())
  data[len(data) // 2] ^= 1
  program.write_bytes(data)
  with pytest.raises(ValueError, match=rf'{program.name} is damaged .*export again'):
    export.load(tmp_path / 'export')
  (tmp_path / 'export' / 'export.json').write_text('{"format": "other"}')
  with pytest.raises(ValueError, match=r"zsad_jax export 1.*'other'"):
    export.load(tmp_path / 'export')


@pytest.mark.parametrize(('name', 'changes', 'message'), [
  ('sdp', {}, r'score_norm=class_minmax .*--config\.score_norm=none'),
  ('clip', {'multicrop.recipe': 'ten'}, r'multicrop\.recipe=ten .*--config\.multicrop\.recipe=none'),
  ('clip', {'export.platforms': 'cpu,gpu'}, "export.platforms='cpu,gpu' .*cpu, cuda, rocm, tpu"),
  ('clip', {'export.batch': -1}, 'export.batch=-1'),
  ('clip', {'export.threshold': 'half'}, "export.threshold='half' is not a number"),
  ('clip', {}, r'CLIP names the object .*--config\.export\.category'),
])
def test_configs_that_cannot_be_exported_are_refused(tmp_path, name, changes, message):
  with pytest.raises(ValueError, match=message):
    export.run(config(name, **changes), tmp_path)


def test_an_unknown_category_is_refused(written, tmp_path):
  with pytest.raises(ValueError, match=r"export\.category='screw' .*metal nut"):
    export.run(setup.with_overrides(written[0], {'export.category': 'screw'}), tmp_path)
