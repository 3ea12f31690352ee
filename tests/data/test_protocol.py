import json

import pytest
from medical_sets import write_pairs
from small_sets import picture, write, write_category

from zsad_jax import data
from zsad_jax.data import protocol


def opened(path, tmp_path, **options):
  return data.load(f'folder:{path}', root=tmp_path / 'data', **options)


@pytest.mark.parametrize(('aux', 'target', 'message'), [
  ('visa', 'visa', 'data.aux and data.target are both visa and share every category'),
  ('kolektor_sdd', 'kolektor_sdd/thirds', 'are kolektor_sdd and kolektor_sdd/thirds, one data set, and share every'),
  ('colon_ad', 'cvc_colondb', 'data.aux is colon_ad and data.target is cvc_colondb: colon_ad contains cvc_colondb'),
  ('cvc_colondb', 'colon_ad/tract', 'colon_ad contains cvc_colondb'),
  ('folder:/a/b', 'folder:/a/../a/b/', 'one data set, and share every category'),
  ('csv:/a/t.csv', 'csv:/a/t.csv', 'share every category'),
])
def test_one_data_set_under_two_names_is_refused(aux, target, message):
  with pytest.raises(ValueError, match=f'{message}.*not be zero-shot.*allow_seen=True'):
    protocol.check_names(aux, target)


def test_different_categories_of_one_data_set_are_allowed():
  protocol.check_names('visa', 'visa', ('pcb1',), ('pcb2',))
  protocol.check_names('visa', 'mvtec_ad')
  protocol.check_names('colon_ad', 'kvasir_seg')
  protocol.check_names('folder:/a', 'csv:/a')
  with pytest.raises(ValueError, match='share pcb1,'):
    protocol.check_names('visa', 'visa', ('pcb1', 'pcb2'), ('pcb1',))
  with pytest.raises(ValueError, match='share every category'):
    protocol.check_names('visa', 'visa', ('pcb1',), ())
  with pytest.raises(ValueError, match='contains'):
    protocol.check_names('colon_ad', 'cvc_colondb', ('colon',), ('other',))


def test_shared_images_are_counted_and_named(layout, tmp_path):
  write_category(tmp_path / 'other' / 'nut', {'scratch': 2}, size=(31, 17))
  aux, target = opened(layout, tmp_path), opened(tmp_path / 'other', tmp_path)
  assert protocol.shared_images(aux, target) == []
  protocol.check_images(aux, target)
  copied = tmp_path / 'other' / 'nut' / 'test' / 'scratch' / '000.png'
  copied.write_bytes((layout / 'metal_nut' / 'test' / 'bent' / '000.png').read_bytes())
  write(tmp_path / 'other' / 'nut' / 'ground_truth' / 'scratch' / '000_mask.png', picture((2, 1, 12, 7), mode='L'))
  target = opened(tmp_path / 'other', tmp_path)
  assert protocol.shared_images(aux, target) == [('metal_nut/test/bent/000', 'nut/test/scratch/000')]
  with pytest.raises(ValueError, match=r'1 of the 4 images of other \(data.target\) are in raw \(data.aux\) too: '
                                       r'metal_nut/test/bent/000 = nut/test/scratch/000, so this'):
    protocol.check_images(aux, target)
  protocol.check_images(opened(layout, tmp_path, categories=('grid',)), target)


def test_only_the_first_shared_images_are_named(layout, tmp_path):
  whole = opened(layout, tmp_path)
  with pytest.raises(ValueError, match=r'9 of the 9 images .*: (\S+ = \S+, ){3}\.\.\., so this'):
    protocol.check_images(whole, whole)


def test_shared_images_are_recognised_by_their_bytes(tmp_path):
  manual = tmp_path / 'manual'
  for name in ('cvc_colondb', 'colon_ad'):
    write_pairs(manual / name / 'CVC-ColonDB', 'images/{}.png', 'masks/{}.png', ['1', '2'])
  write(manual / 'colon_ad' / 'normal' / 'a.jpg', picture())
  aux, target = (data.load(name, root=tmp_path / 'data', manual_dir=manual) for name in ('colon_ad', 'cvc_colondb'))
  assert len(protocol.shared_images(aux, target)) == 2


def test_the_record_describes_both_data_sets(layout, tmp_path):
  aux = opened(layout, tmp_path, categories=('grid',))
  target = opened(layout, tmp_path, rules=data.rules('visa', 'apply', 'drop'))
  record = json.loads(json.dumps(protocol.record(aux, target, aux_name='folder:x', allow_seen=True)))
  assert record['auxiliary'] == {
    'name': 'folder:x', 'split': 'test', 'categories': ['grid'], 'normal': 2, 'anomalous': 2,
    'fingerprint': aux.fingerprint, 'exif': 'ignore', 'transparency': 'white', 'notes': [], 'skipped': []}
  assert [record['target'][key] for key in ('name', 'exif', 'transparency')] == ['raw', 'apply', 'drop']
  assert record['allow_seen'] is True and record['shared_images']['count'] == 4
  assert record['shared_images']['first'][0] == ['grid/test/glue/000', 'grid/test/glue/000']
  alone = protocol.record(None, target)
  assert alone['auxiliary'] is None and alone['shared_images'] == {'count': 0, 'first': []}
