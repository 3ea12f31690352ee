"""The tensors of a torch .pt or .pth archive, read as plain data: nothing it names is imported or called.

A torch file since 1.6 is a zip: data.pkl says in pickle's opcodes how the objects are built, and data/<key>
holds the raw bytes of each tensor. The opcodes are walked with the standard library's disassembler; a class
becomes a record of its name, a call one of its name and arguments. That reads state dicts and TorchScript
archives (as OpenAI's CLIP files are) alike, needs no torch, and gives a malicious file nothing to run.
"""

import math
import pickletools
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

DTYPES = {
    'DoubleStorage': np.float64, 'FloatStorage': np.float32, 'HalfStorage': np.float16,
    'BFloat16Storage': ml_dtypes.bfloat16, 'LongStorage': np.int64, 'IntStorage': np.int32,
    'ShortStorage': np.int16, 'CharStorage': np.int8, 'ByteStorage': np.uint8, 'BoolStorage': np.bool_,
}
CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
EMPTY = {'EMPTY_DICT': dict, 'EMPTY_LIST': list, 'EMPTY_TUPLE': tuple, 'EMPTY_SET': list}
MARK = object()


class Name(NamedTuple):
  """A class or function that the file names, never looked up."""
  module: str
  name: str

  def __str__(self):
    return f'{self.module}.{self.name}'


class Stored(NamedTuple):
  """Reference to the bytes of one tensor storage."""
  kind: str
  key: str


class Built:
  """What the file would have called or constructed: its name, its arguments and the state set afterwards."""

  def __init__(self, name, args):
    self.name, self.args, self.state, self.items = name, args, None, {}


def read(path) -> dict[str, Any]:
  """Returns the nested dict that a torch archive holds, its tensors as numpy arrays.

  A TorchScript module is the dict of its parameters, buffers and submodules. Values that are no tensors,
  containers, numbers or strings come as inert `Built` records.

  Raises:
    FileNotFoundError: no such file.
    ValueError: not such an archive, or a damaged one; the message names it.
  """
  path = Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'no file {path}')
  if not zipfile.is_zipfile(path):
    raise ValueError(
        f'{path} is no torch archive: it is damaged, or was written by a torch before 1.6. If so, write it '
        'again with a newer one: torch.save(torch.load(path, weights_only=True), new_path)')
  try:
    with zipfile.ZipFile(path) as archive:
      pickles = [n for n in archive.namelist() if n.count('/') == 1 and n.endswith('/data.pkl')]
      if len(pickles) != 1:
        raise ValueError(f'{path} is a zip, but no torch archive: it has no data.pkl')
      root = pickles[0].removesuffix('data.pkl')
      _check_byteorder(archive, root)
      tree = _walk(archive.read(pickles[0]))
      return _plain(tree, lambda key: archive.read(f'{root}data/{key}'))
  except (zipfile.BadZipFile, KeyError, IndexError, EOFError, TypeError, ValueError) as error:
    raise ValueError(f'{path} cannot be read: {error}') from error


