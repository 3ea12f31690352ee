"""Headings: metrics and runs under the names that people read."""

import pytest

from zsad_jax import metrics
from zsad_jax.report import headings


def test_every_metric_has_a_heading():
  assert set(headings.METRICS) == set(metrics.METRICS)


@pytest.mark.parametrize(('source', 'options', 'heading'), [
  ('synthetic_aux', {}, 'AnomalyCLIP, trained on synthetic_aux, tested on synthetic_target (seed 111)'),
  ('nothing', {}, 'AnomalyCLIP (training-free), tested on synthetic_target (seed 111)'),
  ('visa', {'split': 'train', 'oracle': True},
   'AnomalyCLIP, trained on visa, tested on synthetic_target, split train (seed 111, oracle epoch)'),
  ('visa', {'shots': 1},
   'AnomalyCLIP, trained on visa, tested on synthetic_target with 1 reference image per category (seed 111)'),
])
def test_a_run_is_headed_by_method_data_and_seed(source, options, heading):
  assert headings.run('AnomalyCLIP', source, 'synthetic_target', 111, **options) == heading
