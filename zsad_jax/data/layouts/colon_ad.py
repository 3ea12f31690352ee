"""CVC-ColonDB with normal images: the medical fine-tuning set of AnomalyCLIP (arXiv 2310.18961), appendix B."""

from pathlib import Path

from zsad_jax.data import inventory
from zsad_jax.data.catalog import ImageFolders, Part
from zsad_jax.data.inventory import GOOD, Inventory
from zsad_jax.data.layouts import image_folders

_COLON = ('bbps-2-3', 'cecum', 'ileum', 'normal-cecum', 'retroflex-rectum')
_UPPER_TRACT = ('normal-pylorus', 'normal-z-line', 'pylorus', 'retroflex-stomach', 'z-line')
# The paper takes "normal images" without naming classes; these are HyperKvasir's, in both spellings in use.
_NORMAL_CLASSES = {'colon': _COLON, 'tract': (*_COLON, *_UPPER_TRACT)}


def scan(root: Path, config: str = 'colon') -> Inventory:
  """Returns the images of the composed set; `config` selects the classes of EndoTect that count as normal.

  All of it is split 'test', the split that the protocol trains on with every auxiliary data set.
  """
  normal = root / 'normal'
  classes = [name for name in _NORMAL_CLASSES[config] if name in inventory.folders(normal)]
  if inventory.files(normal)[0] or not classes:
    classes = ['']  # the user selected the images: all of the folder is normal
  parts = [Part(f'normal/{name}'.rstrip('/'), GOOD) for name in classes]
  polyps = Part('CVC-ColonDB/images', 'polyp', 'CVC-ColonDB/masks')
  scanned = image_folders.scan(root, 'colon_ad', [ImageFolders((polyps, *parts), _NORMAL_CLASSES['tract'])])
  if all(item.label for item in scanned.items):
    scanned.problems.append(f'{normal}: no normal image in it or in its folders {", ".join(_NORMAL_CLASSES[config])}')
  return scanned
