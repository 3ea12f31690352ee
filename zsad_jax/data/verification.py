"""Checking a raw data set's folder against what was published, before anything is prepared."""

import contextlib
import functools
from pathlib import Path
from typing import NamedTuple

from tqdm import auto as tqdm

from zsad_jax.data import builder, catalog, images, loading, survey


class Verdict(NamedTuple):
  """What `verify` found.

  Attributes:
    name: the data set's name.
    folder: where it lies, None where it was not found or is drawn by the program.
    problems: one sentence each, empty when the data set is complete and sound.
    counts: {category: {'train' | 'test normal' | 'test anomalous': images}}.
  """
  name: str
  folder: Path | None
  problems: list[str]
  counts: dict[str, dict[str, int]]

  @property
  def ok(self) -> bool:
    return not self.problems

  def __str__(self) -> str:
    found = f'{len(self.problems)} problem(s)' if self.problems else 'complete'
    lines = [f'{self.name}: {found}' + (f', in {self.folder}' if self.folder else '')]
    lines += survey.shorten(self.problems)
    lines += [f'{category}: ' + ', '.join(f'{n} {kind}' for kind, n in kinds.items())
              for category, kinds in self.counts.items()]
    return '\n'.join(lines)


def verify(name: str, manual_dir=None, *, decode: bool = True) -> Verdict:
  """Returns what is wrong with a raw data set: missing, extra or damaged files, counts, masks against labels.

  A data set that the program draws itself has nothing to verify and no problems.

  Args:
    name: any name that `load` takes.
    manual_dir: the folder with the unpacked data set or sets; not for 'folder:'.
    decode: also decode every image and mask; without it only names and counts are compared, in a second.

  Raises:
    ValueError: `name` is unknown, or manual_dir is not given where it is needed.
  """
  builder_class, path = loading.resolve(name)
  if not issubclass(builder_class, builder.SourceBuilder):
    return Verdict(name, None, [], {})
  if path is None and manual_dir is None:
    raise ValueError(f'{name}: manual_dir must name the folder that the archive was unpacked into')
  config = loading.configuration(name, builder_class)
  try:
    root = path or survey.find(builder_class.name, manual_dir)
    found = builder_class.look(root, config)
  except (FileNotFoundError, ValueError) as e:
    return Verdict(name, None, [str(e)], {})
  problems = found.problems + survey.repeated(found.items) + found.notes
  if builder_class.name in catalog.CATALOG:
    problems += survey.compare(builder_class.name, found.items, config)
  if decode:
    problems += _unsound(found.items, builder_class.MASK_THRESHOLD)
  names = dict.fromkeys(item.category for item in found.items)
  counts = {c: survey.counts(i for i in found.items if i.category == c) for c in names}
  return Verdict(name, root, problems, counts)


def _unsound(items, threshold: int) -> list[str]:
  """A line for each image or mask that a builder would refuse or warn about."""
  names = {item.category: '' for item in items}
  read = functools.partial(builder.record, names=names, threshold=threshold, rules=images.DEFAULT_RULES)
  whole = [i for i in items if all(path is None or path.is_file() for path in (i.image, i.mask))]
  lines = []
  with contextlib.closing(builder.ahead(read, whole)) as results:
    for item, future in tqdm.tqdm(results, 'verify', len(whole), unit='image', leave=False):
      try:
        _, notes = future.result()
      except images.BadImage as e:
        lines.append(str(e))
      else:
        lines.extend(f'{item.image}: {note}' for note in notes
                     if note in (builder.EMPTY_MASK, builder.STRAY_MASK))
  return lines
