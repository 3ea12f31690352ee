"""AnomalyCLIP: object-agnostic prompt learning for zero-shot anomaly detection (ICLR 2024, arXiv 2310.18961).

Two prompts are learned on an auxiliary set, for normality and abnormality, around the word "object":
  g_n = [V_1]...[V_E][object].      g_a = [W_1]...[W_E][damaged][object].                           (sec. 3.2)
together with tokens that enter the text tower's deeper blocks (sec. 3.3). Patch features come from a second
stream whose attention compares values with values (DPAM, sec. 3.3). An image is scored by the softmax of its
cosines with the two prompts, a pixel by that of its patch. Defaults follow the released code; where the paper
says something else, a config key says so (configs/anomalyclip.py).
"""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.clip.feature_spec import FeatureSpec, SideStream, Tap
from zsad_jax.methods.parts import prompts
from zsad_jax.ops import losses, maps, multicrop

# What softmax(A B^T) V collects beside CLIP's own stream; 'qk' alone is CLIP's own stream, T1 off (table 10).
DPAM_MODES = {
  'vv': ('vv',), 'qq': ('qq',), 'kk': ('kk',), 'qk': (),
  'ens1': ('qq', 'kk', 'vv'), 'ens2': ('qk', 'qq', 'kk', 'vv'),
}

EVALUATION_KEYS = ('map.sigma', 'multicrop', 'prompt.object_re')


def spec(clip, cfg):
  """Returns the FeatureSpec: the class token, also of crops, released without ln_post, and one tap per layer and stream."""
  check(clip, cfg)
  sides = _sides(cfg)
  streams = sides or ('clip',)
  return FeatureSpec(
    clip.image_size,
    cls='ln_post_proj' if cfg.cls_ln_post else 'proj',
    taps=tuple(Tap(stream, layer) for layer in layers(clip, cfg) for stream in streams),
    sides=tuple(SideStream(mode, mode, cfg.dpam.first_block, ffn=cfg.dpam.ffn) for mode in sides),
    positions=cfg.positions,
    crops=multicrop.side(clip.image_size, cfg.multicrop),
  )


def init(rng, clip, cfg):
  """Returns the learnable prompts, drawn from N(0, init_std^2): a dict of float32 arrays.

  ctx_pos, ctx_neg [E, W] (V and W of sec. 3.2; one ctx where they are shared) and deep [M - 1, L, W] (or
  [M, L, W] in concat mode), each only where it is learned; {} when nothing is.
  """
  check(clip, cfg)
  p, width = cfg.prompt, clip.arch.text.width
  shapes = {}
  if _has_context(cfg):
    shapes |= dict.fromkeys(('ctx',) if p.shared_ctx else ('ctx_pos', 'ctx_neg'), (p.n_ctx, width))
  if _deep_count(cfg):
    shapes['deep'] = (_deep_count(cfg), p.deep_len, width)
  keys = dict(zip(('deep', 'ctx_pos', 'ctx_neg', 'ctx'), jax.random.split(rng, 4)))
  return {name: p.init_std * jax.random.normal(keys[name], shape) for name, shape in shapes.items()}


def texts(learnable, frozen, names, *, clip, cfg):
  """Returns text features [C, 2, E] of the prompts around `names`, L2-normalised, normal then abnormal.

  Ids are cut after the longest text's end, which the causal mask makes exact.
  """
  ids = clip.tokenize(prompt_texts(names, cfg))  # [2C, context], on the host: a constant of the trace
  eot = clip.eot(ids)
  tokens = clip.embed(frozen, jnp.asarray(ids[:, :eot.max() + 1]))  # [2C, L, W]
  if _has_context(cfg):
    pair = [learnable['ctx']] * 2 if cfg.prompt.shared_ctx else [learnable['ctx_pos'], learnable['ctx_neg']]
    context = jnp.tile(jnp.stack(pair), (len(names), 1, 1))
    tokens = jnp.concatenate([tokens[:, :1], context, tokens[:, 1 + cfg.prompt.n_ctx:]], axis=1)
  deep = _deep_tokens(learnable, len(ids), cfg)
  features = clip.text(frozen, tokens, jnp.asarray(eot, jnp.int32), deep=deep, deep_mode=cfg.prompt.deep_mode)
  return maps.normalize(features).reshape(len(names), 2, -1)


def bank(learnable, frozen, categories, *, clip, cfg):
  """Returns text features [C, 2, E]; C = 1, one pair for all categories, when object-agnostic."""
  named = cfg.prompt.object_re or not cfg.t2_object_agnostic
  return texts(learnable, frozen, categories if named else (cfg.prompt.class_word,), clip=clip, cfg=cfg)


