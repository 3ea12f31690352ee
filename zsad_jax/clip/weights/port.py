"""CLIP weights in three naming schemes, carried to this project's parameter tree and back, checked both ways.

Torch stores a linear layer as [out, in] and a convolution as [out, in, kh, kw]; the packed attention
projection stacks q, k and v along its rows. One table says where each tensor lives in each scheme and how it
is laid out there.
"""

import difflib
import hashlib
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.clip import archs
from zsad_jax.clip.weights.hub import Resolved, resolve
from zsad_jax.clip.weights.safetensors_files import read_safetensors, write_safetensors

__all__ = ['NAMINGS', 'Resolved', 'digest', 'fits', 'naming', 'port', 'read_safetensors', 'resolve', 'unport',
           'write_safetensors']


class Layout(NamedTuple):
  """How one tensor lies in a torch file: `there` restores that layout, `here` prepares a reshape to ours."""
  here: Callable
  there: Callable


SAME = Layout(lambda x: x, lambda x: x)
FLAT = Layout(lambda x: x, lambda x: x.reshape(-1))                    # [3, H, d] <-> [3D]
LINEAR = Layout(lambda x: x.T, lambda x: x.T)                          # [in, out] <-> [out, in]
CONV = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
QKV = Layout(lambda x: x.T, lambda x: x.reshape(x.shape[0], -1).T)     # [D, 3, H, d] <-> [3D, D]
OUT = Layout(lambda x: x.T, lambda x: x.reshape(-1, x.shape[-1]).T)    # [H, d, D] <-> [D, D]

# ours, OpenAI's and open_clip's name and layout, Hugging Face's name and layout
TOP = (
    ('logit_scale', 'logit_scale', SAME, 'logit_scale', SAME),
    ('text/token_embedding/embedding', 'token_embedding.weight', SAME,
     'text_model.embeddings.token_embedding.weight', SAME),
    ('text/positional_embedding', 'positional_embedding', SAME,
     'text_model.embeddings.position_embedding.weight', SAME),
    ('text/ln_final/scale', 'ln_final.weight', SAME, 'text_model.final_layer_norm.weight', SAME),
    ('text/ln_final/bias', 'ln_final.bias', SAME, 'text_model.final_layer_norm.bias', SAME),
    ('text/text_projection/kernel', 'text_projection', SAME, 'text_projection.weight', LINEAR),
)
VIT = (
    ('visual/class_embedding', 'visual.class_embedding', SAME,
     'vision_model.embeddings.class_embedding', SAME),
    ('visual/positional_embedding', 'visual.positional_embedding', SAME,
     'vision_model.embeddings.position_embedding.weight', SAME),
    ('visual/patch_embed/kernel', 'visual.conv1.weight', CONV,
     'vision_model.embeddings.patch_embedding.weight', CONV),
    ('visual/ln_pre/scale', 'visual.ln_pre.weight', SAME, 'vision_model.pre_layrnorm.weight', SAME),  # (sic)
    ('visual/ln_pre/bias', 'visual.ln_pre.bias', SAME, 'vision_model.pre_layrnorm.bias', SAME),
    ('visual/ln_post/scale', 'visual.ln_post.weight', SAME, 'vision_model.post_layernorm.weight', SAME),
    ('visual/ln_post/bias', 'visual.ln_post.bias', SAME, 'vision_model.post_layernorm.bias', SAME),
    ('visual/proj/kernel', 'visual.proj', SAME, 'visual_projection.weight', LINEAR),
)
BLOCK = (
    ('ln_1/scale', 'ln_1.weight', SAME, 'layer_norm1.weight', SAME),
    ('ln_1/bias', 'ln_1.bias', SAME, 'layer_norm1.bias', SAME),
    ('attn/qkv/kernel', 'attn.in_proj_weight', QKV, 'self_attn.{q,k,v}_proj.weight', QKV),
    ('attn/qkv/bias', 'attn.in_proj_bias', FLAT, 'self_attn.{q,k,v}_proj.bias', FLAT),
    ('attn/out/kernel', 'attn.out_proj.weight', OUT, 'self_attn.out_proj.weight', OUT),
    ('attn/out/bias', 'attn.out_proj.bias', SAME, 'self_attn.out_proj.bias', SAME),
    ('ln_2/scale', 'ln_2.weight', SAME, 'layer_norm2.weight', SAME),
    ('ln_2/bias', 'ln_2.bias', SAME, 'layer_norm2.bias', SAME),
    ('mlp/c_fc/kernel', 'mlp.c_fc.weight', LINEAR, 'mlp.fc1.weight', LINEAR),
    ('mlp/c_fc/bias', 'mlp.c_fc.bias', SAME, 'mlp.fc1.bias', SAME),
    ('mlp/c_proj/kernel', 'mlp.c_proj.weight', LINEAR, 'mlp.fc2.weight', LINEAR),
    ('mlp/c_proj/bias', 'mlp.c_proj.bias', SAME, 'mlp.fc2.bias', SAME),
)
# The leaves of a ResNet are called as OpenAI and open_clip call them, but for these endings. Hugging Face has none.
CONV_NORM = {  # {our leaf: (module, tensor, layout)}
    'kernel': ('conv', 'weight', CONV), 'scale': ('bn', 'weight', SAME), 'bias': ('bn', 'bias', SAME),
    'mean': ('bn', 'running_mean', SAME), 'var': ('bn', 'running_var', SAME),
}
DENSE = {'kernel': ('weight', LINEAR), 'bias': ('bias', SAME)}
NAMINGS = ('openai', 'open_clip', 'custom_text', 'huggingface')
# Carried along in some files, but no weights: OpenAI's three scalars, causal masks, index buffers, batch counters.
DROPPED = re.compile(
    r'input_resolution|context_length|vocab_size|(.*\.)?(attn_mask|position_ids|num_batches_tracked)')


