import pytest
from small_sets import write_category

from zsad_jax import data
from zsad_jax.data.mvtec_layout import mvtec_layout_dataset_builder as mvtec_layout


def test_the_folder_is_an_argument(layout, tmp_path):
  with pytest.raises(TypeError, match='folder'):
    mvtec_layout.Builder(data_dir=tmp_path)
  made = mvtec_layout.Builder(folder=layout, data_dir=tmp_path)
  assert made.name == 'mvtec_layout' and made.object_names() == {'grid': 'grid', 'metal_nut': 'metal nut'}


def test_one_category_alone(tmp_path):
  write_category(tmp_path / 'gear_wheel', {'chipped': 2})
  dataset = data.load(f'folder:{tmp_path / "gear_wheel"}', root=tmp_path / 'data')
  assert dataset.categories == ('gear_wheel',) and dataset.object_names == {'gear_wheel': 'gear wheel'}
  assert dataset.labels.tolist() == [1, 1, 0, 0] and dataset.name == 'gear_wheel'
