"""Ports CLIP state dicts in any naming scheme to this project's parameter tree and back, checked both ways.

Torch stores a linear layer as [out, in] and a convolution as [out, in, kh, kw]. The packed attention projection stacks
q, k and v along its rows. One table has the name and the layout of each tensor in each scheme.
"""

import difflib
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zsad_jax.clip import archs


class Layout(NamedTuple):
  """Layout of one tensor in a torch file: `there` converts to it, `here` prepares a reshape to ours."""
  here: Callable[[np.ndarray], np.ndarray]
  there: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda x: x, lambda x: x)
FLAT = Layout(lambda x: x, lambda x: x.reshape(-1))                    # [3, H, d] <-> [3D]
LINEAR = Layout(lambda x: x.T, lambda x: x.T)                          # [in, out] <-> [out, in]
CONV = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))
QKV = Layout(lambda x: x.T, lambda x: x.reshape(x.shape[0], -1).T)     # [D, 3, H, d] <-> [3D, D]
OUT = Layout(lambda x: x.T, lambda x: x.reshape(-1, x.shape[-1]).T)    # [H, d, D] <-> [D, D]

# Our name; the name and layout of OpenAI and open_clip; the name and layout of Hugging Face.
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
# Names of a ResNet are those of OpenAI and open_clip apart from these endings. Hugging Face has no ResNets.
CONV_NORM = {  # {our leaf: (module, tensor, layout)}
    'kernel': ('conv', 'weight', CONV), 'scale': ('bn', 'weight', SAME), 'bias': ('bn', 'bias', SAME),
    'mean': ('bn', 'running_mean', SAME), 'var': ('bn', 'running_var', SAME),
}
DENSE = {'kernel': ('weight', LINEAR), 'bias': ('bias', SAME)}
NAMINGS = ('openai', 'open_clip', 'custom_text', 'huggingface')
# Entries of some files that are not weights: OpenAI's three scalars, causal masks, index buffers, batch counters.
DROPPED = re.compile(
    r'input_resolution|context_length|vocab_size|(.*\.)?(attn_mask|position_ids|num_batches_tracked)')


class Rule(NamedTuple):
  """One of our tensors, or one layer of a stacked tensor, and the tensors of the file that it consists of."""
  path: str
  layer: int | None
  sources: tuple[str, ...]
  layout: Layout


def naming(arrays: Mapping) -> str:
  """Returns the naming scheme of the keys, one of NAMINGS.

  'custom_text' is open_clip's CustomTextCLIP, with the prefix 'text.'.

  Raises:
    ValueError: keys of no known scheme; the message lists the first of them.
  """
  names = set(unwrap(arrays))
  if any(n.startswith(('vision_model.', 'text_model.')) for n in names):
    return 'huggingface'
  if any(n.startswith(('text.token_embedding.', 'text.transformer.')) for n in names):
    return 'custom_text'
  if any(n.startswith('visual.') for n in names) and any(n.startswith('transformer.') for n in names):
    return 'openai' if 'input_resolution' in names else 'open_clip'
  raise ValueError(
      'these arrays do not have the names of a CLIP of OpenAI or open_clip (visual.*, transformer.*) or of Hugging '
      f'Face (vision_model.*, text_model.*): {_join(names, str) or "there are none"}')


def unwrap(arrays: Mapping) -> Mapping:
  """Returns the state dict without the 'state_dict' and 'module.' wrappers of training checkpoints."""
  if isinstance(arrays.get('state_dict'), Mapping):
    arrays = arrays['state_dict']
  if arrays and all(k.startswith('module.') for k in arrays):
    arrays = {k.removeprefix('module.'): v for k, v in arrays.items()}
  return arrays


