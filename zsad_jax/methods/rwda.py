"""RWDA: trained to tell sentences about something damaged from others, tested on images (arXiv 2308.11119).

Sentences that say "a" or "a damaged" between random words go through CLIP's text tower. A feed-forward network is
trained to tell the two apart from their embeddings, and at test time takes the class token of an image instead. Its
probability is added to that of two plain prompts and, with references, to the distance from the nearest one. No image
is trained on, and there are no anomaly maps. The authors released no code: what the paper leaves open is a key of
configs/rwda.py, whose comment says so.
"""

import itertools
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zsad_jax.clip.feature_spec import Features, FeatureSpec, Tap
from zsad_jax.methods import Batch, Clip, Config, Context, Metrics, Params, Prediction, Traits
from zsad_jax.methods.parts import prompts
from zsad_jax.methods.parts.bounds import AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE, OneOf, Range
from zsad_jax.ops import losses, maps, multicrop, neighbours, windows

# {0} to {9} are random words; {n} and {a} are the words of the two states.
TEMPLATES = ('{0} a {1} photo {2} of {3} {n} {4}', '{5} a {6} photo {7} of {8} {a} {9}')
ALPHABETS = {62: string.ascii_letters + string.digits, 36: string.ascii_lowercase + string.digits}
BELOW_ONE = Range(0, 1, open_high=True)

TRAITS = Traits(maps=False, nearest_neighbours=True,
                evaluation_keys=('fewshot', 'multicrop', 'positions', 'prompt', 'score', 'temperature'))
BOUNDS = {
  'score': OneOf(('sum', 'fnn', 'clip')), 'temperature': POSITIVE, 'prompt.article': OneOf(('an_object', 'a', 'auto')),
  'sentences.pairs': AT_LEAST_ONE, 'sentences.shortest': AT_LEAST_ONE, 'sentences.alphabet': OneOf(tuple(ALPHABETS)),
  'fnn.order': OneOf(tuple(itertools.permutations(('norm', 'relu', 'dropout')))), 'fnn.dropout': BELOW_ONE,
  'fnn.bn_momentum': Range(0, 1, open_low=True), 'fnn.bn_eps': POSITIVE, 'fnn.init': OneOf(('torch', 'lecun')),
  'fnn.input': OneOf(('raw', 'l2')), 'fewshot.s_img': OneOf(('cls', 'cls_minmax', 'winclip_map_max')),
  'optim.name': OneOf(('adamw',)), 'optim.lr': POSITIVE, 'optim.b1': BELOW_ONE, 'optim.b2': BELOW_ONE,
  'optim.eps': POSITIVE, 'optim.weight_decay': NOT_NEGATIVE, 'optim.schedule': OneOf(('step',)),
  'optim.every': AT_LEAST_ONE, 'optim.gamma': POSITIVE,
}


def feature_spec(clip: Clip, cfg: Config) -> FeatureSpec:
  """Returns the FeatureSpec: the class token, also of crops, and what WinCLIP+ reads if its map is s_img.

  Raises:
    ValueError: keys that do not go together.
  """
  _check_combinations(cfg)
  spec = FeatureSpec(clip.image_size, cls='ln_post_proj', positions=cfg.positions,
                     crops=multicrop.side(clip.image_size, cfg.multicrop))
  if not (cfg.fewshot.shots and cfg.fewshot.s_img == 'winclip_map_max'):
    return spec
  return spec._replace(windows=(2, 3), taps=(Tap('clip', clip.arch.vision.layers),), read='none')


def init(rng: jax.Array, clip: Clip, cfg: Config) -> Params:
  """Returns the network, {'linear1': {'kernel': [E, hidden[0]], 'bias'}, 'norm1': {'scale', 'bias'}, ...}.

  'statistics' holds the running moments {'norm1': {'mean', 'var'}, ...}. With score 'clip' the result is {}. Linear
  layers start as torch's, uniform within 1 / sqrt(fan_in), biases too.
  """
  if cfg.score == 'clip':
    return {}
  widths = (clip.arch.embed_dim, *cfg.fnn.hidden, 1)
  shapes = zip(jax.random.split(rng, len(widths) - 1), itertools.pairwise(widths))
  params = {f'linear{i}': _init_linear(key, *shape, cfg.fnn.init) for i, (key, shape) in enumerate(shapes, 1)}
  norms = {f'norm{i}': width for i, width in enumerate(cfg.fnn.hidden, 1)}
  params |= {name: {'scale': jnp.ones(width), 'bias': jnp.zeros(width)} for name, width in norms.items()}
  params['statistics'] = {name: {'mean': jnp.zeros(width), 'var': jnp.ones(width)} for name, width in norms.items()}
  return params


