"""CoOp, adapted to zero-shot anomaly detection: one learned context before the words that name state and object.

  [V_1]...[V_N][normal][cls].      [V_1]...[V_N][anomalous][cls].
V is shared by both states and by all objects ("unified", CoOp, arXiv 2109.01134, sec. 3.2), so that it reads any
object's name; the words are frozen. This is a baseline of AnomalyCLIP (arXiv 2310.18961, sec. A.2), trained with
the cross-entropy of image labels alone. Patches are compared with the same two texts in CLIP's own last block.
"""

import jax
import jax.numpy as jnp

from zsad_jax import losses, maps, multicrop
from zsad_jax.methods import prompts
from zsad_jax.spec import Spec, Tap

EVALUATION_KEYS = ('map.sigma', 'multicrop', 'temperature', 'use_logit_scale')


def spec(clip, cfg):
  """Returns the Spec: class token, also of crops, and last block's patch tokens, through ln_post and projection."""
  check(clip, cfg)
  return Spec(clip.image_size, cls='ln_post_proj', taps=(Tap('clip', clip.arch.vision.layers),),
              positions=cfg.positions, crops=multicrop.side(clip.image_size, cfg.multicrop))


def init(rng, clip, cfg):
  """Returns {'ctx': V [N, W]}, drawn from N(0, init_std^2), or the token embeddings of prompt.ctx_init.

  Raises:
    ValueError: a key is out of range, or ctx_init is not of n_ctx tokens.
  """
  check(clip, cfg)
  p = cfg.prompt
  if not p.ctx_init:
    return {'ctx': p.init_std * jax.random.normal(rng, (p.n_ctx, clip.arch.text.width))}
  ids = clip.tokenize([p.ctx_init])
  count = int(clip.eot(ids)[0]) - 1
  if count != p.n_ctx:
    raise ValueError(f'prompt.ctx_init {p.ctx_init!r} is {count} tokens, prompt.n_ctx is {p.n_ctx}; make them equal')
  return {'ctx': clip.embed(clip.params, jnp.asarray(ids))[0, 1:1 + count]}


def texts(learnable, frozen, names, *, clip, cfg):
  """Returns text features [C, 2, E] of the prompts around `names`, L2-normalised, normal then anomalous.

  Ids are cut after the longest text's end, which the causal mask makes exact.
  """
  ids = clip.tokenize(prompt_texts(names, cfg))  # [2C, context], on the host: a constant of the trace
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
  logits = maps.logits(image[:, None], pair, _temperature(frozen, cfg.loss))[:, 0]
  return losses.cross_entropy(logits, batch['label'], batch['valid']), {}


def predict(learnable, frozen, bank, memory, features, batch, *, clip, cfg):
  """Returns score [B], the probability of the anomalous prompt (multicrop.score), and map [B, R, R]."""
  del learnable, memory
  temperature = _temperature(frozen, cfg)
  pair = maps.of_category(bank, batch['category'])
  patches, = features.taps.values()
  score = multicrop.score(features, pair, temperature, cfg.multicrop)
  abnormal = maps.states(patches, pair, temperature)[..., 1]
  return {'score': score, 'map': maps.upsample_blur(maps.square(abnormal), clip.image_size, cfg.map.sigma)}


def prompt_texts(names, cfg):
  """Returns the texts to tokenize, normal and anomalous in turn; each X stands for a learned vector."""
  p = cfg.prompt
  return [' '.join(['X'] * p.n_ctx + [state, prompts.spoken(name)]) + p.trailing
          for name in names for state in (p.normal_word, p.abnormal_word)]


def check(clip, cfg):
  """Raises ValueError naming the first config key that is out of range."""
  p, longest = cfg.prompt, clip.arch.text.context
  if not 1 <= p.n_ctx <= longest - 4:
    raise ValueError(f'prompt.n_ctx {p.n_ctx} is not in 1..{longest - 4}: the texts have {longest} tokens')
  if not (p.normal_word and p.abnormal_word) or p.normal_word == p.abnormal_word:
    raise ValueError(f'prompt.normal_word {p.normal_word!r} and prompt.abnormal_word {p.abnormal_word!r} must be two '
                     'different words')
  for key, value in (('prompt.init_std', p.init_std), ('temperature', cfg.temperature),
                     ('loss.temperature', cfg.loss.temperature)):
    if not value > 0:
      raise ValueError(f'{key} {value} is not positive')
  if not cfg.map.sigma >= 0:
    raise ValueError(f'map.sigma {cfg.map.sigma} is not 0 or more')


def _temperature(frozen, keys):
  return jnp.exp(-frozen['logit_scale']) if keys.use_logit_scale else keys.temperature
