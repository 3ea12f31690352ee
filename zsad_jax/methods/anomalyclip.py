"""AnomalyCLIP: object-agnostic prompt learning for zero-shot anomaly detection (ICLR 2024, arXiv 2310.18961).

Two prompts are trained on an auxiliary data set, for normality and abnormality, around the word "object":
  g_n = [V_1]...[V_E][object].      g_a = [W_1]...[W_E][damaged][object].                           (sec. 3.2)
together with tokens that enter the text tower's deeper blocks (sec. 3.3). Patch features come from a second
stream whose attention compares values with values (DPAM, sec. 3.3). The score of an image is the softmax of its
cosines with the two prompts, that of a pixel the same for its patch. Defaults follow the released code; if the paper
differs, a config key selects its variant (configs/anomalyclip.py).
"""

import collections
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.clip.feature_spec import Features, FeatureSpec, SideStream, Tap
from zsad_jax.methods import Batch, Clip, Config, Context, Metrics, Params, Prediction, Traits
from zsad_jax.methods.parts import bounds, prompts, released
from zsad_jax.methods.parts.bounds import NOT_NEGATIVE, POSITIVE, OneOf, Range
from zsad_jax.ops import losses, maps, multicrop

# The attention modes of the side streams next to CLIP's own; 'qk' alone is CLIP's own stream, T1 off (table 10).
DPAM_MODES = {
  'vv': ('vv',), 'qq': ('qq',), 'kk': ('kk',), 'qk': (),
  'ens1': ('qq', 'kk', 'vv'), 'ens2': ('qk', 'qq', 'kk', 'vv'),
}
# Arrays of the released checkpoints that inference does not read: projections that are not trained, and copies of
# token embeddings and ids.
UNUSED_ARRAYS = (r'compound_prompt_projections\.\d+\.(weight|bias)|token_(prefix|suffix)_(pos|neg)'
                 r'|tokenized_prompts_(pos|neg)')

TRAITS = Traits(evaluation_keys=('map.sigma', 'multicrop', 'prompt.object_re'))
BOUNDS = {
  't2_off': OneOf(('object_aware', 'no_context')),
  'dpam.mode': OneOf(tuple(DPAM_MODES)),
  'dpam.ensemble': OneOf(('logits', 'probs')),
  'prompt.deep_mode': OneOf(('overwrite', 'concat')),
  'prompt.init_std': POSITIVE,
  'temperature': POSITIVE,
  'loss.lambda_local': NOT_NEGATIVE,
  'map.sigma': NOT_NEGATIVE,
}


def feature_spec(clip: Clip, cfg: Config) -> FeatureSpec:
  """Returns the class token, also of crops, without ln_post as released, and one tap per layer and stream."""
  _check(clip, cfg)
  sides = _sides(cfg)
  return FeatureSpec(
    clip.image_size,
    cls='ln_post_proj' if cfg.cls_ln_post else 'proj',
    taps=tuple(Tap(stream, layer) for layer in _layers(clip, cfg) for stream in sides or ('clip',)),
    sides=tuple(SideStream(mode, mode, cfg.dpam.first_block, ffn=cfg.dpam.ffn) for mode in sides),
    positions=cfg.positions,
    crops=multicrop.side(clip.image_size, cfg.multicrop),
  )


def init(rng: jax.Array, clip: Clip, cfg: Config) -> Params:
  """Returns the initial prompts, drawn from N(0, init_std^2): a dict of float32 arrays.

  ctx_pos, ctx_neg [E, W] (V and W of sec. 3.2; one ctx if they are shared) and deep [M - 1, L, W] ([M, L, W] in concat
  mode), each only if it is trained; {} if nothing is.
  """
  p, width = cfg.prompt, clip.arch.text.width
  shapes: dict[str, tuple[int, ...]] = {}
  if _has_context(cfg):
    shapes |= dict.fromkeys(('ctx',) if p.shared_ctx else ('ctx_pos', 'ctx_neg'), (p.n_ctx, width))
  if _deep_count(cfg):
    shapes['deep'] = (_deep_count(cfg), p.deep_len, width)
  keys = dict(zip(('deep', 'ctx_pos', 'ctx_neg', 'ctx'), jax.random.split(rng, 4)))
  return {name: p.init_std * jax.random.normal(keys[name], shape) for name, shape in shapes.items()}


def encode_text(params: Params, clip_params: Params, names: Sequence[str], *, clip: Clip, cfg: Config) -> jax.Array:
  """Returns text features [C, 2, E], normal then abnormal; C = 1, one pair for all categories, if object-agnostic."""
  named = cfg.prompt.object_re or not cfg.t2_object_agnostic
  return _encode_prompts(params, clip_params, names if named else (cfg.prompt.class_word,), clip=clip, cfg=cfg)