def from_state_dict(arrays: Mapping[str, np.ndarray], template: Any, arch: archs.Arch) -> Any:
  """Returns the tree of `template`, in numpy float32 and with stacked blocks, from a state dict in any of NAMINGS.

  Every key must belong to exactly one tensor of the architecture or be a known buffer, and every tensor must be there
  in its exact shape. Half precision is widened, which is exact; float64 is rounded.

  Args:
    arrays: {name: array}; a 'state_dict' wrapper and a 'module.' prefix are removed.
    template: the shapes, from archs.template(arch).
    arch: the architecture.

  Raises:
    ValueError: all missing, extra and mis-shaped keys in one message, with the architectures that would fit; or values
      that are not floating-point or not finite.
  """
  arrays = {k: np.asarray(v) for k, v in unwrap(arrays).items() if not DROPPED.fullmatch(k)}
  scheme = naming(arrays)
  leaves = flatten(template)
  if problems := differences(arrays, _expected_shapes(leaves, scheme)):
    others = [name for name in fits(arrays) if name != arch.name]
    hint = f' These arrays fit {" or ".join(others)}.' if others else ''
    raise ValueError(f'weights ({scheme} names) do not fit {arch.name}: {"; ".join(problems)}.{hint}')
  if integers := [k for k, v in arrays.items() if not jnp.issubdtype(v.dtype, jnp.floating)]:
    show = lambda k: f'{k} is {arrays[k].dtype}'
    raise ValueError(f'weights must be floating-point: {_join(integers, show)}')
  params = {path: np.empty(leaf.shape, np.float32) for path, leaf in leaves.items()}
  for rule in _rules(leaves, scheme):
    target = params[rule.path] if rule.layer is None else params[rule.path][rule.layer]
    parts = [arrays[name] for name in rule.sources]
    _fill(target, rule.layout.here(parts[0] if len(parts) == 1 else np.concatenate(parts)))
    if not np.isfinite(target).all():
      raise ValueError(f'{", ".join(rule.sources)} has values that are not finite; fetch the weights again')
  return _nest(params)


def to_state_dict(params: Any, naming: str = 'open_clip') -> dict[str, np.ndarray]:
  """Returns `params` as a state dict in one of NAMINGS, float32 and contiguous; the inverse of `from_state_dict`."""
  if naming not in NAMINGS:
    near = difflib.get_close_matches(naming, NAMINGS, 1)
    raise ValueError(f'naming={naming!r} is not one of {", ".join(NAMINGS)}'
                     + (f'; did you mean {near[0]!r}?' if near else ''))
  leaves = {path: np.asarray(leaf, np.float32) for path, leaf in flatten(params).items()}
  return {name: np.array(view, order='C') for name, view in _views(leaves, naming)}


def fits(arrays: Mapping[str, np.ndarray]) -> list[str]:
  """Returns the names in archs.ARCHS of the architectures with exactly the names and shapes of these arrays."""
  arrays = {k: v for k, v in unwrap(arrays).items() if not DROPPED.fullmatch(k)}
  scheme = naming(arrays)
  candidates = [arch for arch in archs.ARCHS.values() if scheme != 'huggingface' or arch.vision.kind != 'resnet']
  return [arch.name for arch in candidates
          if not differences(arrays, _expected_shapes(flatten(archs.template(arch)), scheme))]


def digest(params: Any) -> str:
  """Returns a sha256 of the names, shapes and values of a parameter tree, for weights that are not in a file."""
  result = hashlib.sha256()
  for path, leaf in sorted(flatten(params).items()):
    leaf = np.asarray(leaf, order='C')
    result.update(f'{path} {leaf.dtype} {leaf.shape}\n'.encode())
    result.update(leaf.reshape(-1).view(np.uint8).data)
  return result.hexdigest()


