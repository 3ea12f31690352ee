"""FuzzyCLIP against its formulas in PyTorch, over the text tower of golden/record_anomalyclip.py."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_collections as mlc
import numpy as np
import pytest
from golden import record_anomalyclip as small
from golden import record_coop

from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.feature_spec import Features
from zsad_jax.configs import fuzzyclip as config
from zsad_jax.methods import Context
from zsad_jax.methods import fuzzyclip as method

ARCH = clip_lib.Arch('small', small.EMBED, clip_lib.Vision(**small.VISION), clip_lib.Text(**small.TEXT))
NAMES, TARGETS = ('bottle', 'nut', 'metal'), ('object', 'photo')
N_CTX, DEPTH, LENGTH, LAMBDA = 7, 3, 5, 30.0
GRID, WIDTH = small.SIZE // small.VISION['patch'], small.VISION['width']
pytestmark = pytest.mark.usefixtures('highest_precision')


@pytest.fixture(scope='module')
def clip():
  return clip_lib.from_state_dict(ARCH, small.weights(), image_size=small.SIZE, tokenizer=record_coop.Words())


def configured(**changes):
  c = config.get_config()
  c.update(image_size=small.SIZE, layers=(3, 8))
  c.csp.groups, c.prompt.categories = (0, 1, 0), NAMES
  c.rpl.update(template='a_photo', n_ctx=N_CTX, depth=DEPTH, deep_len=LENGTH, lambda_text=LAMBDA, **changes)
  return mlc.FrozenConfigDict(c)


def random_inputs(rows=4, seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  features = Features(draw(rows, small.EMBED), {f'clip/{b}/block': draw(rows, GRID ** 2, WIDTH) for b in (3, 8)})
  _, masks, labels = small.batch(rows=rows)
  batch = dict(mask=masks, label=labels, category=np.array([0, 2, 0, 2]), valid=np.ones(rows, bool))
  return features, jax.tree.map(jnp.asarray, batch)


class Transcribed(small.Official):
  """The paper's formulas, one image and one group at a time."""

  def __init__(self):
    super().__init__(small.weights())

  def words(self, text):
    ids = self.torch.tensor(record_coop.Words().encode([text], small.TEXT['context']), dtype=self.torch.long)[0]
    return ids[:int(ids.argmax()) + 1]

  def text(self, tokens, deep):
    """A feature [E] of token embeddings [n, W], with slots put in after the first one and changed in later blocks."""
    torch = self.torch
    x = tokens + self.w['positional_embedding'][:len(tokens)]
    for i in range(small.TEXT['layers']):
      if i < len(deep):
        x = torch.cat([x[:1], deep[i], x[1 + (len(deep[i]) if i else 0):]])
      mask = torch.full((len(x),) * 2, float('-inf')).triu_(1)
      p = f'transformer.resblocks.{i}'
      x = x + self.attention(self.norm(x, f'{p}.ln_1')[None], p, small.TEXT['heads'], mask)[1][0]
      x = x + self.mlp(self.norm(x, f'{p}.ln_2'), p)
    return self.norm(x, 'ln_final')[-1] @ self.w['text_projection']

  def ensemble(self, stack):
    """T [2, E] of an ensemble around a stack of names."""
    rows = []
    for forms in method.ENSEMBLES['april'][0]:
      texts = [template.format(form.format(stack)) for form in forms for template in method.ENSEMBLES['april'][1]]
      each = [self.text(self.w['token_embedding.weight'][self.words(text)], []) for text in texts]
      rows.append(self.unit(self.torch.stack([self.unit(x) for x in each]).mean(0)))
    return self.torch.stack(rows)

  def unit(self, x):
    return x / x.norm(dim=-1, keepdim=True)

  def pair(self, words, deep, names):
    """RPL's texts [2, E]: the template has as many tokens as there are trained words, or fewer."""
    table, end, rows = self.w['token_embedding.weight'], self.words(f'{names}.'), []
    for side in (0, 1):
      tokens = self.torch.cat([table[end[:1]], words[side], table[end[1:]]])
      rows.append(self.text(tokens, [block[side] for block in deep]))
    return self.torch.stack(rows)

  def pair_loss(self, words, deep, prior, cls, labels):
    text = self.unit(self.pair(words, deep, ' '.join(NAMES)))
    log_p = (100 * self.unit(cls) @ text.t()).log_softmax(-1)
    fit = -log_p[self.torch.arange(len(labels)), labels].mean()
    return fit, LAMBDA / text.shape[1] * ((prior - text) ** 2).sum()

  def anomaly(self, layers, stacks, near, cls, tokens):
    """The map [R, R] of one image."""
    F, total = self.f, 0
    share = (100 * self.torch.stack([self.unit(cls) @ t[0] for t in near])).softmax(0)
    for w, part, text in zip(share, layers, stacks):
      for block, x in zip((3, 8), tokens):
        kernel, bias = part[f'block{block}']
        logits = 100 * self.unit(x @ kernel + bias) @ text.t()
        grid = logits.t().reshape(1, 2, GRID, GRID)
        total = total + w * F.interpolate(grid, small.SIZE, mode='bilinear', align_corners=True).softmax(1)[0, 1]
    return total


