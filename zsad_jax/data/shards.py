"""The files of a prepared copy: how records are divided among them, and how finished ones outlive a killed process."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from absl import logging
from tensorflow_datasets.core import writer as tfds_writer
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import auto as tqdm

from zsad_jax.data.survey import Item

# Of image files in one shard: what a kill costs at most, and what a preparation holds in memory. tfds's own minimum.
SHARD_BYTES = 64 << 20


@dataclasses.dataclass
class Shard:
  """One file of records, and what was noticed while it was made.

  Attributes:
    file: its name.
    items: the images that belong in it, in their order.
    stamps: of each, what would change if it or its mask were another file.
    written: how many of them it holds; None until it is finished.
    seen: {note: [how many images it is about, the id of the first]}.
    skipped: the ids of damaged images that were left out.
  """
  file: str
  items: Sequence[Item]
  written: int | None = None
  seen: dict[str, list] = dataclasses.field(default_factory=dict)
  skipped: list[str] = dataclasses.field(default_factory=list)

  def __post_init__(self):
    self.stamps = [_stamp(item) for item in self.items]

  @property
  def digest(self) -> str:
    """The same for the same items and files."""
    return hashlib.sha256('\n'.join(self.stamps).encode('utf-8', 'surrogateescape')).hexdigest()

  def check(self) -> None:
    """Raises ValueError, naming the first, when files have changed since the shard was planned."""
    for item, stamp in zip(self.items, self.stamps):
      if _stamp(item) != stamp:
        raise ValueError(f'{item.image}, or its mask, has changed while the data set was prepared; wait until whatever '
                         'writes there is done, then prepare it again')

  def note(self, text: str, key: str) -> None:
    """Counts a note about the image `key`."""
    self.seen.setdefault(text, [0, key])[0] += 1


def divide(items: Iterable[Item]) -> list[list[Item]]:
  """Returns the items in runs, each ended by the image file that brings it to SHARD_BYTES."""
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

  Beside each lies <file>.json with its digest and what it was made of. It is written last: a shard without it is none.
  The file `source` holds the path that the images come from.
  """

  def __init__(self, folder: Path):
    self.folder = folder

  @property
  def source(self) -> str:
    """The path that `open` was told; '' when it never was."""
    path = self.folder / 'source'
    return path.read_text(encoding='utf-8', errors='surrogateescape') if path.is_file() else ''

  def open(self, source: Path) -> None:
    """Makes the folder, for shards of images of `source`."""
    self.folder.mkdir(parents=True, exist_ok=True)
    _write(self.folder / 'source', os.fsencode(source))

  def take(self, shards: Sequence[Shard]) -> None:
    """Marks those of `shards` as finished that are here, hold these items and are as they were written."""
    left = [shard for shard in shards if self._told(shard).is_file()]
    for shard in tqdm.tqdm(left, 'checking finished shards', unit='shard', leave=False, disable=not left):
      path = self.folder / shard.file
      told = _read(self._told(shard))
      if told.get('made of') not in (None, shard.digest):
        logging.warning('%s: made of other files than it should be; it is made anew', path)
      elif not path.is_file() or told.get('sha256') != _digest(path):
        logging.warning('%s: damaged since it was written; it is made anew', path)
      else:
        shard.written, shard.seen, shard.skipped = told['written'], told['seen'], told['skipped']

  def put(self, shard: Shard, part: Path) -> None:
    """Keeps the finished file `part` as `shard`."""
    path = self.folder / shard.file
    told = {'made of': shard.digest, 'sha256': _digest(part), 'written': shard.written, 'seen': shard.seen,
            'skipped': shard.skipped}
    os.replace(part, path)
    _write(self._told(shard), json.dumps(told).encode())

  def _told(self, shard: Shard) -> Path:
    return self.folder / f'{shard.file}.json'


class Writer(tfds_writer.ExampleWriter):
  """Writes the shards of a preparation where tfds wants them, by way of a shelf where there is one.

  tfds removes its own folder when a preparation fails, and never looks into one that a killed process left. The same
  images give the same bytes in every process.
  """

  def __init__(self, file_format, shards: Iterable[Shard], shelf: Shelf | None):
    super().__init__(file_format)
    self._shards, self._shelf = {shard.file: shard for shard in shards}, shelf

  def write(self, path, examples) -> None:
    """Writes the shard whose file is called as `path`, unless it is finished."""
    path = Path(path)
    shard = self._shards[path.name]
    if self._shelf is None:
      super().write(path, _canonical(examples))
      return
    if shard.written is None:
      part = self._shelf.folder / f'{shard.file}.part'
      super().write(part, _counted(_canonical(examples), shard))
      self._shelf.put(shard, part)
    _link(self._shelf.folder / shard.file, path)


def _canonical(examples: Iterable[tuple]) -> Iterator[tuple]:
  """The serialized examples with their features in order, which protobuf leaves to chance in every process."""
  for key, data in examples:
    yield key, tf_example_pb2.Example.FromString(data).SerializeToString(deterministic=True)


def _counted(examples: Iterable[tuple], shard: Shard) -> Iterator[tuple]:
  """The examples, whose number becomes `shard.written` after the last of them."""
  written = 0
  for example in examples:
    yield example
    written += 1
  shard.written = written


def _stamp(item: Item) -> str:
  stats = [path.stat() for path in (item.image, item.mask) if path is not None]
  return repr((item.key, item.box, [(stat.st_size, stat.st_mtime_ns) for stat in stats]))


def _digest(path: Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _read(path: Path) -> dict:
  """What `_write` wrote as JSON; {} where a crash of the machine lost it."""
  try:
    return json.loads(path.read_bytes())
  except ValueError:
    return {}


def _write(path: Path, data: bytes) -> None:
  part = path.with_name(f'{path.name}.part')
  part.write_bytes(data)
  os.replace(part, path)


def _link(path: Path, to: Path) -> None:
  """Makes `to` the same file as `path`; a copy where the file system has no hard links."""
  try:
    os.link(path, to)
  except OSError:
    shutil.copyfile(path, to)
