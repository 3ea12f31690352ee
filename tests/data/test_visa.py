import numpy as np
import pytest
from PIL import Image
from small_sets import picture, write

from zsad_jax import data
from zsad_jax.data.layouts import visa as visa_layout


def table(root):
  return root / 'split_csv' / '1cls.csv'


def test_the_table_decides_the_splits(visa):
  found = visa_layout.scan(visa)
  assert found.problems == []
  assert [i.key for i in found.items if i.category == 'candle'] == [
    'candle/test/anomaly/000', 'candle/test/anomaly/001', 'candle/test/good/000', 'candle/test/good/0002',
    'candle/train/good/0000', 'candle/train/good/0001']
  assert len([n for n in found.notes if 'missing' in n]) == 10


def test_index_masks_become_0_and_255(visa, tmp_path):
  dataset = data.load('visa', root=tmp_path / 'data', manual_dir=visa.parent, categories=('candle', 'pcb1'))
  assert len(dataset) == 8 and dataset.labels.tolist() == [1, 1, 0, 0] * 2
  for i, record in enumerate(dataset[i] for i in range(len(dataset))):
    expected = np.zeros((18, 30), bool)
    if record['label']:
      expected[:5, :10 + i % 4] = True
    np.testing.assert_array_equal(record['mask'], expected * np.uint8(255))
    assert record['has_mask'] and record['image'].size == (30, 18)
  assert dataset.object_names == {'candle': 'candle', 'pcb1': 'printed circuit board'}
  assert set(dataset.defect_types) == {'good', 'anomaly'}


def test_jpegs_are_stored_unchanged(visa, tmp_path):
  dataset = data.load('visa', root=tmp_path / 'data', manual_dir=visa)
  original = Image.open(visa / 'candle' / 'Data' / 'Images' / 'Anomaly' / '000.JPG').convert('RGB')
  np.testing.assert_array_equal(np.asarray(dataset[0]['image']), np.asarray(original))


def test_missing_listed_files_are_problems(visa):
  (visa / 'pcb1' / 'Data' / 'Masks' / 'Anomaly' / '001.png').unlink()
  (visa / 'candle' / 'Data' / 'Images' / 'Normal' / '0001.JPG').unlink()
  problems = visa_layout.scan(visa).problems
  assert len(problems) == 2
  assert 'Normal/0001.JPG: listed in 1cls.csv' in problems[0] and 'Anomaly/001.png' in problems[1]


def test_unlisted_files_are_noted(visa):
  write(visa / 'pcb1' / 'Data' / 'Images' / 'Normal' / '0009.JPG', picture())
  assert any('0009.JPG: not listed' in n for n in visa_layout.scan(visa).notes)


def test_an_anomalous_row_without_mask_is_a_problem(visa):
  table(visa).write_text(table(visa).read_text().replace(',pcb1/Data/Masks/Anomaly/000.png', ','))
  assert 'names no mask' in visa_layout.scan(visa).problems[0]


def test_a_row_twice_is_a_repeated_id(visa, tmp_path):
  text = table(visa).read_text()
  table(visa).write_text(text + text.splitlines()[1] + '\n')
  with pytest.raises(ValueError, match='candle/train/good/0000: 2 images have this id'):
    data.load('visa', root=tmp_path / 'data', manual_dir=visa)


def test_unknown_objects_are_noted(visa):
  with table(visa).open('a') as f:
    f.write('spoon,test,normal,spoon/a.JPG,\n')
  assert any("'spoon' is not an object of VisA" in n for n in visa_layout.scan(visa).notes)


@pytest.mark.parametrize('line', [
  'candle,test,fine,candle/a.JPG,', 'candle,val,normal,candle/a.JPG,', 'candle,test,normal,,',
  'candle,test,normal,/etc/passwd,', 'candle,test,normal,../../a.JPG,'])
def test_invalid_rows_are_refused(visa, line):
  with table(visa).open('a') as f:
    f.write(line + '\n')
  with pytest.raises(ValueError, match=r'1cls\.csv, line 14: not a valid row'):
    visa_layout.scan(visa)


def test_a_table_without_its_columns_is_refused(visa):
  table(visa).write_text('object,split,label\n')
  with pytest.raises(ValueError, match='no column image, mask'):
    visa_layout.scan(visa)


def test_a_missing_table_is_refused(visa):
  table(visa).unlink()
  with pytest.raises(FileNotFoundError, match=r'1cls\.csv: missing'):
    visa_layout.scan(visa)
