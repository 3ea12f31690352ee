import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_sets import picture, write, write_category

from zsad_jax import data


@pytest.fixture
def opened(layout, tmp_path):
  def open_(**options):
    return data.load(f'folder:{layout}', root=tmp_path / 'data', **options)
  return open_


def test_records_and_columns_agree(opened):
  dataset = opened()
  assert len(dataset) == 9
  for i in range(len(dataset)):
    record = dataset[i]
    assert record['id'] == dataset.ids[i] and record['label'] == dataset.labels[i]
    assert record['category'] == dataset.categories[dataset.category_index[i]]
    assert record['defect_type'] == dataset.defect_types[i] and record['has_mask'] == dataset.has_mask[i]
    assert record['object_name'] == dataset.object_names[record['category']]
    assert record['image'].mode == 'RGB' and record['mask'].dtype == np.uint8
    assert record['mask'].shape == record['image'].size[::-1]
  assert dataset.labels.dtype == dataset.category_index.dtype == np.int32
  assert 'tensorflow' not in sys.modules


def test_masks_cover_the_drawn_defects(opened):
  for record in opened():
    if record['label']:
      np.testing.assert_array_equal(np.asarray(record['image'])[..., 0], record['mask'])
    else:
      assert not record['mask'].any()


def test_masks_of_normal_and_label_only_images_are_not_decoded(layout, opened, monkeypatch):
  (layout / 'grid' / 'ground_truth').rename(layout.parent / 'away')
  dataset = opened()
  monkeypatch.setattr(data.dataset.images, 'decode_mask', lambda *_: pytest.fail('decoded'))
  for i in np.flatnonzero((dataset.labels == 0) | ~dataset.has_mask):
    record = dataset[int(i)]
    assert record['mask'].shape == record['image'].size[::-1] and not record['mask'].any()


def test_iteration_ends(opened):
  dataset = opened()
  assert [r['id'] for r in dataset] == dataset.ids
  assert dataset[-1]['id'] == dataset.ids[-1]
  with pytest.raises(IndexError, match='record 9 of 9'):
    dataset[9]


def test_categories_filter_in_the_data_sets_own_order(opened):
  dataset = opened(categories=('metal_nut',))
  assert dataset.categories == ('metal_nut',) and len(dataset) == 5
  assert set(dataset.category_index) == {0}
  assert {r['category'] for r in dataset} == {'metal_nut'}
  assert opened(categories=('metal_nut', 'grid')).categories == ('grid', 'metal_nut')


def test_unknown_categories_and_splits_are_refused(opened):
  with pytest.raises(ValueError, match=r"no category 'metalnut', did you mean 'metal_nut'\? It has grid, metal"):
    opened(categories=('metalnut',))
  with pytest.raises(ValueError, match="no images in split 'val'; it has"):
    opened(split='val')


def test_fingerprint_depends_on_the_content_alone(layout, opened):
  before = opened().fingerprint
  assert opened().fingerprint == before
  assert opened(categories=('grid',)).fingerprint != before != opened(split='train').fingerprint
  moved = layout.rename(layout.with_name('elsewhere'))
  elsewhere = data.load(f'folder:{moved}', root=moved.parent / 'other')
  assert elsewhere.fingerprint == before


@pytest.mark.parametrize('change', ['image', 'mask', 'name'])
def test_fingerprint_changes_with_the_content(layout, opened, change):
  before = opened().fingerprint
  image = layout / 'grid' / 'test' / 'glue' / '000.png'
  mask = layout / 'grid' / 'ground_truth' / 'glue' / '000_mask.png'
  if change == 'image':
    picture((0, 0, 3, 3), mode='L').save(image)
  elif change == 'mask':
    picture((0, 0, 3, 3), mode='L').save(mask)
  else:
    image.rename(image.with_name('00a.png'))
    mask.rename(mask.with_name('00a_mask.png'))
  assert opened().fingerprint != before


def test_equal_images_have_equal_digests(opened):
  dataset = opened()
  good = [d for d, label, c in zip(dataset.image_sha256, dataset.labels, dataset.category_index) if not label and c]
  assert len(good) == 2 and len(set(good)) == 1
  assert len(set(dataset.image_sha256)) > 2


