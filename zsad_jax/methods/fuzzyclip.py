"""FuzzyCLIP: prompts that list the names of many categories, with affine layers for each group of them.

Three parts, under the paper's names:
  CSP  the auxiliary categories are grouped, and a group has one prompt, [state][name_a] ... [name_n][state], for
       each text of a prompt ensemble (sec. 2.2).
  EFA  each group has affine layers as in APRIL-GAN (arXiv 2305.17382), trained on its own images with its prompt. At
       test time its prompt names the category under test first, [state][test name][name_a] ... [name_n][state], and
       the groups' maps are added up, each weighted by how near the image is to the group's prompt (sec. 2.3).
  RPL  images are scored by a learned pair of prompts, held near the prompt of all auxiliary names (sec. 2.4).
The groups' layers and the pair are trained one after another, each by itself (`stages`), since they differ in images,
rate and epochs. The authors released no code, and the paper leaves much open: every reading chosen here has a key of
configs/fuzzyclip.py, whose comment says so.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from zsad_jax.clip.feature_spec import FeatureSpec, check_layers
from zsad_jax.methods import Stage
from zsad_jax.methods.parts import clustering, linear_adapter, prompts
from zsad_jax.ops import losses, maps, multicrop

ENSEMBLES = {
  'april': (prompts.COMPOUND_STATES, prompts.COMPOUND_TEMPLATES),
  'winclip': (prompts.WINCLIP_STATES, prompts.WINCLIP_TEMPLATES),
  'clipad': (prompts.CLIP_AD_STATES, prompts.WINCLIP_TEMPLATES),
}
OBJECT = 'object'  # the abstract prompt's only name (sec. 1)
EVALUATION_KEYS = ('efa', 'map.sigma', 'multicrop', 'rpl.add_map_max', 'stack.test_form')
CHOICES = {
  'act': ('gelu', 'quick_gelu'), 'prompt.ensemble': tuple(ENSEMBLES), 'stack.names': ('cluster', OBJECT),
  'stack.test_form': ('test_cluster', 'test', 'cluster', 'test_cluster_test'),
  'csp.points': ('text_normal', 'text_both', 'name_only', 'image_mean'),
  'efa.weight_text': ('test_stack', 'train_stack'), 'efa.weight_side': ('normal', 'mean'),
  'loss.alpha': ('both1', 'literal'), 'score.text': ('rpl', 'stack_target', 'stack_aux', 'precise'),
  'rpl.template': tuple(prompts.FUZZY_TEMPLATES), 'rpl.init': ('template', 'random'), 'rpl.k': (0, 1),
  'rpl.names': ('cluster', OBJECT), 'rpl.deep': ('insert', 'overwrite'), 'rpl.feat': ('unit', 'raw'),
  'rpl.reduction': ('mean', 'sum'),
}


def arch(arch, cfg):
  """Returns the architecture with the activation `act`; see APRIL-GAN, whose numbers are the paper's baseline."""
  _one_of(cfg, 'act')
  return dataclasses.replace(arch, activation=cfg.act)


def spec(clip, cfg):
  """Returns the FeatureSpec: the class token as CLIP reads it, also of crops, and patch tokens as the blocks leave them."""
  check(clip, cfg)
  return FeatureSpec(clip.image_size, cls='ln_post_proj', taps=tuple(linear_adapter.tap(block) for block in cfg.layers),
              read='none', positions=cfg.positions, crops=multicrop.side(clip.image_size, cfg.multicrop))


def settle(frozen, means, *, clip, cfg):
  """Returns {'csp.groups': the group of every auxiliary category}, {} where the config states them.

  Raises:
    ValueError: stated groups are not one for each category, numbered from 0 without a gap.
  """
  names, stated = _auxiliary(cfg), cfg.csp.groups
  if not stated:
    points = means(normalize=cfg.csp.normalize) if cfg.csp.points == 'image_mean' else _points(frozen, clip, cfg)
    found = clustering.group(points, cfg.csp)
    logging.info('CSP: %s; scores %s', ' | '.join(' '.join(members) for members in _members(names, found.labels)),
                 ', '.join(f'{k}: {score:.3f}' for k, score in found.scores.items()))
    return {'csp.groups': found.labels}
  if len(stated) != len(names) or set(stated) != set(range(max(stated) + 1)):
    raise ValueError(f'csp.groups {stated} must number the group of each of the {len(names)} auxiliary categories '
                     f'({", ".join(names)}), from 0 and without a gap')
  return {}


