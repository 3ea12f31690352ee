"""Resolves a name or a path to verified weights on this machine: from the Hugging Face hub, a folder, or a file."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from zsad_jax.clip import archs
from zsad_jax.clip.weights import arch_config, published, safetensors_files

NAMES = (published.HUB_FILE, 'model.safetensors')
TOKENIZERS = ('tokenizer.json', 'vocab.json', 'bpe_simple_vocab_16e6.txt.gz')


class LocalWeights(NamedTuple):
  """Verified weights on this machine.

  Attributes:
    arch: the architecture, with the activation that the weights were trained with.
    path: a .safetensors file in any of port.NAMINGS.
    tokenizer_path: a file or folder for tokenizer.load; None means CLIP's own vocabulary.
    sha256: digest of the file.
    source: the name or path, and the repository that it was downloaded from.
  """
  arch: archs.Arch
  path: Path
  tokenizer_path: Path | None
  sha256: str
  source: str


def resolve(name_or_path: str | os.PathLike[str], *, arch: archs.Arch | str | None = None,
            cache_dir: str | os.PathLike[str] | None = None, offline: bool | None = None) -> LocalWeights:
  """Returns the local weights of a name or a path, downloaded if necessary and checked against their sha256.

  Args:
    name_or_path: 'tiny' (part of the package); a published name such as 'vit_l14_336' or 'vit_b16:laion400m_e32',
      downloaded once; a folder with weights and config.json (this project's, open_clip's or Hugging Face's); or a
      .safetensors file.
    arch: architecture of a .safetensors file that does not state its own: a name ('vit_b16' or, with its activation,
      'vit_b16:laion400m_e32') or an Arch. Otherwise it must agree with the name or folder.
    cache_dir: folder for downloads; None takes $ZSAD_CACHE or ~/.cache/zsad_jax.
    offline: whether downloads are forbidden; None follows HF_HUB_OFFLINE.

  Raises:
    FileNotFoundError: a file that is not on this machine and cannot be downloaded; the message names the file and the
      folder to put it in.
    ValueError: an unknown name, a pickle, an architecture or activation that disagrees, or a wrong digest.
  """
  wanted = None if arch is None else _arch(arch)
  path = Path(name_or_path)
  if str(name_or_path) == 'tiny':
    return _folder(_tiny(), wanted, cache_dir)
  if path.is_dir():
    return _folder(path, wanted, cache_dir)
  if path.suffix == '.safetensors' or path.is_file():
    return _file(path, wanted, cache_dir)
  if path.suffix in safetensors_files.PICKLES or len(path.parts) > 1:
    raise FileNotFoundError(f'no weights at {path}: there is no such file or folder')
  return _published(str(name_or_path), wanted, cache_dir, offline)


def architecture(name_or_path: str | os.PathLike[str], *, arch: archs.Arch | str | None = None) -> archs.Arch:
  """Returns the architecture that `resolve` would return, from a name or a folder's config, without reading weights.

  Raises:
    FileNotFoundError, ValueError: as `resolve` does, apart from what only the weights can show.
  """
  path = _tiny() if str(name_or_path) == 'tiny' else Path(name_or_path)
  if path.is_dir() and (config := _config(path)):
    return _agree(arch_config.read(config), None if arch is None else _arch(arch), config)
  if not path.exists() and not path.suffix and len(path.parts) == 1:
    return _agree(published.find(str(name_or_path))[2], None if arch is None else _arch(arch), name_or_path)
  if arch is not None:
    return _arch(arch)
  return resolve(name_or_path).arch


def default_cache() -> Path:
  """Returns $ZSAD_CACHE, else ~/.cache/zsad_jax; raises ValueError if there is no home directory."""
  if os.environ.get('ZSAD_CACHE'):
    return Path(os.environ['ZSAD_CACHE'])
  try:
    return Path.home() / '.cache' / 'zsad_jax'
  except RuntimeError as error:
    raise ValueError('there is no home directory for downloads; set ZSAD_CACHE to a folder') from error


def fetch(repo: str, name: str, folder: Path, *, offline: bool | None = None, instead: str = '') -> Path:
  """Downloads a file from a hub repository and checks it against the digest that the hub states.

  Args:
    repo: repository, 'owner/name'.
    name: name of the file in the repository.
    folder: folder to download to.
    offline: whether downloads are forbidden; None follows HF_HUB_OFFLINE.
    instead: further advice for the error message, one sentence or more.

  Returns:
    The path `folder / name`.

  Raises:
    FileNotFoundError: offline, or the hub cannot be reached or does not have the file.
    ValueError: a download with a wrong digest, which is renamed to `<name>.bad`.
  """
  import huggingface_hub
  from huggingface_hub import constants, errors
  path = folder / name
  http_errors: Any = errors.HfHubHTTPError.__bases__  # of whichever HTTP client the hub's package uses
  missing = f'{path} does not exist, and {name} of {repo} on the Hugging Face hub cannot be downloaded'
  place = f'Put that file there by hand.{" " if instead else ""}{instead}'
  if constants.HF_HUB_OFFLINE if offline is None else offline:
    raise FileNotFoundError(f'{missing}: offline. {place}')
  try:
    # A single request without retries: it fails at once without a network, and pins revision and digest.
    stated = huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repo, name))
  except http_errors as error:
    raise FileNotFoundError(f'{missing}: {error}. {place}') from error
  logging.info('downloading %s of %s (%.1f MB) to %s', name, repo, (stated.size or 0) / 1e6, folder)
  huggingface_hub.hf_hub_download(repo, name, revision=stated.commit_hash, local_dir=folder)
  digest = safetensors_files.sha256(path)
  if len(stated.etag or '') == 64 and stated.etag != digest:
    os.replace(path, path.with_name(name + '.bad'))
    raise ValueError(f'the download of {name} of {repo} has sha256 {digest}, not {stated.etag}; it was renamed to '
                     f'{path}.bad. Fetch it again')
  return path


def _arch(arch):
  if isinstance(arch, archs.Arch):
    return arch
  return archs.ARCHS[arch] if arch == 'tiny' else published.find(arch)[2]


def _tiny():
  folder = Path(__file__).parents[2] / 'checkpoints' / 'tiny'
  if folder.is_dir():
    return folder
  raise FileNotFoundError(f'the embedded tiny CLIP is missing at {folder}; reinstall or clone the project again, or '
                          'pretrain it with configs/pretrain_tiny.py')


def _folder(folder, wanted, cache_dir):
  names = [n for n in NAMES if (folder / n).is_file()] or sorted(p.name for p in folder.glob('*.safetensors'))
  if not names:
    for pickled in sorted(p for p in folder.iterdir() if p.suffix in safetensors_files.PICKLES):
      safetensors_files.refuse_pickle(pickled)
    content = ', '.join(sorted(p.name for p in folder.iterdir())[:10]) or 'nothing'
    raise FileNotFoundError(f'no weights in {folder}: expected {" or ".join(NAMES)}, but it has {content}')
  if len(names) > 1 and names[0] not in NAMES:
    raise ValueError(f'{folder} has several weights ({", ".join(names)}); give the path of one of them')
  config = _config(folder)
  tokenizer = folder if any((folder / n).is_file() for n in TOKENIZERS) else None
  if config is None:
    return _file(folder / names[0], wanted, cache_dir)._replace(tokenizer_path=tokenizer)
  arch = _agree(arch_config.read(config), wanted, config)
  path = folder / (names[0] if config.name.startswith('open_clip') else names[-1])
  return LocalWeights(arch, path, tokenizer, safetensors_files.verify(path, cache_dir), str(folder))


def _config(folder):
  """Returns the architecture's JSON file. A hub folder may have two: open_clip's, and that of an image tower alone."""
  return next((folder / n for n in ('open_clip_config.json', 'config.json') if (folder / n).is_file()), None)


def _file(path, wanted, cache_dir):
  name = safetensors_files.read_metadata(path).get('weights', '')
  if wanted is None and not name:
    raise ValueError(f'{path} does not state its architecture; pass arch=, one of {", ".join(published.names())}, '
                     'or an Arch')
  arch = _agree(published.find(name)[2], wanted, path) if name else wanted
  return LocalWeights(arch, path, None, safetensors_files.verify(path, cache_dir), str(path))


def _published(name, wanted, cache_dir, offline):
  name, weights, arch = published.find(name)
  arch = _agree(arch, wanted, name)
  cache = default_cache() if cache_dir is None else Path(cache_dir)
  folder = cache / name.replace(':', '.')
  path = next((folder / n for n in NAMES if (folder / n).is_file()), None)
  if path is None:
    path = fetch(weights.repo, published.HUB_FILE, folder, offline=offline, instead=(
        f'Or convert the original, {weights.original} (sha256 {weights.digest_text}), by\n'
        f'  python -m zsad_jax.clip.weights.convert {weights.original} {folder / NAMES[1]}'))
  converted_from = safetensors_files.read_metadata(path).get('weights', name)
  if converted_from != name:
    raise ValueError(f'{path} was converted from {converted_from}, not {name}; '
                     f'move it to {cache / converted_from.replace(":", ".")}')
  digest = safetensors_files.verify(path, cache)
  _refuse_duplicate(name, path, digest, cache)
  return LocalWeights(arch, path, None, digest, f'{name} ({weights.repo})')


def _refuse_duplicate(name, path, digest, cache):
  """Raises ValueError if another tag has the same bytes: then one has the wrong name, as when e31 is served as e32."""
  for other in sorted(cache.glob(f'{name.split(":")[0]}.*/*.safetensors.sha256')):
    if other.parent != path.parent and safetensors_files.read_digest(other) == digest:
      raise ValueError(f'{path} and {other.with_suffix("")} are the same bytes (sha256 {digest}), so one of them has '
                       'the wrong name; delete both and fetch them again')


def _agree(arch, wanted, where):
  """Returns `arch`; raises ValueError naming the first field that differs from `wanted`, if that is not None."""
  if wanted is not None:
    for field in ('embed_dim', 'vision', 'text', 'activation', 'mean', 'std', 'resize'):
      if getattr(arch, field) != getattr(wanted, field):
        raise ValueError(f'{where} says {field} {getattr(arch, field)}, but arch={wanted.name!r} has '
                         f'{getattr(wanted, field)}')
  return arch
