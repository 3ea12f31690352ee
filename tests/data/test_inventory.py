import os

import pytest
from small_sets import picture, write, write_category

from zsad_jax.data import inventory, published


def test_listing_digest_changes_with_every_file(layout):
  before = inventory.listing_digest(layout)
  assert inventory.listing_digest(layout) == before
  image = layout / 'grid' / 'test' / 'good' / '000.png'
  data, stat = image.read_bytes(), image.stat()
  digests = {before}
  image.write_bytes(data[:-1] + b'!')                                    # same size, other time
  os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
  digests.add(inventory.listing_digest(layout))
  image.write_bytes(data + b'!')                                         # other size
  os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  digests.add(inventory.listing_digest(layout))
  image.rename(image.with_name('001b.png'))
  digests.add(inventory.listing_digest(layout))
  image.with_name('001b.png').unlink()
  digests.add(inventory.listing_digest(layout))
  assert len(digests) == 5


def test_listing_digest_does_not_depend_on_the_place(layout):
  before = inventory.listing_digest(layout)
  assert inventory.listing_digest(layout.rename(layout.with_name('moved'))) == before


@pytest.mark.parametrize('name', ['.DS_Store', 'grid/Thumbs.db', '.git/index', 'metal_nut/.cache/a.png'])
def test_files_of_file_managers_do_not_change_the_listing_digest(layout, name):
  before = inventory.listing_digest(layout)
  (layout / name).parent.mkdir(exist_ok=True)
  (layout / name).write_bytes(b'x')
  assert inventory.listing_digest(layout) == before


def test_shorten_counts_what_it_omits():
  assert inventory.shorten(['a', 'b']) == ['a', 'b']
  assert inventory.shorten(list('abcdefghijkl')) == [*'abcdefghij', '... and 2 more']


def test_find_accepts_the_manual_folder_or_the_data_set(tmp_path):
  write_category(tmp_path / 'mvtec_ad' / 'bottle', {'cut': 1})
  assert published.find('mvtec_ad', tmp_path) == tmp_path / 'mvtec_ad'
  assert published.find('mvtec_ad', tmp_path / 'mvtec_ad') == tmp_path / 'mvtec_ad'


@pytest.mark.parametrize('inside,passed,hint', [
  ('mvtec_ad', 'mvtec_ad/bottle', 'one level too low: the data set is .*mvtec_ad'),
  ('mvtec_ad', 'mvtec_ad/bottle/test', 'Found there: broken, good'),
  ('more/mvtec', 'more/..', 'Found there: more'),
  ('somewhere', '.', 'seems to be .*somewhere: move or rename it to .*/mvtec_ad,'),
  ('MVTEC_AD', '.', r"another letter case than 'mvtec_ad'"),
  ('mvtec_ad', 'gone', 'gone does not exist'),
  ('mvtec_ad', 'mvtec_ad/bottle/test/good/000.png', '000.png is not a folder'),
])
def test_a_wrong_manual_folder_is_explained(tmp_path, inside, passed, hint):
  write_category(tmp_path / inside / 'bottle', {'broken': 1})
  with pytest.raises(FileNotFoundError, match=hint) as e:
    published.find('mvtec_ad', tmp_path / passed)
  assert 'mvtec_anomaly_detection.tar.xz' in str(e.value) and 'sha256' in str(e.value)


def test_find_searches_the_top_folder_of_an_archive(tmp_path):
  write_category(tmp_path / 'BTAD' / 'BTech_Dataset_transformed' / '01', {'ko': 1})
  with pytest.raises(FileNotFoundError, match=r"seems to be .*BTAD \(another letter case than 'btad'\): move or"):
    published.find('btad', tmp_path)
  assert published.find('btad', tmp_path / 'BTAD') == tmp_path / 'BTAD' / 'BTech_Dataset_transformed'


def test_category_folders_in_another_case_are_explained(tmp_path):
  write_category(tmp_path / 'mvtec_ad' / 'Bottle', {'broken': 1})
  with pytest.raises(FileNotFoundError, match=r"'Bottle', expected 'bottle'"):
    published.find('mvtec_ad', tmp_path)


def test_names_that_are_not_utf8_are_problems(tmp_path):
  path = os.fsencode(tmp_path) + b'/\xff.png'
  picture().save(tmp_path / 'a.png')
  try:
    os.rename(tmp_path / 'a.png', path)
  except OSError:
    pytest.skip('this file system takes UTF-8 names only')
  found, problems, _ = inventory.files(tmp_path)
  assert found == {} and 'not valid UTF-8' in problems[0]


def test_duplicate_ids_are_named(tmp_path):
  write(tmp_path / 'a.png', picture())
  item = inventory.Item('c', 'test', 'good', 'a', tmp_path / 'a.png', None, 0)
  assert inventory.duplicate_ids([item, item]) == ['c/test/good/a: 2 images have this id']
  assert inventory.duplicate_ids([item]) == []


def test_differing_counts_name_both_numbers(tmp_path):
  item = inventory.Item('toothbrush', 'test', 'good', 'a', tmp_path / 'a.png', None, 0)
  lines = published.count_differences('mvtec_ad', [item])
  assert 'toothbrush: 1 test normal images, published 12' in lines
  assert 'toothbrush: 0 train images, published 60' in lines
  assert 'bottle: no images, published 209 train, 20 test normal, 63 test anomalous' in lines
  assert len(lines) == 14 + 3


def test_find_searches_top_folders_in_both_places(tmp_path):
  write_category(tmp_path / 'MPDD' / 'tubes', {'anomalous': 1})
  assert published.find('mpdd', tmp_path) == tmp_path / 'MPDD'
  write_category(tmp_path / 'mpdd' / 'MPDD' / 'tubes', {'anomalous': 1})
  assert published.find('mpdd', tmp_path) == tmp_path / 'mpdd' / 'MPDD'


def test_system_files_and_expected_files_are_skipped(tmp_path):
  write(tmp_path / 'a.png', picture())
  for name in ('Thumbs.db', 'desktop.ini', '.DS_Store', 'list.txt'):
    (tmp_path / name).write_text('')
  assert inventory.files(tmp_path, expected=('list.txt',))[1:] == ([], [])
  assert inventory.files(tmp_path)[2] == [f'{tmp_path / "list.txt"}: not an image file, ignored']


def test_outline_counts_files_two_levels_deep(tmp_path):
  assert inventory.outline(tmp_path) == 'nothing'
  for name in ('a/b/c/0.png', 'a/b/1.png', 'a/b/2.png', 'd/3.png', '4.png'):
    write(tmp_path / name, picture())
  assert inventory.outline(tmp_path) == 'a/ (0 files), a/b/ (2 files), d/ (1 files), 1 files'
