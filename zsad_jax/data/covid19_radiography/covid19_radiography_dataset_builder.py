"""COVID-19 radiography (Chowdhury et al., 2020; Rahman et al., 2021): chest X-rays, normal ones and of COVID-19."""

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from zsad_jax.data import builder, catalog, layouts
from zsad_jax.data.layouts import labels
from zsad_jax.data.survey import Survey

_ENTRY = catalog.CATALOG['covid19_radiography']
_FIRST, _CURRENT = 'COVID-19 Radiography Database', 'COVID-19_Radiography_Dataset'
_OTHER = ('Viral Pneumonia', 'Lung_Opacity')
# The first release as unpacked, in the folder that AnomalyCLIP's script reads, and without a folder of its own.
_OF_2020 = [labels(f'{top}NORMAL', f'{top}{covid}', 'covid', unused=(*_OTHER, _FIRST, _CURRENT))
            for top in (f'{_FIRST}/', f'{_CURRENT}/', '') for covid in ('COVID-19', 'COVID')]
_LAYOUTS = {
    'v2020': _OF_2020,
    'current': [labels(f'{top}Normal/images', f'{top}COVID/images', 'covid', unused=(*_OTHER, _FIRST, 'masks'))
                for top in (f'{_CURRENT}/', '')],
}


class Builder(builder.SourceBuilder):
  """tfds builder of COVID-19 radiography, from the unpacked archive of the release that the configuration names."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First version.'}
  BUILDER_CONFIGS: ClassVar = [
      tfds.core.BuilderConfig(name='v2020', description='The first release, with 1341 normal and 219 COVID-19 images.'),
      tfds.core.BuilderConfig(name='current', description='The current release, with 10192 and 3616.')]
  MANUAL_DOWNLOAD_INSTRUCTIONS = catalog.instructions('covid19_radiography')
  MASK_THRESHOLD = _ENTRY.mask_threshold

  @classmethod
  def survey(cls, root: Path, config: str = 'v2020') -> Survey:
    return layouts.walk(root, 'covid19_radiography', _LAYOUTS[config])
