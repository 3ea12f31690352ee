"""Records sdp.npz: CLIP-AD's SDP and SDP+ transcribed to PyTorch, from text vectors to maps, with random weights.

  python tests/golden/record_sdp.py

The transcription follows the structure of the released code: taps are references to tensors to which the next block
adds its attention in place, feature surgery is the product over channels, and text vectors are columns when they are
clustered. Weights and inputs come from numpy's legacy generator, whose stream is frozen, so that only outputs are
stored. torch is imported on use, because tests read the golden file without it.
"""

from pathlib import Path

import numpy as np

try:
  from golden import record_clip
except ModuleNotFoundError:  # run as a script, from its own folder
  import record_clip

HERE = Path(__file__).parent
DIMS = record_clip.Dims(image_size=32, patch=8, width=32, layers=12, heads=2, text_layers=1, embed=16,
                        activation='gelu')
TAPS, STAGE, SIGMA, BATCH = (3, 6, 9, 12), 3, 2, 3
RULES = ('mean', 'pca', 'kde', 'dbscan')


def inputs():
  """Returns CLIP's arrays, images [B, R, R, 3], the images' categories, two categories' text vectors, layers, masks."""
  rng = np.random.RandomState(7)
  arrays = record_clip.weights(DIMS, np.random.RandomState(0))
  images = rng.standard_normal((BATCH, DIMS.image_size, DIMS.image_size, 3)).astype(np.float32)
  texts = []
  for count in (30, 34):  # normal and anomalous: a large cluster, a small one, and outliers
    centres = rng.standard_normal((2, 2, DIMS.embed))
    near = lambda k, n, centres=centres: centres[:, k:k + 1] + 0.12 * rng.standard_normal((2, n, DIMS.embed))
    alone = rng.standard_normal((2, 3, DIMS.embed))
    x = np.concatenate([near(0, count - 12), near(1, 9), alone], axis=1)
    texts.append((x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32))
  layers = {}
  for i in range(len(TAPS)):
    layers[f'fc.{i}.weight'] = (rng.uniform(-1, 1, (DIMS.embed, DIMS.width)) * DIMS.width ** -0.5).astype(np.float32)
    layers[f'fc.{i}.bias'] = (rng.uniform(-1, 1, DIMS.embed) * DIMS.width ** -0.5).astype(np.float32)
  masks = np.zeros((BATCH, DIMS.image_size, DIMS.image_size), np.uint8)
  masks[1, 4:14, 6:20] = 1
  return arrays, images, np.array([1, 0, 1]), texts, layers, masks


def clusters(points, eps, count):
  """Returns DBSCAN's labels of points [n, E] by definition: core points within eps of each other, and neighbours."""
  near = np.linalg.norm(points[:, None] - points[None], axis=-1) <= eps
  core, labels, label = near.sum(1) >= count, np.full(len(points), -1), 0
  for start in range(len(points)):
    if not core[start] or labels[start] >= 0:
      continue
    reach = [start]
    while reach:
      point = reach.pop()
      if labels[point] < 0:
        labels[point] = label
        reach += list(np.flatnonzero(near[point])) if core[point] else []
    label += 1
  return labels


def representative(points, rule, eps=0.5, count=15):
  """Returns the vector that represents points [N, D] by one of RULES, as in the released code, in float64."""
  x = points.astype(np.float64)
  if rule == 'pca':
    columns = x.T  # [D, N]: dimensions are samples
    centred = columns - columns.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    vector = centred @ vectors[:, values.argmax()]
    vector = vector if vector @ x.mean(0) >= 0 else -vector
  elif rule == 'kde':
    log_density = np.array([np.log(np.mean(np.exp(-np.sum((x - p) ** 2, -1) / (2 * 0.3 ** 2)))) for p in x])
    weights = np.exp(log_density)
    vector = (weights[:, None] * x).sum(0) / weights.sum()
  elif rule == 'dbscan':
    labels = clusters(x, eps, count)
    vector = x[labels == np.argmax(np.bincount(labels[labels >= 0]))].mean(0)
  else:
    vector = x.mean(0)
  return vector / np.linalg.norm(vector)


