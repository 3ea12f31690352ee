"""Data sets with image labels only: official archives, and what the papers' scripts convert them to."""

import hashlib

import numpy as np
import pytest
from medical_sets import scan, write_plain
from PIL import Image
from small_sets import write

from zsad_jax import data
from zsad_jax.data import builders, catalog, images

SETS = ('head_ct', 'brain_mri', 'br35h', 'covid19_radiography', 'covid19_radiography/current', 'sewer_ml')


def load(name, tmp_path, **options):
  return data.load(name, root=tmp_path / 'data', manual_dir=tmp_path / 'manual', **options)


def head_ct(root):
  write_plain(root / 'head_ct' / 'head_ct', ['000.png', '001.png'], 0)
  write_plain(root / 'head_ct' / 'head_ct', ['100.png', '101.png'], mode='L')
  (root / 'labels.csv').write_text('id, hemorrhage\n0,1\n1,1\n100,0\n101,0\n')


def brain_mri(root):
  for top in (root, root / 'brain_tumor_dataset'):
    write_plain(top / 'no', ['1 no.jpeg', 'no 97.jpg', 'N16.JPG'])
    write_plain(top / 'yes', ['Y1.jpg', 'Y2.png'], 0)
    write_plain(top / 'yes', ['Y3.png'], 1)


def br35h(root):
  write_plain(root / 'no', ['no0.jpg', 'no1.jpg'])
  write_plain(root / 'yes', ['y0.jpg'], 0)
  write_plain(root / 'pred', ['pred0.jpg'])
  write_plain(root / 'Br35H-Mask-RCNN' / 'TRAIN', ['y1.jpg'], 1)


def covid_2020(root):
  top = root / 'COVID-19 Radiography Database'
  write_plain(top / 'NORMAL', ['NORMAL (1).png', 'NORMAL (2).png'])
  write_plain(top / 'COVID-19', ['COVID-19 (1).png'], 0)
  write_plain(top / 'Viral Pneumonia', ['Viral Pneumonia (1).png'], 1)
  (top / 'COVID-19.metadata.xlsx').write_bytes(b'')


def covid_current(root):
  top = root / 'COVID-19_Radiography_Dataset'
  for name, i in (('Normal', None), ('COVID', 0), ('Lung_Opacity', 1), ('Viral Pneumonia', 1)):
    write_plain(top / name / 'images', [f'{name}-1.png'], i)
    write_plain(top / name / 'masks', [f'{name}-1.png'], 2)


def sewer_ml(root):
  write_plain(root / 'valid00', ['00000002.png', '00000010.png'])
  write_plain(root / 'valid01' / 'valid01', ['00000003.png'], 0)
  write_plain(root / 'train00', ['00000001.png'], 0)
  (root / 'SewerML_Val.csv').write_text(
    'Filename,WaterLevel,VA,RB,ND,Defect\n00000010.png,0,0,0,1,0\n00000003.png,5,1,1,0,1\n00000002.png,0,0,0,1,0\n')


WRITERS = {'head_ct': head_ct, 'brain_mri': brain_mri, 'br35h': br35h, 'covid19_radiography': covid_2020,
           'covid19_radiography/current': covid_current, 'sewer_ml': sewer_ml}
IDS = {
  'head_ct': ['brain/test/good/100', 'brain/test/good/101', 'brain/test/hemorrhage/000', 'brain/test/hemorrhage/001'],
  'brain_mri': ['brain/test/good/1 no', 'brain/test/good/N16', 'brain/test/good/no 97', 'brain/test/tumour/Y1',
                'brain/test/tumour/Y2', 'brain/test/tumour/Y3'],
  'br35h': ['brain/test/good/no0', 'brain/test/good/no1', 'brain/test/tumour/y0'],
  'covid19_radiography': ['chest/test/covid/COVID-19 (1)', 'chest/test/good/NORMAL (1)', 'chest/test/good/NORMAL (2)'],
  'covid19_radiography/current': ['chest/test/covid/COVID-1', 'chest/test/good/Normal-1'],
  'sewer_ml': ['sewer_pipe/test/defect/00000003', 'sewer_pipe/test/good/00000002', 'sewer_pipe/test/good/00000010'],
}