def loss(params: Params, context: Context, features: Features, batch: Batch, rng: jax.Array, *,
         clip: Clip, cfg: Config) -> tuple[jax.Array, Metrics]:
  """Returns L_global + lambda sum_l (Focal + Dice(S_a, M) + Dice(S_n, 1 - M)), and its parts (eq. 2).

  The similarity maps are upsampled as probabilities to the masks' resolution, which is image_size. An image with an
  unknown mask counts in L_global only.

  Raises:
    ValueError: nothing to train, no loss term, object-aware prompts without names, masks of another size.
  """
  del rng
  terms = cfg.loss
  if not params:
    raise ValueError('t2_off=no_context without t2_object_agnostic and t3_text_tuning leaves AnomalyCLIP nothing to '
                     'train; evaluate it without training')
  if not (terms.ce or terms.focal or terms.dice):
    raise ValueError('loss.ce, loss.focal and loss.dice are all False; set at least one to True')
  names = (cfg.prompt.class_word,) if cfg.t2_object_agnostic else prompts.auxiliary_names(cfg.prompt)
  text = _encode_prompts(params, context.clip_params, names, clip=clip, cfg=cfg)
  pair = maps.of_category(text, batch['category'])
  temperature = prompts.temperature(context.clip_params, cfg)
  parts = {}
  if terms.ce:
    parts['loss_global'] = losses.cross_entropy(
      _image_logits(features, pair, temperature), batch['label'], batch['valid'])
  if terms.focal or terms.dice:
    local = lambda layer: _local_loss(
      _patch_probs(features, layer, pair, temperature, cfg), batch, clip.image_size, terms)
    parts['loss_local'] = sum(count * local(layer) for layer, count in _layers(clip, cfg).items())
  return parts.get('loss_global', 0.0) + terms.lambda_local * parts.get('loss_local', 0.0), parts


def predict(params: Params, context: Context, features: Features, batch: Batch, *,
            clip: Clip, cfg: Config) -> Prediction:
  """Returns score [B], the probability of the abnormal prompt, and map [B, R, R] at image_size (sec. 3.4).

  The map sums (1 - S_n + S_a) / 2 = S_a over the layers and is smoothed with a Gaussian of map.sigma pixels. The score
  can be averaged over crops, see multicrop.score; the paper's is not.
  """
  del params
  pair = maps.of_category(context.text_features, batch['category'])
  temperature = prompts.temperature(context.clip_params, cfg)
  score = multicrop.score(features, pair, temperature, cfg.multicrop)
  # Upsampling is linear, so the layers are summed on the patch grid.
  abnormal = sum(count * _patch_probs(features, layer, pair, temperature, cfg)[..., 1]
                 for layer, count in _layers(clip, cfg).items())
  return Prediction(score, maps.upsample_blur(maps.square(abnormal), clip.image_size, cfg.map.sigma))


def load_released(arrays: Mapping[str, np.ndarray], *, clip: Clip, cfg: Config) -> Params:
  """Returns params from the arrays of a released checkpoint, {name: array} of its 'prompt_learner'.

  Raises:
    ValueError: lists every name that is missing or unknown and every shape that does not fit the config.
  """
  template = jax.eval_shape(lambda: init(jax.random.key(0), clip, cfg))
  shapes: dict[str, tuple[int, ...]] = {}
  deep = [f'compound_prompts_text.{i}' for i in range(_deep_count(cfg))]
  for name, leaf in template.items():
    shapes |= dict.fromkeys(deep, leaf.shape[1:]) if name == 'deep' else {name: (1, 1, *leaf.shape)}
  matched = released.match(arrays, shapes, prefix='prompt_learner.', ignore=UNUSED_ARRAYS,
                           keys='prompt.*, the text width of clip')
  values = lambda name: np.stack([matched[d] for d in deep]) if name == 'deep' else matched[name][0, 0]
  return {name: jnp.asarray(values(name), jnp.float32) for name in template}


def _encode_prompts(params, clip_params, names, *, clip, cfg):
  """Text features [C, 2, E] of the prompts around `names`, L2-normalised, normal then abnormal.

  Ids are cut after the longest text's end, which the causal mask makes exact.
  """
  ids = clip.tokenize(_prompt_texts(names, cfg))  # [2C, context], on the host: a constant of the trace
  eot = clip.eot(ids)
  tokens = clip.embed(clip_params, jnp.asarray(ids[:, :eot.max() + 1]))  # [2C, L, W]
  if _has_context(cfg):
    pair = [params['ctx']] * 2 if cfg.prompt.shared_ctx else [params['ctx_pos'], params['ctx_neg']]
    vectors = jnp.tile(jnp.stack(pair), (len(names), 1, 1))
    tokens = jnp.concatenate([tokens[:, :1], vectors, tokens[:, 1 + cfg.prompt.n_ctx:]], axis=1)
  deep = _deep_tokens(params, len(ids), cfg)
  features = clip.text(clip_params, tokens, jnp.asarray(eot, jnp.int32), deep=deep, deep_mode=cfg.prompt.deep_mode)
  return maps.normalize(features).reshape(len(names), 2, -1)


