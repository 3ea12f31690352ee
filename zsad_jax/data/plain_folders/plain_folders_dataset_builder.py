"""Folders of the user's own: one of normal images, others of anomalous ones, perhaps one of masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from zsad_jax.data import builder, catalog, plain
from zsad_jax.data.survey import Survey


class Builder(builder.SourceBuilder):
  """tfds builder of plain folders; `folder` must be given.

  `options` may name the folders: normal, abnormal, masks, a tuple each; those it does not name tell by their own names.
  """

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First version.'}
  MASK_THRESHOLD = 0

  def __init__(self, *, folder, **kwargs):
    super().__init__(folder=folder, **kwargs)

  @classmethod
  def survey(cls, root: Path, normal: Sequence[str] | None = None, abnormal: Sequence[str] | None = None,
             masks: Sequence[str] | None = None) -> Survey:
    return plain.walk(root, normal, abnormal, masks)

  def object_names(self) -> dict[str, str]:
    return {self._folder.name: catalog.object_name(self._folder.name)}
