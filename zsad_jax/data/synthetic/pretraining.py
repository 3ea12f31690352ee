"""Pretraining data of the tiny CLIP: images drawn in chunks by parallel processes, and their captions."""

import itertools
import multiprocessing
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from zsad_jax.data import synthetic
from zsad_jax.data.read_ahead import read_ahead
from zsad_jax.data.synthetic import bpe, canvas, captions
from zsad_jax.data.synthetic.bpe import encode

__all__ = ['Chunk', 'Vocabulary', 'batch_of', 'batches', 'caption_pairs', 'chunks', 'draw', 'encode', 'facts_of',
           'tokenizer', 'vocabulary']
LENGTH = 18  # tokens of the longest caption with some margin; the text tower is causal, so truncation is exact
COLOURS = tuple(canvas.COLOURS)

Box = tuple[int, int, int, int]  # left, top, right, bottom


class Chunk(NamedTuple):
  """Scenes of a group, each once flawless and once damaged.

  Attributes:
    image: [n, 2, R, R, 3] uint8, flawless then damaged.
    mask: [n, R, R] uint8 0/1 of the damaged one.
    category, defect, colour: [n] int32 indices in vocabulary(group).
  """
  image: np.ndarray
  mask: np.ndarray
  category: np.ndarray
  defect: np.ndarray
  colour: np.ndarray


class Vocabulary(NamedTuple):
  """The words behind the indices of a chunk; materials are per category."""
  nouns: tuple[str, ...]
  materials: tuple[str, ...]
  defects: tuple[str, ...]
  colours: tuple[str, ...]


def vocabulary(group: str) -> Vocabulary:
  """Returns the words of one group."""
  categories = synthetic.group(group)
  return Vocabulary(tuple(c.noun for c in categories), tuple(c.material for c in categories),
                    tuple(sorted({d for c in categories for d in c.defects})), COLOURS)


def tokenizer(merges: int) -> Tokenizer:
  """Returns the tokenizer of the captions, with at most that many merges; see bpe.train."""
  return bpe.train(captions.corpus(synthetic.group('pretrain')), merges)