def raw(name, tmp_path):
  root = tmp_path / 'manual' / name.partition('/')[0]
  root.mkdir(parents=True)
  WRITERS[name](root)
  return root


def check(name, dataset):
  """Ids, labels and pixels agree: what is anomalous here is marked, though no mask says where."""
  assert dataset.ids == IDS[name]
  for record in dataset:
    anomalous = '/good/' not in record['id']
    assert record['label'] == anomalous and record['has_mask'] == (not anomalous)
    assert (np.asarray(record['image']) > 127).any() == anomalous
    assert record['mask'].shape == record['image'].size[::-1] and not record['mask'].any()
    assert record['object_name'] == record['category'].replace('_', ' ')


@pytest.mark.parametrize('name', SETS)
def test_the_official_archive_is_read(name, tmp_path):
  raw(name, tmp_path)
  dataset = load(name, tmp_path)
  check(name, dataset)
  assert dataset.name == name and [n for n in dataset.notes if 'published' not in n and 'copies' not in n] == []
  with pytest.raises(ValueError, match="no images in split 'train'; it has test"):
    load(name, tmp_path, split='train')


@pytest.mark.parametrize('name', SETS)
def test_everything_in_the_archive_is_expected(name, tmp_path):
  raw(name, tmp_path)
  problems = data.verify(name, tmp_path / 'manual').problems
  assert [p for p in problems if 'published' not in p] == []


@pytest.mark.parametrize('name,counts', [
  ('head_ct', (100, 100)), ('brain_mri', (98, 155)), ('br35h', (1500, 1500)), ('covid19_radiography', (1341, 219)),
  ('covid19_radiography/current', (10192, 3616)), ('sewer_ml', (68681, 61365))])
def test_counts_are_compared_with_the_published_ones(name, counts, tmp_path):
  raw(name, tmp_path)
  text = '\n'.join(data.verify(name, tmp_path / 'manual', decode=False).problems)
  for kind, count in zip(('normal', 'anomalous'), counts):
    assert f'test {kind} images, published {count:,}' in text
  assert catalog.CATALOG[name.partition('/')[0]].metrics == ('image',)


def test_duplicate_files_of_brain_mri_are_noted_and_kept(tmp_path):
  root = raw('brain_mri', tmp_path)
  (root / 'yes' / 'Y9.jpg').write_bytes((root / 'yes' / 'Y1.jpg').read_bytes())
  dataset = load('brain_mri', tmp_path)
  note, = (n for n in dataset.notes if 'copies' in n)
  assert '1 of 7 images, 0 of them under the other label, first brain/test/tumour/Y9 = brain/test/tumour/Y1' in note
  assert len(dataset) == 7 and not any('copies' in p for p in data.verify('brain_mri', tmp_path / 'manual').problems)


def test_brain_mri_formats_are_decided_by_content(tmp_path):
  yes = raw('brain_mri', tmp_path) / 'yes'
  wrong = {'Y4.jpg': ('PNG', 'RGB'), 'Y5.JPG': ('PNG', 'P'), 'Y6.jpeg': ('JPEG', 'L'), 'Y7.jpg': ('PNG', 'RGBA')}
  for name, (kind, mode) in wrong.items():
    scan(1, mode).save(yes / name, format=kind)
  records = {r['id'].rsplit('/', 1)[1]: r for r in load('brain_mri', tmp_path)}
  for name in wrong:
    pixels = np.asarray(records[name.split('.')[0]]['image']).astype(int)
    assert np.abs(pixels - np.asarray(scan(1))).max() <= (40 if 'Y6' in name else 0), name


def test_head_ct_transparency_follows_the_rule(tmp_path):
  root = raw('head_ct', tmp_path)
  picture = scan(0, 'RGBA')
  picture.putpixel((0, 0), (20, 20, 20, 0))
  write(root / 'head_ct' / 'head_ct' / '000.png', picture)
  white = load('head_ct', tmp_path, rules=images.Rules())
  assert white[2]['image'].getpixel((0, 0)) == (255, 255, 255)
  assert any('alpha laid over' in n and '1 of 4' in n for n in white.notes)
  dropped = load('head_ct', tmp_path)                # as the official code, by default
  assert dropped[2]['image'].getpixel((0, 0)) == (20, 20, 20)


