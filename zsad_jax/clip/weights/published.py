"""Published CLIP weights: sources, digests and activations.

From open_clip's pretrained.py (v3.3.0) and openai/CLIP. The activation belongs to the weights, not to the
architecture: LAION-400M's ViT-B/32 was trained with QuickGELU, its other sizes with the exact GELU.
"""

import dataclasses
import difflib
from typing import NamedTuple

from zsad_jax.clip import archs


class Weights(NamedTuple):
  """One set of published weights.

  Attributes:
    repo: Hugging Face hub repository with the weights as HUB_FILE.
    original: name of the file that was published first (by OpenAI, or in open_clip's v0.2 release).
    sha256: published digest of `original`: all 64 digits (OpenAI), or the first eight (open_clip).
    activation: 'quick_gelu' or 'gelu'.
  """
  repo: str
  original: str
  sha256: str
  activation: str

  @property
  def digest_text(self) -> str:
    """The digest for display, with dots if only its beginning is published."""
    return self.sha256 if len(self.sha256) == 64 else f'{self.sha256}...'


HUB_FILE = 'open_clip_model.safetensors'

# The first tag of a model is its default. open_clip 3.3.0 maps e32 of ViT-B/16-plus-240 to the repository of e31; here
# every tag has its own.
PUBLISHED = {
    'vit_b32': {
        'openai': Weights('timm/vit_base_patch32_clip_224.openai', 'ViT-B-32.pt',
                          '40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af', 'quick_gelu'),
        'laion400m_e32': Weights('timm/vit_base_patch32_clip_224.laion400m_e32',
                                 'vit_b_32-quickgelu-laion400m_e32-46683a32.pt', '46683a32', 'quick_gelu'),
        'laion400m_e31': Weights('timm/vit_base_patch32_clip_224.laion400m_e31',
                                 'vit_b_32-quickgelu-laion400m_e31-d867053b.pt', 'd867053b', 'quick_gelu'),
    },
    'vit_b16': {
        'openai': Weights('timm/vit_base_patch16_clip_224.openai', 'ViT-B-16.pt',
                          '5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f', 'quick_gelu'),
        'laion400m_e32': Weights('timm/vit_base_patch16_clip_224.laion400m_e32',
                                 'vit_b_16-laion400m_e32-55e67d44.pt', '55e67d44', 'gelu'),
        'laion400m_e31': Weights('timm/vit_base_patch16_clip_224.laion400m_e31',
                                 'vit_b_16-laion400m_e31-00efa78f.pt', '00efa78f', 'gelu'),
    },
    'vit_b16_plus_240': {
        'laion400m_e32': Weights('timm/vit_base_patch16_plus_clip_240.laion400m_e32',
                                 'vit_b_16_plus_240-laion400m_e32-699c4b84.pt', '699c4b84', 'gelu'),
        'laion400m_e31': Weights('timm/vit_base_patch16_plus_clip_240.laion400m_e31',
                                 'vit_b_16_plus_240-laion400m_e31-8fb26589.pt', '8fb26589', 'gelu'),
    },
    'vit_l14': {
        'openai': Weights('timm/vit_large_patch14_clip_224.openai', 'ViT-L-14.pt',
                          'b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836', 'quick_gelu'),
        'laion400m_e32': Weights('timm/vit_large_patch14_clip_224.laion400m_e32',
                                 'vit_l_14-laion400m_e32-3d133497.pt', '3d133497', 'gelu'),
        'laion400m_e31': Weights('timm/vit_large_patch14_clip_224.laion400m_e31',
                                 'vit_l_14-laion400m_e31-69988bb6.pt', '69988bb6', 'gelu'),
    },
    'vit_l14_336': {
        'openai': Weights('timm/vit_large_patch14_clip_336.openai', 'ViT-L-14-336px.pt',
                          '3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02', 'quick_gelu'),
    },
    'rn50': {
        'openai': Weights('timm/resnet50_clip.openai', 'RN50.pt',
                          'afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762', 'quick_gelu'),
    },
    'rn101': {
        'openai': Weights('timm/resnet101_clip.openai', 'RN101.pt',
                          '8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599', 'quick_gelu'),
    },
}


def names() -> list[str]:
  """Returns every name that `find` takes. 'tiny' is not published but part of the package."""
  return [*PUBLISHED] + [f'{name}:{tag}' for name, tags in PUBLISHED.items() for tag in tags]


def find(name: str) -> tuple[str, Weights, archs.Arch]:
  """Returns ('model:tag', Weights, architecture with their activation) for 'model' or 'model:tag'.

  Raises:
    ValueError: an unknown name, with the nearest published names.
  """
  model, _, tag = name.partition(':')
  tags = PUBLISHED.get(model, {})
  tag = tag or next(iter(tags), '')
  if tag not in tags:
    near = difflib.get_close_matches(name, ['tiny', *names()], 3, 0.5)
    hint = f', did you mean {" or ".join(near)}?' if near else '.'
    raise ValueError(f'unknown weights {name!r}{hint} Use a .safetensors file, a folder with config.json, or one of: '
                     f'tiny, {", ".join(names())}')
  weights = tags[tag]
  return f'{model}:{tag}', weights, dataclasses.replace(archs.ARCHS[model], activation=weights.activation)


def find_digest(sha256: str) -> str:
  """Returns the 'model:tag' whose original file has this sha256, '' if there is none."""
  return next((f'{name}:{tag}' for name, tags in PUBLISHED.items() for tag, weights in tags.items()
               if sha256.startswith(weights.sha256)), '')