def flatten(tree, prefix='') -> dict[str, np.ndarray]:
  """Returns the arrays of a nested dict under dotted names; what is no array is left out."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat |= flatten(value, f'{prefix}{key}.')
    elif isinstance(value, np.ndarray):
      flat[f'{prefix}{key}'] = value
  return flat


def _check_byteorder(archive, root):
  if f'{root}byteorder' in archive.namelist() and archive.read(f'{root}byteorder') != b'little':
    raise ValueError('it was written on a big-endian machine')


def _walk(data):
  """Runs the opcodes of a pickle on a stack of plain values and returns what is left."""
  stack, memo = [], {}

  def to_mark():
    at = len(stack) - 1 - stack[::-1].index(MARK)
    items = stack[at + 1:]
    del stack[at:]
    return items

  for op, arg, _ in pickletools.genops(data):
    match op.name:
      case 'PROTO' | 'FRAME':
        pass
      case 'STOP':
        return stack.pop()
      case 'MARK':
        stack.append(MARK)
      case 'POP':
        stack.pop()
      case 'POP_MARK':
        to_mark()
      case 'BINPUT' | 'LONG_BINPUT' | 'PUT':
        memo[arg] = stack[-1]
      case 'MEMOIZE':
        memo[len(memo)] = stack[-1]
      case 'BINGET' | 'LONG_BINGET' | 'GET':
        stack.append(memo[arg])
      case 'NONE' | 'NEWTRUE' | 'NEWFALSE':
        stack.append(CONSTANTS[op.name])
      case 'EMPTY_DICT' | 'EMPTY_LIST' | 'EMPTY_TUPLE' | 'EMPTY_SET':
        stack.append(EMPTY[op.name]())
      case 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
        n = int(op.name[-1])
        stack[-n:] = [tuple(stack[-n:])]
      case 'TUPLE' | 'LIST' | 'FROZENSET':
        stack.append((list if op.name == 'LIST' else tuple)(to_mark()))
      case 'DICT':
        items = to_mark()
        stack.append(dict(zip(items[::2], items[1::2])))
      case 'APPEND':
        item = stack.pop()
        _contents(stack[-1], []).append(item)
      case 'APPENDS' | 'ADDITEMS':
        items = to_mark()
        _contents(stack[-1], []).extend(items)
      case 'SETITEM':
        value, key = stack.pop(), stack.pop()
        _contents(stack[-1], {})[key] = value
      case 'SETITEMS':
        items = to_mark()
        _contents(stack[-1], {}).update(zip(items[::2], items[1::2]))
      case 'GLOBAL':
        stack.append(Name(*arg.split(' ', 1)))
      case 'STACK_GLOBAL':
        name, module = stack.pop(), stack.pop()
        stack.append(Name(module, name))
      case 'REDUCE' | 'NEWOBJ':
        args, name = stack.pop(), stack.pop()
        stack.append(Built(name, args))
      case 'BUILD':
        state = stack.pop()
        if isinstance(stack[-1], Built):
          stack[-1].state = state
      case 'BINPERSID':
        stack.append(_stored(stack.pop()))
      case _ if arg is not None:
        stack.append(arg)
      case _:
        raise ValueError(f'its data.pkl has the opcode {op.name}, which torch does not write')
  raise ValueError('its data.pkl ends too early')


def _contents(target, kind):
  """The dict or list that items go to; those of an OrderedDict and its like are kept in its record."""
  if not isinstance(target, Built):
    return target
  if isinstance(kind, list) and not isinstance(target.items, list):
    target.items = []
  return target.items


def _stored(reference):
  tag, kind, key = reference[:3]
  if tag != 'storage' or not isinstance(kind, Name):
    raise ValueError(f'its data.pkl refers to {reference!r}, which is no tensor storage')
  return Stored(kind.name, key)


def _plain(value, load, depth=0):
  """Arrays for tensors and dicts for modules and ordered dicts, all the way down."""
  if depth > 100:
    raise ValueError('its objects nest more than 100 deep')
  again = lambda x: _plain(x, load, depth + 1)
  if isinstance(value, dict):
    return {k: again(v) for k, v in value.items()}
  if isinstance(value, list) or type(value) is tuple:
    return type(value)(map(again, value))
  if not isinstance(value, Built):
    return value
  name = value.name
  if name in (Name('torch._utils', '_rebuild_tensor_v2'), Name('torch._utils', '_rebuild_tensor')):
    return _tensor(value.args, load)
  if name == Name('torch._utils', '_rebuild_parameter'):
    return again(value.args[0])
  if name == Name('collections', 'OrderedDict'):
    return again(value.items)
  if isinstance(name, Name) and name.module.startswith('__torch__') and isinstance(value.state, dict):
    return again(value.state)
  return value


def _tensor(args, load):
  stored, offset, shape, strides = args[:4]
  if stored.kind not in DTYPES:
    raise ValueError(f'a tensor of {stored.kind}; known are {", ".join(DTYPES)}')
  dtype = np.dtype(DTYPES[stored.kind])
  if min((offset, *shape, *strides), default=0) < 0 or len(shape) != len(strides):
    raise ValueError(f'a tensor with shape {shape}, strides {strides} and offset {offset}')
  if math.prod(shape) == 0:
    return np.zeros(shape, dtype)
  size = dtype.itemsize
  # np.ndarray refuses a window that reaches beyond the bytes.
  return np.ndarray(shape, dtype, load(stored.key), offset * size, [s * size for s in strides])
