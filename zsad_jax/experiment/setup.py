"""Experiment setup: validates the config and loads CLIP and data sets."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections as mlc

from zsad_jax import data, methods, metrics
from zsad_jax.clip import encoder
from zsad_jax.clip import model as clip_lib
from zsad_jax.clip.weights import hub
from zsad_jax.data import catalog, images
from zsad_jax.engine import features, runtime
from zsad_jax.methods import Method
from zsad_jax.methods.parts import bounds
from zsad_jax.methods.parts.bounds import AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE, Bound, OneOf, Range

Config = Any  # ml_collections.FrozenConfigDict, whose keys no type checker knows
# Groups of the config by what they affect. MODEL stands for every other key: CLIP, the method's own keys, the seed.
MODEL = 'model'
TRAINING, DATA, EVALUATION = ('train', 'optim'), 'data', 'eval'
NO_EFFECT = ('label', 'published', 'seeds', 'predict', 'machine', 'report', 'bench', 'export')  # on an evaluation
RESULT = (MODEL, DATA, *TRAINING, EVALUATION)  # everything that an evaluation's numbers depend on

BOUNDS: dict[str, Bound] = {
  'seed': NOT_NEGATIVE, 'seeds': AT_LEAST_ONE, 'image_size': AT_LEAST_ONE,
  'precision': OneOf(clip_lib.PRECISIONS), 'feature_dtype': OneOf(features.STORAGE),
  'object_names': OneOf(('folder', 'catalogue')),
  'data.transparency': OneOf(('default', *images.TRANSPARENCY)), 'data.exif': OneOf(('ignore', 'apply')),
  'data.on_bad': OneOf(('error', 'skip')),
  'train.epochs': AT_LEAST_ONE, 'train.batch': AT_LEAST_ONE,
  'eval.fpr_limit': Range(0, 1, open_low=True), 'eval.aupr': OneOf(metrics.AUPR), 'eval.std_ddof': OneOf((0, 1)),
  'machine.max_feature_gb': POSITIVE, 'machine.encode_batch': AT_LEAST_ONE, 'machine.eval_batch': AT_LEAST_ONE,
  'machine.knn_mib': POSITIVE, 'machine.max_memory_gb': NOT_NEGATIVE,
  'report.pictures': NOT_NEGATIVE, 'report.attention': NOT_NEGATIVE,
  'bench.images': AT_LEAST_ONE, 'bench.repeats': AT_LEAST_ONE, 'bench.pixels': AT_LEAST_ONE,
  'bench.source': OneOf(('drawn', 'target')), 'export.batch': NOT_NEGATIVE, 'export.inline_gb': NOT_NEGATIVE,
  'predict.batch': AT_LEAST_ONE, 'predict.fpr': Range(0, 0.5, open_low=True, open_high=True),
  'predict.pixel_fpr': Range(0, 0.5, open_low=True, open_high=True),
  'predict.quantile': Range(0, 1, open_low=True, open_high=True),
  'predict.maps': OneOf(('png16', 'npy', 'npy16', 'none')),
}


def check(cfg: Config) -> Method:
  """Returns the config's method after checking every key that can be checked before anything is loaded.

  Raises:
    ValueError: an unknown method, or the first key whose value is not allowed.
  """
  method = methods.get(cfg.method)
  bounds.check(cfg, BOUNDS)
  if method.build_memory_bank is not None:
    bounds.check(cfg, {'fewshot.shots': NOT_NEGATIVE, 'fewshot.seed': NOT_NEGATIVE})
  bounds.check(cfg, method.bounds)
  if cfg.checkpoint and method.load_released is None:
    raise ValueError(f'checkpoint={cfg.checkpoint!r} cannot be loaded: {cfg.method} has no released checkpoints; leave '
                     'the key empty')
  in_stages = method.stages is not Method._field_defaults['stages']  # which may follow from the auxiliary data set
  if cfg.eval.oracle_epoch and (in_stages or method.train is not None):
    raise ValueError(f'eval.oracle_epoch=True is not possible for {cfg.method}, whose parts are trained separately and '
                     'share no epochs')
  if cfg.data.on_bad == 'skip' and not (data.is_own(cfg.data.aux) or data.is_own(cfg.data.target)):
    raise ValueError(f'data.on_bad=skip is for your own data sets, but data.aux={cfg.data.aux} and '
                     f'data.target={cfg.data.target} are published ones, which are evaluated whole; --mode=datasets '
                     'verify names what to repair')
  return method


def sections(cfg: Config, *groups: str) -> dict[str, Any]:
  """Returns the config's keys in these groups as a JSON-able dict; MODEL stands for every key outside all groups."""
  plain = cfg if isinstance(cfg, dict) else json.loads(cfg.to_json_best_effort())
  others = {*TRAINING, DATA, EVALUATION, *NO_EFFECT}
  return {key: value for key, value in plain.items() if key in groups or (MODEL in groups and key not in others)}