class Rule(NamedTuple):
  """One tensor of ours, or one layer of a stacked one, and the file's tensors that make it."""
  path: str
  layer: int | None
  sources: tuple[str, ...]
  layout: Layout


def naming(arrays: Mapping) -> str:
  """Returns which of NAMINGS the keys follow: 'custom_text' is open_clip's CustomTextCLIP ('text.' prefix).

  Raises:
    ValueError: the keys follow none; the message shows the first of them.
  """
  names = set(plain(arrays))
  if any(n.startswith(('vision_model.', 'text_model.')) for n in names):
    return 'huggingface'
  if any(n.startswith(('text.token_embedding.', 'text.transformer.')) for n in names):
    return 'custom_text'
  if any(n.startswith('visual.') for n in names) and any(n.startswith('transformer.') for n in names):
    return 'openai' if 'input_resolution' in names else 'open_clip'
  raise ValueError(
      'these arrays are named as in no CLIP of OpenAI, open_clip or Hugging Face (visual.* and transformer.* '
      f'or vision_model.* and text_model.*): {_listed(names, str) or "there are none"}')


def plain(arrays: Mapping) -> Mapping:
  """Returns the state dict itself, out of a training checkpoint's 'state_dict' and 'module.' wrappings."""
  if isinstance(arrays.get('state_dict'), Mapping):
    arrays = arrays['state_dict']
  if arrays and all(k.startswith('module.') for k in arrays):
    arrays = {k.removeprefix('module.'): v for k, v in arrays.items()}
  return arrays


