"""Verifies a raw data set against what was published, before anything is prepared."""

import collections
import contextlib
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tqdm import auto as tqdm

from zsad_jax.data import catalog, dataset_names, images, inventory, published, records, source_builder
from zsad_jax.data.inventory import Item

# Kinds of findings, in the order in which they are printed.
PLACE, FILES, DAMAGE, COUNTS, ODD = (
    'not found, or not as expected', 'files missing, extra or misplaced', 'images and masks that cannot be used',
    'counts', 'odd')


class Verdict(NamedTuple):
  """The result of `verify`.

  Attributes:
    name: the data set's name.
    folder: where it is; None if it was not found or is drawn by the program.
    findings: {kind: one sentence each}; empty if the data set is complete and undamaged.
    counts: {category: {'train' | 'test normal' | 'test anomalous': images}}.
    defect_types: {category: {defect type: images}} of the anomalous images.
    masks: {category: anomalous images that have a mask}.
  """
  name: str
  folder: Path | None
  findings: dict[str, list[str]]
  counts: dict[str, dict[str, int]]
  defect_types: dict[str, dict[str, int]]
  masks: dict[str, int]

  @property
  def problems(self) -> list[str]:
    """All findings."""
    return [line for lines in self.findings.values() for line in lines]

  @property
  def ok(self) -> bool:
    """Whether there are no findings."""
    return not self.findings

  def __str__(self) -> str:
    """The first ten findings of each kind, and what each category holds."""
    result = f'{len(self.problems):,} problem(s)' if self.findings else 'complete'
    lines = [f'{self.name}: {result}' + (f', in {self.folder}' if self.folder else '')]
    for kind, problems in self.findings.items():
      lines += [f'  {kind} ({len(problems):,}):',
                *(textwrap.indent(line, '    ') for line in inventory.shorten(problems))]
    return '\n'.join(lines + [f'  {category}: {self._describe(category)}' for category in self.counts])

  def _describe(self, category: str) -> str:
    parts = [f'{n:,} {kind}' for kind, n in sorted(self.counts[category].items(), reverse=True)]
    defect_types, masks = self.defect_types[category], self.masks[category]
    if defect_types:
      parts.append('defects ' + ' '.join(f'{name} {n:,}' for name, n in defect_types.items()))
      anomalous = sum(defect_types.values())
      parts.append(f'masks {masks:,}' if masks == anomalous else
                   f'masks {masks:,} of {anomalous:,}' if masks else 'no masks')
    return ', '.join(parts)


def verify(name: str, manual_dir: Path | str | None = None, *, decode: bool = True, rules: images.Rules | None = None
           ) -> Verdict:
  """Returns what is wrong with a raw data set: missing, extra or damaged files, counts, masks against labels.

  A data set that the program draws itself has nothing to verify and no problems.

  Args:
    name: any name that `load` accepts.
    manual_dir: the folder with the unpacked data set or sets; not for 'folder:' and 'csv:'.
    decode: also decode every image and mask; without it only names and counts are compared, in a second.
    rules: how image files become pixels; by default `dataset_names.rules` of this data set.

  Raises:
    ValueError: `name` is unknown, or manual_dir is not given although it is needed.
  """
  builder, path, options = dataset_names.resolve(name)
  if not issubclass(builder, source_builder.SourceBuilder):
    return _verdict(name, None, {}, ())
  if path is None and manual_dir is None:
    raise ValueError(f'{name}: pass manual_dir, the folder that the archive was unpacked into')
  config = dataset_names.configuration(name, builder)
  config = {'config': config} if config else {}
  try:
    root = path or published.find(builder.name, manual_dir)
    scanned = builder.scan(root, **config, **options)
  except (FileNotFoundError, ValueError) as e:
    return _verdict(name, None, {PLACE: [str(e)]}, ())
  is_published = builder.name in catalog.CATALOG
  rules = rules or dataset_names.rules(name)
  findings = {
      FILES: scanned.problems + inventory.duplicate_ids(scanned.items),
      DAMAGE: _damages(scanned.items, builder.MASK_THRESHOLD, rules) if decode else [],
      COUNTS: published.count_differences(builder.name, scanned.items, **config) if is_published else [],
      ODD: scanned.notes}
  return _verdict(name, root, findings, scanned.items)


def _verdict(name: str, root: Path | None, findings: dict[str, list[str]], items: Iterable[Item]) -> Verdict:
  by_category = collections.defaultdict(list)
  for item in items:
    by_category[item.category].append(item)
  return Verdict(
      name, root, {kind: lines for kind, lines in findings.items() if lines},
      {c: inventory.counts(members) for c, members in by_category.items()},
      {c: dict(collections.Counter(i.defect_type for i in members if i.label)) for c, members in by_category.items()},
      {c: sum(bool(i.label) and i.mask is not None for i in members) for c, members in by_category.items()})


def _damages(items: Iterable[Item], threshold: int, rules: images.Rules) -> list[str]:
  """A line for each image or mask that a builder would refuse or warn about."""
  names = {item.category: '' for item in items}
  existing = [i for i in items if all(path is None or path.is_file() for path in (i.image, i.mask))]
  lines = []
  readings = source_builder.read_all(existing, names=names, threshold=threshold, rules=rules)
  with contextlib.closing(readings):
    for item, _, notes, error in tqdm.tqdm(readings, 'verify', len(existing), unit='image', leave=False):
      lines += [str(error)] if error else [f'{item.image}: {note}' for note in notes
                                           if note in (records.EMPTY_MASK, records.STRAY_MASK)]
  return lines