class Released(record_clip.Official):
  """The image tower with every block replaced, and the maps of test_SDP and test_SDP_plus."""

  def tower(self, images, alias=True):
    """Returns [(original tokens, new tokens)] of the taps, and the tokens of the last block, all [B, N + 1, D]."""
    x = self.embed_image(images)
    x_new, out = None, []
    for i in range(self.dims.layers):
      p = f'visual.transformer.resblocks.{i}'
      new, own = self.attention(self.norm(x, f'{p}.ln_1'), p, surgery=True)
      x_new = new if i % STAGE == 0 else x_new + new
      if alias:
        x += own  # in place, which also changes the tap of the previous block
      else:
        x = x + own
      x = x + self.mlp(x, p)
      if i + 1 in TAPS:
        out.append((x, x_new))
    return out, x

  def read(self, x):
    return self.norm(x, 'visual.ln_post') @ self.w['visual.proj']

  def surgery_map(self, taps, text, scale=1):
    """Returns the sum over stages of the anomalous channel [B, G, G], and the last stage's class token [B, E]."""
    total = 0
    for own, new in taps:
      tokens = new.clone()
      tokens[:, 0] = own[:, 0]
      f = self.f.normalize(self.read(tokens), dim=-1)
      prob = (scale * f[:, :1] @ text.T).softmax(-1)
      w = prob / prob.mean(-1, keepdim=True)
      feats = f.unsqueeze(2) * text[None, None] * w.unsqueeze(-1)
      total = total + (feats - feats.mean(2, keepdim=True)).sum(-1)[:, 1:, 1]
    side = round(total.shape[1] ** 0.5)
    return total.reshape(-1, side, side), f[:, 0]

  def adapter_maps(self, taps, layers, text):
    """Returns the probabilities of both states at full size, [B, 2, R, R], for each tap."""
    out = []
    for i, (own, _) in enumerate(taps):
      p = self.f.normalize(self.f.linear(own[:, 1:], layers[f'fc.{i}.weight'], layers[f'fc.{i}.bias']), dim=-1)
      logits = (100 * p) @ text.T
      side = round(logits.shape[1] ** 0.5)
      logits = logits.permute(0, 2, 1).reshape(-1, 2, side, side)
      size = self.dims.image_size
      out.append(self.f.interpolate(logits, (size, size), mode='bilinear', align_corners=True).softmax(1))
    return out

  def losses(self, taps, layers, text, masks):
    """Returns the released loss of the images of one category."""
    torch, total = self.torch, 0
    masks = torch.from_numpy(masks).long()
    for probs in self.adapter_maps(taps, layers, text):
      onehot = self.f.one_hot(masks, 2).permute(0, 3, 1, 2).float().clamp(1e-5, 1 - 1e-5)
      pt = (onehot * probs).sum(1) + 1e-5
      q, m = probs[:, 1].flatten(1), masks.flatten(1).float()
      total = total + (-(1 - pt) ** 2 * pt.log()).mean()
      total = total + (1 - (2 * (q * m).sum(1) + 1) / (q.sum(1) + m.sum(1) + 1)).mean()
    return total


def smooth(maps):
  from scipy.ndimage import gaussian_filter
  return np.stack([gaussian_filter(m, sigma=SIGMA) for m in maps])


def record():
  """Returns everything that tests compare, {name: array}."""
  import torch
  arrays, images, category, texts, layers, masks = inputs()
  vectors = {rule: np.stack([np.stack([representative(points, rule) for points in state]) for state in texts], 1)
             for rule in RULES}
  released = Released(arrays, DIMS)
  out = {f'vectors_{rule}': value.astype(np.float32) for rule, value in vectors.items()}
  affine = {name: torch.from_numpy(value).requires_grad_() for name, value in layers.items()}
  for name, alias in (('', True), ('_paper', False)):
    sdp, adapter, probability, loss = [], [], [], 0
    for b, c in enumerate(category):  # image by image, each with the texts of its category
      text = torch.from_numpy(vectors['dbscan'][c]).float()
      with torch.no_grad():
        taps, _ = released.tower(images[b:b + 1], alias)
        total, cls = released.surgery_map(taps, text)
        sdp.append(torch.nn.functional.interpolate(total[None], images.shape[1:3], mode='bilinear')[0])
        adapter.append(sum(probs[:, 1] for probs in released.adapter_maps(taps, affine, text)))
        probability.append((100 * cls @ text.T).softmax(-1)[:, 1])
      loss = loss + released.losses(taps, affine, text, masks[b:b + 1]) / len(images)
    sdp, adapter = torch.cat(sdp).numpy(), torch.cat(adapter).numpy()
    out |= {f'probability{name}': torch.cat(probability).numpy(), f'sdp{name}': smooth(sdp),
            f'sdp_plus{name}': smooth(sdp + adapter), f'loss{name}': loss.detach().numpy()}
    if alias:
      loss.backward()
      out |= {f'grad_{i}': affine[f'fc.{i}.weight'].grad.numpy().T for i in range(len(TAPS))}
  return out


def main():
  np.savez_compressed(HERE / 'sdp.npz', **record())


if __name__ == '__main__':
  main()
