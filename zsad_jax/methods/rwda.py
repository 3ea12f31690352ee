"""RWDA: a small network learns from sentences of random words what is damaged, and is then shown images.

Sentences that say "a" or "a damaged" between random words go through CLIP's text tower; a feed-forward network learns
to tell the two from their embeddings, and at test time takes the class token of an image in their place. Its
probability is added to that of two plain prompts and, with references, to the distance from the nearest one. No image
is trained on and there are no maps (arXiv 2308.11119). The authors released no code: what the paper leaves open is a
key of the config, whose comment says so.
"""

import itertools
import string

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.clip.feature_spec import FeatureSpec, Tap
from zsad_jax.methods.parts import prompts
from zsad_jax.ops import losses, maps, multicrop, neighbours, windows

# What stands between random words, written {0} to {4} and {5} to {9}; {n} and {a} are the words of the two states.
TEMPLATES = ('{0} a {1} photo {2} of {3} {n} {4}', '{5} a {6} photo {7} of {8} {a} {9}')
ALPHABETS = {62: string.ascii_letters + string.digits, 36: string.ascii_lowercase + string.digits}
SCORES = ('sum', 'fnn', 'clip')
ARTICLES = ('an_object', 'a', 'auto')
PARTS = ('norm', 'relu', 'dropout')
INITS = ('torch', 'lecun')
INPUTS = ('raw', 'l2')
DISTANCES = ('cls', 'cls_minmax', 'winclip_map_max')
MAPS = False
EVALUATION_KEYS = ('fewshot', 'multicrop', 'positions', 'prompt', 'score', 'temperature')


def spec(clip, cfg):
  """Returns the FeatureSpec: the class token, also of crops, and what WinCLIP+ reads where its map is s_img."""
  check(cfg)
  read = FeatureSpec(clip.image_size, cls='ln_post_proj', positions=cfg.positions,
              crops=multicrop.side(clip.image_size, cfg.multicrop))
  if not (cfg.fewshot.shots and cfg.fewshot.s_img == 'winclip_map_max'):
    return read
  return read._replace(windows=(2, 3), taps=(Tap('clip', clip.arch.vision.layers),), read='none')


def init(rng, clip, cfg):
  """Returns the network, {'linear1': {'kernel': [E, hidden[0]], 'bias'}, 'norm1': {'scale', 'bias'}, ...}.

  And 'statistics', {'norm1': {'mean', 'var'}, ...}, which batches move and no gradient does. {} with score 'clip'.
  Linear layers start as torch's, uniform within 1 / sqrt(fan_in), biases too.
  """
  check(cfg)
  if cfg.score == 'clip':
    return {}
  widths = (clip.arch.embed_dim, *cfg.fnn.hidden, 1)
  learnable = {f'linear{i}': _linear(key, *shape, cfg.fnn.init) for i, (key, shape) in enumerate(
    zip(jax.random.split(rng, len(widths) - 1), itertools.pairwise(widths)), 1)}
  norms = {f'norm{i}': width for i, width in enumerate(cfg.fnn.hidden, 1)}
  learnable |= {name: {'scale': jnp.ones(width), 'bias': jnp.zeros(width)} for name, width in norms.items()}
  learnable['statistics'] = {name: {'mean': jnp.zeros(width), 'var': jnp.ones(width)} for name, width in norms.items()}
  return learnable


def examples(seed, *, cfg):
  """Returns examples.pairs pairs of sentences (normal, anomalous), each with five random words of its own."""
  check(cfg)
  words = random_words(np.random.default_rng(seed), 10 * cfg.examples.pairs, cfg.examples)
  said = {'n': cfg.words.normal, 'a': cfg.words.anomalous}
  return [tuple(template.format(*words[at:at + 10], **said) for template in TEMPLATES)
          for at in range(0, len(words), 10)]


def random_words(rng, count, keys):
  """Returns `count` words: keys.shortest to keys.longest characters, all lengths alike, of keys.alphabet."""
  letters = np.array(list(ALPHABETS[keys.alphabet]))
  lengths = rng.integers(keys.shortest, keys.longest + 1, count)
  drawn = letters[rng.integers(len(letters), size=(count, keys.longest))]
  return [''.join(row[:length]) for row, length in zip(drawn, lengths)]


