"""Reads image and mask files: every accepted pixel format becomes 8-bit RGB or a 0/255 mask."""

import functools
import io
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from PIL import ExifTags, Image, ImageOps

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.tif', '.tiff', '.webp')
BACKGROUND = (255, 255, 255)  # what most viewers show behind transparent pixels
TRANSPARENCY = {'white': BACKGROUND, 'drop': None}  # names of `Rules.background`

# Everything that decoders have raised on damaged bytes.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, ArithmeticError, MemoryError,
           struct.error, zlib.error, Image.DecompressionBombError)
_TIFF = (b'II*\0', b'MM\0*')
_PNG_DEPTH = 24  # offset of the bit depth: signature, chunk head, width and height come first


class BadImage(ValueError):
  """A file that cannot be used as an image or mask; the message names the file and the reason."""


class Rules(NamedTuple):
  """Choices in the conversion of a file to pixels.

  Attributes:
    exif: 'ignore' takes the pixels as stored, as the official AnomalyCLIP code does; 'apply' turns them upright. Images
      and masks are treated alike, so masks must have been drawn on what the rule shows.
    background: RGB colour behind transparent pixels; None drops alpha and shows the hidden colour, as Pillow's
      convert('RGB') in the official code does.
  """
  exif: str = 'ignore'
  background: tuple[int, int, int] | None = BACKGROUND


DEFAULT_RULES = Rules()


class Encoded(NamedTuple):
  """One image as it is stored.

  Attributes:
    data: PNG or JPEG bytes of an 8-bit RGB or grey image.
    size: (width, height).
    note: what was converted, or ''.
  """
  data: bytes
  size: tuple[int, int]
  note: str


def check_rules(rules: Rules) -> None:
  """Raises ValueError naming the field that is out of range."""
  if rules.exif not in ('ignore', 'apply'):
    raise ValueError(f"rules.exif is {rules.exif!r}; it must be 'ignore' or 'apply'")
  if rules.background is not None and (
      len(rules.background) != 3
      or not all(isinstance(v, int) and 0 <= v <= 255 for v in rules.background)):
    raise ValueError(f'rules.background is {rules.background!r}; it must be three integers in [0, 255], or None')


def _open(data: bytes, name: Path | str) -> Image.Image:
  if not data:
    raise BadImage(f'{name}: the file is empty (0 bytes)')
  try:
    return _decode(data)
  except Image.UnidentifiedImageError:
    raise BadImage(f'{name}: not an image file, or its header is damaged') from None
  except Image.DecompressionBombError as e:
    raise BadImage(f'{name}: refused as a decompression bomb ({e}). Shrink the image, or raise '
                   'PIL.Image.MAX_IMAGE_PIXELS if its size is intended') from None
  except _BROKEN as e:
    raise BadImage(f'{name}: the image is damaged ({e})') from e


def _decode(data: bytes) -> Image.Image:
  tiff = data[:4] in _TIFF
  if tiff:
    _check_directory(data)
  try:
    image = Image.open(io.BytesIO(data))
  except Image.UnidentifiedImageError:
    if not tiff:
      raise
    return _mislabelled_tiff(data)
  image.load()
  return image


def _check_directory(data: bytes) -> None:
  """Raises EOFError for a TIFF whose list of tags is cut off: decoders would accept what is left of it."""
  order = '<' if data[:2] == b'II' else '>'
  start, = struct.unpack_from(order + 'I', data, 4)
  entries, = struct.unpack_from(order + 'H', data, start)
  if start + 2 + 12 * entries > len(data):
    raise EOFError('the list of tags is cut off')


def _mislabelled_tiff(data: bytes) -> Image.Image:
  """The image in a TIFF with three 8-bit samples that are declared greyscale, as in CVC-ClinicDB."""
  with tifffile.TiffFile(io.BytesIO(data)) as file:
    page = file.pages[0]
    if (page.photometric != tifffile.PHOTOMETRIC.MINISBLACK or page.dtype != np.uint8 or page.shape[2:] != (3,)
        or not page.size):
      raise Image.UnidentifiedImageError
    if Image.MAX_IMAGE_PIXELS and page.size > 6 * Image.MAX_IMAGE_PIXELS:  # twice the limit, as in Pillow
      raise Image.DecompressionBombError(f'{page.size // 3} pixels')
    pixels = page.asarray()
  image = Image.fromarray(pixels)
  kind = 'equal' if (pixels == pixels[..., :1]).all() else 'colour'
  image.format = f'TIFF with three {kind} samples declared greyscale'
  return image


def _orientation(image: Image.Image) -> int:
  """The EXIF orientation, 1 (upright) if there is none or it cannot be read."""
  try:
    return image.getexif().get(ExifTags.Base.Orientation, 1)
  except _BROKEN:
    return 1


def _upright(image: Image.Image, rules: Rules) -> tuple[Image.Image, str]:
  orientation = _orientation(image)
  if orientation == 1:
    return image, ''
  if rules.exif == 'apply':
    return ImageOps.exif_transpose(image), 'turned upright by its EXIF orientation'
  return image, 'EXIF orientation ignored'


