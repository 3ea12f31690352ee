import pytest
from small_sets import assert_aligned, picture, write

from zsad_jax import data
from zsad_jax.data.layouts import plain_folders


def fill(root, folders, *, size=(30, 18)):
  """{folder: stems}: an image for each; those of folders with 'mask' in their path are masks of the block."""
  for folder, stems in folders.items():
    normal = folder.casefold() in ('good', 'ok', 'no', 'fine', 'normal', 'negative')
    for stem in stems:
      block = None if normal else (2, 1, 12, 7)
      write(root / folder / f'{stem}.png', picture(block, size, 'L' if 'mask' in folder or folder == 'gt' else 'RGB'))
  return root


def kinds(found):
  return [(i.defect_type, i.stem, i.label, i.mask and i.mask.relative_to(i.image.parents[1]).as_posix())
          for i in found.items]


@pytest.mark.parametrize('normal', ['good', 'Normal', 'OK', 'no', 'negative', 'healthy'])
def test_normal_folders_are_recognised_by_name_and_others_are_anomalous(tmp_path, normal):
  root = fill(tmp_path / 'metal_nut', {normal: ['a'], 'whatever': ['a', 'b']})
  found = plain_folders.scan(root)
  assert kinds(found) == [('good', 'a', 0, None), ('whatever', 'a', 1, None), ('whatever', 'b', 1, None)]
  assert {(i.category, i.split) for i in found.items} == {('metal_nut', 'test')}
  assert found.problems == found.notes == []


@pytest.mark.parametrize('masks', ['masks', 'Ground_Truth', 'gt', 'bad_mask', 'masks/bad'])
@pytest.mark.parametrize('suffix', ['', '_mask', '_label'])
def test_masks_pair_by_stem(tmp_path, masks, suffix):
  root = fill(tmp_path, {'good': ['a', 'z'], 'bad': ['a', 'a b'], masks: [f'a{suffix}', f'a b{suffix}']})
  found = plain_folders.scan(root)
  assert found.problems == found.notes == []
  assert kinds(found)[:2] == [('bad', 'a', 1, f'{masks}/a{suffix}.png'), ('bad', 'a b', 1, f'{masks}/a b{suffix}.png')]
  assert [k[3] for k in kinds(found)[2:]] == [None, None]


def test_each_kind_of_defect_may_have_its_folder(tmp_path):
  root = fill(tmp_path, {'good': ['a'], 'dent': ['1'], 'scratch': ['1', '2'], 'masks/dent': ['1'],
                         'masks/scratch': ['1', '2']})
  assert kinds(plain_folders.scan(root)) == [
    ('dent', '1', 1, 'masks/dent/1.png'), ('good', 'a', 0, None), ('scratch', '1', 1, 'masks/scratch/1.png'),
    ('scratch', '2', 1, 'masks/scratch/2.png')]


def test_a_mask_that_fits_two_images_is_a_problem(tmp_path):
  root = fill(tmp_path, {'good': ['a'], 'dent': ['1'], 'scratch': ['1'], 'masks': ['1']})
  problems = plain_folders.scan(root).problems
  assert f'{root}/masks/1.png: may belong to {root}/dent/1.png or {root}/scratch/1.png; put the masks' in problems[0]


def test_missing_extra_and_misplaced_masks_are_problems(tmp_path):
  root = fill(tmp_path, {'good': ['a'], 'bad': ['b', 'c', 'c_mask'], 'masks': ['b', 'x'], 'masks/other': ['y']})
  text = '\n'.join(plain_folders.scan(root).problems)
  for part in ('bad/c.png: no mask c.* in', 'masks/x.png: mask without an image', 'masks/other: masks, but no folder',
               'bad/c_mask.png: looks like the mask of c.png'):
    assert part in text
  assert 'bad/b.png' not in text