def digest(*parts: Any) -> str:
  """Returns sixteen hexadecimal digits of JSON-able parts."""
  return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def with_overrides(cfg: Config, overrides: Mapping[str, Any]) -> Config:
  """Returns the config with other values of these dotted keys.

  Raises:
    KeyError, TypeError: a key that the config does not have, or a value of another type.
  """
  changed = mlc.ConfigDict(cfg.to_dict()).lock()  # a ConfigDict made from cfg itself would share its nested nodes
  changed.update_from_flattened_dict(dict(overrides))
  if 'epochs' in changed.get('optim', {}):  # one number with train.epochs, by a reference that to_dict does not keep
    changed.train.epochs = changed.optim.epochs = overrides.get('train.epochs', changed.optim.epochs)
  return mlc.FrozenConfigDict(changed.unlock())


def label(cfg: Config) -> str:
  """Returns the name of the system as papers write it, such as AnomalyCLIP."""
  return cfg.get('label', cfg.method)


def load_clip(cfg: Config, method: Method) -> clip_lib.Clip:
  """Returns the CLIP of the config; the config is checked against its architecture before any weight is read.

  With machine.shard_weights each device of this process holds a part of the weights, and none holds them whole.
  """
  arch = clip_without_weights(cfg, method).arch
  host = jax.local_devices(backend='cpu')[0] if cfg.machine.shard_weights else None
  with jax.default_device(host):
    loaded = clip_lib.load(cfg.clip, arch=cfg.arch or None, image_size=cfg.image_size)
    clip = clip_lib.with_precision(dataclasses.replace(loaded, arch=arch), cfg.precision)
  return dataclasses.replace(clip, params=runtime.weights(clip.params, local_devices(cfg))) if host else clip


def clip_without_weights(cfg: Config, method: Method) -> clip_lib.Clip:
  """Returns the config's CLIP without weights; raises ValueError if the config does not fit its architecture."""
  arch = hub.architecture(cfg.clip, arch=cfg.arch or None)
  methods.check_tower(method, arch)
  clip = clip_lib.Clip(method.architecture(arch, cfg), cfg.image_size, params=None)
  encoder.validate(clip, method.feature_spec(clip, cfg))
  blocks, number, kind = clip.arch.vision.layers, cfg.report.attention, clip.arch.vision.kind
  if number and (kind != 'vit' or number > blocks):
    raise ValueError(f'report.attention={number} is not allowed; {clip.arch.name} has ' + (
      f'blocks 1..{blocks}, and 0 draws none' if kind == 'vit' else 'no transformer blocks: set it to 0'))
  if cfg.report.tsne and not method.feature_spec(clip, cfg).cls:
    raise ValueError(f'report.tsne=True is not possible: {cfg.method} reads no class token')
  return clip


def local_devices(cfg: Config) -> runtime.Placement:
  """Returns the placement over this process's devices, on which the towers encode its share of the images."""
  return runtime.place(jax.local_devices(), sharded=cfg.machine.shard_weights)


def open_data(cfg: Config, role: str, split: str | None = None) -> data.Dataset:
  """Returns the data set in the role 'aux' or 'target', by default its data.split."""
  name = cfg.data[role]
  return data.load(name, root=cfg.machine.data_dir, split=split or cfg.data.split,
                   categories=words(cfg.data[f'{role}_categories']), manual_dir=cfg.machine.manual_dir or None,
                   rules=data.rules(name, cfg.data.exif, cfg.data.transparency),
                   on_bad=cfg.data.on_bad if data.is_own(name) else 'error')


def object_names(cfg: Config, dataset: data.Dataset) -> tuple[str, ...]:
  """Returns what prompts call the categories.

  With prompt.raw_names the folders' names; otherwise these with spaces for underscores or, with
  object_names=catalogue and for data sets of the user's own, the names in the catalogue or table.
  """
  if 'prompt' in cfg and cfg.prompt.get('raw_names', False):
    return tuple(dataset.categories)
  if cfg.object_names == 'folder' and dataset.name in catalog.CATALOG:
    return tuple(catalog.object_name(category) for category in dataset.categories)
  return tuple(dataset.object_names[category] for category in dataset.categories)


def words(text: str) -> tuple[str, ...]:
  """Returns the comma-separated words of a config value."""
  return tuple(name.strip() for name in text.split(',') if name.strip())
