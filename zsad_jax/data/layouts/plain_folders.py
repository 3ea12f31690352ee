"""Plain folders of your own: one of normal images, others of anomalous ones, and possibly folders of masks.

    <root>/<good, normal, ok, no, negative or healthy>/*.png
    <root>/<any other name>/*.png
    <root>/<masks, ground_truth, ...>/<stem>.png      or <stem>_mask.png, or one level deeper, in the folder's name

If the names do not tell, nothing is guessed: an error says what is there and how to choose.
"""

import collections
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from zsad_jax.data import inventory
from zsad_jax.data.inventory import GOOD, Inventory, Item

_MASK_NAMES = ('mask', 'masks', 'ground_truth', 'ground-truth', 'groundtruth', 'gt', 'label', 'labels', 'annotation',
               'annotations', 'segmentation', 'segmentations')
_FOLDER_SUFFIXES = ('_mask', '_masks', '_gt', '_ground_truth')  # what a mask folder's name may add to its images'
_SUFFIXES = ('_mask', '', '_label', '_gt', '_seg', '_segmentation')  # what a mask's stem may add to its image's
# Folders whose images are as likely to be normal as not.
_AMBIGUOUS = ('pred', 'predict', 'unknown', 'unlabeled', 'unlabelled', 'train', 'test', 'val', 'valid', 'validation')


class Roles(NamedTuple):
  """The folders of normal images, of anomalous images and of masks, as paths relative to the root."""
  normal: tuple[str, ...]
  abnormal: tuple[str, ...]
  masks: tuple[str, ...]


def has_image_folders(root: Path) -> bool:
  """Returns whether a folder directly in `root` holds images."""
  return any(inventory.has_images(path) for path in inventory.folders(root).values())


def assign_roles(root: Path, normal: Sequence[str] | None = None, abnormal: Sequence[str] | None = None,
                 masks: Sequence[str] | None = None) -> Roles:
  """Returns the roles of the folders below `root`: those given by name, or by the folders' own names if None.

  Normal is the one folder with a name in `inventory.NORMAL_NAMES`, masks are in folders called so, anomalous is every
  other folder with images.

  Raises:
    ValueError: the names are ambiguous, or a given folder does not exist; says what is there and how to choose.
    FileNotFoundError: `root` is not a folder.
  """
  if not root.is_dir():
    raise FileNotFoundError(f'{root} {"is not a folder" if root.exists() else "does not exist"}')
  inside = list(inventory.folders(root))
  for name in (*(normal or ()), *(abnormal or ()), *(masks or ())):
    if not (root / name).is_dir():
      near = difflib.get_close_matches(name, inside, 1)
      raise ValueError(f'{root}: no folder {name!r} in it' + (f', did you mean {near[0]!r}?' if near else '.')
                       + f' It holds {inventory.outline(root)}')
  named = {*(normal or ()), *(abnormal or ())}
  mask_like = [n for n in inside if n not in named and _is_for_masks(n, inside)]
  masks = tuple(mask_like if masks is None else masks)
  rest = [n for n in inside if n not in (*masks, *mask_like) and inventory.has_images(root / n)]
  if normal is None:
    normal = inventory.normal_names(n for n in rest if n not in named)
    if len(normal) > 1 or not (normal or abnormal):
      *names, last = inventory.NORMAL_NAMES
      why = (f'{" and ".join(normal)} both may' if normal else
             f'no folder with images is called {", ".join(names)} or {last}')
      raise ValueError(_ambiguous(root, 'normal', why, normal or rest))
  if abnormal is None:
    abnormal = [n for n in rest if n not in normal]
    unsure = [n for n in abnormal if n.casefold() in _AMBIGUOUS]
    if unsure or not abnormal:
      why = f'{" and ".join(unsure)} may hold either' if unsure else 'no other folder holds images'
      raise ValueError(_ambiguous(root, 'abnormal', why, [n for n in abnormal if n not in unsure] or abnormal))
  return Roles(tuple(normal), tuple(abnormal), masks)


def _is_for_masks(name: str, inside: Sequence[str]) -> bool:
  lower = name.casefold()
  return lower in _MASK_NAMES or any(lower == other.casefold() + s for other in inside for s in _FOLDER_SUFFIXES)


def _ambiguous(root: Path, key: str, why: str, candidates: Sequence[str]) -> str:
  example = f', such as {" or ".join(candidates)}' if candidates else ''
  return (f'{root}: cannot tell which folder holds the {"normal" if key == "normal" else "anomalous"} images: {why}. '
          f'Write folder:{root},{key}=NAME{example}; likewise normal=, abnormal= and masks=, with + between several '
          f'names and nothing for none. It holds {inventory.outline(root)}')