def flatten(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a parameter tree by their paths, such as 'visual/proj/kernel'."""
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def differences(arrays: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> list[str]:
  """Returns phrases that list the missing, extra and mis-shaped arrays; [] if names and shapes are as expected.

  Args:
    arrays: {name: array}.
    shapes: the expected {name: shape}.
  """
  have = {k: np.shape(v) for k, v in arrays.items()}
  want = {k: tuple(v) for k, v in shapes.items()}
  groups = (
      ('missing', want.keys() - have.keys(), lambda k: f'{k} {list(want[k])}'),
      ('extra', have.keys() - want.keys(), lambda k: f'{k} {list(have[k])}'),
      ('of another shape', {k for k in want.keys() & have.keys() if have[k] != want[k]},
       lambda k: f'{k} is {list(have[k])}, not {list(want[k])}'))
  return [f'{len(keys)} {problem} ({_join(keys, show)})' for problem, keys, show in groups if keys]


def _join(keys, show, most=10):
  """Returns the first keys in natural order, each through `show`, with dots if there are more."""
  keys = sorted(keys, key=lambda k: [int(x) if x.isdigit() else x for x in re.split(r'(\d+)', k)])
  return ', '.join(map(show, keys[:most])) + (', ...' if len(keys) > most else '')


def _fill(target, view):
  """Copies `view`, the same values in another shape, into a contiguous array."""
  target = target.reshape(view.shape)
  if view.ndim == 2 and not view.flags.c_contiguous:
    for i in range(0, view.shape[1], 16):  # copying in strips is 5x faster than numpy's own transposing copy
      target[:, i:i + 16] = view[:, i:i + 16]
  else:
    target[...] = view


def _rules(leaves, scheme):
  """Yields a Rule for every tensor of a flattened tree, or layer of a stacked one, in the naming `scheme`."""
  if scheme == 'huggingface':
    columns = slice(3, 5)
    prefix = {'visual': 'vision_model.encoder.layers', 'text': 'text_model.encoder.layers'}
  else:
    columns = slice(1, 3)
    prefix = {'visual': 'visual.transformer.resblocks', 'text': 'transformer.resblocks'}
  if scheme == 'custom_text':
    prefix['text'] = 'text.' + prefix['text']
  transformers = [tower for tower in ('visual', 'text') if f'{tower}/blocks/ln_1/scale' in leaves]
  if 'visual' not in transformers:
    if scheme == 'huggingface':
      raise ValueError('Hugging Face has no names for a CLIP with a ResNet; use the names of open_clip')
    yield from _resnet_rules(leaves)
  for row in (TOP + VIT if 'visual' in transformers else TOP):
    name, layout = row[columns]
    if scheme == 'custom_text' and row[0].startswith('text/'):
      name = 'text.' + name
    yield Rule(row[0], None, (name,), layout)
  for tower in transformers:
    for row in BLOCK:
      path = f'{tower}/blocks/{row[0]}'
      suffix, layout = row[columns]
      for layer in range(leaves[path].shape[0]):
        name = f'{prefix[tower]}.{layer}.{suffix}'
        sources = tuple(name.replace('{q,k,v}', x) for x in 'qkv') if '{q,k,v}' in name else (name,)
        yield Rule(path, layer, sources, layout)


def _resnet_rules(leaves):
  """Yields a Rule for every tensor of a ResNet's image tower, or bottleneck of a stacked one."""
  for path, leaf in leaves.items():
    if not path.startswith('visual/'):
      continue
    tower, *modules, last = path.split('/')
    if modules[0] == 'attnpool':
      last, layout = DENSE.get(last, (last, SAME))
    else:
      # Our Conv is two modules in torch: conv1 and bn1, or 0 and 1 of a shortcut.
      module, last, layout = CONV_NORM[last]
      shortcut = 'downsample.1' if module == 'bn' else 'downsample.0'
      modules[-1] = shortcut if modules[-1] == 'downsample' else modules[-1].replace('conv', module)
    for layer in range(leaf.shape[0]) if 'rest' in modules else (None,):
      names = {'first': '0', 'rest': str((layer or 0) + 1)}
      yield Rule(path, layer, ('.'.join([tower, *(names.get(m, m) for m in modules), last]),), layout)


def _views(leaves, scheme):
  """Yields (name, view) for every tensor of the state dict in the naming `scheme`."""
  for rule in _rules(leaves, scheme):
    leaf = leaves[rule.path] if rule.layer is None else leaves[rule.path][rule.layer]
    yield from zip(rule.sources, np.split(rule.layout.there(leaf), len(rule.sources))
                   if len(rule.sources) > 1 else [rule.layout.there(leaf)])


def _expected_shapes(leaves, scheme):
  """Returns {name: shape} of the state dict in the naming `scheme`, by passing empty arrays through the table."""
  empty = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in leaves.items()}  # takes no memory
  return {name: view.shape for name, view in _views(empty, scheme)}


def _nest(leaves):
  """Returns the tree of flattened leaves, the inverse of `flatten` for nested dicts."""
  tree = {}
  for path, leaf in leaves.items():
    *parents, last = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree
