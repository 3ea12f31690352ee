"""The records that describe a published data set."""

from typing import NamedTuple


class Category(NamedTuple):
  """One class of a data set: its name in prompts, image counts (None = not published), and whether it is a texture."""
  object_name: str
  train: int | None
  normal: int | None
  anomalous: int | None
  texture: bool = False


class Entry(NamedTuple):
  """One published data set.

  Attributes:
    title: the name papers use.
    homepage: where to get it.
    archive, sha256: the archive's file name and digest ('' where none is published).
    unpack: the command that unpacks it inside the data set's folder.
    tree: what the folder then holds.
    licence: of the images.
    mask_threshold: a mask pixel is anomalous when its 8-bit grey value exceeds this.
    categories: {folder name: Category}, in alphabetical order.
    domain: 'industrial', 'medical' or 'infrastructure'.
    masks: 'pixel', 'weak' (generous outlines, so that pixel metrics reward blobs) or 'none' (labels alone).
    markers: names directly inside the raw folder, any of which tells that it is this data set; () = its categories.
    remark: one sentence on what is peculiar about it, for lists.
    tops: folders of the archive that hold all the rest; the data set is found inside them too.
    totals: {configuration, '' where there are none: (train, normal, anomalous)} where only the sums over the categories
      are sure, or where a configuration changes them; the default configuration first.
    transparency: what transparent pixels show by default, a key of `images.TRANSPARENCY`: 'drop' where published
      numbers come from code that drops alpha and files of the set have it.
    contains: other published sets whose images are all in this one.
  """
  title: str
  homepage: str
  archive: str
  sha256: str
  unpack: str
  tree: str
  licence: str
  mask_threshold: int
  categories: dict[str, Category]
  domain: str = 'industrial'
  masks: str = 'pixel'
  markers: tuple[str, ...] = ()
  remark: str = ''
  tops: tuple[str, ...] = ()
  totals: dict[str, tuple[int | None, int, int]] = {}  # noqa: RUF012 (never written)
  transparency: str = 'white'
  contains: tuple[str, ...] = ()

  @property
  def normal(self) -> int:
    """Normal test images."""
    return sum(counts[1] for counts in self.published().values())

  @property
  def anomalous(self) -> int:
    """Anomalous test images."""
    return sum(counts[2] for counts in self.published().values())

  def published(self, config: str = '') -> dict[str, tuple[int | None, ...]]:
    """Returns {category: (train, normal, anomalous)}, or {'': their sums} where only those are sure; None = unknown."""
    if self.totals:
      return {'': self.totals[config or next(iter(self.totals))]}
    return {name: category[1:4] for name, category in self.categories.items()}

  @property
  def metrics(self) -> tuple[str, ...]:
    """Levels at which metrics are defined: 'image' needs both kinds of images, 'pixel' needs masks."""
    return tuple(level for level, here in (('image', self.normal and self.anomalous), ('pixel', self.masks != 'none'))
                 if here)
