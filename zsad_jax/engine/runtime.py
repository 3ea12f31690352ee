"""Where a program runs: processes, devices, placement of arrays, compilation cache, preemption."""

import collections
import contextlib
import os
import resource
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

PART = 1 << 16  # numbers; smaller arrays cost more to gather than to copy
# Events that JAX records with the name of every function.
_TRACED, _COMPILED = '/jax/core/compile/jaxpr_trace_duration', '/jax/core/compile/backend_compile_duration'


class Compilations(NamedTuple):
  """What was traced and compiled, by the jitted function's name.

  Attributes:
    programs, compile_seconds: given to XLA.
    traces, trace_seconds: by JAX, functions within functions too, whose time is in both.
  """
  programs: collections.Counter
  compile_seconds: collections.Counter
  traces: collections.Counter
  trace_seconds: collections.Counter


class Placement(NamedTuple):
  """How arrays lie over the one data axis.

  Attributes:
    split: rows of a batch, one share a device.
    copy: the whole array on every device.
    sharded: whether frozen weights lie in parts too, see `weights`.
  """
  split: NamedSharding
  copy: NamedSharding
  sharded: bool = False

  @property
  def devices(self) -> int:
    """Number of devices, over all processes."""
    return self.split.mesh.size

  def rows(self, batch: int) -> int:
    """Returns the number of rows, from `batch` on, that the devices can share evenly."""
    return -(-batch // self.devices) * self.devices


def initialize(distributed: bool = False, **options):
  """Joins the processes of one program into one JAX runtime; does nothing for a lone process.

  Must precede every other JAX call.

  Args:
    distributed: whether there are other processes.
    **options: coordinator_address, num_processes and process_id of jax.distributed.initialize; clusters that
      JAX knows (SLURM, Kubernetes, TPU) need none.
  """
  if distributed:
    jax.config.update('jax_enable_preemption_service', False)  # it would take SIGTERM away from `preemption`
    jax.distributed.initialize(**options)


def place(devices=None, *, sharded: bool = False) -> Placement:
  """Returns the placement over `devices`, by default all devices of all processes, whose shares lie side by side."""
  devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
  mesh = Mesh(np.array(devices), ('data',), axis_types=(AxisType.Auto,))
  return Placement(NamedSharding(mesh, P('data')), NamedSharding(mesh, P()), sharded)


def share(size: int) -> slice:
  """Returns which rows of a batch of `size`, one that the devices share evenly, this process reads."""
  own = size // jax.process_count()
  return slice(jax.process_index() * own, (jax.process_index() + 1) * own)


def globalize(batch, sharding):
  """Returns `batch`, a tree of this process's rows, as one tree of arrays over all processes."""
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def replicate(tree, place: Placement):
  """Returns `tree` on every device of `place`; every process has to give the same values."""
  if jax.process_count() > 1:
    tree = jax.device_get(tree)
  return jax.device_put(tree, place.copy) if place.copy.is_fully_addressable else globalize(tree, place.copy)


def weights(tree, place: Placement):
  """Returns frozen weights on the devices of `place`; every process has to give the same values.

  That is a copy on every device or, where `place` is sharded, a part of each large array, cut along the longest axis
  that the devices divide. Programs are the same for both: XLA has the devices share out each layer's products, or
  gathers its weights, as it finds cheaper, and none ever holds all layers.
  """
  if not place.sharded:
    return replicate(tree, place)

  def lay(x):
    axes = [i for i, length in enumerate(x.shape) if x.size >= PART and length % place.devices == 0]
    if not axes:
      return place.copy
    longest = max(axes, key=lambda i: x.shape[i])
    return NamedSharding(place.split.mesh, P(*[None] * longest, 'data'))

  shardings = jax.tree.map(lay, tree)
  if place.copy.is_fully_addressable:
    return jax.device_put(tree, shardings)
  return jax.tree.map(lambda x, sharding: jax.make_array_from_callback(x.shape, sharding, x.__getitem__),
                      jax.device_get(tree), shardings)


def gather(tree):
  """Returns a tree of this process's rows, numpy arrays, as that of all processes in their order; all call together."""
  return tree if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


def write_atomic(path: Path, *chunks):
  """Writes bytes-like chunks to `path`, through a temporary file: a kill leaves the old content or the new.

  Raises:
    OSError: disk full, read-only, no permission; the old content is intact.
  """
  temp = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}.tmp')  # process numbers recur from host to host
  try:
    with open(temp, 'wb') as file:
      for chunk in chunks:
        file.write(chunk)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temp, path)
  except OSError as error:
    raise OSError(error.errno, f'{error.strerror}; what was there is intact', str(path)) from error
  finally:
    with contextlib.suppress(OSError):
      temp.unlink()


