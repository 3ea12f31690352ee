"""EndoTect 2020, segmentation test (Hicks et al., ICPR 2020): 200 colonoscopy images with polyps."""

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from zsad_jax.data import builder, catalog, layouts
from zsad_jax.data.layouts import Layout, Part, mvtec
from zsad_jax.data.survey import Survey

_ENTRY = catalog.CATALOG['endotect_seg']
_LAYOUTS = (Layout((Part('images', 'polyp', 'masks'),)), mvtec('polyp', masks=True))


class Builder(builder.SourceBuilder):
  """tfds builder of EndoTect's segmentation test, from the unpacked archive or what scripts of the field make of it."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First version.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = catalog.instructions('endotect_seg')
  MASK_THRESHOLD = _ENTRY.mask_threshold

  @classmethod
  def survey(cls, root: Path) -> Survey:
    return layouts.walk(root, 'endotect_seg', _LAYOUTS)
