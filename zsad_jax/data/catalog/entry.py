"""Records that describe a published data set: its facts, its counts and the layout of its files."""

from typing import NamedTuple

NOT_STATED = 'not stated (look at its page before you use it)'  # a licence


class Category(NamedTuple):
  """One class of a data set: its name in prompts, image counts (None: not published), and whether it is a texture."""
  object_name: str
  train: int | None
  normal: int | None
  anomalous: int | None
  texture: bool = False


class MvtecFolders(NamedTuple):
  """MVTec AD's layout, <category>/{train,test,ground_truth}/<defect>/; `layouts.mvtec` reads it.

  Attributes:
    normal: folders of normal images.
    suffixes: what a mask's stem may add to the stem of its image.
  """
  normal: tuple[str, ...] = ('good',)
  suffixes: tuple[str, ...] = ('_mask', '')


class Part(NamedTuple):
  """One folder of test images that all have the same label; paths are relative to the raw folder, with '/'.

  Attributes:
    folder: where the images are; a final '*' stands for every folder there except 'good'.
    defect_type: 'good' for normal images.
    masks: where their masks are, '' for none; '*' stands for the same name as in `folder`.
    suffixes: what a mask's stem may add to the stem of its image.
  """
  folder: str
  defect_type: str
  masks: str = ''
  suffixes: tuple[str, ...] = ('', '_mask')


class ImageFolders(NamedTuple):
  """A layout of a few image folders, one label each: its parts, and folders of the archive that are not used."""
  parts: tuple[Part, ...]
  unused: tuple[str, ...] = ()


def image_labels(normal: str, anomalous: str, defect_type: str, unused: tuple[str, ...] = ()) -> ImageFolders:
  """Returns the layout of a data set without masks: one folder of normal images and one of anomalous images."""
  return ImageFolders((Part(normal, 'good'), Part(anomalous, defect_type)), unused)


def converted(defect_type: str, *, masks: bool) -> ImageFolders:
  """Returns the layout that the papers' conversion scripts write: MVTec AD's folders for one category.

  Data sets with masks have no normal images, so their layout has no `test/good`.
  """
  if masks:
    return ImageFolders((Part('test/*', defect_type, 'ground_truth/*'),), ('train',))
  return image_labels('test/good', 'test/*', defect_type, ('train',))


class Entry(NamedTuple):
  """One published data set.

  Attributes:
    title: the name that papers use.
    summary: one sentence with the paper and the size.
    description: what to know before using its numbers.
    citations: keys of its papers in citations.bib.
    homepage: where to get it.
    archive, sha256: the archive's file name and digest ('' if none is published).
    unpack: the command that unpacks it inside the data set's folder.
    tree: what the folder then holds.
    licence: of the images.
    mask_threshold: a mask pixel is anomalous if its 8-bit grey value exceeds this.
    categories: {folder name: Category}, in alphabetical order.
    layout: how its files lie; of several image-folder layouts the fullest is read. None: `layouts.<name>` reads it.
    domain: 'industrial', 'medical' or 'infrastructure'.
    masks: 'pixel', 'weak' (generous outlines, so pixel metrics reward blobs) or 'none' (labels alone).
    markers: names directly inside the raw folder that identify the data set; () = its categories.
    tops: folders of the archive that hold everything else; the data set is found inside them too.
    configs: {configuration: one sentence}, the default first; {} if there is only one variant.
    totals: {configuration, or '': (train, normal, anomalous)} if only the sums over the categories are certain or a
      configuration changes them; the default first.
    transparency: what transparent pixels show by default, a key of `images.TRANSPARENCY`: 'drop' if published numbers
      come from code that drops alpha and files of the data set have it.
    contains: other published data sets whose images are all part of this one.
    has_copies: whether a note counts files that repeat another byte for byte.
  """
  title: str
  summary: str
  description: str
  citations: tuple[str, ...]
  homepage: str
  archive: str
  unpack: str
  tree: str
  licence: str
  categories: dict[str, Category]
  layout: MvtecFolders | tuple[ImageFolders, ...] | None
  sha256: str = ''
  mask_threshold: int = 0
  domain: str = 'industrial'
  masks: str = 'pixel'
  markers: tuple[str, ...] = ()
  tops: tuple[str, ...] = ()
  configs: dict[str, str] = {}  # noqa: RUF012 (never written)
  totals: dict[str, tuple[int | None, int, int]] = {}  # noqa: RUF012 (never written)
  transparency: str = 'white'
  contains: tuple[str, ...] = ()
  has_copies: bool = False

  @property
  def normal(self) -> int:
    """Normal test images."""
    return sum(counts[1] for counts in self.published_counts().values())

  @property
  def anomalous(self) -> int:
    """Anomalous test images."""
    return sum(counts[2] for counts in self.published_counts().values())

  def published_counts(self, config: str = '') -> dict[str, tuple[int | None, ...]]:
    """Returns {category: (train, normal, anomalous)}, or {'': sums} if only those are certain; None = unknown."""
    if self.totals:
      return {'': self.totals[config or next(iter(self.totals))]}
    return {name: category[1:4] for name, category in self.categories.items()}

  @property
  def metrics(self) -> tuple[str, ...]:
    """Levels at which metrics are defined: 'image' needs both kinds of images, 'pixel' needs masks."""
    defined = {'image': self.normal and self.anomalous, 'pixel': self.masks != 'none'}
    return tuple(level for level, possible in defined.items() if possible)
