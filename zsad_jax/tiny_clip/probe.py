"""Zero-shot probe of the tiny CLIP on categories that it is not trained on."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image
from sklearn.metrics import roc_auc_score

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import FeatureSpec, Tap
from zsad_jax.ops import maps
from zsad_jax.tiny_clip import losses

TEMPLATES = ('a photo of a {}.', 'a close-up photo of the {}.', '{}.')


class Encoders(NamedTuple):
  """Jitted encoders of the probe.

  Attributes:
    images: [(FeatureSpec, f(params, images) -> Features)], for CLIP's own and the V-V stream.
    texts: f(params, ids) -> text features [B, E].
  """
  images: Sequence[tuple[FeatureSpec, Callable[..., Any]]]
  texts: Callable[..., jax.Array]


def encoders(clip: clip_lib.Clip, side_spec: FeatureSpec) -> Encoders:
  """Returns the Encoders of all probes; without jit, a tower would be compiled again at every call.

  Args:
    clip: a CLIP without weights.
    side_spec: spec of the V-V stream.
  """
  own_spec = FeatureSpec(clip.image_size, 'ln_post_proj', (Tap('clip', clip.arch.vision.layers),))
  jitted = lambda spec: jax.jit(functools.partial(clip.image, spec=spec))
  texts = jax.jit(lambda params, ids: clip.text(params, clip.embed(params, ids), clip.eot(ids)))
  return Encoders([(spec, jitted(spec)) for spec in (own_spec, side_spec)], texts)


def measure(clip: clip_lib.Clip, encode: Encoders, params: Any, chunk: Any, nouns: Sequence[str],
          tokenize: Callable[[Sequence[str]], np.ndarray]) -> dict[str, float]:
  """Returns zero-shot AUROCs in percent, means over held-out categories.

  Images are scored by the class token, pixels by the last tap of each stream. The prompts are 'object' or the noun,
  against the same with 'damaged', in the TEMPLATES; nothing is tuned.

  Args:
    clip: a CLIP without weights.
    encode: the result of `encoders`.
    params: CLIP's parameter tree.
    chunk: scenes of the held-out categories, a Chunk of the data module.
    nouns: names of the categories.
    tokenize: converts texts to ids [B, L].
  """
  result = {}
  images = chunk.image.reshape(-1, *chunk.image.shape[2:])
  encode_texts = functools.partial(encode.texts, params)
  for spec, encode_images in encode.images:
    parts = np.array_split(images, max(len(images) // 48, 1))
    features = [encode_images(params, losses.normalise(part, clip)) for part in parts]
    cls = np.concatenate([f.cls for f in features])
    taps = np.concatenate([f.taps[spec.taps[-1].name] for f in features])
    for prompt in ('object', 'noun'):
      words = nouns if prompt == 'noun' else None
      image, patch = _scores(encode_texts, cls, taps, chunk.category, words, tokenize)
      name = f'{spec.taps[-1].stream}_{prompt}'
      result.update({f'image_{name}': _image_auroc(image, chunk), f'pixel_{name}': _pixel_auroc(patch, chunk)})
  return result


def _scores(encode_texts, cls, taps, category, nouns, tokenize):
  """Returns the cosine with the anomalous minus the normal text, of images [n, 2] and of patches [n, 2, G, G]."""
  category = np.repeat(category, 2)
  directions = []
  for noun in nouns or ('object',):
    states = []
    for state in ('{}', 'damaged {}'):
      text = maps.normalize(encode_texts(tokenize([t.format(state.format(noun)) for t in TEMPLATES])))
      states.append(np.asarray(maps.normalize(text.mean(0))))
    directions.append(states[1] - states[0])
  direction = np.stack(directions)[category if nouns else np.zeros_like(category)]
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  grid = round(taps.shape[1] ** .5)
  image = (unit(cls) * direction).sum(-1).reshape(-1, 2)
  return image, np.einsum('bne,be->bn', unit(taps), direction).reshape(-1, 2, grid, grid)


def _image_auroc(scores, chunk) -> float:
  groups = [scores[chunk.category == category] for category in np.unique(chunk.category)]
  return float(np.mean([100 * roc_auc_score(np.tile([0, 1], len(group)), group.reshape(-1)) for group in groups]))


def _pixel_auroc(scores, chunk) -> float:
  """Returns the mean AUROC over categories of patch scores that are resized bilinearly, normal images included."""
  side, aurocs = chunk.mask.shape[1], []
  resize = lambda m: np.asarray(Image.fromarray(m.astype(np.float32)).resize((side, side), Image.Resampling.BILINEAR))
  for category in np.unique(chunk.category):
    rows = np.flatnonzero(chunk.category == category)
    anomaly_maps = np.stack([[resize(m) for m in scores[row]] for row in rows])
    ground_truth = np.stack([np.zeros_like(chunk.mask[rows]), chunk.mask[rows]], 1)
    aurocs.append(100 * roc_auc_score(ground_truth.reshape(-1), anomaly_maps.reshape(-1)))
  return float(np.mean(aurocs))