def loss(learnable, frozen, features, batch, rng, *, clip, cfg):
  """Returns L_global + lambda sum_l (Focal + Dice(S_a, M) + Dice(S_n, 1 - M)), and its parts (eq. 2).

  The similarity maps are upsampled as probabilities to the masks' resolution, which is image_size. An image whose
  mask is unknown counts in L_global only.

  Raises:
    ValueError: nothing to learn, no loss term, object-aware prompts without names, masks of another size.
  """
  del rng
  terms = cfg.loss
  if not learnable:
    raise ValueError('these switches leave AnomalyCLIP nothing to learn; evaluate it without training')
  if not (terms.ce or terms.focal or terms.dice):
    raise ValueError('loss.ce, loss.focal and loss.dice are all off; there is nothing to train on')
  text = texts(learnable, frozen, _auxiliary_names(cfg), clip=clip, cfg=cfg)
  pair = maps.of_category(text, batch['category'])
  temperature = prompts.temperature(frozen, cfg)
  parts = {}
  if terms.ce:
    parts['loss_global'] = losses.cross_entropy(
      _image_logits(features, pair, temperature), batch['label'], batch['valid'])
  if terms.focal or terms.dice:
    local = lambda layer: _local_loss(
      _patch_probs(features, layer, pair, temperature, cfg), batch, clip.image_size, terms)
    parts['loss_local'] = sum(count * local(layer) for layer, count in layers(clip, cfg).items())
  return parts.get('loss_global', 0.0) + terms.lambda_local * parts.get('loss_local', 0.0), parts


def predict(learnable, frozen, bank, memory, features, batch, *, clip, cfg):
  """Returns score [B], the probability of the abnormal prompt, and map [B, R, R] at image_size (sec. 3.4).

  The map sums (1 - S_n + S_a) / 2 = S_a over the layers and is smoothed with a Gaussian of map.sigma pixels. The score
  may be averaged over crops, see multicrop.score, as the paper's is not.
  """
  del learnable, memory
  pair = maps.of_category(bank, batch['category'])
  temperature = prompts.temperature(frozen, cfg)
  score = multicrop.score(features, pair, temperature, cfg.multicrop)
  # Upsampling is linear, so the layers are summed on the patch grid.
  abnormal = sum(count * _patch_probs(features, layer, pair, temperature, cfg)[..., 1]
                 for layer, count in layers(clip, cfg).items())
  return {'score': score, 'map': maps.upsample_blur(maps.square(abnormal), clip.image_size, cfg.map.sigma)}


def prompt_texts(names, cfg):
  """Returns the texts to tokenize, normal and abnormal in turn; each X stands for a learned vector."""
  p = cfg.prompt
  context = ['X'] * p.n_ctx if _has_context(cfg) else []
  return [' '.join([*context, *state, prompts.spoken(name)]) + p.trailing
          for name in names for state in ((), (p.state_word,))]


def layers(clip, cfg):
  """Returns {block: how often its map counts} of local_layers.

  With t4_emulate_aliasing every layer from the one before DPAM on stands for the last block, as in the first
  release, where the stored tensors were one buffer updated in place; without DPAM there is no such buffer.
  """
  chosen = tuple(cfg.local_layers)
  if cfg.t4_emulate_aliasing and _sides(cfg):
    last = clip.arch.vision.layers
    chosen = tuple(last if layer >= cfg.dpam.first_block - 1 else layer for layer in chosen)
  return dict(sorted(collections.Counter(chosen).items()))


def load_official(arrays, *, clip, cfg):
  """Returns learnable from the arrays of a released checkpoint, {name: array} of its 'prompt_learner'.

  The checkpoint's unused projections and its copies of token embeddings and ids are dropped.

  Raises:
    ValueError: lists every name that is missing or unknown and every shape that does not fit the config.
  """
  have = {name.removeprefix('prompt_learner.'): np.asarray(array) for name, array in arrays.items()}
  have = {name: array for name, array in have.items() if not re.fullmatch(
    r'compound_prompt_projections\.\d+\.(weight|bias)|token_(prefix|suffix)_(pos|neg)|tokenized_prompts_(pos|neg)',
    name)}
  template = jax.eval_shape(lambda: init(jax.random.key(0), clip, cfg))
  want, deep = {}, [f'compound_prompts_text.{i}' for i in range(_deep_count(cfg))]
  for name, leaf in template.items():
    want |= dict.fromkeys(deep, leaf.shape[1:]) if name == 'deep' else {name: (1, 1, *leaf.shape)}
  wrong = [f'missing {name}' for name in want if name not in have]
  wrong += [f'unknown {name} {array.shape}' for name, array in have.items() if name not in want]
  wrong += [f'{name} is {have[name].shape}, not {shape}' for name, shape in want.items()
            if name in have and have[name].shape != shape]
  if wrong:
    raise ValueError('checkpoint does not fit this config (prompt.*, text width): ' + '; '.join(wrong))
  values = lambda name: np.stack([have[d] for d in deep]) if name == 'deep' else have[name][0, 0]
  return {name: jnp.asarray(values(name), jnp.float32) for name in template}


