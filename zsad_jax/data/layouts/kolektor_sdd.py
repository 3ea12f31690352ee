"""KolektorSDD's raw layout: strips with label files, cut into tiles; or tiles that are cut already."""

import math
import re
from pathlib import Path

import numpy as np

from zsad_jax.data import catalog, images, inventory
from zsad_jax.data.inventory import GOOD, Inventory, Item
from zsad_jax.data.layouts import mvtec

_CATEGORY = 'electrical_commutators'
_FOLDERS = tuple(f'kos{i:02}' for i in range(1, 51))
_TILE_FOLDERS = ('electrical commutators', 'electrical_commutators')  # papers spell it both ways
_TILES_PER_STRIP = {'halves': 2, 'thirds': 3, 'full': 1}
_LABEL = '_label'
_STEM = re.compile(r'Part\d+(?:_(\d+))?$')
_TEST_SHARE, _SEED = 0.25, 42


def scan(root: Path, config: str = 'halves') -> Inventory:
  """Returns the tiles of the unpacked archive, or of a folder of tiles in MVTec layout.

  `config` says into how many tiles the long side is cut: 'halves' (as in AnomalyCLIP's paper), 'thirds' or 'full'.
  """
  inside = inventory.folders(root)
  if any(name in inside for name in _FOLDERS):
    return _cut_strips(root, config)
  return _scan_tiles(next((inside[name] for name in _TILE_FOLDERS if name in inside), root), config)


def _cut_strips(root: Path, config: str) -> Inventory:
  """The tiles of the archive's strips, sorted by split, defect type and stem.

  A tile is anomalous if its part of the label file is not all zero. Test are all anomalous tiles and the quarter of the
  normal ones that `draw_test_tiles` selects.
  """
  inside = inventory.folders(root)
  unknown = [path for name, path in inside.items() if name not in _FOLDERS]
  scanned = Inventory([], [], inventory.category_notes(root, _FOLDERS, inside, unknown))
  for name in _FOLDERS:
    if name in inside:
      _add_tiles(scanned, inside[name], _TILES_PER_STRIP[config])
  test = draw_test_tiles([item.stem for item in scanned.items if not item.label])
  scanned.items[:] = [item._replace(split='test' if item.label or item.stem in test else 'train')
                      for item in scanned.items]
  return scanned.sort()


def draw_test_tiles(normal: list[str]) -> set[str]:
  """Returns the normal tiles of the test split: a quarter, rounded up, drawn from the sorted names.

  This is what scikit-learn's train_test_split(test_size=0.25, random_state=42) takes from that list.
  """
  names = sorted(normal)
  order = np.random.RandomState(_SEED).permutation(len(names))
  return {names[i] for i in order[:math.ceil(_TEST_SHARE * len(names))]}


def _add_tiles(scanned: Inventory, path: Path, tiles: int) -> None:
  """Adds the tiles of one kosNN folder, all in split 'test' for the moment."""
  strips, problems, notes = inventory.files(path)
  masks = {stem.removesuffix(_LABEL): strips.pop(stem) for stem in list(strips) if stem.endswith(_LABEL)}
  for stem, image in strips.items():
    mask = masks.pop(stem, None)
    if mask is None:
      problems.append(f'{image}: no mask {path / (stem + _LABEL)}.bmp; normal images have one too')
      continue
    try:
      pixels = images.read_mask(mask, catalog.CATALOG['kolektor_sdd'].mask_threshold)
    except images.BadImage as e:
      problems.append(str(e))
      continue
    height, width = pixels.shape
    for i in range(tiles):
      top, bottom = height * i // tiles, height * (i + 1) // tiles
      label = int(pixels[top:bottom].any())
      name = f'{path.name}_{stem}' + (f'_{i}' if tiles > 1 else '')
      box = (0, top, width, bottom) if tiles > 1 else None
      scanned.items.append(Item(_CATEGORY, 'test', 'defect' if label else GOOD, name, image, mask, label, box))
  problems.extend(f'{mask}: mask without an image {path / stem}.*' for stem, mask in masks.items())
  scanned.problems.extend(problems)
  scanned.notes.extend(notes)


def _scan_tiles(path: Path, config: str) -> Inventory:
  """The tiles of a folder in MVTec layout; a problem if they are not cut as `config` says.

  The scripts that make such folders name the tiles kosNN_PartN_0, _1, ...; other names say nothing.
  """
  scanned = mvtec.scan(path, masks_required=True)
  scanned.items[:] = [item._replace(category=_CATEGORY) for item in scanned.items]
  numbers = [match[1] for match in (_STEM.search(item.stem) for item in scanned.items) if match]
  tiles = 1 + max((int(number or 0) for number in numbers), default=0)
  if not numbers:
    scanned.notes.append(f'{path}: the names do not tell how the tiles were cut; read as {config}')
  elif tiles != _TILES_PER_STRIP[config]:
    names = {n: name for name, n in _TILES_PER_STRIP.items()}
    scanned.problems.append(f'{path}: by their names the tiles are {names.get(tiles, f"{tiles} per strip")}, not '
                            f'{config}; load that configuration, or unpack '
                            f'{catalog.CATALOG["kolektor_sdd"].archive} instead')
  return scanned
