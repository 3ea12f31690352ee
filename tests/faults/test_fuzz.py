"""Random and damaged images, tables, configs and weights give the documented errors or a sound result, nothing else.

--hypothesis-profile sets the number of examples, see tests/conftest.py.
"""

import io
import json
import math
import struct

import ml_collections as mlc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from zsad_jax.clip.weights import safetensors_files
from zsad_jax.configs import anomalyclip
from zsad_jax.data import images
from zsad_jax.data.inventory import Inventory
from zsad_jax.data.layouts import image_table
from zsad_jax.experiment import setup

pytestmark = pytest.mark.fuzz
fuzzed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
KINDS = {'PNG': 'RGB', 'JPEG': 'RGB', 'TIFF': 'RGB', 'BMP': 'RGB', 'WEBP': 'RGBA', 'GIF': 'P'}


def encoded(kind, mode):
  pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
  out = io.BytesIO()
  Image.fromarray(pixels).convert(mode).save(out, kind)
  return out.getvalue()


FILES = {kind: encoded(kind, mode) for kind, mode in KINDS.items()}


@st.composite
def damaged(draw, whole):
  """A whole file with bytes changed, removed or inserted, or with its end missing; sometimes only noise."""
  if draw(st.integers(0, 9)) == 0:
    return draw(st.binary(max_size=200))
  data = bytearray(draw(st.sampled_from(sorted(whole.values()))))
  for _ in range(draw(st.integers(1, 4))):
    at = draw(st.integers(0, max(0, len(data) - 1)))
    kind = draw(st.sampled_from(['change', 'remove', 'insert', 'cut']))
    if kind == 'change' and data:
      data[at] = draw(st.integers(0, 255))
    elif kind == 'remove':
      del data[at:at + draw(st.integers(1, 20))]
    elif kind == 'insert':
      data[at:at] = draw(st.binary(max_size=20))
    elif kind == 'cut':
      del data[at:]
  return bytes(data)


@fuzzed
@given(damaged(FILES))
def test_images_become_rgb_or_bad_image(tmp_path, data):
  path = tmp_path / 'image.png'
  path.write_bytes(data)
  try:
    picture = images.read_rgb(path)
    prepared = images.decode_rgb(images.encode(path).data, path)
  except images.BadImage as error:
    assert str(path) in str(error)
  else:
    assert picture.mode == 'RGB' and min(picture.size) > 0
    np.testing.assert_array_equal(np.asarray(prepared), np.asarray(picture))


@fuzzed
@given(damaged(FILES), st.integers(0, 255))
def test_masks_become_bool_or_bad_image(tmp_path, data, threshold):
  path = tmp_path / 'mask.png'
  path.write_bytes(data)
  try:
    mask = images.read_mask(path, threshold)
  except images.BadImage as error:
    assert str(path) in str(error)
  else:
    assert mask.dtype == bool and mask.ndim == 2 and mask.size > 0


CELLS = st.one_of(
  st.sampled_from(['a.png', 'b.png', 'sub/c.png', '../d.png', '/etc/passwd', '0', '1', 'normal', 'defect', 'train',
                   'test', 'nut', '', '.', '..', '"', '"a', 'a,b', 'a;b', '\x00', '\ufeff', 'ü']), st.text(max_size=6))
HEADS = st.lists(st.sampled_from([*image_table.REQUIRED, *image_table.OPTIONAL, 'more', '']), min_size=1, max_size=8)


@fuzzed
@given(HEADS, st.lists(st.lists(CELLS, max_size=8), max_size=5), st.sampled_from(',;\t'), st.booleans())
def test_tables_give_items_inside_their_folder_or_name_the_table(tmp_path, head, body, delimiter, required):
  head = [*image_table.REQUIRED, *head] if required else head
  for name in ('a.png', 'b.png'):
    (tmp_path / name).write_bytes(b'')
  path = tmp_path / 'table.csv'
  path.write_bytes('\n'.join(delimiter.join(row) for row in (head, *body)).encode('utf-8', 'surrogatepass'))
  try:
    inventory = image_table.scan(path)
  except ValueError as error:
    assert str(path) in str(error)
  else:
    assert isinstance(inventory, Inventory) and (inventory.items or inventory.problems)
    assert all(str(path) in problem for problem in inventory.problems)
    assert all(item.image.resolve().is_relative_to(tmp_path.resolve()) and item.label in (0, 1)
               for item in inventory.items)