def training_texts(seed: int, *, cfg: Config) -> Sequence[tuple[str, ...]]:
  """Returns sentences.pairs pairs of sentences (normal, anomalous), each of five random words of its own (sec. 3.2)."""
  words = _random_words(np.random.default_rng(seed), 10 * cfg.sentences.pairs, cfg.sentences)
  states = {'n': cfg.words.normal, 'a': cfg.words.anomalous}
  return [tuple(template.format(*words[start:start + 10], **states) for template in TEMPLATES)
          for start in range(0, len(words), 10)]


def train(text_features: jax.Array, order: jax.Array, rng: jax.Array, *, clip: Clip,
          cfg: Config) -> tuple[Params, Metrics]:
  """Returns the trained network and its learning curve {metric: [epochs]} (sec. 3.3, 4.2).

  Binary cross-entropy in batches of cfg.train.batch pairs, under AdamW. The last batch of an epoch is padded, and its
  padding enters neither the loss nor the batch norm. The curve has each epoch's mean over its steps of the loss, the
  accuracy, the norm of the inputs and that of the gradient.

  Args:
    text_features: [n, 2, E] of the training texts; the first of a pair is normal.
    order: [epochs, n] int32.
    rng: of `init` and, with the number of the step folded in, of its dropout.
    clip, cfg: static.
  """
  params = init(rng, clip, cfg)
  if not params:
    return {}, {}
  statistics = params.pop('statistics')
  rows, valid = _batches(order, cfg.train.batch)
  optimizer = _optimizer(cfg.optim, len(rows) // len(order))

  def step(state, batch):
    (params, statistics, moments), (number, rows, valid) = state, batch
    (loss, (metrics, statistics)), grads = jax.value_and_grad(_loss, has_aux=True)(
      params, statistics, text_features[rows], valid, jax.random.fold_in(rng, number), cfg)
    updates, moments = optimizer.update(grads, moments, params)
    metrics = {**metrics, 'loss': loss, 'grad_norm': optax.tree.norm(grads)}
    return (optax.apply_updates(params, updates), statistics, moments), metrics

  start = params, statistics, optimizer.init(params)
  (params, statistics, _), metrics = jax.lax.scan(step, start, (jnp.arange(len(rows)), rows, valid))
  curve = {name: jnp.mean(values.reshape(len(order), -1), axis=1) for name, values in metrics.items()}
  return {**params, 'statistics': statistics}, curve


def encode_text(params: Params, clip_params: Any, names: Sequence[str], *, clip: Clip, cfg: Config) -> jax.Array:
  """Returns the features of both guide prompts [C, 2, E]; one pair for all names if prompt.class_word is set."""
  del params
  names = (cfg.prompt.class_word,) if cfg.prompt.class_word else names
  spoken = [name if cfg.prompt.raw_names else prompts.to_words(name) for name in names]
  return prompts.encode(clip, clip_params, [_guide_prompts(name, cfg) for name in spoken])


def build_memory_bank(clip_params: Any, reference_features: Features, *, clip: Clip, cfg: Config) -> Any:
  """Returns the references' class tokens [C, K, E], or their windows and patches if those are compared."""
  del clip_params, clip
  return windows.pooled(reference_features) if cfg.fewshot.s_img == 'winclip_map_max' else reference_features.cls


def predict(params: Params, context: Context, features: Features, batch: Batch, *, clip: Clip,
            cfg: Config) -> Prediction:
  """Returns scores without maps: s_pr + s_FNN, the probabilities of the guide prompts and of the network (sec. 4.2).

  With score 'fnn' it is the second alone, with 'clip' the first. Each is averaged over crops by itself. With
  references extras['distance'] [B] is s_img, half the cosine distance to the nearest of them or the maximum of
  WinCLIP+'s map of them; `postprocess_category` adds it.

  Raises:
    ValueError: fewshot.shots without a memory bank.
  """
  pair = maps.of_category(context.text_features, batch['category'])
  score: Any = 0
  if cfg.score != 'fnn':
    score += multicrop.score(features, pair, cfg.temperature, cfg.multicrop)
  if cfg.score != 'clip':
    score += multicrop.through(features, cfg.multicrop, lambda x: _inputs(x, cfg),
                               lambda x: _logits(params, _inputs(x, cfg), cfg), jax.nn.sigmoid)
  if not cfg.fewshot.shots:
    return Prediction(score)
  bank = context.memory_bank
  if bank is None:
    raise ValueError(f'fewshot.shots={cfg.fewshot.shots} needs references, but context.memory_bank is None')
  if cfg.fewshot.s_img == 'winclip_map_max':
    distance = windows.distances(bank, features, batch['category'], clip.grid, mib=cfg.machine.knn_mib).max((1, 2))
  else:
    nearest = lambda x: neighbours.nearest_by_category(x, bank, batch['category'])[0][..., 0] / 2
    distance = multicrop.through(features, cfg.multicrop, maps.normalize, nearest, lambda x: x)
  return Prediction(score, extras={'distance': distance})


def single_image_overrides(cfg: Config) -> Mapping[str, Any]:
  """Returns the keys that leave distances as they are, not stretched over a category."""
  return {'fewshot.s_img': 'cls'} if cfg.fewshot.shots and cfg.fewshot.s_img == 'cls_minmax' else {}


def postprocess_category(prediction: Prediction, *, cfg: Config) -> Prediction:
  """Returns the scores with s_img added; 'cls_minmax' brings it to 0..1 over the category first."""
  if 'distance' not in prediction.extras:
    return prediction
  distance = prediction.extras['distance']
  if cfg.fewshot.s_img == 'cls_minmax':
    distance = maps.stretch(distance)
  return Prediction(prediction.score + distance)


def hidden_layers(params: Params, embeddings: Any, *, cfg: Config) -> Mapping[str, jax.Array]:
  """Returns {'layer 1': [n, W], ...} of embeddings [n, E], for t-SNE (sec. 4.5); {} if nothing is trained."""
  if not params:
    return {}
  _, layers = _forward(params, _inputs(embeddings, cfg), cfg, *_trained(params))
  return {f'layer {i}': values for i, values in enumerate(layers, 1)}


def _check_combinations(cfg: Config):
  if cfg.fewshot.shots and cfg.score != 'sum':
    raise ValueError(f"fewshot.shots={cfg.fewshot.shots} goes with score='sum' alone, not with {cfg.score!r}; set "
                     "fewshot.shots=0 or score='sum'")
  if not all(width >= 1 for width in cfg.fnn.hidden):
    raise ValueError(f'fnn.hidden={tuple(cfg.fnn.hidden)} is not allowed; every width must be at least 1')
  if cfg.sentences.shortest > cfg.sentences.longest:
    raise ValueError(f'sentences.shortest={cfg.sentences.shortest} must be at most sentences.longest, '
                     f'{cfg.sentences.longest}')
  for key, word in cfg.words.items():
    if not word.strip() or set(word) & set('{}'):
      raise ValueError(f'words.{key}={word!r} is not allowed; it must be text without braces')
  if cfg.words.normal == cfg.words.anomalous:
    raise ValueError(f'words.normal and words.anomalous are both {cfg.words.normal!r}; they must differ')


def _random_words(rng: np.random.Generator, count: int, keys: Config) -> list[str]:
  """`count` words of keys.shortest to keys.longest characters, all lengths equally likely, of keys.alphabet."""
  letters = np.array(list(ALPHABETS[keys.alphabet]))
  lengths = rng.integers(keys.shortest, keys.longest + 1, count)
  characters = letters[rng.integers(len(letters), size=(count, keys.longest))]
  return [''.join(row[:length]) for row, length in zip(characters, lengths)]


def _guide_prompts(name: str, cfg: Config) -> list[str]:
  """The guide prompts of an object (sec. 3.1): "a photo of [n] object" and "a photo of [a] object"."""
  vowel = name[:1].lower() in tuple('aeiou')
  an = {'an_object': name == 'object', 'a': False, 'auto': vowel}[cfg.prompt.article]
  words = 'an' if an and cfg.words.normal == 'a' else cfg.words.normal, cfg.words.anomalous
  return [f'a photo of {word} {name}' for word in words]


def _batches(order: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
  """Rows and whether they are valid, [steps, size] each, of order [epochs, n]; each epoch's last batch is padded."""
  epochs, count = order.shape
  padding = -count % size
  rows = jnp.pad(order, ((0, 0), (0, padding))).reshape(-1, size)
  valid = jnp.tile(jnp.arange(count + padding) < count, epochs).reshape(-1, size)
  return rows, valid


def _optimizer(optim: Config, per_epoch: int) -> optax.GradientTransformation:
  """AdamW, whose learning rate is multiplied by optim.gamma after every optim.every epochs of so many steps."""
  rate = lambda step: optim.lr * optim.gamma ** (step // per_epoch // optim.every)
  return optax.adamw(rate, optim.b1, optim.b2, optim.eps, weight_decay=optim.weight_decay)


def _loss(params: Params, statistics: Params, pairs: jax.Array, valid: jax.Array, rng: jax.Array,
          cfg: Config) -> tuple[jax.Array, tuple[Metrics, Params]]:
  """Binary cross-entropy of pairs [B, 2, E]; metrics and the running moments after this batch."""
  inputs = _inputs(pairs.astype(jnp.float32), cfg).reshape(-1, pairs.shape[-1])
  label, valid = jnp.tile(jnp.arange(2), len(pairs)), jnp.repeat(valid, 2)
  count, momentum, updated = jnp.sum(valid), cfg.fnn.bn_momentum, {}
  weights = (valid / jnp.maximum(count, 1))[:, None]

  def moments(name, x):
    mean = jnp.sum(x * weights, axis=0)
    var = jnp.sum(jnp.square(x - mean[None]) * weights, axis=0)
    unbiased = var * count / jnp.maximum(count - 1, 1)  # what torch keeps; it normalises by the biased one
    updated[name] = {'mean': (1 - momentum) * statistics[name]['mean'] + momentum * mean,
                     'var': (1 - momentum) * statistics[name]['var'] + momentum * unbiased}
    return mean, var

  def dropout(layer, x):
    keep = jax.random.bernoulli(jax.random.fold_in(rng, layer), 1 - cfg.fnn.dropout, x.shape)
    return jnp.where(keep, x / (1 - cfg.fnn.dropout), 0)

  logit, _ = _forward(params, inputs, cfg, moments, dropout)
  loss = losses.mean_valid(jax.nn.softplus(jnp.where(label == 1, -logit, logit)), valid)
  correct = (logit > 0) == (label == 1)
  metrics = {'accuracy': losses.mean_valid(correct.astype(jnp.float32), valid),
             'input_norm': losses.mean_valid(jnp.linalg.norm(inputs, axis=-1), valid)}
  return loss, (metrics, updated)


def _logits(params: Params, x: jax.Array, cfg: Config) -> jax.Array:
  """The trained network's logits [...] of embeddings [..., E]; no row depends on another."""
  logit, _ = _forward(params, x.reshape(-1, x.shape[-1]), cfg, *_trained(params))
  return logit.reshape(x.shape[:-1])


def _trained(params: Params) -> tuple[Callable, Callable]:
  """Moments and dropout of `_forward` after training: the running moments, and none."""
  moments = lambda name, _: (params['statistics'][name]['mean'], params['statistics'][name]['var'])
  return moments, lambda _, x: x


def _forward(params: Params, x: jax.Array, cfg: Config, moments: Callable,
             dropout: Callable) -> tuple[jax.Array, list[jax.Array]]:
  """Logits [n] of x [n, E], and the output [n, W] of every hidden layer.

  moments(name, x) returns the mean and the variance to normalise by, dropout(layer, x) its x after dropout.
  """
  count, hidden = len(cfg.fnn.hidden), []
  linear = lambda layer, x: jnp.matmul(x, layer['kernel'], precision='highest') + layer['bias'][None]
  for i in range(1, count + 1):
    x = linear(params[f'linear{i}'], x)
    for part in cfg.fnn.order:
      if part == 'norm':
        mean, var = moments(f'norm{i}', x)
        scale = jax.lax.rsqrt(var + cfg.fnn.bn_eps) * params[f'norm{i}']['scale']
        x = (x - mean[None]) * scale[None] + params[f'norm{i}']['bias'][None]
      else:
        x = jax.nn.relu(x) if part == 'relu' else dropout(i, x)
    hidden.append(x)
  return linear(params[f'linear{count + 1}'], x)[:, 0], hidden


def _inputs(x: jax.Array, cfg: Config) -> jax.Array:
  """The network's inputs from embeddings of texts or of images."""
  return maps.normalize(x) if cfg.fnn.input == 'l2' else x


def _init_linear(rng: jax.Array, fan_in: int, fan_out: int, kind: str) -> Params:
  kernel, bias = jax.random.split(rng)
  if kind == 'lecun':
    return {'kernel': jax.nn.initializers.lecun_normal()(kernel, (fan_in, fan_out)), 'bias': jnp.zeros(fan_out)}
  uniform = lambda key, *shape: jax.random.uniform(key, shape, minval=-fan_in ** -0.5, maxval=fan_in ** -0.5)
  return {'kernel': uniform(kernel, fan_in, fan_out), 'bias': uniform(bias, fan_out)}
