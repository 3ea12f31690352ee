import pytest

from zsad_jax.data import catalog


@pytest.mark.parametrize('name,count,sums', [
  ('mvtec_ad', 15, (3629, 467, 1258)), ('visa', 12, (8659, 962, 1200)), ('mpdd', 6, (888, 176, 282)),
  ('btad', 3, (1799, 451, 290)), ('dagm2007', 10, (7004, 6996, 1054))])
def test_published_sums(name, count, sums):
  categories = catalog.CATALOG[name].categories
  assert len(categories) == count and list(categories) == sorted(categories)
  assert tuple(sum(c[i] for c in categories.values()) for i in (1, 2, 3)) == sums
  assert (catalog.CATALOG[name].normal, catalog.CATALOG[name].anomalous) == sums[1:]


def test_textures_of_mvtec_ad():
  categories = catalog.CATALOG['mvtec_ad'].categories
  assert [n for n, c in categories.items() if c.texture] == ['carpet', 'grid', 'leather', 'tile', 'wood']


def test_names_for_prompts_are_readable():
  assert catalog.CATALOG['mvtec_ad'].categories['metal_nut'].object_name == 'metal nut'
  assert catalog.CATALOG['visa'].categories['pcb1'].object_name == 'printed circuit board'
  assert catalog.object_name('my_own_part') == 'my own part'


@pytest.mark.parametrize('name', catalog.CATALOG)
def test_instructions_say_everything_needed(name):
  entry, text = catalog.CATALOG[name], catalog.instructions(name)
  for part in (entry.homepage, entry.archive, entry.sha256, entry.unpack, entry.licence, f'{name}/'):
    assert part in text
  assert len(entry.sha256) in (0, 64) and ('sha256' in text) == bool(entry.sha256)


def test_sums_stand_in_where_the_categories_are_not_sure():
  dtd, sdd = catalog.CATALOG['dtd_synthetic'], catalog.CATALOG['kolektor_sdd']
  assert dtd.published() == {'': (None, 357, 947)} and dtd.metrics == ('image', 'pixel')
  assert sdd.published() == sdd.published('halves') == {'': (543, 181, 74)}
  assert sdd.published('thirds') == {'': (857, 286, 54)}
  assert catalog.CATALOG['visa'].published()['pcb1'] == (904, 100, 100)
