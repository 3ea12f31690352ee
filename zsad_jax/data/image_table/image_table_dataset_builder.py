"""Images of the user's own, anywhere on disk, that a table names and labels."""

from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from zsad_jax.data import builder, table
from zsad_jax.data.survey import Survey


class Builder(builder.SourceBuilder):
  """tfds builder of the images that a table lists; `folder` must be given and is the table's path."""

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First version.'}
  MASK_THRESHOLD = 0

  def __init__(self, *, folder, **kwargs):
    super().__init__(folder=folder, **kwargs)

  @classmethod
  def survey(cls, root: Path) -> Survey:
    return table.walk(root)

  @classmethod
  def listing(cls, root: Path) -> str:
    return table.listing(root)

  def object_names(self) -> dict[str, str]:
    return table.object_names(self._folder)
