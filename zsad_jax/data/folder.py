"""Folders in MVTec layout, and the record that all builders share.

    <root>/<category>/train/good/*.png
    <root>/<category>/test/good/*.png
    <root>/<category>/test/<defect>/*.png
    <root>/<category>/ground_truth/<defect>/<stem>_mask.png      or <stem>.png
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from zsad_jax.data import survey
from zsad_jax.data.survey import GOOD, Item, Survey

LABELS = ('normal', 'anomalous')
_PARTS = ('train', 'test', 'ground_truth')
_SUFFIXES = ('_mask', '')        # what a mask's stem adds to its image's


def features(categories: Sequence[str]) -> tfds.features.FeaturesDict:
  """Returns the one feature dict of all builders, for these category folder names.

  `image` holds 8-bit RGB or grey PNG or JPEG bytes at native size, `mask` an 8-bit PNG of the same size with
  values 0 and 255. `has_mask` says whether the mask is the truth: for every normal image, and for anomalous
  ones with a file.
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


def example(*, key: str, image: bytes, mask: bytes, has_mask: bool, label: int, category: str,
            object_name: str, defect_type: str) -> dict:
  """Returns one record of `features`: `image` and `mask` are encoded bytes, `label` 0 normal, 1 anomalous."""
  return {
      'id': key, 'image': image, 'mask': mask, 'has_mask': has_mask, 'label': int(label),
      'category': category, 'object_name': object_name, 'defect_type': defect_type,
  }


def categories(root: Path) -> dict[str, Path]:
  """Returns {name: folder} of the categories under `root`, or of `root` itself where it is one category.

  Raises:
    FileNotFoundError: nothing there is laid out so; the message says what was expected and what was found.
  """
  root = Path(root).expanduser().absolute()
  inside = survey.folders(root)
  if _is_category(root):
    return {root.name: root}
  found = {name: path for name, path in inside.items() if _is_category(path)}
  if found:
    return found
  raise FileNotFoundError(
      f'{root}: no folder in MVTec layout. Expected {root}/<category>/test/<good or a defect>/*.png or '
      f'{root}/test/..., or one folder of normal and one of anomalous images; '
      f'found: {", ".join(survey.shorten(list(inside))) or "no folder"}. {_hint(root, inside)}'.rstrip())


def is_laid_out(root: Path) -> bool:
  """Returns whether `root` is in MVTec layout, or one of the parts of a category that is."""
  beside = set(_PARTS) & set(survey.folders(root.parent))
  return (any(_is_category(p) for p in (root, *survey.folders(root).values()))
          or (root.name in _PARTS and len(beside) > 1))


def normal_folders(root: Path) -> tuple[tuple[str, ...], list[str]]:
  """Returns (the folders of `root` that hold normal images, a problem for each split where two could).

  They are recognised by their names, `survey.NORMAL_NAMES`; the first is 'good' where there is one.
  """
  names, problems = [], []
  for path in categories(root).values():
    for split in ('test', 'train'):
      found = survey.normal_names(survey.folders(path / split))
      names += found
      if len(found) > 1:
        problems.append(f'{path / split}: both {" and ".join(found)} may hold the normal images; say which: '
                        f'folder:{root},normal={found[0]} or normal={"+".join(found)}')
  return tuple(sorted(dict.fromkeys(names), key=lambda name: name != GOOD)) or (GOOD,), problems


def _is_category(folder: Path) -> bool:
  return bool({'train', 'test'} & set(survey.folders(folder)))


def _hint(root: Path, inside: dict[str, Path]) -> str:
  if not root.is_dir():
    return f'{root} is {"no folder" if root.exists() else "missing"}.'
  for up in (root.parent, root.parent.parent):
    if _is_category(up):
      return f'That is below the category folder {up}: pass that one, or its parent.'
  for name, path in inside.items():
    for part in (name, *survey.folders(path)):
      if part.lower() in _PARTS and part not in _PARTS:
        return f'{part!r} should be {part.lower()!r}: the names are case-sensitive.'
    if any(_is_category(p) for p in survey.folders(path).values()):
      return f'The categories are one level deeper: pass {path}.'
    if survey.normal_names(survey.folders(path)):
      return f'Folders of normal and of anomalous images are one level deeper: pass one such as {path}, or a table.'
  first = next(iter(inside.values()), None)
  return f'{first} holds {survey.outline(first)}.' if first else ''


