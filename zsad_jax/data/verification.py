"""Checking a raw data set's folder against what was published, before anything is prepared."""

import collections
import contextlib
import functools
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tqdm import auto as tqdm

from zsad_jax.data import builder, catalog, images, naming, survey

# Kinds of findings, in the order in which they are told.
PLACE, FILES, DAMAGE, COUNTS, ODD = (
    'not found, or not as expected', 'files missing, extra or misplaced', 'images and masks that cannot be used',
    'counts', 'odd')


class Verdict(NamedTuple):
  """What `verify` found.

  Attributes:
    name: the data set's name.
    folder: where it lies, None where it was not found or is drawn by the program.
    findings: {kind: one sentence each}; no kind when the data set is complete and sound.
    counts: {category: {'train' | 'test normal' | 'test anomalous': images}}.
    kinds: {category: {defect type: images}} of the anomalous images.
    masks: {category: anomalous images that have a mask}.
  """
  name: str
  folder: Path | None
  findings: dict[str, list[str]]
  counts: dict[str, dict[str, int]]
  kinds: dict[str, dict[str, int]]
  masks: dict[str, int]

  @property
  def problems(self) -> list[str]:
    """All findings."""
    return [line for lines in self.findings.values() for line in lines]

  @property
  def ok(self) -> bool:
    return not self.findings

  def __str__(self) -> str:
    """The first ten findings of each kind, and what each category holds."""
    found = f'{len(self.problems)} problem(s)' if self.findings else 'complete'
    lines = [f'{self.name}: {found}' + (f', in {self.folder}' if self.folder else '')]
    for kind, problems in self.findings.items():
      lines += [f'  {kind} ({len(problems)}):', *(textwrap.indent(line, '    ') for line in survey.shorten(problems))]
    return '\n'.join(lines + [f'  {category}: {self._described(category)}' for category in self.counts])

  def _described(self, category: str) -> str:
    parts = [f'{n} {kind}' for kind, n in sorted(self.counts[category].items(), reverse=True)]     # train, test normal
    kinds, anomalous = self.kinds[category], sum(self.kinds[category].values())
    if kinds:
      parts.append('defects ' + ' '.join(f'{kind} {n}' for kind, n in kinds.items()))
      parts.append(f'masks {self.masks[category]}' if self.masks[category] == anomalous else
                   f'masks {self.masks[category]} of {anomalous}' if self.masks[category] else 'no masks')
    return ', '.join(parts)


def verify(name: str, manual_dir=None, *, decode: bool = True, rules: images.Rules | None = None) -> Verdict:
  """Returns what is wrong with a raw data set: missing, extra or damaged files, counts, masks against labels.

  A data set that the program draws itself has nothing to verify and no problems.

  Args:
    name: any name that `load` takes.
    manual_dir: the folder with the unpacked data set or sets; not for 'folder:' and 'csv:'.
    decode: also decode every image and mask; without it only names and counts are compared, in a second.
    rules: how image files become pixels; by default `naming.rules` of this data set.

  Raises:
    ValueError: `name` is unknown, or manual_dir is not given where it is needed.
  """
  builder_class, path, options = naming.resolve(name)
  if not issubclass(builder_class, builder.SourceBuilder):
    return _verdict(name, None, {}, ())
  if path is None and manual_dir is None:
    raise ValueError(f'{name}: manual_dir must name the folder that the archive was unpacked into')
  config = naming.configuration(name, builder_class)
  try:
    root = path or survey.find(builder_class.name, manual_dir)
    found = builder_class.look(root, config, **options)
  except (FileNotFoundError, ValueError) as e:
    return _verdict(name, None, {PLACE: [str(e)]}, ())
  published = builder_class.name in catalog.CATALOG
  findings = {
      FILES: found.problems + survey.repeated(found.items),
      DAMAGE: _unsound(found.items, builder_class.MASK_THRESHOLD, rules or naming.rules(name)) if decode else [],
      COUNTS: survey.compare(builder_class.name, found.items, config) if published else [],
      ODD: found.notes}
  return _verdict(name, root, findings, found.items)


def _verdict(name: str, root: Path | None, findings: dict[str, list[str]], items: Iterable[survey.Item]) -> Verdict:
  by_category = collections.defaultdict(list)
  for item in items:
    by_category[item.category].append(item)
  return Verdict(
      name, root, {kind: lines for kind, lines in findings.items() if lines},
      {c: survey.counts(members) for c, members in by_category.items()},
      {c: dict(collections.Counter(i.defect_type for i in members if i.label)) for c, members in by_category.items()},
      {c: sum(bool(i.label) and i.mask is not None for i in members) for c, members in by_category.items()})


def _unsound(items, threshold: int, rules: images.Rules) -> list[str]:
  """A line for each image or mask that a builder would refuse or warn about."""
  names = {item.category: '' for item in items}
  read = functools.partial(builder.record, names=names, threshold=threshold, rules=rules)
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
