"""All metrics of a category, and means that leave out undefined values."""

import json

import numpy as np
import pytest

from zsad_jax.metrics import (
  IMAGE_METRICS,
  METRICS,
  PIXEL_METRICS,
  PixelMetrics,
  Value,
  auroc,
  average_precision,
  evaluate_category,
  f1_max,
  summarise,
)


def pixel_metrics(labels, seed=0):
  rng = np.random.default_rng(seed)
  masks = np.zeros((len(labels), 8, 8), np.uint8)
  masks[np.asarray(labels) == 1, 2:5, 3:6] = 1
  pixel = PixelMetrics()
  pixel.update(rng.random(masks.shape) + 0.4 * masks, masks, labels=labels)
  return pixel


def test_all_metrics_in_order():
  labels, scores = np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.7, 0.5, 0.4, 0.5], np.float32)
  pixel = pixel_metrics(labels)
  values = evaluate_category(labels, scores, pixel)
  assert tuple(values) == METRICS
  assert values['image_auroc'].value == auroc(labels, scores)
  assert values['image_ap'].value == average_precision(labels, scores)
  assert values['image_f1max'].value == f1_max(labels, scores)[0]
  assert {name: values[name] for name in PIXEL_METRICS} == pixel.compute()


@pytest.mark.parametrize(('labels', 'reason'), [
  ([1, 1], 'no normal images'), ([0, 0], 'no anomalous images'),
])
def test_one_class_of_images_is_null_not_half(labels, reason):
  values = evaluate_category(labels, [0.2, 0.3], pixel_metrics([1, 1]))
  assert all(values[name] == (None, reason) for name in IMAGE_METRICS)
  assert all(values[name].value is not None for name in PIXEL_METRICS)


def test_label_only_and_empty_categories():
  values = evaluate_category([0, 1], [0.2, 0.3])
  assert values['image_auroc'].value == 1.0
  assert all(values[name] == (None, 'no masks') for name in PIXEL_METRICS)
  values = evaluate_category([], [], PixelMetrics())
  assert values['image_ap'] == (None, 'no images')
  assert values['aupro'] == (None, 'no pixels')


def test_bad_scores_name_the_image():
  with pytest.raises(ValueError, match=r'2 of 3 values of the image scores \(b, c\) are NaN or infinite'):
    evaluate_category([0, 1, 1], [0.1, np.nan, -np.inf], ids=['a', 'b', 'c'])
  with pytest.raises(ValueError, match=r'\(0, 1, 2, 3, 4, \.\.\.\)'):
    evaluate_category([0] * 9, [np.nan] * 9)
  with pytest.raises(ValueError, match='image labels must be 0'):
    evaluate_category([0, 255], [0.1, 0.2])
  with pytest.raises(ValueError, match=r'got \(2,\) and \(1,\)'):
    evaluate_category([0, 1], [0.1])
  with pytest.raises(ValueError, match='2 scores and 1 ids'):
    evaluate_category([0, 1], [0.1, 0.2], ids=['a'])


def test_mean_is_over_categories_not_images_and_unrounded():
  rows = {
    'big': evaluate_category([0] * 90 + [1] * 10, np.r_[np.zeros(90), np.ones(10)]),
    'small': evaluate_category([0, 0, 0, 1], [0.1, 0.2, 0.4, 0.3]),
  }
  assert rows['small']['image_auroc'].value == 1 - 1 / 3
  assert summarise(rows)['image_auroc'] == {'value': (1 + (1 - 1 / 3)) / 2, 'count': 2, 'of': 2, 'reason': ''}


def test_undefined_categories_are_left_out_and_counted():
  rows = {f'c{i}': {'aupro': Value(i ** 2 / 200)} for i in range(14)}
  rows['screw'] = {'aupro': Value(None, 'no anomalous pixels')}
  assert summarise(rows)['aupro'] == {
    'value': pytest.approx(819 / 14 / 200), 'count': 14, 'of': 15, 'reason': 'screw: no anomalous pixels'}


def test_metric_undefined_everywhere_is_null_with_the_reasons():
  rows = {
    'a': {'aupro': Value(None, 'no masks')},
    'b': {'aupro': Value(None, 'no normal pixels')},
    'c': {'aupro': Value(None, 'no masks')},
  }
  summary = summarise(rows)
  assert summary['aupro'] == {
    'value': None, 'count': 0, 'of': 3, 'reason': 'a, c: no masks; b: no normal pixels'}
  assert json.loads(json.dumps(summary)) == summary


def test_summary_needs_equal_rows():
  with pytest.raises(ValueError, match='no categories'):
    summarise({})
  with pytest.raises(ValueError, match='category b has no entry for aupro'):
    summarise({'a': {'aupro': Value(1.0)}, 'b': {}})