def _rgb(image: Image.Image, name: Path | str, rules: Rules) -> tuple[Image.Image, str]:
  """The image as 8-bit RGB, and a note on the conversion."""
  mode = image.mode
  if mode.startswith('I;16'):
    # Full range to full range by the high byte, as Pillow does with 16-bit colour.
    high = (np.asarray(image) >> 8).astype(np.uint8)
    return _convert(Image.fromarray(high), 'RGB', name), '16 bit scaled to 8 bit (value // 256)'
  if mode in ('I', 'F'):
    raise BadImage(f'{name}: pixels are 32-bit {"integers" if mode == "I" else "floats"}, whose range is '
                   'not defined. Save the image with 8 or 16 bits per channel')
  if 'transparency' in image.info or mode in ('RGBA', 'LA', 'PA', 'RGBa', 'La'):
    image = _convert(image, 'RGBA', name)
    if rules.background is None:
      return image.convert('RGB'), 'alpha dropped'
    canvas = Image.new('RGBA', image.size, (*rules.background, 255))
    return Image.alpha_composite(canvas, image).convert('RGB'), f'alpha laid over {rules.background}'
  if mode == 'RGB':
    return image, ''
  return _convert(image, 'RGB', name), '' if mode == 'L' else f'mode {mode} converted to RGB'


def _convert(image: Image.Image, mode: str, name: Path | str) -> Image.Image:
  try:
    return image.convert(mode)
  except _BROKEN as e:
    raise BadImage(f'{name}: pixels of mode {image.mode} cannot be converted to {mode} ({e})') from e


def read_rgb(path: Path | str, rules: Rules = DEFAULT_RULES) -> Image.Image:
  """Returns the file's image as an 8-bit RGB PIL image.

  Grey, palette, CMYK, 16-bit, transparent and EXIF-rotated files follow the same `rules` as in a prepared data set, so
  an image has the same pixels in training and in prediction. Of an animation the first frame is read. A TIFF with three
  samples declared greyscale is read as colour.

  Raises:
    FileNotFoundError: no such file.
    BadImage: empty, truncated or damaged file, not an image, a decompression bomb, or 32-bit pixels.
  """
  return rgb(_open(Path(path).read_bytes(), path), path, rules)


def rgb(image: Image.Image, name: Path | str, rules: Rules = DEFAULT_RULES) -> Image.Image:
  """Returns an open image as `read_rgb` returns its file. Raises BadImage naming `name`."""
  return _rgb(_upright(image, rules)[0], name, rules)[0]


def encode(path: Path | str, rules: Rules = DEFAULT_RULES) -> Encoded:
  """Returns the image as a data set stores it, after decoding it once in full to prove that it is undamaged.

  8-bit RGB or grey PNG and JPEG files without transparency are stored byte for byte; anything else is converted by
  `read_rgb`'s rules and stored as PNG. Raises as `read_rgb` does.
  """
  data = Path(path).read_bytes()
  stored = _open(data, path)
  image, rotation = _upright(stored, rules)
  plain = (stored.mode in ('RGB', 'L') and stored.format in ('PNG', 'JPEG')
           and 'transparency' not in stored.info and not (stored.format == 'PNG' and data[_PNG_DEPTH] != 8))
  if plain and image is stored:
    return Encoded(data, image.size, rotation)
  image, conversion = _rgb(image, path, rules)
  note = ', '.join(filter(None, (rotation, conversion))) or f'{stored.format} stored as PNG'
  return Encoded(_png(image), image.size, note)


def decode_rgb(data: bytes, name: Path | str) -> Image.Image:
  """Returns the 8-bit RGB PIL image of bytes that `encode` stored. Raises BadImage naming `name`."""
  image = _open(data, name)
  return image if image.mode == 'RGB' else image.convert('RGB')


def read_mask(path: Path | str, threshold: int, rules: Rules = DEFAULT_RULES) -> np.ndarray:
  """Returns the mask file as bool [h, w]: grey value above `threshold`, on the 8-bit scale (0 = not black).

  Colour and palette masks are converted to grey, as in the official code; 16-bit masks are compared at full precision,
  so class indices 1, 2, ... survive. Raises as `read_rgb` does.
  """
  image, _ = _upright(_open(Path(path).read_bytes(), path), rules)
  if image.mode.startswith('I;16'):
    return np.asarray(image) > threshold * 257
  if image.mode in ('I', 'F'):
    return np.asarray(image) > threshold
  return np.asarray(_convert(image, 'L', path)) > threshold


def encode_mask(mask: np.ndarray) -> bytes:
  """Returns a bool [h, w] mask as PNG bytes, one 8-bit channel, 0 or 255."""
  return _png(Image.fromarray(mask.astype(np.uint8) * np.uint8(255)))


@functools.lru_cache(maxsize=8)
def empty_mask(size: tuple[int, int]) -> bytes:
  """Returns the PNG bytes of an all-zero mask for an image of `size` (width, height)."""
  return encode_mask(np.zeros(size[::-1], bool))


def decode_mask(data: bytes, name: Path | str) -> np.ndarray:
  """Returns the uint8 [h, w] array, 0 or 255, of bytes that `encode_mask` stored; BadImage names `name`."""
  return np.asarray(_open(data, name))


def _png(image: Image.Image) -> bytes:
  out = io.BytesIO()
  image.save(out, format='PNG')
  return out.getvalue()
