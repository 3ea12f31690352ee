import pytest
from medical_sets import write_pairs
from small_sets import write_category

from zsad_jax.data import catalog, commands, published, records
from zsad_jax.data.synthetic import builder as drawn

PAIRS = 'CVC-ColonDB/images/{}.png', 'CVC-ColonDB/masks/{}.png'


@pytest.fixture
def place(tmp_path):
  """An empty root, and a manual folder with two images of CVC-ColonDB."""
  write_pairs(tmp_path / 'manual' / 'cvc_colondb', *PAIRS, ['1', '2'])
  return commands.Place(tmp_path / 'data', tmp_path / 'manual')


def row(place, name):
  lines = commands.table(place).splitlines()
  start = {word: lines[0].index(word) for word in ('raw', 'prepared', 'licence')}
  line, = (line for line in lines if line.split()[:1] == [name])
  return {word: line[at:].split()[0] for word, at in start.items()} | {'line': line}


def test_list_shows_every_published_data_set_and_its_state(place):
  text = commands.table(place)
  for name, entry in catalog.CATALOG.items():
    assert entry.title in row(place, name)['line'] and row(place, name)['line'].endswith(entry.licence)
  assert ' 286         54 ' in row(place, 'kolektor_sdd/thirds')['line']
  assert row(place, 'kvasir_seg')['line'].split()[3:9] == ['1', '0', '1,000', 'pixel', 'pixel', '-']
  assert (row(place, 'cvc_colondb')['raw'], row(place, 'cvc_colondb')['prepared']) == ('yes', '-')
  assert 'synthetic_aux, synthetic_target. Your own images: folder:<path> or csv:<path>.' in text
  assert not any(line.split()[:1] == ['image_table'] for line in text.splitlines())


def test_list_names_folders_that_do_not_exist(place, tmp_path):
  (tmp_path / 'file').touch()
  text = commands.table(place._replace(manual_dir=tmp_path / 'file'))
  assert f'{tmp_path}/file (is not a folder)' in text and f'{tmp_path}/data (does not exist)' in text
  place.root.mkdir()
  assert 'does not exist' not in commands.table(place) and 'not a folder' not in commands.table(place)


def test_list_distinguishes_current_from_outdated_copies(place):
  assert all(good for _, good in commands.prepare(['cvc_colondb'], place))
  assert row(place, 'cvc_colondb')['prepared'] == 'yes'
  write_pairs(place.manual / 'cvc_colondb', *PAIRS, ['3'])
  assert row(place, 'cvc_colondb')['prepared'] == 'outdated'
  (place.manual / 'cvc_colondb').rename(place.manual / 'away')
  assert (row(place, 'cvc_colondb')['raw'], row(place, 'cvc_colondb')['prepared']) == ('-', 'yes')
  assert row(place._replace(transparency='drop'), 'cvc_colondb')['prepared'] == 'outdated'


def test_list_shows_an_interrupted_preparation(place, monkeypatch):
  def interrupt(*_, **__):
    raise KeyboardInterrupt
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(records, 'read', interrupt)
    list(commands.prepare(['cvc_colondb'], place))
  assert row(place, 'cvc_colondb')['prepared'] == 'interrupted'
  assert [good for _, good in commands.prepare(['cvc_colondb'], place)] == [True]
  assert row(place, 'cvc_colondb')['prepared'] == 'yes'


def test_prepare_writes_a_missing_index(place):
  list(commands.prepare(['cvc_colondb'], place))
  index, = place.root.glob('*/*/*/index-test.json')
  index.unlink()
  (text, good), = commands.prepare(['cvc_colondb'], place)
  assert good and 'prepared already' in text and index.is_file()


def test_a_raw_folder_counts_only_under_its_own_name(tmp_path):
  write_category(tmp_path / 'manual' / 'somebody', {'cut': 1})
  (tmp_path / 'manual' / 'test').mkdir()
  assert all(published.find_in_own_folder(name, tmp_path / 'manual') is None for name in catalog.CATALOG)


