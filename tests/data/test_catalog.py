import pytest

from zsad_jax.data import catalog


@pytest.mark.parametrize('name,count,sums', [
  ('mvtec_ad', 15, (3629, 467, 1258)), ('visa', 12, (8659, 962, 1200))])
def test_published_sums(name, count, sums):
  categories = catalog.CATALOG[name].categories
  assert len(categories) == count and list(categories) == sorted(categories)
  assert tuple(sum(c[i] for c in categories.values()) for i in (1, 2, 3)) == sums


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
  assert len(entry.sha256) == 64
