"""Checkpoints: exact round trips; damage, half-written steps and other shapes are never accepted silently."""

import errno
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging

from zsad_jax.engine import checkpoint


class State(NamedTuple):
  step: Any
  params: Any
  opt: Any
  rng: Any


def state(step, width=6):
  rng = np.random.default_rng(step)
  params = {'ctx': jnp.asarray(rng.normal(size=(2, width)), jnp.float32),
               'deep': [jnp.asarray(rng.normal(size=3), jnp.bfloat16)]}
  opt = optax.adam(1e-3).init(params)
  return State(jnp.asarray(step, jnp.int32), params, opt, jax.random.key(step))


def assert_same(one, two):
  assert jax.tree.structure(one) == jax.tree.structure(two)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two)):
    assert a.dtype == b.dtype
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    np.testing.assert_array_equal(a, b)


@pytest.fixture
def warnings_logged(monkeypatch):
  texts = []
  monkeypatch.setattr(logging, 'warning', lambda text, *args: texts.append(text % args))
  return texts


def test_round_trip(tmp_path, warnings_logged):
  extra = {'epoch': 2, 'sums': {'loss': 0.1 + 0.2}}
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    checkpoint.save(tmp_path / 'new' / 'folder', 432, state(7), extra)
    restored, got, step = checkpoint.restore(tmp_path / 'new' / 'folder', state(0))
  assert_same(restored, state(7))
  assert (got, step) == (extra, 432) and not warnings_logged


def test_a_folder_without_checkpoints(tmp_path):
  assert checkpoint.restore(tmp_path / 'none', state(0)) is None
  assert checkpoint.latest(tmp_path / 'none') is None
  with pytest.raises(FileNotFoundError, match=r'no checkpoint of step 3; .* none'):
    checkpoint.restore(tmp_path, state(0), 3)


def test_the_newest_checkpoint_or_that_of_a_step(tmp_path):
  for step in (9, 10, 8):
    checkpoint.save(tmp_path, step, state(step), {})
  assert checkpoint.steps(tmp_path) == [8, 9, 10] and checkpoint.latest(tmp_path) == 10
  assert_same(checkpoint.restore(tmp_path, state(0))[0], state(10))
  assert_same(checkpoint.restore(tmp_path, state(0), 9)[0], state(9))
  with pytest.raises(FileNotFoundError, match=r'no checkpoint of step 7; .* 8, 9, 10'):
    checkpoint.restore(tmp_path, state(0), 7)


def test_a_step_that_is_saved_again_is_replaced(tmp_path):
  for step in range(2):
    checkpoint.save(tmp_path, step, state(step), {})
  checkpoint.save(tmp_path, 1, state(40), {'again': 1})
  assert checkpoint.steps(tmp_path) == [0, 1]
  assert sorted(path.name for path in tmp_path.iterdir()) == ['0', '0.manifest', '1', '1.manifest']
  restored, extra, _ = checkpoint.restore(tmp_path, state(0))
  assert_same(restored, state(40))
  assert extra == {'again': 1}


@pytest.mark.parametrize('change, message', [
  (lambda s: s._replace(params=s.params | {'ctx': jnp.zeros((2, 5))}),
   r'params/ctx is float32\[2, 6\] there and float32\[2, 5\] here'),
  (lambda s: s._replace(params=s.params | {'ctx': jnp.zeros((2, 6), jnp.float16)}),
   r'params/ctx is float32\[2, 6\] there and float16\[2, 6\] here'),
  (lambda s: s._replace(params={'ctx': s.params['ctx']}), 'params/deep/0 is bfloat16.* and absent here'),
  (lambda s: s._replace(opt=()), 'opt/0/count is int32.* there and absent here'),
  (lambda s: s._replace(rng=jax.random.PRNGKey(0)), r'rng is key<fry>\[\] there and uint32\[2\] here')])
def test_arrays_that_differ_are_named_and_never_cast(tmp_path, change, message):
  checkpoint.save(tmp_path, 1, state(1), {})
  with pytest.raises(ValueError, match=message):
    checkpoint.restore(tmp_path, change(state(0)))


def files(path):
  return sorted(file for file in path.rglob('*') if file.is_file())


def flip(path):
  data = bytearray(path.read_bytes()) or bytearray(b'x')
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def every_damage(path):
  """(name, damage) for each file of a step: a flipped bit, a truncation, its loss."""
  for number in range(len(files(path))):
    yield from ((f'{kind} {number}', lambda p, n=number, damage=damage: damage(files(p)[n])) for kind, damage in (
      ('flip', flip), ('truncate', lambda f: f.write_bytes(f.read_bytes()[:-1] or b'x')), ('lose', Path.unlink)))
  yield 'all gone', shutil.rmtree
  yield 'another file', lambda p: (p / 'more').write_text('')
  yield 'manifest', lambda p: flip(p.with_name('2.manifest'))
  yield 'manifest cut', lambda p: os.truncate(p.with_name('2.manifest'), 90)
  yield 'manifest empty', lambda p: os.truncate(p.with_name('2.manifest'), 0)


