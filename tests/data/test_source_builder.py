import contextlib
import io
import json
import shutil
import sys
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from small_sets import picture, write

from zsad_jax.data import builders, images, records
from zsad_jax.data.images import BadImage, Rules
from zsad_jax.data.inventory import Item
from zsad_jax.data.read_ahead import read_ahead


def item(tmp_path, image, mask=None, label=1):
  image = write(tmp_path / 'image.png', image)
  mask = mask and write(tmp_path / 'mask.png', mask)
  return Item('part', 'test', 'cut' if label else 'good', '000', image, mask, label)


def record(one, rules=images.DEFAULT_RULES):
  return records.read(one, names={'part': 'my part'}, threshold=0, rules=rules)


def stored_mask(example):
  return images.decode_mask(example['mask'], 'm')


def test_record_of_an_anomalous_image(tmp_path):
  one = item(tmp_path, picture((1, 2, 9, 8)), picture((1, 2, 9, 8), mode='L'))
  example, notes = record(one)
  assert notes == []
  assert {k: v for k, v in example.items() if k not in ('image', 'mask')} == {
    'id': 'part/test/cut/000', 'has_mask': True, 'label': 1, 'category': 'part', 'object_name': 'my part',
    'defect_type': 'cut'}
  assert example['image'] == one.image.read_bytes()
  np.testing.assert_array_equal(stored_mask(example) > 127, np.asarray(picture((1, 2, 9, 8), mode='L')) > 0)


def test_the_empty_mask_is_ground_truth_for_normal_images_only(tmp_path):
  for label in (0, 1):
    example, _ = record(item(tmp_path, picture(), label=label))
    assert example['has_mask'] is (label == 0)
    assert stored_mask(example).shape == (18, 30) and not stored_mask(example).any()


@pytest.mark.parametrize('size', [(29, 18), (18, 30), (60, 36)])
def test_a_mask_of_another_size_names_both_files_and_sizes(tmp_path, size):
  one = item(tmp_path, picture(), picture((0, 0, 5, 5), size=size, mode='L'))
  with pytest.raises(BadImage) as e:
    record(one)
  for part in (str(one.image), str(one.mask), '30x18', f'{size[0]}x{size[1]}'):
    assert part in str(e.value)
  assert ("exif='apply'" in str(e.value)) == (size == (18, 30))


def test_masks_follow_the_orientation_rule(tmp_path):
  exif = Image.Exif()
  exif[0x0112] = 6
  one = item(tmp_path, picture(), picture((1, 2, 9, 8), mode='L').rotate(-90, expand=True))
  picture((1, 2, 9, 8)).save(one.image, exif=exif)                # marked where the upright mask says
  with pytest.raises(BadImage, match="exif='apply'"):
    record(one)
  example, notes = record(one, Rules(exif='apply'))
  upright = np.asarray(images.decode_rgb(example['image'], 'i'))[..., 0]
  np.testing.assert_array_equal(upright, stored_mask(example))
  assert 'turned upright' in notes[0]


def test_a_mask_that_contradicts_the_label_is_noted(tmp_path):
  _, notes = record(item(tmp_path, picture(), Image.new('L', (30, 18))))
  assert notes == [records.EMPTY_MASK]
  example, notes = record(item(tmp_path, picture(), picture((0, 0, 5, 5), mode='L'), label=0))
  assert notes == [records.STRAY_MASK] and not stored_mask(example).any()


@pytest.mark.parametrize('mode', ['L', 'RGB'])
def test_a_box_crops_image_and_mask_alike(tmp_path, mode):
  shown = picture((10, 4, 20, 12), mode=mode)
  if mode == 'RGB':
    shown.putpixel((6, 5), (200, 0, 0))
  one = item(tmp_path, shown, picture((10, 4, 20, 12), mode='L'))._replace(box=(5, 3, 25, 10))
  example, notes = record(one)
  tile = Image.open(io.BytesIO(example['image']))
  assert notes == [] and tile.mode == mode and tile.size == (20, 7)
  np.testing.assert_array_equal(np.asarray(tile), np.asarray(shown.crop((5, 3, 25, 10))))
  expected = np.zeros((7, 20), np.uint8)
  expected[1:, 5:15] = 255
  np.testing.assert_array_equal(stored_mask(example), expected)


def test_the_label_is_compared_with_the_cropped_mask(tmp_path):
  one = item(tmp_path, picture((10, 4, 20, 12)), picture((10, 4, 20, 12), mode='L'))
  assert record(one._replace(box=(0, 0, 10, 18)))[1] == [records.EMPTY_MASK]
  assert record(one._replace(box=(0, 0, 10, 18), label=0))[1] == []
  assert record(one._replace(box=(0, 0, 11, 18), label=0))[1] == [records.STRAY_MASK]


@pytest.mark.parametrize('box', [(0, 0, 31, 18), (0, 0, 30, 19), (-1, 0, 5, 5), (5, 5, 5, 9)])
def test_a_box_outside_the_image_is_refused(tmp_path, box):
  with pytest.raises(BadImage, match='30x18 pixels, so it has no part'):
    record(item(tmp_path, picture(), label=0)._replace(box=box))


def prepare(root, data_dir, **options):
  builder = builders.MvtecLayout(folder=root, data_dir=data_dir, **options)
  builder.download_and_prepare()
  return builder