def _prompt_texts(names, cfg):
  """The texts to tokenize, normal and abnormal in turn; each X stands for a context vector."""
  p = cfg.prompt
  context = ['X'] * p.n_ctx if _has_context(cfg) else []
  return [' '.join([*context, *state, prompts.to_words(name)]) + p.trailing
          for name in names for state in ((), (p.state_word,))]


def _layers(clip, cfg):
  """{block: how often its map counts} of local_layers.

  With t4_emulate_aliasing every layer from the one before DPAM on stands for the last block, as in the first
  release, whose stored tensors were one buffer that was updated in place; without DPAM there is no such buffer.
  """
  blocks = tuple(cfg.local_layers)
  if cfg.t4_emulate_aliasing and _sides(cfg):
    last = clip.arch.vision.layers
    blocks = tuple(last if layer >= cfg.dpam.first_block - 1 else layer for layer in blocks)
  return dict(sorted(collections.Counter(blocks).items()))


def _check(clip, cfg):
  """Raises ValueError naming the first config key that does not fit this CLIP or another key."""
  p, vision, text = cfg.prompt, clip.arch.vision, clip.arch.text
  blocks = f'the blocks of the image tower of {clip.arch.name}'
  if not cfg.local_layers or not all(1 <= layer <= vision.layers for layer in cfg.local_layers):
    raise ValueError(f'local_layers={tuple(cfg.local_layers)} is not allowed; it must have at least one block, each in '
                     f'[1, {vision.layers}], {blocks}')
  limits = {'dpam.first_block': Range(1, vision.layers, reason=blocks)}
  if cfg.t3_text_tuning:
    limits['prompt.depth'] = Range(1, text.layers, reason='the blocks of the text tower')
  if _has_context(cfg):
    limits['prompt.n_ctx'] = Range(1, text.context - 3, reason=f'to fit into the {text.context} tokens of a text')
  bounds.check(cfg, limits)
  if _deep_count(cfg):
    length = p.n_ctx if _has_context(cfg) else 0
    if p.deep_mode == 'overwrite' and not length:
      raise ValueError('prompt.deep_mode=overwrite has no context vectors to overwrite with t2_off=no_context; '
                       'use prompt.deep_mode=concat')
    bounds.check(cfg, {'prompt.deep_len': (
      Range(1, length, reason='the context vectors (prompt.n_ctx); prompt.deep_mode=concat allows more')
      if p.deep_mode == 'overwrite' else Range(1, text.context, reason='the tokens of a text'))})
  if p.object_re and not cfg.t2_object_agnostic:
    raise ValueError('prompt.object_re=True replaces the word of object-agnostic prompts; set t2_object_agnostic=True')


def _sides(cfg):
  """The modes of the side streams; () if patches are read from CLIP's own stream."""
  return DPAM_MODES[cfg.dpam.mode] if cfg.t1_dpam else ()


def _has_context(cfg):
  return cfg.t2_object_agnostic or cfg.t2_off == 'object_aware'


def _deep_count(cfg):
  """Number of deep tensors: blocks 2..M are overwritten, blocks 1..M are added to."""
  if not cfg.t3_text_tuning:
    return 0
  return cfg.prompt.depth - (cfg.prompt.deep_mode == 'overwrite')


def _deep_tokens(params, rows, cfg):
  """Deep tokens [n, rows, L, W]; one copy per prompt before rounding, which rounds each prompt's gradient."""
  if 'deep' not in params:
    return None
  deep = params['deep']
  deep = jnp.broadcast_to(deep[:, None], (deep.shape[0], rows, *deep.shape[1:]))
  return deep.astype(jnp.float16).astype(jnp.float32) if cfg.prompt.deep_fp16_round else deep


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
    raise ValueError(f'masks are {mask.shape[1]} x {mask.shape[2]} pixels; the loss needs them at image_size={size}')
  probs = maps.upsample(maps.square(probs), size)  # [B, R, R, 2]
  total = 0.0
  if terms.focal:
    total += losses.focal(probs, mask, known)
  if terms.dice:
    total += losses.dice(probs[..., 1], mask, known) + losses.dice(probs[..., 0], 1 - mask, known)
  return total
