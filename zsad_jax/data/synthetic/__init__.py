"""Procedural images for zero-shot anomaly detection: surfaces and objects with and without defects.

Everything is a pure function of (seed, category, split, index). There are three disjoint groups of categories:
'pretrain' for the tiny CLIP, 'aux' to train prompts on and 'target' to evaluate them. The target categories and the
defects thread, swap and glue occur in no other group.
"""

import functools
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from zsad_jax.data.synthetic import canvas, defects, families, objects, surfaces

SPLITS = ('train', 'test', 'probe', 'pretrain')
VISIBLE = 14 / 255  # a difference in noise-free intensity that counts as visible
SMALLEST = 16  # pixels of the smallest visible defect, at 112 pixels per side


class Category(NamedTuple):
  """One category of objects or surfaces.

  Attributes:
    name: as a folder name, 'jar_lid'.
    group: 'pretrain', 'aux' or 'target'.
    draw: (rng, size, paint) -> flawless Scene.
    surface: whether it fills the image.
    material: one word for captions.
    colours: names in canvas.COLOURS that it may be painted in.
    defects: kinds of defects that it may have.
  """
  name: str
  group: str
  draw: Callable[[np.random.Generator, int, np.ndarray], canvas.Scene]
  surface: bool
  material: str
  colours: tuple[str, ...]
  defects: tuple[str, ...]

  @property
  def noun(self) -> str:
    """The name in prompts and captions."""
    return self.name.replace('_', ' ')


class Drawing(NamedTuple):
  """One image with its mask.

  Attributes:
    image: [R, R, 3] uint8.
    mask: [R, R] uint8, 255 where the defect visibly changes the image, all 0 for a normal image.
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


def _pretrain(table: ModuleType, rows: Iterable[tuple]) -> tuple[Category, ...]:
  """Categories whose functions in `table` have their names."""
  return tuple(Category(name, 'pretrain', getattr(table, name), table is surfaces, *rest) for name, *rest in rows)


def _families(nouns: Iterable[str], draw: Callable, surface: bool) -> Iterator[Category]:
  """One invented category for each noun: its look, colours and material follow from its number."""
  for seed, name in enumerate(nouns):
    rng = np.random.default_rng([seed, surface, 3])
    colours = tuple(str(c) for c in rng.choice(ANY, rng.integers(3, 9), replace=False))
    defect_kinds = tuple(dict.fromkeys(_RIGID + _SOFT))
    yield Category(name, 'pretrain', functools.partial(draw, seed), surface, str(rng.choice(families.MATERIALS)),
                   colours, defect_kinds)


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
  """Returns the categories of the group 'pretrain', 'aux' or 'target'; raises ValueError for another name."""
  members = tuple(c for c in CATEGORIES if c.group == name)
  if not members:
    raise ValueError(f"there is no group {name!r} of procedural categories; use 'pretrain', 'aux' or 'target'")
  return members


def category(name: str) -> Category:
  """Returns the category of that name; raises ValueError, which lists the known ones."""
  by_name = {c.name: c for c in CATEGORIES}
  if name not in by_name:
    raise ValueError(f'there is no procedural category {name!r}; use one of {", ".join(by_name)}')
  return by_name[name]


def example(kind: Category | str, split: str, index: int, *, size: int, seed: int = 0,
            defect: str | None = None) -> Drawing:
  """Returns drawing `index` of a category, a pure function of (seed, category, split, index).

  Args:
    kind: a category or its name.
    split: one of SPLITS; splits share no drawing.
    index: number of the example.
    size: pixels per side.
    seed: of the whole data set.
    defect: a kind of defect, 'good', or None to draw one of the category's kinds at random.

  Raises:
    ValueError: unknown category, split, or a defect kind that the category does not have.
  """
  kind = category(kind) if isinstance(kind, str) else kind
  if split not in SPLITS:
    raise ValueError(f'there is no split {split!r}; use one of {SPLITS}')
  if defect not in (None, 'good', *kind.defects):
    raise ValueError(f'{kind.name} has no defect {defect!r}; use one of {kind.defects}')
  key = [seed, zlib.crc32(kind.name.encode()), SPLITS.index(split), index]
  rng = np.random.default_rng(key)
  colour = str(rng.choice(kind.colours))
  scene = kind.draw(rng, size, canvas.colour(rng, colour))
  lamp = canvas.light(rng, scene)
  clean = canvas.develop(scene, lamp)
  twin = canvas.expose(clean, lamp)
  if defect == 'good':
    return Drawing(twin, np.zeros((size, size), np.uint8), twin, kind.name, 'good', colour)
  damaged, mask, name = _damage(key, kind, defect, scene, lamp, clean)
  return Drawing(canvas.expose(damaged, lamp), mask, twin, kind.name, name, colour)


def _damage(key: Sequence[int], kind: Category, defect: str | None, scene: canvas.Scene, lamp: canvas.Light,
            clean: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
  """(Noise-free damaged image, mask, defect); each attempt is stronger until the defect is visible."""
  size, best = clean.shape[0], None
  for attempt in range(8):
    rng = np.random.default_rng([*key, attempt + 1])
    name = defect or str(rng.choice(kind.defects))
    strength = min(rng.uniform(.35, 1.) + .1 * attempt, 1.2)
    damaged = canvas.develop(getattr(defects, name)(rng, scene, strength), lamp)
    mask = difference(clean, damaged)
    area = int(np.count_nonzero(mask))
    if best is None or area > best[0]:
      best = area, damaged, mask, name
    if area >= SMALLEST * (size / 112) ** 2:
      break
  return best[1:]


def difference(clean: np.ndarray, damaged: np.ndarray) -> np.ndarray:
  """Returns the mask [R, R] uint8 0/255 of the visible difference of two noise-free images, small gaps closed."""
  change = np.abs(damaged - clean).max(-1)
  mask = Image.fromarray((change > VISIBLE).astype(np.uint8) * 255)
  reach = 2 * max(round(clean.shape[0] / 112), 1) + 1
  return np.asarray(mask.filter(ImageFilter.MaxFilter(reach)).filter(ImageFilter.MinFilter(reach)))
