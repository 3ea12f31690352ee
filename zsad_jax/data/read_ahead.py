"""Calls a function on items in threads, a few items ahead of the caller."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import TypeVar

Item = TypeVar('Item')
Result = TypeVar('Result')


def read_ahead(function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, depth: int
               ) -> Iterator[Result]:
  """Yields function(item) of each item in order, while threads work on the next ones.

  Decoding gains from threads, since Pillow releases Python's global lock. A caller that may stop early must close the
  iterator (`contextlib.closing`), which ends its threads: left to the garbage collector, they may be joined inside
  another lock.

  Args:
    function: called once per item; what it raises is raised here when its turn comes.
    items: consumed in the caller's thread, `depth` items ahead.
    threads: number of threads; 0 calls `function` in the caller's thread, without reading ahead.
    depth: items beyond the one being yielded that may be in work or waiting.
  """
  if not threads:
    yield from map(function, items)
    return
  waiting: collections.deque[futures.Future] = collections.deque()
  with futures.ThreadPoolExecutor(threads) as pool:
    try:
      for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > depth:
          yield waiting.popleft().result()
      while waiting:
        yield waiting.popleft().result()
    finally:
      pool.shutdown(cancel_futures=True)
