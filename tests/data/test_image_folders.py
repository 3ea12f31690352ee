import pytest
from medical_sets import outline, scan, write_pairs, write_plain
from small_sets import write

from zsad_jax.data import inventory
from zsad_jax.data.catalog.entry import ImageFolders, Part, converted, image_labels
from zsad_jax.data.inventory import Item
from zsad_jax.data.layouts import image_folders, image_table

PAIRS = ImageFolders((Part('images', 'polyp', 'masks'),))
LABELS = image_labels('no', 'yes', 'tumour', unused=('spare',))


def read(root, *layouts):
  return image_folders.scan(root, 'kvasir_seg', layouts)


def test_images_pair_with_masks_by_stem_not_by_order(tmp_path):
  write_pairs(tmp_path, 'images/{}.jpg', 'masks/{}_mask.png', ['a', 'a b'])   # 'a b' sorts before 'a_mask'
  write_pairs(tmp_path, 'images/{}.png', 'masks/{}.bmp', ['c'])
  found = read(tmp_path, PAIRS)
  assert found.problems == found.notes == []
  assert [(i.key, i.image.name, i.mask.name) for i in found.items] == [
    ('colon/test/polyp/a', 'a.jpg', 'a_mask.png'), ('colon/test/polyp/a b', 'a b.jpg', 'a b_mask.png'),
    ('colon/test/polyp/c', 'c.png', 'c.bmp')]


def test_missing_and_extra_masks_are_problems(tmp_path):
  write_pairs(tmp_path, 'images/{}.jpg', 'masks/{}.png', 'ab')
  (tmp_path / 'masks' / 'a.png').rename(tmp_path / 'masks' / 'c.png')
  missing, extra = read(tmp_path, PAIRS).problems
  assert f'{tmp_path}/images/a.jpg: no mask' in missing
  assert f'{tmp_path}/masks/c.png: mask without an image' in extra


def test_a_missing_mask_folder_is_one_problem(tmp_path):
  write(tmp_path / 'images' / 'a.jpg', scan(0))
  write(tmp_path / 'images' / 'b.jpg', scan(0))
  problem, = read(tmp_path, PAIRS).problems
  assert problem == f'{tmp_path}/masks: folder is missing; it holds the masks of {tmp_path}/images'


def test_folders_without_images_are_no_layout(tmp_path):
  (tmp_path / 'images').mkdir()
  (tmp_path / 'masks').mkdir()
  with pytest.raises(FileNotFoundError, match=r'no image of Kvasir-SEG in it(.|\n)*images/ \(0 files\)'):
    read(tmp_path, PAIRS)


def test_a_missing_part_is_a_problem(tmp_path):
  write(tmp_path / 'yes' / 'a.jpg', scan(0))
  assert read(tmp_path, LABELS).problems == [f'{tmp_path}/no: folder is missing']


def test_label_only_images_have_no_mask(tmp_path):
  write_plain(tmp_path / 'no', ['b.jpg', 'a.png'])
  write_plain(tmp_path / 'yes', ['a.jpg'], 0)
  items = read(tmp_path, LABELS).items
  assert [(i.key, i.mask, i.label) for i in items] == [
    ('colon/test/good/a', None, 0), ('colon/test/good/b', None, 0), ('colon/test/tumour/a', None, 1)]


def test_only_unknown_filled_folders_are_noted(tmp_path):
  write_plain(tmp_path / 'no', ['a.jpg'])
  write_plain(tmp_path / 'yes', ['a.jpg'], 0)
  write_plain(tmp_path / 'spare', ['a.jpg'])
  write_plain(tmp_path / 'stray', ['a.jpg'])
  write_plain(tmp_path / 'yes' / 'inner', ['a.jpg'])
  (tmp_path / 'empty').mkdir()
  found = read(tmp_path, LABELS)
  assert sorted(found.notes) == [f'{tmp_path}/{name}: unexpected folder, ignored' for name in ('stray', 'yes/inner')]
  assert len(found.items) == 2 and found.problems == []


