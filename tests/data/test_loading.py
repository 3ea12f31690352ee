import pytest
from small_sets import picture, write_category

from zsad_jax import data
from zsad_jax.data import dataset_names
from zsad_jax.data.images import Rules


def copies(root):
  return sorted(p.name for p in root.iterdir() if p.is_dir())


def test_names_lists_published_and_drawn_data_sets():
  names = data.names()
  assert {'mvtec_ad', 'visa', 'folder:<path>', 'csv:<path>'} <= set(names)
  assert not {'mvtec_layout', 'plain_folders', 'image_table'} & set(names)


def test_a_mistyped_name_is_refused_with_the_nearest():
  with pytest.raises(ValueError, match=r"data set 'mvtecad'; nearest: mvtec_ad.*folder:<path>"):
    dataset_names.resolve('mvtecad')
  with pytest.raises(ValueError, match='visa'):
    dataset_names.resolve('zzzzzz')
  with pytest.raises(ValueError, match=r"no data set 'kolektorsdd/thirds'; nearest: kolektor_sdd"):
    dataset_names.resolve('kolektorsdd/thirds')


def test_configurations_are_resolved():
  with pytest.raises(ValueError, match="visa has no configuration 'small'; it has none"):
    dataset_names.resolve('visa/small')
  configs = {name: dataset_names.configuration(name, dataset_names.resolve(name)[0]) for name in (
    'visa', 'kolektor_sdd', 'kolektor_sdd/thirds', 'folder:/a/b', 'synthetic_aux')}
  assert configs == {'visa': '', 'kolektor_sdd': 'halves', 'kolektor_sdd/thirds': 'thirds', 'folder:/a/b': '',
                    'synthetic_aux': ''}


@pytest.mark.parametrize('name', ['', '../visa', 'visa.visa_dataset_builder', 'images', 'mvtec_layout'])
def test_other_modules_are_not_data_sets(name):
  with pytest.raises(ValueError, match='no data set'):
    dataset_names.resolve(name)


def test_a_copy_is_prepared_once_and_opened_again(layout, tmp_path):
  root = tmp_path / 'data'
  first = data.load(f'folder:{layout}', root=root)
  stamp = next(root.glob('*/*/*/*test.array_record*')).stat().st_mtime_ns
  again = data.load(f'folder:{layout}', root=root)
  assert next(root.glob('*/*/*/*test.array_record*')).stat().st_mtime_ns == stamp
  assert again.fingerprint == first.fingerprint and again.name == 'raw' and len(copies(root)) == 1


def test_a_changed_folder_gives_a_new_copy(layout, tmp_path):
  before = data.load(f'folder:{layout}', root=tmp_path / 'data')
  (layout / 'grid' / 'test' / 'good' / '001.png').unlink()
  after = data.load(f'folder:{layout}', root=tmp_path / 'data')
  assert (len(before), len(after)) == (9, 8) and len(copies(tmp_path / 'data')) == 2


def test_each_rule_has_its_own_copy(layout, tmp_path):
  picture(mode='RGBA').save(layout / 'grid' / 'test' / 'good' / '000.png')
  for rules in (Rules(), Rules(exif='apply'), Rules(background=None)):
    data.load(f'folder:{layout}', root=tmp_path / 'data', rules=rules)
  assert len(copies(tmp_path / 'data')) == 3


def test_damaged_images_stop_the_preparation_or_are_skipped(layout, tmp_path):
  bad = layout / 'grid' / 'test' / 'good' / '000.png'
  bad.write_bytes(b'')
  with pytest.raises(ValueError, match='empty') as e:
    data.load(f'folder:{layout}', root=tmp_path / 'data')
  assert str(bad) in str(e.value)
  dataset = data.load(f'folder:{layout}', root=tmp_path / 'data', on_bad='skip')
  assert len(dataset) == 8 and dataset.skipped == ['grid/test/good/000']
  assert any('left out: 1 of 9' in note for note in dataset.notes)


def test_published_data_sets_cannot_skip_images(tmp_path):
  with pytest.raises(ValueError, match='used whole'):
    data.load('visa', root=tmp_path, on_bad='skip')


def test_a_missing_folder_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'gone.*Expected'):
    data.load(f'folder:{tmp_path / "gone"}', root=tmp_path / 'data')


def test_a_folder_without_training_images_has_a_test_split_only(tmp_path):
  write_category(tmp_path / 'raw' / 'part', {'cut': 1}, train=0)
  assert len(data.load(f'folder:{tmp_path / "raw"}', root=tmp_path / 'data')) == 3
  with pytest.raises(ValueError, match="no images in split 'train'; it has test"):
    data.load(f'folder:{tmp_path / "raw"}', root=tmp_path / 'data', split='train')


def test_a_published_copy_opens_without_its_source(visa, tmp_path):
  root = tmp_path / 'data'
  before = data.load('visa', root=root, manual_dir=visa.parent)
  assert data.load('visa', root=root, manual_dir=visa).fingerprint == before.fingerprint
  visa.rename(tmp_path / 'away')
  assert data.load('visa', root=root, manual_dir=visa.parent).fingerprint == before.fingerprint


def test_several_copies_without_a_source_are_refused(visa, tmp_path):
  data.load('visa', root=tmp_path / 'data', manual_dir=visa.parent)
  (visa / 'stray').mkdir()
  (visa / 'stray' / 'file').write_text('')
  data.load('visa', root=tmp_path / 'data', manual_dir=visa.parent)
  visa.rename(tmp_path / 'away')
  with pytest.raises(FileNotFoundError, match='no category folder'):
    data.load('visa', root=tmp_path / 'data', manual_dir=visa.parent)


def test_a_copy_made_by_other_rules_is_refused_without_its_source(visa, tmp_path):
  root = tmp_path / 'data'
  white, dropped = data.rules('visa'), data.rules('visa', transparency='drop')
  data.load('visa', root=root, manual_dir=visa.parent, rules=dropped)
  visa.rename(tmp_path / 'away')
  with pytest.raises(FileNotFoundError, match=r'was made with Rules\(.*background=None\), not Rules\(.*255'):
    data.load('visa', root=root, manual_dir=visa.parent, rules=white)
  assert data.load('visa', root=root, manual_dir=visa.parent, rules=dropped).rules == dropped


def test_each_data_set_has_its_own_rule_for_transparency(tmp_path):
  for name, background in (('head_ct', None), ('visa', (255, 255, 255)), ('folder:/a', (255, 255, 255))):
    assert data.rules(name) == Rules('ignore', background)
  assert data.rules('head_ct', 'apply', 'white') == Rules('apply', (255, 255, 255))
  assert data.rules('kolektor_sdd/thirds', transparency='drop').background is None
  with pytest.raises(ValueError, match=r"transparency='black'.*default, white, drop"):
    data.rules('visa', transparency='black')
  with pytest.raises(ValueError, match=r"rules\.exif is 'turn'"):
    data.rules('visa', 'turn')
