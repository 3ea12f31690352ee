"""What an experiment starts from: its checked config, its CLIP, its data sets and their features."""

import dataclasses
import functools

import jax
import ml_collections as mlc
import numpy as np

from zsad_jax import data, methods, metrics
from zsad_jax.clip import encoder, preprocess
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.weights import hub
from zsad_jax.data import catalog, images
from zsad_jax.engine import features, runtime


def check(cfg):
  """Raises ValueError naming the first shared key that is out of range, before anything is loaded."""
  for key, low in (('train.epochs', 1), ('train.batch', 1), ('machine.encode_batch', 1), ('machine.eval_batch', 1),
                   ('report.pictures', 0), ('machine.max_memory_gb', 0), ('image_size', 1), ('seed', 0)):
    value = get(cfg, key)
    if value < low:
      raise ValueError(f'{key} is {value}; it must be at least {low}')
  if 'fewshot' in cfg and cfg.fewshot.shots < 0:
    raise ValueError(f'fewshot.shots is {cfg.fewshot.shots}; it must be at least 0')
  if cfg.eval.oracle_epoch and 'seeds' in cfg:
    raise ValueError('eval.oracle_epoch is True, but several seeds are trained at once and each has its last epoch')
  if not 0 < cfg.eval.fpr_limit <= 1:
    raise ValueError(f'eval.fpr_limit is {cfg.eval.fpr_limit}; it must lie in (0, 1]')
  if not cfg.machine.max_feature_gb > 0:  # nor NaN, to which every store would seem small
    raise ValueError(f'machine.max_feature_gb is {cfg.machine.max_feature_gb}; it must be positive')
  if cfg.data.on_bad == 'skip' and not (data.is_own(cfg.data.aux) or data.is_own(cfg.data.target)):
    raise ValueError(f'data.on_bad is skip, but data.aux ({cfg.data.aux}) and data.target ({cfg.data.target}) are '
                     'published data sets, which are used whole; mend them, or see --mode=datasets verify')
  for key, allowed in (('feature_dtype', features.STORAGE), ('precision', clip_lib.PRECISIONS),
                       ('data.transparency', ('default', *images.TRANSPARENCY)),
                       ('data.exif', ('ignore', 'apply')), ('object_names', ('folder', 'catalogue')),
                       ('data.on_bad', ('error', 'skip')), ('eval.aupr', metrics.AUPR)):
    if get(cfg, key) not in allowed:
      raise ValueError(f'{key} is {get(cfg, key)!r}; it must be one of {", ".join(allowed)}')


def load_clip(cfg, method):
  """The CLIP of the config; the config is held against its architecture before any weight is read.

  With shard_weights its weights lie in parts over the devices of this process, none of which ever holds them whole.
  """
  arch = shell(cfg, method).arch
  host = jax.local_devices(backend='cpu')[0] if cfg.machine.shard_weights else None
  with jax.default_device(host):
    loaded = clip_lib.load(cfg.clip, arch=cfg.arch or None, image_size=cfg.image_size)
    clip = clip_lib.with_precision(dataclasses.replace(loaded, arch=arch), cfg.precision)
  return dataclasses.replace(clip, params=runtime.weights(clip.params, own_devices(cfg))) if host else clip


def own_devices(cfg):
  """The placement over this process's devices, on which the towers run that read its share of the images."""
  return runtime.place(jax.local_devices(), sharded=cfg.machine.shard_weights)


def shell(cfg, method):
  """The CLIP of the config without weights; raises ValueError where the config and its architecture do not fit."""
  arch = hub.architecture(cfg.clip, arch=cfg.arch or None)
  methods.check_tower(cfg.method, arch)
  arch = method.arch(arch, cfg) if hasattr(method, 'arch') else arch
  made = clip_lib.Clip(arch, cfg.image_size, params=None)
  encoder.validate(made, method.spec(made, cfg))
  return made


def reader(cfg, method, clip, dataset, stored=True, crops=True):
  """Returns load(indices) -> (Features, batch), from the feature store, which is filled first, or past it.

  The store is bypassed where `stored` is False, the config says so, or the method learns inside the image tower and
  says so by `STORED = False`; every read then runs the image tower. Crops, which with `crops` False are left out,
  have a store of their own: whatever multicrop says, the rest is encoded once.
  """
  spec = method.spec(clip, cfg)
  past = not (stored and cfg.machine.store_features and getattr(method, 'STORED', True))
  if past and stored:
    print(f'features of {dataset.name} are not stored: every read runs the image tower', flush=True)
  whole = _reader(cfg, clip, dataset, spec._replace(crops=0), encoder.encode, clip.image_size, past)
  if not (crops and spec.crops):
    return whole
  of_crops = _reader(cfg, clip, dataset, spec.of_crops(), encoder.encode_crops, spec.crops, past)

  def load(indices):
    values, batch = whole(indices)
    return values._replace(crops=of_crops(indices)[0].crops), batch

  return load


