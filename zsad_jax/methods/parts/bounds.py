"""Bounds of config keys, declared as data and checked by one function before anything is loaded."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol


class Bound(Protocol):
  """What a config key may be."""

  def allows(self, value: Any) -> bool:
    """Whether `value` is allowed."""

  def __str__(self) -> str:
    """What is allowed, as it follows "must be"."""


class Range(NamedTuple):
  """A finite number between `low` and `high`, both allowed unless the ends are open; `reason` explains the limits."""
  low: float = -math.inf
  high: float = math.inf
  open_low: bool = False
  open_high: bool = False
  reason: str = ''

  def allows(self, value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
      return False
    above = value > self.low if self.open_low else value >= self.low
    below = value < self.high if self.open_high else value <= self.high
    return above and below

  def __str__(self) -> str:
    reason = f', {self.reason}' if self.reason else ''
    if math.isinf(self.high):
      return (('positive' if self.low == 0 else f'greater than {self.low:g}') if self.open_low else
              f'at least {self.low:g}') + reason
    return f'in {"(" if self.open_low else "["}{self.low:g}, {self.high:g}{")" if self.open_high else "]"}{reason}'


class OneOf(NamedTuple):
  """One of some values."""
  values: tuple[Any, ...]

  def allows(self, value: Any) -> bool:
    return any(value == one and type(value) is type(one) for one in self.values)

  def __str__(self) -> str:
    return f'one of {", ".join(str(value) if isinstance(value, str) else repr(value) for value in self.values)}'


class Odd(NamedTuple):
  """An odd number of at least 1, such as the side of a window around a patch."""

  def allows(self, value: Any) -> bool:
    return isinstance(value, int) and value > 0 and value % 2 == 1

  def __str__(self) -> str:
    return 'odd and at least 1'


POSITIVE = Range(0, open_low=True)
NOT_NEGATIVE = Range(0)
AT_LEAST_ONE = Range(1)
PROBABILITY = Range(0, 1)
ODD = Odd()


def value_of(cfg: Any, dotted: str) -> Any:
  """Returns the value of a dotted config key."""
  for part in dotted.split('.'):
    cfg = cfg[part]
  return cfg


def check(cfg: Any, bounds: Mapping[str, Bound]) -> None:
  """Raises ValueError naming the first key whose value is not allowed.

  Args:
    cfg: the config.
    bounds: {dotted key: Bound}.
  """
  for key, bound in bounds.items():
    if not bound.allows(value := value_of(cfg, key)):
      raise ValueError(f'{key}={value!r} is not allowed; it must be {bound}')
