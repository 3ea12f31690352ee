"""CoOp, adapted to zero-shot anomaly detection: one learned context before the words that name state and object.

  [V_1]...[V_N][normal][cls].      [V_1]...[V_N][anomalous][cls].
V is shared by both states and by all objects ("unified", CoOp, arXiv 2109.01134, sec. 3.2), so that it reads any
object's name; the words are frozen. This is a baseline of AnomalyCLIP (arXiv 2310.18961, sec. A.2), trained with
the cross-entropy of image labels alone. Patches are compared with the same two texts in CLIP's own last block.
"""

import jax.numpy as jnp

from zsad_jax.clip.feature_spec import FeatureSpec, Tap
from zsad_jax.methods.parts import prompts
from zsad_jax.ops import losses, maps, multicrop

EVALUATION_KEYS = ('map.sigma', 'multicrop', 'temperature', 'use_logit_scale')


def spec(clip, cfg):
  """Returns the FeatureSpec: class token, also of crops, and last block's patch tokens, through ln_post and projection."""
  check(clip, cfg)
  return FeatureSpec(clip.image_size, cls='ln_post_proj', taps=(Tap('clip', clip.arch.vision.layers),),
              positions=cfg.positions, crops=multicrop.side(clip.image_size, cfg.multicrop))


def init(rng, clip, cfg):
  """Returns {'ctx': V [N, W]}, drawn from N(0, init_std^2), or the token embeddings of prompt.ctx_init.

  Raises:
    ValueError: a key is out of range, or ctx_init is not of n_ctx tokens.
  """
  check(clip, cfg)
  return {'ctx': prompts.context(rng, clip, cfg.prompt)}


def texts(learnable, frozen, names, *, clip, cfg):
  """Returns text features [C, 2, E] of the prompts around `names`, L2-normalised, normal then anomalous.

  Ids are cut after the longest text's end, which the causal mask makes exact.
  """
  ids = clip.tokenize(prompts.around_context(names, cfg.prompt))  # [2C, context], on the host: a constant of the trace
  eot = clip.eot(ids)
  tokens = clip.embed(frozen, jnp.asarray(ids[:, :eot.max() + 1]))  # [2C, L, W]
  context = jnp.broadcast_to(learnable['ctx'][None], (len(ids), *learnable['ctx'].shape))
  tokens = jnp.concatenate([tokens[:, :1], context, tokens[:, 1 + cfg.prompt.n_ctx:]], axis=1)
  features = clip.text(frozen, tokens, jnp.asarray(eot, jnp.int32))
  return maps.normalize(features).reshape(len(names), 2, -1)


def bank(learnable, frozen, categories, *, clip, cfg):
  """Returns text features [C, 2, E], normal and anomalous, of each category's name."""
  return texts(learnable, frozen, categories, clip=clip, cfg=cfg)


def loss(learnable, frozen, features, batch, rng, *, clip, cfg):
  """Returns the cross-entropy of image labels with the texts of each image's category, and no other metrics.

  Raises:
    ValueError: prompt.categories does not name the auxiliary categories.
  """
  del rng
  if not cfg.prompt.categories:
    raise ValueError('CoOp is trained per category: set prompt.categories to the object names of the auxiliary set, '
                     'in the order of batch["category"]')
  pair = maps.of_category(texts(learnable, frozen, cfg.prompt.categories, clip=clip, cfg=cfg), batch['category'])
  image = maps.normalize(features.cls.astype(jnp.float32))
  logits = maps.logits(image[:, None], pair, prompts.temperature(frozen, cfg.loss))[:, 0]
  return losses.cross_entropy(logits, batch['label'], batch['valid']), {}


def predict(learnable, frozen, bank, memory, features, batch, *, clip, cfg):
  """Returns score [B], the probability of the anomalous prompt (multicrop.score), and map [B, R, R]."""
  del learnable, memory
  temperature = prompts.temperature(frozen, cfg)
  pair = maps.of_category(bank, batch['category'])
  patches, = features.taps.values()
  score = multicrop.score(features, pair, temperature, cfg.multicrop)
  abnormal = maps.states(patches, pair, temperature)[..., 1]
  return {'score': score, 'map': maps.upsample_blur(maps.square(abnormal), clip.image_size, cfg.map.sigma)}


def check(clip, cfg):
  """Raises ValueError naming the first config key that is out of range."""
  prompts.check_context(clip, cfg.prompt)
  for key, value in (('temperature', cfg.temperature), ('loss.temperature', cfg.loss.temperature)):
    if not value > 0:
      raise ValueError(f'{key} {value} is not positive')
  if not cfg.map.sigma >= 0:
    raise ValueError(f'map.sigma {cfg.map.sigma} is not 0 or more')
