"""The tfds builder of every data set that is read from image files."""

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging
from tqdm import auto as tqdm

from zsad_jax.data import catalog, images, inventory, published, records, shards
from zsad_jax.data.inventory import Inventory, Item
from zsad_jax.data.read_ahead import read_ahead

_THREADS = os.cpu_count() or 1


def read_all(items: Sequence[Item], **options) -> Iterator[records.Reading]:
  """Yields `records.try_read(item, **options)` of the items, on as many threads as there are cores."""
  return read_ahead(functools.partial(records.try_read, **options), items, threads=_THREADS, depth=2 * _THREADS)


class SourceBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
  """A builder that copies the images of a raw folder into ArrayRecord files, without TensorFlow.

  Every image is decoded in full once, so a damaged file stops the preparation, not an evaluation hours later.
  Order: category, split, defect type, file stem. A subclass implements `scan`.

  Args:
    folder: the raw data set; by default the one in the manual folder.
    rules: how image files become pixels.
    on_bad: 'error', or 'skip' to leave damaged images out; `info.metadata['skipped']` then lists their ids.
    options: further arguments of `scan`, for folders of the user's own.
    file_format: of the prepared records.
    **kwargs: as for any tfds builder, in particular `data_dir`.
  """

  VERSION = tfds.core.Version('1.0.0')
  MASK_THRESHOLD = 0  # a mask pixel is anomalous if its 8-bit grey value exceeds this

  def __init__(self, *, folder: Path | None = None, rules: images.Rules = images.DEFAULT_RULES, on_bad: str = 'error',
               options: dict | None = None, file_format: str = 'array_record', **kwargs):
    images.check_rules(rules)
    if on_bad not in ('error', 'skip'):
      raise ValueError(f"on_bad={on_bad!r} is not allowed; use 'error' or 'skip'")
    if folder is None and self.name not in catalog.CATALOG:
      raise ValueError(f'{self.name} needs folder=, the path of your images')
    self._folder = folder and Path(folder)
    self._rules, self._on_bad, self._options = rules, on_bad, options or {}
    self._shelf = None
    super().__init__(file_format=file_format, **kwargs)

  @classmethod
  def scan(cls, root: Path, **options) -> Inventory:
    """Returns the inventory of a raw folder; `config` is an option of data sets with configurations."""
    raise NotImplementedError

  @classmethod
  def source_digest(cls, root: Path) -> str:
    """Returns a sha256 that changes with the files of a raw folder: their names, sizes and times."""
    return inventory.listing_digest(root)

  def object_names(self) -> dict[str, str]:
    """Returns {category folder name: name in prompts} in the order of the class label."""
    return {name: category.object_name for name, category in catalog.CATALOG[self.name].categories.items()}

  def _info(self) -> tfds.core.DatasetInfo:
    names, entry, facts = self.object_names(), catalog.CATALOG.get(self.name), {}
    metadata = {'object_names': names, 'mask_threshold': self.MASK_THRESHOLD, 'rules': self._rules._asdict(),
                'notes': {}, 'skipped': {}}
    if entry:
      metadata['textures'] = [name for name, category in entry.categories.items() if category.texture]
      facts = {'description': f'{entry.title}. {entry.summary}\n\n{entry.description}', 'homepage': entry.homepage,
               'citation': catalog.citation(self.name), 'license': entry.licence}
    return tfds.core.DatasetInfo(
        builder=self, features=records.features(list(names)), disable_shuffling=True,
        metadata=tfds.core.MetadataDict(metadata), **facts)

  @property
  def source(self) -> Path | None:
    """The raw data set, if it was passed."""
    return self._folder

  def resume_from(self, shelf: shards.Shelf) -> None:
    """Makes the next preparation resume from the shards on `shelf`, and leave its own there if it ends early.

    They must have been made from the same files by the same rules, and no other process may use them.
    """
    self._shelf = shelf

  def _download_and_prepare(self, dl_manager, download_config=None) -> None:
    root = self._folder or published.find(self.name, dl_manager.manual_dir)
    self._plan = self._plan_shards(root)
    plan = list(itertools.chain(*self._plan.values()))
    if self._shelf:
      self._shelf.open(root)
      self._shelf.restore(plan)
    total = sum(len(shard.items) for shard in plan)
    done = sum(len(shard.items) for shard in plan if shard.written is not None)
    if done:
      logging.info('%s: resuming an interrupted preparation; %d of %d images are done', self.name, done, total)
    with tqdm.tqdm(desc=self.name, total=total, initial=done, unit='image', leave=False) as self._bar:
      super()._download_and_prepare(dl_manager, download_config)
    for split, split_shards in self._plan.items():
      self._save_notes(split, split_shards)

  def _plan_shards(self, root: Path) -> dict[str, list[shards.Shard]]:
    """{split: its shards}, from the inventory of the folder."""
    config = {'config': self.builder_config.name} if self.builder_config else {}
    scanned = self.scan(root, **config, **self._options)
    _check_usable(root, scanned)
    is_published = self.name in catalog.CATALOG
    differences = published.count_differences(self.name, scanned.items, **config) if is_published else []
    self.info.metadata['notes']['folder'] = inventory.shorten(scanned.notes) + inventory.shorten(differences)
    plan = {}
    for split in ('train', 'test'):
      runs = shards.divide(item for item in scanned.items if item.split == split)
      names = tfds.core.ShardedFileTemplate(data_dir=self.data_dir, dataset_name=self.name, split=split,
                                            filetype_suffix=self.info.file_format.file_suffix)
      if runs:
        plan[split] = [shards.Shard(names.relative_filepath(shard_index=i, num_shards=len(runs)), run)
                       for i, run in enumerate(runs)]
    return plan

  def _example_writer(self) -> shards.Writer:
    return shards.Writer(self.info.file_format, itertools.chain(*self._plan.values()), self._shelf)

  def _shard_iterators_per_split(self, dl_manager) -> dict[str, list[Callable]]:
    del dl_manager
    return {split: [functools.partial(self._examples, shard) for shard in split_shards]
            for split, split_shards in self._plan.items()}

  def _examples(self, shard: shards.Shard) -> Iterator[tuple[str, dict | None]]:
    """(id, record) of the images of a shard; for a finished shard only as many ids, for tfds to count."""
    if shard.written is not None:
      yield from ((item.key, None) for item in shard.items[:shard.written])
      return
    readings = read_all(shard.items, names=self.object_names(), threshold=self.MASK_THRESHOLD, rules=self._rules)
    with contextlib.closing(readings):
      for item, example, notes, error in readings:
        self._bar.update()
        if error:
          if self._on_bad == 'error':
            raise error
          logging.warning('%s: skipped %s', self.name, error)
          shard.skipped.append(item.key)
          continue
        for note in notes:
          shard.note(note, item.key)
        yield item.key, example
    shard.check()

  def _save_notes(self, split: str, split_shards: Sequence[shards.Shard]) -> None:
    """Writes the notes and skipped images of a split's shards into the metadata."""
    items, counted = [item for shard in split_shards for item in shard.items], {}
    skipped = [key for shard in split_shards for key in shard.skipped]
    for note, (times, first) in itertools.chain(*(shard.notes.items() for shard in split_shards)):
      counted.setdefault(note, [0, first])[0] += times
    lines = [f'{note}: {times:,} of {len(items):,} images, first {first}' for note, (times, first) in counted.items()]
    if len(skipped) == len(items):
      raise ValueError(f'{self.name}: all {len(items):,} images of split {split!r} are damaged')
    if skipped:
      lines.append(f'damaged and left out: {len(skipped):,} of {len(items):,} images, first {skipped[0]}')
    if self.name in catalog.CATALOG and catalog.CATALOG[self.name].has_copies:
      lines += inventory.duplicate_files(items)
    self.info.metadata['notes'][split] = lines
    self.info.metadata['skipped'][split] = skipped


def _check_usable(root: Path, scanned: Inventory) -> None:
  """Raises ValueError if the folder has problems, no image, or several images with one id."""
  problems = scanned.problems + inventory.duplicate_ids(scanned.items)
  if problems:
    lines = '\n'.join(inventory.shorten(problems))
    raise ValueError(f'{root}: {len(problems):,} problem(s) with the files.\n{lines}')
  if not scanned.items:
    raise ValueError(f'{root}: no image found.\n' + '\n'.join(inventory.shorten(scanned.notes)))
