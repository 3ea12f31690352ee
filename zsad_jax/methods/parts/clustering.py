"""K-means with a penalty on the number of clusters (CSP of FuzzyCLIP, sec. 2.2, eq. 4).

  score(k) = sum of squared distances to the nearest of k centres + penalty e^k,        k* = argmin score(k)

Points are unit vectors. Two that have nothing to do with each other have a squared distance of about 0.5: splitting one
off saves about a quarter, less than the 0.467 that the second group costs. Only a group of near-duplicates saves more.
All of it is numpy in float64 on the host: a data set has some dozen categories.
"""

from typing import NamedTuple

import numpy as np
from sklearn import cluster

from zsad_jax.methods import Config
from zsad_jax.methods.parts.bounds import AT_LEAST_ONE, NOT_NEGATIVE

BOUNDS = {'csp.kmax': AT_LEAST_ONE, 'csp.k': NOT_NEGATIVE, 'csp.restarts': AT_LEAST_ONE, 'csp.seed': NOT_NEGATIVE,
          'csp.penalty': NOT_NEGATIVE}
ITERATIONS = 300  # of one k-means, at most


class Grouping(NamedTuple):
  """The result of `group`.

  Attributes:
    labels: each point's group; group 0 is that of the first point, 1 that of the first point outside it, and so on.
    scores: {k: score(k)} of every k that was tried.
  """
  labels: tuple[int, ...]
  scores: dict[int, float]


def penalty(k: int, factor: float = 0.1) -> float:
  """Returns the penalty of k groups, factor e^k."""
  return factor * float(np.exp(k))


def group(points: np.ndarray, keys: Config) -> Grouping:
  """Returns the Grouping of points [n, E] with the lowest score, and of equal ones that with fewer groups.

  Args:
    points: L2-normalised first, unless keys.normalize is off.
    keys: the config's `csp`: normalize, penalty, kmax (at most so many groups), k (exactly so many; 0 by score),
      restarts (of k-means++, the best of which counts) and seed.

  Raises:
    ValueError: no points, or more groups than different points.
  """
  points = np.asarray(points, np.float64)
  if points.ndim != 2 or not len(points):
    raise ValueError(f'points of shape {points.shape} cannot be grouped; the shape must be [n, E] with n of at least 1')
  if keys.normalize:
    points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
  different = len(np.unique(points, axis=0))
  if keys.k > different:
    raise ValueError(f'csp.k={keys.k} is more groups than there are different points ({different}); use fewer')
  counts = (keys.k,) if keys.k else range(1, min(keys.kmax, different) + 1)
  fits = {k: cluster.KMeans(k, n_init=keys.restarts, max_iter=ITERATIONS, random_state=keys.seed).fit(points)
          for k in counts}
  scores = {k: float(fit.inertia_) + penalty(k, keys.penalty) for k, fit in fits.items()}
  return Grouping(_by_appearance(fits[min(scores, key=scores.get)].labels_), scores)


def _by_appearance(labels):
  """Labels numbered in the order of their first points; k-means numbers its clusters by chance."""
  _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
  rank = np.argsort(np.argsort(first))
  return tuple(int(rank[i]) for i in inverse)