def loss(learnable, frozen, features, batch, rng, *, clip, cfg):
  """Returns the binary cross-entropy of text embeddings [B, 2, E], of which the first of a pair is normal.

  Metrics are the accuracy, the inputs' mean norm and, as 'statistics', where this batch has moved the running mean
  and variance. Rows that are padding enter neither of them.
  """
  del frozen, clip
  inputs = _inputs(features.astype(jnp.float32), cfg).reshape(-1, features.shape[-1])
  label, valid = jnp.tile(jnp.arange(2), len(features)), jnp.repeat(batch['valid'], 2)
  statistics, momentum = {}, cfg.fnn.bn_momentum

  def normalise(name, x):
    weights = (valid / jnp.maximum(jnp.sum(valid), 1))[:, None]
    count = jnp.sum(valid)
    mean = jnp.sum(x * weights, axis=0)
    var = jnp.sum(jnp.square(x - mean[None]) * weights, axis=0)
    unbiased = var * count / jnp.maximum(count - 1, 1)
    before = learnable['statistics'][name]
    statistics[name] = jax.lax.stop_gradient({
      'mean': (1 - momentum) * before['mean'] + momentum * mean,
      'var': (1 - momentum) * before['var'] + momentum * unbiased})
    return mean, var

  def drop(layer, x):
    keep = jax.random.bernoulli(jax.random.fold_in(rng, layer), 1 - cfg.fnn.dropout, x.shape)
    return jnp.where(keep, x / (1 - cfg.fnn.dropout), 0)

  logit, _ = _network(learnable, inputs, cfg, normalise, drop)
  value = losses.mean_valid(jax.nn.softplus(jnp.where(label == 1, -logit, logit)), valid)
  right = (logit > 0) == (label == 1)
  return value, {
    'accuracy': losses.mean_valid(right.astype(jnp.float32), valid),
    'input_norm': losses.mean_valid(jnp.linalg.norm(inputs, axis=-1), valid), 'statistics': statistics}


def bank(learnable, frozen, categories, *, clip, cfg):
  """Returns the features of both guide prompts [C, 2, E]; one pair for all where prompt.class_word is set."""
  del learnable
  names = (cfg.prompt.class_word,) if cfg.prompt.class_word else categories
  said = [name if cfg.prompt.raw_names else prompts.spoken(name) for name in names]
  return prompts.encode(clip, frozen, [guides(name, cfg) for name in said])


def guides(name, cfg):
  """Returns the guide prompts of an object, normal and anomalous: "a photo of [n] object", "a photo of [a] object"."""
  vowel = name[:1].lower() in tuple('aeiou')
  an = {'an_object': name == 'object', 'a': False, 'auto': vowel}[cfg.prompt.article]
  words = 'an' if an and cfg.words.normal == 'a' else cfg.words.normal, cfg.words.anomalous
  return [f'a photo of {word} {name}' for word in words]


def memory(frozen, reference_features, *, clip, cfg):
  """Returns the references' class tokens [C, K, E], or their windows and patches where those are compared."""
  del frozen, clip
  return windows.pooled(reference_features) if cfg.fewshot.s_img == 'winclip_map_max' else reference_features.cls


def predict(learnable, frozen, bank, memory, features, batch, *, clip, cfg):
  """Returns score [B], and no map: s_pr + s_FNN, the probabilities of the guide prompts and of the network.

  Only the second with score 'fnn', only the first with 'clip'. Each is averaged over crops by itself
  (multicrop.through). With references 'distance' [B] is s_img, half the cosine distance to the nearest of them or the
  maximum of WinCLIP+'s map of them, which finish adds.
  """
  del frozen
  pair, score = maps.of_category(bank, batch['category']), 0
  if cfg.score != 'fnn':
    score += multicrop.score(features, pair, cfg.temperature, cfg.multicrop)
  if cfg.score != 'clip':
    score += multicrop.through(features, cfg.multicrop, lambda x: _inputs(x, cfg),
                               lambda x: network(learnable, _inputs(x, cfg), cfg), jax.nn.sigmoid)
  if not cfg.fewshot.shots:
    return {'score': score}
  if memory is None:
    raise ValueError(f'fewshot.shots is {cfg.fewshot.shots}, but predict was given no memory of references')
  if cfg.fewshot.s_img == 'winclip_map_max':
    distance = windows.distances(memory, features, batch['category'], clip.grid, mib=cfg.machine.knn_mib)
    return {'score': score, 'distance': distance.max((1, 2))}
  nearest = lambda x: neighbours.nearest_by_category(x, memory, batch['category'])[0][..., 0] / 2
  return {'score': score, 'distance': multicrop.through(features, cfg.multicrop, maps.normalize, nearest, lambda x: x)}


def alone(cfg):
  """Returns the change of the config that scores an image by itself: distances that are not stretched."""
  return {'fewshot.s_img': 'cls'} if cfg.fewshot.shots and cfg.fewshot.s_img == 'cls_minmax' else {}


def finish(outputs, *, cfg):
  """Returns outputs with s_img added to the score; 'cls_minmax' brings it to 0..1 over the category first."""
  if 'distance' not in outputs:
    return outputs
  distance = outputs['distance']
  if cfg.fewshot.s_img == 'cls_minmax':
    distance = maps.stretch(distance)
  return {'score': outputs['score'] + distance}


def network(learnable, x, cfg):
  """Returns the trained network's logits [...] of embeddings [..., E]; no row depends on another."""
  logit, _ = _network(learnable, x.reshape(-1, x.shape[-1]), cfg, *_trained(learnable))
  return logit.reshape(x.shape[:-1])