def walk(root: Path, known: Sequence[str] = (), masks_required: bool = False, *, normal: Sequence[str] = (GOOD,),
         suffixes: Sequence[str] = _SUFFIXES) -> Survey:
  """Returns the items under `root` in the order category, split, defect, stem.

  Images pair with masks by stem, checked both ways. A category without any ground_truth folder is label-only,
  unless `masks_required`.

  Args:
    root: folder of the categories, or one category.
    known: the categories of a published data set: others are ignored with a note, absent ones named, and one that is
      laid out otherwise is a problem that says what it holds.
    masks_required: a missing ground_truth folder is a problem.
    normal: the folders of normal images, whose defect type becomes 'good'.
    suffixes: what a mask's stem may add to its image's.
  """
  root, found = Path(root), categories(root)
  used = {name: path for name, path in found.items() if not known or name in known}
  inside = survey.folders(root)
  odd = {name: path for name, path in inside.items() if name in known and name not in used and any(path.iterdir())}
  whole = Survey([], [f'{path}: neither train nor test in it. It holds {survey.outline(path)}'
                      for path in odd.values()], [])
  alone = root.absolute() in found.values()
  strays = () if alone else [path for name, path in inside.items() if name not in used and name not in known]
  whole.notes.extend(survey.roll_call(root, known, used.keys() | odd.keys(), strays))
  rules = (masks_required, tuple(normal), tuple(suffixes))
  whole = survey.join([whole, *(_category(path, name, *rules) for name, path in used.items())])
  whole.items.sort(key=lambda item: item[:4])
  return whole


def _category(folder: Path, category: str, masks_required: bool, normal: tuple[str, ...],
              suffixes: tuple[str, ...]) -> Survey:
  out = Survey([], [], [])
  parts = survey.folders(folder)
  out.notes.extend(f'{path}: unexpected folder, ignored'
                   for name, path in parts.items() if name not in _PARTS)
  labelled = 'ground_truth' in parts
  for split in ('test', 'train'):
    if split not in parts:
      out.notes.append(f'{folder / split}: folder is missing')
      continue
    loose, _, notes = survey.files(folder / split)
    out.problems.extend(f'{path}: image outside of {normal[0]}/ and the defect folders' for path in loose.values())
    out.notes.extend(n for n in notes if not n.endswith('folder, ignored'))
    for defect, path in survey.folders(folder / split).items():
      if split == 'train' and defect not in normal:
        out.notes.append(f'{path}: unexpected folder, ignored (training images are normal)')
        continue
      masks = folder / 'ground_truth' / defect if labelled or masks_required else None
      defect_type = GOOD if defect in normal else defect
      _add_images(out, path, (category, split, defect_type), masks if split == 'test' else None, suffixes)
  if labelled:
    out.problems.extend(f'{path}: masks of a defect without images in {folder / "test" / name}'
                        for name, path in survey.folders(parts['ground_truth']).items()
                        if name not in survey.folders(folder / 'test') and survey.files(path)[0])
  elif any(item.label for item in out.items):
    out.notes.append(f'{folder / "ground_truth"}: folder is missing; {category} has image labels only')
  return out


def _add_images(out: Survey, folder: Path, kind: tuple[str, str, str], mask_folder: Path | None,
                suffixes: Sequence[str] = _SUFFIXES) -> None:
  """Adds the images of one folder to `out`, each with its mask where `mask_folder` is given.

  `kind` is (category, split, defect type); every type but 'good' needs its masks. A mask is called as its image, with
  one of `suffixes` after the stem.
  """
  category, split, defect = kind
  found, problems, notes = survey.files(folder)
  masks = {}
  if mask_folder is not None:
    masks, more_problems, more_notes = survey.files(mask_folder)
    problems, notes = problems + more_problems, notes + more_notes
  for stem, image in found.items():
    mask = next((masks.pop(stem + s) for s in suffixes if stem + s in masks), None)
    if mask is None and mask_folder is not None and defect != GOOD:
      normal = survey.normal_names([defect])
      problems.append(f'{image}: no mask {mask_folder / (stem + suffixes[0] + ".png")}'
                      + (f' (normal images belong in {GOOD!r}, not {defect!r})' if normal else ''))
    out.items.append(Item(category, split, defect, stem, image, mask, int(defect != GOOD)))
  problems.extend(f'{mask}: mask without an image {folder / stem.removesuffix(suffixes[0])}.*'
                  for stem, mask in masks.items())
  out.problems.extend(problems)
  out.notes.extend(notes)
