"""BTAD (Mishra et al., ISIE 2021): 3 unnamed products, 1799 training and 741 test images."""

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from zsad_jax.data import builder, catalog, folder
from zsad_jax.data.survey import Survey

_ENTRY = catalog.CATALOG['btad']


class Builder(builder.SourceBuilder):
  """tfds builder of BTAD, from the unpacked archive."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First version.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = catalog.instructions('btad')
  MASK_THRESHOLD = _ENTRY.mask_threshold

  @classmethod
  def survey(cls, root: Path) -> Survey:
    return folder.walk(root, known=tuple(_ENTRY.categories), masks_required=True, normal=('ok', 'good'))
