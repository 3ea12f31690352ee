"""Small stand-ins for what the pages name and no test can have: published CLIPs and data sets, photographs, hours.

A published CLIP is one with random weights: as many blocks and patches of the same size, narrow tokens, under its own
name in the folder of downloads. A published data set is two of its categories, drawn, in its archive's layout. The data
sets that the program draws have three categories of a few images. So the whole program runs, in little time.
"""

import dataclasses
import functools
import zlib
from pathlib import Path

import jax
import numpy as np
from drawn_folders import draw
from PIL import Image

from zsad_jax.clip import archs
from zsad_jax.clip.weights import port, published, safetensors_files
from zsad_jax.data import catalog, dataset_names
from zsad_jax.data.synthetic import builder
from zsad_jax.engine import runtime

ROOT = Path(__file__).parents[1]
TRAIN, NORMAL = 4, 2  # images of a category; as many are anomalous in a test split as are normal
SETS = {'mvtec_ad': ('bottle', 'wood'), 'visa': ('candle', 'pcb1')}
WIDTH = 32  # of the tokens of narrow towers
RELEASED = {  # {file: {name: shape}} of AnomalyCLIP's prompts and SDP+'s layers, as their authors save them
  'prompts': {'ctx_pos': (1, 1, 12, WIDTH), 'ctx_neg': (1, 1, 12, WIDTH),
              **{f'compound_prompts_text.{block}': (4, WIDTH) for block in range(8)}},
  'LAYERS': {f'fc.{tap}.{name}': shape for tap in range(4)
             for name, shape in (('weight', (WIDTH, WIDTH)), ('bias', (WIDTH,)))},
}
SPOT = np.zeros((48, 48), bool)
SPOT[10:24, 16:36] = True


def checkout(patch, folder, whole=False):
  """Makes `folder` the current one: a checkout to type commands in, with DATA, PHOTOS and all that pages speak of.

  Args:
    patch: undoes it.
    folder: an empty one.
    whole: with all categories of the data sets, not with two or three.
  """
  links(folder)
  (folder / 'data').symlink_to('DATA')  # machine.data_dir's default
  one_device(patch)
  clips(patch, folder / 'downloads')
  data_sets(patch, folder / 'DATA' / 'downloads' / 'manual', whole)
  drawings(patch, 100 if whole else 3)
  mvtec(folder / 'PATH', ('screw', 'bolt', 'nut'))
  pictures(folder)
  for name, shapes in RELEASED.items():
    rng = np.random.default_rng(0)
    safetensors_files.write(folder / f'{name}.safetensors', {
      key: rng.normal(0, .02, shape).astype(np.float32) for key, shape in shapes.items()})
  patch.chdir(folder)


def links(folder):
  """Fills `folder` with links to the project's files."""
  for name in ('configs', 'benchmarks', 'checkpoints', 'examples', 'tests', 'zsad_jax', 'launch.py'):
    (folder / name).symlink_to(ROOT / name)


def pictures(folder):
  """Writes the images that pages predict: the folder PHOTOS, and part.png."""
  for number in range(3):
    picture(folder / 'PHOTOS' / f'{number}.png', number == 1)
  picture(folder / 'part.png')


def one_device(patch):
  """Leaves one of the tests' devices, as most machines have: each number of devices is compiled for again."""
  place = runtime.place
  patch.setattr(runtime, 'place', lambda devices=None, **how: place((devices or jax.devices())[:1], **how))


def clips(patch, folder):
  """Makes `folder` the place of downloads, and every published CLIP in it a narrow one."""
  patch.setenv('ZSAD_CACHE', str(folder))
  for name, arch in list(archs.ARCHS.items()):
    if name != 'tiny':
      patch.setitem(archs.ARCHS, name, narrow(arch))
  for seed, name in enumerate(name for name in published.names() if ':' in name):
    params = jax.tree_util.tree_map_with_path(
      functools.partial(_random, np.random.default_rng(seed)), archs.template(published.find(name)[2]))
    path = folder / name.replace(':', '.') / 'model.safetensors'
    path.parent.mkdir(parents=True)
    safetensors_files.write(path, port.to_state_dict(params))


def narrow(arch):
  """An architecture whose tokens are WIDTH numbers, not hundreds."""
  thin = dict(width=WIDTH, heads=2)
  vision = (archs.resnet_vision(arch.vision.image_size, 8, arch.vision.stages, 32) if arch.vision.kind == 'resnet'
            else dataclasses.replace(arch.vision, **thin))
  return dataclasses.replace(arch, embed_dim=WIDTH, vision=vision, text=dataclasses.replace(arch.text, **thin))


