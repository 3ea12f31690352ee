"""Image files below any folder."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from zsad_jax.data import images


class ImageFiles(NamedTuple):
  """A folder `root`, image files relative to it in sorted order, and the number of links outside that were skipped."""
  root: Path
  files: list[Path]
  links: int


def find(path: Path | str, without: Collection[Path] = ()) -> ImageFiles:
  """Returns the image files below the folder `path`, or `path` itself if it is a file.

  Only names with an image's extension count; hidden files and folders and the folders `without` are skipped. Links to
  folders are not followed, and links to files only if they point below `path`, so a search neither escapes nor loops.

  Raises:
    FileNotFoundError: `path` does not exist, or has no image below it; the message says what is there.
  """
  root = Path(path).expanduser()
  if root.is_file():
    return ImageFiles(root.parent.absolute(), [Path(root.name)], 0)
  if not root.is_dir():
    raise FileNotFoundError(f'{root} is neither a folder nor a file')
  root = root.resolve()
  excluded, files, links, others = {Path(p).resolve() for p in without}, [], 0, 0
  for parent, inner, names in os.walk(root):
    parent = Path(parent)
    inner[:] = [name for name in inner if not name.startswith('.') and parent / name not in excluded]
    links += sum((parent / name).is_symlink() for name in inner)
    for name in names:
      file = parent / name
      if name.startswith('.') or file.suffix.lower() not in images.SUFFIXES:
        others += not name.startswith('.')
      elif file.is_symlink() and not _points_inside(file, root):
        links += 1
      else:
        files.append(file.relative_to(root))
  if not files:
    raise FileNotFoundError(f'{root}: no image below it ({others:,} other files, {links:,} links that are not '
                            f'followed); image files end in {", ".join(images.SUFFIXES)}')
  return ImageFiles(root, sorted(files), links)


def _points_inside(link: Path, root: Path) -> bool:
  """Whether a link leads to a file below `root`."""
  try:
    target = link.resolve(strict=True)
  except (OSError, RuntimeError):  # it leads nowhere, or to itself
    return False
  return target.is_file() and target.is_relative_to(root)
