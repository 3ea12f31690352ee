"""The files of a prepared copy: how records are divided among them, and how finished ones survive an interruption."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging
from tensorflow_datasets.core import writer as tfds_writer
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import auto as tqdm

from zsad_jax.data.inventory import Item

# Bytes of image files per shard: what an interruption costs at most, and what a preparation holds in memory. This is
# tfds's own minimum.
SHARD_BYTES = 64 << 20


@dataclasses.dataclass
class Shard:
  """One file of records, and what was noticed while it was written.

  Attributes:
    file: its name.
    items: the images that belong in it, in order.
    stamps: per image, what would change if it or its mask were another file.
    written: number of records in it; None until it is finished.
    notes: {note: [number of images it concerns, id of the first]}.
    skipped: ids of damaged images that were left out.
  """
  file: str
  items: Sequence[Item]
  written: int | None = None
  notes: dict[str, list] = dataclasses.field(default_factory=dict)
  skipped: list[str] = dataclasses.field(default_factory=list)

  def __post_init__(self):
    self.stamps = [_stamp(item) for item in self.items]

  @property
  def digest(self) -> str:
    """The same for the same items and files."""
    return hashlib.sha256('\n'.join(self.stamps).encode('utf-8', 'surrogateescape')).hexdigest()

  def check(self) -> None:
    """Raises ValueError, naming the first file, if files have changed since the shard was planned."""
    for item, stamp in zip(self.items, self.stamps):
      if _stamp(item) != stamp:
        raise ValueError(f'{item.image}, or its mask, has changed while the data set was being prepared; wait until '
                         'nothing writes there any more, then prepare it again')

  def note(self, text: str, key: str) -> None:
    """Counts a note about the image `key`."""
    self.notes.setdefault(text, [0, key])[0] += 1


def divide(items: Iterable[Item]) -> list[list[Item]]:
  """Returns the items in runs; the image file that brings a run to SHARD_BYTES is its last."""
  runs, size = [], SHARD_BYTES
  for item in items:
    if size >= SHARD_BYTES:
      runs.append([])
      size = 0
    runs[-1].append(item)
    size += item.image.stat().st_size
  return runs


class Shelf:
  """A folder in which the finished shards of a preparation wait for the others.

  Next to each shard is <file>.json with its digest, its sha256 and its notes, written last: without it the shard does
  not count as finished. The file `source` holds the path that the images come from.
  """

  def __init__(self, folder: Path):
    self.folder = folder

  @property
  def source(self) -> str:
    """The path passed to `open`; '' if it was never called."""
    path = self.folder / 'source'
    return path.read_text(encoding='utf-8', errors='surrogateescape') if path.is_file() else ''

  def open(self, source: Path) -> None:
    """Creates the folder, for shards of images of `source`."""
    self.folder.mkdir(parents=True, exist_ok=True)
    _write(self.folder / 'source', os.fsencode(source))

  def restore(self, shards: Sequence[Shard]) -> None:
    """Marks those of `shards` as finished that are on the shelf, hold these items and are undamaged."""
    finished = [shard for shard in shards if self._summary_file(shard).is_file()]
    for shard in tqdm.tqdm(finished, 'checking finished shards', unit='shard', leave=False, disable=not finished):
      path = self.folder / shard.file
      summary = _read_json(self._summary_file(shard))
      if summary.get('digest') not in (None, shard.digest):
        logging.warning('%s: its source files have changed; writing it again', path)
      elif not path.is_file() or summary.get('sha256') != _sha256(path):
        logging.warning('%s: damaged since it was written; writing it again', path)
      else:
        shard.written, shard.notes, shard.skipped = summary['written'], summary['notes'], summary['skipped']

  def put(self, shard: Shard, part: Path) -> None:
    """Moves the finished file `part` to the shelf as `shard`."""
    summary = {'digest': shard.digest, 'sha256': _sha256(part), 'written': shard.written, 'notes': shard.notes,
               'skipped': shard.skipped}
    os.replace(part, self.folder / shard.file)
    _write(self._summary_file(shard), json.dumps(summary).encode())

  def _summary_file(self, shard: Shard) -> Path:
    return self.folder / f'{shard.file}.json'


class Writer(tfds_writer.ExampleWriter):
  """Writes the shards of a preparation to the paths that tfds expects, through a shelf if there is one.

  tfds removes its own folder when a preparation fails, and never reads one that a killed process left. The same images
  give the same bytes in every process.
  """

  def __init__(self, file_format: tfds.core.FileFormat, shards: Iterable[Shard], shelf: Shelf | None):
    super().__init__(file_format)
    self._shards, self._shelf = {shard.file: shard for shard in shards}, shelf

  def write(self, path: Path | str, examples: Iterable[tuple]) -> None:
    """Writes the shard with the file name of `path`, unless it is finished."""
    path = Path(path)
    shard = self._shards[path.name]
    if self._shelf is None:
      super().write(path, _canonical(examples))
      return
    if shard.written is None:
      part = self._shelf.folder / f'{shard.file}.part'
      super().write(part, _count_into(shard, _canonical(examples)))
      self._shelf.put(shard, part)
    _link(self._shelf.folder / shard.file, path)


def _canonical(examples: Iterable[tuple]) -> Iterator[tuple]:
  """The serialized examples with sorted features, whose order protobuf randomises per process."""
  for key, data in examples:
    yield key, tf_example_pb2.Example.FromString(data).SerializeToString(deterministic=True)


def _count_into(shard: Shard, examples: Iterable[tuple]) -> Iterator[tuple]:
  """The examples; their number becomes `shard.written` after the last of them."""
  written = 0
  for example in examples:
    yield example
    written += 1
  shard.written = written


def _stamp(item: Item) -> str:
  stats = [path.stat() for path in (item.image, item.mask) if path is not None]
  return repr((item.key, item.box, [(stat.st_size, stat.st_mtime_ns) for stat in stats]))


def _sha256(path: Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _read_json(path: Path) -> dict:
  """The JSON that `_write` wrote; {} if a crash of the machine lost it."""
  try:
    return json.loads(path.read_bytes())
  except ValueError:
    return {}


def _write(path: Path, data: bytes) -> None:
  part = path.with_name(f'{path.name}.part')
  part.write_bytes(data)
  os.replace(part, path)


def _link(path: Path, to: Path) -> None:
  """Makes `to` the same file as `path`, or a copy if the file system has no hard links."""
  try:
    os.link(path, to)
  except OSError:
    shutil.copyfile(path, to)
