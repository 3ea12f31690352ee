"""FuzzyCLIP: prompts that list the names of many categories, with affine layers for each group of them.

Three parts, under the paper's names:
  CSP  the auxiliary categories are grouped, and a group has one prompt, [state][name_a] ... [name_n][state], for
       each text of a prompt ensemble (sec. 2.2).
  EFA  each group has affine layers as in APRIL-GAN (arXiv 2305.17382), trained on its own images with its prompt. At
       test time its prompt names the category under test first, [state][test name][name_a] ... [name_n][state], and
       the groups' maps are added up, each weighted by how near the image is to the group's prompt (sec. 2.3).
  RPL  images are scored by a trained pair of prompts, kept near the prompt of all auxiliary names (sec. 2.4).
The groups' layers and the pair are trained one after another (`stages`), since they differ in images, learning rate and
epochs. The authors released no code, and the paper leaves much open: every reading chosen here has a key of
configs/fuzzyclip.py, whose comment says so.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from zsad_jax.clip.feature_spec import Features, FeatureSpec, check_layers
from zsad_jax.methods import Batch, Clip, Config, Context, Metrics, Params, Prediction, Stage, Traits
from zsad_jax.methods.parts import bounds, clustering, linear_adapter, prompts
from zsad_jax.methods.parts.bounds import AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE, PROBABILITY, OneOf, Range
from zsad_jax.ops import losses, maps, multicrop

ENSEMBLES = {
  'april': (prompts.COMPOUND_STATES, prompts.COMPOUND_TEMPLATES),
  'winclip': (prompts.WINCLIP_STATES, prompts.WINCLIP_TEMPLATES),
  'clipad': (prompts.CLIP_AD_STATES, prompts.WINCLIP_TEMPLATES),
}
OBJECT = 'object'  # the abstract prompt's only name (sec. 1)

TRAITS = Traits(evaluation_keys=('efa', 'map.sigma', 'multicrop', 'rpl.add_map_max', 'stack.test_form'))
BOUNDS = {
  **clustering.BOUNDS, 'act': OneOf(('gelu', 'quick_gelu')), 'temperature': POSITIVE, 'mosaic': PROBABILITY,
  'prompt.ensemble': OneOf(tuple(ENSEMBLES)), 'map.sigma': NOT_NEGATIVE,
  'csp.points': OneOf(('text_normal', 'text_both', 'name_only', 'image_mean')),
  'stack.names': OneOf(('cluster', OBJECT)),
  'stack.test_form': OneOf(('test_cluster', 'test', 'cluster', 'test_cluster_test')),
  'efa.weight_text': OneOf(('test_stack', 'train_stack')), 'efa.weight_side': OneOf(('normal', 'mean')),
  'efa.scale': POSITIVE, 'loss.alpha': OneOf(('both1', 'literal')),
  'score.text': OneOf(('rpl', 'stack_target', 'stack_aux', 'precise')),
  'rpl.template': OneOf(tuple(prompts.FUZZY_TEMPLATES)), 'rpl.init': OneOf(('template', 'random')),
  'rpl.init_std': POSITIVE, 'rpl.names': OneOf(('cluster', OBJECT)), 'rpl.k': OneOf((0, 1)),
  'rpl.deep': OneOf(('insert', 'overwrite')), 'rpl.feat': OneOf(('unit', 'raw')), 'rpl.lambda_text': NOT_NEGATIVE,
  'rpl.reduction': OneOf(('mean', 'sum')), 'rpl.tau': POSITIVE, 'rpl.epochs': AT_LEAST_ONE, 'rpl.batch': AT_LEAST_ONE,
  'rpl.lr': POSITIVE,
}


def architecture(arch: Any, cfg: Config) -> Any:
  """Returns the architecture with the activation `act`; see APRIL-GAN, whose numbers are the paper's baseline."""
  return dataclasses.replace(arch, activation=cfg.act)


