"""COVID-19 radiography: two releases with different folders, which are two configurations."""

from pathlib import Path

from zsad_jax.data.catalog.entry import image_labels
from zsad_jax.data.inventory import Inventory
from zsad_jax.data.layouts import image_folders

_FIRST, _CURRENT = 'COVID-19 Radiography Database', 'COVID-19_Radiography_Dataset'
_OTHER_CLASSES = ('Viral Pneumonia', 'Lung_Opacity')
_LAYOUTS = {
    # The first release as unpacked, in the folder that AnomalyCLIP's script reads, and without a folder of its own.
    'v2020': [image_labels(f'{top}NORMAL', f'{top}{covid}', 'covid', unused=(*_OTHER_CLASSES, _FIRST, _CURRENT))
              for top in (f'{_FIRST}/', f'{_CURRENT}/', '') for covid in ('COVID-19', 'COVID')],
    'current': [image_labels(f'{top}Normal/images', f'{top}COVID/images', 'covid',
                             unused=(*_OTHER_CLASSES, _FIRST, 'masks'))
                for top in (f'{_CURRENT}/', '')],
}


def scan(root: Path, config: str = 'v2020') -> Inventory:
  """Returns the images of the release that `config` names."""
  return image_folders.scan(root, 'covid19_radiography', _LAYOUTS[config])
