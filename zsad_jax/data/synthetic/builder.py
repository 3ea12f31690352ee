"""The tfds builders of the procedural data sets, which draw images instead of reading files."""

import io
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import auto as tqdm

from zsad_jax.data import records, synthetic

SIZE = 160  # pixels per side
TRAIN, NORMAL, EACH_DEFECT = 20, 20, 5  # images of a category: normal training, normal test, test of each defect kind


class Example(NamedTuple):
  """One record to draw; `number` is used once within a category and split."""
  category: synthetic.Category
  split: str
  defect: str
  number: int
  key: str


class DrawnBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A builder that draws one group of categories; its subclass states GROUP.

  Order: category, defect type ('good' among them), number. `train` holds normal images only.

  Args:
    file_format: of the prepared records.
    **kwargs: as for any tfds builder, in particular `data_dir`.
  """

  VERSION = tfds.core.Version('1.0.0')
  GROUP = ''

  def __init__(self, *, file_format: str = 'array_record', **kwargs):
    super().__init__(file_format=file_format, **kwargs)

  @classmethod
  def categories(cls) -> dict[str, synthetic.Category]:
    """Returns {name: category} of the group, in alphabetical order."""
    return {c.name: c for c in sorted(synthetic.group(cls.GROUP))}

  def _info(self) -> tfds.core.DatasetInfo:
    categories = self.categories()
    return tfds.core.DatasetInfo(
        builder=self, description=self.__doc__, features=records.features(list(categories)), disable_shuffling=True,
        metadata=tfds.core.MetadataDict({
            'object_names': {name: c.noun for name, c in categories.items()},
            'textures': [name for name, c in categories.items() if c.surface]}))

  def _split_generators(self, dl_manager) -> dict[str, Iterator[tuple[str, dict]]]:
    return {split: self._generate_examples(split) for split in ('train', 'test')}

  def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
    for example in tqdm.tqdm(self._plan(split), f'{self.name} {split}', unit='image', leave=False):
      yield example.key, _record(example)

  def _plan(self, split: str) -> list[Example]:
    plan = []
    for c in self.categories().values():
      counts = {'good': TRAIN} if split == 'train' else {
          defect: NORMAL if defect == 'good' else EACH_DEFECT for defect in sorted(('good', *c.defects))}
      numbers = itertools.count()
      plan += [Example(c, split, defect, next(numbers), f'{c.name}/{split}/{defect}/{i:03d}')
               for defect, count in counts.items() for i in range(count)]
    return plan


class SyntheticAux(DrawnBuilder, skip_registration=True):
  """Procedural images to train prompts on: surfaces carpet, leather, mesh; objects battery, capsule, plug.

  160 x 160 pixels with pixel masks; `train` has 20 normal images of each category, `test` 20 normal images and 5 of
  each kind of defect. A mask marks where the defect visibly changes the noise-free image. The tiny CLIP was pretrained
  on other categories of the same generator; the defects burn and blister are new to it here.
  """

  GROUP = 'aux'


class SyntheticTarget(DrawnBuilder, skip_registration=True):
  """Procedural images to evaluate on: surfaces knit, shingle, terrazzo; objects cable, jar_lid, leaf.

  160 x 160 pixels with pixel masks; `train` has 20 normal images of each category, `test` 20 normal images and 5 of
  each kind of defect. A mask marks where the defect visibly changes the noise-free image. Neither the pretraining of
  the tiny CLIP nor `synthetic_aux` has any of these categories, nor the defects thread, swap and glue.
  """

  GROUP = 'target'


BUILDERS = {builder.name: builder for builder in (SyntheticAux, SyntheticTarget)}


def _record(example: Example) -> dict:
  drawing = synthetic.example(example.category, example.split, example.number, size=SIZE, defect=example.defect)
  return records.record(
      key=example.key, image=_png(drawing.image), mask=_png(drawing.mask), has_mask=True,
      label=example.defect != 'good', category=example.category.name, object_name=example.category.noun,
      defect_type=example.defect)


def _png(pixels: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, 'png', compress_level=4)
  return buffer.getvalue()