@pytest.mark.slow
def test_a_damaged_step_is_skipped_and_named(tmp_path, warnings_logged):
  good = tmp_path / 'good'
  for step in (1, 2):
    checkpoint.save(good, step, state(step), {'step': step})
  cases = list(every_damage(good / '2'))
  assert len(cases) > 20
  for name, damage in cases:
    shutil.rmtree(tmp_path / 'bad', ignore_errors=True)
    shutil.copytree(good, tmp_path / 'bad')
    damage(tmp_path / 'bad' / '2')
    warnings_logged.clear()
    restored, extra, step = checkpoint.restore(tmp_path / 'bad', state(0))
    assert (step, extra) == (1, {'step': 1}), name
    assert_same(restored, state(1))
    assert len(warnings_logged) == 1 and f'{tmp_path / "bad" / "2"} is damaged (' in warnings_logged[0], name
  with pytest.raises(ValueError, match=r'checkpoint 2 in .* is damaged'):
    checkpoint.restore(tmp_path / 'bad', state(0), 2)
  checkpoint.save(tmp_path / 'bad', 2, state(22), {})
  assert_same(checkpoint.restore(tmp_path / 'bad', state(0))[0], state(22))


def test_damage_of_all_steps_is_an_error_and_not_a_new_run(tmp_path, warnings_logged):
  checkpoint.save(tmp_path, 1, state(1), {})
  flip(files(tmp_path / '1')[0])
  with pytest.raises(ValueError, match=r'every checkpoint in .* is damaged'):
    checkpoint.restore(tmp_path, state(0))


def test_half_written_steps_are_ignored_and_removed(tmp_path):
  checkpoint.save(tmp_path, 1, state(1), {})
  shutil.copytree(tmp_path / '1', tmp_path / '2')  # killed before its manifest
  shutil.copytree(tmp_path / '1', tmp_path / '3.orbax-checkpoint-tmp')  # killed in orbax
  (tmp_path / '.2.manifest.77.tmp').write_text('')
  assert checkpoint.restore(tmp_path, state(0))[2] == 1
  checkpoint.save(tmp_path, 4, state(4), {})
  assert sorted(path.name for path in tmp_path.iterdir()) == ['1', '1.manifest', '4', '4.manifest']


def test_a_full_disk_keeps_earlier_steps(tmp_path, monkeypatch):
  checkpoint.save(tmp_path, 1, state(1), {})

  def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', no_space)
    with pytest.raises(OSError, match=r'No space left on device.*2\.manifest'):
      checkpoint.save(tmp_path, 2, state(2), {})

  def full(path, _):
    (tmp_path / '2.orbax-checkpoint-tmp').mkdir()
    raise ValueError(f"RESOURCE_EXHAUSTED: Failed writing {path} [os_error_code='28']")  # as orbax reports it

  monkeypatch.setattr(checkpoint.ocp, 'save_checkpointables', full)
  with pytest.raises(OSError, match='No space left on device; earlier checkpoints are intact') as error:
    checkpoint.save(tmp_path, 2, state(2), {})
  assert error.value.errno == errno.ENOSPC and not (tmp_path / '2.orbax-checkpoint-tmp').exists()
  assert_same(checkpoint.restore(tmp_path, state(0))[0], state(1))


def test_a_folder_that_cannot_be_created(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(OSError, match='file'):
    checkpoint.save(tmp_path / 'file' / 'checkpoints', 1, state(1), {})


@pytest.mark.multiprocess
def test_orbax_logs_nothing(tmp_path):
  program = ('import sys\nfrom absl import logging\nlogging.set_verbosity(logging.INFO)\n'
             'import jax.numpy as jnp\nfrom zsad_jax.engine import checkpoint\n'
             'checkpoint.save(sys.argv[1], 1, {"w": jnp.ones(3)}, {})\n'
             'checkpoint.restore(sys.argv[1], {"w": jnp.ones(3)})\nlogging.info("ours")')
  done = subprocess.run([sys.executable, '-W', 'error::DeprecationWarning:zsad_jax', '-c', program, str(tmp_path)],
                        check=True, capture_output=True, text=True)
  assert 'ours' in done.stderr and 'orbax' not in done.stderr


SAVER = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
import test_checkpoint as t
restored = t.checkpoint.restore(sys.argv[1], t.state(0))
for step in t.itertools.count(restored[2] + 1 if restored else 1):
  t.checkpoint.save(sys.argv[1], step, t.state(step), {{'step': step}})
  print(step, flush=True)
"""


@pytest.mark.multiprocess
def test_a_killed_save_leaves_the_last_complete_step(tmp_path):
  rng, floor = np.random.default_rng(0), 0
  for _ in range(3):
    process = subprocess.Popen([sys.executable, '-c', SAVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with process.stdout as out:
      lines = [out.readline() for _ in range(2)]
      time.sleep(rng.uniform(0, .08))  # a save takes about as long
      process.send_signal(signal.SIGKILL)
      process.wait()
      lines += list(itertools.takewhile(str.strip, out))
    printed = max(int(line) for line in lines if line.endswith('\n'))
    restored, extra, step = checkpoint.restore(tmp_path, state(0))
    assert step in (printed, printed + 1) and step > floor and extra == {'step': step}
    assert_same(restored, state(step))
    floor = step
