"""The tfds builders: one for each published data set, generated from the catalogue, and those of images of your own."""

import functools
from collections.abc import Callable
from pathlib import Path

import tensorflow_datasets as tfds

from zsad_jax.data import catalog
from zsad_jax.data.catalog import MvtecFolders
from zsad_jax.data.inventory import Inventory
from zsad_jax.data.layouts import (
  colon_ad,
  covid19_radiography,
  dagm2007,
  head_ct,
  image_folders,
  image_table,
  kolektor_sdd,
  mvtec,
  plain_folders,
  sewer_ml,
  visa,
)
from zsad_jax.data.source_builder import SourceBuilder

# Published data sets whose entry states no layout, since theirs takes code: scan(root), or scan(root, config).
SCANS: dict[str, Callable[..., Inventory]] = {
    'visa': visa.scan, 'kolektor_sdd': kolektor_sdd.scan, 'dagm2007': dagm2007.scan, 'head_ct': head_ct.scan,
    'colon_ad': colon_ad.scan, 'covid19_radiography': covid19_radiography.scan, 'sewer_ml': sewer_ml.scan}


class PublishedBuilder(SourceBuilder, skip_registration=True):
  """A builder of the data set of the catalogue that has its `name`."""

  @classmethod
  def scan(cls, root: Path, **options) -> Inventory:
    entry = catalog.CATALOG[cls.name]
    if entry.layout is None:
      return SCANS[cls.name](root, **options)
    if isinstance(entry.layout, MvtecFolders):
      return mvtec.scan(root, known=tuple(entry.categories), masks_required=True, normal=entry.layout.normal,
                        suffixes=entry.layout.suffixes)
    return image_folders.scan(root, cls.name, entry.layout)


@functools.cache
def published(name: str) -> type[PublishedBuilder]:
  """Returns the builder class of a data set of the catalogue."""
  entry = catalog.CATALOG[name]
  attributes = {
      '__doc__': f'tfds builder of {entry.title}. {entry.summary}', '__module__': __name__, 'name': name,
      'MASK_THRESHOLD': entry.mask_threshold, 'MANUAL_DOWNLOAD_INSTRUCTIONS': catalog.instructions(name),
      'BUILDER_CONFIGS': [tfds.core.BuilderConfig(name=config, description=description)
                          for config, description in entry.configs.items()]}
  class_name = f'{name.title().replace("_", "")}Builder'
  return type(PublishedBuilder)(class_name, (PublishedBuilder,), attributes, skip_registration=True)


class MvtecLayout(SourceBuilder, skip_registration=True):
  """A builder of a folder of your own in MVTec layout: one category, or several next to each other.

  Normal images are in the folders that `options` names as `normal`, or else in those with such a name.
  """

  scan = staticmethod(mvtec.scan_own)

  def object_names(self) -> dict[str, str]:
    return {name: catalog.object_name(name) for name in mvtec.categories(self.source)}


class PlainFolders(SourceBuilder, skip_registration=True):
  """A builder of plain folders of your own.

  `options` may name the folders of normal, abnormal and masks, a tuple each; the others are recognised by their names.
  """

  scan = staticmethod(plain_folders.scan)

  def object_names(self) -> dict[str, str]:
    return {self.source.name: catalog.object_name(self.source.name)}


class ImageTable(SourceBuilder, skip_registration=True):
  """A builder of the images that a table of your own lists; `folder` is the path of the table."""

  scan = staticmethod(image_table.scan)
  source_digest = staticmethod(image_table.listing_digest)

  def object_names(self) -> dict[str, str]:
    return image_table.object_names(self.source)
