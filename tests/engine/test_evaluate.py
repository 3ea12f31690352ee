"""The evaluation loop against metrics computed at once: padding, order, maps that are kept, undefined values."""

import os
import signal
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax import metrics
from zsad_jax.clip.feature_spec import Features
from zsad_jax.engine import eval_cache, evaluate, runtime

SIZE = 12


class Prediction(NamedTuple):
  score: Any
  map: Any = None


def toy(per_category=(5, 9), masks=True, seed=0):
  """(data set whose features are its maps, its loader, maps, masks)."""
  rng = np.random.default_rng(seed)
  count = sum(per_category)
  category = np.repeat(np.arange(len(per_category)), per_category).astype(np.int32)
  labels = (np.arange(count) % 2).astype(np.int32)
  mask = np.zeros((count, SIZE, SIZE), np.uint8)
  mask[labels == 1, 2:6, 3:7] = 1
  maps = (rng.random((count, SIZE, SIZE)) + 0.5 * mask).astype(np.float32)
  dataset = SimpleNamespace(
    name='toy', ids=[f'c{c}/test/{i:03d}' for i, c in enumerate(category)], labels=labels,
    category_index=category, categories=tuple(f'c{c}' for c in range(len(per_category))))

  def load(indices):
    indices = np.asarray(indices)
    batch = {'mask': mask[indices], 'has_mask': np.full(len(indices), masks) | (labels[indices] == 0),
             'label': labels[indices], 'category': category[indices], 'index': indices.astype(np.int32),
             'valid': np.ones(len(indices), bool), 'id': [dataset.ids[i] for i in indices]}
    return Features(None, {'map': maps[indices]}), batch

  return dataset, load, maps, mask


@jax.jit
def predict(features, batch):
  maps = features.taps['map']
  return Prediction(jnp.max(maps, (1, 2)) + 0 * batch['category'], maps)


def run(dataset, load, predict=predict, *, batch=4, devices=1, postprocess=None, cache=None, **options):
  return evaluate.run(predict, load, dataset, batch=batch, place=runtime.place(jax.devices()[:devices]),
                      postprocess=postprocess, options=evaluate.Options(**options), cache=cache)


def require_metrics_at_once(batch, devices):
  """Asserts that metrics equal those of each category's maps taken at once."""
  dataset, load, maps, mask = toy()
  result = run(dataset, load, batch=batch, devices=devices)
  for number, category in enumerate(dataset.categories):
    members = dataset.category_index == number
    pixel = metrics.PixelMetrics()
    pixel.update(maps[members], mask[members])
    want = metrics.evaluate_category(dataset.labels[members], maps[members].max((1, 2)), pixel)
    assert result.rows[category] == want
  np.testing.assert_array_equal(result.scores, maps.max((1, 2)))
  assert result.counts['c1'] == {'normal': 4, 'anomalous': 5, 'vanished': 0, 'contradicted': 0}


@pytest.mark.parametrize('batch', [1, 4, 32])
def test_metrics_equal_those_of_the_whole_category_at_once(batch):
  require_metrics_at_once(batch, devices=1)


def test_mean_is_over_categories_and_not_over_images():
  dataset, load, *_ = toy((4, 40))
  result = run(dataset, load)
  both = [result.rows[c]['pixel_auroc'].value for c in dataset.categories]
  assert result.summary['pixel_auroc']['value'] == pytest.approx(np.mean(both), abs=0)
  assert both[0] != both[1]


def test_predict_never_gets_the_ground_truth():
  dataset, load, *_ = toy()
  keys = set()

  def spy(features, batch):
    keys.update(batch)
    return predict(features, batch)

  run(dataset, load, spy)
  assert keys == {'category', 'index', 'valid'}


def test_maps_of_the_images_in_keep_are_returned():
  dataset, load, maps, _ = toy()
  result = run(dataset, load, keep={0, 13})
  assert sorted(result.maps) == [0, 13]
  np.testing.assert_array_equal(result.maps[13], maps[13])


@pytest.mark.parametrize('postprocess', [None, lambda outputs: outputs])
def test_maps_of_the_worst_errors_are_returned(postprocess):
  dataset, load, maps, _ = toy((5, 40))
  result = run(dataset, load, keep={0}, worst=4, postprocess=postprocess)
  scores, normal = maps.max((1, 2)), dataset.labels == 0
  want = {0}
  for members in np.split(np.arange(45), [5]):
    order = sorted(members, key=lambda i: scores[i])
    want |= {*[i for i in order if normal[i]][-2:], *[i for i in order if not normal[i]][:2]}
  assert set(result.maps) == want
  assert all(np.array_equal(anomaly_map, maps[i]) and anomaly_map.base is None
             for i, anomaly_map in result.maps.items())


