"""Br35H (Hamada, 2020): 3000 brain MRI slices, half of them with a tumour."""

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from zsad_jax.data import builder, catalog, layouts
from zsad_jax.data.layouts import labels, mvtec
from zsad_jax.data.survey import Survey

_ENTRY = catalog.CATALOG['br35h']
_LAYOUTS = (
    labels('no', 'yes', 'tumour', unused=('pred', 'Br35H-Mask-RCNN')),
    mvtec('tumour', masks=False))


class Builder(builder.SourceBuilder):
  """tfds builder of Br35H, from the unpacked archive or what scripts of the field make of it."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First version.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = catalog.instructions('br35h')
  MASK_THRESHOLD = _ENTRY.mask_threshold

  @classmethod
  def survey(cls, root: Path) -> Survey:
    return layouts.walk(root, 'br35h', _LAYOUTS)
