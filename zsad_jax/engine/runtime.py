"""The JAX runtime: processes, devices, placement of arrays, compilation cache, preemption."""

import collections
import contextlib
import os
import resource
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Tree = Any  # a tree of arrays
Item = TypeVar('Item')
Output = TypeVar('Output')

SMALL = 1 << 16  # elements; arrays with fewer cost more to gather than to copy
# Events that JAX records together with the function's name.
_TRACED, _COMPILED = '/jax/core/compile/jaxpr_trace_duration', '/jax/core/compile/backend_compile_duration'


class Compilations(NamedTuple):
  """Counts and seconds of tracing and compiling, by the name of the jitted function.

  Attributes:
    programs, compile_seconds: compilations by XLA.
    traces, trace_seconds: traces by JAX; the time of a function within a function counts for both.
  """
  programs: collections.Counter[str]
  compile_seconds: dict[str, float]
  traces: collections.Counter[str]
  trace_seconds: dict[str, float]


class Placement(NamedTuple):
  """Placement of arrays on the devices, which form one data axis.

  Attributes:
    split: sharding of a batch, an equal share of the rows on every device.
    copy: sharding of an array that every device holds whole.
    sharded: whether CLIP's weights are sharded too, see `weights`.
  """
  split: NamedSharding
  copy: NamedSharding
  sharded: bool = False

  @property
  def devices(self) -> int:
    """Number of devices, over all processes."""
    return self.split.mesh.size

  def rows(self, batch: int) -> int:
    """Returns the smallest multiple of the number of devices that is at least `batch`."""
    return -(-batch // self.devices) * self.devices


def initialize(distributed: bool = False, **options: Any) -> None:
  """Joins the processes of one program into one JAX runtime; does nothing for a single process.

  Call it before any other JAX function.

  Args:
    distributed: whether there are other processes.
    **options: coordinator_address, num_processes and process_id of jax.distributed.initialize; not needed on clusters
      that JAX recognizes (SLURM, Kubernetes, TPU).
  """
  if distributed:
    jax.config.update('jax_enable_preemption_service', False)  # it would handle SIGTERM in place of `preemption`
    jax.distributed.initialize(**options)


def place(devices: Sequence[jax.Device] | None = None, *, sharded: bool = False) -> Placement:
  """Returns the placement on `devices`, by default all devices of all processes; a process's shares are contiguous."""
  devices = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
  mesh = Mesh(np.array(devices), ('data',), axis_types=(AxisType.Auto,))
  return Placement(NamedSharding(mesh, P('data')), NamedSharding(mesh, P()), sharded)


def share(size: int) -> slice:
  """Returns the rows that this process reads of a batch of `size`, a multiple of the number of devices."""
  own = size // jax.process_count()
  return slice(jax.process_index() * own, (jax.process_index() + 1) * own)


def globalize(batch: Tree, sharding: NamedSharding) -> Tree:
  """Returns `batch`, which holds this process's rows, as arrays over the rows of all processes."""
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def replicate(tree: Tree, place: Placement) -> Tree:
  """Returns `tree` on every device of `place`; every process must pass the same values."""
  if jax.process_count() > 1:
    tree = jax.device_get(tree)
  return jax.device_put(tree, place.copy) if place.copy.is_fully_addressable else globalize(tree, place.copy)


def weights(tree: Tree, place: Placement) -> Tree:
  """Returns CLIP's weights on the devices of `place`; every process must pass the same values.

  Every device holds a copy or, if `place` is sharded, a part of each large array, which is cut along its longest axis
  among those that the number of devices divides. Programs are the same for both: layer by layer XLA either shares out
  the products or gathers the weights, whichever is cheaper, so no device ever holds all layers.
  """
  if not place.sharded:
    return replicate(tree, place)

  def sharding(x):
    axes = [i for i, length in enumerate(x.shape) if x.size >= SMALL and length % place.devices == 0]
    if not axes:
      return place.copy
    longest = max(axes, key=lambda i: x.shape[i])
    return NamedSharding(place.split.mesh, P(*[None] * longest, 'data'))

  shardings = jax.tree.map(sharding, tree)
  if place.copy.is_fully_addressable:
    return jax.device_put(tree, shardings)
  return jax.tree.map(lambda x, sharding: jax.make_array_from_callback(x.shape, sharding, x.__getitem__),
                      jax.device_get(tree), shardings)


def gather(tree: Tree) -> Tree:
  """Returns the rows of all processes, in their order, from this process's; every process must call it."""
  return tree if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


def write_atomic(path: Path, *chunks: Any) -> None:
  """Writes bytes-like chunks to `path` through a temporary file: a kill leaves the old content or the new.

  Raises:
    OSError: disk full, read-only, no permission; the old content is intact.
  """
  temp = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}.tmp')  # hosts that share a disk reuse process ids
  try:
    with open(temp, 'wb') as file:
      for chunk in chunks:
        file.write(chunk)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temp, path)
  except OSError as error:
    raise OSError(error.errno, f'{error.strerror}; the earlier content is intact', str(path)) from error
  finally:
    with contextlib.suppress(OSError):
      temp.unlink()


