"""The evaluation loop against metrics computed at once: padding, order, kept maps, undefined cells, bad maps."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsad_jax import metrics
from zsad_jax.clip.feature_spec import Features
from zsad_jax.engine import evaluate, runtime

SIZE = 12


def toy(per_category=(5, 9), masks=True, seed=0):
  """A data set whose features are its maps, and a loader of it."""
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
  return {'score': jnp.max(maps, (1, 2)) + 0 * batch['category'], 'map': maps}


def run(dataset, load, **kwargs):
  kwargs = {'batch': 4, 'place': runtime.place(jax.devices()[:1])} | kwargs
  return evaluate.run(predict, load, dataset, **kwargs)


@pytest.mark.parametrize('batch', [1, 4, 32])
@pytest.mark.parametrize('devices', [1, 8])
def test_equals_metrics_of_the_whole_category_at_once(batch, devices):
  dataset, load, maps, mask = toy()
  result = run(dataset, load, batch=batch, place=runtime.place(jax.devices()[:devices]))
  for number, category in enumerate(dataset.categories):
    members = dataset.category_index == number
    pixel = metrics.PixelMetrics()
    pixel.update(maps[members], mask[members])
    want = metrics.evaluate_category(dataset.labels[members], maps[members].max((1, 2)), pixel)
    assert result.rows[category] == want
  np.testing.assert_array_equal(result.scores, maps.max((1, 2)))
  assert result.counts['c1'] == {'normal': 4, 'anomalous': 5, 'vanished': 0, 'contradicted': 0}


def test_mean_is_over_categories_not_images():
  dataset, load, *_ = toy((4, 40))
  result = run(dataset, load)
  both = [result.rows[c]['pixel_auroc'].value for c in dataset.categories]
  assert result.summary['pixel_auroc']['value'] == pytest.approx(np.mean(both), abs=0)
  assert both[0] != both[1]


def test_predict_never_sees_the_truth():
  dataset, load, *_ = toy()
  seen = set()

  def spy(features, batch):
    seen.update(batch)
    return predict(features, batch)

  evaluate.run(spy, load, dataset, batch=4, place=runtime.place(jax.devices()[:1]))
  assert seen == {'category', 'index', 'valid'}


def test_keeps_the_maps_that_were_asked_for():
  dataset, load, maps, _ = toy()
  result = run(dataset, load, keep={0, 13})
  assert sorted(result.maps) == [0, 13]
  np.testing.assert_array_equal(result.maps[13], maps[13])


@pytest.mark.parametrize('finish', [None, lambda outputs: outputs])
def test_keeps_the_maps_of_the_worst_errors(finish):
  dataset, load, maps, _ = toy((5, 40))
  result = run(dataset, load, keep={0}, worst=4, finish=finish)
  scores, normal = maps.max((1, 2)), dataset.labels == 0
  want = {0}
  for members in np.split(np.arange(45), [5]):
    order = sorted(members, key=lambda i: scores[i])
    want |= {*[i for i in order if normal[i]][-2:], *[i for i in order if not normal[i]][:2]}
  assert set(result.maps) == want
  assert all(np.array_equal(found, maps[i]) and found.base is None for i, found in result.maps.items())


def test_curves_and_histograms_only_where_asked_for_and_defined():
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


def test_finish_sees_a_whole_category():
  dataset, load, _maps, _ = toy()
  seen = []

  def finish(outputs):
    seen.append(outputs['score'].shape)
    return dict(outputs, score=outputs['score'] * 0)

  result = run(dataset, load, finish=finish)
  assert seen == [(5,), (9,)]
  assert result.rows['c0']['image_auroc'].value == 0.5


def test_masks_that_vanished_or_contradict_the_label_are_counted_and_said(caplog):
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


def test_empty_data_set_is_refused():
  dataset, load, *_ = toy()
  dataset.ids = []
  with pytest.raises(ValueError, match='toy: no images'):
    run(dataset, load)


def test_without_maps_only_pixel_metrics_are_undefined_and_masks_are_not_kept():
  dataset, load, _, _ = toy()
  scored = jax.jit(lambda features, batch: {'score': jnp.max(features.taps['map'], (1, 2)) + 0 * batch['category']})
  place = runtime.place(jax.devices()[:1])
  whole = evaluate.run(predict, load, dataset, batch=4, place=place, keep=[0])
  for finish in (None, lambda outputs: outputs):
    result = evaluate.run(scored, load, dataset, batch=4, place=place, finish=finish, keep=[0])
    for category, row in result.rows.items():
      assert [row[m] for m in metrics.IMAGE_METRICS] == [whole.rows[category][m] for m in metrics.IMAGE_METRICS]
      assert {row[m] for m in metrics.PIXEL_METRICS} == {metrics.Value(None, 'the method makes no maps')}
    assert result.maps == {} and set(whole.maps) == {0}
    assert result.summary['pixel_auroc']['reason'].endswith('the method makes no maps')
