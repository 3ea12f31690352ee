"""Procedural images for zero-shot anomaly detection: surfaces and objects with and without defects.

Everything is a pure function of (seed, category, split, index).  Three disjoint groups of categories: 'pretrain'
teaches the tiny CLIP, 'aux' trains prompts, 'target' evaluates them; no target category, and none of the defect kinds
thread, swap and glue, is drawn for the other two.
"""

import functools
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from zsad_jax.data.synthetic import canvas, defects, families, objects, surfaces

SPLITS = ('train', 'test', 'probe', 'pretrain')
VISIBLE = 14 / 255
SMALLEST = 16


class Category(NamedTuple):
  """One kind of object or surface.

  Attributes:
    name: folder-like name, 'jar_lid'.
    group: 'pretrain', 'aux' or 'target'.
    draw: flawless scene (rng, size, paint) -> Scene.
    surface: whether it fills the image.
    material: one word for captions.
    colours: names from canvas.COLOURS that it is painted in.
    defects: kinds that it can have.
  """
  name: str
  group: str
  draw: Callable
  surface: bool
  material: str
  colours: tuple[str, ...]
  defects: tuple[str, ...]

  @property
  def noun(self) -> str:
    return self.name.replace('_', ' ')


class Drawing(NamedTuple):
  """One drawn example.

  Attributes:
    image: [R, R, 3] uint8.
    mask: [R, R] uint8, 255 where the defect changes the image visibly, all 0 for a normal image.
    twin: [R, R, 3] uint8, the same scene, light and sensor noise without the defect.
    category, defect: names; defect is 'good' for a normal image.
    colour: name of its main colour.
  """
  image: np.ndarray
  mask: np.ndarray
  twin: np.ndarray
  category: str
  defect: str
  colour: str


BRIGHT = ('red', 'orange', 'yellow', 'green', 'cyan', 'blue', 'purple', 'pink', 'white')
METALS = ('silver', 'gray', 'yellow', 'orange', 'black')
EARTH = ('brown', 'beige', 'gray', 'red', 'orange', 'white')
ANY = tuple(canvas.COLOURS)
_SPREAD = ('corrosion', 'smear', 'wear', 'growth')
_RIGID = ('crack', 'scratch', 'hole', 'stain', 'chip', 'discolour', 'particle', 'dent', *_SPREAD)
_SOFT = ('hole', 'stain', 'discolour', 'particle', 'bend', 'scratch', 'chip', *_SPREAD)
_METAL = ('scratch', 'stain', 'chip', 'bend', 'discolour', 'particle', 'dent', 'crack', *_SPREAD)


def _pretrain(table, rows):
  return tuple(Category(name, 'pretrain', getattr(table, name), table is surfaces, *rest) for name, *rest in rows)


def _families(nouns, draw, surface):
  """One made-up category for each noun: its look, colours and material follow from its number."""
  for seed, name in enumerate(nouns):
    rng = np.random.default_rng([seed, surface, 3])
    colours = tuple(str(c) for c in rng.choice(ANY, rng.integers(3, 9), replace=False))
    kinds = tuple(dict.fromkeys(_RIGID + _SOFT))
    yield Category(name, 'pretrain', functools.partial(draw, seed), surface, str(rng.choice(families.MATERIALS)),
                   colours, kinds)


CATEGORIES = _pretrain(surfaces, (
    ('wood', 'wooden', ('brown', 'beige', 'orange', 'gray'), _RIGID),
    ('brick', 'stone', ('red', 'brown', 'orange', 'gray', 'beige'), _RIGID),
    ('fabric', 'cotton', BRIGHT + ('beige', 'gray', 'black'), _SOFT),
    ('concrete', 'stone', ('gray', 'beige', 'white', 'silver'), _RIGID),
    ('tile', 'ceramic', BRIGHT + ('beige', 'gray', 'black'), _RIGID),
    ('marble', 'stone', ('white', 'gray', 'beige', 'pink', 'green', 'black'), _RIGID),
    ('brushed_metal', 'metal', METALS, _RIGID),
    ('printed_paper', 'paper', ('white', 'beige', 'yellow', 'pink', 'cyan', 'gray'), _SOFT),
    ('sponge', 'foam', BRIGHT, _SOFT),
)) + _pretrain(objects, (
    ('washer', 'metal', METALS, _METAL),
    ('gear', 'metal', METALS + ('white', 'red', 'blue'), _METAL),
    ('button', 'plastic', ANY, _RIGID),
    ('biscuit', 'baked', ('brown', 'beige', 'orange', 'yellow'), _RIGID),
    ('microchip', 'silicon', ('black', 'gray', 'green', 'blue', 'purple'), _METAL),
    ('key', 'metal', METALS, _METAL),
    ('bolt', 'metal', METALS, _METAL),
    ('toy', 'plastic', BRIGHT + ('black', 'brown'), _RIGID + ('bend',)),
    ('plate', 'ceramic', BRIGHT + ('beige', 'gray'), _RIGID),
    ('domino', 'plastic', ANY, _RIGID + ('bend',)),
)) + tuple(_families(families.SURFACES, families.draw_surface, True)) + tuple(
    _families(families.OBJECTS, families.draw_object, False)) + (
    Category('leather', 'aux', surfaces.leather, True, 'leather', ('brown', 'black', 'red', 'beige', 'green'),
             ('crack', 'scratch', 'hole', 'stain', 'burn', 'blister')),
    Category('carpet', 'aux', surfaces.carpet, True, 'wool', BRIGHT + ('gray', 'beige', 'brown'),
             ('hole', 'stain', 'chip', 'burn', 'particle')),
    Category('mesh', 'aux', surfaces.mesh, True, 'metal', METALS + ('white', 'green'),
             ('bend', 'chip', 'stain', 'particle', 'burn')),
    Category('capsule', 'aux', objects.capsule, False, 'plastic', BRIGHT + ('black',),
             ('crack', 'scratch', 'hole', 'stain', 'chip', 'bend', 'blister')),
    Category('battery', 'aux', objects.battery, False, 'metal', METALS + BRIGHT,
             ('crack', 'scratch', 'hole', 'stain', 'chip', 'burn', 'blister')),
    Category('plug', 'aux', objects.plug, False, 'plastic', ('white', 'black', 'gray', 'blue', 'beige', 'red'),
             ('crack', 'scratch', 'bend', 'chip', 'particle', 'burn')),
    Category('terrazzo', 'target', surfaces.terrazzo, True, 'stone', ('white', 'beige', 'gray', 'green', 'pink'),
             ('crack', 'hole', 'stain', 'chip', 'glue', 'thread')),
    Category('knit', 'target', surfaces.knit, True, 'wool', BRIGHT + ('gray', 'black', 'beige'),
             ('hole', 'stain', 'bend', 'thread', 'swap', 'discolour')),
    Category('shingle', 'target', surfaces.shingle, True, 'clay', ('red', 'brown', 'gray', 'black', 'orange', 'green'),
             ('crack', 'hole', 'chip', 'discolour', 'glue', 'swap')),
    Category('cable', 'target', objects.cable, False, 'rubber', ('black', 'gray', 'white', 'orange', 'blue'),
             ('crack', 'chip', 'bend', 'hole', 'swap', 'thread')),
    Category('leaf', 'target', objects.leaf, False, 'natural', ('green', 'yellow', 'brown', 'red', 'orange'),
             ('hole', 'chip', 'stain', 'bend', 'discolour', 'glue')),
    Category('jar_lid', 'target', objects.jar_lid, False, 'metal', METALS + ('white', 'red', 'blue', 'green'),
             ('scratch', 'stain', 'chip', 'discolour', 'thread', 'glue')),
)