def stages(cfg):
  """Returns a Stage for the layers of each group, on its images, then one or several for RPL, under its own recipe."""
  count = max(_groups(cfg)) + 1
  images = [tuple(i for i, group in enumerate(_groups(cfg)) if group == g) for g in range(count)]
  recipe = {'train.epochs': cfg.rpl.epochs, 'train.batch': cfg.rpl.batch, 'optim.lr': cfg.rpl.lr}
  of_rpl = {0: images, 1: [None]}[cfg.rpl.k] if cfg.score.text == 'rpl' else []
  return (*(Stage(f'efa{g}', images[g]) for g in range(count)),
          *(Stage(f'rpl{g}', one, recipe) for g, one in enumerate(of_rpl)))


def init(rng, clip, cfg):
  """Returns {'efa0': affine layers, ..., 'rpl0': {'words': [2, N, W], 'deep': [n, 1 or 2, L, W]}, ...}.

  Layers a group start as affine.init draws them. Words start as the tokens of rpl.template without its name and, where
  it is shorter than N, from N(0, init_std^2), as deep tokens do. There is one group until csp.groups is settled.
  """
  check(clip, cfg)
  count = max(cfg.csp.groups, default=0) + 1
  layers, pairs = jax.random.split(rng)
  learnable = {f'efa{g}': linear_adapter.init(jax.random.fold_in(layers, g), cfg.layers, clip.arch) for g in range(count)}
  if cfg.score.text == 'rpl':
    learnable |= {f'rpl{g}': _init_pair(jax.random.fold_in(pairs, g), clip, cfg) for g in range(cfg.rpl.k or count)}
  return learnable


def fixed(frozen, categories, *, clip, cfg):
  """Returns {'stacks': [K, 2, E], 'prior': [P, 2, E], 'text': the text tower}, all of auxiliary names alone.

  The stacks are the groups' texts, normal and abnormal; the prior is T' of eq. 12, what each of RPL's P pairs is held
  near.
  """
  del categories  # those of prompt.categories
  unit = cfg.rpl.feat == 'unit'
  return {'stacks': _encode(clip, frozen, cfg, _clusters(cfg)), 'text': frozen['text'],
          'prior': _encode(clip, frozen, cfg, _pair_names(cfg), normalize_each=unit, normalize_mean=unit)}


def loss(learnable, frozen, features, batch, rng, *, clip, cfg):
  """Returns the sum of the losses of those parts that `learnable` has, and its terms; no part enters another's.

  EFA: Focal(S) + Dice(S_a) over the taps (eq. 7 and 8). RPL: L_cls + lambda L_text (eq. 12), loss_text being the
  latter with its factor. Images of other groups than the part's weigh nothing.
  """
  del rng
  group = jnp.take(jnp.asarray(_groups(cfg)), batch['category'])
  terms = {}
  for name, part in learnable.items():
    kind, g = name[:3], int(name[3:])
    own = batch if kind == 'rpl' and cfg.rpl.k else {**batch, 'valid': batch['valid'] * (group == g)}
    if kind == 'efa':
      found = linear_adapter.loss(part, features, frozen['stacks'][g], own, clip=clip, cfg=cfg,
                          normal_weight=float(cfg.loss.alpha == 'both1'))
    else:
      found = _pair_loss(part, frozen, features, own, g, clip, cfg)
    terms = {key: terms.get(key, 0.0) + found.get(key, 0.0) for key in {**terms, **found}}
  return sum(terms.values()), terms


def bank(learnable, frozen, categories, *, clip, cfg):
  """Returns {'stacks': [C, K, 2, E], 'near': [C or 1, K, E], 'image': [C or 1, P, 2, E]}, all L2-normalised.

  Each group's texts with the name of the category under test, what weighs the groups, and the pairs that score
  images: RPL's, or for comparison plain texts (score.text).
  """
  clusters = _clusters(cfg)
  both = [test_stack(category, cluster, cfg) for category in categories for cluster in clusters]
  stacks = _encode(clip, frozen, cfg, both).reshape(len(categories), len(clusters), 2, -1)
  near = stacks if cfg.efa.weight_text == 'test_stack' else _encode(clip, frozen, cfg, clusters)[None]
  near = near[:, :, 0] if cfg.efa.weight_side == 'normal' else maps.normalize(near.mean(2))
  plain = {'stack_target': (_joined(categories, cfg),), 'stack_aux': (_joined(_auxiliary(cfg), cfg),),
           'precise': tuple(_said(category, cfg) for category in categories)}
  if cfg.score.text == 'rpl':
    image = jnp.stack([maps.normalize(pair(learnable[f'rpl{p}'], frozen, name, clip=clip, cfg=cfg))
                       for p, name in enumerate(_pair_names(cfg))])[None]
  else:
    image = _encode(clip, frozen, cfg, plain[cfg.score.text])[:, None]
  return {'stacks': stacks, 'near': near, 'image': image}


