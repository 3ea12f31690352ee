"""The tfds builder behind every data set that is read from a folder of image files."""

import collections
import contextlib
import functools
import io
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from tqdm import auto as tqdm

from zsad_jax.data import catalog, folder, images, shards, survey
from zsad_jax.data.survey import Item, Survey

EMPTY_MASK = 'anomalous image with an all-zero mask'
STRAY_MASK = 'normal image with a mask that is not zero; zeros are stored'


class SourceBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
  """A builder that copies a surveyed folder into ArrayRecord files, without TensorFlow.

  Every image is decoded in full once, so a damaged file stops the preparation, not an evaluation hours later.
  Order: category, split, defect type, file stem. A subclass states MASK_THRESHOLD and `survey`.

  Args:
    folder: the raw data set; by default the one found in the manual folder.
    rules: how image files become pixels.
    on_bad: 'error', or 'skip' to leave damaged images out; `info.metadata['skipped']` then lists their ids.
    options: further arguments of `survey`, for folders of the user's own.
    file_format: of the prepared records.
    **kwargs: as for any tfds builder, `data_dir` above all.
  """

  MASK_THRESHOLD = 0

  def __init__(self, *, folder=None, rules: images.Rules = images.DEFAULT_RULES, on_bad: str = 'error',
               options: dict | None = None, file_format='array_record', **kwargs):
    images.check_rules(rules)
    if on_bad not in ('error', 'skip'):
      raise ValueError(f"on_bad is {on_bad!r}; it is 'error' or 'skip'")
    self._folder = folder and Path(folder)
    self._rules, self._on_bad, self._options = rules, on_bad, options or {}
    self._shelf = None
    super().__init__(file_format=file_format, **kwargs)

  @classmethod
  def survey(cls, root: Path) -> Survey:
    """Returns what the raw folder holds."""
    raise NotImplementedError

  @classmethod
  def look(cls, root: Path, config: str = '', **options) -> Survey:
    """Returns `survey(root, **options)`, or `survey(root, config)` where the data set has tfds configurations."""
    return cls.survey(root, config) if cls.BUILDER_CONFIGS else cls.survey(root, **options)

  @classmethod
  def listing(cls, root: Path) -> str:
    """Returns the sha256 of what is there: names, sizes and times of its visible files."""
    return survey.listing(root)

  def object_names(self) -> dict[str, str]:
    """Returns {category folder name: readable name} in the order of the class label."""
    return {name: c.object_name for name, c in catalog.CATALOG[self.name].categories.items()}

  def _info(self) -> tfds.core.DatasetInfo:
    names, entry = self.object_names(), catalog.CATALOG.get(self.name)
    metadata = {'object_names': names, 'mask_threshold': self.MASK_THRESHOLD, 'rules': self._rules._asdict(),
                'notes': {}, 'skipped': {}}
    if entry:
      metadata['textures'] = [name for name, c in entry.categories.items() if c.texture]
    return self.dataset_info_from_configs(
        features=folder.features(list(names)), disable_shuffling=True,
        metadata=tfds.core.MetadataDict(metadata), homepage=entry and entry.homepage,
        license=entry and entry.licence)

  @property
  def source(self) -> Path | None:
    """The raw data set, where it was given."""
    return self._folder

  @classmethod
  def remarks(cls, items: Sequence[Item]) -> list[str]:
    """Returns what is odd about the images of one split, for its notes."""
    del items
    return []

  def resume(self, shelf: shards.Shelf) -> None:
    """Lets the next preparation go on from the shards on `shelf`, and leave its own there should it end early.

    They must be of the same files, read by the same rules, and no other process may use them.
    """
    self._shelf = shelf

  def _download_and_prepare(self, dl_manager, download_config=None) -> None:
    root = self._folder or survey.find(self.name, dl_manager.manual_dir)
    self._plan = self._divided(root)
    every = [shard for made in self._plan.values() for shard in made]
    if self._shelf:
      self._shelf.open(root)
      self._shelf.take(every)
    total, done = (sum(len(shard.items) for shard in some)
                   for some in (every, [shard for shard in every if shard.written is not None]))
    if done:
      logging.info('%s: going on with a preparation that was interrupted; %d of %d images are done', self.name, done,
                   total)
    with tqdm.tqdm(desc=self.name, total=total, initial=done, unit='image', leave=False) as self._bar:
      super()._download_and_prepare(dl_manager, download_config)
    for split, made in self._plan.items():
      self._note(split, made)

  def _divided(self, root: Path) -> dict[str, list[shards.Shard]]:
    """{split: its shards}, from what the folder holds."""
    config = self.builder_config.name if self.builder_config else ''
    found = self.look(root, config, **self._options)
    _refuse(root, found)
    differing = survey.compare(self.name, found.items, config) if self.name in catalog.CATALOG else []
    self.info.metadata['notes']['folder'] = survey.shorten(found.notes) + survey.shorten(differing)
    plan = {}
    for split in ('train', 'test'):
      runs = shards.divide(item for item in found.items if item.split == split)
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
    return {split: [functools.partial(self._examples, shard) for shard in made] for split, made in self._plan.items()}

  def _examples(self, shard: shards.Shard) -> Iterator[tuple[str, dict | None]]:
    """(id, record) of the images of a shard; of a finished one only as many, for tfds to count."""
    if shard.written is not None:
      yield from ((item.key, None) for item in shard.items[:shard.written])
      return
    read = functools.partial(record, names=self.object_names(), threshold=self.MASK_THRESHOLD, rules=self._rules)
    # Closed here: left to the garbage collector, the pool of a failed preparation may be joined inside another lock.
    with contextlib.closing(ahead(read, shard.items)) as results:
      for item, future in results:
        self._bar.update()
        try:
          example, notes = future.result()
        except images.BadImage as e:
          if self._on_bad == 'error':
            raise
          logging.warning('%s: skipped %s', self.name, e)
          shard.skipped.append(item.key)
          continue
        for note in notes:
          shard.note(note, item.key)
        yield item.key, example
    shard.check()

  def _note(self, split: str, made: Sequence[shards.Shard]) -> None:
    """Keeps in the metadata what was noticed in the shards of a split."""
    items, seen = [item for shard in made for item in shard.items], {}
    skipped = [key for shard in made for key in shard.skipped]
    for note, (times, first) in itertools.chain(*(shard.seen.items() for shard in made)):
      seen.setdefault(note, [0, first])[0] += times
    lines = [f'{note}: {times} of {len(items)} images, first {first}' for note, (times, first) in seen.items()]
    if len(skipped) == len(items):
      raise ValueError(f'{self.name}: all {len(items)} images of split {split!r} are damaged')
    if skipped:
      lines.append(f'damaged and left out: {len(skipped)} of {len(items)} images, first {skipped[0]}')
    self.info.metadata['notes'][split] = lines + self.remarks(items)
    self.info.metadata['skipped'][split] = skipped


