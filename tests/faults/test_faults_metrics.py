"""Scores and maps for which metrics are undefined, have ties or must stop: values, reasons and messages."""

import logging
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax import metrics
from zsad_jax.clip.feature_spec import Features
from zsad_jax.engine import evaluate, runtime

SIZE = 12


class Prediction(NamedTuple):
  score: Any
  map: Any = None


def toy(sizes=(5, 9), labels=None, empty=()):
  """(data set whose features are its maps, its loader, maps); masks of the images in `empty` are all zero."""
  count = sum(sizes)
  category = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
  labels = (np.arange(count) % 2 if labels is None else np.asarray(labels)).astype(np.int32)
  mask = np.zeros((count, SIZE, SIZE), np.uint8)
  mask[labels == 1, 2:6, 3:7] = 1
  mask[list(empty)] = 0
  maps = (np.random.default_rng(0).random((count, SIZE, SIZE)) + 0.5 * mask).astype(np.float32)
  dataset = SimpleNamespace(
    name='toy', ids=[f'c{c}/test/{i:03d}' for i, c in enumerate(category)], labels=labels, category_index=category,
    categories=tuple(f'c{c}' for c in range(len(sizes))))

  def load(indices):
    indices = np.asarray(indices)
    return Features(None, {'map': maps[indices]}), {
      'mask': mask[indices], 'has_mask': np.ones(len(indices), bool), 'label': labels[indices],
      'category': category[indices], 'index': indices.astype(np.int32), 'valid': np.ones(len(indices), bool)}

  return dataset, load, maps


@jax.jit
def predict(features, batch):
  maps = features.taps['map']
  return Prediction(jnp.max(maps, (1, 2)) + 0 * batch['category'], maps)


def run(dataset, load, predict=predict, batch=4):
  return evaluate.run(predict, load, dataset, batch=batch, place=runtime.place(jax.devices()[:1]))


def test_categories_of_one_class_or_none_are_undefined_with_a_reason_and_not_in_the_mean():
  dataset, load, _ = toy((4, 3, 0, 2), labels=[0, 1, 0, 1, 0, 0, 0, 1, 1])
  result = run(dataset, load)
  assert result.rows['c1']['image_auroc'] == metrics.Value(None, 'no anomalous images')
  assert result.rows['c2']['image_auroc'] == metrics.Value(None, 'no images')
  assert result.rows['c3']['image_ap'] == metrics.Value(None, 'no normal images')
  mean = result.summary['image_auroc']
  assert (mean['count'], mean['of']) == (1, 4) and mean['value'] == result.rows['c0']['image_auroc'].value
  assert mean['reason'] == 'c1: no anomalous images; c2: no images; c3: no normal images'


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_errors_that_name_the_image(value):
  dataset, load, maps = toy()
  maps[6, 4, 4] = value
  with pytest.raises(ValueError, match=r'1 of 144 values of the map of image c1/test/006 are NaN or infinite'):
    run(dataset, load)
  scored = jax.jit(lambda features, batch: Prediction(jnp.max(features.taps['map'], (1, 2))))
  maps[6] = value
  with pytest.raises(ValueError, match=r'the image scores \(c1/test/006\) are NaN or infinite'):
    run(dataset, load, scored)


def test_constant_maps_are_chance_and_aupro_is_finite():
  dataset, load, maps = toy()
  maps[:] = 0.25
  for row in run(dataset, load).rows.values():
    assert row['image_auroc'].value == row['pixel_auroc'].value == 0.5
    assert 0 <= row['aupro'].value <= 1


def test_a_million_ties_count_half_each():
  labels = np.arange(2 ** 20) % 2
  scores = np.repeat(np.float32([0.1, 0.2]), 2 ** 19)
  assert metrics.auroc(labels, scores) == 0.5
  assert metrics.average_precision(labels, scores) == 0.5


def test_half_precision_maps_change_ap_little():
  dataset, load, _ = toy((40,))
  wide = run(dataset, load).rows['c0']['pixel_ap'].value
  halved = jax.jit(lambda features, batch: Prediction(jnp.max(features.taps['map'], (1, 2)),
                                                      features.taps['map'].astype(jnp.float16)))
  narrow = run(dataset, load, halved).rows['c0']
  assert 0 < abs(narrow['pixel_ap'].value - wide) < 2e-3 and narrow['aupro'].value <= 1


def test_empty_masks_are_counted_and_logged_by_an_evaluation(caplog):
  with caplog.at_level(logging.WARNING):
    result = run(*toy(empty=(1,))[:2])
  assert result.counts['c0']['vanished'] == 1
  assert 'c0: the masks of 1 of 2 anomalous images are empty at this resolution' in caplog.text


def test_batch_size_and_order_change_no_metric():
  dataset, load, _ = toy((7, 2, 9))
  one = run(dataset, load, batch=1)
  for batch in (4, 5, 32):
    other = run(dataset, load, batch=batch)
    np.testing.assert_allclose(other.scores, one.scores, atol=1e-5)
    assert other.rows == one.rows and other.counts == one.counts
  backwards = SimpleNamespace(**vars(dataset))
  order = np.arange(len(dataset.ids))[::-1]
  backwards.ids, backwards.labels = [dataset.ids[i] for i in order], dataset.labels[order]
  backwards.category_index = dataset.category_index[order]
  reverse = run(backwards, lambda indices: _at(load, order, indices))
  for category, row in reverse.rows.items():
    assert [v.value for v in row.values()] == pytest.approx([v.value for v in one.rows[category].values()], abs=1e-12)
  np.testing.assert_array_equal(reverse.scores[::-1], one.scores)


def _at(load, order, indices):
  """Rows of the images at `indices` of another order, under their new numbers."""
  features, batch = load(order[np.asarray(indices)])
  return features, dict(batch, index=np.asarray(indices, np.int32))


def test_all_categories_and_batches_run_one_program():
  dataset, load, _ = toy((1, 2, 3, 9, 17))
  traces = []
  counting = jax.jit(lambda features, batch: (traces.append(1), predict(features, batch))[1])
  run(dataset, load, counting)
  assert len(traces) == counting._cache_size() == 1
