"""Tables: percent, undefined cells with their reasons, and a row of published values."""

import csv
import io
from typing import NamedTuple

import numpy as np
import pytest

from zsad_jax.report import tables


class Value(NamedTuple):
  value: float | None
  reason: str = ''


ROWS = {
  'bolt': {'image_auroc': Value(0.9151), 'aupro': Value(None, 'no masks')},
  'wood': {'image_auroc': Value(0.5), 'aupro': Value(0.25)},
}
SUMMARY = {
  'image_auroc': {'value': 0.70755, 'count': 2, 'of': 2, 'reason': ''},
  'aupro': {'value': 0.25, 'count': 1, 'of': 2, 'reason': 'no masks'},
}


def test_text_shows_percent_and_the_reasons_of_undefined_values():
  out = tables.text(ROWS, SUMMARY, {'image_auroc': 91.5})
  lines = out.splitlines()
  assert lines[0].split() == ['Category', 'Image', 'AUROC', 'AUPRO']
  assert lines[2].split() == ['bolt', '91.5', '-']
  assert lines[5].split() == ['mean', '70.8', '25.0']
  assert lines[6].split() == ['published', '91.5']
  assert 'bolt: AUPRO undefined: no masks' in out
  assert 'AUPRO: mean over 1 of 2 categories' in out


def test_text_without_published_values_has_no_such_row():
  assert 'published' not in tables.text(ROWS, SUMMARY)


def test_csv_keeps_full_precision_and_leaves_undefined_cells_empty():
  counts = {'bolt': {'normal': 3, 'anomalous': 4}, 'wood': {'normal': 1, 'anomalous': 2}}
  lines = list(csv.DictReader(io.StringIO(tables.to_csv(ROWS, counts))))
  assert float(lines[0]['image_auroc']) == 0.9151
  assert lines[0]['aupro'] == ''
  assert lines[1]['anomalous'] == '2'


def test_scores_are_written_in_full_precision():
  text = tables.scores_csv(['a,b/1.png', 'c'], ['bolt', 'wood'], [0, 1], [np.float32(0.1), 2.0])
  first, second = csv.DictReader(io.StringIO(text))
  assert first == {'id': 'a,b/1.png', 'category': 'bolt', 'label': '0', 'score': '0.10000000149011612'}
  assert np.float32(first['score']) == np.float32(0.1) and second['score'] == '2.0'
  with pytest.raises(ValueError, match='longer'):
    tables.scores_csv(['a'], ['bolt', 'wood'], [0, 1], [0.0, 1.0])
