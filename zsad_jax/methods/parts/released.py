"""Matches the arrays of a released checkpoint with the names and shapes that a config needs."""

import re
from collections.abc import Mapping

import numpy as np


def match(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], *, prefix: str = '',
          ignore: str = '', keys: str) -> dict[str, np.ndarray]:
  """Returns the arrays that `shapes` names, without `prefix` in their names.

  Args:
    arrays: {name: array} of the checkpoint.
    shapes: {name: shape} that the config needs.
    prefix: removed from names that have it.
    ignore: regular expression of names, without prefix, that the method does not use.
    keys: the config keys that decide the shapes, for the error message.

  Raises:
    ValueError: lists every missing name, every unknown name and every shape that does not fit.
  """
  named = {name.removeprefix(prefix): np.asarray(array) for name, array in arrays.items()}
  named = {name: array for name, array in named.items() if not (ignore and re.fullmatch(ignore, name))}
  mismatches = [f'missing {name}' for name in shapes if name not in named]
  mismatches += [f'unknown {name} {array.shape}' for name, array in named.items() if name not in shapes]
  mismatches += [f'{name} is {named[name].shape}, not {shape}' for name, shape in shapes.items()
                 if name in named and named[name].shape != shape]
  if mismatches:
    raise ValueError(f'the checkpoint does not fit this config ({keys}): {"; ".join(mismatches)}')
  return {name: named[name] for name in shapes}