def test_verify_continues_after_a_failure(place, layout):
  lines = list(commands.run(['verify', 'viza', 'cvc_colondb', 'visa', f'folder:{layout}'], place))
  assert [good for _, good in lines] == [False, False, False, True]
  for (text, _), part in zip(lines, ('nearest: visa', '2 test anomalous images, published 380', 'VisA_20220922.tar',
                                    'complete')):
    assert part in text


def test_verify_indents_messages_of_several_lines(place):
  (text, _), = commands.verify(['visa'], place)
  assert len(text.splitlines()) > 5 and all(line.startswith('    ') for line in text.splitlines()[2:])


def test_verify_decodes_unless_decode_is_false(place):
  (place.manual / 'cvc_colondb' / 'CVC-ColonDB' / 'images' / '1.png').write_bytes(b'')
  (text, _), = commands.run(['verify'], place, names=['cvc_colondb'])
  assert 'images/1.png: the file is empty' in text
  (text, _), = commands.run(['verify'], place, names=['cvc_colondb'], decode=False)
  assert 'empty' not in text


def test_prepare_continues_after_a_failure_and_summarises(place, layout):
  names = ['cvc_colondb', 'visa', f'folder:{layout}', 'nothing']
  lines = list(commands.run(['prepare', *names, names[0]], place))
  assert [good for _, good in lines] == [True, False, True, False, False]
  assert lines[0][0].startswith('cvc_colondb: prepared in ') and '(test 2 images), ' in lines[0][0]
  assert lines[1][0].startswith('visa: failed: ') and '(test 9, train 4 images)' in lines[2][0].replace(
    'train 4, test 9', 'test 9, train 4')
  assert lines[4][0] == f'prepared: cvc_colondb, folder:{layout}; failed: visa, nothing'
  again = list(commands.run(['prepare', 'cvc_colondb'], place))
  assert len(again) == 1 and again[0][0].startswith('cvc_colondb: prepared already (test 2 images), ')


def test_a_damaged_data_set_can_be_repaired_and_prepared(place):
  image = place.manual / 'cvc_colondb' / 'CVC-ColonDB' / 'images' / '1.png'
  data = image.read_bytes()
  image.write_bytes(data[:60])
  (text, good), = commands.prepare(['cvc_colondb'], place)
  assert not good and 'images/1.png: the image is damaged' in text
  image.write_bytes(data)
  (text, good), = commands.prepare(['cvc_colondb'], place)
  assert good and 'prepared in' in text


def test_drawn_data_sets_can_be_prepared_and_verified(tmp_path, monkeypatch):
  for name in ('TRAIN', 'NORMAL', 'EACH_DEFECT'):
    monkeypatch.setattr(drawn, name, 1)
  place = commands.Place(tmp_path)
  assert [good for _, good in commands.run(['prepare', 'synthetic_aux'], place)] == [True]
  assert [good for _, good in commands.run(['verify', 'synthetic_aux'], place)] == [True]


def test_without_names_all_unpacked_data_sets_are_used(place, tmp_path):
  assert [text.split(':')[0] for text, _ in commands.run(['verify'], place)] == ['cvc_colondb']
  with pytest.raises(ValueError, match=f'prepare: no data set .*{tmp_path}/none .does not exist'):
    commands.run(['prepare'], place._replace(manual_dir=tmp_path / 'none'))


@pytest.mark.parametrize(('words', 'message'), [
  ([], 'no command.* list, verify or prepare'), (['check'], "no command 'check'.* list"),
  (['list', 'visa'], "list takes no name.*verify visa")])
def test_mistyped_commands_are_refused(place, words, message):
  with pytest.raises(ValueError, match=message):
    commands.run(words, place)


def test_each_rule_has_its_own_copy(place):
  for transparency in ('white', 'drop'):
    list(commands.prepare(['cvc_colondb'], place._replace(transparency=transparency)))
  assert len(list(place.root.iterdir())) == 2
  (text, good), = commands.prepare(['cvc_colondb'], place._replace(transparency='black'))
  assert not good and "transparency='black'" in text
