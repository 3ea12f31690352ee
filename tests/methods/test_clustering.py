"""Groups of categories: the acceptance test of the paper's geometry, the price of a group, and what is refused."""

import itertools

import ml_collections as mlc
import numpy as np
import pytest

from zsad_jax.configs import fuzzyclip
from zsad_jax.methods.parts import clustering

VISA = ('candle', 'capsules', 'cashew', 'chewinggum', 'fryum', 'macaroni1', 'macaroni2', 'pcb1', 'pcb2', 'pcb3', 'pcb4',
        'pipe_fryum')


def keys(**changes):
  c = fuzzyclip.method().csp
  c.update(changes)
  return mlc.FrozenConfigDict(c)


def points_of(gram):
  """Vectors [n, n] with these inner products."""
  return np.linalg.cholesky(gram)


def alike(count, cosine):
  return np.full((count, count), cosine) + (1 - cosine) * np.eye(count)


def twelve(near=0.97, far=0.75, cross=0.65):
  """Unit vectors like those of VisA's names: four near-duplicates among eight others."""
  pcb = np.array([name.startswith('pcb') for name in VISA])
  gram = np.where(pcb[:, None] & pcb[None], near, np.where(pcb[:, None] == pcb[None], far, cross))
  np.fill_diagonal(gram, 1)
  return points_of(gram), pcb


def inertia(points, labels):
  return sum(((points[labels == g] - points[labels == g].mean(0)) ** 2).sum() for g in np.unique(labels))


def test_trap_1_fifteen_unrelated_names_are_one_group():
  found = clustering.group(points_of(alike(15, 0.75)), keys())
  assert found.labels == (0,) * 15
  assert found.scores[1] - found.scores[2] == pytest.approx(0.25 - 0.4671, abs=1e-3)


def test_trap_1_four_near_duplicates_are_a_group_of_their_own():
  points, pcb = twelve()
  found = clustering.group(points, keys())
  assert found.labels == tuple(int(x) for x in pcb)
  saved = {k: found.scores[k] - found.scores[k + 1] + clustering.price(k + 1) - clustering.price(k) for k in (1, 2)}
  assert saved[1] == pytest.approx(1.2233, abs=1e-3) and saved[2] == pytest.approx(0.25, abs=1e-3)


def test_trap_2_the_price_is_a_tenth_of_e_to_the_k():
  assert [round(clustering.price(k), 3) for k in (1, 2, 3, 4)] == [0.272, 0.739, 2.009, 5.46]
  assert [round(clustering.price(k + 1) - clustering.price(k), 3) for k in (1, 2, 3)] == [0.467, 1.270, 3.451]


def test_trap_3_the_length_of_points_means_nothing_unless_asked_for():
  points, pcb = twelve()
  stretched = points * np.linspace(5, 20, len(points))[:, None]
  assert clustering.group(stretched, keys()).labels == tuple(int(x) for x in pcb)
  assert max(clustering.group(10 * points, keys(normalize=False)).labels) + 1 >= 4
  assert clustering.group(points, keys(normalize=False)).labels == tuple(int(x) for x in pcb)


def test_the_best_two_groups_are_those_of_trying_all():
  points = np.random.default_rng(0).standard_normal((9, 5))
  points /= np.linalg.norm(points, axis=1, keepdims=True)
  found = clustering.group(points, keys(k=2))
  every = [inertia(points, np.array((0, *rest))) for rest in itertools.product((0, 1), repeat=8) if any(rest)]
  assert inertia(points, np.array(found.labels)) == pytest.approx(min(every))
  assert found.scores == {2: pytest.approx(min(every) + clustering.price(2))}


def test_groups_are_counted_as_they_appear():
  points = np.eye(3)[[2, 2, 0, 1, 0, 2]]
  assert clustering.group(points, keys(k=3)).labels == (0, 0, 1, 2, 1, 0)
  assert clustering.group(points[::-1], keys(k=3)).labels == (0, 1, 2, 1, 0, 0)


def test_no_more_groups_are_tried_than_there_are_different_points():
  assert set(clustering.group(np.eye(2)[[0, 1, 0]], keys()).scores) == {1, 2}
  assert set(clustering.group(np.eye(12), keys(kmax=3)).scores) == {1, 2, 3}
  assert clustering.group(np.ones((1, 4)), keys()).labels == (0,)


@pytest.mark.parametrize('changes, message', [
  (dict(kmax=0), r'csp\.kmax 0 is less than 1'), (dict(k=-1), r'csp\.k -1 is less than 0'),
  (dict(restarts=0), r'csp\.restarts 0 is less than 1'), (dict(seed=-1), r'csp\.seed -1 is less than 0'),
  (dict(penalty=-1.0), r'csp\.penalty -1\.0 is not 0 or more'),
  (dict(k=3), r'csp\.k 3 is more groups than the 2 different points there are')])
def test_bad_keys(changes, message):
  with pytest.raises(ValueError, match=message):
    clustering.group(np.eye(2)[[0, 1, 0]], keys(**changes))


@pytest.mark.parametrize('shape', [(0, 3), (3,)])
def test_bad_points(shape):
  with pytest.raises(ValueError, match=r'grouping takes \[n, E\] with n of at least 1'):
    clustering.group(np.ones(shape), keys())
