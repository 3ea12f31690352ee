"""State words and template ensembles as data, and trainable contexts; `{}` stands for the object's name.

Nothing here knows a method: each method names the lists that its paper uses.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.methods import Clip, Config, Params
from zsad_jax.methods.parts import bounds
from zsad_jax.ops import maps

Groups = Sequence[Sequence[str]]

CHUNK = 512  # texts encoded at once: some hundred MB of activations in a large text tower

# Abnormal state words of AnomalyCLIP (arXiv 2310.18961, tables 13 and 14); the first is the paper's choice.
STATE_WORDS = ('damaged', 'anomalous', 'flawed', 'defective', 'blemished')

# Plain CLIP as AnomalyCLIP's baseline (sec. A.2): normal, abnormal.
CLIP_PAIR = ('A photo of a normal {}', 'A photo of an anomalous {}')

# CLIP-AC (same section): states that fill the ImageNet templates.
CLIP_AC_STATES = (('normal {}',), ('anomalous {}',))

# The state lists shipped with APRIL-GAN (arXiv 2305.17382) and AnomalyCLIP's code: normal, abnormal.
COMPOUND_STATES = (
  ('{}', 'flawless {}', 'perfect {}', 'unblemished {}',
   '{} without flaw', '{} without defect', '{} without damage'),
  ('damaged {}', 'broken {}', '{} with flaw', '{} with defect', '{} with damage'),
)

# The 80 templates of CLIP's ImageNet ensemble (arXiv 2103.00020, sec. 3.1.4), in their published order.
IMAGENET_TEMPLATES = (
  'a bad photo of a {}.', 'a photo of many {}.', 'a sculpture of a {}.', 'a photo of the hard to see {}.',
  'a low resolution photo of the {}.', 'a rendering of a {}.', 'graffiti of a {}.', 'a bad photo of the {}.',
  'a cropped photo of the {}.', 'a tattoo of a {}.', 'the embroidered {}.', 'a photo of a hard to see {}.',
  'a bright photo of a {}.', 'a photo of a clean {}.', 'a photo of a dirty {}.', 'a dark photo of the {}.',
  'a drawing of a {}.', 'a photo of my {}.', 'the plastic {}.', 'a photo of the cool {}.',
  'a close-up photo of a {}.', 'a black and white photo of the {}.', 'a painting of the {}.',
  'a painting of a {}.', 'a pixelated photo of the {}.', 'a sculpture of the {}.',
  'a bright photo of the {}.', 'a cropped photo of a {}.', 'a plastic {}.', 'a photo of the dirty {}.',
  'a jpeg corrupted photo of a {}.', 'a blurry photo of the {}.', 'a photo of the {}.',
  'a good photo of the {}.', 'a rendering of the {}.', 'a {} in a video game.', 'a photo of one {}.',
  'a doodle of a {}.', 'a close-up photo of the {}.', 'a photo of a {}.', 'the origami {}.',
  'the {} in a video game.', 'a sketch of a {}.', 'a doodle of the {}.', 'a origami {}.',
  'a low resolution photo of a {}.', 'the toy {}.', 'a rendition of the {}.', 'a photo of the clean {}.',
  'a photo of a large {}.', 'a rendition of a {}.', 'a photo of a nice {}.', 'a photo of a weird {}.',
  'a blurry photo of a {}.', 'a cartoon {}.', 'art of a {}.', 'a sketch of the {}.', 'a embroidered {}.',
  'a pixelated photo of a {}.', 'itap of the {}.', 'a jpeg corrupted photo of the {}.',
  'a good photo of a {}.', 'a plushie {}.', 'a photo of the nice {}.', 'a photo of the small {}.',
  'a photo of the weird {}.', 'the cartoon {}.', 'art of the {}.', 'a drawing of the {}.',
  'a photo of the large {}.', 'a black and white photo of a {}.', 'the plushie {}.', 'a dark photo of a {}.',
  'itap of a {}.', 'graffiti of the {}.', 'a toy {}.', 'itap of my {}.', 'a photo of a cool {}.',
  'a photo of a small {}.', 'a tattoo of the {}.',
)

# The 35 templates that go with COMPOUND_STATES: 30 of ImageNet's and five scenes.
COMPOUND_TEMPLATES = (
  'a bad photo of a {}.', 'a low resolution photo of the {}.', 'a bad photo of the {}.',
  'a cropped photo of the {}.', 'a bright photo of a {}.', 'a dark photo of the {}.', 'a photo of my {}.',
  'a photo of the cool {}.', 'a close-up photo of a {}.', 'a black and white photo of the {}.',
  'a bright photo of the {}.', 'a cropped photo of a {}.', 'a jpeg corrupted photo of a {}.',
  'a blurry photo of the {}.', 'a photo of the {}.', 'a good photo of the {}.', 'a photo of one {}.',
  'a close-up photo of the {}.', 'a photo of a {}.', 'a low resolution photo of a {}.',
  'a photo of a large {}.', 'a blurry photo of a {}.', 'a jpeg corrupted photo of the {}.',
  'a good photo of a {}.', 'a photo of the small {}.', 'a photo of the large {}.',
  'a black and white photo of a {}.', 'a dark photo of a {}.', 'a photo of a cool {}.',
  'a photo of a small {}.', 'there is a {} in the scene.', 'there is the {} in the scene.',
  'this is a {} in the scene.', 'this is the {} in the scene.', 'this is one {} in the scene.',
)

# The states and templates of WinCLIP (arXiv 2303.14814), normal and abnormal, as CLIP-AD's code has the templates.
WINCLIP_STATES = (
  ('{}', 'flawless {}', 'perfect {}', 'unblemished {}',
   '{} without flaw', '{} without defect', '{} without damage'),
  ('damaged {}', '{} with flaw', '{} with defect', '{} with damage'),
)
WINCLIP_TEMPLATES = (
  'a cropped photo of the {}.', 'a cropped photo of a {}.', 'a close-up photo of a {}.',
  'a close-up photo of the {}.', 'a bright photo of a {}.', 'a bright photo of the {}.', 'a dark photo of the {}.',
  'a dark photo of a {}.', 'a jpeg corrupted photo of a {}.', 'a jpeg corrupted photo of the {}.',
  'a blurry photo of the {}.', 'a blurry photo of a {}.', 'a photo of the {}.', 'a photo of a {}.',
  'a photo of a small {}.', 'a photo of the small {}.', 'a photo of a large {}.', 'a photo of the large {}.',
  'a photo of the {} for visual inspection.', 'a photo of a {} for visual inspection.',
  'a photo of the {} for anomaly detection.', 'a photo of a {} for anomaly detection.',
)

# The same in Accurate-WinCLIP and anomalib: two are missing, and one is listed twice and so weighs double.
ACCURATE_TEMPLATES = (
  *(t for t in WINCLIP_TEMPLATES if t not in ('a cropped photo of a {}.', 'a jpeg corrupted photo of a {}.')),
  'a jpeg corrupted photo of the {}.',
)

# The states of CLIP-AD (arXiv 2311.00453, suppl. A), whose templates are WINCLIP_TEMPLATES.
CLIP_AD_STATES = (
  ('flawless {}', 'perfect {}', 'unblemished {}', '{} without flaw', '{} without defect', '{} without damage',
   '{} without scratch', '{} without crack', '{} without contamination'),
  ('damaged {}', 'imperfect {}', 'blemished {}', 'broken {}', '{} with flaw', '{} with defect', '{} with damage',
   '{} with scratch', '{} with crack', '{} with contamination'),
)
# Its words for medical images in place of scratches and cracks, and its names of the objects in them.
CLIP_AD_UNMEDICAL = ('scratch', 'crack')
CLIP_AD_MEDICAL = {'head_ct': ('hemorrhage',), 'brain_mri': ('tumor',), 'cvc_clinicdb': ('polypus', 'polyp')}
CLIP_AD_OBJECTS = {'head_ct': 'head ct', 'brain_mri': 'brain ct', 'isic2016': 'skin', 'cvc_clinicdb': 'colon'}

# The pairs from which FuzzyCLIP's image prompts are trained (table 9, in its order): normal, abnormal.
FUZZY_TEMPLATES = {
  'a_photo': ('a photo of a good {}', 'a photo of a damaged {}'),
  'this_is': ('This is a good photo of {}', 'This is a damaged photo of {}'),
  'it_is': ('It is a photo of a {} without damage', 'It is a photo of a {} with damage'),
  'there_is': ('There is not a damaged {} in the photo', 'There is a damaged {} in the photo'),
  'perfect': ('It is a good, perfect and pristine picture of {}', 'It is a damaged, flawed, and broken picture of {}'),
}


def clip_ad_states(dataset: str, words: Sequence[str] = ()) -> tuple[tuple[str, ...], ...]:
  """Returns CLIP-AD's normal and abnormal states for a data set.

  If its list has `words` of its own, by default those of CLIP_AD_MEDICAL, "without" and "with" each of them replace
  scratch and crack. The paper gives the words alone; both forms are a guess.
  """
  words = tuple(words) or CLIP_AD_MEDICAL.get(dataset.partition('/')[0], ())
  if not words:
    return CLIP_AD_STATES
  forms = zip(CLIP_AD_STATES, ('{} without ', '{} with '))
  return tuple((*(state for state in states if not state.endswith(CLIP_AD_UNMEDICAL)), *(form + w for w in words))
               for states, form in forms)


def clip_ad(clip: Clip, clip_params: Params, categories: Sequence[str], dataset: str, *, words: Sequence[str] = (),
            raw_names: bool = False) -> tuple[jax.Array, ...]:
  """Returns the L2-normalised features of every text of CLIP-AD, (normal [C, n, E], abnormal [C, m, E]).

  22 templates around 9 and 10 states of every category; representative_vectors reduces them to one vector per state.

  Args:
    clip, clip_params, raw_names: see ensemble.
    categories: object names, replaced by those of CLIP_AD_OBJECTS.
    dataset: the data set's name in the config.
    words: see clip_ad_states.
  """
  common = CLIP_AD_OBJECTS.get(dataset.partition('/')[0])
  names = tuple(common or category for category in categories)
  return tuple(
    encode(clip, clip_params, [compose(forms, WINCLIP_TEMPLATES, name, raw_names=raw_names) for name in names])
    for forms in clip_ad_states(dataset, words))


def to_words(name: str) -> str:
  """Returns an object name as text: 'metal_nut' becomes 'metal nut'."""
  return name.replace('_', ' ')


def compose(states: Sequence[str], templates: Sequence[str], name: str, *, raw_names: bool = False) -> list[str]:
  """Returns every template around every state of `name`, states outermost.

  Underscores of the name become spaces, unless raw_names keeps it unchanged.
  """
  name = name if raw_names else to_words(name)
  return [template.format(state.format(name)) for state in states for template in templates]


def ensemble(clip: Clip, clip_params: Params, names: Sequence[str], states: Groups, templates: Sequence[str], *,
             normalize_each: bool = True, normalize_mean: bool = True, raw_names: bool = False) -> jax.Array:
  """Returns one L2-normalised text feature per name and state, [C, S, E].

  The features of all texts of a state are normalised, averaged and normalised again. Ids are cut after the longest
  text's end token, which the text tower's causal mask makes exact.

  Args:
    clip: a zsad_jax.clip.model.Clip; its tokenizer and pure functions are used.
    clip_params: its weights.
    names: object names.
    states: per state, forms with a `{}` for the name.
    templates: texts with a `{}` for the form.
    normalize_each: False averages the features without normalising them, so that longer ones weigh more (WinCLIP).
    normalize_mean: False leaves the averages unnormalised.
    raw_names: see compose.
  """
  groups = [compose(forms, templates, name, raw_names=raw_names) for name in names for forms in states]
  features = _encode(clip, clip_params, [text for group in groups for text in group], normalize_each)
  ends = np.cumsum([len(group) for group in groups])
  means = [part.mean(0) for part in jnp.split(features, ends[:-1])]
  means = [maps.normalize(mean) for mean in means] if normalize_mean else means
  return jnp.stack(means).reshape(len(names), len(states), -1)


def encode(clip: Clip, clip_params: Params, groups: Groups) -> jax.Array:
  """Returns the L2-normalised features of groups of equally many texts, [G, n, E]; ids are cut as in ensemble."""
  features = _encode(clip, clip_params, [text for group in groups for text in group], True)
  return features.reshape(len(groups), len(groups[0]), -1)


def _encode(clip, clip_params, texts, normalize_each):
  """Returns the features of texts, [T, E]."""
  ids = clip.tokenize(texts)
  eot = clip.eot(ids)

  def one(row):
    tokens = clip.embed(clip_params, row[0][None])
    feature = clip.text(clip_params, tokens, row[1][None])[0]
    return maps.normalize(feature) if normalize_each else feature

  rows = jnp.asarray(ids[:, :eot.max() + 1]), jnp.asarray(eot, jnp.int32)
  return jax.lax.map(one, rows, batch_size=CHUNK)


def context_texts(names: Sequence[str], keys: Config) -> list[str]:
  """Returns the texts of CoOp's kind to tokenize, normal and abnormal in turn; each X stands for a context vector.

  `keys` is a config's prompt: n_ctx, normal_word, abnormal_word and trailing.
  """
  return [' '.join(['X'] * keys.n_ctx + [state, to_words(name)]) + keys.trailing
          for name in names for state in (keys.normal_word, keys.abnormal_word)]


def initial_context(rng: jax.Array, clip: Clip, keys: Config) -> jax.Array:
  """Returns the initial context vectors [N, W]: token embeddings of keys.ctx_init, or N(0, init_std^2).

  Raises:
    ValueError: ctx_init does not have n_ctx tokens.
  """
  if not keys.ctx_init:
    return keys.init_std * jax.random.normal(rng, (keys.n_ctx, clip.arch.text.width))
  ids = clip.tokenize([keys.ctx_init])
  count = int(clip.eot(ids)[0]) - 1
  if count != keys.n_ctx:
    raise ValueError(f'prompt.ctx_init={keys.ctx_init!r} has {count} tokens, but prompt.n_ctx={keys.n_ctx}; set '
                     f'prompt.n_ctx={count}')
  return clip.embed(clip.params, jnp.asarray(ids))[0, 1:1 + count]


def check_context(clip: Clip, keys: Config) -> None:
  """Raises ValueError if the context does not fit into the texts of this CLIP, or the two state words are equal."""
  longest = clip.arch.text.context
  bounds.check({'prompt': keys}, {'prompt.n_ctx': bounds.Range(
    1, longest - 4, reason=f'to fit into the {longest} tokens of a text')})
  if not (keys.normal_word and keys.abnormal_word) or keys.normal_word == keys.abnormal_word:
    raise ValueError(f'prompt.normal_word={keys.normal_word!r} and prompt.abnormal_word={keys.abnormal_word!r} must be '
                     'two different words')


def auxiliary_names(keys: Config) -> tuple[str, ...]:
  """Returns keys.categories, the names of the auxiliary categories; raises ValueError if there are none."""
  if not keys.categories:
    raise ValueError('prompt.categories=() does not name the auxiliary categories; set it to their object names, in '
                     'the order of batch["category"]')
  return tuple(keys.categories)


def temperature(clip_params: Params, keys: Config) -> jax.Array | float:
  """Returns the divisor of cosines: keys.temperature, or CLIP's own if keys.use_logit_scale is True."""
  return jnp.exp(-clip_params['logit_scale']) if keys.use_logit_scale else keys.temperature