def _refuse(root: Path, found: Survey) -> None:
  """Raises ValueError when the folder has problems, no image, or two images of one id."""
  problems = found.problems + survey.repeated(found.items)
  if problems:
    lines = '\n'.join(survey.shorten(problems))
    raise ValueError(f'{root}: {len(problems)} problem(s) with the files.\n{lines}')
  if not found.items:
    raise ValueError(f'{root}: no image found.\n' + '\n'.join(survey.shorten(found.notes)))


def record(item: Item, *, names: dict[str, str], threshold: int,
           rules: images.Rules) -> tuple[dict, list[str]]:
  """Returns (record of `folder.features`, what is worth a warning) of one item.

  Raises:
    BadImage: the image or its mask cannot be used, or their sizes differ; names the file or both files.
  """
  image = images.encode(item.image, rules)
  notes = [image.note] if image.note else []
  pixels = None
  if item.mask is not None:
    pixels = images.read_mask(item.mask, threshold, rules)
    _check_size(item, image.size, pixels.shape[::-1], rules)
  if item.box is not None:
    image, pixels = _cut(item, image, pixels)
  if pixels is not None and pixels.any() != bool(item.label):
    notes.append(EMPTY_MASK if item.label else STRAY_MASK)
  marked = item.label and pixels is not None
  return folder.example(
      key=item.key, image=image.data,
      mask=images.encode_mask(pixels) if marked else images.empty_mask(image.size),
      has_mask=not item.label or pixels is not None, label=item.label, category=item.category,
      object_name=names[item.category], defect_type=item.defect_type), notes


def _cut(item: Item, image: images.Encoded, mask: np.ndarray | None) -> tuple[images.Encoded, np.ndarray | None]:
  """The item's box of the image, as PNG, grey where it is, and of the bool [h, w] mask."""
  left, top, right, bottom = item.box
  if not (0 <= left < right <= image.size[0] and 0 <= top < bottom <= image.size[1]):
    raise images.BadImage(f'{item.image} is {image.size[0]}x{image.size[1]} pixels and has no part {item.box}')
  tile = images.decode_rgb(image.data, item.image).crop(item.box)
  bands = [band.tobytes() for band in tile.split()]
  tile = tile.getchannel(0) if bands[0] == bands[1] == bands[2] else tile
  data = io.BytesIO()
  tile.save(data, format='PNG')
  return (images.Encoded(data.getvalue(), tile.size, image.note),
          None if mask is None else mask[top:bottom, left:right])


def _check_size(item: Item, image: tuple[int, int], mask: tuple[int, int], rules: images.Rules) -> None:
  if image == mask:
    return
  hint = ''
  if image == mask[::-1]:
    other = 'apply' if rules.exif == 'ignore' else 'ignore'
    hint = f'. If the photo carries an EXIF orientation, the mask may have been drawn for exif={other!r}'
  raise images.BadImage(f'{item.image} is {image[0]}x{image[1]} pixels, '
                        f'but its mask {item.mask} is {mask[0]}x{mask[1]}{hint}')


def ahead(function: Callable, items: Iterable[Item]) -> Iterator[tuple[Item, futures.Future]]:
  """Yields (item, future of function(item)) in order, a few items ahead: Pillow works outside the GIL.

  Whoever may leave early closes it: its threads end then.
  """
  threads = os.cpu_count() or 1
  waiting = collections.deque()
  with futures.ThreadPoolExecutor(threads) as pool:
    try:
      for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) > 2 * threads:
          yield waiting.popleft()
      while waiting:
        yield waiting.popleft()
    finally:
      pool.shutdown(cancel_futures=True)
