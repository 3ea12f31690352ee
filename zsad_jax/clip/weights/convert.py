"""Offline converter: a torch .pt or .pth checkpoint to .safetensors, without running anything in it.

  python -m zsad_jax.clip.weights.convert ViT-L-14-336px.pt model.safetensors      # OpenAI's or open_clip's CLIP
  python -m zsad_jax.clip.weights.convert epoch_15.pth prompts.safetensors         # official AnomalyCLIP prompts
  python -m zsad_jax.clip.weights.convert epoch_5.pth layers.safetensors           # official APRIL-GAN or CLIP-AD layers

Names, dtypes and values stay as they are; only wrappings come off: 'state_dict' and 'module.' of training
checkpoints, 'prompt_learner' of AnomalyCLIP's, 'trainable_linearlayer' of APRIL-GAN's and CLIP-AD's. The sha256 of
the input is kept in the output's metadata, and with it the name of the weights where that digest is a published one.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

from zsad_jax.clip.weights import archive, port, published, safetensors_files

# {key that wraps what a system has trained: (what it is, the output's metadata 'kind')}.
TRAINED = {'prompt_learner': ('AnomalyCLIP prompts', 'anomalyclip_prompts'),
           'trainable_linearlayer': ('affine layers of APRIL-GAN or CLIP-AD', 'affine_layers')}


class Converted(NamedTuple):
  """What was written: its sha256, the input's, what it is, and how many tensors it has."""
  sha256: str
  source_sha256: str
  kind: str
  count: int


def convert(source, target) -> Converted:
  """Writes the tensors of a torch archive as .safetensors, whole or not at all, and returns what they are.

  Args:
    source: a .pt or .pth file of torch 1.6 or later: a state dict, a training checkpoint, a TorchScript
      archive, or a checkpoint of a system with a key of TRAINED.
    target: the .safetensors file to write.

  Raises:
    FileNotFoundError: no such file.
    ValueError: a file that is no such checkpoint, is damaged, or whose name and digest disagree.
  """
  source, target = Path(source), Path(target)
  if target.suffix != '.safetensors':
    raise ValueError(f'the output must end in .safetensors, unlike {target}')
  tree = archive.read(source)
  if not isinstance(tree, dict):
    what = f'a pickled {tree.name}' if isinstance(tree, archive.Built) else f'a {type(tree).__name__}'
    raise ValueError(f'{source} holds {what}, not a dict of tensors; save its state_dict() instead')
  source_sha256 = safetensors_files.sha256(source)
  _check_name(source, source_sha256)
  name = published.of_digest(source_sha256)
  metadata = {'source': source.name, 'source_sha256': source_sha256}
  wrapping = next((key for key in TRAINED if isinstance(tree.get(key), dict)), None)
  if wrapping:
    arrays = archive.flatten(tree[wrapping])
    kind, metadata['kind'] = TRAINED[wrapping]
  else:
    arrays = archive.flatten(dict(port.plain(tree)))
    kind = _describe(arrays, source)
    if name:
      kind, metadata['weights'] = f'{name}, {kind}', name
  if not arrays:
    raise ValueError(f'{source} holds no tensors')
  return Converted(safetensors_files.write_safetensors(target, arrays, metadata), source_sha256, kind, len(arrays))


def _describe(arrays, source):
  try:
    fit = port.fits(arrays)
    return f'a CLIP with {port.naming(arrays)} names, ' + (
        f'fits {" and ".join(fit)}' if fit else 'of an architecture without a name here')
  except ValueError as error:
    raise ValueError(f'{source}: {error}') from error


def _check_name(source, digest):
  """A file under a published name must have the published digest."""
  for tags in published.PUBLISHED.values():
    for entry in tags.values():
      if source.name == entry.original and not digest.startswith(entry.sha256):
        raise ValueError(f'{source} has sha256 {digest}, but {entry.original} is published with '
                         f'{entry.stated}: it is damaged or another file')


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(prog='python -m zsad_jax.clip.weights.convert', description=__doc__,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('source', help='.pt or .pth file')
  parser.add_argument('target', help='.safetensors file to write')
  args = parser.parse_args(argv)
  try:
    done = convert(args.source, args.target)
  except (OSError, ValueError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  print(f'{args.target}: {done.count} tensors ({done.kind})\n'
        f'sha256 {done.sha256}\nconverted from {args.source}, sha256 {done.source_sha256}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
