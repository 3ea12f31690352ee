"""BrainMRI (Chakrabarty, 2019): 253 brain MRI slices, 155 of them with a tumour."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from zsad_jax.data import builder, catalog, layouts
from zsad_jax.data.layouts import labels, mvtec
from zsad_jax.data.survey import Item, Survey

_ENTRY = catalog.CATALOG['brain_mri']
_LAYOUTS = (
    labels('no', 'yes', 'tumour', unused=('brain_tumor_dataset',)),      # the archive holds both folders twice
    mvtec('tumour', masks=False))


class Builder(builder.SourceBuilder):
  """tfds builder of BrainMRI, from the unpacked archive or what scripts of the field make of it.

  Files that repeat another stay in, as in published numbers; a note counts them.
  """

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First version.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = catalog.instructions('brain_mri')
  MASK_THRESHOLD = _ENTRY.mask_threshold

  @classmethod
  def survey(cls, root: Path) -> Survey:
    return layouts.walk(root, 'brain_mri', _LAYOUTS)

  @classmethod
  def remarks(cls, items: Sequence[Item]) -> list[str]:
    return layouts.copies(items)
