"""The tfds builder behind the procedural data sets: draws instead of reading files."""

import io
import itertools
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import auto as tqdm

from zsad_jax.data import folder, synthetic

SIZE = 160
TRAIN, NORMAL, EACH_DEFECT = 20, 20, 5


class DrawnBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A builder that draws one group of categories; its subclass states GROUP.

  Order: category, defect type ('good' among them), number.  `train` holds normal images only.

  Args:
    file_format: of the prepared records.
    **kwargs: as for any tfds builder, `data_dir` above all.
  """

  GROUP = ''

  def __init__(self, *, file_format='array_record', **kwargs):
    super().__init__(file_format=file_format, **kwargs)

  @classmethod
  def categories(cls) -> dict[str, synthetic.Category]:
    """{name: category} of the group, in alphabetical order."""
    return {c.name: c for c in sorted(synthetic.group(cls.GROUP))}

  def _info(self) -> tfds.core.DatasetInfo:
    found = self.categories()
    return self.dataset_info_from_configs(
        features=folder.features(list(found)), disable_shuffling=True,
        metadata=tfds.core.MetadataDict({
            'object_names': {name: c.noun for name, c in found.items()},
            'textures': [name for name, c in found.items() if c.surface]}))

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in ('train', 'test')}

  def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
    for item in tqdm.tqdm(self._plan(split), f'{self.name} {split}', unit='image', leave=False):
      yield item[-1], _record(*item)

  def _plan(self, split: str) -> list[tuple]:
    """(category, split, defect, number, key) of every example; a number is used once in a category."""
    plan = []
    for c in self.categories().values():
      wanted = [('good', TRAIN)] if split == 'train' else [(d, NORMAL if d == 'good' else EACH_DEFECT)
                                                          for d in sorted(('good', *c.defects))]
      numbers = itertools.count()
      plan += [(c, split, defect, next(numbers), f'{c.name}/{split}/{defect}/{i:03d}')
               for defect, count in wanted for i in range(count)]
    return plan


def _record(category, split, defect, number, key) -> dict:
  drawn = synthetic.example(category, split, number, size=SIZE, defect=defect)
  return folder.example(key=key, image=_png(drawn.image), mask=_png(drawn.mask), has_mask=True, label=defect != 'good',
                        category=category.name, object_name=category.noun, defect_type=defect)


def _png(pixels: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, 'png', compress_level=4)
  return buffer.getvalue()
