"""One vector for many: what a set of prompt embeddings is represented by (CLIP-AD, arXiv 2311.00453, suppl. A).

Everything is numpy in float64 on the host: a set has some two hundred points, and clustering has no fixed shapes.
"""

import numpy as np
from absl import logging
from sklearn import cluster

METHODS = ('mean', 'pca', 'kde', 'mean_shift', 'dbscan')


def mean(points):
  """Returns the mean of points [n, E], [E]."""
  return points.mean(0)


def pca(points, *, textbook=False):
  """Returns the first principal direction of points [n, E], [E], turned to the side that their mean is on.

  As CLIP-AD's code has it, a point is a variable and a coordinate a sample: from each point the mean of its own
  coordinates is subtracted, which leaves a direction close to the mean of the points. `textbook` subtracts the mean
  point, which leaves the direction along which points differ.
  """
  centred = points - points.mean(0 if textbook else 1, keepdims=True)
  _, _, directions = np.linalg.svd(centred, full_matrices=False)
  first = directions[0]
  return first if first @ mean(points) >= 0 else -first


def kde(points, *, bandwidth=0.3):
  """Returns the mean of points [n, E] weighted by their Gaussian kernel density, [E].

  Densities in hundreds of dimensions leave float32, so weights are a softmax of their logarithms, which is the same.
  """
  norms = np.sum(points ** 2, axis=1)
  square = norms[:, None] + norms[None] - 2 * points @ points.T
  density = np.logaddexp.reduce(-square / (2 * bandwidth ** 2), axis=1)
  weights = np.exp(density - density.max())
  return weights @ points / weights.sum()


def mean_shift(points, *, bandwidth=2.0):
  """Returns the mean of the largest cluster that mean shift finds in points [n, E], [E].

  Unit vectors are at most 2 apart, so that with the default this is the mean of all.
  """
  return _largest(points, cluster.MeanShift(bandwidth=bandwidth).fit_predict(points))


def dbscan(points, *, eps=0.5, min_samples=15):
  """Returns the mean of the largest cluster that DBSCAN finds in points [n, E], [E], without the points it drops.

  Where no point has min_samples points within eps, itself included, there is no cluster: then it is the mean of all,
  and the log says so.
  """
  labels = cluster.DBSCAN(eps=eps, min_samples=min_samples).fit_predict(points)
  if labels.max() < 0:
    logging.warning('DBSCAN: none of %d points has %d within %g, so there is no cluster; taking the mean of all',
                    len(points), min_samples, eps)
    return mean(points)
  return _largest(points, labels)


def represent(points, keys, dataset):
  """Returns the L2-normalised representative of points [n, E], float32 [E].

  Args:
    points: any length; they are normalised first.
    keys: the config's `rvs`: method, one of METHODS, and what each of them takes.
    dataset: name of the data set that the points are of; DBSCAN's (eps, min_samples) are those of keys.dbscan under
      this name, or under 'default'.

  Raises:
    ValueError: an unknown method.
  """
  check(keys)
  points = _unit(np.asarray(points, np.float64))
  if keys.method == 'pca':
    found = pca(points, textbook=keys.pca_textbook)
  elif keys.method == 'kde':
    found = kde(points, bandwidth=keys.kde_bandwidth)
  elif keys.method == 'mean_shift':
    found = mean_shift(points, bandwidth=keys.shift_bandwidth)
  elif keys.method == 'dbscan':
    eps, min_samples = keys.dbscan.get(dataset.partition('/')[0], keys.dbscan.default)
    found = dbscan(points, eps=eps, min_samples=int(min_samples))
  else:
    found = mean(points)
  return _unit(found).astype(np.float32)


def pairs(texts, keys, dataset):
  """Returns [C, S, E] float32, the representatives of texts, S arrays [C, n, E], one a state; see represent."""
  return np.stack([np.stack([represent(points, keys, dataset) for points in state]) for state in texts], axis=1)


def check(keys):
  """Raises ValueError naming the first key of the config's `rvs` that is out of range."""
  if keys.method not in METHODS:
    raise ValueError(f'rvs.method {keys.method!r} is not one of {", ".join(METHODS)}')
  for key in ('kde_bandwidth', 'shift_bandwidth'):
    if not keys[key] > 0:
      raise ValueError(f'rvs.{key} {keys[key]} is not positive')
  for name, values in keys.dbscan.items():
    if len(values) != 2 or not values[0] > 0 or values[1] < 1:
      raise ValueError(f'rvs.dbscan.{name} {tuple(values)} is not (eps > 0, min_samples >= 1)')


def _largest(points, labels):
  """The mean of the points of the most frequent label, of equally frequent ones the lowest; -1 is none."""
  return points[labels == np.bincount(labels[labels >= 0]).argmax()].mean(0)


def _unit(x):
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