def port(arrays: Mapping[str, np.ndarray], template, arch: archs.Arch):
  """Returns `template`'s tree filled from a state dict in any of NAMINGS: numpy float32, blocks stacked.

  Every key must belong to exactly one tensor of the architecture (or be one of a few named buffers), and
  every tensor must be there in its exact shape. Half precision is widened, which is exact; float64 is rounded.

  Args:
    arrays: names to arrays; a 'state_dict' wrapping and a 'module.' prefix are taken off.
    template: shapes to fill, from archs.template(arch).
    arch: the architecture that the arrays are for.

  Raises:
    ValueError: missing, extra or mis-shaped keys, all in one message with the architectures that would fit;
      values that are not floating-point or not finite.
  """
  arrays = {k: np.asarray(v) for k, v in plain(arrays).items() if not DROPPED.fullmatch(k)}
  kind = naming(arrays)
  want = _flat(template)
  wrong = _differences(arrays, _expected(want, kind))
  if wrong:
    others = [name for name in fits(arrays) if name != arch.name]
    hint = f' These arrays fit {" or ".join(others)}.' if others else ''
    raise ValueError(f'weights ({kind} names) do not fit {arch.name}: {"; ".join(wrong)}.{hint}')
  if others := [k for k, v in arrays.items() if not jnp.issubdtype(v.dtype, jnp.floating)]:
    show = lambda k: f'{k} is {arrays[k].dtype}'
    raise ValueError(f'weights must be floating-point: {_listed(others, show)}')
  ported = {path: np.empty(leaf.shape, np.float32) for path, leaf in want.items()}
  for rule in _rules(want, kind):
    target = ported[rule.path] if rule.layer is None else ported[rule.path][rule.layer]
    source = [arrays[name] for name in rule.sources]
    source = source[0] if len(source) == 1 else np.concatenate(source)
    _fill(target, rule.layout.here(source))
    if not np.isfinite(target).all():
      raise ValueError(f'{", ".join(rule.sources)} holds values that are not finite; fetch the weights again')
  return _nested(ported)


def unport(params, naming: str = 'open_clip') -> dict[str, np.ndarray]:
  """Returns the state dict that `port` would read as `params`, in one of NAMINGS, float32 and contiguous."""
  if naming not in NAMINGS:
    near = difflib.get_close_matches(naming, NAMINGS, 1)
    raise ValueError(f'unknown naming {naming!r}, not one of {", ".join(NAMINGS)}'
                     + (f'; did you mean {near[0]!r}?' if near else ''))
  flat = {path: np.asarray(leaf, np.float32) for path, leaf in _flat(params).items()}
  return {name: np.array(view, order='C') for name, view in _unported(flat, naming)}


def fits(arrays: Mapping[str, np.ndarray]) -> list[str]:
  """Returns the names in archs.ARCHS whose tensors are exactly these arrays in names and shapes."""
  arrays = {k: v for k, v in plain(arrays).items() if not DROPPED.fullmatch(k)}
  kind = naming(arrays)
  known = [arch for arch in archs.ARCHS.values() if kind != 'huggingface' or arch.vision.kind != 'resnet']
  return [arch.name for arch in known if not _differences(arrays, _expected(_flat(archs.template(arch)), kind))]


def digest(params) -> str:
  """Returns a sha256 of a parameter tree's names, shapes and values, for weights that come from no file."""
  result = hashlib.sha256()
  for path, leaf in sorted(_flat(params).items()):
    leaf = np.asarray(leaf, order='C')
    result.update(f'{path} {leaf.dtype} {leaf.shape}\n'.encode())
    result.update(leaf.reshape(-1).view(np.uint8))
  return result.hexdigest()


def _fill(target, view):
  """Copies `view`, the same values in another shape, into a contiguous array."""
  target = target.reshape(view.shape)
  if view.ndim == 2 and not view.flags.c_contiguous:
    for i in range(0, view.shape[1], 16):  # in strips, five times as fast as numpy's own transposing copy
      target[:, i:i + 16] = view[:, i:i + 16]
  else:
    target[...] = view


