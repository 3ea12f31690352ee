"""What an evaluation keeps of its finished categories: what comes back, whose it is, and what damage costs."""

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


def opened(tmp_path, **identity):
  return eval_cache.Progress(tmp_path, {'config': {'seed': 1}, **identity}, (Cell,))


def test_what_was_written_comes_back_to_the_bit(tmp_path):
  opened(tmp_path).write(3, VALUE)
  found = opened(tmp_path).read(3)
  assert found['row'] == VALUE['row'] and isinstance(found['row']['aupro'], Cell)
  assert found['counts'] == VALUE['counts'] and list(found['maps']) == [7] and found['number'] == 5
  for a, b in ((found['maps'][7], VALUE['maps'][7]), *zip(found['pair'], VALUE['pair'])):
    assert a.dtype == b.dtype and a.tobytes() == b.tobytes()
  assert opened(tmp_path).read(2) is None


def test_another_identity_has_its_own_and_clear_removes_all(tmp_path):
  opened(tmp_path).write(0, 1)
  other = opened(tmp_path, data='changed')
  assert other.read(0) is None
  other.write(0, 2)
  assert (opened(tmp_path).read(0), other.read(0)) == (1, 2)
  assert json.loads((other.folder / 'identity.json').read_text()) == {'config': {'seed': 1}, 'data': 'changed'}
  eval_cache.clear(tmp_path)
  eval_cache.clear(tmp_path)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('damage', [
  lambda data: data[:-1], lambda data: b'', lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
  lambda data: b'0' + data[1:]])
def test_a_damaged_category_is_evaluated_anew(tmp_path, caplog, damage):
  kept = opened(tmp_path)
  kept.write(0, VALUE)
  path, = kept.folder.glob('*.found')
  path.write_bytes(damage(path.read_bytes()))
  assert kept.read(0) is None
  assert f'{path} is damaged; its category is evaluated anew' in caplog.text


def test_what_could_not_be_read_back_is_refused(tmp_path):
  class Other(NamedTuple):
    x: int

  for value, name in ((Other(1), 'Other'), ({'a': {1}}, 'set'), (np.array(['a']), 'ndarray')):
    with pytest.raises(TypeError, match=f'cannot keep a {name} of an evaluation'):
      opened(tmp_path).write(0, value)


def test_the_digest_of_the_sources_is_that_of_their_text():
  assert eval_cache.sources() == eval_cache.sources() and len(eval_cache.sources()) == 64
