"""The data sets as a command shows them: which there are, what is wrong with them, and their preparation."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from zsad_jax.data import catalog, images, loading, naming, preparation, survey
from zsad_jax.data.catalog import Entry
from zsad_jax.data.dataset import Dataset, index_file
from zsad_jax.data.verification import verify as verify_set

ACTIONS = ('list', 'verify', 'prepare')
_COLUMNS = ('name', 'title', 'domain', 'classes', 'normal', 'anomalous', 'masks', 'metrics', 'raw', 'prepared',
            'licence')


class Place(NamedTuple):
  """Where data sets are and how their files are read.

  Attributes:
    root: folder of prepared data sets.
    manual_dir: where archives were unpacked; None = root/downloads/manual.
    exif, transparency: as for `naming.rules`.
  """
  root: Path
  manual_dir: Path | None = None
  exif: str = 'ignore'
  transparency: str = 'default'

  @property
  def manual(self) -> Path:
    return Path(self.manual_dir).expanduser().absolute() if self.manual_dir else loading.manual(self.root)

  def rules(self, name: str) -> images.Rules:
    """The rules for the files of the data set `name`."""
    return naming.rules(name, self.exif, self.transparency)


def run(words: Sequence[str], place: Place, *, names: Sequence[str] = (), decode: bool = True
        ) -> Iterator[tuple[str, bool]]:
  """Yields (text to print, whether all is well) for a command: list, verify or prepare, and names of data sets.

  Args:
    words: the command, as typed: an action of ACTIONS, then names as `load` takes them.
    place: where data sets are.
    names: data sets for a command that names none; () = the published ones whose raw folder is here.
    decode: for verify, also decode every image and mask.

  Raises:
    ValueError: no such action, or names where none belong; says what there is.
  """
  action, *given = words or ('',)
  if action not in ACTIONS:
    raise ValueError(f'{f"no command {action!r}" if action else "no command"}; say {", ".join(ACTIONS[:-1])} or '
                     f'{ACTIONS[-1]}, the last two with names of data sets, such as: verify mvtec_ad')
  if action == 'list':
    if given:
      raise ValueError(f'list takes no name, as it shows all; to see what {given[0]!r} lacks: verify {given[0]}')
    return iter([(table(place), True)])
  chosen = list(dict.fromkeys(given or names)) or [n for n in catalog.CATALOG if raw_folder(n, place.manual)]
  if not chosen:
    raise ValueError(f'{action}: no data set is named, and none is in {_shown(place.manual)}; name some, or another '
                     '--manual_dir')
  return verify(chosen, place, decode) if action == 'verify' else prepare(chosen, place)


def table(place: Place) -> str:
  """Returns the published data sets as a table, with what of them is here."""
  rows = [_COLUMNS]
  for name, entry in catalog.CATALOG.items():
    for config in entry.totals or ('',):
      default = config == next(iter(entry.totals), '')
      rows.append(_row(name if default else f'{name}/{config}', entry, config, place))
  widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
  right = ('classes', 'normal', 'anomalous')
  lines = ['  '.join(cell.rjust(w) if column in right else cell.ljust(w)
                     for column, cell, w in zip(_COLUMNS, row, widths)).rstrip() for row in rows]
  drawn = [n for n in naming.names() if n not in catalog.CATALOG and n not in naming.OWN]
  return '\n'.join([
      *lines, '', 'normal and anomalous: published test images.',
      f'raw: whether it is unpacked, into a folder of its name, in {_shown(place.manual)}.',
      f'prepared: in {_shown(Path(place.root).expanduser().absolute())}; begun = interrupted, prepare goes on from '
      'there; older = from files or rules that have changed since.',
      f'Drawn by the program: {", ".join(drawn)}. Your own images: {" or ".join(naming.OWN)}.'])


def _shown(folder: Path) -> str:
  """The path of a folder, and a word if it is not there."""
  return f'{folder}' if folder.is_dir() else f'{folder} ({"no folder" if folder.exists() else "does not exist"})'


def _row(name: str, entry: Entry, config: str, place: Place) -> tuple[str, ...]:
  counts = list(entry.published(config).values())
  return (name, entry.title, entry.domain, str(len(entry.categories)), str(sum(c[1] for c in counts)),
          str(sum(c[2] for c in counts)), entry.masks, '+'.join(entry.metrics),
          'yes' if raw_folder(name, place.manual) else '-', _prepared(name, place), entry.licence)


def raw_folder(name: str, manual: Path) -> Path | None:
  """Returns the raw folder of a published data set inside manual/<name>, None where there is none."""
  base = name.partition('/')[0]
  try:
    found = survey.find(base, manual)
  except FileNotFoundError:
    return None
  return found if found.is_relative_to(manual / base) else None


def _prepared(name: str, place: Place) -> str:
  builder_class = naming.resolve(name).builder
  config = naming.configuration(name, builder_class)
  root = Path(place.root).expanduser().absolute()
  copies = preparation.copies(root, builder_class, config)
  source, rules = raw_folder(name, place.manual), place.rules(name)
  if source is None:
    current = [copy for copy in copies if preparation.rules_of_copy(copy) == rules]
  else:
    copy = root / loading.key(builder_class, source, rules) / preparation.inside(builder_class, config)
    if preparation.begun(copy) and copy not in copies:
      return 'begun'
    current = {copy} & {*copies}
  return 'yes' if current else 'older' if copies else '-'


def verify(names: Sequence[str], place: Place, decode: bool = True) -> Iterator[tuple[str, bool]]:
  """Yields (verdict, whether it is good) of each data set; a name that is none does not keep the others from it."""
  for name in names:
    yield _guarded(name, _verdict, name, place, decode)


def _verdict(name: str, place: Place, decode: bool) -> tuple[str, bool]:
  verdict = verify_set(name, place.manual, decode=decode, rules=place.rules(name))
  return str(verdict), verdict.ok


def prepare(names: Sequence[str], place: Place) -> Iterator[tuple[str, bool]]:
  """Prepares data sets one by one and yields a line on each, then one on all.

  What is prepared already is passed over, and a preparation that was interrupted goes on where it was. One that fails
  does not stop the others.
  """
  told = {'prepared': [], 'prepared already': [], 'failed': []}
  for name in names:
    made = []
    text, good = _guarded(name, _prepare, name, place, made)
    told['failed' if not good else 'prepared' if made else 'prepared already'].append(name)
    yield text, good
  if len(names) > 1:
    yield '; '.join(f'{word}: {", ".join(found)}' for word, found in told.items() if found), not told['failed']


def _prepare(name: str, place: Place, made: list[str]) -> tuple[str, bool]:
  """The line on one data set; appends its name to `made` where it was not prepared before."""
  start = time.monotonic()
  made_from = loading.locate(name, root=place.root, manual_dir=place.manual_dir, rules=place.rules(name))
  if preparation.ensure(made_from):
    made.append(name)
  for split in made_from.info.splits:
    if made or not index_file(made_from, split).is_file():
      Dataset(made_from, split, name=name)             # writes the index beside the records, and warns of what is odd
  sizes = ', '.join(f'{split} {s.num_examples}' for split, s in made_from.info.splits.items())
  took = f' in {time.monotonic() - start:.0f} s' if made else ' already'
  return f'{name}: prepared{took} ({sizes} images), {made_from.data_dir}', True


def _guarded(name: str, action: Callable[..., tuple[str, bool]], *args) -> tuple[str, bool]:
  """What `action(*args)` returns, or what is wrong with the name or the files of this data set."""
  try:
    return action(*args)
  except (ValueError, OSError, RuntimeError) as e:
    return f'{name}: failed: {e}', False