def hidden(learnable, x, *, cfg):
  """Returns what every hidden layer of the trained network makes of embeddings x [n, E], as (name, [n, W]) each.

  () where nothing is learned. The paper's t-SNE pictures are of these (sec. 4.5).
  """
  if not learnable:
    return ()
  _, found = _network(learnable, _inputs(x, cfg), cfg, *_trained(learnable))
  return tuple((f'layer {i}', values) for i, values in enumerate(found, 1))


def _trained(learnable):
  """Moments and dropout of _network after training: running statistics, and none."""
  statistics = lambda name, _: (learnable['statistics'][name]['mean'], learnable['statistics'][name]['var'])
  return statistics, lambda _, x: x


def _network(learnable, x, cfg, moments, drop):
  """Logits [n] of x [n, E] and what each hidden layer gave [n, W].

  moments(name, x) are mean and variance to normalise by, drop(layer, x) is dropout.
  """
  layers, found = len(cfg.fnn.hidden), []
  affine = lambda layer, x: jnp.matmul(x, layer['kernel'], precision='highest') + layer['bias'][None]
  for i in range(1, layers + 1):
    x = affine(learnable[f'linear{i}'], x)
    for part in cfg.fnn.order:
      if part == 'norm':
        mean, var = moments(f'norm{i}', x)
        scale = jax.lax.rsqrt(var + cfg.fnn.bn_eps) * learnable[f'norm{i}']['scale']
        x = (x - mean[None]) * scale[None] + learnable[f'norm{i}']['bias'][None]
      else:
        x = jax.nn.relu(x) if part == 'relu' else drop(i, x)
    found.append(x)
  return affine(learnable[f'linear{layers + 1}'], x)[:, 0], found


def _inputs(x, cfg):
  """What the network is given of embeddings, of texts and of images alike."""
  return maps.normalize(x) if cfg.fnn.input == 'l2' else x


def _linear(rng, fan_in, fan_out, kind):
  kernel, bias = jax.random.split(rng)
  if kind == 'lecun':
    return {'kernel': jax.nn.initializers.lecun_normal()(kernel, (fan_in, fan_out)), 'bias': jnp.zeros(fan_out)}
  draw = lambda key, *shape: jax.random.uniform(key, shape, minval=-fan_in ** -0.5, maxval=fan_in ** -0.5)
  return {'kernel': draw(kernel, fan_in, fan_out), 'bias': draw(bias, fan_out)}


def check(cfg):
  """Raises ValueError naming the first config key that is out of range."""
  few, fnn, made = cfg.fewshot, cfg.fnn, cfg.examples
  for key, value, known in (('score', cfg.score, SCORES), ('prompt.article', cfg.prompt.article, ARTICLES),
                            ('fewshot.s_img', few.s_img, DISTANCES), ('fnn.init', fnn.init, INITS),
                            ('fnn.input', fnn.input, INPUTS), ('examples.alphabet', made.alphabet, tuple(ALPHABETS))):
    if value not in known:
      raise ValueError(f'{key} {value!r} is not one of {", ".join(map(str, known))}')
  if few.shots < 0:
    raise ValueError(f'fewshot.shots {few.shots} is negative; 0 is zero-shot')
  if few.shots and cfg.score != 'sum':
    raise ValueError(f"fewshot.shots is {few.shots}, but score {cfg.score!r} has no part of references; take 'sum'")
  if sorted(fnn.order) != sorted(PARTS):
    raise ValueError(f'fnn.order {tuple(fnn.order)} does not name each of {", ".join(PARTS)} once')
  if not all(width >= 1 for width in fnn.hidden):
    raise ValueError(f'fnn.hidden {tuple(fnn.hidden)} has a width below 1')
  for key, value, fits, what in (
      ('temperature', cfg.temperature, cfg.temperature > 0, 'positive'),
      ('seeds', cfg.seeds, cfg.seeds >= 1, '1 or more'),
      ('machine.knn_mib', cfg.machine.knn_mib, cfg.machine.knn_mib > 0, 'positive'),
      ('examples.pairs', made.pairs, made.pairs >= 1, '1 or more'),
      ('examples.shortest', made.shortest, 1 <= made.shortest <= made.longest, f'in 1..{made.longest}, the longest'),
      ('fnn.dropout', fnn.dropout, 0 <= fnn.dropout < 1, 'in [0, 1)'),
      ('fnn.bn_momentum', fnn.bn_momentum, 0 < fnn.bn_momentum <= 1, 'in (0, 1]'),
      ('fnn.bn_eps', fnn.bn_eps, fnn.bn_eps > 0, 'positive')):
    if not fits:
      raise ValueError(f'{key} {value} is not {what}')
  for word in (cfg.words.normal, cfg.words.anomalous):
    if not word.strip() or set(word) & set('{}'):
      raise ValueError(f'words.normal and words.anomalous must be text without braces, not {word!r}')
  if cfg.words.normal == cfg.words.anomalous:
    raise ValueError(f'words.normal and words.anomalous are both {cfg.words.normal!r}')
