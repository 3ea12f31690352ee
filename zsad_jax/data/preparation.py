"""Prepared copies on disk: which there are, and how one is made, once, whoever else wants it at the same time."""

import contextlib
import fcntl
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from zsad_jax.data import images

_UNFINISHED = 'incomplete.*'      # folders that tfds writes into and renames when all is there


def inside(builder: type[tfds.core.DatasetBuilder], config: str) -> Path:
  """Returns where, inside its own folder, a prepared copy has its files: <name>/[<configuration>/]<version>."""
  return Path(builder.name, config, str(builder.VERSION))


def copies(root: Path, builder: type[tfds.core.DatasetBuilder], config: str) -> list[Path]:
  """Returns the folders of all finished copies of a data set under `root`, of whichever state of its source."""
  return sorted(Path(root).glob(f'*/{inside(builder, config)}'))


def rules_of(metadata: dict | None) -> images.Rules | None:
  """Returns the rules by which files became pixels, from a builder's metadata; None where no files were read."""
  kept = (metadata or {}).get('rules')
  return kept and images.Rules(kept['exif'], kept['background'] and tuple(kept['background']))


def rules_of_copy(where: Path) -> images.Rules | None:
  """Returns `rules_of` a finished copy."""
  return rules_of(json.loads((where / 'metadata.json').read_text(encoding='utf-8')))


def ensure(builder: tfds.core.DatasetBuilder) -> bool:
  """Prepares what the builder describes, unless that has been done; returns whether it was done now.

  A preparation that was killed starts anew: records are only read once all of them are there, and what it left is
  removed. While another process prepares the same copy this one waits for it.
  """
  where = Path(builder.data_dir)
  if where.exists():
    return False
  with _alone(where.parent) as alone:
    if where.exists():
      builder.info.read_from_directory(where)
      return False
    if alone:
      _remove_unfinished(where.parent)
    logging.info('preparing %s in %s', builder.name, where)
    try:
      with contextlib.redirect_stdout(io.StringIO()):  # tfds prints of downloads; there are none
        builder.download_and_prepare()
    except OSError:
      if alone or not where.exists():
        raise
      builder.info.read_from_directory(where)          # without locks another process may have been faster
  return True


def clean(root: Path, builder: type[tfds.core.DatasetBuilder], config: str) -> None:
  """Removes what killed preparations of a data set left under `root`, whichever state of its source they read."""
  for folder in {path.parent for path in Path(root).glob(f'*/{inside(builder, config).parent}/{_UNFINISHED}')}:
    with _alone(folder, wait=False) as alone:
      if alone:
        _remove_unfinished(folder)


def _remove_unfinished(folder: Path) -> None:
  for path in folder.glob(_UNFINISHED):
    logging.info('%s: left by a preparation that was killed; removed, it starts anew', path)
    shutil.rmtree(path)


@contextlib.contextmanager
def _alone(folder: Path, wait: bool = True) -> Iterator[bool]:
  """Holds the lock of `folder` until the end of the with block, or of the process however it ends.

  Gives True where it holds it, False where others do and `wait` is False, or where the file system has no locks.
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
      logging.warning('%s: cannot be locked (%s); do not prepare it twice at once', folder, e)
      yield False
      return
    yield True
