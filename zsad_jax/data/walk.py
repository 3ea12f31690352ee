"""The picture files below a folder, whatever it holds."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from zsad_jax.data import images


class Found(NamedTuple):
  """`root`, image files relative to it in sorted order, and how many links lead elsewhere and were left out."""
  root: Path
  files: list[Path]
  links: int


def pictures(path, without: Collection[Path] = ()) -> Found:
  """Returns the image files below the folder `path`, or `path` itself where it is a file.

  Only names that end as images do count, and hidden files and folders are passed over, as are the folders `without`.
  Links to folders are not followed, links to files only where these lie below `path`: a walk neither escapes nor loops.

  Raises:
    FileNotFoundError: there is no `path`, or no image below it; the message says what is there.
  """
  root = Path(path).expanduser()
  if root.is_file():
    return Found(root.parent.absolute(), [Path(root.name)], 0)
  if not root.is_dir():
    raise FileNotFoundError(f'{root} is neither a folder nor a file')
  root = root.resolve()
  barred, found, links, others = {Path(p).resolve() for p in without}, [], 0, 0
  for where, inner, names in os.walk(root):
    where = Path(where)
    inner[:] = [name for name in inner if not name.startswith('.') and where / name not in barred]
    links += sum((where / name).is_symlink() for name in inner)
    for name in names:
      file = where / name
      if name.startswith('.') or file.suffix.lower() not in images.SUFFIXES:
        others += not name.startswith('.')
      elif file.is_symlink() and not _inside(file, root):
        links += 1
      else:
        found.append(file.relative_to(root))
  if not found:
    raise FileNotFoundError(f'{root}: no image below it ({others} other files, {links} links that are not followed); '
                            f'image files end in {", ".join(images.SUFFIXES)}')
  return Found(root, sorted(found), links)


def _inside(link: Path, root: Path) -> bool:
  """Whether a link leads to a file below `root`."""
  try:
    target = link.resolve(strict=True)
  except (OSError, RuntimeError):  # it leads nowhere, or to itself
    return False
  return target.is_file() and target.is_relative_to(root)