def scan(root: Path | str, normal: Sequence[str] | None = None, abnormal: Sequence[str] | None = None,
         masks: Sequence[str] | None = None) -> Inventory:
  """Returns the images of plain folders as one category named after `root`, all in split 'test'.

  The defect type is the folder's name. Masks pair with images by stem, checked in both directions; normal images need
  none. Without a folder of masks the images have labels only. Arguments and errors are those of `assign_roles`.
  """
  root = Path(root).expanduser().absolute()
  roles = assign_roles(root, normal, abnormal, masks)
  scanned = inventory.empty()
  images = {name: _scan_images(scanned, root / name) for name in (*roles.normal, *roles.abnormal)}
  mask_folders = _mask_folders(scanned, root, roles)
  ground_truth = {}
  for path, owners in mask_folders.items():
    ground_truth |= _pair(scanned, path, {name: images[name] for name in owners}, roles.abnormal)
  for name, by_stem in images.items():
    anomalous = name in roles.abnormal
    for stem, image in by_stem.items():
      mask = ground_truth.get((name, stem))
      if anomalous and mask_folders and mask is None:
        expected = [str(path) for path, owners in mask_folders.items() if name in owners]
        scanned.problems.append(f'{image}: no mask {stem}.* in '
                                f'{" or ".join(expected or [str(root / m) for m in roles.masks])}')
      defect_type = name.replace('/', '-') if anomalous else GOOD
      unique = stem if anomalous or len(roles.normal) == 1 else f'{name.replace("/", "-")}-{stem}'
      scanned.items.append(Item(root.name, 'test', defect_type, unique, image, mask, int(anomalous)))
  return scanned.sort()


def _scan_images(scanned: Inventory, path: Path) -> dict[str, Path]:
  """{stem: image} of one folder; masks among the images and an empty folder are problems."""
  by_stem, problems, notes = inventory.files(path)
  for stem, image in by_stem.items():
    base = next((stem.removesuffix(s) for s in _SUFFIXES if s and stem.endswith(s)), None)
    if base in by_stem:
      problems.append(f'{image}: looks like the mask of {by_stem[base].name}; put masks into a folder of their own')
  if not by_stem:
    problems.append(f'{path}: no image directly in it. It holds {inventory.outline(path)}')
  scanned.problems.extend(problems)
  scanned.notes.extend(notes)
  return by_stem


def _mask_folders(scanned: Inventory, root: Path, roles: Roles) -> dict[Path, tuple[str, ...]]:
  """{folder with masks: the image folders whose masks it may hold}."""
  owners_of, image_folders = {}, (*roles.normal, *roles.abnormal)
  for name in roles.masks:
    for inner, path in inventory.folders(root / name).items():
      owners = tuple(n for n in image_folders if n.rpartition('/')[2] == inner)
      if owners:
        owners_of[path] = owners
      elif inventory.has_images(path):
        scanned.problems.append(f'{path}: masks, but no folder of images has this name; there are '
                                f'{", ".join(image_folders)}')
    if inventory.has_images(root / name):
      named_after = tuple(n for n in image_folders if name.casefold() in {n.casefold() + s for s in _FOLDER_SUFFIXES})
      owners_of[root / name] = named_after or image_folders
  return owners_of


def _pair(scanned: Inventory, path: Path, images: dict[str, dict[str, Path]], abnormal: Sequence[str]
          ) -> dict[tuple[str, str], Path]:
  """{(image folder, stem): mask} of one folder of masks; a mask of no image or of several is a problem."""
  masks, problems, _ = inventory.files(path)
  scanned.problems.extend(problems)
  claims = collections.defaultdict(list)
  for name, by_stem in images.items():
    for stem in by_stem:
      claims[next((stem + s for s in _SUFFIXES if stem + s in masks), None)].append((name, stem))
  pairs = {}
  for key, mask in masks.items():
    owners = [claim for claim in claims[key] if claim[0] in abnormal] or claims[key]  # normal images need no mask
    if len(owners) == 1:
      pairs[owners[0]] = mask
    elif owners:
      candidates = ' or '.join(str(images[name][stem]) for name, stem in owners)
      scanned.problems.append(f'{mask}: may belong to {candidates}; put the masks of each folder into '
                              f'{path}/<its name>')
    else:
      scanned.problems.append(f'{mask}: mask without an image in {" or ".join(images)}')
  return pairs
