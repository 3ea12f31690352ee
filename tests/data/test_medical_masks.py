"""Medical data sets with masks: archives with their quirks, and what the papers' scripts convert them to."""

import numpy as np
import pytest
from medical_sets import SIZE, colour_tiff, marks, outline, scan, write_pairs, write_plain
from PIL import Image
from small_sets import write

from zsad_jax import data
from zsad_jax.data import builders, catalog, published

GROUND_TRUTH = 'ISBI2016_ISIC_Part1_Test_GroundTruth'
# name: (category, defect type, mask threshold, layouts as (images, masks), the official one first)
SETS = {
  'isic2016': ('skin', 'lesion', 0, [
    ('ISBI2016_ISIC_Part1_Test_Data/ISIC_{}.jpg', GROUND_TRUTH + '/ISIC_{}_Segmentation.png'),
    ('skin/test/lesions/ISIC_{}.jpg', 'skin/' + GROUND_TRUTH + '/ISIC_{}_Segmentation.png'),
    ('isic/test/bad/ISIC_{}.jpg', 'isic/ground_truth/bad/ISIC_{}.png')]),
  'cvc_clinicdb': ('colon', 'polyp', 127, [
    ('Original/{}.tif', 'Ground Truth/{}.tif'), ('CVC-ClinicDB/Original/{}.tif', 'CVC-ClinicDB/Ground Truth/{}.tif'),
    ('CVC-ClinicDB/images/{}.png', 'CVC-ClinicDB/masks/{}.png'), ('images/{}.png', 'masks/{}.png'),
    ('ClinicDB/test/polyp/{}.png', 'ClinicDB/ground_truth/polyp/{}.png')]),
  'cvc_colondb': ('colon', 'polyp', 0, [
    ('CVC-ColonDB/images/{}.png', 'CVC-ColonDB/masks/{}.png'), ('images/{}.png', 'masks/{}.png'),
    ('TestDataset/CVC-ColonDB/images/{}.png', 'TestDataset/CVC-ColonDB/masks/{}.png'),
    ('ColonDB/test/bad/{}.png', 'ColonDB/ground_truth/bad/{}_mask.png')]),
  'kvasir_seg': ('colon', 'polyp', 127, [
    ('Kvasir-SEG/images/{}.jpg', 'Kvasir-SEG/masks/{}.jpg'), ('Kvasir/images/{}.png', 'Kvasir/masks/{}.png'),
    ('images/{}.jpg', 'masks/{}.jpg')]),
  'endotect_seg': ('colon', 'polyp', 127, [
    ('EndoTect_2020_Segmentation_Test_Dataset/images/{}.jpg', 'EndoTect_2020_Segmentation_Test_Dataset/masks/{}.jpg'),
    ('images/{}.jpg', 'masks/{}.jpg'), ('endo/test/bad/{}.jpg', 'endo/ground_truth/bad/{}.jpg')]),
  'tn3k': ('thyroid', 'nodule', 127, [
    ('tn3k/test-image/{}.jpg', 'tn3k/test-mask/{}.jpg'), ('test-image/{}.jpg', 'test-mask/{}.jpg'),
    ('tn3k/test/bad/{}.jpg', 'tn3k/ground_truth/bad/{}.jpg')]),
}
STEMS = ['10', '2', '1']                        # marked as pictures 0, 1, 2


def load(name, tmp_path):
  return data.load(name, root=tmp_path / 'data', manual_dir=tmp_path / 'manual')


def raw(name, tmp_path, layout=0, **options):
  root = tmp_path / 'manual' / name
  write_pairs(root, *SETS[name][3][layout], STEMS, **options)
  return root


@pytest.mark.parametrize('name,layout', [(n, i) for n in SETS for i in range(len(SETS[n][3]))])
def test_every_layout_gives_the_same_aligned_records(name, layout, tmp_path):
  raw(name, tmp_path, layout)
  dataset = load(name, tmp_path)
  category, defect, threshold, _ = SETS[name]
  prefix = f'{category}/test/{defect}/' + ('ISIC_' if name == 'isic2016' else '')
  assert dataset.ids == [prefix + stem for stem in ('1', '10', '2')]
  for record, i in zip(dataset, (2, 0, 1)):
    np.testing.assert_array_equal(record['mask'], marks(i) * np.uint8(255))
    np.testing.assert_array_equal(np.asarray(record['image'].convert('L')) > 127, marks(i))
    assert record['label'] == 1 and record['has_mask'] and record['image'].size == SIZE
    assert record['object_name'] == category and record['defect_type'] == defect
  count = sum(c.anomalous for c in catalog.CATALOG[name].categories.values())
  assert dataset.notes[0] == f'{category}: 3 test anomalous images, published {count:,}'
  assert catalog.CATALOG[name].metrics == ('pixel',) and catalog.CATALOG[name].mask_threshold == threshold


