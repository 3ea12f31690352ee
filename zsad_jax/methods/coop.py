"""CoOp, adapted to zero-shot anomaly detection: one trained context before the words for state and object.

  [V_1]...[V_N][normal][cls].      [V_1]...[V_N][anomalous][cls].
V is shared by both states and by all objects ("unified", CoOp, arXiv 2109.01134, sec. 3.2), so that it works with any
object's name; the words are frozen. This is a baseline of AnomalyCLIP (arXiv 2310.18961, sec. A.2), trained with
the cross-entropy of image labels alone. Patches are compared with the same two texts in CLIP's own last block.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from zsad_jax.clip.feature_spec import Features, FeatureSpec, Tap
from zsad_jax.methods import Batch, Clip, Config, Context, Metrics, Params, Prediction, Traits
from zsad_jax.methods.parts import prompts
from zsad_jax.methods.parts.bounds import NOT_NEGATIVE, POSITIVE
from zsad_jax.ops import losses, maps, multicrop

TRAITS = Traits(evaluation_keys=('map.sigma', 'multicrop', 'temperature', 'use_logit_scale'))
BOUNDS = {'prompt.init_std': POSITIVE, 'temperature': POSITIVE, 'loss.temperature': POSITIVE, 'map.sigma': NOT_NEGATIVE}


def feature_spec(clip: Clip, cfg: Config) -> FeatureSpec:
  """Returns the class token, also of crops, and the last block's patch tokens, through ln_post and projection."""
  prompts.check_context(clip, cfg.prompt)
  return FeatureSpec(clip.image_size, cls='ln_post_proj', taps=(Tap('clip', clip.arch.vision.layers),),
                     positions=cfg.positions, crops=multicrop.side(clip.image_size, cfg.multicrop))


def init(rng: jax.Array, clip: Clip, cfg: Config) -> Params:
  """Returns {'ctx': V [N, W]}, drawn from N(0, init_std^2), or the token embeddings of prompt.ctx_init.

  Raises:
    ValueError: ctx_init does not have n_ctx tokens.
  """
  return {'ctx': prompts.initial_context(rng, clip, cfg.prompt)}


def encode_text(params: Params, clip_params: Params, names: Sequence[str], *, clip: Clip, cfg: Config) -> jax.Array:
  """Returns text features [C, 2, E] of the prompts around `names`, L2-normalised, normal then anomalous.

  Ids are cut after the longest text's end, which the causal mask makes exact.
  """
  ids = clip.tokenize(prompts.context_texts(names, cfg.prompt))  # [2C, context], on the host: a constant of the trace
  eot = clip.eot(ids)
  tokens = clip.embed(clip_params, jnp.asarray(ids[:, :eot.max() + 1]))  # [2C, L, W]
  vectors = jnp.broadcast_to(params['ctx'][None], (len(ids), *params['ctx'].shape))
  tokens = jnp.concatenate([tokens[:, :1], vectors, tokens[:, 1 + cfg.prompt.n_ctx:]], axis=1)
  features = clip.text(clip_params, tokens, jnp.asarray(eot, jnp.int32))
  return maps.normalize(features).reshape(len(names), 2, -1)


def loss(params: Params, context: Context, features: Features, batch: Batch, rng: jax.Array, *,
         clip: Clip, cfg: Config) -> tuple[jax.Array, Metrics]:
  """Returns the cross-entropy of image labels with the texts of each image's category, and no other metrics.

  Raises:
    ValueError: prompt.categories does not name the auxiliary categories.
  """
  del rng
  names = prompts.auxiliary_names(cfg.prompt)
  text = encode_text(params, context.clip_params, names, clip=clip, cfg=cfg)
  image = maps.normalize(features.cls.astype(jnp.float32))
  temperature = prompts.temperature(context.clip_params, cfg.loss)
  logits = maps.logits(image[:, None], maps.of_category(text, batch['category']), temperature)[:, 0]
  return losses.cross_entropy(logits, batch['label'], batch['valid']), {}


def predict(params: Params, context: Context, features: Features, batch: Batch, *,
            clip: Clip, cfg: Config) -> Prediction:
  """Returns score [B], the probability of the anomalous prompt (multicrop.score), and map [B, R, R] at image_size."""
  del params
  temperature = prompts.temperature(context.clip_params, cfg)
  pair = maps.of_category(context.text_features, batch['category'])
  patches, = features.taps.values()
  score = multicrop.score(features, pair, temperature, cfg.multicrop)
  abnormal = maps.states(patches, pair, temperature)[..., 1]
  return Prediction(score, maps.upsample_blur(maps.square(abnormal), clip.image_size, cfg.map.sigma))