def _reader(cfg, clip, dataset, spec, make_encode, side, past):
  """load(indices) of what make_encode(clip, spec) reads of images resized to `side` px; `past` the store or from it."""
  encode, transform = make_encode(clip, spec), preprocess.image_transform(clip.arch, side)
  place = own_devices(cfg)

  def batches(indices, size=cfg.machine.encode_batch):
    return data.batches(dataset, transform=transform, mask_size=clip.image_size, batch_size=size, indices=indices)

  if past:
    params = runtime.weights(clip.params, place)
    return lambda indices: next(features.encode_batches(batches(indices, len(indices)), encode, params, place=place))

  store = _store(cfg, clip, dataset, spec, encode, side)
  features.fill(store, batches, encode, clip.params, place=place)
  return functools.partial(features.load, store)


def _store(cfg, clip, dataset, spec, encode, side):
  image = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
  key = {**clip.identity, 'spec': repr(spec), 'data': dataset.fingerprint,
         'preprocessing': 'squash'}
  return features.Store.open(
    cfg.machine.feature_dir or f'{cfg.machine.data_dir}/features', key=key, count=len(dataset), max_gb=cfg.machine.max_feature_gb,
    fields=features.fields(jax.eval_shape(encode, clip.params, image), clip.image_size, cfg.feature_dtype))


def stores(cfg, method, clip, dataset, crops=True):
  """The feature stores that `reader` with these arguments fills, opened and as full as they are."""
  spec = method.spec(clip, cfg)
  if not (cfg.machine.store_features and getattr(method, 'STORED', True)):
    return []
  kinds = [(spec._replace(crops=0), encoder.encode, clip.image_size)]
  kinds += [(spec.of_crops(), encoder.encode_crops, spec.crops)] if crops and spec.crops else []
  return [_store(cfg, clip, dataset, one, make_encode(clip, one), side) for one, make_encode, side in kinds]


def open_data(cfg, which, split=None):
  """The data set `which` ('aux' or 'target') of the config, by default its data.split."""
  return data.load(cfg.data[which], root=cfg.machine.data_dir, split=split or cfg.data.split,
                   categories=words(cfg.data[f'{which}_categories']), manual_dir=cfg.machine.manual_dir or None,
                   rules=data.rules(cfg.data[which], cfg.data.exif, cfg.data.transparency),
                   on_bad=cfg.data.on_bad if data.is_own(cfg.data[which]) else 'error')


def class_means(cfg, method, clip, dataset, *, normalize=False):
  """The mean class token [C, E] of each category's images, with `normalize` each brought to length 1 first."""
  load, size, tokens = reader(cfg, method, clip, dataset, crops=False), cfg.machine.encode_batch, []
  for start in range(0, len(dataset), size):
    indices, valid = features.padded(np.arange(start, min(start + size, len(dataset))), size)
    tokens.append(np.asarray(load(indices)[0].cls, np.float64)[valid])
  tokens = np.concatenate(tokens)
  if normalize:
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
  return np.stack([tokens[dataset.category_index == c].mean(0) for c in range(len(dataset.categories))])


def names(cfg, dataset):
  """What the categories are called in prompts.

  With prompt.raw_names as the folders are called, otherwise with spaces for underscores, or, where object_names says so
  or the data set is the user's own, as its catalogue or table calls them.
  """
  if 'prompt' in cfg and cfg.prompt.get('raw_names', False):
    return dataset.categories
  if cfg.object_names == 'folder' and dataset.name in catalog.CATALOG:
    return tuple(catalog.object_name(category) for category in dataset.categories)
  return tuple(dataset.object_names[category] for category in dataset.categories)


def with_changes(cfg, changes):
  """The config with other values of these dotted keys."""
  changed = mlc.ConfigDict(cfg.to_dict())  # a ConfigDict made from cfg itself would share its nested nodes
  changed.update_from_flattened_dict(changes)
  return mlc.FrozenConfigDict(changed)


def words(text):
  return tuple(name.strip() for name in text.split(',') if name.strip())


def get(cfg, dotted):
  for part in dotted.split('.'):
    cfg = cfg[part]
  return cfg
