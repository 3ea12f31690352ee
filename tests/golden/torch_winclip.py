"""Windows, scores and maps of Accurate-WinCLIP, transcribed to PyTorch from its description; records nothing.

The transcription loops over masks and patches as that code does, so that it shares nothing with zsad_jax. Parity tests
and a benchmark run it; torch is imported on use.
"""

import numpy as np
from golden import record_clip

TEMPERATURE = 0.07


def masks(grid, side):
  """Returns lists of the patches of each window, counted from 1 because token 0 is the class token."""
  every = np.arange(1, grid * grid + 1).reshape(grid, grid)
  return [every[i:i + side, j:j + side].ravel().tolist()
          for i in range(grid - side + 1) for j in range(grid - side + 1)]


def harmonic_aggregation(scores, grid, windows):
  """Returns [grid, grid] float64, at each patch the harmonic mean of the scores of the windows that cover it."""
  out = np.zeros(grid * grid)
  for patch in range(grid * grid):
    covering = [float(s) for s, window in zip(scores, windows) if patch + 1 in window]
    out[patch] = 0 if min(covering) <= 0 else len(covering) / sum(1 / s for s in covering)
  return out.reshape(grid, grid)


class Official(record_clip.Official):
  """That code with arrays under OpenAI's names, for images of the pretrained size."""

  def tokens(self, images):
    """Returns the class token and patches with positions, before ln_pre, [B, N + 1, D]."""
    torch, w = self.torch, self.w
    x = self.f.conv2d(torch.from_numpy(images).permute(0, 3, 1, 2), w['visual.conv1.weight'], stride=self.dims.patch)
    x = x.flatten(2).permute(0, 2, 1)
    return torch.cat([w['visual.class_embedding'].expand(len(x), 1, -1), x], 1) + w['visual.positional_embedding']

  def transform(self, x):
    """Returns the class feature and all tokens after the last block, for any tokens before ln_pre."""
    x = self.norm(x, 'visual.ln_pre')
    for i in range(self.dims.layers):
      x = self.image_block(x, f'visual.transformer.resblocks.{i}', surgery=False, ffn=False)
    return self.norm(x[:, 0], 'visual.ln_post') @ self.w['visual.proj'], x

  def encode(self, images, sides):
    """Returns class feature [B, E], {side: [B, n, E]} and last-block patch tokens [B, N, D], window after window."""
    torch, z = self.torch, self.tokens(images)
    grid = self.dims.image_size // self.dims.patch
    cls, last = self.transform(z)
    windows = {}
    for side in sides:
      features = []
      for window in masks(grid, side):
        tokens = torch.index_select(z, 1, torch.tensor([0, *window]))
        features.append(self.transform(tokens)[0])
      windows[side] = torch.stack(features, 1)
    return cls, windows, last[:, 1:]

  def prototypes(self, normal, abnormal):
    """Returns [2, E], the unnormalised means over the texts with ids `normal` and `abnormal`, [n, context] each."""
    return self.torch.stack([self.text(ids)[0].mean(0) for ids in (normal, abnormal)])

  def anomalous(self, feature, text):
    """Returns the probability of the second text for features [..., E]."""
    unit = lambda x: x / x.norm(dim=-1, keepdim=True)
    return (unit(feature) @ unit(text).T / TEMPERATURE).softmax(-1)[..., 1]

  def score(self, images, text, sides, references=None):
    """Returns scores [B] and maps [B, R, R] of one category: zero-shot, or with reference images."""
    torch, grid = self.torch, self.dims.image_size // self.dims.patch
    cls, windows, patches = self.encode(images, sides)
    banks = None if references is None else self.encode(references, sides)
    scores, small = [], []
    for i in range(len(images)):
      image = self.anomalous(cls[i], text).item()
      scales = [harmonic_aggregation(self.anomalous(windows[side][i], text), grid, masks(grid, side)) for side in sides]
      fused = (len(sides) + 1) / (sum(1 / scale for scale in scales) + 1 / image)
      if banks is not None:
        distances = [harmonic_aggregation(self.distance(windows[side][i], banks[1][side]), grid, masks(grid, side))
                     for side in sides]
        distances.append(self.distance(patches[i], banks[2]).double().numpy().reshape(grid, grid))
        distance = sum(distances) / len(distances)
        fused, image = (fused + distance) / 2, (image + distance.max()) / 2
      scores.append(image)
      small.append(torch.from_numpy(fused))
    size = self.dims.image_size
    big = self.f.interpolate(torch.stack(small)[:, None].float(), (size, size), mode='bilinear', align_corners=False)
    return np.array(scores), big[:, 0].numpy()

  def distance(self, features, references):
    """Returns [n], half the cosine distance of features [n, D] to the nearest of references [K, m, D]."""
    unit = lambda x: x / x.norm(dim=-1, keepdim=True)
    similarity = unit(features) @ unit(references.reshape(-1, references.shape[-1])).T
    return 0.5 * (1 - similarity).min(dim=1).values.clamp(min=0)