def feature_spec(clip: Clip, cfg: Config) -> FeatureSpec:
  """Returns the FeatureSpec: CLIP's class token, also of crops, and patch tokens as the blocks leave them."""
  check_layers(clip, cfg.layers)
  text = clip.arch.text
  bounds.check(cfg, {
    'rpl.n_ctx': Range(1, text.context - 3, reason=f'to fit into the {text.context} tokens of a text'),
    'rpl.depth': Range(0, text.layers, reason=f'the blocks of the text tower of {clip.arch.name}'),
    'rpl.deep_len': Range(0, text.context, reason='the tokens of a text')})
  return FeatureSpec(clip.image_size, cls='ln_post_proj', taps=tuple(linear_adapter.tap(block) for block in cfg.layers),
                     read='none', positions=cfg.positions, crops=multicrop.side(clip.image_size, cfg.multicrop))


def auxiliary_overrides(clip_params: Any, class_means: Callable[..., np.ndarray], *, clip: Clip,
                        cfg: Config) -> Mapping[str, Any]:
  """Returns {'csp.groups': the group of every auxiliary category}, or {} if the config states them.

  Raises:
    ValueError: stated groups are not one for each category, numbered from 0 without a gap.
  """
  names, groups = prompts.auxiliary_names(cfg.prompt), cfg.csp.groups
  if not groups:
    image_mean = cfg.csp.points == 'image_mean'
    points = class_means(normalize=cfg.csp.normalize) if image_mean else _points(clip_params, clip, cfg)
    grouping = clustering.group(points, cfg.csp)
    logging.info('CSP groups: %s; scores: %s', ' | '.join(map(' '.join, _members(names, grouping.labels))),
                 ', '.join(f'{k}: {score:.3f}' for k, score in grouping.scores.items()))
    return {'csp.groups': grouping.labels}
  if len(groups) != len(names) or set(groups) != set(range(max(groups) + 1)):
    raise ValueError(f'csp.groups={groups} must number the group of each of the {len(names)} auxiliary categories '
                     f'({", ".join(names)}), from 0 and without a gap')
  return {}


def stages(cfg: Config) -> Sequence[Stage]:
  """Returns a Stage for the layers of each group, on its images, then one or several for RPL, under its own recipe."""
  groups = _groups(cfg)
  categories = [tuple(i for i, group in enumerate(groups) if group == g) for g in range(max(groups) + 1)]
  recipe = {'train.epochs': cfg.rpl.epochs, 'train.batch': cfg.rpl.batch, 'optim.lr': cfg.rpl.lr}
  of_pairs: Sequence[Any] = () if cfg.score.text != 'rpl' else [None] if cfg.rpl.k else categories
  return (*(Stage(f'efa{g}', own) for g, own in enumerate(categories)),
          *(Stage(f'rpl{p}', own, recipe) for p, own in enumerate(of_pairs)))


def init(rng: jax.Array, clip: Clip, cfg: Config) -> Params:
  """Returns {'efa0': affine layers, ..., 'rpl0': {'words': [2, N, W], 'deep': [n, 1 or 2, L, W]}, ...}.

  Layers of a group: see linear_adapter.init. Words start as the tokens of rpl.template without its name; if it is
  shorter than N, the others are drawn from N(0, init_std^2), as deep tokens are. There is one group while csp.groups is
  empty.
  """
  count = max(cfg.csp.groups, default=0) + 1
  layers, pairs = jax.random.split(rng)
  params = {f'efa{g}': linear_adapter.init(jax.random.fold_in(layers, g), cfg.layers, clip.arch) for g in range(count)}
  if cfg.score.text == 'rpl':
    params |= {f'rpl{p}': _init_pair(jax.random.fold_in(pairs, p), clip, cfg) for p in range(cfg.rpl.k or count)}
  return params


