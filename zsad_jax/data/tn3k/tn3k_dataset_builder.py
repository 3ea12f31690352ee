"""TN3K (Gong et al., 2021, 2023): 614 ultrasound test images of thyroid nodules."""

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from zsad_jax.data import builder, catalog, layouts
from zsad_jax.data.layouts import Layout, Part, mvtec
from zsad_jax.data.survey import Survey

_ENTRY = catalog.CATALOG['tn3k']
_LAYOUTS = (
    Layout((Part('test-image', 'nodule', 'test-mask'),), ('trainval-image', 'trainval-mask')),
    mvtec('nodule', masks=True))


class Builder(builder.SourceBuilder):
  """tfds builder of TN3K, from the unpacked archive or what scripts of the field make of it."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First version.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = catalog.instructions('tn3k')
  MASK_THRESHOLD = _ENTRY.mask_threshold

  @classmethod
  def survey(cls, root: Path) -> Survey:
    return layouts.walk(root, 'tn3k', _LAYOUTS)
