"""Representative vectors (RVS): one vector for a set of prompt embeddings (CLIP-AD, arXiv 2311.00453, suppl. A).

All of it is numpy in float64 on the host: a set has some two hundred points, and clustering has no fixed shapes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from sklearn import cluster

from zsad_jax.methods import Config
from zsad_jax.methods.parts.bounds import POSITIVE, OneOf


class _Neighbourhood(NamedTuple):
  """A pair (eps, min_samples) of DBSCAN."""

  def allows(self, value: Any) -> bool:
    return len(value) == 2 and value[0] > 0 and value[1] >= 1

  def __str__(self) -> str:
    return '(eps, min_samples) with eps > 0 and min_samples >= 1'


BOUNDS = {
  'rvs.method': OneOf(('mean', 'pca', 'kde', 'mean_shift', 'dbscan')), 'rvs.kde_bandwidth': POSITIVE,
  'rvs.shift_bandwidth': POSITIVE, 'rvs.dbscan.default': _Neighbourhood(), 'rvs.dbscan.visa': _Neighbourhood(),
}


def mean(points: np.ndarray) -> np.ndarray:
  """Returns the mean of points [n, E], [E]."""
  return points.mean(0)


def pca(points: np.ndarray, *, textbook: bool = False) -> np.ndarray:
  """Returns the first principal direction of points [n, E], [E], turned to the side that their mean is on.

  In CLIP-AD's code a point is a variable and a coordinate a sample: from each point the mean of its own coordinates
  is subtracted, which leaves a direction close to the mean of the points. `textbook` subtracts the mean point, which
  leaves the direction along which points differ.
  """
  centred = points - points.mean(0 if textbook else 1, keepdims=True)
  _, _, directions = np.linalg.svd(centred, full_matrices=False)
  first = directions[0]
  return first if first @ mean(points) >= 0 else -first


def kde(points: np.ndarray, *, bandwidth: float = 0.3) -> np.ndarray:
  """Returns the mean of points [n, E] weighted by their Gaussian kernel density, [E].

  Densities in hundreds of dimensions overflow float32, so the weights are a softmax of their logarithms.
  """
  norms = np.sum(points ** 2, axis=1)
  square = norms[:, None] + norms[None] - 2 * points @ points.T
  density = np.logaddexp.reduce(-square / (2 * bandwidth ** 2), axis=1)
  weights = np.exp(density - density.max())
  return weights @ points / weights.sum()


def mean_shift(points: np.ndarray, *, bandwidth: float = 2.0) -> np.ndarray:
  """Returns the mean of the largest cluster that mean shift finds in points [n, E], [E].

  Unit vectors are at most 2 apart, so that with the default this is the mean of all.
  """
  return _largest(points, cluster.MeanShift(bandwidth=bandwidth).fit_predict(points))


def dbscan(points: np.ndarray, *, eps: float = 0.5, min_samples: int = 15) -> np.ndarray:
  """Returns the mean of the largest cluster that DBSCAN finds in points [n, E], [E], without its outliers.

  If no point has min_samples points within eps, itself included, there is no cluster: the mean of all is returned,
  and the log says so.
  """
  labels = cluster.DBSCAN(eps=eps, min_samples=min_samples).fit_predict(points)
  if labels.max() < 0:
    logging.warning('DBSCAN found no cluster: none of %d points has %d within %g; taking the mean of all', len(points),
                    min_samples, eps)
    return mean(points)
  return _largest(points, labels)


def represent(points: np.ndarray, keys: Config, dataset: str) -> np.ndarray:
  """Returns the L2-normalised representative of points [n, E], [E] float32.

  Args:
    points: L2-normalised first, in float64.
    keys: the config's `rvs`: the method and the keys of each.
    dataset: name of the data set of the points; DBSCAN's (eps, min_samples) are those of keys.dbscan under this
      name, or under 'default'.
  """
  points = _unit(np.asarray(points, np.float64))
  if keys.method == 'pca':
    vector = pca(points, textbook=keys.pca_textbook)
  elif keys.method == 'kde':
    vector = kde(points, bandwidth=keys.kde_bandwidth)
  elif keys.method == 'mean_shift':
    vector = mean_shift(points, bandwidth=keys.shift_bandwidth)
  elif keys.method == 'dbscan':
    eps, min_samples = keys.dbscan.get(dataset.partition('/')[0], keys.dbscan.default)
    vector = dbscan(points, eps=eps, min_samples=int(min_samples))
  else:
    vector = mean(points)
  return _unit(vector).astype(np.float32)


def represent_states(text_features: Sequence[np.ndarray], keys: Config, dataset: str) -> np.ndarray:
  """Returns the representatives [C, S, E] float32 of text features, one array [C, n, E] for each of S states.

  Args:
    text_features: normal, then abnormal.
    keys, dataset: see represent.
  """
  return np.stack([np.stack([represent(points, keys, dataset) for points in state]) for state in text_features],
                  axis=1)


def _largest(points, labels):
  """The mean of the points of the most frequent label, the lowest of equally frequent ones; -1 marks outliers."""
  return points[labels == np.bincount(labels[labels >= 0]).argmax()].mean(0)


def _unit(x):
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