def precompute(clip_params: Any, names: Sequence[str], *, clip: Clip, cfg: Config) -> Context:
  """Returns the text tower and {'stacks': [K, 2, E], 'prior': [P, 2, E]}, all of auxiliary names alone.

  The stacks are the groups' texts, normal and abnormal; the prior is T' of eq. 12, near which each of RPL's P pairs is
  kept.
  """
  del names  # those of prompt.categories
  unit = cfg.rpl.feat == 'unit'
  return Context({'text': clip_params['text']}, {
    'stacks': _encode(clip, clip_params, cfg, _clusters(cfg)),
    'prior': _encode(clip, clip_params, cfg, _pair_names(cfg), normalize_each=unit, normalize_mean=unit)})


def loss(params: Params, context: Context, features: Features, batch: Batch, rng: jax.Array, *, clip: Clip,
         cfg: Config) -> tuple[jax.Array, Metrics]:
  """Returns the sum of the losses of the parts in `params`, and its terms; no part enters the loss of another.

  EFA: Focal(S) + Dice(S_a) over the taps (eq. 7 and 8). RPL: L_cls + lambda L_text (eq. 12), where loss_text includes
  lambda. Images of other groups than the part's weigh nothing.
  """
  del rng
  group = jnp.take(jnp.asarray(_groups(cfg)), batch['category'])
  terms: dict[str, Any] = {}
  for name, part in params.items():
    kind, g = name[:3], int(name[3:])
    own = batch if kind == 'rpl' and cfg.rpl.k else {**batch, 'valid': batch['valid'] * (group == g)}
    if kind == 'efa':
      new = linear_adapter.loss(part, features, context.text_features['stacks'][g], own, clip=clip, cfg=cfg,
                                normal_weight=float(cfg.loss.alpha == 'both1'))
    else:
      new = _pair_loss(part, context, features, own, g, clip, cfg)
    terms = {key: terms.get(key, 0.0) + new.get(key, 0.0) for key in {**terms, **new}}
  return sum(terms.values()), terms


def encode_text(params: Params, clip_params: Any, names: Sequence[str], *, clip: Clip,
                cfg: Config) -> dict[str, jax.Array]:
  """Returns {'stacks': [C, K, 2, E], 'near': [C or 1, K, E], 'image': [C or 1, P, 2, E]}, all L2-normalised.

  Stacks are each group's texts with the name of the category under test, near the texts that weigh the groups, and
  image the pairs that score images: RPL's or, for comparison, plain texts (score.text).
  """
  clusters = _clusters(cfg)
  texts = [_test_stack(name, cluster, cfg) for name in names for cluster in clusters]
  stacks = _encode(clip, clip_params, cfg, texts).reshape(len(names), len(clusters), 2, -1)
  near = stacks if cfg.efa.weight_text == 'test_stack' else _encode(clip, clip_params, cfg, clusters)[None]
  near = near[:, :, 0] if cfg.efa.weight_side == 'normal' else maps.normalize(near.mean(2))
  if cfg.score.text == 'rpl':
    image = jnp.stack([maps.normalize(_encode_pair(params[f'rpl{p}'], clip_params, stack, clip, cfg))
                       for p, stack in enumerate(_pair_names(cfg))])[None]
  else:
    plain = {'stack_target': (_joined(names, cfg),), 'precise': tuple(_spelled(name, cfg) for name in names),
             'stack_aux': (_joined(prompts.auxiliary_names(cfg.prompt), cfg),)}
    image = _encode(clip, clip_params, cfg, plain[cfg.score.text])[:, None]
  return {'stacks': stacks, 'near': near, 'image': image}


