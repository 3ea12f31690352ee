"""A folder of the user's own in MVTec layout: one category, or several side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import tensorflow_datasets as tfds

from zsad_jax.data import builder, catalog, folder, survey
from zsad_jax.data.survey import GOOD, Survey


class Builder(builder.SourceBuilder):
  """tfds builder of any folder in MVTec layout; `folder` must be given.

  Normal images are in the folders that `options` names as `normal`, else in those called so.
  """

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First version.'}
  MASK_THRESHOLD = 0

  def __init__(self, *, folder, **kwargs):
    super().__init__(folder=folder, **kwargs)

  @classmethod
  def survey(cls, root: Path, normal: Sequence[str] | None = None) -> Survey:
    names, problems = folder.normal_folders(root) if normal is None else (tuple(normal) or (GOOD,), [])
    inside = {n for path in folder.categories(root).values() for part in ('test', 'train')
              for n in survey.folders(path / part)}
    absent = [n for n in normal or () if n not in inside]
    if absent:
      raise ValueError(f'{root}: no folder {absent[0]!r} in test or train of any category; there are '
                       f'{", ".join(sorted(inside)) or "none"}')
    found = folder.walk(root, normal=names)
    found.problems[:0] = problems
    return found

  def object_names(self) -> dict[str, str]:
    return {name: catalog.object_name(name) for name in folder.categories(self._folder)}
