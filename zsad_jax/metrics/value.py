"""What a metric gives back: a number, or the reason why there is none."""

from collections.abc import Callable
from typing import NamedTuple


class Undefined(ValueError):
  """The metric has no value for this input; the message is the reason."""


class Value(NamedTuple):
  """One cell of a result table.

  Attributes:
    value: the metric as an unrounded fraction, or None where it is undefined.
    reason: why it is undefined; empty where it is defined.
  """
  value: float | None
  reason: str = ''


def settle(metric: Callable[..., float], *args, **kwargs) -> Value:
  """Value of metric(*args, **kwargs), with Undefined turned into its reason."""
  try:
    return Value(metric(*args, **kwargs))
  except Undefined as undefined:
    return Value(None, str(undefined))


def one_class(positives: int, negatives: int, noun: str) -> str:
  """Reason why no ranking metric is defined on these class sizes, or '' where both classes occur."""
  if not positives and not negatives:
    return f'no {noun}'
  if not positives:
    return f'no anomalous {noun}'
  return '' if negatives else f'no normal {noun}'
