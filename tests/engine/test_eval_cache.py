"""Resume cache of an evaluation: values come back exactly, under their identity only, and damage costs a category."""

import json
from typing import NamedTuple

import numpy as np
import pytest

from zsad_jax.engine import eval_cache


class Cell(NamedTuple):
  value: float | None
  reason: str = ''


VALUE = {'row': {'auroc': Cell(0.1 + 0.2), 'aupro': Cell(None, 'no masks')}, 'maps': {7: np.eye(3, dtype=np.float32)},
         'counts': [1, 2.5, True, None, 'ü'], 'pair': (np.float16([0.1]), np.zeros(0, np.int64)), 'number': np.int64(5)}


def cache_of(tmp_path, **identity):
  return eval_cache.EvalCache(tmp_path, {'config': {'seed': 1}, **identity}, (Cell,))


def test_values_come_back_bit_for_bit(tmp_path):
  cache_of(tmp_path).write(3, VALUE)
  value = cache_of(tmp_path).read(3)
  assert value['row'] == VALUE['row'] and isinstance(value['row']['aupro'], Cell)
  assert value['counts'] == VALUE['counts'] and list(value['maps']) == [7] and value['number'] == 5
  for a, b in ((value['maps'][7], VALUE['maps'][7]), *zip(value['pair'], VALUE['pair'])):
    assert a.dtype == b.dtype and a.tobytes() == b.tobytes()
  assert cache_of(tmp_path).read(2) is None


def test_another_identity_has_a_cache_of_its_own_and_clear_removes_all(tmp_path):
  cache_of(tmp_path).write(0, 1)
  other = cache_of(tmp_path, data='changed')
  assert other.read(0) is None
  other.write(0, 2)
  assert (cache_of(tmp_path).read(0), other.read(0)) == (1, 2)
  assert json.loads((other.folder / 'identity.json').read_text()) == {'config': {'seed': 1}, 'data': 'changed'}
  eval_cache.clear(tmp_path)
  eval_cache.clear(tmp_path)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('damage', [
  lambda data: data[:-1], lambda data: b'', lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
  lambda data: b'0' + data[1:]])
def test_a_damaged_file_is_logged_and_counts_as_missing(tmp_path, caplog, damage):
  cache = cache_of(tmp_path)
  cache.write(0, VALUE)
  path, = cache.folder.glob('*.result')
  path.write_bytes(damage(path.read_bytes()))
  assert cache.read(0) is None
  assert f'{path} is damaged' in caplog.text


def test_values_that_could_not_be_read_back_are_refused(tmp_path):
  class Other(NamedTuple):
    x: int

  for value, name in ((Other(1), 'Other'), ({'a': {1}}, 'set'), (np.array(['a']), 'ndarray')):
    with pytest.raises(TypeError, match=f'cannot hold a {name};'):
      cache_of(tmp_path).write(0, value)


def test_the_digest_of_the_sources_is_stable():
  assert eval_cache.sources() == eval_cache.sources() and len(eval_cache.sources()) == 64
