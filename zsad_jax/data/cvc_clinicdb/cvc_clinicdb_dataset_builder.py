"""CVC-ClinicDB (Bernal et al., 2015): 612 colonoscopy frames with polyps."""

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from zsad_jax.data import builder, catalog, layouts
from zsad_jax.data.layouts import Layout, Part, mvtec
from zsad_jax.data.survey import Survey

_ENTRY = catalog.CATALOG['cvc_clinicdb']
_LAYOUTS = (
    Layout((Part('Original', 'polyp', 'Ground Truth'),)),
    Layout((Part('images', 'polyp', 'masks'),)),
    mvtec('polyp', masks=True))


class Builder(builder.SourceBuilder):
  """tfds builder of CVC-ClinicDB, from the unpacked archive or what scripts of the field make of it."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First version.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = catalog.instructions('cvc_clinicdb')
  MASK_THRESHOLD = _ENTRY.mask_threshold

  @classmethod
  def survey(cls, root: Path) -> Survey:
    return layouts.walk(root, 'cvc_clinicdb', _LAYOUTS)
