"""ISIC 2016 (Gutman et al., 2016): 379 dermoscopic photographs of skin lesions."""

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from zsad_jax.data import builder, catalog, layouts
from zsad_jax.data.layouts import Layout, Part
from zsad_jax.data.survey import Survey

_ENTRY = catalog.CATALOG['isic2016']
_MASKS = 'ISBI2016_ISIC_Part1_Test_GroundTruth'
_SUFFIXES = ('_Segmentation',)
_LAYOUTS = (
    Layout((Part('ISBI2016_ISIC_Part1_Test_Data', 'lesion', _MASKS, _SUFFIXES),),
           ('ISBI2016_ISIC_Part1_Training_Data', 'ISBI2016_ISIC_Part1_Training_GroundTruth')),
    Layout((Part('test/*', 'lesion', _MASKS, _SUFFIXES),), ('train',)),
    Layout((Part('test/*', 'lesion', 'ground_truth/*', (*_SUFFIXES, '', '_mask')),), ('train',)))


class Builder(builder.SourceBuilder):
  """tfds builder of ISIC 2016, from the unpacked archive or what scripts of the field make of it."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First version.'}
  MANUAL_DOWNLOAD_INSTRUCTIONS = catalog.instructions('isic2016')
  MASK_THRESHOLD = _ENTRY.mask_threshold

  @classmethod
  def survey(cls, root: Path) -> Survey:
    return layouts.walk(root, 'isic2016', _LAYOUTS)
