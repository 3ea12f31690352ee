"""Records coop.npz and cocoop.npz: both baselines, transcribed to PyTorch, trained and run with a small random CLIP.

  python tests/golden/record_coop.py

The transcription follows the structure of the originals (CoCoOp's texts are encoded image by image, the warm-up wraps
torch's own cosine schedule) and uses the towers of record_anomalyclip.py, so that it shares nothing with zsad_jax.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import record_anomalyclip as small

HERE = Path(__file__).parent
NAMES, CONTEXT = ('bottle', 'metal nut'), {'coop': 16, 'cocoop': 4}
STATES = {'coop': ('normal', 'anomalous'), 'cocoop': ('good', 'damaged')}
HIDDEN = small.EMBED // 16
EPOCHS, BATCH, ROWS = 3, 4, 8
WIDTH = small.TEXT['width']


class Words(small.Words):
  """The words of record_anomalyclip.py with those of the baselines' states."""
  vocabulary = (*small.Words.vocabulary, 'normal', 'anomalous', 'good')


def initial_params(method, seed=11):
  """Returns the initial trainable parameters under the originals' names; torch's Linear layers are [out, in]."""
  rng = np.random.RandomState(seed)
  uniform = lambda fan_in, *shape: rng.uniform(-fan_in ** -0.5, fan_in ** -0.5, shape).astype(np.float32)
  if method == 'coop':
    return {'ctx': (0.02 * rng.standard_normal((CONTEXT[method], WIDTH))).astype(np.float32)}
  ids = Words().encode(['a photo of a'], small.TEXT['context'])[0, 1:5]
  return {
    'ctx': small.weights()['token_embedding.weight'][ids],
    'meta_net.linear1.weight': uniform(small.EMBED, HIDDEN, small.EMBED),
    'meta_net.linear1.bias': uniform(small.EMBED, HIDDEN),
    'meta_net.linear2.weight': uniform(HIDDEN, WIDTH, HIDDEN), 'meta_net.linear2.bias': uniform(HIDDEN, WIDTH)}


def batch():
  """Returns images [8, R, R, 3], labels [8] and categories [8]."""
  images, _, labels = small.batch(rows=ROWS)
  return images, labels, np.array([0, 0, 1, 1, 1, 0, 0, 1])


class Baseline(small.Official):
  """CoOp or CoCoOp over two prompts per category."""

  def __init__(self, method):
    super().__init__(small.weights())
    torch, n = self.torch, CONTEXT[method]
    self.method = method
    texts = [f'{" ".join(["X"] * n)} {state} {name}.' for name in NAMES for state in STATES[method]]
    self.ids = torch.tensor(Words().encode(texts, small.TEXT['context']), dtype=torch.long).reshape(len(NAMES), 2, -1)
    embedded = self.w['token_embedding.weight'][self.ids]
    self.prefix, self.suffix = embedded[:, :, :1], embedded[:, :, 1 + n:]

  def encode(self, images):
    """Returns plain CLIP's class feature and the last block's patch tokens, after ln_post and the projection."""
    with self.torch.no_grad():
      _, (tokens,) = self.encode_image(images, (small.VISION['layers'],), first_block=None)
    return tokens[:, 0], tokens[:, 1:]

  def unit(self, x):
    return x / x.norm(dim=-1, keepdim=True)

  def pair(self, p, context, category):
    """Returns [2, E] for a context [N, W]."""
    prompt = self.torch.cat([self.prefix[category], context.expand(2, -1, -1), self.suffix[category]], dim=1)
    return self.unit(self.encode_text(prompt, self.ids[category], []))

  def pairs(self, p, image, categories):
    """Returns [B, 2, E]; `image` is normalised."""
    out = []
    for feature, category in zip(image, categories):
      context = p['ctx']
      if self.method == 'cocoop':
        hidden = self.f.linear(feature, p['meta_net.linear1.weight'], p['meta_net.linear1.bias']).relu()
        bias = self.f.linear(hidden, p['meta_net.linear2.weight'], p['meta_net.linear2.bias'])
        context = context + bias.unsqueeze(0)
      out.append(self.pair(p, context, category))
    return self.torch.stack(out)

  def loss(self, p, cls, labels, categories):
    image = self.unit(cls)
    logits = 100 * (image.unsqueeze(1) @ self.pairs(p, image, categories).transpose(1, 2))[:, 0]
    return self.f.cross_entropy(logits, self.torch.tensor(labels).long())

  def predict(self, p, cls, tokens, categories, sigma=4):
    """Returns scores [B] and maps [B, R, R]."""
    from scipy.ndimage import gaussian_filter
    with self.torch.no_grad():
      image = self.unit(cls)
      pairs = self.pairs(p, image, categories)
      score = ((image.unsqueeze(1) @ pairs.transpose(1, 2))[:, 0] / 0.07).softmax(-1)[:, 1]
      probs = (self.unit(tokens) @ pairs.transpose(1, 2) / 0.07).softmax(-1)
      side = int(probs.shape[1] ** 0.5)
      grid = probs.reshape(len(probs), side, side, 2).permute(0, 3, 1, 2)
      maps = self.f.interpolate(grid, small.SIZE, mode='bilinear')[:, 1].numpy()
    return score.numpy(), np.stack([gaussian_filter(m, sigma=sigma) for m in maps])


def with_warmup(torch, optimizer, successor):
  """Returns torch's scheduler `successor` after one epoch at 1e-5, as in the training library of CoOp's code."""
  class Warmup(torch.optim.lr_scheduler.LRScheduler):
    def get_lr(self):
      return successor.get_last_lr() if self.last_epoch >= 1 else [1e-5] * len(self.base_lrs)

    def step(self, epoch=None):
      if self.last_epoch >= 1:
        successor.step()
        self._last_lr = successor.get_last_lr()
      else:
        super().step(epoch)

  return Warmup(optimizer)


def run(method, epochs=EPOCHS):
  """Returns features, rates, losses, first gradients, parameters, and scores and maps before and after training."""
  reference = Baseline(method)
  torch = reference.torch
  images, labels, categories = batch()
  cls, tokens = reference.encode(images)
  p = reference.trainable(initial_params(method))
  out = {'cls': cls.numpy(), 'tokens': tokens.numpy()}
  out['score'], out['map'] = reference.predict(p, cls, tokens, categories)
  sgd = torch.optim.SGD(list(p.values()), lr=0.002, momentum=0.9, weight_decay=5e-4)
  schedule = with_warmup(torch, sgd, torch.optim.lr_scheduler.CosineAnnealingLR(sgd, EPOCHS))
  losses, rates = [], []
  for _ in range(epochs):
    rates.append(sgd.param_groups[0]['lr'])
    for rows in (slice(0, BATCH), slice(BATCH, ROWS)):
      value = reference.loss(p, cls[rows], labels[rows], categories[rows])
      sgd.zero_grad()
      value.backward()
      if not losses:
        out |= {f'grad_{name}': x.grad.numpy().copy() for name, x in p.items()}
      losses.append(value.item())
      sgd.step()
    schedule.step()
  out |= {f'after_{name}': x.detach().numpy().copy() for name, x in p.items()}
  out['losses'], out['rates'] = np.float32(losses), np.float64(rates)
  out['score_after'], out['map_after'] = reference.predict(p, cls, tokens, categories)
  return out


def main():
  for method in CONTEXT:
    np.savez_compressed(HERE / f'{method}.npz', **run(method))


if __name__ == '__main__':
  main()
