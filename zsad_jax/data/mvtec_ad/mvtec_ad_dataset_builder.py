"""MVTec AD (Bergmann et al., CVPR 2019): 15 categories, 3629 training and 1725 test images."""

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from zsad_jax.data import builder, catalog, folder
from zsad_jax.data.survey import Survey

_ENTRY = catalog.CATALOG['mvtec_ad']


class Builder(builder.SourceBuilder):
  """tfds builder of MVTec AD, from the unpacked archive."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First version.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = catalog.instructions('mvtec_ad')
  MASK_THRESHOLD = _ENTRY.mask_threshold

  @classmethod
  def survey(cls, root: Path) -> Survey:
    return folder.walk(root, known=tuple(_ENTRY.categories), masks_required=True)
