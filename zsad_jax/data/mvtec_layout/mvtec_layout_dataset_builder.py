"""A folder of the user's own in MVTec layout: one category, or several side by side."""

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from zsad_jax.data import builder, catalog, folder
from zsad_jax.data.survey import Survey


class Builder(builder.SourceBuilder):
  """tfds builder of any folder in MVTec layout; `folder` must be given."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First version.'}
  MASK_THRESHOLD = 0

  def __init__(self, *, folder, **kwargs):
    super().__init__(folder=folder, **kwargs)

  @classmethod
  def survey(cls, root: Path) -> Survey:
    return folder.walk(root)

  def object_names(self) -> dict[str, str]:
    return {name: catalog.object_name(name) for name in folder.categories(self._folder)}
