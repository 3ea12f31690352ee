"""KolektorSDD (Tabernik et al., J. Intell. Manuf. 2020): 399 commutator surfaces, whole or cut into tiles."""

import math
import re
from pathlib import Path
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from zsad_jax.data import builder, catalog, folder, images, survey
from zsad_jax.data.survey import GOOD, Item, Survey

_ENTRY = catalog.CATALOG['kolektor_sdd']
_CATEGORY = 'electrical_commutators'
_FOLDERS = tuple(f'kos{i:02}' for i in range(1, 51))
_CUT = ('electrical commutators', 'electrical_commutators')      # tiles made by scripts; papers spell it both ways
_PIECES = {'halves': 2, 'thirds': 3, 'full': 1}
_LABEL = '_label'
_STEM = re.compile(r'Part\d+(?:_(\d+))?$')
_TEST_SHARE, _SEED = 0.25, 42


class Builder(builder.SourceBuilder):
  """tfds builder of KolektorSDD, from the unpacked archive or from tiles that are cut already.

  The configuration says into how many tiles the long side is cut: 'halves' (as AnomalyCLIP's paper), 'thirds', 'full'.
  """

  VERSION = tfds.core.Version('1.0.0')
  RELEASE_NOTES: ClassVar = {'1.0.0': 'First version.'}
  BUILDER_CONFIGS: ClassVar = [
      tfds.core.BuilderConfig(name='halves', description='Every strip is cut across into two tiles.'),
      tfds.core.BuilderConfig(name='thirds', description='Every strip is cut across into three tiles.'),
      tfds.core.BuilderConfig(name='full', description='Whole strips.')]
  MANUAL_DOWNLOAD_INSTRUCTIONS = catalog.instructions('kolektor_sdd')
  MASK_THRESHOLD = _ENTRY.mask_threshold

  @classmethod
  def survey(cls, root: Path, config: str = 'halves') -> Survey:
    inside = survey.folders(root)
    if any(name in inside for name in _FOLDERS):
      return cut(root, config)
    return ready(next((inside[name] for name in _CUT if name in inside), root), config)


def cut(root: Path, config: str) -> Survey:
  """Returns the tiles of the archive's strips, in the order split, defect type, stem.

  A tile is anomalous when its part of the label file is not all zero. All anomalous tiles are test, and the quarter
  of the normal ones that `test_tiles` draws.
  """
  inside = survey.folders(root)
  strays = [path for name, path in inside.items() if name not in _FOLDERS]
  whole = Survey([], [], survey.roll_call(root, _FOLDERS, inside, strays))
  for name in _FOLDERS:
    if name in inside:
      _add(whole, inside[name], _PIECES[config])
  chosen = test_tiles([item.stem for item in whole.items if not item.label])
  whole.items[:] = sorted((item._replace(split='test' if item.label or item.stem in chosen else 'train')
                           for item in whole.items), key=lambda item: item[:4])
  return whole


def test_tiles(normal: list[str]) -> set[str]:
  """Returns the normal tiles of the test split: a quarter, rounded up, drawn from the sorted names.

  What scikit-learn's train_test_split(test_size=0.25, random_state=42) takes from that list.
  """
  names = sorted(normal)
  order = np.random.RandomState(_SEED).permutation(len(names))
  return {names[i] for i in order[:math.ceil(_TEST_SHARE * len(names))]}


def _add(out: Survey, path: Path, pieces: int) -> None:
  """Adds the tiles of one kosNN folder, all as split 'test' for the moment."""
  found, problems, notes = survey.files(path)
  masks = {stem.removesuffix(_LABEL): found.pop(stem) for stem in list(found) if stem.endswith(_LABEL)}
  for stem, image in found.items():
    mask = masks.pop(stem, None)
    if mask is None:
      problems.append(f'{image}: no mask {path / (stem + _LABEL)}.bmp; normal images have one too')
      continue
    try:
      marked = images.read_mask(mask, _ENTRY.mask_threshold)
    except images.BadImage as e:
      problems.append(str(e))
      continue
    height, width = marked.shape
    for i in range(pieces):
      top, bottom = height * i // pieces, height * (i + 1) // pieces
      label = int(marked[top:bottom].any())
      out.items.append(Item(
          _CATEGORY, 'test', 'defect' if label else GOOD, f'{path.name}_{stem}' + (f'_{i}' if pieces > 1 else ''),
          image, mask, label, (0, top, width, bottom) if pieces > 1 else None))
  problems.extend(f'{mask}: mask without an image {path / stem}.*' for stem, mask in masks.items())
  out.problems.extend(problems)
  out.notes.extend(notes)


def ready(path: Path, config: str) -> Survey:
  """Returns the tiles of a folder in MVTec layout; a problem where they are not cut as `config` says.

  The scripts that make such folders call the tiles kosNN_PartN_0, _1, ...; other names tell nothing.
  """
  found = folder.walk(path, masks_required=True)
  found.items[:] = [item._replace(category=_CATEGORY) for item in found.items]
  told = [match for match in (_STEM.search(item.stem) for item in found.items) if match]
  pieces = 1 + max((int(match[1] or 0) for match in told), default=0)
  if not told:
    found.notes.append(f'{path}: the names do not tell how the tiles were cut; taken for {config}')
  elif pieces != _PIECES[config]:
    names = {n: name for name, n in _PIECES.items()}
    found.problems.append(f'{path}: by their names the tiles are {names.get(pieces, f"{pieces} a strip")}, not '
                          f'{config}; load that configuration, or unpack {_ENTRY.archive} instead')
  return found