def test_empty_and_one_class_categories_stay_in_the_list(tmp_path):
  write_category(tmp_path / 'raw' / 'only_bad', {'cut': 1}, good=0)
  (tmp_path / 'raw' / 'nothing' / 'test').mkdir(parents=True)
  dataset = data.load(f'folder:{tmp_path / "raw"}', root=tmp_path / 'data')
  assert dataset.categories == ('nothing', 'only_bad') and dataset.labels.tolist() == [1]
  assert dataset.object_names == {'nothing': 'nothing', 'only_bad': 'only bad'}
  assert "nothing: no images in split 'test'" in dataset.notes
  chosen = data.load(f'folder:{tmp_path / "raw"}', root=tmp_path / 'data', categories=('nothing',))
  assert len(chosen) == 0 and list(chosen) == []


def test_a_category_absent_from_the_split_keeps_its_name(visa, tmp_path):
  dataset = data.load('visa', root=tmp_path / 'data', manual_dir=visa.parent, categories=('pcb1', 'chewinggum'))
  assert dataset.object_names == {'chewinggum': 'chewing gum', 'pcb1': 'printed circuit board'}


def test_label_only_categories_have_no_masks(layout, opened):
  (layout / 'grid' / 'ground_truth').rename(layout.parent / 'away')
  dataset = opened()
  assert dataset.has_mask.tolist() == [False, False, True, True] + [True] * 5
  assert not dataset[0]['mask'].any() and not dataset[0]['has_mask']


def test_names_may_be_long_and_in_any_script(tmp_path):
  stem = 'フライス_ß_' + 'x' * 150
  write(tmp_path / 'raw' / 'größe' / 'test' / 'трещина' / f'{stem}.png', picture((0, 0, 4, 4)))
  write(tmp_path / 'raw' / 'größe' / 'ground_truth' / 'трещина' / f'{stem}_mask.png', picture((0, 0, 4, 4)))
  dataset = data.load(f'folder:{tmp_path / "raw"}', root=tmp_path / 'data')
  assert dataset.categories == ('größe',)
  record = dataset[0]
  assert record['id'] == f'größe/test/трещина/{stem}' and record['defect_type'] == 'трещина'
  assert record['mask'].sum() == 16 * 255


def test_truncated_records_are_refused(tmp_path, opened):
  opened()
  shard = next((tmp_path / 'data').glob('*/mvtec_layout/1.0.0/*test.array_record*'))
  os.truncate(shard, shard.stat().st_size // 2)
  with pytest.raises(ValueError, match='the prepared files are damaged'):
    opened()


def test_an_index_that_cannot_be_written_is_tolerated(tmp_path, opened, monkeypatch):
  before = opened()
  for path in (tmp_path / 'data').glob('*/mvtec_layout/1.0.0/index-*.json'):
    path.unlink()

  def refuse(self, *args, **kwargs):
    raise PermissionError(13, 'read-only', str(self))
  monkeypatch.setattr(Path, 'write_text', refuse)
  assert opened().fingerprint == before.fingerprint
  assert not list((tmp_path / 'data').glob('*/mvtec_layout/1.0.0/index-*.json'))


def test_the_index_is_json(tmp_path, opened):
  dataset = opened()
  path = next((tmp_path / 'data').glob('*/mvtec_layout/1.0.0/index-test.json'))
  assert json.loads(path.read_text())['columns']['id'] == dataset.ids


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(width=st.integers(1, 40), height=st.integers(1, 40), data_=st.data())
def test_image_and_mask_survive_at_any_size(tmp_path_factory, width, height, data_):
  left, top = data_.draw(st.integers(0, width - 1)), data_.draw(st.integers(0, height - 1))
  block = (left, top, data_.draw(st.integers(left + 1, width)), data_.draw(st.integers(top + 1, height)))
  root = tmp_path_factory.mktemp('any')
  write(root / 'raw' / 'part' / 'test' / 'cut' / '0.png', picture(block, (width, height)))
  write(root / 'raw' / 'part' / 'ground_truth' / 'cut' / '0.png', picture(block, (width, height), '1'))
  record = data.load(f'folder:{root / "raw"}', root=root / 'data')[0]
  assert record['image'].size == (width, height)
  np.testing.assert_array_equal(np.asarray(record['image'])[..., 0], record['mask'])
  assert record['mask'].any()