@pytest.mark.parametrize('name', ['kvasir_seg', 'endotect_seg', 'tn3k'])
def test_lossy_colour_masks_are_thresholded_at_half(name, tmp_path):
  root = raw(name, tmp_path, mask_mode='RGB')
  mask = root / SETS[name][3][0][1].format('10')
  with Image.open(mask) as image:
    assert image.mode == 'RGB'
    assert ((np.asarray(image)[..., 0] > 0) & ~marks(0)).sum() > 20        # what 'above 0' would add
  records = {record['id'].rsplit('/', 1)[1]: record for record in load(name, tmp_path)}
  np.testing.assert_array_equal(records['10']['mask'] > 0, marks(0))


@pytest.mark.parametrize('name', SETS)
def test_an_archive_as_released_has_no_notes(name, tmp_path):
  root = raw(name, tmp_path)
  (root / 'README.txt').write_text('read me')
  (root / '__MACOSX').mkdir()
  for extra in {'isic2016': ['ISBI2016_ISIC_Part1_Training_Data'],
                'tn3k': ['tn3k/trainval-image', 'tn3k/trainval-mask']}.get(name, ()):
    write_plain(root / extra, ['0000.jpg'])
  verdict = data.verify(name, tmp_path / 'manual')
  assert [p for p in verdict.problems if 'published' not in p] == []


@pytest.mark.parametrize('name', SETS)
def test_masks_are_checked_in_both_directions_and_files_for_damage(name, tmp_path):
  root = raw(name, tmp_path)
  image, mask = (root / path.format('2') for path in SETS[name][3][0])
  mask_bytes = mask.read_bytes()
  mask.unlink()
  with pytest.raises(ValueError, match='no mask') as e:
    load(name, tmp_path)
  assert str(image) in str(e.value)
  mask.write_bytes(mask_bytes)
  picture = image.read_bytes()
  image.unlink()
  with pytest.raises(ValueError, match='mask without an image') as e:
    load(name, tmp_path)
  assert str(mask) in str(e.value)
  image.write_bytes(picture[:len(picture) // 2])
  with pytest.raises(ValueError, match='damaged') as e:
    load(name, tmp_path)
  assert str(image) in str(e.value)
  write(image, scan(1, size=(SIZE[0], SIZE[1] + 1)))
  with pytest.raises(ValueError, match=f'48x33 pixels, but its mask {mask} is 48x32'):
    load(name, tmp_path)


@pytest.mark.parametrize('name', SETS)
def test_an_empty_manual_folder_is_an_error_with_instructions(name, tmp_path):
  with pytest.raises(FileNotFoundError, match='downloaded by hand') as e:
    load(name, tmp_path)
  assert catalog.CATALOG[name].homepage in str(e.value)


def clinic(tmp_path, pixels):
  """CVC-ClinicDB with one malformed TIFF of these pixels, and a mask with a faint stray region."""
  root = tmp_path / 'manual' / 'cvc_clinicdb' / 'CVC-ClinicDB'
  for part in ('Original', 'Ground Truth'):
    (root / part).mkdir(parents=True)
  (root / 'Original' / '1.tif').write_bytes(colour_tiff(pixels))
  mask = np.array(outline(0))
  mask[28:, 40:] = 112
  Image.fromarray(mask).save(root / 'Ground Truth' / '1.tif')
  return load('cvc_clinicdb', tmp_path)


def test_the_tiffs_of_clinicdb_keep_their_colours(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (*SIZE[::-1], 3), np.uint8)
  dataset = clinic(tmp_path, pixels)
  np.testing.assert_array_equal(np.asarray(dataset[0]['image']), pixels)
  np.testing.assert_array_equal(dataset[0]['mask'] > 0, marks(0))
  assert any('three colour samples declared greyscale' in note and '1 of 1' in note for note in dataset.notes)


def test_tiffs_with_equal_samples_are_noted(tmp_path):
  dataset = clinic(tmp_path, np.asarray(scan(0)))
  assert any('three equal samples declared greyscale' in note for note in dataset.notes)


def test_masks_below_the_threshold_are_noted(tmp_path):
  root = raw('cvc_clinicdb', tmp_path)
  Image.new('L', SIZE, 100).save(root / 'Ground Truth' / '1.tif')
  assert any('all-zero mask: 1 of 3' in note for note in load('cvc_clinicdb', tmp_path).notes)


def test_one_manual_folder_may_hold_three_data_sets(tmp_path):
  manual = tmp_path / 'Polyp_DataSet'
  for name, top in (('cvc_clinicdb', 'CVC-ClinicDB'), ('cvc_colondb', 'CVC-ColonDB'), ('kvasir_seg', 'Kvasir')):
    write_pairs(manual / top, 'images/{}.png', 'masks/{}.png', [name])
  for name in ('cvc_clinicdb', 'cvc_colondb', 'kvasir_seg'):
    found = builders.published(name).scan(published.find(name, manual))
    assert [item.stem for item in found.items] == [name] and found.notes == []
