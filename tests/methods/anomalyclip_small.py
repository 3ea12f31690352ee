"""A small random CLIP for the tests of AnomalyCLIP, configs that fit it, and features of its shapes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from golden import record_anomalyclip as small
from method_checks import with_keys

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import Features
from zsad_jax.configs import anomalyclip as config
from zsad_jax.methods import anomalyclip as method

ARCH = clip_lib.Arch('small', small.EMBED, clip_lib.Vision(**small.VISION), clip_lib.Text(**small.TEXT))
L14 = clip_lib.Clip(clip_lib.ARCHS['vit_l14_336'], 518, params=None)
N = (small.SIZE // small.VISION['patch']) ** 2
loss = jax.jit(method.loss, static_argnames=('clip', 'cfg'))
predict = jax.jit(method.predict, static_argnames=('clip', 'cfg'))
step = jax.jit(jax.value_and_grad(method.loss, has_aux=True), static_argnames=('clip', 'cfg'))
encode_prompts = jax.jit(method._encode_prompts, static_argnames=('names', 'clip', 'cfg'))
encode_text = jax.jit(method.encode_text, static_argnames=('names', 'clip', 'cfg'))


def configured(**changes):
  """The published config for the small CLIP, with dotted changes written as part__key."""
  fitted = dict(image_size=small.SIZE, local_layers=(8,), dpam__first_block=small.FIRST_BLOCK,
                prompt__depth=small.DEPTH)
  return with_keys(config.get_config(), **{**fitted, **changes})


def published(**changes):
  return with_keys(config.get_config(), **changes)


@functools.cache
def loaded():
  return clip_lib.from_state_dict(ARCH, small.weights(), image_size=small.SIZE, tokenizer=small.Words())


def without_weights(kind=clip_lib.Clip):
  """That CLIP as `kind`: whatever a method computes, it computes from `clip_params`."""
  fields = {f.name: getattr(loaded(), f.name) for f in dataclasses.fields(clip_lib.Clip)}
  return kind(**fields | {'params': None})


@dataclasses.dataclass(frozen=True, eq=False)
class Shallow(clip_lib.Clip):
  """A Clip whose text tower compiles quickly, for tests that do not depend on the tower."""

  def text(self, params, embeddings, eot, *, deep=None, deep_mode='overwrite'):
    del deep_mode
    upto = (jnp.arange(embeddings.shape[1])[None] <= eot[:, None])[..., None]
    pooled = jnp.where(upto, embeddings, 0).sum(1) / (1 + eot[:, None])
    pooled = pooled if deep is None else pooled + deep.mean((0, 2))
    return jnp.tanh(pooled) @ params['text']['text_projection']['kernel']


def trained():
  """The recorded prompts, as params."""
  return {name: jnp.asarray(array) for name, array in small.prompts().items()}


def features_and_batch(cfg, clip, rows=4, seed=0):
  """Random features for every tap of the spec, and a batch whose odd rows are anomalous."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
  taps = {tap.name: draw(rows, N, small.EMBED) for tap in method.feature_spec(clip, cfg).taps}
  _, masks, labels = small.batch(rows=rows)
  batch = dict(mask=jnp.asarray(masks), label=jnp.asarray(labels), category=jnp.zeros(rows, jnp.int32),
               valid=jnp.ones(rows, bool))
  return Features(draw(rows, small.EMBED), taps), batch


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)
