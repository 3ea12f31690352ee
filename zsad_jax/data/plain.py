"""Plain folders: one of normal images, others of anomalous ones, and where there are masks, folders of them.

    <root>/<good, normal, ok, no, negative or healthy>/*.png
    <root>/<any other name>/*.png
    <root>/<masks, ground_truth, ...>/<stem>.png      or <stem>_mask.png, or one level deeper, in the folder's name
"""

import collections
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from zsad_jax.data import survey
from zsad_jax.data.survey import GOOD, Item, Survey

_MASK_NAMES = ('mask', 'masks', 'ground_truth', 'ground-truth', 'groundtruth', 'gt', 'label', 'labels', 'annotation',
               'annotations', 'segmentation', 'segmentations')
_MASKS_OF = ('_mask', '_masks', '_gt', '_ground_truth')          # what a mask folder's name may add to its images'
_SUFFIXES = ('_mask', '', '_label', '_gt', '_seg', '_segmentation')      # what a mask's stem may add to its image's
# Folders whose images are as likely to be normal as not.
_UNSURE = ('pred', 'predict', 'unknown', 'unlabeled', 'unlabelled', 'train', 'test', 'val', 'valid', 'validation')


class Choice(NamedTuple):
  """The folders of normal images, of anomalous ones and of masks, as paths relative to the root."""
  normal: tuple[str, ...]
  abnormal: tuple[str, ...]
  masks: tuple[str, ...]


def filled(root: Path) -> bool:
  """Returns whether a folder directly in `root` holds images."""
  return any(survey.has_images(path) for path in survey.folders(root).values())


def choose(root: Path, normal: Sequence[str] | None = None, abnormal: Sequence[str] | None = None,
           masks: Sequence[str] | None = None) -> Choice:
  """Returns which folders below `root` are read as what: those named, None leaves it to the folders' names.

  Normal is the one folder of a name in `survey.NORMAL_NAMES`, masks are in folders called so, anomalous is every other
  folder with images.

  Raises:
    ValueError: the names do not tell, or a named folder is not there; says what was found and how to choose.
    FileNotFoundError: `root` is no folder.
  """
  if not root.is_dir():
    raise FileNotFoundError(f'{root} is {"no folder" if root.exists() else "missing"}')
  inside = list(survey.folders(root))
  for name in (*(normal or ()), *(abnormal or ()), *(masks or ())):
    if not (root / name).is_dir():
      near = difflib.get_close_matches(name, inside, 1)
      raise ValueError(f'{root}: no folder {name!r} in it' + (f', did you mean {near[0]!r}?' if near else '')
                       + f' It holds {survey.outline(root)}')
  named = {*(normal or ()), *(abnormal or ())}
  called_masks = [n for n in inside if n not in named and _is_for_masks(n, inside)]
  masks = tuple(called_masks if masks is None else masks)
  rest = [n for n in inside if n not in (*masks, *called_masks) and survey.has_images(root / n)]
  if normal is None:
    normal = survey.normal_names(n for n in rest if n not in named)
    if len(normal) > 1 or not (normal or abnormal):
      names = f'{", ".join(survey.NORMAL_NAMES[:-1])} or {survey.NORMAL_NAMES[-1]}'
      why = f'{" and ".join(normal)} both may' if normal else f'no folder with images is called {names}'
      raise ValueError(_unclear(root, 'normal', why, normal or rest))
  if abnormal is None:
    abnormal = [n for n in rest if n not in normal]
    unsure = [n for n in abnormal if n.casefold() in _UNSURE]
    if unsure or not abnormal:
      why = f'{" and ".join(unsure)} may hold either' if unsure else 'no other folder holds images'
      raise ValueError(_unclear(root, 'abnormal', why, [n for n in abnormal if n not in unsure] or abnormal))
  return Choice(tuple(normal), tuple(abnormal), masks)


def _is_for_masks(name: str, inside: Sequence[str]) -> bool:
  lower = name.casefold()
  return lower in _MASK_NAMES or any(lower == other.casefold() + s for other in inside for s in _MASKS_OF)


def _unclear(root: Path, key: str, why: str, candidates: Sequence[str]) -> str:
  return (f'{root}: cannot tell which folder holds the {"normal" if key == "normal" else "anomalous"} images: {why}. '
          f'Say folder:{root},{key}=NAME' + (f', such as {" or ".join(candidates)}' if candidates else '') +
          '; likewise normal=, abnormal= and masks=, with + between several names and nothing for none. '
          f'It holds {survey.outline(root)}')