@pytest.mark.parametrize('layout', ['brain/test/{}', 'headct/test/{}'])
def test_head_ct_is_read_as_scripts_convert_it(layout, tmp_path):
  root = tmp_path / 'manual' / 'head_ct'
  write_plain(root / layout.format('defect'), ['000.png', '001.png'], 0)
  write_plain(root / layout.format('good'), ['100.png', '101.png'], mode='L')
  (root / layout.format('').replace('test', 'train') / 'good').mkdir(parents=True)
  dataset = load('head_ct', tmp_path)
  check('head_ct', dataset)
  assert all('published' in n for n in dataset.notes)


def test_head_ct_is_read_with_one_folder_fewer(tmp_path):
  root = raw('head_ct', tmp_path)
  (root / 'head_ct' / 'head_ct').rename(root / 'images')
  (root / 'head_ct').rmdir()
  (root / 'images').rename(root / 'head_ct')
  check('head_ct', load('head_ct', tmp_path))


@pytest.mark.parametrize('name', ['brain_mri', 'br35h'])
def test_brain_sets_are_read_as_adaclip_converts_them(name, tmp_path):
  root = raw(name, tmp_path)
  test = tmp_path / 'manual' / 'other' / name / 'test'
  test.mkdir(parents=True)
  (root / 'yes').rename(test / 'defect')
  (root / 'no').rename(test / 'good')
  found = data.load(name, root=tmp_path / 'data', manual_dir=tmp_path / 'manual' / 'other')
  check(name, found)


def test_brain_mri_is_read_from_the_inner_copy_alone(tmp_path):
  root = raw('brain_mri', tmp_path)
  for name in ('yes', 'no'):
    for path in (root / name).iterdir():
      path.unlink()
    (root / name).rmdir()
  check('brain_mri', load('brain_mri', tmp_path))


@pytest.mark.parametrize('top,covid', [('', 'COVID-19'), ('COVID-19_Radiography_Dataset', 'COVID-19'),
                                       ('COVID-19_Radiography_Dataset', 'COVID')])
def test_covid_2020_is_read_as_scripts_convert_it(top, covid, tmp_path):
  root = tmp_path / 'manual' / 'covid19_radiography' / top
  write_plain(root / 'NORMAL', ['NORMAL (1).png', 'NORMAL (2).png'])
  write_plain(root / covid, ['COVID-19 (1).png'], 0)
  check('covid19_radiography', load('covid19_radiography', tmp_path))


def test_both_covid_releases_may_be_in_one_folder(tmp_path):
  covid_current(raw('covid19_radiography', tmp_path))
  for name in ('covid19_radiography', 'covid19_radiography/current'):
    dataset = load(name, tmp_path)
    check(name, dataset)
    assert all('published' in n for n in dataset.notes)


def test_the_other_covid_release_is_named(tmp_path):
  raw('covid19_radiography/current', tmp_path)
  with pytest.raises(FileNotFoundError, match='COVID-19 Radiography Database/NORMAL/ and') as e:
    load('covid19_radiography', tmp_path)
  assert 'COVID-19_Radiography_Dataset/COVID/' in str(e.value)
  with pytest.raises(ValueError, match="no configuration 'v2021'; it has v2020, current"):
    load('covid19_radiography/v2021', tmp_path)


@pytest.mark.parametrize('name,path', [
  ('head_ct', 'head_ct/head_ct/001.png'), ('brain_mri', 'no/N16.JPG'), ('br35h', 'yes/y0.jpg'),
  ('covid19_radiography', 'COVID-19 Radiography Database/NORMAL/NORMAL (2).png'), ('sewer_ml', 'valid00/00000010.png')])
@pytest.mark.parametrize('content,message', [(b'', 'empty'), (None, 'damaged'), (b'no image', 'not an image')])
def test_damaged_files_are_named(name, path, content, message, tmp_path):
  bad = raw(name, tmp_path) / path
  bad.write_bytes(bad.read_bytes()[:-60] if content is None else content)
  with pytest.raises(ValueError, match=message) as e:
    load(name, tmp_path)
  assert str(bad) in str(e.value)