NUMBERS = st.one_of(st.integers(-3, 2000), st.sampled_from([0, 1, 2 ** 31, 10 ** 12]))
REALS = st.one_of(st.floats(-1, 3), st.sampled_from([math.nan, math.inf, -math.inf, 0., 1e-30]))
WORDS = st.one_of(st.sampled_from(['error', 'skip', 'ignore', 'apply', 'white', 'drop', 'float32', 'bfloat16']),
                  st.text(max_size=8))
KEYS = {
  'train.epochs': NUMBERS, 'train.batch': NUMBERS, 'machine.encode_batch': NUMBERS, 'machine.eval_batch': NUMBERS,
  'report.pictures': NUMBERS, 'image_size': NUMBERS, 'seed': NUMBERS, 'prompt.depth': NUMBERS,
  'prompt.deep_len': NUMBERS,
  'dpam.first_block': NUMBERS, 'eval.fpr_limit': REALS, 'machine.max_feature_gb': REALS, 'data.exif': WORDS,
  'data.transparency': WORDS, 'data.on_bad': WORDS, 'feature_dtype': WORDS,
  'local_layers': st.lists(st.integers(-1, 8), max_size=4).map(tuple)}


@fuzzed
@given(st.lists(st.sampled_from(sorted(KEYS)), min_size=1, max_size=3, unique=True), st.data())
def test_configs_are_in_range_or_refused_by_name(keys, data):
  changes = {key: data.draw(KEYS[key]) for key in keys}
  c = anomalyclip.get_config('demo')
  c.update_from_flattened_dict({'data.aux': 'folder:a', 'data.target': 'folder:b'} | changes)
  cfg = mlc.FrozenConfigDict(c)
  try:
    setup.clip_without_weights(cfg, setup.check(cfg))
  except ValueError as error:
    assert any(key in str(error) or key.rpartition('.')[2] in str(error) for key in (*keys, 'layers'))
  else:
    assert min(cfg.train.epochs, cfg.train.batch, cfg.machine.encode_batch, cfg.machine.eval_batch) >= 1
    assert cfg.seed >= 0
    assert 0 < cfg.eval.fpr_limit <= 1 and cfg.machine.max_feature_gb > 0
    assert cfg.image_size % 8 == 0 and cfg.image_size > 0 and cfg.data.on_bad in ('error', 'skip')
    assert all(1 <= layer <= 6 for layer in cfg.local_layers)


def safetensors_file(header, data=b'', length=None):
  return struct.pack('<Q', len(header) if length is None else length) + header + data


HEADER = {'w': {'dtype': 'F32', 'shape': [2, 2], 'data_offsets': [0, 16]}}
SOUND = safetensors_file(json.dumps(HEADER).encode(), bytes(16))
DTYPES = ['F32', 'F16', 'BF16', 'F64', 'I64', 'U8', 'BOOL', 'F8_E4M3', 'F8_E5M2', 'U64', 'C64', 'F4', 'x']
ENTRY = st.fixed_dictionaries({
  'dtype': st.sampled_from(DTYPES),
  'shape': st.lists(st.integers(-1, 4) | st.just(2 ** 62), max_size=3),
  'data_offsets': st.lists(st.integers(-1, 40) | st.just(2 ** 63), min_size=1, max_size=3)})
HEADERS = st.one_of(
  st.dictionaries(st.sampled_from(['w', '__metadata__', 'ü', '']), ENTRY | st.integers() | st.dictionaries(
    st.text(max_size=3), st.text(max_size=3), max_size=2), max_size=3).map(lambda x: json.dumps(x).encode()),
  st.binary(max_size=60))


@fuzzed
@given(st.one_of(st.builds(safetensors_file, HEADERS, st.binary(max_size=40), st.none() | st.integers(0, 2 ** 64 - 1)),
                 damaged({'sound': SOUND})))
def test_safetensors_give_arrays_of_their_size_or_name_the_file(tmp_path, data):
  path = tmp_path / 'weights.safetensors'
  path.write_bytes(data)
  for read in (safetensors_files.read, safetensors_files.read_metadata):
    try:
      content = read(path)
    except ValueError as error:
      assert str(path) in str(error)
    else:
      if read is safetensors_files.read:
        assert sum(array.nbytes for array in content.values()) <= len(data)


@pytest.mark.parametrize('kind', sorted(FILES))
def test_undamaged_files_are_read(tmp_path, kind):
  (tmp_path / 'image.png').write_bytes(FILES[kind])
  assert images.read_rgb(tmp_path / 'image.png').size == (12, 9)