def barrier(name: str):
  """Waits until every process has come here; raises where two processes wait under different names."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
  """Returns whether `flag` is True on any process; all must ask together."""
  return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())


def compilation_cache(path):
  """Keeps compiled programs in folder `path`, so that a second run starts without compiling."""
  jax.config.update('jax_compilation_cache_dir', str(Path(path).expanduser().resolve()))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def device_summary() -> str:
  """Returns one line on the hardware, such as '2 x NVIDIA H100 (gpu), 1 process, 16 CPU cores'."""
  device, processes = jax.devices()[0], jax.process_count()
  return (f'{jax.device_count()} x {device.device_kind} ({device.platform}), '
          f'{processes} process{"es" * (processes > 1)}, {os.cpu_count()} CPU cores')


@contextlib.contextmanager
def compilations() -> Iterator[Compilations]:
  """Yields the Compilations of all threads, which grow until the with block ends.

  A program that the compilation cache holds counts too: it was traced and looked up anew.
  """
  seen = Compilations(*(collections.Counter() for _ in Compilations._fields))

  def listen(event, duration, **about):
    name = about.get('fun_name', '').removeprefix('jit_').removeprefix('jit(').removesuffix(')')
    if event == _COMPILED:
      seen.programs[name] += 1
      seen.compile_seconds[name] += duration
    elif event == _TRACED:
      seen.traces[name] += 1
      seen.trace_seconds[name] += duration

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield seen
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def rss_bytes() -> int:
  """Returns the resident set of this process, in bytes; the largest it has had where the system does not tell."""
  statm = Path('/proc/self/statm')
  if not statm.exists():
    return peak_rss_bytes()
  return int(statm.read_text().split()[1]) * resource.getpagesize()


def peak_rss_bytes() -> int:
  """Returns the largest resident set this process has had, in bytes."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


class Preempted(Exception):
  """The run was asked to stop and has saved what there is; starting it again goes on from there."""


class _Request(threading.Event):
  """A SIGTERM handler that remembers that the signal came, and inside `stopping_at_once` raises Preempted."""
  at_once = False

  def __call__(self, *_):
    self.set()
    self.check()

  def check(self):
    if self.at_once and self.is_set():
      raise Preempted('asked to stop')


@contextlib.contextmanager
def preemption() -> Iterator[threading.Event]:
  """Yields an event that SIGTERM sets instead of ending the process; the main thread's business only.

  Inside another one it yields that one's event: a request holds until the run ends, not until its part does.
  """
  before = signal.getsignal(signal.SIGTERM)
  if isinstance(before, _Request):
    yield before
    return
  stop = _Request()
  signal.signal(signal.SIGTERM, stop)
  try:
    yield stop
  finally:
    signal.signal(signal.SIGTERM, before)


def preempted() -> bool:
  """Returns whether SIGTERM came to this process since the `preemption` around the caller began."""
  request = signal.getsignal(signal.SIGTERM)
  return isinstance(request, _Request) and request.is_set()


@contextlib.contextmanager
def stopping_at_once() -> Iterator[None]:
  """Lets SIGTERM raise Preempted at once, for work that survives being killed and has no steps to stop after.

  Several processes go on until they next ask each other: none may leave while the others wait for it.
  """
  request = signal.getsignal(signal.SIGTERM)
  if not isinstance(request, _Request) or jax.process_count() > 1:
    yield
    return
  request.at_once = True
  try:
    request.check()
    yield
  finally:
    request.at_once = False


def prefetch(function: Callable, items: Iterable, depth: int = 2) -> Iterator:
  """Yields function(item) for each of `items` in order, computed up to `depth` ahead by one thread."""
  pool, ahead = ThreadPoolExecutor(1), collections.deque()
  try:
    for item in items:
      ahead.append(pool.submit(function, item))
      if len(ahead) > depth:
        yield ahead.popleft().result()
    while ahead:
      yield ahead.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)