def test_curves_and_histograms_if_asked_for_and_defined():
  dataset, load, _, mask = toy()
  mask[:5] = 0
  dataset.labels[:5] = 0
  result = run(dataset, load, curves=True)
  assert set(result.curves) == {'c1'} and set(result.histograms) == {'c0', 'c1'}
  assert result.histograms['c0'].normal.sum() == 5 * SIZE ** 2
  assert np.trapezoid(*result.curves['c1'].roc()[::-1]) == pytest.approx(
    result.rows['c1']['pixel_auroc'].value, abs=1e-3)
  assert run(dataset, load).curves == {} == run(*toy(masks=False)[:2], curves=True).histograms


def test_anomalous_images_without_masks_have_no_pixel_metrics():
  dataset, load, *_ = toy(masks=False)
  result = run(dataset, load)
  assert result.rows['c0']['aupro'] == metrics.Value(None, 'no masks')
  assert result.rows['c0']['image_auroc'].value is not None
  assert result.summary['pixel_auroc']['value'] is None


def test_postprocess_gets_a_whole_category():
  dataset, load, *_ = toy()
  shapes = []

  def postprocess(outputs):
    shapes.append(outputs.score.shape)
    return outputs._replace(score=outputs.score * 0)

  result = run(dataset, load, postprocess=postprocess)
  assert shapes == [(5,), (9,)]
  assert result.rows['c0']['image_auroc'].value == 0.5


@pytest.mark.parametrize('interruption', ['kill', 'SIGTERM'])
def test_an_interrupted_evaluation_resumes_with_its_unfinished_category(tmp_path, interruption):
  """Interrupted in the second category: the next run predicts that one alone, and returns the same Result."""
  dataset, load, *_ = toy()
  cache = lambda: eval_cache.EvalCache(tmp_path, {}, evaluate.RECORDS)

  def interrupted(features, batch):
    if batch['category'][0] and interruption == 'kill':
      raise KeyboardInterrupt
    if batch['category'][0]:
      os.kill(os.getpid(), signal.SIGTERM)
    return predict(features, batch)

  options = {'keep': {0, 13}, 'worst': 2, 'curves': True}
  with runtime.preemption(), pytest.raises(KeyboardInterrupt if interruption == 'kill' else runtime.Preempted):
    run(dataset, load, interrupted, cache=cache(), **options)
  calls = []
  resumed = run(dataset, load, lambda *args: (calls.append(args), predict(*args))[1], cache=cache(), **options)
  whole = run(dataset, load, **options)
  assert len(calls) == 3  # nine images in batches of four
  assert resumed.rows == whole.rows and resumed.counts == whole.counts and resumed.summary == whole.summary
  np.testing.assert_array_equal(resumed.scores, whole.scores)
  for name in ('maps', 'curves', 'histograms'):
    jax.tree.map(np.testing.assert_array_equal, getattr(resumed, name), getattr(whole, name))


def test_vanished_and_contradicted_masks_are_counted_and_logged(caplog):
  dataset, load, _maps, mask = toy()
  mask[1] = 0
  mask[2, 5, 5] = 1
  with caplog.at_level('WARNING', logger='absl'):
    result = run(dataset, load)
  assert (result.counts['c0']['vanished'], result.counts['c0']['contradicted']) == (1, 1)
  assert 'c0: the masks of 1 of 2 anomalous images are empty' in caplog.text
  assert 'c0: 1 images labelled normal' in caplog.text


def test_nan_in_a_map_names_the_image():
  dataset, load, maps, _ = toy()
  maps[6, 3, 3] = np.nan
  with pytest.raises(ValueError, match='c1/test/006'):
    run(dataset, load)


def test_an_empty_data_set_is_refused():
  dataset, load, *_ = toy()
  dataset.ids = []
  with pytest.raises(ValueError, match='toy: no images'):
    run(dataset, load)


def test_without_maps_only_pixel_metrics_are_undefined_and_masks_are_not_kept():
  dataset, load, _, _ = toy()
  scored = jax.jit(lambda features, batch: Prediction(jnp.max(features.taps['map'], (1, 2)) + 0 * batch['category']))
  whole = run(dataset, load, keep=[0])
  for postprocess in (None, lambda outputs: outputs):
    result = run(dataset, load, scored, postprocess=postprocess, keep=[0])
    for category, row in result.rows.items():
      assert [row[m] for m in metrics.IMAGE_METRICS] == [whole.rows[category][m] for m in metrics.IMAGE_METRICS]
      assert {row[m] for m in metrics.PIXEL_METRICS} == {metrics.Value(None, 'the method makes no maps')}
    assert result.maps == {} and set(whole.maps) == {0}
    assert result.summary['pixel_auroc']['reason'].endswith('the method makes no maps')
