import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from small_sets import assert_aligned, picture, write, write_category

from zsad_jax import data
from zsad_jax.data import builders, catalog
from zsad_jax.data.layouts import kolektor_sdd

SIZE = (16, 31)                  # an odd height, so that the cut shows
DEFECTS = {                      # strip: (top, bottom) of its defect
  'kos01_Part1': (3, 8),         # upper half, upper third
  'kos02_Part0': (12, 19),       # astride the middle of 31, inside the second third (10 to 20)
}
CATEGORY = 'electrical_commutators'


def strip(rows=None):
  block = rows and (5, rows[0], 12, rows[1])
  return picture(block, SIZE, 'L')


@pytest.fixture
def archive(tmp_path):
  """Two commutators of four parts each; every part has a label file, which is all zero for normal ones."""
  root = tmp_path / 'manual' / 'kolektor_sdd' / 'KolektorSDD'
  for folder in ('kos01', 'kos02'):
    for part in range(4):
      rows = DEFECTS.get(f'{folder}_Part{part}')
      path = root / folder / f'Part{part}.jpg'
      path.parent.mkdir(parents=True, exist_ok=True)
      strip(rows).save(path, quality=100)
      write(path.with_name(f'Part{part}_label.bmp'), strip(rows) if rows else Image.new('L', SIZE))
  return root


def load(tmp_path, name='kolektor_sdd', **options):
  return data.load(name, root=tmp_path / 'data', manual_dir=tmp_path / 'manual', **options)


def anomalous(dataset):
  return [key.rpartition('/')[2] for key, label in zip(dataset.ids, dataset.labels) if label]


def test_halves_is_the_default_configuration(archive, tmp_path):
  dataset, train = load(tmp_path), load(tmp_path, split='train')
  assert anomalous(dataset) == ['kos01_Part1_0', 'kos02_Part0_0', 'kos02_Part0_1']
  assert (len(dataset), len(train)) == (3 + 4, 9)                # a quarter of 13 normal tiles, rounded up
  assert not set(dataset.ids) & set(train.ids) and not train.labels.any()
  assert {r['image'].size for r in dataset} | {r['image'].size for r in train} == {(16, 15), (16, 16)}
  for record in dataset:
    assert_aligned(record)
  assert dataset.object_names == {CATEGORY: 'electrical commutator'}
  assert dataset.ids == load(tmp_path, 'kolektor_sdd/halves').ids


@pytest.mark.parametrize('config,anomalies,test,train,heights', [
  ('halves', ['kos01_Part1_0', 'kos02_Part0_0', 'kos02_Part0_1'], 7, 9, (15, 16)),
  ('thirds', ['kos01_Part1_0', 'kos02_Part0_1'], 8, 16, (10, 10, 11)),
  ('full', ['kos01_Part1', 'kos02_Part0'], 4, 4, (31,))])
def test_the_configuration_decides_the_tiles(archive, tmp_path, config, anomalies, test, train, heights):
  name = f'kolektor_sdd/{config}'
  dataset = load(tmp_path, name)
  assert dataset.name == name and anomalous(dataset) == anomalies
  assert (len(dataset), len(load(tmp_path, name, split='train'))) == (test, train)
  splits = [dataset, load(tmp_path, name, split='train')]
  strip_tiles = {r['id'].rpartition('/')[2]: r['image'] for part in splits for r in part if 'kos02_Part0' in r['id']}
  assert tuple(strip_tiles[key].height for key in sorted(strip_tiles)) == heights
  whole = np.concatenate([np.asarray(strip_tiles[key]) for key in sorted(strip_tiles)])
  np.testing.assert_array_equal(whole, np.asarray(Image.open(archive / 'kos02' / 'Part0.jpg').convert('RGB')))
  for record in dataset:
    assert_aligned(record)


def test_masks_are_where_the_defect_was_drawn(archive, tmp_path):
  by_stem = {r['id'].rpartition('/')[2]: r['mask'] for r in load(tmp_path)}
  assert by_stem['kos01_Part1_0'][3, 5] == 255 and by_stem['kos01_Part1_0'][2, 5] == 0
  assert by_stem['kos02_Part0_0'][12:, 5].all() and not by_stem['kos02_Part0_0'][:12].any()
  assert by_stem['kos02_Part0_1'][19 - 15 - 1, 11] == 255 and not by_stem['kos02_Part0_1'][19 - 15:].any()


def test_one_pixel_makes_a_tile_anomalous(archive, tmp_path):
  label = Image.new('L', SIZE)
  label.putpixel((0, 15), 1)                                     # the first row of the lower half
  label.save(archive / 'kos01' / 'Part3_label.bmp')
  assert 'kos01_Part3_1' in anomalous(load(tmp_path)) and 'kos01_Part3_0' not in anomalous(load(tmp_path))


def test_the_split_equals_scikit_learns_on_sorted_names():
  model_selection = pytest.importorskip('sklearn.model_selection')
  names = [f'kos{i:02}_Part{j}_{k}' for i in range(1, 51) for j in range(8) for k in (0, 1)][:724]
  _, test = model_selection.train_test_split(sorted(names), test_size=0.25, random_state=42)
  assert kolektor_sdd.draw_test_tiles(names) == kolektor_sdd.draw_test_tiles(names[::-1]) == set(test)
  assert len(test) == 181


def test_the_split_is_pinned():
  assert sorted(kolektor_sdd.draw_test_tiles(list('abcdefgh'))) == ['b', 'f']
  assert kolektor_sdd.draw_test_tiles([]) == set()


