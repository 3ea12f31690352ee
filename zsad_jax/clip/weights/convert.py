"""Converts torch checkpoints (.pt, .pth) to .safetensors, once and offline. Needs PyTorch.

  python -m zsad_jax.clip.weights.convert ViT-L-14-336px.pt model.safetensors  # CLIP of OpenAI or open_clip
  python -m zsad_jax.clip.weights.convert epoch_15.pth prompts.safetensors     # prompts of the official AnomalyCLIP
  python -m zsad_jax.clip.weights.convert epoch_5.pth layers.safetensors       # layers of APRIL-GAN or CLIP-AD

Tensors keep their names, dtypes and values. Only wrappers are removed: 'state_dict' and 'module.' of training
checkpoints, 'prompt_learner' of AnomalyCLIP, 'trainable_linearlayer' of APRIL-GAN and CLIP-AD. The output's metadata
has the sha256 of the input and, if that digest is published, the name of the weights.

Checkpoints are read by torch.load(weights_only=True), whose restricted unpickler builds tensors and plain containers
and refuses everything else. It cannot read TorchScript archives, as OpenAI publishes them. torch.jit.load reads those
without Python's unpickler, but such an archive may hold code of its own. It is therefore opened only if its sha256 is
a published one.
"""

import argparse
import sys
import zipfile
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from zsad_jax.clip.weights import port, published, safetensors_files

# {key that wraps the trained parameters of a method: (description, 'kind' in the output's metadata)}
WRAPPERS = {'prompt_learner': ('AnomalyCLIP prompts', 'anomalyclip_prompts'),
            'trainable_linearlayer': ('affine layers of APRIL-GAN or CLIP-AD', 'affine_layers')}


class Conversion(NamedTuple):
  """Summary of a conversion.

  Attributes:
    sha256: digest of the output.
    source_sha256: digest of the input.
    kind: description of the tensors.
    tensors: number of tensors.
  """
  sha256: str
  source_sha256: str
  kind: str
  tensors: int


def convert(source: str | PathLike[str], target: str | PathLike[str]) -> Conversion:
  """Writes the tensors of a torch checkpoint as a .safetensors file, atomically.

  Args:
    source: a .pt or .pth file: a state dict, a training checkpoint, one of OpenAI's TorchScript archives, or a
      checkpoint with a key of WRAPPERS.
    target: the .safetensors file to write.

  Raises:
    FileNotFoundError: the source does not exist.
    ImportError: PyTorch is not installed.
    ValueError: a source that is not such a checkpoint, is damaged, or has a published name and another digest.
  """
  source, target = Path(source), Path(target)
  if target.suffix != '.safetensors':
    raise ValueError(f'the output {target} must end in .safetensors')
  _check_format(source)
  source_sha256 = safetensors_files.sha256(source)
  _check_digest(source, source_sha256)
  name = published.find_digest(source_sha256)
  tree = _read(source, trusted=bool(name))
  metadata = {'source': source.name, 'source_sha256': source_sha256}
  wrapper = next((key for key in WRAPPERS if isinstance(tree.get(key), Mapping)), None)
  arrays = _flatten(tree[wrapper] if wrapper else port.unwrap(tree))
  if not arrays:
    raise ValueError(f'{source} has no tensors')
  if wrapper:
    kind, metadata['kind'] = WRAPPERS[wrapper]
  else:
    kind = _describe(arrays, source)
    if name:
      kind, metadata['weights'] = f'{name}, {kind}', name
  return Conversion(safetensors_files.write(target, arrays, metadata), source_sha256, kind, len(arrays))


