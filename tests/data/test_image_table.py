import numpy as np
import pytest
from small_sets import assert_aligned, picture, write

from zsad_jax import data
from zsad_jax.data.layouts import image_table

HEADER = 'image,label,mask,category,split,defect_type,object_name\n'


@pytest.fixture
def photos(tmp_path):
  """tmp_path/nuts with images good.png and bad.png, a mask, and write(text), which writes labels.csv there."""
  root = tmp_path / 'nuts'
  write(root / 'photos' / 'good.png', picture())
  write(root / 'photos' / 'bad.png', picture((2, 1, 12, 7)))
  write(root / 'outlines' / 'bad.png', picture((2, 1, 12, 7), mode='L'))

  def write_table(text, name='labels.csv'):
    path = root / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path
  return write_table


def test_two_columns_are_enough(photos, tmp_path):
  path = photos('image,label\nphotos/good.png,0\nphotos/bad.png,1\n')
  dataset = data.load(f'csv:{path}', root=tmp_path / 'data')
  assert dataset.ids == ['nuts/test/anomalous/bad', 'nuts/test/good/good'] and dataset.name == 'labels.csv'
  assert dataset.has_mask.tolist() == [False, True] and dataset.object_names == {'nuts': 'nuts'}


def test_every_column_is_read(photos, tmp_path):
  path = photos(HEADER + 'photos/good.png,normal,,hex_nut,train,,hexagonal nut\n'
                'photos/bad.png,anomalous,outlines/bad.png,hex_nut,test,dent,\n')
  dataset = data.load(f'csv:{path}', root=tmp_path / 'data')
  assert dataset.ids == ['hex_nut/test/dent/bad'] and dataset.object_names == {'hex_nut': 'hexagonal nut'}
  assert_aligned(dataset[0])
  assert data.load(f'csv:{path}', root=tmp_path / 'data', split='train').ids == ['hex_nut/train/good/good']


@pytest.mark.parametrize('normal', ['0', 'normal', 'Good', 'OK', 'no', '0.0', 'False'])
@pytest.mark.parametrize('anomalous', ['1', 'anomalous', 'Defective', 'NG', 'yes', '1.0'])
def test_labels_are_understood_in_common_spellings(photos, normal, anomalous):
  found = image_table.scan(photos(f'image,label\nphotos/good.png,{normal}\nphotos/bad.png, {anomalous} \n'))
  assert found.problems == [] and {i.stem: i.label for i in found.items} == {'good': 0, 'bad': 1}


@pytest.mark.parametrize('text', [
  '\ufeffimage;label\nphotos/good.png;0\n', 'label\timage\n0\tphotos/good.png\n',
  'image,label,\r\n"photos/good.png",0,\r\n\r\n', 'image,label,width\nphotos/good.png,0,512\n'])
def test_common_separators_and_line_ends_are_read(photos, text):
  found = image_table.scan(photos(text))
  assert [i.image.name for i in found.items] == ['good.png'] and found.problems == found.notes == []


@pytest.mark.parametrize(('row', 'message'), [
  ('photos/gone.png,0', 'photos/gone.png: no such file'),
  ('photos/Good.png,0', r'no such file \(there is good.png: another letter case\)'),
  ('photos\\good.png,0', r'no such file \(write / for'),
  ('photos/good.png,2', "label '2' is unknown; write 0 or normal"),
  ('photos/good.png,-1', "label '-1' is unknown"),
  ('photos/good.png,', "label '' is unknown"),
  (',0', 'no image'),
  ('photos/bad.png,1,outlines/x.png', 'outlines/x.png: no such file'),
  ('photos/bad.png,1,,a/b', "category 'a/b' must not contain /"),
  ('photos/bad.png,1,,a,val', "split 'val' is unknown"),
  ('photos/bad.png,1,,a,train', 'anomalous image in split train'),
  ('photos/bad.png,1,,a,test,good', "label '1' and defect_type 'good' contradict"),
  ('photos/good.png,0,,a,test,dent', "label '0' and defect_type 'dent' contradict"),
  ('photos/other/../first.png,0', 'is already listed on line 2'),
  ('photos/good.png,0,,first,test,,another name', "object_name 'another name' here and 'one name' before"),
])
def test_errors_of_a_row_name_its_line(photos, row, message, tmp_path):
  write(tmp_path / 'nuts' / 'photos' / 'first.png', picture())
  (tmp_path / 'nuts' / 'photos' / 'other').mkdir()
  path = photos(HEADER + 'photos/first.png,0,,first,test,,one name\n\n' + row + '\n')
  problem, = image_table.scan(path).problems
  assert problem.startswith(f'{path}, line 4: ')
  with pytest.raises(ValueError, match=message):
    data.load(f'csv:{path}', root=tmp_path / 'data')


@pytest.mark.parametrize(('text', 'message'), [
  (b'image,label\na.png,0\n\xe9.png,0\n', 'line 3: not UTF-8 text'),
  ('image,label\n'.encode('utf-16'), 'line 1: .*UTF-16, not UTF-8'),
  ('image,label\na.png,0,1\n', 'line 2: 3 values for 2 columns'),
  ('image,label\n"a.png,0\n', 'line 2: unexpected end of data'),
  ('Image,labels\n', "no column image, label; it has Image, labels .*'Image' should be 'image', 'labels' should be"),
  ('image,label,image\n', 'column image occurs twice'),
  ('', 'no column image, label'),
])
def test_unreadable_tables_are_refused(photos, text, message):
  with pytest.raises(ValueError, match=message):
    image_table.scan(photos(text))


def test_an_empty_and_a_missing_table_are_refused(photos, tmp_path):
  assert image_table.scan(photos('image,label\n')).problems == [f'{tmp_path}/nuts/labels.csv: no row below the header']
  with pytest.raises(FileNotFoundError, match=r'gone\.csv: missing'):
    data.load(f'csv:{tmp_path}/gone.csv', root=tmp_path / 'data')
  assert 'gone.csv: missing' in data.verify(f'csv:{tmp_path}/gone.csv').problems[0]


def test_unread_columns_with_similar_names_are_noted(photos):
  note, = image_table.scan(photos('image,label,masks,width\nphotos/good.png,0,,3\n')).notes
  assert note.endswith("columns not read: masks, width ('masks' should be 'mask')")


def test_images_of_one_stem_get_different_ids(photos, tmp_path):
  for camera in 'ab':
    write(tmp_path / 'nuts' / camera / '0.png', picture())
  found = image_table.scan(photos('image,label\na/0.png,0\nb/0.png,0\nphotos/good.png,0\n'))
  assert [i.key for i in found.items] == [f'nuts/test/good/{s}' for s in ('a/0.png', 'b/0.png', 'good')]


def test_a_changed_table_or_file_gives_a_new_copy(photos, tmp_path):
  path = photos('image,label\nphotos/good.png,0\n')
  first = data.load(f'csv:{path}', root=tmp_path / 'data')
  write(tmp_path / 'nuts' / 'photos' / 'unlisted.png', picture())
  assert data.load(f'csv:{path}', root=tmp_path / 'data').fingerprint == first.fingerprint
  assert len(list((tmp_path / 'data').iterdir())) == 1
  write(tmp_path / 'nuts' / 'photos' / 'good.png', picture((0, 0, 9, 9)))
  changed = data.load(f'csv:{path}', root=tmp_path / 'data')
  assert np.asarray(changed[0]['image'])[0, 0].tolist() == [255] * 3
  photos('image,label\nphotos/good.png,1\n')
  assert data.load(f'csv:{path}', root=tmp_path / 'data').labels.tolist() == [1]