def _rules(flat, kind):
  """Yields a Rule for every tensor, or layer of one, of a flattened tree in naming `kind`."""
  if kind == 'huggingface':
    theirs = slice(3, 5)
    prefix = {'visual': 'vision_model.encoder.layers', 'text': 'text_model.encoder.layers'}
  else:
    theirs = slice(1, 3)
    prefix = {'visual': 'visual.transformer.resblocks', 'text': 'transformer.resblocks'}
  if kind == 'custom_text':
    prefix['text'] = 'text.' + prefix['text']
  transformers = [tower for tower in ('visual', 'text') if f'{tower}/blocks/ln_1/scale' in flat]
  if 'visual' not in transformers:
    if kind == 'huggingface':
      raise ValueError('Hugging Face has no CLIP with a ResNet, and so no names for one; use open_clip\'s')
    yield from _resnet_rules(flat)
  for row in (TOP + VIT if 'visual' in transformers else TOP):
    name, layout = row[theirs]
    if kind == 'custom_text' and row[0].startswith('text/'):
      name = 'text.' + name
    yield Rule(row[0], None, (name,), layout)
  for tower in transformers:
    for row in BLOCK:
      path = f'{tower}/blocks/{row[0]}'
      suffix, layout = row[theirs]
      for layer in range(flat[path].shape[0]):
        name = f'{prefix[tower]}.{layer}.{suffix}'
        sources = tuple(name.replace('{q,k,v}', x) for x in 'qkv') if '{q,k,v}' in name else (name,)
        yield Rule(path, layer, sources, layout)


def _resnet_rules(flat):
  """Yields a Rule for every tensor of a ResNet's image tower, or bottleneck of a stacked one."""
  for path, leaf in flat.items():
    if not path.startswith('visual/'):
      continue
    tower, *modules, last = path.split('/')
    if modules[0] == 'attnpool':
      last, layout = DENSE.get(last, (last, SAME))
    else:
      # One Conv of ours is two modules of torch's: conv1 and bn1, or 0 and 1 of a shortcut.
      kind, last, layout = CONV_NORM[last]
      number = 'downsample.1' if kind == 'bn' else 'downsample.0'
      modules[-1] = number if modules[-1] == 'downsample' else modules[-1].replace('conv', kind)
    for layer in range(leaf.shape[0]) if 'rest' in modules else (None,):
      names = {'first': '0', 'rest': str((layer or 0) + 1)}
      yield Rule(path, layer, ('.'.join([tower, *(names.get(m, m) for m in modules), last]),), layout)


def _unported(flat, kind):
  """Yields (name, view) for every tensor of naming `kind`."""
  for rule in _rules(flat, kind):
    leaf = flat[rule.path] if rule.layer is None else flat[rule.path][rule.layer]
    yield from zip(rule.sources, np.split(rule.layout.there(leaf), len(rule.sources))
                   if len(rule.sources) > 1 else [rule.layout.there(leaf)])


def _expected(want, kind):
  """Names to shapes of the state dict of naming `kind`, by carrying empty arrays through the table."""
  empty = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in want.items()}  # takes no memory
  return {name: view.shape for name, view in _unported(empty, kind)}


def _differences(arrays, want):
  """Sentences on the missing, extra and mis-shaped keys."""
  have = {k: np.shape(v) for k, v in arrays.items()}
  groups = (
      ('missing', want.keys() - have.keys(), lambda k: f'{k} {list(want[k])}'),
      ('extra', have.keys() - want.keys(), lambda k: f'{k} {list(have[k])}'),
      ('of another shape', {k for k in want.keys() & have.keys() if have[k] != want[k]},
       lambda k: f'{k} is {list(have[k])}, not {list(want[k])}'))
  return [f'{len(keys)} {what} ({_listed(keys, show)})' for what, keys, show in groups if keys]


def _listed(keys, show, most=10):
  keys = sorted(keys, key=lambda k: [int(x) if x.isdigit() else x for x in re.split(r'(\d+)', k)])
  return ', '.join(map(show, keys[:most])) + (', ...' if len(keys) > most else '')


def _flat(tree):
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _nested(flat):
  tree = {}
  for path, leaf in flat.items():
    *parents, last = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree
