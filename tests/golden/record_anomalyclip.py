"""Records anomalyclip_*.npz: the released AnomalyCLIP, transcribed to PyTorch, with a small random CLIP.

  python tests/golden/record_anomalyclip.py

The transcription follows the structure of the released code (attention that returns two paths, lists that pass from
block to block, text blocks that count deep tokens), so that it shares nothing with zsad_jax. Weights and inputs come
from numpy's legacy generator, whose stream is frozen, so that only outputs are stored. torch is imported on use, as
tests read the golden files, the weights and the tokenizer without it.
"""

from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
VISION = dict(image_size=32, patch=8, width=64, layers=8, heads=2)
TEXT = dict(context=77, vocab=48, width=64, layers=6, heads=2)
EMBED, SIZE, FIRST_BLOCK = 32, 48, 3
N_CTX, DEPTH, DEEP_LEN = 12, 5, 4
VARIANTS = {'released': ((8,), 4.0), 'paper': ((2, 4, 6, 8), 1.0)}  # local layers, lambda
STEPS = 5


class Words:
  """A tokenizer of whole words with a vocabulary of 48: start 46, end 47, padding 0."""
  vocabulary = ('<pad>', 'x', '.', 'object', 'damaged', 'flawed', 'bottle', 'metal', 'nut', 'a', 'photo', 'of')

  def encode(self, texts, context):
    ids = np.zeros((len(texts), context), np.int32)
    for row, text in zip(ids, texts):
      words = [self.vocabulary.index(w) for w in text.lower().replace('.', ' .').split()]
      row[:len(words) + 2] = [46, *words, 47]
    return ids


