"""The published data sets: classes, object names, counts, licences and mask rules, declared once each.

Counts are of the released archives; `normal` and `anomalous` are those of the test split, as in AnomalyCLIP
(arXiv 2310.18961), Table 6.
"""

from zsad_jax.data.catalog import industrial, medical
from zsad_jax.data.catalog.entry import Category, Entry

__all__ = ['CATALOG', 'Category', 'Entry', 'instructions', 'object_name']

CATALOG = industrial.ENTRIES | medical.ENTRIES


def object_name(category: str) -> str:
  """Returns the readable name of a category no data set has named: underscores become spaces."""
  return category.replace('_', ' ')


def instructions(name: str) -> str:
  """Returns how to get the data set `name` and where to unpack it."""
  entry = CATALOG[name]
  tree = '\n'.join(f'  {line}' for line in entry.tree.splitlines())
  digest = f' (sha256 {entry.sha256})' if entry.sha256 else ''
  return (f'{entry.title} must be downloaded by hand; its licence is {entry.licence}.\n'
          f'1. Get {entry.archive}{digest}\n   from {entry.homepage}.\n'
          f"2. Make a folder '{name}' in the manual folder and unpack the archive inside it: {entry.unpack}\n"
          f'The manual folder then holds\n{tree}')