def predict(learnable, frozen, bank, memory, features, batch, *, clip, cfg):
  """Returns score [B], the probability of the abnormal text (multicrop.score), and map [B, R, R] at image_size.

  The map is the mean of the groups', weighted by `weights`, each the sum of the taps' probabilities (eq. 11). With a
  pair of RPL for each group the scores are weighted likewise.
  """
  del frozen, memory
  of = functools.partial(maps.of_category, category=batch['category'])
  share = weights(features, of(bank['near']), cfg.efa.scale)
  total = sum(share[:, g, None, None] * linear_adapter.anomaly_map(
    learnable[f'efa{g}'], features, of(bank['stacks'][:, g]), clip=clip, cfg=cfg) for g in range(share.shape[1]))
  tau = cfg.rpl.tau if cfg.score.text == 'rpl' else cfg.temperature
  scores = [multicrop.score(features, of(bank['image'][:, p]), tau, cfg.multicrop)
            for p in range(bank['image'].shape[1])]
  score = scores[0] if len(scores) == 1 else sum(share[:, g] * one for g, one in enumerate(scores))
  smoothed = maps.gaussian(total, cfg.map.sigma)
  if cfg.rpl.add_map_max:
    score += smoothed.max((1, 2)) / len(cfg.layers)
  return {'score': score, 'map': smoothed}


def weights(features, near, scale):
  """Returns what each group counts for each image, [B, K]: softmax of scale cos(class token, group's text) (eq. 11).

  near is [K, E] or [B, K, E], L2-normalised.
  """
  return maps.states(features.cls[:, None], near, 1 / scale)[:, 0]


def test_stack(name, cluster, cfg):
  """Returns what stands between the state words at test time: the category's name beside a group's (eq. 9)."""
  if cfg.stack.names == OBJECT:
    return OBJECT
  said = _said(name, cfg)
  parts = {'test_cluster': (said, cluster), 'test': (said,), 'cluster': (cluster,),
           'test_cluster_test': (said, cluster, said)}
  return cfg.stack.sep.join(parts[cfg.stack.test_form])


def pair(prompt, frozen, names, *, clip, cfg):
  """Returns text features [2, E] of RPL's prompts, normal and abnormal, unnormalised.

    [start][deep tokens][N learned words][the template's tokens beyond N][names][.][end]
  The end is looked for in the ids, where no token has been inserted yet.

  Raises:
    ValueError: overwriting deep tokens would reach the end.
  """
  ids = _pair_ids(names, clip, cfg)
  end = clip.eot(ids)
  if cfg.rpl.deep == 'overwrite' and cfg.rpl.deep_len >= end.min():
    raise ValueError(f'rpl.deep_len {cfg.rpl.deep_len}: tokens that overwrite positions 1..{cfg.rpl.deep_len} would '
                     f'erase the end of a text at {end.min()}; insert them, or take fewer')
  tokens = clip.embed(frozen, jnp.asarray(ids))  # [2, L, W]
  tokens = jnp.concatenate([tokens[:, :1], prompt['words'], tokens[:, 1 + cfg.rpl.n_ctx:]], axis=1)
  deep = prompt.get('deep')
  if deep is not None:
    deep = jnp.broadcast_to(deep, (len(deep), 2, *deep.shape[2:]))
  return clip.text(frozen, tokens, jnp.asarray(end, jnp.int32), deep=deep, deep_mode=cfg.rpl.deep)


def check(clip, cfg):
  """Raises ValueError naming the first config key that is out of range."""
  check_layers(clip, cfg.layers)
  clustering.check(cfg.csp)
  for key in CHOICES:
    _one_of(cfg, key)
  text, p = clip.arch.text, cfg.rpl
  for key, low, high in (('n_ctx', 1, text.context - 3), ('depth', 0, text.layers), ('deep_len', 0, text.context),
                         ('epochs', 1, None), ('batch', 1, None)):
    if p[key] < low or (high is not None and p[key] > high):
      raise ValueError(f'rpl.{key} {p[key]} is not {low}' + (' or more' if high is None else f'..{high}'))
  for key, value in (('temperature', cfg.temperature), ('efa.scale', cfg.efa.scale), ('rpl.tau', p.tau),
                     ('rpl.init_std', p.init_std), ('rpl.lr', p.lr)):
    if not value > 0:
      raise ValueError(f'{key} {value} is not positive')
  for key, value in (('rpl.lambda_text', p.lambda_text), ('map.sigma', cfg.map.sigma)):
    if not value >= 0:
      raise ValueError(f'{key} {value} is not 0 or more')
  if not 0 <= cfg.mosaic <= 1:
    raise ValueError(f'mosaic {cfg.mosaic} is not a probability')


def _one_of(cfg, key):
  value = functools.reduce(lambda node, part: node[part], key.split('.'), cfg)
  if value not in CHOICES[key]:
    raise ValueError(f'{key} {value!r} is not one of {", ".join(map(str, CHOICES[key]))}')


