"""The record that all builders store for an image, and how it is made from image and mask files."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from zsad_jax.data import images
from zsad_jax.data.inventory import Item

LABELS = ('normal', 'anomalous')
EMPTY_MASK = 'anomalous image with an all-zero mask'
STRAY_MASK = 'normal image with a mask that is not zero; zeros are stored'


def features(categories: Sequence[str]) -> tfds.features.FeaturesDict:
  """Returns the features of all builders' records, for these category folder names.

  `image` holds 8-bit RGB or grey PNG or JPEG bytes at native size, `mask` an 8-bit PNG of the same size with values 0
  and 255. `has_mask` says whether the mask is the ground truth: for every normal image, and for anomalous images with a
  mask file.
  """
  return tfds.features.FeaturesDict({
      'id': tfds.features.Text(),
      'image': tfds.features.Image(shape=(None, None, 3)),
      'mask': tfds.features.Image(shape=(None, None, 1), encoding_format='png'),
      'has_mask': np.bool_,
      'label': tfds.features.ClassLabel(names=LABELS),
      'category': tfds.features.ClassLabel(names=categories),
      'object_name': tfds.features.Text(),
      'defect_type': tfds.features.Text(),
  })


def record(*, key: str, image: bytes, mask: bytes, has_mask: bool, label: int, category: str,
           object_name: str, defect_type: str) -> dict:
  """Returns one record of `features`: `image` and `mask` are encoded bytes, `label` is 0 normal or 1 anomalous."""
  return {
      'id': key, 'image': image, 'mask': mask, 'has_mask': has_mask, 'label': int(label),
      'category': category, 'object_name': object_name, 'defect_type': defect_type,
  }


class Reading(NamedTuple):
  """The record of an item, or the error that its files gave, and notes on the conversion."""
  item: Item
  record: dict | None
  notes: list[str]
  error: images.BadImage | None = None


def try_read(item: Item, **options) -> Reading:
  """Returns `read(item, **options)`, or its BadImage error as part of the result."""
  try:
    return Reading(item, *read(item, **options))
  except images.BadImage as error:
    return Reading(item, None, [], error)


def read(item: Item, *, names: dict[str, str], threshold: int, rules: images.Rules) -> tuple[dict, list[str]]:
  """Returns (record, notes on the conversion) of one item.

  Args:
    item: the image and its mask.
    names: {category: name in prompts}.
    threshold: a mask pixel is anomalous if its 8-bit grey value exceeds this.
    rules: how image files become pixels.

  Raises:
    BadImage: the image or its mask cannot be used, or their sizes differ; names the files.
  """
  image = images.encode(item.image, rules)
  notes = [image.note] if image.note else []
  mask = None
  if item.mask is not None:
    mask = images.read_mask(item.mask, threshold, rules)
    _check_size(item, image.size, mask.shape[::-1], rules)
  if item.box is not None:
    image, mask = _crop(item, image, mask)
  if mask is not None and mask.any() != bool(item.label):
    notes.append(EMPTY_MASK if item.label else STRAY_MASK)
  is_stored = item.label and mask is not None
  return record(
      key=item.key, image=image.data, mask=images.encode_mask(mask) if is_stored else images.empty_mask(image.size),
      has_mask=not item.label or mask is not None, label=item.label, category=item.category,
      object_name=names[item.category], defect_type=item.defect_type), notes


def _crop(item: Item, image: images.Encoded, mask: np.ndarray | None) -> tuple[images.Encoded, np.ndarray | None]:
  """The item's box of the image, as PNG (grey if all pixels are), and of the bool [h, w] mask."""
  left, top, right, bottom = item.box
  if not (0 <= left < right <= image.size[0] and 0 <= top < bottom <= image.size[1]):
    raise images.BadImage(f'{item.image} is {image.size[0]}x{image.size[1]} pixels, so it has no part {item.box}')
  tile = images.decode_rgb(image.data, item.image).crop(item.box)
  bands = [band.tobytes() for band in tile.split()]
  tile = tile.getchannel(0) if bands[0] == bands[1] == bands[2] else tile
  data = io.BytesIO()
  tile.save(data, format='PNG')
  return (images.Encoded(data.getvalue(), tile.size, image.note),
          None if mask is None else mask[top:bottom, left:right])


def _check_size(item: Item, image: tuple[int, int], mask: tuple[int, int], rules: images.Rules) -> None:
  if image == mask:
    return
  hint = ''
  if image == mask[::-1]:
    other = 'apply' if rules.exif == 'ignore' else 'ignore'
    hint = f'. If the photo carries an EXIF orientation, the mask may have been drawn for exif={other!r}'
  raise images.BadImage(f'{item.image} is {image[0]}x{image[1]} pixels, '
                        f'but its mask {item.mask} is {mask[0]}x{mask[1]}{hint}')
