"""Prepared copies on disk: their paths, and their preparation by one process at a time."""

import contextlib
import fcntl
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from zsad_jax.data import images, shards
from zsad_jax.data.source_builder import SourceBuilder


def subfolder(builder: type[tfds.core.DatasetBuilder], config: str) -> Path:
  """Returns where the files of a prepared copy are inside its own folder: <name>/[<configuration>/]<version>."""
  return Path(builder.name, config, str(builder.VERSION))


def copies(root: Path, builder: type[tfds.core.DatasetBuilder], config: str) -> list[Path]:
  """Returns the folders of all finished copies of a data set under `root`, whatever state of its source they show."""
  return sorted(Path(root).glob(f'*/{subfolder(builder, config)}'))


def rules_in(metadata: dict | None) -> images.Rules | None:
  """Returns the rules by which files became pixels, from a builder's metadata; None if no files were read."""
  rules = (metadata or {}).get('rules')
  return rules and images.Rules(rules['exif'], rules['background'] and tuple(rules['background']))


def rules_of_copy(copy: Path) -> images.Rules | None:
  """Returns the rules by which a finished copy was made."""
  return rules_in(json.loads((copy / 'metadata.json').read_text(encoding='utf-8')))


def ensure(builder: tfds.core.DatasetBuilder) -> bool:
  """Prepares the builder's data set unless that has been done; returns whether it was done now.

  The copy appears once all of it is there. A preparation from image files that was killed or failed resumes from its
  finished shards if files and rules are the same; otherwise it starts from scratch, with a warning. While another
  process prepares the same copy, this one waits.
  """
  copy = Path(builder.data_dir)
  if copy.exists():
    _load_info(builder)
    return False
  with _lock(copy.parent) as is_alone:
    if copy.exists():
      _load_info(builder)
      return False
    if is_alone:
      _remove_temporary(copy.parent)
      if isinstance(builder, SourceBuilder):
        _discard_outdated(builder)
        builder.resume_from(shards.Shelf(_shelf(copy)))
    logging.info('preparing %s in %s', builder.name, copy)
    try:
      with contextlib.redirect_stdout(io.StringIO()):  # tfds prints about downloads; there are none
        builder.download_and_prepare()
    except OSError:
      if is_alone or not copy.exists():
        raise
      _load_info(builder)  # without locks another process may have been faster
    if is_alone and is_interrupted(copy):
      shutil.rmtree(_shelf(copy))
  return True


def _load_info(builder: tfds.core.DatasetBuilder) -> None:
  """Loads what a builder's copy holds, if another process finished it after the builder was created."""
  if not builder.info.initialized:
    builder.info.read_from_directory(builder.data_dir)


def is_interrupted(copy: Path) -> bool:
  """Returns whether a preparation of `copy` ended early and can resume."""
  return _shelf(copy).is_dir()


def _shelf(copy: Path) -> Path:
  """Where finished shards wait until `copy` is complete."""
  return copy.with_name(f'unfinished.{copy.name}')


def _discard_outdated(builder: SourceBuilder) -> None:
  """Removes shards of unfinished preparations of the builder's source, made from other files or by other rules."""
  copy, root = Path(builder.data_dir), Path(builder.data_dir_root)
  for shelf in root.parent.glob(f'*/{_shelf(copy).relative_to(root)}'):
    if shelf.parent == copy.parent or shards.Shelf(shelf).source != str(builder.source):
      continue
    with _lock(shelf.parent, wait=False) as is_alone:
      if is_alone:
        logging.warning('%s: its files or rules have changed since a preparation was interrupted; starting from '
                        'scratch', builder.source)
        shutil.rmtree(shelf)
        _remove_temporary(shelf.parent)


def _remove_temporary(folder: Path) -> None:
  """Removes tfds's temporary folders of processes that were killed."""
  for path in folder.glob('incomplete.*'):
    shutil.rmtree(path)


@contextlib.contextmanager
def _lock(folder: Path, wait: bool = True) -> Iterator[bool]:
  """Holds the lock of `folder` until the end of the with block, or of the process however it ends.

  Yields True if it holds the lock, False if another process does and `wait` is False, or if the file system has no
  locks.
  """
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / 'lock', 'a', encoding='utf-8') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      if not wait:
        yield False
        return
      logging.info('%s: another process is preparing it; waiting', folder)
      fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as e:
      logging.warning('%s: cannot be locked (%s); do not prepare it in several processes at once', folder, e)
      yield False
      return
    yield True
