"""The JAX runtime: placement, processes, prefetching, atomic writes, preemption."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from zsad_jax.engine import runtime


def test_globalize_keeps_values_and_places_them():
  place = runtime.place(jax.devices()[:1])
  batch = {'image': np.random.default_rng(0).normal(size=(8, 3)), 'cls': None}
  out = runtime.globalize(batch, place.split)
  assert out['image'].sharding == place.split and out['cls'] is None
  np.testing.assert_array_equal(out['image'], batch['image'].astype(np.float32))


@pytest.mark.parametrize('devices, batch, rows', [(8, 8, 8), (8, 1, 8), (8, 9, 16), (3, 8, 9), (1, 5, 5)])
def test_a_batch_is_padded_to_equal_shares(devices, batch, rows):
  split = SimpleNamespace(mesh=SimpleNamespace(size=devices))
  assert runtime.Placement(split, split).rows(batch) == rows


def test_shares_of_processes_are_contiguous(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 3)
  shares = []
  for number in range(3):
    monkeypatch.setattr(jax, 'process_index', lambda number=number: number)
    shares += range(12)[runtime.share(12)]
  assert shares == list(range(12))


def test_a_single_process_waits_for_nobody():
  runtime.initialize(False)
  runtime.barrier('alone')
  assert runtime.any_process(True) and not runtime.any_process(False)


PROCESS = """
import sys
from zsad_jax.engine import runtime
runtime.initialize(True, coordinator_address=sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
import jax, jax.numpy as jnp, numpy as np
place, me = runtime.place(), jax.process_index()
rows = runtime.globalize(np.array([1. + me]), place.split)
total = jax.jit(jnp.sum, out_shardings=place.copy)(rows)
runtime.barrier('both')
print('got', float(total), runtime.any_process(me == 1), runtime.device_summary(), sep=';')
"""


@pytest.mark.multiprocess
def test_two_processes_form_one_mesh():
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    address = f'localhost:{probe.getsockname()[1]}'
  both = [subprocess.Popen([sys.executable, '-c', PROCESS, address, str(i)], stdout=subprocess.PIPE, text=True)
          for i in range(2)]
  for process in both:
    line = next(line for line in process.communicate(timeout=120)[0].splitlines() if line.startswith('got;'))
    _, total, any_process, summary = line.split(';')
    assert (float(total), any_process) == (3., 'True')
    assert summary.startswith('2 x cpu (cpu), 2 processes')


def test_device_summary():
  assert re.fullmatch(r'\d x \S+ \(cpu\), 1 process, \d+ CPU cores', runtime.device_summary())


@pytest.mark.multiprocess
def test_peak_memory_includes_a_large_array():
  program = ('import numpy as np\nfrom zsad_jax.engine import runtime\nbefore = runtime.peak_rss_bytes()\n'
             'np.ones(before // 8 + 50_000_000 // 8).sum()\nprint(before, runtime.peak_rss_bytes())')
  # Through a shell: a process starts with the peak of its parent, which has run many tests here.
  done = subprocess.run(['sh', '-c', '"$0" -c "$1"; exit $?', sys.executable, program], capture_output=True, text=True,
                        check=True)
  before, after = map(int, done.stdout.split())
  assert 50e6 < before < 1e10 and after >= before + 40e6


@pytest.mark.multiprocess
def test_compilation_cache_is_used_by_the_next_process(tmp_path):
  program = ('import sys, time, jax, jax.numpy as jnp\nfrom zsad_jax.engine import runtime\n'
             'runtime.compilation_cache(sys.argv[1])\n'
             'jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)\n'
             'jax.jit(lambda x: jnp.linalg.svd(x @ x.T))(jnp.ones((64, 64)))')
  cache = tmp_path / 'new' / 'cache'
  written = []
  for _ in range(2):
    done = subprocess.run([sys.executable, '-c', program, str(cache)], check=True, capture_output=True)
    assert done.stderr == b''
    written.append({path.name: path.stat().st_mtime_ns for path in cache.glob('*-cache')})
  assert written[0] and written[1] == written[0]  # the second process compiled nothing


def test_prefetch_keeps_the_order_and_computes_at_most_depth_ahead():
  started = []

  def work(item):
    started.append(item)
    return item * item

  outputs = []
  for output in runtime.prefetch(work, range(20), depth=3):
    outputs.append(output)
    time.sleep(.001)
    assert len(started) <= len(outputs) + 3
  assert outputs == [i * i for i in range(20)]
  assert list(runtime.prefetch(work, [])) == []


def test_prefetch_computes_ahead():
  second = threading.Event()
  items = runtime.prefetch(lambda item: second.set() if item else None, range(2))
  next(items)
  assert second.wait(5)
  items.close()


def test_prefetch_raises_errors_of_its_thread_and_ends_it():
  def work(item):
    if item == 2:
      raise OSError('image file is truncated')
    return item

  outputs, before = [], threading.active_count()
  with pytest.raises(OSError, match='image file is truncated'):
    for output in runtime.prefetch(work, range(9)):
      outputs.append(output)
  assert outputs == [0, 1]
  assert threading.active_count() == before


def test_write_atomic_replaces_a_file_or_leaves_it(tmp_path, monkeypatch):
  path = tmp_path / 'ö name'
  runtime.write_atomic(path, b'old')
  runtime.write_atomic(path, b'n', np.frombuffer(b'ew', np.uint8))
  assert path.read_bytes() == b'new'

  def fsync(_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(os, 'fsync', fsync)
  with pytest.raises(OSError, match='No space left on device; the earlier content is intact') as error:
    runtime.write_atomic(path, b'newer')
  assert error.value.errno == errno.ENOSPC
  assert path.read_bytes() == b'new' and os.listdir(tmp_path) == ['ö name']


def test_write_atomic_under_a_file(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(NotADirectoryError, match='intact'):
    runtime.write_atomic(tmp_path / 'file' / 'x', b'')


def test_preemption_turns_sigterm_into_an_event():
  before = signal.getsignal(signal.SIGTERM)
  with runtime.preemption() as stop:
    assert not stop.is_set()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.wait(5)
  assert signal.getsignal(signal.SIGTERM) is before


def test_a_request_to_stop_holds_until_the_outermost_preemption_ends():
  assert not runtime.preempted()
  with runtime.preemption() as stop:
    with runtime.preemption() as part:
      assert part is stop
      os.kill(os.getpid(), signal.SIGTERM)
      assert part.wait(5)
    assert runtime.preempted()
  assert not runtime.preempted()


def test_stopping_at_once_raises_for_signals_within_and_before():
  with runtime.stopping_at_once():  # without preemption it does nothing
    pass
  with runtime.preemption():
    with pytest.raises(runtime.Preempted, match='asked to stop'), runtime.stopping_at_once():
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(5)
    assert runtime.preempted()
    with pytest.raises(runtime.Preempted, match='asked to stop'), runtime.stopping_at_once():
      pytest.fail('the signal came before')