def _auxiliary(cfg):
  if not cfg.prompt.categories:
    raise ValueError('prompts list the auxiliary categories: set prompt.categories to their names, in the order of '
                     'batch["category"]')
  return cfg.prompt.categories


def _groups(cfg):
  if not cfg.csp.groups:
    raise ValueError('csp.groups is empty: no group of the auxiliary categories has been stated or found by `settle`')
  return cfg.csp.groups


def _members(names, groups):
  """The names of each group, in the data set's order."""
  return [[name for name, group in zip(names, groups) if group == g] for g in range(max(groups) + 1)]


def _said(name, cfg):
  return name if cfg.prompt.raw_names else prompts.spoken(name)


def _joined(names, cfg):
  return cfg.stack.sep.join(_said(name, cfg) for name in names)


def _clusters(cfg):
  """What stands for each group in its training prompt, K texts."""
  return tuple(OBJECT if cfg.stack.names == OBJECT else _joined(members, cfg)
               for members in _members(_auxiliary(cfg), _groups(cfg)))


def _pair_names(cfg):
  """What stands for the names in each of RPL's P pairs, and in what it is held near."""
  count = cfg.rpl.k or max(_groups(cfg)) + 1
  if cfg.rpl.names == OBJECT:
    return (OBJECT,) * count
  members = [_auxiliary(cfg)] if cfg.rpl.k else _members(_auxiliary(cfg), _groups(cfg))
  return tuple(_joined(names, cfg) for names in members)


def _encode(clip, frozen, cfg, texts, **how):
  """Features of the prompt ensemble around each of these, [n, 2, E]."""
  return prompts.ensemble(clip, frozen, texts, *ENSEMBLES[cfg.prompt.ensemble], raw_names=True, **how)


def _points(frozen, clip, cfg):
  """What is clustered, [C, .]: a vector of each auxiliary category's own texts."""
  names = tuple(_said(name, cfg) for name in _auxiliary(cfg))
  states, templates = ((('{}',),), ('{}',)) if cfg.csp.points == 'name_only' else ENSEMBLES[cfg.prompt.ensemble]
  unit = cfg.csp.normalize
  text = np.asarray(jax.jit(lambda frozen: prompts.ensemble(
    clip, frozen, names, states, templates, normalize_each=unit, normalize_mean=unit, raw_names=True))(frozen))
  return text.reshape(len(names), -1) if cfg.csp.points == 'text_both' else text[:, 0]


def _template_ids(clip, cfg):
  """Token ids of rpl.template without the name, start and end: two rows, of different lengths."""
  ids = clip.tokenize([form.format('') for form in prompts.FUZZY_TEMPLATES[cfg.rpl.template]])
  return [row[1:end] for row, end in zip(ids, clip.eot(ids))]


def _pair_ids(names, clip, cfg):
  """Ids [2, L] of RPL's prompts; 0 is the place of a learned word, and padding."""
  said = clip.tokenize([f'{names}.'])[0]
  tail = said[1:clip.eot(said) + 1]
  rows = [np.concatenate([said[:1], np.zeros(cfg.rpl.n_ctx, said.dtype), template[cfg.rpl.n_ctx:], tail])
          for template in _template_ids(clip, cfg)]
  ids = np.zeros((2, max(map(len, rows))), said.dtype)
  for row, values in zip(ids, rows):
    row[:len(values)] = values
  return ids


def _init_pair(rng, clip, cfg):
  p, width = cfg.rpl, clip.arch.text.width
  for_words, for_deep = jax.random.split(rng)
  draw = lambda key, *shape: p.init_std * jax.random.normal(key, (*shape, width))
  words = draw(for_words, 2, p.n_ctx)
  if p.init == 'template':
    for side, ids in enumerate(_template_ids(clip, cfg)):
      known = clip.embed(clip.params, jnp.asarray(ids[None, :p.n_ctx]))[0]
      words = words.at[side, :len(known)].set(known)
  count = p.depth - (p.deep == 'overwrite')
  if count < 1 or not p.deep_len:
    return {'words': words}
  return {'words': words, 'deep': draw(for_deep, count, 1 if p.deep_shared else 2, p.deep_len)}


def _pair_loss(prompt, frozen, features, batch, number, clip, cfg):
  p = cfg.rpl
  found = pair(prompt, frozen, _pair_names(cfg)[number], clip=clip, cfg=cfg)
  unit = maps.normalize(found)
  image = maps.normalize(features.cls.astype(jnp.float32))
  logits = maps.logits(image[:, None], unit, p.tau)[:, 0]
  difference = (unit if p.feat == 'unit' else found) - frozen['prior'][number]
  square = jnp.sum(difference ** 2) / (difference.shape[-1] if p.reduction == 'mean' else 1)
  return {'loss_cls': losses.cross_entropy(logits, batch['label'], batch['valid']),
          'loss_text': p.lambda_text * square}