def test_counts_are_compared_with_those_of_the_configuration(archive, tmp_path):
  entry = catalog.CATALOG['kolektor_sdd']
  assert (entry.normal, entry.anomalous) == (181, 74) and sum(entry.totals['halves'][:2]) == 2 * 399 - 74
  assert sum(entry.totals['thirds']) == 3 * 399 and sum(entry.totals['full']) == 399
  assert 'in total: 3 test anomalous images, published 74' in load(tmp_path).notes
  problems = data.verify('kolektor_sdd/thirds', tmp_path / 'manual').problems
  assert 'in total: 2 test anomalous images, published 54' in problems


def test_missing_and_unknown_folders_are_named(archive, tmp_path):
  (archive / 'kos51').mkdir()
  found = builders.published('kolektor_sdd').scan(archive)
  assert sum('category folder is missing' in n for n in found.notes) == 48
  assert any('kos51: not a category' in n for n in found.notes) and found.problems == []


def test_a_damaged_image_is_named(archive, tmp_path):
  bad = archive / 'kos01' / 'Part2.jpg'
  bad.write_bytes(bad.read_bytes()[:50])
  with pytest.raises(ValueError, match=str(bad)):
    load(tmp_path)


def test_a_damaged_mask_is_named(archive, tmp_path):
  bad = archive / 'kos01' / 'Part2_label.bmp'
  bad.write_bytes(b'')
  with pytest.raises(ValueError, match=f'{bad}: the file is empty'):
    load(tmp_path)


def test_missing_and_extra_masks_are_named(archive):
  (archive / 'kos01' / 'Part2_label.bmp').rename(archive / 'kos01' / 'Part9_label.bmp')
  problems = builders.published('kolektor_sdd').scan(archive).problems
  assert len(problems) == 2 and 'Part2.jpg: no mask' in problems[0] and 'normal images have one too' in problems[0]
  assert 'Part9_label.bmp: mask without an image' in problems[1]


def test_a_mask_of_another_size_is_refused(archive, tmp_path):
  Image.new('L', (16, 30)).save(archive / 'kos02' / 'Part3_label.bmp')
  with pytest.raises(ValueError, match=r'Part3\.jpg is 16x31 pixels, but its mask .* is 16x30'):
    load(tmp_path)


def test_a_prepared_configuration_opens_without_its_source(archive, tmp_path):
  halves, thirds = load(tmp_path), load(tmp_path, 'kolektor_sdd/thirds')
  archive.rename(tmp_path / 'away')
  assert load(tmp_path).fingerprint == halves.fingerprint
  assert load(tmp_path, 'kolektor_sdd/thirds').fingerprint == thirds.fingerprint != halves.fingerprint
  with pytest.raises(FileNotFoundError, match='kos01'):
    load(tmp_path, 'kolektor_sdd/full')


def write_tiles(root, last):
  """Writes tiles as the papers' scripts do, numbered 0 to `last`."""
  write_category(root, {}, train=0, good=0)
  for i in range(last + 1):
    write(root / 'train' / 'good' / f'kos01_Part0_{i}.png', strip())
    write(root / 'test' / 'good' / f'kos02_Part0_{i}.png', strip())
    write(root / 'test' / 'defect' / f'kos03_Part0_{i}.png', strip((1, 5)))
    write(root / 'ground_truth' / 'defect' / f'kos03_Part0_{i}_mask.png', strip((1, 5)))


@pytest.mark.parametrize('place,last,name', [
  ('kolektor_sdd/electrical commutators', 1, 'kolektor_sdd'), ('SDD/electrical_commutators', 1, 'kolektor_sdd'),
  ('kolektor_sdd/SDD', 2, 'kolektor_sdd/thirds')])
def test_tiles_that_are_cut_already_are_read(tmp_path, place, last, name):
  write_tiles(tmp_path / 'manual' / place, last)
  dataset = load(tmp_path, name)
  assert dataset.categories == (CATEGORY,)
  assert dataset.ids == [f'{CATEGORY}/test/{kind}_Part0_{i}' for kind in ('defect/kos03', 'good/kos02')
                         for i in range(last + 1)]
  for record in dataset:
    assert_aligned(record)
  assert len(load(tmp_path, name, split='train')) == last + 1


def test_tiles_of_another_configuration_are_refused(tmp_path):
  write_tiles(tmp_path / 'manual' / 'kolektor_sdd' / 'electrical commutators', 2)
  with pytest.raises(ValueError, match='by their names the tiles are thirds, not halves'):
    load(tmp_path)
  with pytest.raises(ValueError, match=r'thirds, not full; load that configuration, or unpack KolektorSDD\.zip'):
    load(tmp_path, 'kolektor_sdd/full')


def test_tiles_with_other_names_are_read_with_a_note(tmp_path):
  root = tmp_path / 'manual' / 'kolektor_sdd' / 'electrical commutators'
  write_category(root, {'defect': 1})
  assert any('read as halves' in note for note in load(tmp_path).notes)


def test_an_unknown_configuration_is_refused(tmp_path):
  with pytest.raises(ValueError, match="kolektor_sdd has no configuration 'quarters'; it has halves, thirds, full"):
    load(tmp_path, 'kolektor_sdd/quarters')


def test_tfds_prepares_each_configuration(archive, tmp_path):
  sizes = {}
  for name in (None, 'thirds'):
    builder = builders.published('kolektor_sdd')(data_dir=tmp_path / 'data', config=name)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=tmp_path / 'manual'))
    sizes[builder.builder_config.name] = {k: s.num_examples for k, s in builder.info.splits.items()}
    assert 'tabernik2020' in builder.info.citation and '399 grey strips' in builder.info.description
  assert sizes == {'halves': {'train': 9, 'test': 7}, 'thirds': {'train': 16, 'test': 8}}