def barrier(name: str) -> None:
  """Waits until every process has arrived; raises an error if two processes wait under different names."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
  """Returns whether `flag` is True on any process; every process must call it."""
  return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())


def compilation_cache(path: str | os.PathLike) -> None:
  """Keeps compiled programs in the folder `path`, so that later runs start without compiling."""
  jax.config.update('jax_compilation_cache_dir', str(Path(path).expanduser().resolve()))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def device_summary() -> str:
  """Returns a line on the hardware, such as '2 x NVIDIA H100 (gpu), 1 process, 16 CPU cores'."""
  device, processes = jax.devices()[0], jax.process_count()
  return (f'{jax.device_count()} x {device.device_kind} ({device.platform}), '
          f'{processes} process{"es" * (processes > 1)}, {os.cpu_count()} CPU cores')


@contextlib.contextmanager
def compilations() -> Iterator[Compilations]:
  """Yields the Compilations of all threads, updated until the with block ends.

  Programs from the compilation cache count too: they are traced and looked up again.
  """
  totals = Compilations(collections.Counter(), collections.defaultdict(float),
                        collections.Counter(), collections.defaultdict(float))

  def listen(event: str, duration_secs: float, **details: Any) -> None:
    name = details.get('fun_name', '').removeprefix('jit_').removeprefix('jit(').removesuffix(')')
    if event == _COMPILED:
      totals.programs[name] += 1
      totals.compile_seconds[name] += duration_secs
    elif event == _TRACED:
      totals.traces[name] += 1
      totals.trace_seconds[name] += duration_secs

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield totals
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def rss_bytes() -> int:
  """Returns the resident set of this process in bytes; without /proc, the largest so far."""
  statm = Path('/proc/self/statm')
  if not statm.exists():
    return peak_rss_bytes()
  return int(statm.read_text().split()[1]) * resource.getpagesize()


def peak_rss_bytes() -> int:
  """Returns the largest resident set of this process so far, in bytes."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


class Preempted(Exception):
  """The run was asked to stop and has saved its state; starting it again resumes there."""


class _StopRequest(threading.Event):
  """SIGTERM handler that is set by the signal, and raises Preempted within `stopping_at_once`."""
  at_once = False

  def __call__(self, *_: Any) -> None:
    self.set()
    self.check()

  def check(self) -> None:
    if self.at_once and self.is_set():
      raise Preempted('asked to stop')


@contextlib.contextmanager
def preemption() -> Iterator[threading.Event]:
  """Yields an event that SIGTERM sets instead of ending the process; for the main thread only.

  A nested call yields the event of the outer one: a request to stop holds until the whole run ends.
  """
  before = signal.getsignal(signal.SIGTERM)
  if isinstance(before, _StopRequest):
    yield before
    return
  stop = _StopRequest()
  signal.signal(signal.SIGTERM, stop)
  try:
    yield stop
  finally:
    signal.signal(signal.SIGTERM, before)


def preempted() -> bool:
  """Returns whether this process received SIGTERM within the surrounding `preemption`."""
  request = signal.getsignal(signal.SIGTERM)
  return isinstance(request, _StopRequest) and request.is_set()


@contextlib.contextmanager
def stopping_at_once() -> Iterator[None]:
  """Lets SIGTERM raise Preempted at once, for work that survives a kill and has no steps to stop after.

  Has no effect with several processes: one must not leave while the others wait for it in `any_process`.
  """
  request = signal.getsignal(signal.SIGTERM)
  if not isinstance(request, _StopRequest) or jax.process_count() > 1:
    yield
    return
  request.at_once = True
  try:
    request.check()
    yield
  finally:
    request.at_once = False


def prefetch(function: Callable[[Item], Output], items: Iterable[Item], depth: int = 2
             ) -> Generator[Output, None, None]:
  """Yields function(item) for each of `items` in order, computed by one thread up to `depth` items ahead."""
  pool = ThreadPoolExecutor(1)
  ahead: collections.deque[Future[Output]] = collections.deque()
  try:
    for item in items:
      ahead.append(pool.submit(function, item))
      if len(ahead) > depth:
        yield ahead.popleft().result()
    while ahead:
      yield ahead.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)