def test_the_fullest_layout_is_read_or_the_first_of_equals(tmp_path):
  other = ImageFolders((Part('yes', 'other'),))
  write_plain(tmp_path / 'yes', ['a.jpg'], 0)
  assert read(tmp_path, other, LABELS).items[0].defect_type == 'other'
  assert read(tmp_path, LABELS, other).items[0].defect_type == 'tumour'
  write_plain(tmp_path / 'no', ['a.jpg'])
  assert len(read(tmp_path, other, LABELS).items) == 2


def test_a_star_stands_for_every_folder_but_good(tmp_path):
  write_pairs(tmp_path, 'test/x/{}.jpg', 'ground_truth/x/{}.png', 'ab')
  write_pairs(tmp_path, 'test/y/{}.jpg', 'ground_truth/y/{}.png', 'c')
  write_plain(tmp_path / 'test' / 'good', ['d.jpg'])
  (tmp_path / 'train' / 'good').mkdir(parents=True)
  found = read(tmp_path, converted('polyp', masks=True))
  assert [i.key.rsplit('/', 2)[1:] for i in found.items] == [['polyp', 'a'], ['polyp', 'b'], ['polyp', 'c']]
  assert found.problems == [] and found.notes == [f'{tmp_path}/test/good: unexpected folder, ignored']
  found = read(tmp_path, converted('polyp', masks=False))
  assert [i.label for i in found.items] == [0, 1, 1, 1]


def test_an_unknown_layout_is_refused_with_expected_and_existing_folders(tmp_path):
  write(tmp_path / 'Images' / 'a.jpg', scan(0))
  write(tmp_path / 'Masks' / 'a.jpg', outline(0))
  with pytest.raises(FileNotFoundError) as e:
    read(tmp_path, PAIRS, LABELS)
  for part in (str(tmp_path), 'images/ with masks/\n  or no/ and yes/', 'Images/ (1 files)', 'case-sensitive',
               'kvasir-seg.zip'):
    assert part in str(e.value)


def write_table(tmp_path, content):
  path = tmp_path / 'labels.csv'
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return path


def test_blanks_around_table_values_are_dropped(tmp_path):
  table = write_table(tmp_path, '\ufeffid, bleeding,more\n0, 1 ,\n\n"1",0,x\n')
  rows = image_table.read_filled(table, ('id', 'bleeding'))
  assert rows == [{'id': '0', 'bleeding': '1'}, {'id': '1', 'bleeding': '0'}]


@pytest.mark.parametrize('content,message', [
  ('', 'no column id, bleeding; it has '), ('id,b\n1,0\n', 'no column bleeding; it has id, b'),
  ('id,bleeding\n1,0\n2\n', 'line 3: no value for bleeding'), ('id,bleeding\n,0\n', 'line 2: no value for id'),
  (b'id,bleeding\n\xff\xfe,0\n', 'line 2: not UTF-8')])
def test_unreadable_tables_name_the_line(tmp_path, content, message):
  with pytest.raises(ValueError, match=rf'labels\.csv.*{message}'):
    image_table.read_filled(write_table(tmp_path, content), ('id', 'bleeding'))


def test_a_missing_table_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'labels\.csv: missing'):
    image_table.read_filled(tmp_path / 'labels.csv', ())


def test_duplicate_files_are_counted_across_labels(tmp_path):
  items = []
  for stem, i, label in (('a', 0, 1), ('b', 1, 1), ('c', 0, 1), ('d', 0, 0)):
    path = write(tmp_path / f'{stem}.png', scan(i))
    items.append(Item('brain', 'test', 'tumour' if label else 'good', stem, path, None, label))
  assert inventory.duplicate_files(items[:2]) == []
  line, = inventory.duplicate_files(items)
  assert '2 of 4 images, 1 of them under the other label, first brain/test/tumour/c = brain/test/tumour/a' in line
