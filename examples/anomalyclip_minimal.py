"""AnomalyCLIP (arXiv 2310.18961) on one screen: features, training, evaluation, one picture.

  python examples/anomalyclip_minimal.py

Runs in about half a minute on a CPU, with the embedded tiny CLIP and drawn images.
"""

import functools
import sys
from pathlib import Path

import jax
import ml_collections
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # the checkout, if the package is not installed

from zsad_jax import data, methods
from zsad_jax.clip import encoder, model, preprocess
from zsad_jax.configs import anomalyclip
from zsad_jax.engine import evaluate, features, optimizers, runtime, train
from zsad_jax.report import heatmap, tables


def main(epochs: int = 15, root: str = 'data', picture: str = 'anomalyclip_minimal.png') -> evaluate.Result:
  cfg = ml_collections.FrozenConfigDict(anomalyclip.get_config('demo'))
  method, clip = methods.get(cfg.method), model.load(cfg.clip, image_size=cfg.image_size)

  # 1. Features: every image passes the frozen image tower once.
  encode = encoder.encode(clip, method.feature_spec(clip, cfg))
  transform = preprocess.image_transform(clip.arch, clip.image_size)

  def encoded(dataset):
    batches = data.batches(dataset, transform=transform, mask_size=clip.image_size, batch_size=len(dataset))
    values, batch = next(features.encode_batches(batches, encode, clip.params))
    arrays = values, {key: rows for key, rows in batch.items() if key not in ('image', 'id')}
    return lambda indices: jax.tree.map(lambda rows: rows[indices], arrays)

  # 2. Training: two prompts and the tokens of deeper text layers, on the auxiliary data set.
  aux = data.load('synthetic_aux', root=root)
  params = train.fit(
    functools.partial(method.loss, clip=clip, cfg=cfg), optimizers.make_tx(cfg.optim),
    method.init(jax.random.key(cfg.seed), clip, cfg), methods.Context(clip.params),
    train.Source(encoded(aux), len(aux)), train.Recipe(epochs, cfg.train.batch, cfg.seed))

  # 3. Evaluation: categories that were never trained on; exact metrics, category by category.
  target = data.load('synthetic_target', root=root)
  read = encoded(target)
  context = methods.Context(clip.params, method.encode_text(params, clip.params, (), clip=clip, cfg=cfg))
  predict = functools.partial(jax.jit(functools.partial(method.predict, clip=clip, cfg=cfg)), params, context)
  result = evaluate.run(predict, read, target, batch=20, place=runtime.place())
  print(tables.text(result.rows, result.summary))

  # 4. One picture: the anomaly map over the highest-scoring anomalous image.
  index = int(np.argmax(np.where(target.labels, result.scores, -np.inf)))
  anomaly_map = np.asarray(predict(*read(np.array([index]))).map[0])
  image = target[index]['image'].resize((448, 448))
  Image.fromarray(heatmap.overlay(image, anomaly_map, heatmap.run_scale([anomaly_map]))).save(picture)
  print(f'picture: {picture}')
  return result


if __name__ == '__main__':
  main()
