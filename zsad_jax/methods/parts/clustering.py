"""How many groups, and which: k-means whose number of clusters has a price (CSP of FuzzyCLIP, sec. 2.2, eq. 4).

  score(k) = sum of squared distances to the nearest of k centres + penalty e^k,        k* = argmin score(k)

Points are unit vectors, of which two that have nothing to do with one another are about 0.5 apart, squared. Parting
one from the others then saves about a quarter, less than the 0.467 that the second group costs; only a bunch of
near-duplicates saves more. Everything is numpy in float64 on the host: a data set has some dozen categories.
"""

from typing import NamedTuple

import numpy as np
from sklearn import cluster

ITERATIONS = 300  # at most, of one k-means


class Grouping(NamedTuple):
  """What `group` found.

  Attributes:
    labels: each point's group; group 0 is that of the first point, 1 that of the first point outside it, and so on.
    scores: {k: score(k)} of every k that was tried.
  """
  labels: tuple[int, ...]
  scores: dict[int, float]


def price(k, penalty=0.1):
  """Returns what k groups cost, penalty e^k."""
  return penalty * float(np.exp(k))


def group(points, keys):
  """Returns the Grouping of points [n, E] with the least score, of equal ones the one with fewer groups.

  Args:
    points: any numbers; they are L2-normalised unless keys.normalize is off.
    keys: the config's `csp`: normalize, penalty, kmax (at most so many groups), k (exactly so many; 0 by score),
      restarts (of k-means++, the best of which counts) and seed.

  Raises:
    ValueError: no points, more groups than different points, or a key that is out of range.
  """
  check(keys)
  points = np.asarray(points, np.float64)
  if points.ndim != 2 or not len(points):
    raise ValueError(f'points are of shape {points.shape}; grouping takes [n, E] with n of at least 1')
  if keys.normalize:
    points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
  different = len(np.unique(points, axis=0))
  if keys.k > different:
    raise ValueError(f'csp.k {keys.k} is more groups than the {different} different points there are')
  tried = (keys.k,) if keys.k else range(1, min(keys.kmax, different) + 1)
  found = {k: cluster.KMeans(k, n_init=keys.restarts, max_iter=ITERATIONS, random_state=keys.seed).fit(points)
           for k in tried}
  scores = {k: float(fit.inertia_) + price(k, keys.penalty) for k, fit in found.items()}
  return Grouping(_in_order(found[min(scores, key=scores.get)].labels_), scores)


def check(keys):
  """Raises ValueError naming the first key of the config's `csp` that is out of range."""
  for key, low in (('kmax', 1), ('k', 0), ('restarts', 1), ('seed', 0)):
    if keys[key] < low:
      raise ValueError(f'csp.{key} {keys[key]} is less than {low}')
  if not keys.penalty >= 0:
    raise ValueError(f'csp.penalty {keys.penalty} is not 0 or more')


def _in_order(labels):
  """Labels counted in the order of their first points; k-means numbers its clusters by chance."""
  _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
  rank = np.argsort(np.argsort(first))
  return tuple(int(rank[i]) for i in inverse)
