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

from zsad_jax.data import images, shards
from zsad_jax.data.builder import SourceBuilder


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

  The copy appears when all of it is there. Where image files are read, a preparation that was killed or failed goes on
  from its finished shards as long as the files and the rules are the same; else it starts anew, and says so. While
  another process prepares the same copy this one waits for it.
  """
  where = Path(builder.data_dir)
  if where.exists():
    _read(builder)
    return False
  with _alone(where.parent) as alone:
    if where.exists():
      _read(builder)
      return False
    if alone:
      _remove_temporary(where.parent)
      if isinstance(builder, SourceBuilder):
        _discard(builder)
        builder.resume(shards.Shelf(_shelf(where)))
    logging.info('preparing %s in %s', builder.name, where)
    try:
      with contextlib.redirect_stdout(io.StringIO()):  # tfds prints of downloads; there are none
        builder.download_and_prepare()
    except OSError:
      if alone or not where.exists():
        raise
      _read(builder)                                   # without locks another process may have been faster
    if alone and begun(where):
      shutil.rmtree(_shelf(where))
  return True


def _read(builder) -> None:
  """Tells a builder what its copy holds, where another process finished that after the builder was made."""
  if not builder.info.initialized:
    builder.info.read_from_directory(builder.data_dir)


def begun(where: Path) -> bool:
  """Returns whether a preparation of the copy `where` ended early and can go on."""
  return _shelf(where).is_dir()


def _shelf(where: Path) -> Path:
  """Where finished shards wait until the copy `where` is complete."""
  return where.with_name(f'unfinished.{where.name}')


def _discard(builder: SourceBuilder) -> None:
  """Removes what unfinished preparations of the builder's source left that was in another state or read otherwise."""
  where, root = Path(builder.data_dir), Path(builder.data_dir_root)
  for shelf in root.parent.glob(f'*/{_shelf(where).relative_to(root)}'):
    if shelf.parent == where.parent or shards.Shelf(shelf).source != str(builder.source):
      continue
    with _alone(shelf.parent, wait=False) as alone:
      if alone:
        logging.warning('%s: the files, or how they are to be read, have changed since a preparation was interrupted; '
                        'its shards are removed and it starts anew', builder.source)
        shutil.rmtree(shelf)
        _remove_temporary(shelf.parent)


def _remove_temporary(folder: Path) -> None:
  """Removes the folders that tfds writes into and renames when all is there, of processes that were killed."""
  for path in folder.glob('incomplete.*'):
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
