import pytest
from small_sets import assert_aligned, picture, write

from zsad_jax import data
from zsad_jax.data import builders, catalog


@pytest.fixture
def archive(tmp_path):
  """Classes 1 and 10 with upper-case names; image 2 of every part is anomalous, the others have no label file."""
  root = tmp_path / 'manual' / 'dagm2007' / 'DAGM_KaggleUpload'
  for name in ('Class1', 'Class10'):
    for part in ('Train', 'Test'):
      folder = root / name / part
      for i in range(1, 5):
        block = (4, 3, 15, 9) if i == 2 else None
        write(folder / f'000{i}.PNG', picture(block, mode='L'))
      write(folder / 'Label' / '0002_label.PNG', picture(block=(4, 3, 15, 9), mode='L'))
      rows = ['1', '1\t0\t0001.PNG\t0\t0', '2\t1\t0002.PNG\t1\t0002_label.PNG']
      (folder / 'Label' / 'Labels.txt').write_text('\n'.join(rows))
  return root


def load(tmp_path, **options):
  return data.load('dagm2007', root=tmp_path / 'data', manual_dir=tmp_path / 'manual', **options)


def test_prepares_and_reads(archive, tmp_path):
  dataset = load(tmp_path)
  assert dataset.ids == [f'{c}/test/{stem}' for c in ('Class1', 'Class10')
                         for stem in ('defect/0002', 'good/0001', 'good/0003', 'good/0004')]
  assert dataset.labels.tolist() == [1, 0, 0, 0] * 2
  for record in dataset:
    assert_aligned(record)
  assert {r['object_name'] for r in dataset} == {'texture'} and len(dataset.categories) == 10


def test_split_train_has_the_normal_images_of_train(archive, tmp_path):
  dataset = load(tmp_path, split='train')
  assert dataset.ids == [f'{c}/train/good/000{i}' for c in ('Class1', 'Class10') for i in (1, 3, 4)]
  assert not dataset.labels.any()


def test_an_undamaged_archive_has_notes_on_missing_classes_only(archive):
  (archive / 'Class1' / 'Test' / 'Thumbs.db').write_bytes(b'')
  found = builders.published('dagm2007').scan(archive)
  assert found.problems == []
  assert len(found.notes) == 8 and all('category folder is missing' in n for n in found.notes)


def test_published_counts_are_consistent():
  entry = catalog.CATALOG['dagm2007']
  assert (entry.normal, entry.anomalous, entry.masks) == (6996, 1054, 'weak')
  for name, c in entry.categories.items():
    total = 575 if name in ('Class1', 'Class2', 'Class3', 'Class4', 'Class5', 'Class6') else 1150
    assert c.normal + c.anomalous == total and c.texture
    assert c.train + (150 - c.anomalous if total == 575 else 150) == total      # 150 defects a class, or 300


def test_missing_parts_and_unknown_folders_are_noted(archive):
  (archive / 'Class11').mkdir()
  (archive / 'Class1' / 'Extra').mkdir()
  (archive / 'Class10' / 'Train').rename(archive / 'Class10' / 'Training')
  notes = builders.published('dagm2007').scan(archive).notes
  for words in ('Class11: not a category', 'Extra: unexpected folder', 'Training: unexpected folder',
                f'{archive / "Class10" / "Train"}: folder is missing', 'Class2: category folder is missing'):
    assert any(words in n for n in notes), words


def test_a_damaged_image_is_named(archive, tmp_path):
  bad = archive / 'Class10' / 'Test' / '0003.PNG'
  bad.write_bytes(b'')
  with pytest.raises(ValueError, match=str(bad)):
    load(tmp_path)


def test_a_missing_mask_does_not_make_a_normal_image(archive, tmp_path):
  (archive / 'Class1' / 'Train' / 'Label' / '0002_label.PNG').unlink()
  with pytest.raises(ValueError, match=r'Train/Label/0002_label\.PNG: named in Labels\.txt but missing'):
    load(tmp_path)


def test_a_missing_folder_of_masks_is_refused(archive, tmp_path):
  (archive / 'Class1' / 'Test' / 'Label').rename(tmp_path / 'away')
  with pytest.raises(ValueError, match='Test/Label: folder is missing'):
    load(tmp_path)


def test_an_extra_mask_is_named(archive, tmp_path):
  extra = write(archive / 'Class1' / 'Test' / 'Label' / '0009_label.PNG', picture(mode='L'))
  with pytest.raises(ValueError, match=f'{extra}: mask without an image .*0009'):
    load(tmp_path)


def test_a_copy_in_mvtec_layout_is_read(tmp_path):
  root = tmp_path / 'manual' / 'DAGM_anomaly_detection' / 'Class3'
  block = (1, 1, 9, 9)
  write(root / 'train' / 'good' / '0001.PNG', picture())
  write(root / 'test' / 'good' / '0002.PNG', picture())
  write(root / 'test' / 'defect' / '0003.PNG', picture(block))
  write(root / 'ground_truth' / 'defect' / '0003_label.PNG', picture(block, mode='L'))
  dataset = load(tmp_path)
  assert dataset.ids == ['Class3/test/defect/0003', 'Class3/test/good/0002']
  for record in dataset:
    assert_aligned(record)
