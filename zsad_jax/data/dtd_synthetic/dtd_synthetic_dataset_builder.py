"""DTD-Synthetic (Aota et al., WACV 2023): 12 textures with drawn defects, 1304 test images."""

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from zsad_jax.data import builder, catalog, folder
from zsad_jax.data.survey import Survey

_ENTRY = catalog.CATALOG['dtd_synthetic']


class Builder(builder.SourceBuilder):
  """tfds builder of DTD-Synthetic, from the unpacked download."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First version.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = catalog.instructions('dtd_synthetic')
  MASK_THRESHOLD = _ENTRY.mask_threshold

  @classmethod
  def survey(cls, root: Path) -> Survey:
    return folder.walk(root, known=tuple(_ENTRY.categories), masks_required=True)