def weights(seed=0):
  """Returns a CLIP's arrays under OpenAI's names, with scales at which attention is far from uniform."""
  rng = np.random.RandomState(seed)
  draw = lambda *shape, std: (rng.standard_normal(shape) * std).astype(np.float32)
  v, t, out = VISION, TEXT, {}

  def norm(name, width):
    out[f'{name}.weight'] = 1 + draw(width, std=0.1)
    out[f'{name}.bias'] = draw(width, std=0.1)

  def blocks(prefix, width, layers):
    for i in range(layers):
      p = f'{prefix}.resblocks.{i}'
      norm(f'{p}.ln_1', width)
      for name, (rows, columns) in {'attn.in_proj_': (3 * width, width), 'attn.out_proj.': (width, width),
                                    'mlp.c_fc.': (4 * width, width), 'mlp.c_proj.': (width, 4 * width)}.items():
        out[f'{p}.{name}weight'] = draw(rows, columns, std=columns ** -0.5)
        out[f'{p}.{name}bias'] = draw(rows, std=0.1)
      norm(f'{p}.ln_2', width)

  out['visual.class_embedding'] = draw(v['width'], std=0.5)
  out['visual.positional_embedding'] = draw((v['image_size'] // v['patch']) ** 2 + 1, v['width'], std=0.5)
  out['visual.conv1.weight'] = draw(v['width'], 3, v['patch'], v['patch'], std=0.1)
  norm('visual.ln_pre', v['width'])
  blocks('visual.transformer', v['width'], v['layers'])
  norm('visual.ln_post', v['width'])
  out['visual.proj'] = draw(v['width'], EMBED, std=v['width'] ** -0.5)
  out['token_embedding.weight'] = draw(t['vocab'], t['width'], std=0.5)
  out['positional_embedding'] = draw(t['context'], t['width'], std=0.3)
  blocks('transformer', t['width'], t['layers'])
  norm('ln_final', t['width'])
  out['text_projection'] = draw(t['width'], EMBED, std=t['width'] ** -0.5)
  out['logit_scale'] = np.asarray(np.log(100.0), np.float32)
  return out


def prompts(seed=1):
  """Returns the initial trainable parameters: ctx_pos, ctx_neg [E, W], deep [M - 1, L, W]."""
  rng = np.random.RandomState(seed)
  draw = lambda *shape: (0.02 * rng.standard_normal(shape)).astype(np.float32)
  return {'ctx_pos': draw(N_CTX, TEXT['width']), 'ctx_neg': draw(N_CTX, TEXT['width']),
          'deep': draw(DEPTH - 1, DEEP_LEN, TEXT['width'])}


def batch(seed=2, rows=4):
  """Returns images [B, R, R, 3], masks [B, R, R] and labels [B]; the odd rows are anomalous."""
  rng = np.random.RandomState(seed)
  images = rng.standard_normal((rows, SIZE, SIZE, 3)).astype(np.float32)
  masks, labels = np.zeros((rows, SIZE, SIZE), np.uint8), np.arange(rows) % 2
  for i in range(1, rows, 2):
    top, left = rng.randint(4, 30, 2)
    masks[i, top:top + 12, left:left + 9] = 1
    images[i][masks[i] > 0] += 2
  return images, masks, labels


class Official:
  """The released training step and inference with `weights`."""

  def __init__(self, arrays):
    import torch
    self.torch, self.f = torch, torch.nn.functional
    self.w = {name: torch.tensor(array) for name, array in arrays.items()}

  def norm(self, x, name):
    return self.f.layer_norm(x, x.shape[-1:], self.w[f'{name}.weight'], self.w[f'{name}.bias'], 1e-5)

  def linear(self, x, name):
    return self.f.linear(x, self.w[f'{name}weight'], self.w[f'{name}bias'])

  def mlp(self, x, p):
    hidden = self.linear(x, f'{p}.mlp.c_fc.')
    return self.linear(hidden * self.torch.sigmoid(1.702 * hidden), f'{p}.mlp.c_proj.')

  def attention(self, x, p, heads, mask=None):
    """Returns [V-V path, original path]."""
    b, n, c = x.shape
    qkv = self.linear(x, f'{p}.attn.in_proj_').reshape(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
    paths = []
    for q, k, v in ((qkv[2], qkv[2], qkv[2]), (qkv[0], qkv[1], qkv[2])):
      scores = (q @ k.transpose(-2, -1)) * (c // heads) ** -0.5
      scores = scores if mask is None else scores + mask
      mixed = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, n, c)
      paths.append(self.linear(mixed, f'{p}.attn.out_proj.'))
    return paths

  def encode_image(self, images, features_list, first_block=FIRST_BLOCK, ffn=False):
    """Returns the class feature [B, E] and, per layer, tokens [B, N + 1, E]; first_block None is plain CLIP."""
    torch, w, p = self.torch, self.w, VISION['patch']
    x = self.f.conv2d(torch.tensor(images).permute(0, 3, 1, 2), w['visual.conv1.weight'], stride=p)
    x = x.reshape(*x.shape[:2], -1).permute(0, 2, 1)
    x = torch.cat([w['visual.class_embedding'].expand(len(x), 1, -1), x], dim=1)
    table = w['visual.positional_embedding']
    side, new_side = int((table.shape[0] - 1) ** 0.5), int((x.shape[1] - 1) ** 0.5)
    grid = table[1:].reshape(-1, side, side, x.shape[2]).permute(0, 3, 1, 2)
    grid = self.f.interpolate(grid, (new_side, new_side), mode='bilinear')
    grid = grid.reshape(-1, x.shape[2], new_side * new_side).transpose(1, 2)
    x = self.norm(x + torch.cat([table[:1], grid[0]], 0), 'visual.ln_pre')
    tokens = []
    for i in range(VISION['layers']):
      x = self.image_block(x, f'visual.transformer.resblocks.{i}', first_block and i + 1 >= first_block, ffn)
      if i + 1 in features_list:
        tokens.append((x[0] if isinstance(x, list) else x).clone())
    original = x[1] if isinstance(x, list) else x
    return original[:, 0] @ w['visual.proj'], [self.norm(t, 'visual.ln_post') @ w['visual.proj'] for t in tokens]

  def image_block(self, x, p, replaced, ffn):
    attend = lambda x: self.attention(self.norm(x, f'{p}.ln_1'), p, VISION['heads'])
    feed = lambda x: x + self.mlp(self.norm(x, f'{p}.ln_2'), p)
    if not replaced:
      return feed(x + attend(x)[1])
    if not isinstance(x, list):  # the first replaced block opens the second path
      x_res, x_ori_res = attend(x)
      return [x + x_res, feed(x + x_ori_res)]
    x, x_ori = x
    x_res, x_ori_res = attend(x_ori)
    return [feed(x_ori + x_res) if ffn else x + x_res, feed(x_ori + x_ori_res)]

  def encode_text(self, prompt, ids, deep, half=True):
    torch = self.torch
    x = prompt + self.w['positional_embedding'][:prompt.shape[1]]
    mask = torch.full((x.shape[1],) * 2, float('-inf')).triu_(1)
    counter = 0
    for i in range(TEXT['layers']):
      p = f'transformer.resblocks.{i}'
      if i > 0 and counter < len(deep):
        tokens = deep[counter].expand(len(x), -1, -1)
        tokens = tokens.half() if half else tokens
        x = torch.cat([x[:, :1], tokens, x[:, 1 + DEEP_LEN:]], dim=1)
        counter += 1
      x = x + self.attention(self.norm(x, f'{p}.ln_1'), p, TEXT['heads'], mask)[1]
      x = x + self.mlp(self.norm(x, f'{p}.ln_2'), p)
    x = self.norm(x, 'ln_final')
    return x[torch.arange(len(x)), ids.argmax(dim=-1)] @ self.w['text_projection']

  def text_features(self, params, texts=None):
    """Returns [1, 2, E], L2-normalised."""
    torch = self.torch
    context = ' '.join(['X'] * N_CTX)
    texts = texts or (f'{context} object.', f'{context} damaged object.')
    ids = torch.tensor(Words().encode(texts, TEXT['context']), dtype=torch.long)
    embedded = self.w['token_embedding.weight'][ids]
    prompt = torch.stack([torch.cat([e[:1], params[c], e[1 + N_CTX:]])
                          for e, c in zip(embedded, ('ctx_pos', 'ctx_neg'))])
    features = self.encode_text(prompt, ids, [params['deep'][i] for i in range(DEPTH - 1)])
    features = torch.stack(torch.chunk(features, dim=0, chunks=2), dim=1)
    return features / features.norm(dim=-1, keepdim=True)

  def similarity_maps(self, tokens, text):
    """Returns probabilities at image size, [B, 2, R, R]."""
    tokens = tokens / tokens.norm(dim=-1, keepdim=True)
    similarity = ((tokens @ text[0].t()) / 0.07).softmax(-1)[:, 1:]
    side = int(similarity.shape[1] ** 0.5)
    grid = similarity.reshape(len(similarity), side, side, -1).permute(0, 3, 1, 2)
    return self.f.interpolate(grid, SIZE, mode='bilinear')

  def image_logits(self, cls, text):
    cls = cls / cls.norm(dim=-1, keepdim=True)
    return (cls.unsqueeze(1) @ text.permute(0, 2, 1))[:, 0] / 0.07

  def focal(self, maps, mask):
    flat = maps.flatten(2).permute(0, 2, 1).reshape(-1, 2)
    onehot = self.f.one_hot(mask.reshape(-1).long(), 2).float().clamp(1e-5, 1 - 1e-5)
    pt = (onehot * flat).sum(1) + 1e-5
    return (-1 * (1 - pt) ** 2 * pt.log()).mean()

  def dice(self, prob, mask):
    prob, mask = prob.reshape(len(prob), -1), mask.reshape(len(mask), -1)
    effective = (2 * (prob * mask).sum(1) + 1) / (prob.sum(1) + mask.sum(1) + 1)
    return 1 - effective.sum() / len(prob)

  def loss(self, params, cls, tokens, masks, labels, weight):
    """Returns the total, the global and the summed local loss."""
    torch = self.torch
    text = self.text_features(params)
    mask = torch.tensor(masks).float()
    image_loss = self.f.cross_entropy(self.image_logits(cls, text), torch.tensor(labels).long())
    local = 0
    for layer in tokens:
      maps = self.similarity_maps(layer, text)
      local = local + self.focal(maps, mask) + self.dice(maps[:, 1], mask) + self.dice(maps[:, 0], 1 - mask)
    return weight * local + image_loss, image_loss, local

  def predict(self, params, cls, tokens, sigma=4):
    """Returns image scores [B] and smoothed maps [B, R, R]."""
    from scipy.ndimage import gaussian_filter
    text = self.text_features(params)
    score = self.image_logits(cls, text).softmax(-1)[:, 1]
    maps = [self.similarity_maps(layer, text) for layer in tokens]
    total = sum((m[:, 1] + 1 - m[:, 0]) / 2 for m in maps)
    return score.detach().numpy(), np.stack([gaussian_filter(m, sigma=sigma) for m in total.detach().numpy()])

  def trainable(self, arrays):
    """Returns {name: tensor} that collect gradients."""
    return {name: self.torch.tensor(array, requires_grad=True) for name, array in arrays.items()}


def run(layers, weight, official=None, steps=STEPS):
  """Returns everything that tests compare: features, text features, losses, gradients, parameters, maps and scores."""
  official = official or Official(weights())
  torch = official.torch
  images, masks, labels = batch()
  with torch.no_grad():
    cls, tokens = official.encode_image(images, layers)
  out = {'cls': cls.numpy(), 'taps': np.stack([t[:, 1:].numpy() for t in tokens])}
  params = official.trainable(prompts())
  adam = torch.optim.Adam(list(params.values()), lr=1e-3, betas=(0.5, 0.999))
  out['text'] = official.text_features(params).detach().numpy()
  out['score'], out['map'] = official.predict(params, cls, tokens)
  losses = []
  for step in range(steps):
    total, image_loss, local = official.loss(params, cls, tokens, masks, labels, weight)
    adam.zero_grad()
    total.backward()
    losses.append([total.item(), image_loss.item(), local.item()])
    if step == 0:
      out |= {f'grad_{name}': p.grad.numpy().copy() for name, p in params.items()}
    adam.step()
  out |= {f'after_{name}': p.detach().numpy().copy() for name, p in params.items()}
  out['losses'] = np.float32(losses)
  out['score_after'], out['map_after'] = official.predict(params, cls, tokens)
  return out


def main():
  for name, (layers, weight) in VARIANTS.items():
    np.savez_compressed(HERE / f'anomalyclip_{name}.npz', **run(layers, weight))


if __name__ == '__main__':
  main()