def walk(root: Path, normal: Sequence[str] | None = None, abnormal: Sequence[str] | None = None,
         masks: Sequence[str] | None = None) -> Survey:
  """Returns the images of plain folders as one category, called as `root`, all in split 'test'.

  The defect type is the folder's name. Masks pair with images by stem, checked both ways; normal images need none.
  Without a folder of masks the images are label-only. Arguments and errors are those of `choose`.
  """
  root = Path(root).expanduser().absolute()
  choice = choose(root, normal, abnormal, masks)
  out = Survey([], [], [])
  images = {name: _images(out, root / name) for name in (*choice.normal, *choice.abnormal)}
  where = _mask_folders(out, root, choice)
  truth = {}
  for path, owners in where.items():
    truth |= _pair(out, path, {name: images[name] for name in owners}, choice.abnormal)
  for name, found in images.items():
    anomalous = name in choice.abnormal
    for stem, image in found.items():
      mask = truth.get((name, stem))
      if anomalous and where and mask is None:
        asked = [str(path) for path, owners in where.items() if name in owners] or [str(root / m) for m in choice.masks]
        out.problems.append(f'{image}: no mask {stem}.* in {" or ".join(asked)}')
      kind = name.replace('/', '-') if anomalous else GOOD
      unique = stem if anomalous or len(choice.normal) == 1 else f'{name.replace("/", "-")}-{stem}'
      out.items.append(Item(root.name, 'test', kind, unique, image, mask, int(anomalous)))
  out.items.sort(key=lambda item: item[:4])
  return out


def _images(out: Survey, path: Path) -> dict[str, Path]:
  """{stem: image} of one folder; masks among the images and an empty folder are problems."""
  found, problems, notes = survey.files(path)
  for stem, image in found.items():
    base = next((stem.removesuffix(s) for s in _SUFFIXES if s and stem.endswith(s)), None)
    if base in found:
      problems.append(f'{image}: looks like the mask of {found[base].name}; put masks into a folder of their own')
  if not found:
    problems.append(f'{path}: no image directly in it. It holds {survey.outline(path)}')
  out.problems.extend(problems)
  out.notes.extend(notes)
  return found


def _mask_folders(out: Survey, root: Path, choice: Choice) -> dict[Path, tuple[str, ...]]:
  """{folder with masks: the image folders whose masks it may hold}."""
  found = {}
  for name in choice.masks:
    own = [n for n in (*choice.normal, *choice.abnormal) if name.casefold() in {n.casefold() + s for s in _MASKS_OF}]
    below = survey.folders(root / name)
    for inner, path in below.items():
      owners = tuple(n for n in (*choice.normal, *choice.abnormal) if n.rpartition('/')[2] == inner)
      if owners:
        found[path] = owners
      elif survey.has_images(path):
        out.problems.append(f'{path}: masks of no folder of images; those are {", ".join(choice[0] + choice[1])}')
    if survey.has_images(root / name):
      found[root / name] = tuple(own) or (*choice.normal, *choice.abnormal)
  return found


def _pair(out: Survey, path: Path, images: dict[str, dict[str, Path]], abnormal: Sequence[str]
          ) -> dict[tuple[str, str], Path]:
  """{(image folder, stem): mask} of one folder of masks; a mask of no image, or of two, is a problem."""
  masks, problems, _ = survey.files(path)
  out.problems.extend(problems)
  claims = collections.defaultdict(list)
  for name, found in images.items():
    for stem in found:
      claims[next((stem + s for s in _SUFFIXES if stem + s in masks), None)].append((name, stem))
  truth = {}
  for key, mask in masks.items():
    owners = [c for c in claims[key] if c[0] in abnormal] or claims[key]      # normal images need no mask
    if len(owners) == 1:
      truth[owners[0]] = mask
    elif owners:
      out.problems.append(f'{mask}: may belong to {" or ".join(str(images[n][s]) for n, s in owners)}; put the masks '
                          f'of each folder into {path}/<its name>')
    else:
      out.problems.append(f'{mask}: mask without an image in {" or ".join(images)}')
  return truth
