"""Raw folders of published data sets: where they are, and whether their counts are the published ones."""

from collections.abc import Sequence
from pathlib import Path

from zsad_jax.data import catalog, inventory
from zsad_jax.data.inventory import Item


def find(name: str, manual_dir: Path | str) -> Path:
  """Returns the raw folder of the data set `name`: manual_dir/<name> or manual_dir itself.

  The archive's own top folder may be inside either.

  Raises:
    FileNotFoundError: neither holds a marker of the data set (a category folder, if it has no others); the message
      says what is there instead (another letter case, one level too high or too low) and how to get the data.
  """
  manual, entry = Path(manual_dir).expanduser().absolute(), catalog.CATALOG[name]
  known = set(entry.markers or entry.categories)
  for folder in (manual / name, manual):
    for candidate in (folder, *(folder / top for top in entry.tops)):
      if known & _names(candidate):
        return candidate
  example = next(iter(entry.markers or entry.categories))
  raise FileNotFoundError(
      f'{name}: no {"file or folder" if entry.markers else "category folder"} such as {example!r} in '
      f'{manual / name} or in {manual}. '
      f'{_hint(name, manual, known)}\n{catalog.instructions(name)}')


def find_in_own_folder(name: str, manual: Path) -> Path | None:
  """Returns the raw folder of a data set, or of its configuration, inside manual/<name>; None if it is not there."""
  base = name.partition('/')[0]
  try:
    folder = find(base, manual)
  except FileNotFoundError:
    return None
  return folder if folder.is_relative_to(manual / base) else None


def count_differences(name: str, items: Sequence[Item], config: str = '') -> list[str]:
  """Returns a line for each count that differs from the published one, with both numbers.

  Counts are compared per category, or in total if the catalogue is certain of the sums only.

  Args:
    name: the data set.
    items: its images.
    config: its configuration, if it has several.
  """
  lines = []
  for category, expected in catalog.CATALOG[name].published_counts(config).items():
    counts = inventory.counts(item for item in items if category in ('', item.category))
    differing = [(kind, number) for kind, number in zip(('train', 'test normal', 'test anomalous'), expected)
                 if number is not None and counts.get(kind, 0) != number]
    if counts:
      lines += [f'{category or "in total"}: {counts.get(kind, 0):,} {kind} images, published {number:,}'
                for kind, number in differing]
    elif differing:
      published = ', '.join(f'{number:,} {kind}' for kind, number in differing)
      lines.append(f'{category}: no images, published {published}')
  return lines


def _names(folder: Path) -> set[str]:
  return {p.name for p in inventory.visible(folder)}


def _hint(name: str, manual: Path, known: set[str]) -> str:
  """The most likely mistake behind a wrong root."""
  if not manual.is_dir():
    return f'{manual} is not a folder.' if manual.exists() else f'{manual} does not exist.'
  if manual.name in known or known & _names(manual.parent):
    return f'That is one level too low: the data set is {manual.parent}.'
  lower = {n.lower(): n for n in known}
  for folder in (manual / name, manual):
    for child, path in inventory.folders(folder).items():
      if any(known & _names(path / top) for top in ('', *catalog.CATALOG[name].tops)):
        case = f' (another letter case than {name!r})' if child.lower() == name else ''
        return (f'The data set seems to be {path}{case}: move or rename it to {manual / name}, or pass it as the '
                'manual folder.')
    other = sorted(n for n in _names(folder) if n.lower() in lower)
    if other:
      return f'{folder} holds {other[0]!r}, expected {lower[other[0].lower()]!r}: names are case-sensitive.'
  content = ', '.join(inventory.shorten([p.name for p in inventory.visible(manual)]))
  return f'Found there: {content or "nothing"}.'
