"""CoCoOp, adapted to zero-shot anomaly detection: a context that a small network shifts for every image.

  [v_1(x)]...[v_N(x)][good][cls].      [v_1(x)]...[v_N(x)][damaged][cls].      v_n(x) = v_n + h(x)
h, the meta-net, maps the L2-normalised image feature to one vector, which every context vector takes on (CoCoOp,
arXiv 2203.05557, sec. 3.2). So each image has texts of its own, in training and at test time, and they are encoded
as one batch. The state words are those of FuzzyCLIP's comparison (sec. A.1); everything else follows CoOp as a
baseline of AnomalyCLIP (arXiv 2310.18961, sec. A.2): the cross-entropy of image labels alone, patches from CLIP's
own last block.
"""

import jax
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
  """Returns {'ctx': v [N, W], 'meta_net': {'linear1': E to E / reduction, 'linear2': to W}}.

  The context starts as the token embeddings of prompt.ctx_init, or from N(0, init_std^2) where that is ''. Layers
  hold kernel [in, out] and bias [out], from U(-1 / sqrt(in), 1 / sqrt(in)) as torch's Linear does.

  Raises:
    ValueError: a key is out of range, or ctx_init is not of n_ctx tokens.
  """
  check(clip, cfg)
  width, embed = clip.arch.text.width, clip.arch.embed_dim
  hidden = embed // cfg.prompt.reduction
  first, second, context = jax.random.split(rng, 3)
  return {'ctx': prompts.context(context, clip, cfg.prompt),
          'meta_net': {'linear1': _linear(first, embed, hidden), 'linear2': _linear(second, hidden, width)}}


def words(frozen, names, *, clip, cfg):
  """Returns what all images of a category share: {'tokens': [C, 2, L, W], 'eot': [C, 2]}, normal then damaged.

  The embeddings at positions 1..N only keep the context's place. Ids are cut after the longest text's end, which the
  causal mask makes exact.
  """
  ids = clip.tokenize(prompts.around_context(names, cfg.prompt))  # [2C, context], on the host: a constant of the trace
  eot = clip.eot(ids)
  tokens = clip.embed(frozen, jnp.asarray(ids[:, :eot.max() + 1]))
  return {'tokens': tokens.reshape(len(names), 2, *tokens.shape[1:]),
          'eot': jnp.asarray(eot, jnp.int32).reshape(len(names), 2)}


def shift(learnable, image):
  """Returns h(x) [B, W], what each image adds to every context vector, of L2-normalised features [B, E]."""
  net = learnable['meta_net']
  linear = lambda x, layer: x @ layer['kernel'] + layer['bias'][None]
  return linear(jax.nn.relu(linear(image, net['linear1'])), net['linear2'])


def texts(learnable, frozen, bank, image, category, *, clip):
  """Returns each image's own text features [B, 2, E], L2-normalised, in one batch of texts.

  At most prompts.CHUNK texts are encoded at once. A larger batch goes through in parts, whose activations a gradient
  computes again, so that memory for them does not grow with the batch.

  Args:
    bank: see `words`.
    image: [B, E], L2-normalised.
    category: [B], rows of the bank.
  """
  def encode(row):
    context, category = row
    tokens = jnp.take(bank['tokens'], category, axis=0)  # [2, L, W]
    both = jnp.broadcast_to(context[None], (2, *context.shape))
    tokens = jnp.concatenate([tokens[:, :1], both, tokens[:, 1 + len(context):]], axis=1)
    return maps.normalize(clip.text(frozen, tokens, jnp.take(bank['eot'], category, axis=0)))

  context = learnable['ctx'][None] + shift(learnable, image)[:, None]  # [B, N, W]
  at_once = max(prompts.CHUNK // 2, 1)
  encode = encode if len(image) <= at_once else jax.checkpoint(encode)
  return jax.lax.map(encode, (context, category), batch_size=at_once)


def bank(learnable, frozen, categories, *, clip, cfg):
  """Returns the frozen part of each category's texts, see `words`; the images that they wait for come in predict."""
  del learnable
  return words(frozen, categories, clip=clip, cfg=cfg)


def loss(learnable, frozen, features, batch, rng, *, clip, cfg):
  """Returns the cross-entropy of image labels with each image's own texts, and no other metrics.

  Raises:
    ValueError: prompt.categories does not name the auxiliary categories.
  """
  del rng
  if not cfg.prompt.categories:
    raise ValueError('CoCoOp is trained per category: set prompt.categories to the object names of the auxiliary set, '
                     'in the order of batch["category"]')
  said = words(frozen, cfg.prompt.categories, clip=clip, cfg=cfg)
  image = maps.normalize(features.cls.astype(jnp.float32))
  pair = texts(learnable, frozen, said, image, batch['category'], clip=clip)
  logits = maps.logits(image[:, None], pair, prompts.temperature(frozen, cfg.loss))[:, 0]
  return losses.cross_entropy(logits, batch['label'], batch['valid']), {}


def predict(learnable, frozen, bank, memory, features, batch, *, clip, cfg):
  """Returns score [B], the probability of the damaged prompt (multicrop.score), and map [B, R, R] at image_size.

  Crops meet the texts of their whole image, which so has one pair in all.
  """
  del memory
  temperature = prompts.temperature(frozen, cfg)
  image = maps.normalize(features.cls.astype(jnp.float32))
  pair = texts(learnable, frozen, bank, image, batch['category'], clip=clip)
  patches, = features.taps.values()
  score = multicrop.score(features, pair, temperature, cfg.multicrop)
  abnormal = maps.states(patches, pair, temperature)[..., 1]
  return {'score': score, 'map': maps.upsample_blur(maps.square(abnormal), clip.image_size, cfg.map.sigma)}


def check(clip, cfg):
  """Raises ValueError naming the first config key that is out of range."""
  p, embed = cfg.prompt, clip.arch.embed_dim
  prompts.check_context(clip, p)
  if not 1 <= p.reduction <= embed:
    raise ValueError(f'prompt.reduction {p.reduction} is not in 1..{embed}: image features have {embed} channels')
  for key, value in (('temperature', cfg.temperature), ('loss.temperature', cfg.loss.temperature)):
    if not value > 0:
      raise ValueError(f'{key} {value} is not positive')
  if not cfg.map.sigma >= 0:
    raise ValueError(f'map.sigma {cfg.map.sigma} is not 0 or more')


def _linear(rng, inputs, outputs):
  weight, bias = jax.random.split(rng)
  bound = inputs ** -0.5
  draw = lambda key, *shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
  return {'kernel': draw(weight, inputs, outputs), 'bias': draw(bias, outputs)}