def predict(params: Params, context: Context, features: Features, batch: Batch, *, clip: Clip,
            cfg: Config) -> Prediction:
  """Returns the probability of the abnormal text (multicrop.score), and the mean of the groups' maps.

  The groups are weighted by their texts, and each map is the sum of the taps' probabilities (eq. 11). With a pair of
  RPL for each group the scores are weighted likewise.
  """
  text = context.text_features
  own = functools.partial(maps.of_category, category=batch['category'])
  weights = _group_weights(features, own(text['near']), cfg.efa.scale)
  total: Any = sum(weights[:, g, None, None] * linear_adapter.anomaly_map(
    params[f'efa{g}'], features, own(text['stacks'][:, g]), clip=clip, cfg=cfg) for g in range(weights.shape[1]))
  tau = cfg.rpl.tau if cfg.score.text == 'rpl' else cfg.temperature
  scores = [multicrop.score(features, own(text['image'][:, p]), tau, cfg.multicrop)
            for p in range(text['image'].shape[1])]
  score: Any = scores[0] if len(scores) == 1 else sum(weights[:, g] * one for g, one in enumerate(scores))
  smoothed = maps.gaussian(total, cfg.map.sigma)
  if cfg.rpl.add_map_max:
    score += smoothed.max((1, 2)) / len(cfg.layers)
  return Prediction(score, smoothed)


def _group_weights(features: Features, near: jax.Array, scale: float) -> jax.Array:
  """Weights of the groups for each image, [B, K]: softmax of scale cos(class token, group's text) (eq. 11).

  near is [K, E] or [B, K, E], L2-normalised.
  """
  return maps.states(features.cls[:, None], near, 1 / scale)[:, 0]


def _test_stack(name: str, cluster: str, cfg: Config) -> str:
  """The text between the state words at test time: the category's name next to those of a group (eq. 9)."""
  if cfg.stack.names == OBJECT:
    return OBJECT
  own = _spelled(name, cfg)
  forms = {'test_cluster': (own, cluster), 'test': (own,), 'cluster': (cluster,),
           'test_cluster_test': (own, cluster, own)}
  return cfg.stack.sep.join(forms[cfg.stack.test_form])


def _encode_pair(prompt: Params, clip_params: Any, names: str, clip: Clip, cfg: Config) -> jax.Array:
  """Text features [2, E] of RPL's prompts, normal and abnormal, not normalised.

    [start][deep tokens][N trained words][the template's tokens beyond N][names][.][end]
  The end is found in the ids, where no token has been inserted yet.

  Raises ValueError if overwriting deep tokens would reach the end.
  """
  ids = _pair_ids(names, clip, cfg)
  end = clip.eot(ids)
  if cfg.rpl.deep == 'overwrite' and cfg.rpl.deep_len >= end.min():
    raise ValueError(f'rpl.deep_len={cfg.rpl.deep_len} tokens would overwrite the end of a text at {end.min()}; set '
                     f"rpl.deep='insert' or rpl.deep_len to at most {end.min() - 1}")
  tokens = clip.embed(clip_params, jnp.asarray(ids))  # [2, L, W]
  tokens = jnp.concatenate([tokens[:, :1], prompt['words'], tokens[:, 1 + cfg.rpl.n_ctx:]], axis=1)
  deep = prompt.get('deep')
  if deep is not None:
    deep = jnp.broadcast_to(deep, (len(deep), 2, *deep.shape[2:]))
  return clip.text(clip_params, tokens, jnp.asarray(end, jnp.int32), deep=deep, deep_mode=cfg.rpl.deep)


def _groups(cfg):
  if not cfg.csp.groups:
    raise ValueError('csp.groups=() does not group the auxiliary categories; set the group of each, or let '
                     '`auxiliary_overrides` find them')
  return cfg.csp.groups


def _members(names, groups):
  """The names of each group, in the data set's order."""
  return [[name for name, group in zip(names, groups) if group == g] for g in range(max(groups) + 1)]


def _spelled(name, cfg):
  return name if cfg.prompt.raw_names else prompts.to_words(name)


def _joined(names, cfg):
  return cfg.stack.sep.join(_spelled(name, cfg) for name in names)


def _clusters(cfg):
  """The names of each group in its training prompt, K texts."""
  members = _members(prompts.auxiliary_names(cfg.prompt), _groups(cfg))
  return tuple(OBJECT if cfg.stack.names == OBJECT else _joined(names, cfg) for names in members)


