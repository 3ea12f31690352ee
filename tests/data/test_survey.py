import os

import pytest
from small_sets import picture, write, write_category

from zsad_jax.data import survey


def test_listing_changes_with_the_files_and_only_with_them(layout):
  before = survey.listing(layout)
  assert survey.listing(layout) == before
  image = layout / 'grid' / 'test' / 'good' / '000.png'
  data, stat = image.read_bytes(), image.stat()
  seen = {before}
  image.write_bytes(data[:-1] + b'!')                                    # same size, other time
  os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
  seen.add(survey.listing(layout))
  image.write_bytes(data + b'!')                                         # other size
  os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  seen.add(survey.listing(layout))
  image.rename(image.with_name('001b.png'))
  seen.add(survey.listing(layout))
  image.with_name('001b.png').unlink()
  seen.add(survey.listing(layout))
  assert len(seen) == 5


def test_listing_is_that_of_the_content_wherever_it_lies(layout):
  before = survey.listing(layout)
  assert survey.listing(layout.rename(layout.with_name('moved'))) == before


@pytest.mark.parametrize('name', ['.DS_Store', 'grid/Thumbs.db', '.git/index', 'metal_nut/.cache/a.png'])
def test_what_file_managers_leave_behind_changes_no_listing(layout, name):
  before = survey.listing(layout)
  (layout / name).parent.mkdir(exist_ok=True)
  (layout / name).write_bytes(b'x')
  assert survey.listing(layout) == before


def test_shorten_counts_what_it_leaves_out():
  assert survey.shorten(['a', 'b']) == ['a', 'b']
  assert survey.shorten(list('abcdefghijkl')) == [*'abcdefghij', '... and 2 more']


def test_find_takes_the_manual_folder_or_the_data_set(tmp_path):
  write_category(tmp_path / 'mvtec_ad' / 'bottle', {'cut': 1})
  assert survey.find('mvtec_ad', tmp_path) == tmp_path / 'mvtec_ad'
  assert survey.find('mvtec_ad', tmp_path / 'mvtec_ad') == tmp_path / 'mvtec_ad'


@pytest.mark.parametrize('inside,passed,hint', [
  ('mvtec_ad', 'mvtec_ad/bottle', 'one level too low: the data set is .*mvtec_ad'),
  ('mvtec_ad', 'mvtec_ad/bottle/test', 'Found there: broken, good'),
  ('more/mvtec', 'more/..', 'Found there: more'),
  ('somewhere', '.', 'seems to be .*somewhere: move or rename it to .*/mvtec_ad, or take it for the manual folder'),
  ('MVTEC_AD', '.', r"another letter case than 'mvtec_ad'"),
  ('mvtec_ad', 'gone', 'gone does not exist'),
  ('mvtec_ad', 'mvtec_ad/bottle/test/good/000.png', '000.png is no folder'),
])
def test_a_wrong_manual_folder_is_explained(tmp_path, inside, passed, hint):
  write_category(tmp_path / inside / 'bottle', {'broken': 1})
  with pytest.raises(FileNotFoundError, match=hint) as e:
    survey.find('mvtec_ad', tmp_path / passed)
  assert 'mvtec_anomaly_detection.tar.xz' in str(e.value) and 'sha256' in str(e.value)


def test_the_folder_of_an_archive_is_looked_into(tmp_path):
  write_category(tmp_path / 'BTAD' / 'BTech_Dataset_transformed' / '01', {'ko': 1})
  with pytest.raises(FileNotFoundError, match=r"seems to be .*BTAD \(another letter case than 'btad'\): move or"):
    survey.find('btad', tmp_path)
  assert survey.find('btad', tmp_path / 'BTAD') == tmp_path / 'BTAD' / 'BTech_Dataset_transformed'


def test_category_folders_in_another_case_are_explained(tmp_path):
  write_category(tmp_path / 'mvtec_ad' / 'Bottle', {'broken': 1})
  with pytest.raises(FileNotFoundError, match=r"'Bottle', expected 'bottle'"):
    survey.find('mvtec_ad', tmp_path)


def test_names_that_are_no_utf8_are_problems(tmp_path):
  path = os.fsencode(tmp_path) + b'/\xff.png'
  picture().save(tmp_path / 'a.png')
  try:
    os.rename(tmp_path / 'a.png', path)
  except OSError:
    pytest.skip('this file system takes UTF-8 names only')
  found, problems, _ = survey.files(tmp_path)
  assert found == {} and 'not valid UTF-8' in problems[0]


def test_repeated_ids_are_named(tmp_path):
  write(tmp_path / 'a.png', picture())
  item = survey.Item('c', 'test', 'good', 'a', tmp_path / 'a.png', None, 0)
  assert survey.repeated([item, item]) == ['c/test/good/a: 2 images have this id']
  assert survey.repeated([item]) == []


def test_compare_states_both_numbers(tmp_path):
  item = survey.Item('toothbrush', 'test', 'good', 'a', tmp_path / 'a.png', None, 0)
  lines = survey.compare('mvtec_ad', [item])
  assert 'toothbrush: 1 test normal images, published 12' in lines
  assert 'toothbrush: 0 train images, published 60' in lines
  assert 'bottle: no images, published 209 train, 20 test normal, 63 test anomalous' in lines
  assert len(lines) == 14 + 3


def test_find_looks_into_the_archives_own_top_folder(tmp_path):
  write_category(tmp_path / 'MPDD' / 'tubes', {'anomalous': 1})
  assert survey.find('mpdd', tmp_path) == tmp_path / 'MPDD'
  write_category(tmp_path / 'mpdd' / 'MPDD' / 'tubes', {'anomalous': 1})
  assert survey.find('mpdd', tmp_path) == tmp_path / 'mpdd' / 'MPDD'


def test_files_that_systems_leave_behind_and_expected_ones_are_passed_over(tmp_path):
  write(tmp_path / 'a.png', picture())
  for name in ('Thumbs.db', 'desktop.ini', '.DS_Store', 'list.txt'):
    (tmp_path / name).write_text('')
  assert survey.files(tmp_path, expected=('list.txt',))[1:] == ([], [])
  assert survey.files(tmp_path)[2] == [f'{tmp_path / "list.txt"}: not an image file, ignored']


def test_outline_counts_files_two_levels_deep(tmp_path):
  assert survey.outline(tmp_path) == 'nothing'
  for name in ('a/b/c/0.png', 'a/b/1.png', 'a/b/2.png', 'd/3.png', '4.png'):
    write(tmp_path / name, picture())
  assert survey.outline(tmp_path) == 'a/ (0 files), a/b/ (2 files), d/ (1 files), 1 files'
