import pytest
from small_sets import assert_aligned, picture, write, write_category

from zsad_jax import data
from zsad_jax.data import builders, catalog


@pytest.fixture
def archive(tmp_path):
  """Two of the six categories, in the download's own top folder."""
  root = tmp_path / 'manual' / 'mpdd' / 'MPDD'
  write_category(root / 'metal_plate', {'major_rust': 1, 'scratches': 2})
  write_category(root / 'tubes', {'anomalous': 1}, train=1, good=1)
  return root


def load(tmp_path, **options):
  return data.load('mpdd', root=tmp_path / 'data', manual_dir=tmp_path / 'manual', **options)


def test_prepares_and_reads(archive, tmp_path):
  dataset = load(tmp_path)
  assert [r['id'] for r in dataset] == [
    'metal_plate/test/good/000', 'metal_plate/test/good/001', 'metal_plate/test/major_rust/000',
    'metal_plate/test/scratches/000', 'metal_plate/test/scratches/001',
    'tubes/test/anomalous/000', 'tubes/test/good/000']
  assert dataset.labels.tolist() == [0, 0, 1, 1, 1, 1, 0]
  assert dataset.object_names['tubes'] == 'metal tubes' and len(dataset.categories) == 6
  for record in dataset:
    assert_aligned(record)
  train = load(tmp_path, split='train')
  assert len(train) == 3 and not train.labels.any()


@pytest.mark.parametrize('place', ['mpdd', '.', 'mpdd/MPDD', 'MPDD'])
def test_is_found_wherever_it_was_unpacked(archive, tmp_path, place):
  there = tmp_path / 'elsewhere' / place
  there.mkdir(parents=True)
  for path in list(archive.iterdir()):
    path.rename(there / path.name)
  assert len(data.load('mpdd', root=tmp_path / 'data', manual_dir=tmp_path / 'elsewhere')) == 7


def test_missing_and_unknown_categories_are_named(archive, tmp_path):
  (archive / 'bracket').mkdir()
  (archive / 'connector').mkdir()
  notes = '\n'.join(load(tmp_path).notes)
  for name in ('bracket_black', 'bracket_brown', 'bracket_white', 'connector'):
    assert f'{archive / name}: category folder is missing or empty' in notes
  assert f'{archive / "bracket"}: not a category of this data set, ignored' in notes
  assert 'bracket_black: no images, published 289 train, 32 test normal, 47 test anomalous' in notes


def test_a_category_in_another_layout_is_refused_with_its_content(archive, tmp_path):
  for i in range(3):
    write(archive / 'connector' / 'images' / 'bad' / f'{i}.png', picture())
  write(archive / 'connector' / 'masks' / '0.png', picture(mode='L'))
  with pytest.raises(ValueError, match='connector: neither train nor test in it') as e:
    load(tmp_path)
  assert 'It holds images/ (0 files), images/bad/ (3 files), masks/ (1 files)' in str(e.value)


def test_a_damaged_image_is_named(archive, tmp_path):
  bad = archive / 'tubes' / 'test' / 'anomalous' / '000.png'
  bad.write_bytes(bad.read_bytes()[:70])
  with pytest.raises(ValueError, match=str(bad)):
    load(tmp_path)


def test_missing_and_extra_masks_are_named(archive):
  masks = archive / 'metal_plate' / 'ground_truth'
  (masks / 'scratches' / '001_mask.png').rename(masks / 'scratches' / '007_mask.png')
  problems = builders.published('mpdd').scan(archive).problems
  assert len(problems) == 2
  assert f'no mask {masks / "scratches" / "001_mask"}' in problems[0]
  assert f'{masks / "scratches" / "007_mask.png"}: mask without an image' in problems[1]


def test_verify_compares_counts_with_the_published_ones(archive, tmp_path):
  problems = data.verify('mpdd', tmp_path / 'manual').problems
  assert 'tubes: 1 test anomalous images, published 69' in problems
  assert catalog.CATALOG['mpdd'].metrics == ('image', 'pixel')