def group(name: str) -> tuple[Category, ...]:
  """Categories of the group 'pretrain', 'aux' or 'target'; ValueError for another name."""
  found = tuple(c for c in CATEGORIES if c.group == name)
  if not found:
    raise ValueError(f"no group {name!r} of procedural categories: use 'pretrain', 'aux' or 'target'")
  return found


def category(name: str) -> Category:
  """The category of that name; ValueError names the known ones."""
  for found in CATEGORIES:
    if found.name == name:
      return found
  raise ValueError(f'no procedural category {name!r}: known are {", ".join(c.name for c in CATEGORIES)}')


def example(kind: Category | str, split: str, index: int, *, size: int, seed: int = 0,
            defect: str | None = None) -> Drawing:
  """Drawing `index` of a category: a pure function of (seed, category, split, index).

  Args:
    kind: a category or its name.
    split: one of SPLITS; splits share no drawing.
    index: number of the example.
    size: pixels a side.
    seed: of the whole data set.
    defect: a kind of defect, 'good', or None to draw one of the category's kinds at random.

  Raises:
    ValueError: unknown category, split, or a defect kind that the category does not have.
  """
  kind = category(kind) if isinstance(kind, str) else kind
  if split not in SPLITS:
    raise ValueError(f'no split {split!r}: use one of {SPLITS}')
  if defect not in (None, 'good', *kind.defects):
    raise ValueError(f'{kind.name} has no defect {defect!r}: it has {kind.defects}')
  key = [seed, zlib.crc32(kind.name.encode()), SPLITS.index(split), index]
  rng = np.random.default_rng(key)
  name = str(rng.choice(kind.colours))
  scene = kind.draw(rng, size, canvas.colour(rng, name))
  lamp = canvas.light(rng, scene)
  clean = canvas.develop(scene, lamp)
  twin = canvas.expose(clean, lamp)
  if defect == 'good':
    return Drawing(twin, np.zeros((size, size), np.uint8), twin, kind.name, 'good', name)
  return _spoil(key, kind, defect, scene, lamp, clean, twin, name)


def _spoil(key, kind, defect, scene, lamp, clean, twin, name) -> Drawing:
  """Draws defects until one shows; each try is stronger, so an even surface cannot hide it for ever."""
  size, best = clean.shape[0], None
  for attempt in range(8):
    rng = np.random.default_rng([*key, attempt + 1])
    found = defect or str(rng.choice(kind.defects))
    strength = min(rng.uniform(.35, 1.) + .1 * attempt, 1.2)
    spoiled = canvas.develop(getattr(defects, found)(rng, scene, strength), lamp)
    mask = difference(clean, spoiled)
    area = int(np.count_nonzero(mask))
    if best is None or area > best[0]:
      best = area, found, spoiled, mask
    if area >= SMALLEST * (size / 112) ** 2:
      break
  _, found, spoiled, mask = best
  return Drawing(canvas.expose(spoiled, lamp), mask, twin, kind.name, found, name)


def difference(clean: np.ndarray, spoiled: np.ndarray) -> np.ndarray:
  """Mask [R, R] uint8 0/255 of where two noise-free images [R, R, 3] differ visibly, small gaps closed."""
  change = np.abs(spoiled - clean).max(-1)
  mask = Image.fromarray((change > VISIBLE).astype(np.uint8) * 255)
  reach = 2 * max(round(clean.shape[0] / 112), 1) + 1
  return np.asarray(mask.filter(ImageFilter.MaxFilter(reach)).filter(ImageFilter.MinFilter(reach)))
