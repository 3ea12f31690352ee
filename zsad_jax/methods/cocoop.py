"""CoCoOp, adapted to zero-shot anomaly detection: a context that a small network shifts for every image.

  [v_1(x)]...[v_N(x)][good][cls].      [v_1(x)]...[v_N(x)][damaged][cls].      v_n(x) = v_n + h(x)
h, the meta-net, maps the L2-normalised image feature to one vector, which is added to every context vector (CoCoOp,
arXiv 2203.05557, sec. 3.2). So each image has its own texts, in training and at test time, and they are encoded
as one batch. The state words are those of FuzzyCLIP's comparison (sec. A.1); everything else follows CoOp as a
baseline of AnomalyCLIP (arXiv 2310.18961, sec. A.2): the cross-entropy of image labels alone, patches from CLIP's
own last block.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from zsad_jax.clip.feature_spec import Features, FeatureSpec, Tap
from zsad_jax.methods import Batch, Clip, Config, Context, Metrics, Params, Prediction, Traits
from zsad_jax.methods.parts import bounds, prompts
from zsad_jax.methods.parts.bounds import NOT_NEGATIVE, POSITIVE, Range
from zsad_jax.ops import losses, maps, multicrop

TRAITS = Traits(evaluation_keys=('map.sigma', 'multicrop', 'temperature', 'use_logit_scale'))
BOUNDS = {'prompt.init_std': POSITIVE, 'temperature': POSITIVE, 'loss.temperature': POSITIVE, 'map.sigma': NOT_NEGATIVE}


def feature_spec(clip: Clip, cfg: Config) -> FeatureSpec:
  """Returns the class token, also of crops, and the last block's patch tokens, through ln_post and projection."""
  prompts.check_context(clip, cfg.prompt)
  bounds.check(cfg, {'prompt.reduction': Range(1, clip.arch.embed_dim, reason='the channels of image features')})
  return FeatureSpec(clip.image_size, cls='ln_post_proj', taps=(Tap('clip', clip.arch.vision.layers),),
                     positions=cfg.positions, crops=multicrop.side(clip.image_size, cfg.multicrop))


def init(rng: jax.Array, clip: Clip, cfg: Config) -> Params:
  """Returns {'ctx': v [N, W], 'meta_net': {'linear1': E to E / reduction, 'linear2': to W}}.

  The context starts as the token embeddings of prompt.ctx_init, or from N(0, init_std^2) if that is ''. Layers
  hold kernel [in, out] and bias [out], from U(-1 / sqrt(in), 1 / sqrt(in)) as torch's Linear does.

  Raises:
    ValueError: ctx_init does not have n_ctx tokens.
  """
  width, embed = clip.arch.text.width, clip.arch.embed_dim
  hidden = embed // cfg.prompt.reduction
  first, second, context = jax.random.split(rng, 3)
  return {'ctx': prompts.initial_context(context, clip, cfg.prompt),
          'meta_net': {'linear1': _linear(first, embed, hidden), 'linear2': _linear(second, hidden, width)}}


def encode_text(params: Params, clip_params: Params, names: Sequence[str], *,
                clip: Clip, cfg: Config) -> dict[str, jax.Array]:
  """Returns what all images of a category share: {'tokens': [C, 2, L, W], 'eot': [C, 2]}, normal then damaged.

  The text tower runs in `predict`, once the images are known: the embeddings at positions 1..N only keep the context's
  place. Ids are cut after the longest text's end, which the causal mask makes exact.
  """
  del params
  ids = clip.tokenize(prompts.context_texts(names, cfg.prompt))  # [2C, context], on the host: a constant of the trace
  eot = clip.eot(ids)
  tokens = clip.embed(clip_params, jnp.asarray(ids[:, :eot.max() + 1]))
  return {'tokens': tokens.reshape(len(names), 2, *tokens.shape[1:]),
          'eot': jnp.asarray(eot, jnp.int32).reshape(len(names), 2)}


def loss(params: Params, context: Context, features: Features, batch: Batch, rng: jax.Array, *,
         clip: Clip, cfg: Config) -> tuple[jax.Array, Metrics]:
  """Returns the cross-entropy of image labels with each image's own texts, and no other metrics.

  Raises:
    ValueError: prompt.categories does not name the auxiliary categories.
  """
  del rng
  words = encode_text(params, context.clip_params, prompts.auxiliary_names(cfg.prompt), clip=clip, cfg=cfg)
  image = maps.normalize(features.cls.astype(jnp.float32))
  pair = _texts_of_images(params, context.clip_params, words, image, batch['category'], clip=clip)
  logits = maps.logits(image[:, None], pair, prompts.temperature(context.clip_params, cfg.loss))[:, 0]
  return losses.cross_entropy(logits, batch['label'], batch['valid']), {}


def predict(params: Params, context: Context, features: Features, batch: Batch, *,
            clip: Clip, cfg: Config) -> Prediction:
  """Returns score [B], the probability of the damaged prompt (multicrop.score), and map [B, R, R] at image_size.

  Crops are compared with the texts of their whole image, so that an image has one pair of texts.
  """
  temperature = prompts.temperature(context.clip_params, cfg)
  image = maps.normalize(features.cls.astype(jnp.float32))
  pair = _texts_of_images(params, context.clip_params, context.text_features, image, batch['category'], clip=clip)
  patches, = features.taps.values()
  score = multicrop.score(features, pair, temperature, cfg.multicrop)
  abnormal = maps.states(patches, pair, temperature)[..., 1]
  return Prediction(score, maps.upsample_blur(maps.square(abnormal), clip.image_size, cfg.map.sigma))


def _meta_net(params, image):
  """h(x) [B, W], the shift of every context vector by an image, of L2-normalised features [B, E]."""
  net = params['meta_net']
  linear = lambda x, layer: x @ layer['kernel'] + layer['bias'][None]
  return linear(jax.nn.relu(linear(image, net['linear1'])), net['linear2'])


def _texts_of_images(params, clip_params, words, image, category, *, clip):
  """Text features [B, 2, E] of each image's own prompts, L2-normalised, encoded in one batch.

  At most prompts.CHUNK texts are encoded at once. A larger batch is encoded in parts, whose activations a gradient
  computes again, so that memory for them does not grow with the batch.

  Args:
    params: context and meta-net.
    clip_params: CLIP's weights.
    words: see `encode_text`.
    image: [B, E], L2-normalised.
    category: [B], rows of `words`.
    clip: its text tower.
  """
  def encode(row):
    context, category = row
    tokens = jnp.take(words['tokens'], category, axis=0)  # [2, L, W]
    both = jnp.broadcast_to(context[None], (2, *context.shape))
    tokens = jnp.concatenate([tokens[:, :1], both, tokens[:, 1 + len(context):]], axis=1)
    return maps.normalize(clip.text(clip_params, tokens, jnp.take(words['eot'], category, axis=0)))

  context = params['ctx'][None] + _meta_net(params, image)[:, None]  # [B, N, W]
  at_once = max(prompts.CHUNK // 2, 1)
  encode = encode if len(image) <= at_once else jax.checkpoint(encode)
  return jax.lax.map(encode, (context, category), batch_size=at_once)


def _linear(rng, inputs, outputs):
  weight, bias = jax.random.split(rng)
  bound = inputs ** -0.5
  draw = lambda key, *shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
  return {'kernel': draw(weight, inputs, outputs), 'bias': draw(bias, outputs)}
