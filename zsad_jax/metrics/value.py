"""The value of a metric, or the reason why it is undefined."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Undefined(ValueError):
  """The metric has no value for this input; the message is the reason."""


class Value(NamedTuple):
  """One cell of a result table.

  Attributes:
    value: the metric as an unrounded fraction; None if it is undefined.
    reason: why it is undefined; '' if it is defined.
  """
  value: float | None
  reason: str = ''


def value_or_reason(metric: Callable[..., float], *args: Any, **kwargs: Any) -> Value:
  """Returns the Value of metric(*args, **kwargs), with the reason if it raises Undefined."""
  try:
    return Value(metric(*args, **kwargs))
  except Undefined as undefined:
    return Value(None, str(undefined))


def missing_class(positives: int, negatives: int, noun: str) -> str:
  """Returns why ranking metrics are undefined for these class sizes, or '' if both classes occur."""
  if not positives and not negatives:
    return f'no {noun}'
  if not positives:
    return f'no anomalous {noun}'
  return '' if negatives else f'no normal {noun}'