def test_prepares_and_reads_without_tensorflow(layout, tmp_path):
  builder = prepare(layout, tmp_path / 'data')
  assert {k: s.num_examples for k, s in builder.info.splits.items()} == {'train': 4, 'test': 9}
  records = list(builder.as_data_source('test'))
  assert [r['id'].decode() for r in records] == [
    'grid/test/glue/000', 'grid/test/glue/001', 'grid/test/good/000', 'grid/test/good/001',
    'metal_nut/test/bent/000', 'metal_nut/test/good/000', 'metal_nut/test/good/001',
    'metal_nut/test/scratch/000', 'metal_nut/test/scratch/001']
  for r in records:
    assert r['image'].shape == (18, 30, 3) and r['mask'].shape == (18, 30, 1)
    assert set(np.unique(r['mask'])) <= {0, 255}
  assert builder.info.features['category'].names == ['grid', 'metal_nut']
  assert records[4]['object_name'] == b'metal nut'
  assert 'tensorflow' not in sys.modules


def test_a_prepared_copy_opens_without_its_builder(layout, tmp_path):
  builder = prepare(layout, tmp_path / 'data')
  again = tfds.builder_from_directory(builder.data_dir)
  assert len(again.as_data_source('test')) == 9
  assert again.info.metadata['object_names'] == {'grid': 'grid', 'metal_nut': 'metal nut'}
  assert again.info.metadata['mask_threshold'] == 0


def test_notes_are_saved_with_their_counts(layout, tmp_path):
  for i in (0, 1):
    Image.new('L', (30, 18)).save(layout / 'grid' / 'ground_truth' / 'glue' / f'{i:03}_mask.png')
  write(layout / 'grid' / 'test' / 'good' / '000.png', picture(mode='RGBA'))
  (layout / 'stray').mkdir()
  builder = prepare(layout, tmp_path / 'data')
  notes = json.loads((tmp_path / 'data' / 'mvtec_layout' / '1.0.0' / 'metadata.json').read_text())['notes']
  assert builder.info.metadata['notes'] == notes
  assert notes['test'] == [
    f'{records.EMPTY_MASK}: 2 of 9 images, first grid/test/glue/000',
    'alpha laid over (255, 255, 255): 1 of 9 images, first grid/test/good/000']
  assert notes['train'] == [] and 'stray' in notes['folder'][0]


@pytest.mark.parametrize('content', [b'', b'no image', None])
def test_a_damaged_image_stops_the_preparation_and_leaves_nothing(layout, tmp_path, content):
  bad = layout / 'metal_nut' / 'test' / 'bent' / '000.png'
  bad.write_bytes(bad.read_bytes()[:60] if content is None else content)
  with pytest.raises(ValueError, match=str(bad)):
    prepare(layout, tmp_path / 'data')
  assert list((tmp_path / 'data' / 'mvtec_layout').iterdir()) == []


def test_a_damaged_image_can_be_skipped_and_is_listed(layout, tmp_path):
  bad = layout / 'metal_nut' / 'test' / 'bent' / '000.png'
  bad.write_bytes(b'')
  builder = prepare(layout, tmp_path / 'data', on_bad='skip')
  assert builder.info.splits['test'].num_examples == 8
  assert builder.info.metadata['skipped'] == {'test': ['metal_nut/test/bent/000'], 'train': []}
  assert builder.info.metadata['notes']['test'] == [
    'damaged and left out: 1 of 9 images, first metal_nut/test/bent/000']


def test_skipping_all_images_of_a_split_is_an_error(layout, tmp_path):
  for path in (layout / 'grid' / 'train' / 'good').iterdir():
    path.write_bytes(b'')
  shutil.rmtree(layout / 'metal_nut')
  with pytest.raises(ValueError, match="all 2 images of split 'train' are damaged"):
    prepare(layout, tmp_path / 'data', on_bad='skip')


def test_problems_of_the_folder_stop_the_preparation(layout, tmp_path):
  for i in (0, 1):
    (layout / 'grid' / 'ground_truth' / 'glue' / f'{i:03}_mask.png').unlink()
  with pytest.raises(ValueError, match=r'2 problem\(s\)') as e:
    prepare(layout, tmp_path / 'data')
  assert '000_mask' in str(e.value) and '001_mask' in str(e.value)


def test_a_folder_without_images_is_refused(tmp_path):
  (tmp_path / 'raw' / 'part' / 'test').mkdir(parents=True)
  with pytest.raises(ValueError, match='no image found'):
    prepare(tmp_path / 'raw', tmp_path / 'data')


def test_options_out_of_range_are_refused(layout, tmp_path):
  with pytest.raises(ValueError, match='on_bad'):
    builders.MvtecLayout(folder=layout, data_dir=tmp_path, on_bad='ignore')
  with pytest.raises(ValueError, match='exif'):
    builders.MvtecLayout(folder=layout, data_dir=tmp_path, rules=Rules(exif='maybe'))


@pytest.mark.parametrize('threads', [0, 1, 4])
def test_read_ahead_keeps_the_order_and_raises_errors_in_turn(threads):
  assert list(read_ahead(lambda i: i * i, range(50), threads=threads, depth=8)) == [i * i for i in range(50)]
  results = []
  quotients = read_ahead(lambda i: 6 // (i - 3), range(9), threads=threads, depth=8)
  with contextlib.closing(quotients), pytest.raises(ZeroDivisionError):
    results.extend(quotients)
  assert results == [-2, -3, -6]


def test_a_failed_preparation_ends_its_threads(layout, tmp_path):
  (layout / 'grid' / 'test' / 'good' / '000.png').write_bytes(b'')
  before = threading.active_count()
  with pytest.raises(ValueError, match='empty') as e:
    prepare(layout, tmp_path / 'data')
  assert e.value is not None and not [t for t in threading.enumerate() if 'ThreadPoolExecutor' in t.name
                                      and t.is_alive()] and threading.active_count() <= before + 1