def _check_format(source):
  """Raises ValueError for files that are damaged or not torch checkpoints, such as half a download or a web page."""
  with source.open('rb') as file:
    start = file.read(2)
  if start == b'PK':
    if not zipfile.is_zipfile(source):
      raise ValueError(f'{source} is a truncated zip archive; download it again')
    if not _has_member(source, 'data.pkl'):
      raise ValueError(f'{source} is a zip archive, but not a torch checkpoint: it has no data.pkl')
    with zipfile.ZipFile(source) as archive:
      if damaged := archive.testzip():  # torch does not compare checksums
        raise ValueError(f'{source} is damaged: {damaged} does not match its checksum; download it again')
  elif start[:1] != b'\x80':
    raise ValueError(f'{source} is not a torch checkpoint: it starts with {start!r}; download it again')


def _check_digest(source, digest):
  """Raises ValueError if the file has the name of published weights, but not their digest."""
  for tags in published.PUBLISHED.values():
    for weights in tags.values():
      if source.name == weights.original and not digest.startswith(weights.sha256):
        raise ValueError(f'{source} has sha256 {digest}, but {weights.original} is published with '
                         f'{weights.digest_text}; it is damaged or another file')


def _read(source: Path, trusted: bool) -> Mapping[str, Any]:
  """Returns the nested dict of a torch checkpoint with its tensors as numpy arrays.

  Args:
    source: the checkpoint.
    trusted: whether it may be a TorchScript archive, which may hold code.
  """
  try:
    import torch
  except ImportError as error:
    raise ImportError(f'converting {source} needs PyTorch; install it with: pip install torch') from error

  def to_numpy(value):
    if isinstance(value, Mapping):
      return {key: to_numpy(item) for key, item in value.items()}
    if not isinstance(value, torch.Tensor):
      return value
    tensor = value.detach().contiguous()
    # numpy has no bfloat16 of its own, so the bits travel as int16.
    bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    return bits.numpy().view(ml_dtypes.bfloat16) if bits is not tensor else tensor.numpy()

  torchscript = zipfile.is_zipfile(source) and _has_member(source, 'constants.pkl')
  if torchscript and not trusted:
    raise ValueError(f'{source} is a TorchScript archive with an unknown sha256, which may run code when it is opened. '
                     'Save its state_dict() instead and convert that')
  try:
    tree = (torch.jit.load(source, map_location='cpu').state_dict() if torchscript
            else torch.load(source, map_location='cpu', weights_only=True))
  except Exception as error:  # torch raises many types for damaged files and refused objects
    reason = str(error).partition('\n')[0]
    raise ValueError(f'{source} cannot be read by torch.load(weights_only=True): {reason}. If the file is intact, save '
                     'its state_dict() alone and convert that') from error
  if not isinstance(tree, Mapping):
    raise ValueError(f'{source} has a {type(tree).__name__} instead of a dict of tensors; save a state_dict() instead')
  return to_numpy(tree)


def _has_member(source, name):
  with zipfile.ZipFile(source) as archive:
    return any(member.endswith(f'/{name}') for member in archive.namelist())


def _flatten(tree, prefix=''):
  """Returns the arrays of nested dicts under dotted names, without values of other types."""
  arrays = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      arrays |= _flatten(value, f'{prefix}{key}.')
    elif isinstance(value, np.ndarray):
      arrays[f'{prefix}{key}'] = value
  return arrays


def _describe(arrays, source):
  try:
    names = port.fits(arrays)
    return f'a CLIP with {port.naming(arrays)} names, ' + (
        f'fits {" and ".join(names)}' if names else 'of an architecture without a name here')
  except ValueError as error:
    raise ValueError(f'{source}: {error}') from error


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns its exit status."""
  parser = argparse.ArgumentParser(prog='python -m zsad_jax.clip.weights.convert', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('source', help='.pt or .pth file')
  parser.add_argument('target', help='.safetensors file to write')
  args = parser.parse_args(argv)
  try:
    conversion = convert(args.source, args.target)
  except (ImportError, OSError, ValueError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  print(f'{args.target}: {conversion.tensors} tensors ({conversion.kind})\n'
        f'sha256 {conversion.sha256}\nconverted from {args.source}, sha256 {conversion.source_sha256}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