def _random(rng, path, leaf):
  values = rng.normal(0, .1, leaf.shape).astype(leaf.dtype)
  return abs(values) if path[-1].key == 'var' else values


def drawings(patch, categories=3):
  """Leaves so many categories in the data sets that the program draws, and enough images to fit thresholds to."""
  every = builder.DrawnBuilder.categories.__func__
  few = lambda cls: dict(list(every(cls).items())[:categories])
  patch.setattr(builder.DrawnBuilder, 'categories', classmethod(few))
  for name, count in (('TRAIN', TRAIN), ('NORMAL', 16), ('EACH_DEFECT', 1)):
    patch.setattr(builder, name, count)


def data_sets(patch, folder, whole=False):
  """Fills `folder`, where archives are unpacked, and leaves in the catalogue only what is there."""
  for name, kept in SETS.items():
    categories = catalog.CATALOG[name].categories
    kept = list(categories) if whole else kept
    records = {category: categories[category] for category in kept}
    for category in reversed(list(categories)):  # so that undoing, which begins with the last, leaves their order
      patch.delitem(categories, category)
    for category, record in records.items():
      patch.setitem(categories, category, record._replace(train=TRAIN, normal=NORMAL, anomalous=NORMAL))
  mvtec(folder / 'mvtec_ad', catalog.CATALOG['mvtec_ad'].categories)
  visa(folder / 'visa', catalog.CATALOG['visa'].categories)
  isic(folder / 'isic2016')
  sewer_ml(folder / 'sewer_ml')


def other_sets(patch, folder):
  """Makes every published set that `data_sets` does not write a folder in MVTec AD's layout, of one category."""
  resolve = dataset_names.resolve

  def resolved(name):
    base = name.partition('/')[0]
    if base not in catalog.CATALOG or base in (*SETS, 'isic2016', 'sewer_ml'):
      return resolve(name)
    if not (folder / base).exists():
      mvtec(folder / base, ('part',))
    return resolve(f'folder:{folder / base}')

  patch.setattr(dataset_names, 'resolve', resolved)


def mvtec(folder, categories):
  """Categories in MVTec AD's layout, whose pictures no other folder of another name has."""
  draw(folder, dict.fromkeys(categories, (60, 60, 60)), images=NORMAL, size=len(SPOT), train=TRAIN,
       seed=zlib.crc32(folder.name.encode()))


def visa(folder, categories):
  """VisA's layout, with its table of splits."""
  rows = []
  for category in categories:
    of = f'{category}/Data'
    normal = [f'{of}/Images/Normal/{i:04}.JPG' for i in range(TRAIN + NORMAL)]
    rows += [(category, 'train' if i < TRAIN else 'test', 'normal', path, '') for i, path in enumerate(normal)]
    rows += [(category, 'test', 'anomaly', f'{of}/Images/Anomaly/{i:03}.JPG', f'{of}/Masks/Anomaly/{i:03}.png')
             for i in range(NORMAL)]
  for _, _, label, image, truth in rows:
    picture(folder / image, label == 'anomaly')
    if truth:
      mask(folder / truth)
  table(folder / 'split_csv' / '1cls.csv', ('object', 'split', 'label', 'image', 'mask'), rows)


def isic(folder):
  """ISIC 2016's layout."""
  for i in range(NORMAL):
    picture(folder / 'ISBI2016_ISIC_Part1_Test_Data' / f'ISIC_{i}.jpg', True)
    mask(folder / 'ISBI2016_ISIC_Part1_Test_GroundTruth' / f'ISIC_{i}_Segmentation.png')


def sewer_ml(folder):
  """Sewer-ML's layout, with its table of labels."""
  rows = [(f'{i:08}.png', i % 2) for i in range(2 * NORMAL)]
  for name, defect in rows:
    picture(folder / 'val' / name, defect)
  table(folder / 'SewerML_Val.csv', ('Filename', 'Defect'), rows)


def table(path, header, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(','.join(map(str, row)) + '\n' for row in (header, *rows)))


def picture(path, anomalous=False):
  """Noise that no other path has, with a white spot if it is anomalous."""
  pixels = np.random.default_rng(list(str(path).encode())).integers(0, 160, (*SPOT.shape, 3), np.uint8)
  if anomalous:
    pixels[SPOT] = 255
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels).save(path)


def mask(path):
  """The mask of the white spot."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(SPOT * np.uint8(255)).save(path)


