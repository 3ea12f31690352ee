import pytest

from zsad_jax.data import builders, catalog


@pytest.mark.parametrize('name,count,sums', [
  ('mvtec_ad', 15, (3629, 467, 1258)), ('visa', 12, (8659, 962, 1200)), ('mpdd', 6, (888, 176, 282)),
  ('btad', 3, (1799, 451, 290)), ('dagm2007', 10, (7004, 6996, 1054))])
def test_category_counts_add_up_to_the_published_sums(name, count, sums):
  categories = catalog.CATALOG[name].categories
  assert len(categories) == count and list(categories) == sorted(categories)
  assert tuple(sum(c[i] for c in categories.values()) for i in (1, 2, 3)) == sums
  assert (catalog.CATALOG[name].normal, catalog.CATALOG[name].anomalous) == sums[1:]


def test_textures_of_mvtec_ad_are_marked():
  categories = catalog.CATALOG['mvtec_ad'].categories
  assert [n for n, c in categories.items() if c.texture] == ['carpet', 'grid', 'leather', 'tile', 'wood']


def test_object_names_are_readable():
  assert catalog.CATALOG['mvtec_ad'].categories['metal_nut'].object_name == 'metal nut'
  assert catalog.CATALOG['visa'].categories['pcb1'].object_name == 'printed circuit board'
  assert catalog.object_name('my_own_part') == 'my own part'


@pytest.mark.parametrize('name', catalog.CATALOG)
def test_instructions_and_citations_are_complete(name):
  entry, text = catalog.CATALOG[name], catalog.instructions(name)
  for part in (entry.homepage, entry.archive, entry.sha256, entry.unpack, entry.licence, f'{name}/'):
    assert part in text
  assert entry.citations and all(f'{{{key},' in catalog.citation(name) for key in entry.citations)
  assert entry.summary and entry.description and (entry.layout is None) == (name in builders.SCANS)
  assert len(entry.sha256) in (0, 64) and ('sha256' in text) == bool(entry.sha256)


def test_sums_replace_uncertain_category_counts():
  dtd, sdd = catalog.CATALOG['dtd_synthetic'], catalog.CATALOG['kolektor_sdd']
  assert dtd.published_counts() == {'': (None, 357, 947)} and dtd.metrics == ('image', 'pixel')
  assert sdd.published_counts() == sdd.published_counts('halves') == {'': (543, 181, 74)}
  assert sdd.published_counts('thirds') == {'': (857, 286, 54)}
  assert catalog.CATALOG['visa'].published_counts()['pcb1'] == (904, 100, 100)
