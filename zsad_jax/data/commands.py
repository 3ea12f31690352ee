"""The commands of --mode=datasets: list the data sets, verify their raw folders, prepare them."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from zsad_jax.data import catalog, dataset_names, images, loading, preparation, published
from zsad_jax.data.catalog import Entry
from zsad_jax.data.dataset import Dataset, index_file
from zsad_jax.data.verification import verify as verify_dataset

ACTIONS = ('list', 'verify', 'prepare')
_COLUMNS = ('name', 'title', 'domain', 'classes', 'normal', 'anomalous', 'masks', 'metrics', 'raw', 'prepared',
            'licence')
_NUMBERS = ('classes', 'normal', 'anomalous')

Line = tuple[str, bool]  # text to print, and whether all is well


class Place(NamedTuple):
  """Where data sets are and how their files are read.

  Attributes:
    root: folder of prepared data sets.
    manual_dir: where archives were unpacked; None = root/downloads/manual.
    exif, transparency: as for `dataset_names.rules`.
  """
  root: Path
  manual_dir: Path | None = None
  exif: str = 'ignore'
  transparency: str = 'default'

  @property
  def manual(self) -> Path:
    """The folder of unpacked archives."""
    return Path(self.manual_dir).expanduser().absolute() if self.manual_dir else loading.default_manual_dir(self.root)

  def rules(self, name: str) -> images.Rules:
    """Returns the rules for the files of the data set `name`."""
    return dataset_names.rules(name, self.exif, self.transparency)


def run(words: Sequence[str], place: Place, *, names: Sequence[str] = (), decode: bool = True) -> Iterator[Line]:
  """Yields the lines of a command: list, verify or prepare, and names of data sets.

  Args:
    words: the command, as typed: one of ACTIONS, then names as `load` accepts them.
    place: where data sets are.
    names: data sets for a command that names none; () = the published ones whose raw folder exists.
    decode: for verify, also decode every image and mask.

  Raises:
    ValueError: no such action, or names that it does not take; lists what it does.
  """
  action, *arguments = words or ('',)
  if action not in ACTIONS:
    raise ValueError(f'{f"no command {action!r}" if action else "no command"}; use {", ".join(ACTIONS[:-1])} or '
                     f'{ACTIONS[-1]}, the last two with names of data sets, for example: verify mvtec_ad')
  if action == 'list':
    if arguments:
      raise ValueError(f'list takes no name, since it shows all; to check {arguments[0]!r}: verify {arguments[0]}')
    return iter([(table(place), True)])
  names = list(dict.fromkeys(arguments or names)) or [
      name for name in catalog.CATALOG if published.find_in_own_folder(name, place.manual)]
  if not names:
    raise ValueError(f'{action}: no data set is named, and none is in {_described(place.manual)}; name data sets or '
                     'another --manual_dir')
  return verify(names, place, decode) if action == 'verify' else prepare(names, place)


def table(place: Place) -> str:
  """Returns a table of the published data sets, and whether each is unpacked and prepared."""
  rows = [_COLUMNS]
  for name, entry in catalog.CATALOG.items():
    for config in entry.totals or ('',):
      is_default = config == next(iter(entry.totals), '')
      rows.append(_row(name if is_default else f'{name}/{config}', entry, config, place))
  widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
  lines = ['  '.join(cell.rjust(width) if column in _NUMBERS else cell.ljust(width)
                     for column, cell, width in zip(_COLUMNS, row, widths)).rstrip() for row in rows]
  procedural = [name for name in dataset_names.names() if name not in catalog.CATALOG and name not in dataset_names.OWN]
  return '\n'.join([
      *lines, '', 'normal and anomalous: published test images.',
      f'raw: whether a folder of this name is unpacked in {_described(place.manual)}.',
      f'prepared: in {_described(Path(place.root).expanduser().absolute())}; interrupted = prepare resumes it; '
      'outdated = made from files or rules that have changed since.',
      f'Drawn by the program: {", ".join(procedural)}. Your own images: {" or ".join(dataset_names.OWN)}.'])


def _described(folder: Path) -> str:
  """The path of a folder, and a remark if there is no such folder."""
  return f'{folder}' if folder.is_dir() else (
      f'{folder} ({"is not a folder" if folder.exists() else "does not exist"})')


def _row(name: str, entry: Entry, config: str, place: Place) -> tuple[str, ...]:
  counts = list(entry.published_counts(config).values())
  normal, anomalous = (sum(c[i] for c in counts) for i in (1, 2))
  return (name, entry.title, entry.domain, str(len(entry.categories)), f'{normal:,}', f'{anomalous:,}', entry.masks,
          '+'.join(entry.metrics), 'yes' if published.find_in_own_folder(name, place.manual) else '-',
          _prepared(name, place), entry.licence)


def _prepared(name: str, place: Place) -> str:
  """Whether a published data set is prepared: yes, outdated, interrupted or -."""
  builder = dataset_names.resolve(name).builder
  config = dataset_names.configuration(name, builder)
  root = Path(place.root).expanduser().absolute()
  copies = preparation.copies(root, builder, config)
  source, rules = published.find_in_own_folder(name, place.manual), place.rules(name)
  if source is None:
    is_current = any(preparation.rules_of_copy(copy) == rules for copy in copies)
  else:
    copy = root / loading.copy_name(builder, source, rules) / preparation.subfolder(builder, config)
    is_current = copy in copies
    if not is_current and preparation.is_interrupted(copy):
      return 'interrupted'
  return 'yes' if is_current else 'outdated' if copies else '-'


def verify(names: Sequence[str], place: Place, decode: bool = True) -> Iterator[Line]:
  """Yields the verdict on each data set; an unknown name does not keep the others from being verified."""
  for name in names:
    yield _try(name, _verify, name, place, decode)


def _verify(name: str, place: Place, decode: bool) -> Line:
  verdict = verify_dataset(name, place.manual, decode=decode, rules=place.rules(name))
  return str(verdict), verdict.ok


def prepare(names: Sequence[str], place: Place) -> Iterator[Line]:
  """Prepares data sets one by one and yields a line on each, and on all if there are several.

  Data sets that are prepared are skipped, and interrupted preparations resume. One that fails does not stop the others.
  """
  results = {'prepared': [], 'prepared already': [], 'failed': []}
  for name in names:
    new = []
    text, good = _try(name, _prepare, name, place, new)
    results['failed' if not good else 'prepared' if new else 'prepared already'].append(name)
    yield text, good
  if len(names) > 1:
    summary = '; '.join(f'{result}: {", ".join(members)}' for result, members in results.items() if members)
    yield summary, not results['failed']


def _prepare(name: str, place: Place, new: list[str]) -> Line:
  """The line on one data set; appends its name to `new` if it was not prepared before."""
  start = time.monotonic()
  builder = loading.locate(name, root=place.root, manual_dir=place.manual_dir, rules=place.rules(name))
  if preparation.ensure(builder):
    new.append(name)
  for split in builder.info.splits:
    if new or not index_file(builder, split).is_file():
      Dataset(builder, split, name=name)  # writes the index next to the records, and warns about oddities
  sizes = ', '.join(f'{split} {s.num_examples:,}' for split, s in builder.info.splits.items())
  duration = f' in {time.monotonic() - start:.0f} s' if new else ' already'
  return f'{name}: prepared{duration} ({sizes} images), {builder.data_dir}', True


def _try(name: str, action: Callable[..., Line], *args) -> Line:
  """Returns action(*args), or a line on what is wrong with the name or the files of this data set."""
  try:
    return action(*args)
  except (ValueError, OSError, RuntimeError) as e:
    return f'{name}: failed: {e}', False