def check(clip, cfg):
  """Raises ValueError naming the first config key that does not fit this CLIP or another key."""
  p, vision, text = cfg.prompt, clip.arch.vision, clip.arch.text
  _one_of('dpam.mode', cfg.dpam.mode, DPAM_MODES)
  _one_of('dpam.ensemble', cfg.dpam.ensemble, ('logits', 'probs'))
  _one_of('prompt.deep_mode', p.deep_mode, ('overwrite', 'concat'))
  _one_of('t2_off', cfg.t2_off, ('object_aware', 'no_context'))
  depth = f'the image tower of {clip.arch.name} has {vision.layers} blocks'
  _within('dpam.first_block', cfg.dpam.first_block, 1, vision.layers, depth)
  if not cfg.local_layers:
    raise ValueError('local_layers is empty; name at least one block, such as (24,)')
  for layer in cfg.local_layers:
    _within('local_layers', layer, 1, vision.layers, depth)
  if cfg.t3_text_tuning:
    _within('prompt.depth (M)', p.depth, 1, text.layers, f'its text tower has {text.layers} blocks')
  if _has_context(cfg):
    _within('prompt.n_ctx (E)', p.n_ctx, 1, text.context - 3, f'its texts have {text.context} tokens')
  if _deep_count(cfg):
    context = p.n_ctx if _has_context(cfg) else 0
    _within('prompt.deep_len (L)', p.deep_len, 1, context if p.deep_mode == 'overwrite' else text.context,
            f'they may overwrite only the {context} context vectors (E); prompt.deep_mode=concat adds')
  if p.object_re and not cfg.t2_object_agnostic:
    raise ValueError('prompt.object_re renames the object of agnostic prompts; set t2_object_agnostic=True')
  for key, value in (('temperature', cfg.temperature), ('prompt.init_std', p.init_std)):
    if not value > 0:
      raise ValueError(f'{key} {value} is not positive')
  for key, value in (('loss.lambda_local', cfg.loss.lambda_local), ('map.sigma', cfg.map.sigma)):
    if not value >= 0:
      raise ValueError(f'{key} {value} is not 0 or more')


def _one_of(key, value, allowed):
  if value not in allowed:
    raise ValueError(f'{key} {value!r} is not one of {", ".join(allowed)}')


def _within(key, value, low, high, why):
  if not low <= value <= high:
    raise ValueError(f'{key} {value} is not in {low}..{high}: {why}')


def _sides(cfg):
  """The modes of the side streams; () where patches are read from CLIP's own stream."""
  return DPAM_MODES[cfg.dpam.mode] if cfg.t1_dpam else ()


def _has_context(cfg):
  return cfg.t2_object_agnostic or cfg.t2_off == 'object_aware'


def _deep_count(cfg):
  """Number of deep tensors: blocks 2..M are overwritten, blocks 1..M are added to."""
  if not cfg.t3_text_tuning:
    return 0
  return cfg.prompt.depth - (cfg.prompt.deep_mode == 'overwrite')


def _deep_tokens(learnable, rows, cfg):
  """Deep tokens [n, rows, L, W]; one copy a prompt before rounding, which rounds each prompt's gradient."""
  if 'deep' not in learnable:
    return None
  deep = learnable['deep']
  deep = jnp.broadcast_to(deep[:, None], (deep.shape[0], rows, *deep.shape[1:]))
  return deep.astype(jnp.float16).astype(jnp.float32) if cfg.prompt.deep_fp16_round else deep


def _auxiliary_names(cfg):
  if cfg.t2_object_agnostic:
    return (cfg.prompt.class_word,)
  if not cfg.prompt.categories:
    raise ValueError('object-aware prompts are trained per category: set prompt.categories to the object '
                     'names of the auxiliary set, in the order of batch["category"]')
  return tuple(cfg.prompt.categories)


def _image_logits(features, pair, temperature):
  """[B, 2]."""
  image = maps.normalize(features.cls.astype(jnp.float32))
  return maps.logits(image[:, None], pair, temperature)[:, 0]


def _patch_probs(features, layer, pair, temperature, cfg):
  """[B, N, 2]; an ensemble of streams averages its logits or its probabilities (appendix D)."""
  streams = [features.taps[Tap(stream, layer).name] for stream in _sides(cfg) or ('clip',)]
  patches = [maps.normalize(x.astype(jnp.float32)) for x in streams]
  logits = jnp.stack([maps.logits(x, pair, temperature) for x in patches])
  if cfg.dpam.ensemble == 'probs':
    return jax.nn.softmax(logits, axis=-1).mean(0)
  return jax.nn.softmax(logits.mean(0), axis=-1)


def _local_loss(probs, batch, size, terms):
  mask = batch['mask']
  known = batch['valid'] * batch['has_mask'] if 'has_mask' in batch else batch['valid']
  if mask.shape[1:] != (size, size):
    raise ValueError(f'masks are {mask.shape[1]}x{mask.shape[2]}; the loss needs them at image_size {size}')
  probs = maps.upsample(maps.square(probs), size)  # [B, R, R, 2]
  total = 0.0
  if terms.focal:
    total += losses.focal(probs, mask, known)
  if terms.dice:
    total += losses.dice(probs[..., 1], mask, known) + losses.dice(probs[..., 0], 1 - mask, known)
  return total
