"""Groups of categories: the paper's geometry, the penalty on their number, and bad keys."""

import itertools

import ml_collections as mlc
import numpy as np
import pytest

from zsad_jax.configs import fuzzyclip
from zsad_jax.methods.parts import bounds, clustering

VISA = ('candle', 'capsules', 'cashew', 'chewinggum', 'fryum', 'macaroni1', 'macaroni2', 'pcb1', 'pcb2', 'pcb3', 'pcb4',
        'pipe_fryum')


def keys(**changes):
  c = fuzzyclip.method().csp
  c.update(changes)
  return mlc.FrozenConfigDict(c)


def points_with(gram):
  """Vectors [n, n] with these inner products."""
  return np.linalg.cholesky(gram)


def equally_near(count, cosine):
  return np.full((count, count), cosine) + (1 - cosine) * np.eye(count)


def twelve(near=0.97, far=0.75, cross=0.65):
  """Unit vectors like those of VisA's names: four near-duplicates among eight others."""
  pcb = np.array([name.startswith('pcb') for name in VISA])
  gram = np.where(pcb[:, None] & pcb[None], near, np.where(pcb[:, None] == pcb[None], far, cross))
  np.fill_diagonal(gram, 1)
  return points_with(gram), pcb


def inertia(points, labels):
  return sum(((points[labels == g] - points[labels == g].mean(0)) ** 2).sum() for g in np.unique(labels))


def test_fifteen_unrelated_names_are_one_group():
  grouping = clustering.group(points_with(equally_near(15, 0.75)), keys())
  assert grouping.labels == (0,) * 15
  assert grouping.scores[1] - grouping.scores[2] == pytest.approx(0.25 - 0.4671, abs=1e-3)


def test_four_near_duplicates_are_a_group_of_their_own():
  points, pcb = twelve()
  grouping = clustering.group(points, keys())
  assert grouping.labels == tuple(int(x) for x in pcb)
  savings = {k: grouping.scores[k] - grouping.scores[k + 1] + clustering.penalty(k + 1) - clustering.penalty(k)
             for k in (1, 2)}
  assert savings[1] == pytest.approx(1.2233, abs=1e-3) and savings[2] == pytest.approx(0.25, abs=1e-3)


def test_the_penalty_is_a_tenth_of_e_to_the_k():
  assert [round(clustering.penalty(k), 3) for k in (1, 2, 3, 4)] == [0.272, 0.739, 2.009, 5.46]
  assert [round(clustering.penalty(k + 1) - clustering.penalty(k), 3) for k in (1, 2, 3)] == [0.467, 1.270, 3.451]


def test_the_length_of_points_counts_only_without_normalisation():
  points, pcb = twelve()
  stretched = points * np.linspace(5, 20, len(points))[:, None]
  assert clustering.group(stretched, keys()).labels == tuple(int(x) for x in pcb)
  assert max(clustering.group(10 * points, keys(normalize=False)).labels) + 1 >= 4
  assert clustering.group(points, keys(normalize=False)).labels == tuple(int(x) for x in pcb)


def test_the_best_two_groups_are_those_of_trying_all():
  points = np.random.default_rng(0).standard_normal((9, 5))
  points /= np.linalg.norm(points, axis=1, keepdims=True)
  grouping = clustering.group(points, keys(k=2))
  every = [inertia(points, np.array((0, *rest))) for rest in itertools.product((0, 1), repeat=8) if any(rest)]
  assert inertia(points, np.array(grouping.labels)) == pytest.approx(min(every))
  assert grouping.scores == {2: pytest.approx(min(every) + clustering.penalty(2))}


def test_groups_are_numbered_as_they_appear():
  points = np.eye(3)[[2, 2, 0, 1, 0, 2]]
  assert clustering.group(points, keys(k=3)).labels == (0, 0, 1, 2, 1, 0)
  assert clustering.group(points[::-1], keys(k=3)).labels == (0, 1, 2, 1, 0, 0)


def test_no_more_groups_are_tried_than_there_are_different_points():
  assert set(clustering.group(np.eye(2)[[0, 1, 0]], keys()).scores) == {1, 2}
  assert set(clustering.group(np.eye(12), keys(kmax=3)).scores) == {1, 2, 3}
  assert clustering.group(np.ones((1, 4)), keys()).labels == (0,)


@pytest.mark.parametrize('changes, message', [
  (dict(kmax=0), r'csp\.kmax=0'), (dict(k=-1), r'csp\.k=-1'), (dict(restarts=0), r'csp\.restarts=0'),
  (dict(seed=-1), r'csp\.seed=-1'), (dict(penalty=-1.0), r'csp\.penalty=-1\.0')])
def test_keys_out_of_range_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    bounds.check({'csp': keys(**changes)}, clustering.BOUNDS)


def test_more_groups_than_different_points_are_refused():
  with pytest.raises(ValueError, match=r'csp\.k=3 .* different points \(2\)'):
    clustering.group(np.eye(2)[[0, 1, 0]], keys(k=3))


@pytest.mark.parametrize('shape', [(0, 3), (3,)])
def test_points_of_another_shape_are_refused(shape):
  with pytest.raises(ValueError, match=r'must be \[n, E\]'):
    clustering.group(np.ones(shape), keys())