@pytest.mark.parametrize('name,folder', [
  ('brain_mri', 'no'), ('br35h', 'yes'), ('covid19_radiography', 'COVID-19 Radiography Database/NORMAL')])
def test_a_missing_folder_is_named(name, folder, tmp_path):
  root = raw(name, tmp_path)
  (root / folder).rename(tmp_path / 'away')
  with pytest.raises(ValueError, match=f'{root / folder}: folder is missing'):
    load(name, tmp_path)


def test_missing_and_unlisted_files_of_head_ct_are_named(tmp_path):
  root = raw('head_ct', tmp_path)
  (root / 'head_ct' / 'head_ct' / '100.png').rename(root / 'head_ct' / 'head_ct' / '102.png')
  found = builders.published('head_ct').scan(root)
  assert found.problems == [f'{root}/head_ct/head_ct/100.png: listed in labels.csv but missing']
  assert found.notes == [f'{root}/head_ct/head_ct/102.png: not listed in labels.csv, ignored']


@pytest.mark.parametrize('row', ['x,1', '1,2', '-1,0'])
def test_invalid_rows_of_head_ct_are_refused(row, tmp_path):
  with (raw('head_ct', tmp_path) / 'labels.csv').open('a') as f:
    f.write(row + '\n')
  with pytest.raises(ValueError, match=r'labels\.csv: not a valid row of HeadCT'):
    load('head_ct', tmp_path)


def test_a_file_of_head_ct_listed_twice_is_refused(tmp_path):
  with (raw('head_ct', tmp_path) / 'labels.csv').open('a') as f:
    f.write('101,0\n')
  with pytest.raises(ValueError, match='brain/test/good/101: 2 images have this id'):
    load('head_ct', tmp_path)


def test_sewer_images_are_stored_byte_for_byte(tmp_path):
  root = raw('sewer_ml', tmp_path)
  Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)).save(
    root / 'valid00' / '00000002.png', format='JPEG')
  paths = ('valid01/valid01/00000003.png', 'valid00/00000002.png', 'valid00/00000010.png')
  assert load('sewer_ml', tmp_path).image_sha256 == [
    hashlib.sha256((root / path).read_bytes()).hexdigest() for path in paths]


def test_missing_unlisted_and_duplicate_files_of_sewer_ml_are_named(tmp_path):
  root = raw('sewer_ml', tmp_path)
  scan = builders.published('sewer_ml').scan
  (root / 'valid00' / '00000010.png').rename(root / 'valid00' / '00000011.png')
  found = scan(root)
  assert found.problems == [f'00000010.png: listed in SewerML_Val.csv but in none of the folders {root}/val*']
  assert found.notes == [f'not listed in SewerML_Val.csv, ignored: 1 images, first {root}/valid00/00000011.png']
  (root / 'valid00' / '00000011.png').rename(root / '00000010.png')
  found = scan(root)
  assert found.problems == found.notes == [] and len(found.items) == 3
  write_plain(root / 'valid00', ['00000003.png'])
  problem, = scan(root).problems
  assert 'valid01/valid01/00000003.png: same name as' in problem and 'keep one' in problem


def test_invalid_labels_of_sewer_ml_are_refused(tmp_path):
  table = raw('sewer_ml', tmp_path) / 'SewerML_Val.csv'
  table.write_text(table.read_text().replace('0,0,0,1,0\n', '0,0,0,1,2\n'))
  with pytest.raises(ValueError, match=r"SewerML_Val\.csv: 'Defect' of 00000010\.png is '2'; it must be 0 or 1"):
    load('sewer_ml', tmp_path)


@pytest.mark.parametrize('name', SETS)
def test_an_empty_manual_folder_is_an_error_with_instructions(name, tmp_path):
  with pytest.raises(FileNotFoundError, match='downloaded by hand') as e:
    load(name, tmp_path)
  assert catalog.CATALOG[name.partition('/')[0]].homepage in str(e.value)
