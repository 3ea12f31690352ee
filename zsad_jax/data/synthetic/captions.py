"""Captions of procedural images with the claims they make, and the words a tokenizer must know."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zsad_jax.data.synthetic import Category

TEMPLATES = (
    '{}', '{}.', 'a {}.', 'the {}.', 'a photo of a {}.', 'a photo of the {}.', 'a photo of {}', 'a photo of a {}',
    'a photo of an {}', 'a photo of one {}.', 'a photo of my {}.', 'a close-up photo of a {}.',
    'a close-up photo of the {}.', 'a cropped photo of a {}.', 'a cropped photo of the {}.', 'a good photo of a {}.',
    'a good photo of the {}.', 'a bad photo of a {}.', 'a bad photo of the {}.', 'a bright photo of a {}.',
    'a bright photo of the {}.', 'a dark photo of a {}.', 'a dark photo of the {}.', 'a blurry photo of a {}.',
    'a blurry photo of the {}.', 'a low resolution photo of a {}.', 'a low resolution photo of the {}.',
    'a jpeg corrupted photo of a {}.', 'a jpeg corrupted photo of the {}.', 'a black and white photo of a {}.',
    'a black and white photo of the {}.', 'a photo of a small {}.', 'a photo of the small {}.',
    'a photo of a large {}.', 'a photo of the large {}.', 'a photo of a cool {}.', 'a photo of the cool {}.',
    'a photo of a nice {}.',
    'a photo of a {} for visual inspection.', 'a photo of the {} for visual inspection.',
    'a photo of a {} for anomaly detection.', 'a photo of the {} for anomaly detection.', 'there is a {} in the scene.',
    'there is the {} in the scene.', 'this is a {} in the scene.', 'this is one {} in the scene.',
    'a rendering of a {}.', 'a rendition of the {}.', 'a picture of a {}.', 'itap of a {}.', 'this is a photo of {}',
)
NORMAL = ('{}', '{}', '{}', 'normal {}', 'flawless {}', 'perfect {}', 'unblemished {}', 'good {}', 'intact {}',
          'clean {}', 'pristine {}', 'undamaged {}', '{} without flaw', '{} without defect', '{} without damage')
DAMAGED = ('damaged {}', 'damaged {}', 'damaged {}', 'broken {}', 'defective {}', 'anomalous {}', 'abnormal {}',
           'flawed {}', 'imperfect {}', 'blemished {}', 'faulty {}', '{} with flaw', '{} with defect', '{} with damage')
KINDS = {
    'crack': ('cracked {}', '{} with crack'), 'scratch': ('scratched {}', '{} with scratch'),
    'hole': ('punctured {}', '{} with hole'), 'stain': ('stained {}', '{} with stain', '{} with contamination'),
    'chip': ('chipped {}', '{} with missing part'), 'bend': ('bent {}', '{} with deformation', 'deformed {}'),
    'discolour': ('discoloured {}', '{} with discolouration'), 'particle': ('contaminated {}', '{} with particle'),
    'dent': ('dented {}', '{} with dent'), 'corrosion': ('corroded {}', '{} with corrosion', '{} with rust'),
    'smear': ('smeared {}', '{} with smear'), 'wear': ('worn {}', '{} with wear'),
    'growth': ('dirty {}', '{} with mould', '{} with foreign matter'),
}
WITHOUT = ('{} without scratch', '{} without crack', '{} without contamination', '{} without hole', '{} without stain')
ANYTHING = ('object', 'object', 'object', 'object', 'item', 'thing')

# Words of the prompt ensembles (CLIP's 80 templates, WinCLIP, APRIL-GAN, CLIP-AD, FuzzyCLIP, RWDA, AnomalyCLIP's state
# words) and class names of MVTec AD and VisA that no caption above contains: in the tokenizer, not in the training.
WORDS = ' '.join((
    'many sculpture hard to see graffiti tattoo embroidered drawing painting pixelated plastic dirty video game doodle',
    'origami sketch toy cartoon art plushie weird it is not and pristine picture x photo in the image product part',
    'component texture surface manufactured industrial inspection quality thread thrown colour color misplaced swap',
    'glue burn blister fibre foreign swapped bottle cable capsule carpet grid hazelnut leather metal nut pill screw',
    'tile toothbrush transistor wood zipper candle capsules cashew chewing gum fryum macaroni pcb pipe ball coffee',
    'leaf colored cube printed circuit board medical brain skin head lung colon anomaly normal defect-free terrazzo',
    'knit shingle jar lid mesh battery plug wool stone metal rubber natural clay')).split()


class Claim(NamedTuple):
  """What a caption claims about its image; -1 for what it leaves open.

  Attributes:
    category, colour, material, defect: indices in the caller's vocabularies.
    state: 0 normal, 1 anomalous.
  """
  category: int
  state: int
  defect: int
  colour: int
  material: int


def pair(rng: np.random.Generator, *, noun: str, colour: str, material: str, defect: str, indices: Claim
         ) -> tuple[str, str, Claim]:
  """Returns one caption in its normal and its anomalous state, and what both claim; their state is left open.

  Args:
    rng: draws template and words.
    noun, colour, material: words for the image.
    defect: its kind of defect, or one it could have; the anomalous text may name it.
    indices: the facts about the image.
  """
  anything = rng.random() < .4
  name = str(rng.choice(ANYTHING)) if anything else noun
  with_material, with_colour = rng.random() < .2, rng.random() < .35
  words = ([colour] if with_colour else []) + ([material] if with_material else []) + [name]
  subject = ' '.join(words)
  specific = rng.random() < .3
  bad = str(rng.choice(KINDS[defect] if specific else DAMAGED))
  if '{} with' in bad:
    good = str(rng.choice(NORMAL[-3:] + WITHOUT + NORMAL[:3]))
  else:
    good = str(rng.choice(NORMAL))
  template = str(rng.choice(TEMPLATES))
  claim = Claim(-1 if anything else indices.category, -1, indices.defect if specific else -1,
                indices.colour if with_colour else -1, indices.material if with_material else -1)
  return template.format(good.format(subject)), template.format(bad.format(subject)), claim


def true_of(claims: np.ndarray, facts: np.ndarray) -> np.ndarray:
  """Returns whether caption j is true of image i, [I, J] bool, from claims [J, 5] and facts [I, 5]."""
  return ((claims[None] == -1) | (claims[None] == facts[:, None])).all(-1)


def corpus(categories: Sequence[Category], count: int = 20000, seed: int = 0) -> list[str]:
  """Returns the lines that a tokenizer is trained on: captions of `categories` and every word in WORDS."""
  rng = np.random.default_rng(seed)
  lines, blank = [], Claim(-1, -1, -1, -1, -1)
  kinds = list(KINDS)
  for _ in range(count):
    c = categories[rng.integers(len(categories))]
    lines += pair(rng, noun=c.noun, colour=str(rng.choice(c.colours)), material=c.material,
                  defect=str(rng.choice(kinds)), indices=blank)[:2]
  return lines + [' '.join(WORDS)] * 20