def test_normal_images_may_have_masks(tmp_path):
  root = fill(tmp_path, {'good': ['n'], 'bad': ['b'], 'masks': ['n', 'b']})
  found = plain_folders.scan(root)
  assert found.problems == [] and [k[3] for k in kinds(found)] == ['masks/b.png', 'masks/n.png']


@pytest.mark.parametrize(('folders', 'message'), [
  ({'fine': 'a', 'bad': 'a'}, 'normal images: no folder .* called good.*or healthy.*normal=NAME, such as bad or fine;'),
  ({'good': 'a', 'ok': 'a', 'bad': 'a'}, 'normal images: good and ok both may'),
  ({'good': 'a', 'bad': 'a', 'pred': 'a'}, 'anomalous images: pred may hold either.*abnormal=NAME, such as bad;'),
  ({'good': 'a'}, 'anomalous images: no other folder holds images'),
  ({'good': 'a', 'masks': 'a'}, 'anomalous images: no other folder holds images'),
])
def test_ambiguous_folder_names_are_refused(tmp_path, folders, message):
  with pytest.raises(ValueError, match=f'cannot tell which folder holds the {message}.*It holds'):
    plain_folders.scan(fill(tmp_path, folders))


def test_options_assign_the_folders(tmp_path):
  root = fill(tmp_path, {'fine': 'a', 'also/fine': 'a', 'cracked': 'b', 'pred': 'c', 'outlines': 'b'})
  found = plain_folders.scan(root, normal=('fine', 'also/fine'), abnormal=('cracked',), masks=('outlines',))
  assert kinds(found)[0] == ('cracked', 'b', 1, 'outlines/b.png')
  assert [k[:3] for k in kinds(found)[1:]] == [('good', 'also-fine-a', 0), ('good', 'fine-a', 0)]
  assert found.problems == found.notes == []
  assert [i.label for i in plain_folders.scan(root, normal=(), abnormal=('cracked',), masks=()).items] == [1]
  assert [i.label for i in plain_folders.scan(root, normal=('fine',), abnormal=()).items] == [0]
  with pytest.raises(ValueError, match=r"no folder 'crackd' in it, did you mean 'cracked'\?"):
    plain_folders.scan(root, abnormal=('crackd',))


def test_an_assigned_folder_without_images_is_a_problem(tmp_path):
  root = fill(tmp_path, {'good': 'a', 'bad/dent': 'b'})
  problem, = plain_folders.scan(root, abnormal=('bad',)).problems
  assert problem == f'{root}/bad: no image directly in it. It holds dent/ (1 files)'


def test_loads_with_masks_and_without(tmp_path):
  root = fill(tmp_path / 'nut', {'ok': ['a', 'b'], 'ng': ['a'], 'masks': ['a']})
  dataset = data.load(f'folder:{root}', root=tmp_path / 'data')
  assert dataset.categories == ('nut',) and dataset.labels.tolist() == [0, 0, 1] and dataset.has_mask.all()
  for record in dataset:
    assert_aligned(record)
  labels = data.load(f'folder:{root},masks=', root=tmp_path / 'data')
  assert labels.has_mask.tolist() == [True, True, False] and labels.fingerprint != dataset.fingerprint
  swapped = data.load(f'folder:{root},normal=ng,abnormal=ok,masks=', root=tmp_path / 'data')
  assert sorted(swapped.labels) == [0, 1, 1] and swapped.name == 'nut'


def test_verify_reports_content_and_problems(tmp_path):
  root = fill(tmp_path / 'nut', {'ok': ['a', 'b'], 'ng': ['a']})
  verdict = data.verify(f'folder:{root}')
  assert verdict.ok and 'nut: 2 test normal, 1 test anomalous, defects ng 1, no masks' in str(verdict)
  (root / 'ng' / 'a.png').write_bytes(b'')
  assert 'empty' in data.verify(f'folder:{root}').problems[0]
  assert 'normal=' in data.verify(f'folder:{fill(tmp_path / "x", {"a": "1", "b": "1"})}').problems[0]
