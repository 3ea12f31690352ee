import pytest
from small_sets import write_category

from zsad_jax import data
from zsad_jax.data import builders


def test_the_folder_is_required(layout, tmp_path):
  with pytest.raises(ValueError, match='needs folder='):
    builders.MvtecLayout(data_dir=tmp_path)
  builder = builders.MvtecLayout(folder=layout, data_dir=tmp_path)
  assert builder.name == 'mvtec_layout' and builder.object_names() == {'grid': 'grid', 'metal_nut': 'metal nut'}


def test_one_category_is_a_data_set(tmp_path):
  write_category(tmp_path / 'gear_wheel', {'chipped': 2})
  dataset = data.load(f'folder:{tmp_path / "gear_wheel"}', root=tmp_path / 'data')
  assert dataset.categories == ('gear_wheel',) and dataset.object_names == {'gear_wheel': 'gear wheel'}
  assert dataset.labels.tolist() == [1, 1, 0, 0] and dataset.name == 'gear_wheel'