def _pair_names(cfg):
  """The names in each of RPL's P pairs and in its prior."""
  if cfg.rpl.names == OBJECT:
    return (OBJECT,) * (cfg.rpl.k or max(_groups(cfg)) + 1)
  names = prompts.auxiliary_names(cfg.prompt)
  return tuple(_joined(members, cfg) for members in ([names] if cfg.rpl.k else _members(names, _groups(cfg))))


def _encode(clip, clip_params, cfg, texts, **kwargs):
  """Features [n, 2, E] of the prompt ensemble around each of n texts."""
  return prompts.ensemble(clip, clip_params, texts, *ENSEMBLES[cfg.prompt.ensemble], raw_names=True, **kwargs)


def _points(clip_params, clip, cfg):
  """The points that are clustered, [C, .]: a vector of each auxiliary category's own texts."""
  names = tuple(_spelled(name, cfg) for name in prompts.auxiliary_names(cfg.prompt))
  states, templates = ((('{}',),), ('{}',)) if cfg.csp.points == 'name_only' else ENSEMBLES[cfg.prompt.ensemble]
  unit = cfg.csp.normalize
  encode = jax.jit(lambda clip_params: prompts.ensemble(
    clip, clip_params, names, states, templates, normalize_each=unit, normalize_mean=unit, raw_names=True))
  text = np.asarray(encode(clip_params))
  return text.reshape(len(names), -1) if cfg.csp.points == 'text_both' else text[:, 0]


def _template_ids(clip, cfg):
  """Token ids of rpl.template without the name, start and end: two rows, of different lengths."""
  ids = clip.tokenize([form.format('') for form in prompts.FUZZY_TEMPLATES[cfg.rpl.template]])
  return [row[1:end] for row, end in zip(ids, clip.eot(ids))]


def _pair_ids(names, clip, cfg):
  """Ids [2, L] of RPL's prompts; 0 is the place of a trained word, and padding."""
  ids = clip.tokenize([f'{names}.'])[0]
  tail = ids[1:clip.eot(ids) + 1]
  rows = [np.concatenate([ids[:1], np.zeros(cfg.rpl.n_ctx, ids.dtype), template[cfg.rpl.n_ctx:], tail])
          for template in _template_ids(clip, cfg)]
  padded = np.zeros((2, max(map(len, rows))), ids.dtype)
  for row, values in zip(padded, rows):
    row[:len(values)] = values
  return padded


def _init_pair(rng, clip, cfg):
  rpl, width = cfg.rpl, clip.arch.text.width
  for_words, for_deep = jax.random.split(rng)
  normal = lambda key, *shape: rpl.init_std * jax.random.normal(key, (*shape, width))
  words = normal(for_words, 2, rpl.n_ctx)
  if rpl.init == 'template':
    for side, ids in enumerate(_template_ids(clip, cfg)):
      tokens = clip.embed(clip.params, jnp.asarray(ids[None, :rpl.n_ctx]))[0]
      words = words.at[side, :len(tokens)].set(tokens)
  count = rpl.depth - (rpl.deep == 'overwrite')
  if count < 1 or not rpl.deep_len:
    return {'words': words}
  return {'words': words, 'deep': normal(for_deep, count, 1 if rpl.deep_shared else 2, rpl.deep_len)}


def _pair_loss(prompt, context, features, batch, number, clip, cfg):
  rpl = cfg.rpl
  text = _encode_pair(prompt, context.clip_params, _pair_names(cfg)[number], clip, cfg)
  unit = maps.normalize(text)
  image = maps.normalize(features.cls.astype(jnp.float32))
  logits = maps.logits(image[:, None], unit, rpl.tau)[:, 0]
  difference = (unit if rpl.feat == 'unit' else text) - context.text_features['prior'][number]
  square = jnp.sum(difference ** 2) / (difference.shape[-1] if rpl.reduction == 'mean' else 1)
  return {'loss_cls': losses.cross_entropy(logits, batch['label'], batch['valid']),
          'loss_text': rpl.lambda_text * square}