@pytest.fixture
def few(monkeypatch):
  monkeypatch.setitem(method.ENSEMBLES, 'april', ((('{}', 'good {}'), ('damaged {}',)), ('a photo of {}.', '{}.')))


def test_rpl(clip, few, torch):
  """The prior, both terms and every gradient; start and end are where insertion leaves them."""
  cfg, other = configured(), Transcribed()
  params = {'rpl0': method.init(jax.random.key(0), clip, cfg)['rpl0']}
  context = jax.jit(functools.partial(method.precompute, names=NAMES, clip=clip, cfg=cfg))(clip.params)
  prior = other.ensemble(' '.join(NAMES)).detach()
  np.testing.assert_allclose(context.text_features['prior'][0], prior, atol=2e-5)
  features, batch = random_inputs()
  words, deep = (torch.tensor(np.asarray(params['rpl0'][k]), requires_grad=True) for k in ('words', 'deep'))
  labels = torch.tensor(np.asarray(batch['label'])).long()
  fit, held = other.pair_loss(words, deep, prior, torch.tensor(features.cls), labels)
  (fit + held).backward()
  fit, held = float(fit.detach()), float(held.detach())
  shell = dataclasses.replace(clip, params=None)
  (total, terms), gradient = jax.jit(jax.value_and_grad(method.loss, has_aux=True), static_argnames=('clip', 'cfg'))(
    params, context, features, batch, None, clip=shell, cfg=cfg)
  assert float(terms['loss_cls']) == pytest.approx(fit, rel=1e-4)
  assert float(terms['loss_text']) == pytest.approx(held, rel=1e-4)
  assert float(total) == pytest.approx(fit + held, rel=1e-4)
  for ours, theirs in ((gradient['rpl0']['words'], words.grad), (gradient['rpl0']['deep'], deep.grad)):
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * float(theirs.abs().max()))


def test_maps(clip, few, torch):
  """Groups' texts with the names under test, their weights, and the sum over blocks and groups."""
  cfg, other = configured(), Transcribed()
  params = method.init(jax.random.key(0), clip, cfg)
  text = jax.jit(functools.partial(method.encode_text, names=TARGETS, clip=clip, cfg=cfg))(params, clip.params)
  features, batch = random_inputs()
  batch['category'] = jnp.array([0, 1, 1, 0])
  out = jax.jit(functools.partial(method.predict, clip=clip, cfg=cfg))(
    params, Context(None, text), features, batch).map
  tensor = lambda x: torch.tensor(np.asarray(x))
  layers = [{name: (tensor(layer['kernel']), tensor(layer['bias'])) for name, layer in params[f'efa{g}'].items()}
            for g in (0, 1)]
  stacks = [[other.ensemble(f'{target} {cluster}') for cluster in ('bottle metal', 'nut')] for target in TARGETS]
  for row, category in enumerate((0, 1, 1, 0)):
    texts = stacks[category]
    tokens = [tensor(taps[row]) for taps in features.taps.values()]
    np.testing.assert_allclose(out[row], other.anomaly(layers, texts, texts, tensor(features.cls[row]), tokens),
                               atol=2e-4)
