"""Small raw data sets, one per layout."""

import numpy as np
import pytest
from PIL import Image
from small_sets import picture, write, write_category


@pytest.fixture
def layout(tmp_path):
  """A folder in MVTec layout: metal_nut (colour; scratch 2, bent 1) and grid (grey; glue 2)."""
  root = tmp_path / 'raw'
  write_category(root / 'metal_nut', {'scratch': 2, 'bent': 1})
  write_category(root / 'grid', {'glue': 2}, mode='L')
  return root


@pytest.fixture
def visa(tmp_path):
  """The manual folder with two objects of VisA in the raw layout: index masks, stems shared by normal and anomalous."""
  root = tmp_path / 'manual' / 'visa'
  rows = ['object,split,label,image,mask']
  for name in ('candle', 'pcb1'):
    data = f'{name}/Data'
    for i, split in enumerate(('train', 'train', 'test')):
      write(root / data / 'Images' / 'Normal' / f'{i:04}.JPG', picture())
      rows.append(f'{name},{split},normal,{data}/Images/Normal/{i:04}.JPG,')
    write(root / data / 'Images' / 'Normal' / '000.JPG', picture())
    rows.append(f'{name},test,normal,{data}/Images/Normal/000.JPG,')
    for i in range(2):
      block = (0, 0, 10 + i, 5)
      write(root / data / 'Images' / 'Anomaly' / f'{i:03}.JPG', picture(block))
      index = np.asarray(picture(block, mode='L')) // 255 * np.uint8(i + 1)
      write(root / data / 'Masks' / 'Anomaly' / f'{i:03}.png', Image.fromarray(index))
      rows.append(f'{name},test,anomaly,{data}/Images/Anomaly/{i:03}.JPG,{data}/Masks/Anomaly/{i:03}.png')
  (root / 'split_csv').mkdir()
  (root / 'split_csv' / '1cls.csv').write_text('\n'.join(rows) + '\n')
  return root
