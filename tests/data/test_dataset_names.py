from pathlib import Path

import pytest
from small_sets import picture, write, write_category

from zsad_jax import data
from zsad_jax.data import dataset_names


@pytest.fixture
def plain(tmp_path):
  """A folder with good/, bad/ and other/, an image in each."""
  for name in ('good', 'bad', 'other'):
    write(tmp_path / 'parts' / name / '0.png', picture())
  return tmp_path / 'parts'


def builder_of(name):
  return dataset_names.resolve(str(name)).builder.name


def test_a_folder_is_read_in_the_layout_it_has(layout, plain):
  assert builder_of(f'folder:{layout}') == builder_of(f'folder:{layout}/grid') == 'mvtec_layout'
  assert builder_of(f'folder:{plain}') == 'plain_folders'
  assert builder_of('csv:/a/b.csv') == 'image_table'
  assert builder_of('folder:/not/there') == 'mvtec_layout'
  assert builder_of(f'folder:{layout}/grid,abnormal=test/glue,normal=test/good') == 'plain_folders'


@pytest.mark.parametrize('inside', ['grid/test', 'grid/ground_truth'])
def test_a_part_of_a_category_is_not_read_as_plain_folders(layout, tmp_path, inside):
  with pytest.raises(FileNotFoundError, match='below the category folder'):
    data.load(f'folder:{layout}/{inside}', root=tmp_path / 'data')


def test_plain_folders_one_level_deeper_are_suggested(plain, tmp_path):
  with pytest.raises(FileNotFoundError, match=r'anomalous images are one level deeper: pass one such as .*/parts'):
    data.load(f'folder:{plain.parent}', root=tmp_path / 'data')


def test_options_follow_the_path(plain):
  source = dataset_names.resolve(f'folder:{plain},normal=good,abnormal=bad+other,masks=')
  assert source.path == plain and source.options == {'normal': ('good',), 'abnormal': ('bad', 'other'), 'masks': ()}
  odd = plain.rename(plain.with_name('a,normal=b'))
  assert dataset_names.resolve(f'folder:{odd}')[1:] == (odd, {})


@pytest.mark.parametrize(('options', 'message'), [
  (',abnorml=bad', "cannot read ',abnorml=', did you mean 'abnormal'"),
  (',normal=good,mask=x', "cannot read ',normal='"),
  (',normal=good,normal=bad', r'normal= occurs twice; .* \+'),
])
def test_mistyped_options_are_refused_with_the_nearest(plain, options, message):
  with pytest.raises(ValueError, match=message):
    dataset_names.resolve(f'folder:{plain}{options}')


def test_normal_folders_of_mvtec_layout_may_have_other_names(tmp_path):
  for name, normal in (('nut', 'OK'), ('bolt', 'good')):
    write_category(tmp_path / name, {'bent': 1})
    for split in ('train', 'test'):
      (tmp_path / name / split / 'good').rename(tmp_path / name / split / normal)
  dataset = data.load(f'folder:{tmp_path}', root=tmp_path / 'data')
  assert dataset.ids == [f'{c}/test/{d}' for c in ('bolt', 'nut') for d in ('bent/000', 'good/000', 'good/001')]
  assert data.verify(f'folder:{tmp_path}').problems == [f'{tmp_path}/data: not a category of this data set, ignored']


def test_several_folders_that_may_hold_normal_images_are_refused(tmp_path):
  write_category(tmp_path / 'nut', {'no': 1, 'bent': 1})
  name = f'folder:{tmp_path / "nut"}'
  with pytest.raises(ValueError, match=r'both good and no may hold the normal images.*,normal=good'):
    data.load(name, root=tmp_path / 'data')
  dataset = data.load(f'{name},normal=good', root=tmp_path / 'data')
  assert set(dataset.defect_types) == {'bent', 'good', 'no'} and dataset.labels.sum() == 2
  with pytest.raises(ValueError, match=r"no folder 'fine' in test or train of any category; there are bent, good, no"):
    data.load(f'{name},normal=fine', root=tmp_path / 'data')


def test_all_names_of_one_data_set_have_one_identity(plain, monkeypatch):
  assert dataset_names.identity('kolektor_sdd') == dataset_names.identity('kolektor_sdd/thirds') == 'kolektor_sdd'
  monkeypatch.chdir(plain.parent)
  (plain.parent / 'link').symlink_to(plain)
  same = {dataset_names.identity(f'folder:{p}') for p in (plain, f'{plain}/', 'parts', 'link', f'{plain},normal=good')}
  assert same == {f'folder:{plain.resolve()}'}
  assert dataset_names.identity('csv:parts') != dataset_names.identity('folder:parts')


def test_short_names_can_be_folder_names():
  short = [dataset_names.short(name) for name in (
    'covid19_radiography/current', 'folder:/a/my parts/', 'csv:/a/b.csv', 'visa', 'folder:/a/b,normal=c/d')]
  assert short == ['covid19_radiography-current', 'my-parts', 'b.csv', 'visa', 'b']


def test_paths_may_start_with_a_tilde(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert dataset_names.resolve('csv:~/t.csv').path == Path(tmp_path, 't.csv')
  assert dataset_names.resolve('folder:~/t,normal=a').path == Path(tmp_path, 't')
