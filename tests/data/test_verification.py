import shutil

import pytest
from PIL import Image
from small_sets import picture, write, write_category

from zsad_jax import data


def test_a_complete_folder_has_no_problems(layout):
  verdict = data.verify(f'folder:{layout}')
  assert verdict.ok and verdict.problems == [] and verdict.folder == layout
  assert verdict.counts == {
    'grid': {'test anomalous': 2, 'test normal': 2, 'train': 2},
    'metal_nut': {'test anomalous': 3, 'test normal': 2, 'train': 2}}
  assert 'complete' in str(verdict) and '3 test anomalous' in str(verdict)
  assert 'defects bent 1 scratch 2, masks 3' in str(verdict)


def test_a_published_data_set_is_compared_with_its_counts(tmp_path):
  write_category(tmp_path / 'mvtec_ad' / 'toothbrush', {'defective': 30}, train=60, good=12,
                 size=(50, 8))
  verdict = data.verify('mvtec_ad', tmp_path)
  text = '\n'.join(verdict.problems)
  assert not verdict.ok and 'toothbrush' not in text
  assert f'{tmp_path / "mvtec_ad" / "bottle"}: category folder is missing' in text
  assert 'bottle: no images, published 209 train, 20 test normal, 63 test anomalous' in text
  shutil.rmtree(tmp_path / 'mvtec_ad' / 'toothbrush' / 'train')
  assert 'toothbrush: 0 train images, published 60' in data.verify('mvtec_ad', tmp_path).problems


def test_all_problems_are_named_at_once(layout):
  grid = layout / 'grid'
  (grid / 'ground_truth' / 'glue' / '000_mask.png').unlink()
  Image.new('L', (30, 18)).save(grid / 'ground_truth' / 'glue' / '001_mask.png')
  (grid / 'train' / 'good' / '000.png').write_bytes(b'')
  write(layout / 'metal_nut' / 'ground_truth' / 'good' / '000_mask.png', picture((0, 0, 4, 4), mode='L'))
  write(layout / 'metal_nut' / 'ground_truth' / 'bent' / '000_mask.png', picture(size=(9, 9), mode='L'))
  (layout / 'stray').mkdir()
  problems = data.verify(f'folder:{layout}').problems
  for words in (('000_mask', 'no mask'), ('glue/001.png', 'all-zero mask'), ('train/good/000.png', 'empty'),
                ('good/000.png', 'not zero'), ('bent/000.png', '9x9'), ('stray', 'not a category')):
    assert any(all(w in p for w in words) for p in problems), words
  assert len(problems) == 6


def test_damage_is_found_only_if_decode_is_true(layout):
  (layout / 'grid' / 'train' / 'good' / '000.png').write_bytes(b'')
  assert data.verify(f'folder:{layout}', decode=False).ok
  assert not data.verify(f'folder:{layout}').ok


def test_missing_listed_files_are_problems_not_errors(visa):
  (visa / 'pcb1' / 'Data' / 'Images' / 'Anomaly' / '000.JPG').unlink()
  verdict = data.verify('visa', visa.parent)
  assert any('Anomaly/000.JPG: listed in 1cls.csv but missing' in p for p in verdict.problems)


def test_a_wrong_root_is_a_problem_not_an_error(tmp_path):
  verdict = data.verify('visa', tmp_path)
  assert not verdict.ok and verdict.folder is None and verdict.counts == {}
  assert 'no category folder' in str(verdict)
  assert not data.verify(f'folder:{tmp_path}').ok


def test_the_text_shows_ten_problems_and_counts_the_rest(tmp_path):
  write_category(tmp_path / 'mvtec_ad' / 'toothbrush', {'defective': 1})
  verdict = data.verify('mvtec_ad', tmp_path)
  assert len(verdict.problems) == 14 + 14 + 3
  assert '... and 7 more' in str(verdict) and '... and 4 more' in str(verdict)


def test_ten_problems_of_each_kind_are_shown(layout):
  for i in range(12):
    (layout / 'grid' / 'test' / 'good' / f'b{i:02}.png').write_bytes(b'')
    write(layout / 'grid' / 'ground_truth' / 'glue' / f'x{i:02}_mask.png', picture(mode='L'))
    (layout / f'stray{i:02}').mkdir()
  text = str(data.verify(f'folder:{layout}'))
  assert text.count('... and 2 more') == 3 and 'and 4 more' not in text
  for words in ('x09_mask.png', 'b09.png', 'stray09'):
    assert words in text
  for words in ('x10_mask.png', 'b10.png', 'stray10'):
    assert words not in text


def test_masks_are_counted(layout):
  shutil.rmtree(layout / 'grid' / 'ground_truth')
  verdict = data.verify(f'folder:{layout}')
  assert verdict.masks == {'grid': 0, 'metal_nut': 3} and verdict.defect_types['grid'] == {'glue': 2}
  assert 'defects glue 2, no masks' in str(verdict)


def test_verify_follows_the_rules_for_pixels(tmp_path):
  grey = picture(size=(18, 30))
  exif = Image.Exif()
  exif[0x0112] = 6
  path = write(tmp_path / 'part' / 'test' / 'cut' / '0.png', grey)
  grey.save(path, exif=exif)
  write(tmp_path / 'part' / 'ground_truth' / 'cut' / '0.png', picture((0, 0, 3, 3), (30, 18), 'L'))
  name = f'folder:{tmp_path}'
  assert any('30x18' in p for p in data.verify(name).problems)
  assert not any('30x18' in p for p in data.verify(name, rules=data.rules(name, 'apply')).problems)


def test_a_drawn_data_set_has_nothing_to_verify():
  verdict = data.verify('synthetic_aux')
  assert verdict.ok and str(verdict) == 'synthetic_aux: complete'


def test_missing_and_unknown_arguments_are_refused():
  with pytest.raises(ValueError, match='manual_dir'):
    data.verify('visa')
  with pytest.raises(ValueError, match='nearest: visa'):
    data.verify('viza')
