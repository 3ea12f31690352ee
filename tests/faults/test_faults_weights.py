"""Wrong weights are refused by their digest first, then by names and shapes; pickles are never opened."""

import dataclasses
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.weights import hub, safetensors_files

TINY = Path(__file__).parents[2] / 'checkpoints' / 'tiny'
NAME = 'model.safetensors'


@pytest.fixture
def folder(tmp_path):
  """A copy of the tiny CLIP with its record."""
  shutil.copytree(TINY, tmp_path / 'clip')
  return tmp_path / 'clip'


def changed(folder, change):
  """Rewrites the weights after `change`, with a record that fits."""
  arrays = safetensors_files.read(folder / NAME)
  change(arrays)
  safetensors_files.write(folder / NAME, arrays)


@pytest.mark.parametrize('damage', [
  lambda data: data[:len(data) // 2], lambda data: data[:-4] + bytes([data[-4] ^ 1]) + data[-3:]],
  ids=['truncated', 'flipped'])
def test_the_digest_is_checked_first(folder, damage):
  path = folder / NAME
  path.write_bytes(damage(path.read_bytes()))
  recorded = safetensors_files.read_digest(f'{path}.sha256')
  with pytest.raises(ValueError, match=rf'{path} has sha256 [0-9a-f]{{64}}, but {recorded} is recorded'):
    clip_lib.load(folder)


def test_without_a_record_a_truncated_file_is_refused_and_not_recorded(folder):
  path = folder / NAME
  path.write_bytes(path.read_bytes()[:-1000])
  (folder / f'{NAME}.sha256').unlink()
  with pytest.raises(ValueError, match='truncated'):
    clip_lib.load(folder)
  assert not (folder / f'{NAME}.sha256').exists()


def test_another_architecture_or_activation_is_refused_before_the_weights_are_read(folder):
  (folder / NAME).write_bytes(b'')
  with pytest.raises(ValueError, match=r"embed_dim .*arch='vit_b16' has 512"):
    clip_lib.load(folder, arch='vit_b16')
  other = dataclasses.replace(hub.architecture('tiny'), name='tiny-gelu', activation='gelu')
  with pytest.raises(ValueError, match=r"activation quick_gelu.*arch='tiny-gelu' has gelu"):
    clip_lib.load(folder, arch=other)


def _transpose(arrays):
  name = next(name for name, array in arrays.items() if array.ndim == 2 and array.shape[0] != array.shape[1])
  arrays[name] = np.ascontiguousarray(arrays[name].T)


@pytest.mark.parametrize(('change', 'message'), [
  (lambda arrays: arrays.pop('logit_scale'), r'do not fit tiny: 1 missing \(logit_scale \[\]\)'),
  (lambda arrays: arrays.update(stray=np.zeros(3, np.float32)), r'do not fit tiny: 1 extra \(stray \[3\]\)'),
  (_transpose, r'do not fit tiny: 1 of another shape \(\S+ is \[\d+, \d+\], not \[\d+, \d+\]\)'),
], ids=['missing', 'extra', 'transposed'])
def test_missing_extra_and_transposed_arrays_are_named(folder, change, message):
  changed(folder, change)
  with pytest.raises(ValueError, match=message):
    clip_lib.load(folder)


class Malicious:
  def __reduce__(self):
    return Path.write_text, (Path(self.path), 'ran')


@pytest.mark.parametrize('name', ['weights.pt', 'weights.pth', 'weights.bin', 'model.safetensors'])
def test_a_pickle_is_never_opened_and_the_converter_is_named(tmp_path, name):
  evil = Malicious()
  evil.path = str(tmp_path / 'ran')
  (tmp_path / name).write_bytes(pickle.dumps(evil))
  for path in (tmp_path, tmp_path / name):
    with pytest.raises(ValueError, match=rf'(?s){name} is a pickled checkpoint.*clip\.weights\.convert'):
      clip_lib.load(path, arch='tiny')
  assert not (tmp_path / 'ran').exists()


def test_long_prompts_keep_their_end_or_are_refused():
  tokenizer = clip_lib.load('tiny', image_size=64).tokenizer
  with pytest.raises(ValueError, match='77'):
    tokenizer.encode(['a photo of a ' + 'damaged ' * 200])
  ids = tokenizer.encode(['a photo of a ' + 'damaged ' * 200], truncate=True)
  assert ids.shape == (1, 77) and ids[0, -1] == ids.max() == tokenizer.encode(['bolt']).max()


@pytest.mark.parametrize('name', ['pcb1', 'metal_nut', 'hazelnut 2', 'Größe', '螺栓'])
def test_names_in_any_script_become_tokens(name):
  tokenizer = clip_lib.load('tiny', image_size=64).tokenizer
  ids = tokenizer.encode([f'a photo of a {name}'])
  assert 5 < np.count_nonzero(ids) < 40
