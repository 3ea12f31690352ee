"""Catalogue of the published data sets: classes, object names, counts, licences, layouts and mask rules.

Counts are those of the released archives; `normal` and `anomalous` count the test split, as in AnomalyCLIP
(arXiv 2310.18961), Table 6.
"""

import functools
import re
from importlib import resources

from zsad_jax.data.catalog import industrial, medical_labels, medical_masks
from zsad_jax.data.catalog.entry import Category, Entry, ImageFolders, MvtecFolders, Part

__all__ = ['CATALOG', 'Category', 'Entry', 'ImageFolders', 'MvtecFolders', 'Part', 'citation', 'instructions',
           'object_name']

CATALOG: dict[str, Entry] = industrial.ENTRIES | medical_masks.ENTRIES | medical_labels.ENTRIES


def object_name(category: str) -> str:
  """Returns the readable name of a category that no data set names: underscores become spaces."""
  return category.replace('_', ' ')


def citation(name: str) -> str:
  """Returns the BibTeX entries of the data set `name`."""
  return '\n\n'.join(_bibliography()[key] for key in CATALOG[name].citations)


def instructions(name: str) -> str:
  """Returns how to get the data set `name` and where to unpack it."""
  entry = CATALOG[name]
  tree = '\n'.join(f'  {line}' for line in entry.tree.splitlines())
  digest = f' (sha256 {entry.sha256})' if entry.sha256 else ''
  return (f'{entry.title} must be downloaded by hand; its licence is {entry.licence}.\n'
          f'1. Get {entry.archive}{digest}\n   from {entry.homepage}.\n'
          f"2. Create a folder '{name}' in the manual folder and unpack the archive inside it: {entry.unpack}\n"
          f'The manual folder then holds\n{tree}')


@functools.cache
def _bibliography() -> dict[str, str]:
  """{key: BibTeX entry} of citations.bib."""
  text = (resources.files(__name__) / 'citations.bib').read_text(encoding='utf-8')
  return {re.match(r'@\w+\{([^,]+),', entry)[1]: entry for entry in re.split(r'\n\n(?=@)', text.strip())}
