import shutil

import pytest
from small_sets import picture, write, write_category

from zsad_jax.data import records
from zsad_jax.data.layouts import mvtec


def only(messages, *words):
  """The one message that holds all words."""
  matching = [m for m in messages if all(w in m for w in words)]
  assert len(matching) == 1, messages
  return matching[0]


def test_scan_returns_every_image_in_order(layout):
  found = mvtec.scan(layout)
  assert [i.key for i in found.items] == [
    'grid/test/glue/000', 'grid/test/glue/001', 'grid/test/good/000', 'grid/test/good/001',
    'grid/train/good/000', 'grid/train/good/001',
    'metal_nut/test/bent/000', 'metal_nut/test/good/000', 'metal_nut/test/good/001',
    'metal_nut/test/scratch/000', 'metal_nut/test/scratch/001',
    'metal_nut/train/good/000', 'metal_nut/train/good/001']
  assert found.problems == [] and found.notes == []
  for item in found.items:
    assert item.label == (item.defect_type != 'good')
    assert (item.mask is not None) == bool(item.label)
    assert item.mask is None or item.mask.parent.name == item.defect_type


def test_the_root_may_be_one_category(layout):
  found = mvtec.scan(layout / 'grid')
  assert {i.category for i in found.items} == {'grid'} and len(found.items) == 6
  assert found.notes == []


def test_masks_pair_by_stem_not_by_order(tmp_path):
  root = tmp_path / 'a' / 'test'
  for stem in ('9', '10', 'x_mask', 'é'):
    write(root / 'cut' / f'{stem}.png', picture())
  for name in ('9_mask.PNG', '10.bmp', 'x_mask_mask.png', 'e\u0301_mask.png'):
    write(tmp_path / 'a' / 'ground_truth' / 'cut' / name, picture(mode='L'))
  found = mvtec.scan(tmp_path / 'a')
  assert found.problems == []
  assert {i.stem: i.mask.name for i in found.items} == {
    '9': '9_mask.PNG', '10': '10.bmp', 'x_mask': 'x_mask_mask.png', 'é': 'e\u0301_mask.png'}


def test_a_missing_mask_is_a_problem_with_its_path(layout):
  gone = layout / 'grid' / 'ground_truth' / 'glue' / '001_mask.png'
  gone.unlink()
  message = only(mvtec.scan(layout).problems)
  assert str(gone.with_suffix('')) in message and str(layout / 'grid' / 'test' / 'glue' / '001.png') in message


def test_an_extra_mask_is_a_problem_with_its_path(layout):
  extra = write(layout / 'grid' / 'ground_truth' / 'glue' / '007_mask.png', picture(mode='L'))
  assert str(extra) in only(mvtec.scan(layout).problems, 'mask without an image')


def test_masks_of_a_defect_without_images_are_a_problem(layout):
  shutil.rmtree(layout / 'grid' / 'test' / 'glue')
  assert 'glue' in only(mvtec.scan(layout).problems, 'masks of a defect without images')


def test_two_masks_for_one_image_are_a_problem(layout):
  write(layout / 'grid' / 'ground_truth' / 'glue' / '000.png', picture(mode='L'))
  assert '000.png' in only(mvtec.scan(layout).problems, 'mask without an image')


def test_a_category_without_ground_truth_has_labels_only(layout):
  shutil.rmtree(layout / 'grid' / 'ground_truth')
  found = mvtec.scan(layout)
  assert found.problems == []
  assert 'grid' in only(found.notes, 'image labels only')
  assert {i.mask for i in found.items if i.category == 'grid'} == {None}


def test_missing_ground_truth_is_a_problem_if_masks_are_required(layout):
  shutil.rmtree(layout / 'grid' / 'ground_truth')
  found = mvtec.scan(layout, masks_required=True)
  assert len(found.problems) == 2 and all('no mask' in p for p in found.problems)


@pytest.mark.parametrize('name', ['ok', 'Normal'])
def test_normal_images_in_an_unexpected_folder_get_a_hint(layout, name):
  (layout / 'grid' / 'test' / 'good').rename(layout / 'grid' / 'test' / name)
  assert f"belong in 'good', not '{name}'" in mvtec.scan(layout).problems[0]


def test_one_stem_twice_is_a_problem(layout):
  write(layout / 'grid' / 'test' / 'good' / '000.jpg', picture())
  message = only(mvtec.scan(layout).problems, 'keep one of the two')
  assert '000.png' in message or '000.jpg' in message


def test_oddities_are_noted_and_ignored(layout):
  (layout / 'grid' / 'test' / 'good' / 'notes.txt').write_text('hello')
  (layout / 'grid' / 'test' / 'good' / '.DS_Store').write_text('hello')
  (layout / 'grid' / 'test' / 'good' / 'deeper').mkdir()
  write(layout / 'grid' / 'train' / 'broken' / '000.png', picture())
  (layout / 'grid' / 'extra').mkdir()
  (layout / 'stray').mkdir()
  found = mvtec.scan(layout)
  assert found.problems == [] and len(found.items) == 13
  for words in (['notes.txt', 'not an image'], ['deeper', 'unexpected folder'], ['train/broken', 'ignored'],
                ['grid/extra', 'ignored'], ['stray', 'not a category']):
    only(found.notes, *words)
  assert not any('DS_Store' in n for n in found.notes)


def test_images_next_to_the_defect_folders_are_a_problem(layout):
  loose = write(layout / 'grid' / 'test' / '000.png', picture())
  assert str(loose) in only(mvtec.scan(layout).problems, 'image outside')


def test_known_categories_are_compared_with_the_folder(layout):
  found = mvtec.scan(layout, known=('grid', 'zipper'))
  assert {i.category for i in found.items} == {'grid'}
  assert 'zipper' in only(found.notes, 'missing')
  assert 'metal_nut' in only(found.notes, 'not a category')


def test_one_class_and_empty_categories_are_allowed(tmp_path):
  write_category(tmp_path / 'only_bad', {'cut': 1}, train=0, good=0)
  write_category(tmp_path / 'only_good', {}, train=0, good=2)
  (tmp_path / 'nothing' / 'test').mkdir(parents=True)
  found = mvtec.scan(tmp_path)
  assert found.problems == []
  assert [i.category for i in found.items] == ['only_bad', 'only_good', 'only_good']
  assert set(mvtec.categories(tmp_path)) == {'only_bad', 'only_good', 'nothing'}


@pytest.mark.parametrize('wrong,hint', [
  ('grid/test', 'below the category folder'), ('grid/test/glue', 'below the category folder'),
  ('..', 'one level deeper'), ('gone', 'does not exist')])
def test_a_wrong_root_is_explained(layout, wrong, hint):
  with pytest.raises(FileNotFoundError, match=hint) as e:
    mvtec.categories((layout / wrong).resolve())
  assert 'Expected' in str(e.value) and 'found:' in str(e.value)


def test_another_letter_case_is_explained(layout):
  for part in ('train', 'test'):
    for name in ('grid', 'metal_nut'):
      (layout / name / part).rename(layout / name / part.capitalize())
  with pytest.raises(FileNotFoundError, match=r"'Test' should be 'test'"):
    mvtec.categories(layout)


def test_features_name_labels_and_categories():
  features = records.features(['b', 'a'])
  assert list(features) == ['id', 'image', 'mask', 'has_mask', 'label', 'category', 'object_name',
                            'defect_type']
  assert features['label'].names == ['normal', 'anomalous']
  assert features['category'].names == ['b', 'a']
