"""CVC-ColonDB with normal images: the medical fine-tuning set of AnomalyCLIP (arXiv 2310.18961), appendix B."""

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from zsad_jax.data import builder, catalog, layouts, survey
from zsad_jax.data.layouts import Layout, Part
from zsad_jax.data.survey import GOOD, Survey

_ENTRY = catalog.CATALOG['colon_ad']
_COLON = ('bbps-2-3', 'cecum', 'ileum', 'normal-cecum', 'retroflex-rectum')
_UPPER = ('normal-pylorus', 'normal-z-line', 'pylorus', 'retroflex-stomach', 'z-line')
# The paper takes "normal images" without naming classes; these are HyperKvasir's, under both spellings in use.
NORMAL_CLASSES = {'colon': _COLON, 'tract': (*_COLON, *_UPPER)}


class Builder(builder.SourceBuilder):
  """tfds builder of the composed set; the configuration says which classes of EndoTect count as normal.

  All of it is split 'test', the split that the protocol trains on with every auxiliary set.
  """

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First version.'}
  BUILDER_CONFIGS: ClassVar = [
      tfds.core.BuilderConfig(name=name, description=f'Normal images are of the classes {", ".join(classes)}.')
      for name, classes in NORMAL_CLASSES.items()]
  MANUAL_DOWNLOAD_INSTRUCTIONS = catalog.instructions('colon_ad')
  MASK_THRESHOLD = _ENTRY.mask_threshold

  @classmethod
  def survey(cls, root: Path, config: str = 'colon') -> Survey:
    normal = root / 'normal'
    classes = [name for name in NORMAL_CLASSES[config] if name in survey.folders(normal)]
    if survey.files(normal)[0] or not classes:
      classes = ['']                # sorted by the user: all of the folder is normal
    parts = [Part(f'normal/{name}'.rstrip('/'), GOOD) for name in classes]
    polyps = Part('CVC-ColonDB/images', 'polyp', 'CVC-ColonDB/masks')
    found = layouts.walk(root, 'colon_ad', [Layout((polyps, *parts), (*_COLON, *_UPPER))])
    if all(item.label for item in found.items):
      found.problems.append(f'{normal}: no normal image in it or in its folders {", ".join(NORMAL_CLASSES[config])}')
    return found