def draw(group: str, number: int, count: int, size: int, seed: int, split: str = 'pretrain') -> Chunk:
  """Returns chunk `number` of `count` scenes, a pure function of its arguments; categories take turns."""
  categories, words = synthetic.group(group), vocabulary(group)
  image = np.empty((count, 2, size, size, 3), np.uint8)
  mask = np.empty((count, size, size), np.uint8)
  labels = np.empty((3, count), np.int32)
  for i in range(count):
    k, index = i % len(categories), number * (count // len(categories) + 1) + i // len(categories)
    drawing = synthetic.example(categories[k], split, index, size=size, seed=seed)
    image[i, 0], image[i, 1], mask[i] = drawing.twin, drawing.image, drawing.mask > 0
    labels[:, i] = k, words.defects.index(drawing.defect), COLOURS.index(drawing.colour)
  return Chunk(image, mask, *labels)


def chunks(folder: pathlib.Path | str, group: str, *, count: int, size: int, seed: int, start: int = 0,
           workers: int = 1, keep: int = 4) -> Iterator[Chunk]:
  """Yields chunks start, start + 1, ... without end, drawn ahead by `workers` processes into `folder`.

  A chunk on disk is read; chunks that the caller has passed are removed, so at most `keep` + `workers` remain.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  # One process per chunk: if the trainer is killed, they end with their chunk.
  context = multiprocessing.get_context('spawn')

  def start_drawing(number):
    path = folder / _name(group, number, count, size, seed)
    process = context.Process(target=_write, args=(path, group, number, count, size, seed), daemon=True)
    process.start()
    return path, process

  ahead = {k: start_drawing(k) for k in range(start, start + workers)}
  for number in itertools.count(start):
    ahead[number + workers] = start_drawing(number + workers)
    path, process = ahead.pop(number)
    process.join()
    if process.exitcode:
      raise RuntimeError(f'drawing {path} failed with exit code {process.exitcode}; its traceback is above')
    yield _read(path)
    (folder / _name(group, number - keep, count, size, seed)).unlink(missing_ok=True)


def _name(group: str, number: int, count: int, size: int, seed: int) -> str:
  return f'{group}-{seed}-{size}-{count}-{number:05d}.npz'


def _write(path: pathlib.Path, group: str, number: int, count: int, size: int, seed: int) -> None:
  if not path.exists():
    part = path.with_suffix(f'.part{os.getpid()}')
    with part.open('wb') as file:
      np.savez(file, **draw(group, number, count, size, seed)._asdict())
    os.replace(part, path)


def _read(path: pathlib.Path) -> Chunk:
  with np.load(path, allow_pickle=False) as file:
    return Chunk(**{k: file[k] for k in Chunk._fields})


def facts_of(chunk: Chunk, words: Vocabulary, rows: np.ndarray, damaged: np.ndarray) -> np.ndarray:
  """Returns the facts about images (rows, damaged) of a chunk, [B, 5] int32 in the order of captions.Claim."""
  materials = sorted(set(words.materials))
  material = np.array([materials.index(m) for m in words.materials], np.int32)
  category = chunk.category[rows]
  return np.stack([category, damaged, np.where(damaged, chunk.defect[rows], -2), chunk.colour[rows],
                   material[category]], 1).astype(np.int32)


def caption_pairs(rng: np.random.Generator, words: Vocabulary, facts: np.ndarray, defect: np.ndarray
                  ) -> tuple[list[str], np.ndarray]:
  """Returns caption pairs of images: [normal..., anomalous...] texts, 2B of them, and their claims [2B, 5].

  Args:
    rng: draws templates and words.
    words: of the group.
    facts: [B, 5] from `facts_of`.
    defect: [B] kind that the anomalous text may name.
  """
  normal, anomalous, claims = [], [], []
  for row, kind in zip(facts, defect):
    indices = captions.Claim(row[0], row[1], kind, row[3], row[4])
    good, bad, claim = captions.pair(rng, noun=words.nouns[row[0]], colour=words.colours[row[3]],
                                     material=words.materials[row[0]], defect=words.defects[kind], indices=indices)
    normal.append(good)
    anomalous.append(bad)
    claims.append(claim)
  claims = np.array(claims, np.int32)
  good, bad = claims.copy(), claims.copy()
  good[:, 1], good[:, 2], bad[:, 1] = 0, -1, 1
  return normal + anomalous, np.concatenate([good, bad])


def batches(tokenizer: Tokenizer, folder: pathlib.Path | str, *, phases: Any, pool: Any, patch: int, seed: int,
            start: int = 0) -> Iterator[dict]:
  """Yields training batches of steps start, start + 1, ..., each a pure function of seed and step, one ahead.

  Args:
    tokenizer: from `tokenizer`.
    folder: of the chunks.
    phases: record of equally long tuples: steps, image_size (pixels per side), batch (even) and crop (smallest and
      largest side of a random crop, as shares of the drawn image).
    pool: record of count (scenes per chunk), size (pixels per side), reuse (steps per chunk), workers.
    patch: pixels per side of a patch.
    seed: of drawings, crops and captions.
    start: first step.

  Yields:
    image [B, R, R, 3] uint8, two of each scene; ids [B, L] int32, B / 2 normal texts, one per scene, then the anomalous
    ones; true [B, B] bool, whether text j is true of image i; label [B] float32; known [B] float32, 0 if the crop
    leaves the label open; cover [B, G, G] float32, share of damaged pixels in each patch.
  """
  ends, words = np.cumsum(phases.steps), vocabulary('pretrain')
  stream = chunks(folder, 'pretrain', count=pool.count, size=pool.size, seed=seed, start=start // pool.reuse,
                  workers=pool.workers)

  def steps() -> Iterator[tuple[int, Chunk]]:
    chunk = None
    for step in range(start, int(ends[-1])):
      if chunk is None or step % pool.reuse == 0:
        chunk = next(stream)
      yield step, chunk

  def batch(item: tuple[int, Chunk]) -> dict:
    step, chunk = item
    phase = int(np.searchsorted(ends, step, 'right'))
    return batch_of(chunk, words, tokenizer, np.random.default_rng([seed, step]), patch=patch,
                    batch=phases.batch[phase], image_size=phases.image_size[phase], crop=phases.crop[phase])

  yield from read_ahead(batch, steps(), threads=1, depth=1)


def batch_of(chunk: Chunk, words: Vocabulary, tokenizer: Tokenizer, rng: np.random.Generator, *, batch: int,
             image_size: int, patch: int, crop: tuple[float, float]) -> dict:
  """Returns one batch of `batches`: random scenes of a chunk, flawless and damaged, cropped, rotated and captioned.

  Both images of a scene are cropped and rotated alike, so they differ by the damage alone, not even by where a crop
  around damage tends to be.
  """
  rows = rng.choice(len(chunk.image), batch // 2, replace=False)
  images = np.empty((batch, image_size, image_size, 3), np.uint8)
  cover = np.zeros((batch, image_size // patch, image_size // patch), np.float32)
  label, known = np.zeros(batch, np.float32), np.ones(batch, np.float32)
  for i, row in enumerate(rows):
    box, turn = _crop(rng, chunk.mask[row], crop), int(rng.integers(8))
    for bad in (0, 1):
      image = Image.fromarray(chunk.image[row, bad]).resize((image_size,) * 2, Image.Resampling.BICUBIC, box)
      images[2 * i + bad] = _rotated(np.asarray(image), turn)
    share = _share(chunk.mask[row], box, cover.shape[1])
    visible = share.sum() * ((box[2] - box[0]) / cover.shape[1]) ** 2 / max(chunk.mask[row].sum(), 1)
    cover[2 * i + 1] = _rotated(share, turn)
    label[2 * i + 1], known[2 * i + 1] = visible > 0, visible == 0 or visible > .3
  facts = facts_of(chunk, words, np.repeat(rows, 2), (label > 0).astype(int))
  texts, claims = caption_pairs(rng, words, facts[::2], chunk.defect[rows])
  return dict(image=images, ids=encode(tokenizer, texts, LENGTH), true=captions.true_of(claims, facts), label=label,
              known=known, cover=cover)


def _share(mask: np.ndarray, box: Box | None, grid: int) -> np.ndarray:
  """Share of damaged pixels [grid, grid] float32 in each patch of a crop."""
  share = Image.fromarray(mask.astype(np.float32)).resize((grid, grid), Image.Resampling.BOX, box)
  share = np.asarray(share)
  return np.where(share < 1e-4, 0, share)


def _crop(rng: np.random.Generator, mask: np.ndarray, sides: tuple[float, float]) -> Box:
  """A random square whose side is a share of the image's, mostly around a point of the damage."""
  side = mask.shape[0]
  wide = int(rng.integers(round(side * sides[0]), round(side * sides[1]) + 1))
  low, high = np.zeros(2, int), np.full(2, side - wide)
  if mask.any() and rng.random() < .9:
    points = np.argwhere(mask)
    at = points[rng.integers(len(points))][::-1]
    low, high = np.clip(at - wide + 4, 0, side - wide), np.clip(at - 4, 0, side - wide)
  left, top = (int(rng.integers(a, max(a, b) + 1)) for a, b in zip(low, high))
  return left, top, left + wide, top + wide


def _rotated(x: np.ndarray, turn: int) -> np.ndarray:
  """One of the eight symmetries of the square."""
  x = np.rot90(x, turn % 4)
  return x[::-1] if turn > 3 else x
