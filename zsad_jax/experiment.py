"""One experiment: fit a method on an auxiliary set, evaluate it on a target, write and print what came out."""

import dataclasses
import functools
import json
import math
import platform
import subprocess
import textwrap
import time
from importlib import metadata
from pathlib import Path

import jax
import ml_collections as mlc
import numpy as np

import zsad_jax
from zsad_jax import data, encoder, evaluate, features, generated, logs, methods, pretrain, runtime, train
from zsad_jax.data import images, mosaic, naming, protocol, references
from zsad_jax.models import clip as clip_lib
from zsad_jax.models import files, hub, preprocess
from zsad_jax.report import page, pictures, tables

# Keys that a checkpoint need not agree on; its data and weights are known by their digests, not by their names.
NOT_RECIPE = ('arch', 'checkpoint', 'clip', 'data', 'eval', 'features', 'label', 'published', 'train')


def run(cfg, workdir, mode):
  """Fits and evaluates as `mode` says, prints where everything is, and returns what evaluate_target does."""
  if 'method' not in cfg:
    return pretrain.run(cfg, workdir)
  check(cfg)
  method = methods.get(cfg.method)
  if cfg.checkpoint and not hasattr(method, 'load_official'):
    raise ValueError(f'checkpoint is {cfg.checkpoint!r}, but no trained parts of {cfg.method} are published to load')
  if cfg.eval.oracle_epoch and hasattr(method, 'stages'):
    raise ValueError(f'eval.oracle_epoch is True, but the parts of {cfg.method} are trained one after another and have '
                     'no epochs in common')
  told = hasattr(method, 'examples')  # of texts, and so of no auxiliary images
  if hasattr(method, 'loss') and not (told or cfg.checkpoint or cfg.data.allow_seen):
    protocol.check_names(cfg.data.aux, cfg.data.target, _words(cfg.data.aux_categories),
                         _words(cfg.data.target_categories))
  clip = load_clip(cfg, method)
  print(f'zsad_jax {zsad_jax.__version__}: {cfg.method} on CLIP {cfg.clip} at {cfg.image_size} px; '
        f'{runtime.device_summary()}', flush=True)
  # Both sets are opened before the first step, so that a wrong name costs seconds and not a training.
  learns = trains(cfg, method, clip)
  aux = open_data(cfg, 'aux') if learns and not told else None
  target = open_data(cfg, 'target') if mode != 'fit' else None
  if aux is not None and target is not None and not cfg.data.allow_seen:
    protocol.check_images(aux, target)
  if aux is not None:
    cfg = settled(with_aux_names(cfg, aux), method, clip, aux)
  learnable = fit(cfg, workdir, method, clip, aux) if learns and mode != 'evaluate' else None
  if target is not None:
    learnable = trained(cfg, workdir, method, clip, aux) if learnable is None else learnable
    if not (told and learns):
      return evaluate_target(cfg, workdir, method, clip, learnable, aux, target)
    return generated.evaluate(
      cfg, learnable, lambda one, own: evaluate_target(one, workdir, method, clip, own, None, target),
      results_folder(cfg, workdir, 'texts'), published(cfg))
  return None


def check(cfg):
  """Raises ValueError naming the first shared key that is out of range, before anything is loaded."""
  for key, low in (('train.epochs', 1), ('train.batch', 1), ('features.batch', 1), ('eval.batch', 1),
                   ('eval.pictures', 0), ('image_size', 1), ('seed', 0)):
    value = _get(cfg, key)
    if value < low:
      raise ValueError(f'{key} is {value}; it must be at least {low}')
  if 'fewshot' in cfg and cfg.fewshot.shots < 0:
    raise ValueError(f'fewshot.shots is {cfg.fewshot.shots}; it must be at least 0')
  if cfg.eval.oracle_epoch and 'seeds' in cfg:
    raise ValueError('eval.oracle_epoch is True, but several seeds are trained at once and each has its last epoch')
  if not 0 < cfg.eval.fpr_limit <= 1:
    raise ValueError(f'eval.fpr_limit is {cfg.eval.fpr_limit}; it must lie in (0, 1]')
  if cfg.features.max_gb <= 0:
    raise ValueError(f'features.max_gb is {cfg.features.max_gb}; it must be positive')
  for key, allowed in (('features.storage', features.STORAGE), ('data.transparency', ('default', *images.TRANSPARENCY)),
                       ('data.exif', ('ignore', 'apply'))):
    if _get(cfg, key) not in allowed:
      raise ValueError(f'{key} is {_get(cfg, key)!r}; it must be one of {", ".join(allowed)}')


def load_clip(cfg, method):
  """The CLIP of the config; the config is held against its architecture before any weight is read."""
  arch = shell(cfg, method).arch
  return dataclasses.replace(clip_lib.load(cfg.clip, arch=cfg.arch or None, image_size=cfg.image_size), arch=arch)


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
  past = not (stored and cfg.features.store and getattr(method, 'STORED', True))
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

  def batches(indices, size=cfg.features.batch):
    return data.batches(dataset, transform=transform, mask_size=clip.image_size, batch_size=size, indices=indices)

  if past:
    return lambda indices: next(features.encode_batches(batches(indices, len(indices)), encode, clip.params))

  image = jax.ShapeDtypeStruct((1, side, side, 3), np.float32)
  key = {'weights': clip.fingerprint, 'arch': repr(clip.arch), 'spec': repr(spec), 'data': dataset.fingerprint,
         'preprocessing': 'squash'}
  store = features.Store.open(
    cfg.features.dir or f'{cfg.data.root}/features', key=key, count=len(dataset), max_gb=cfg.features.max_gb,
    fields=features.fields(jax.eval_shape(encode, clip.params, image), clip.image_size, cfg.features.storage))
  features.fill(store, batches, encode, clip.params)
  return functools.partial(features.load, store)


def open_data(cfg, which, split=None):
  """The data set `which` ('aux' or 'target') of the config, by default its data.split."""
  return data.load(cfg.data[which], root=cfg.data.root, split=split or cfg.data.split,
                   categories=_words(cfg.data[f'{which}_categories']), manual_dir=cfg.data.manual_dir or None,
                   rules=data.rules(cfg.data[which], cfg.data.exif, cfg.data.transparency))


def fit(cfg, workdir, method, clip, dataset):
  """Trains on the features of the auxiliary set, part by part where the method has stages; returns what was learned.

  A method with examples is trained on these in its place.
  """
  if dataset is None:
    return generated.fit(cfg, workdir, method, clip, identity(cfg, method, clip, None))
  learnable, learned = method.init(jax.random.key(cfg.seed), clip, cfg), {}
  frozen, fresh = clip.params, cfg.get('mosaic', 0) > 0
  if hasattr(method, 'fixed'):
    frozen = jax.jit(functools.partial(method.fixed, categories=names(cfg, dataset), clip=clip, cfg=cfg))(frozen)
    frozen = selected(cfg, method, frozen, cfg.data.aux)
  if fresh:
    print(f'mosaic={cfg.mosaic:g}: images differ from epoch to epoch, so every epoch runs the image tower', flush=True)
  stored = None if fresh else reader(cfg, method, clip, dataset, crops=False)
  with runtime.preemption() as stop:
    for stage in methods.stages(method, cfg):
      recipe = with_changes(cfg, stage.changes)
      load = stored or reader(cfg, method, clip, mosaic.Mosaics(
        dataset, probability=cfg.mosaic, seed=cfg.seed, epochs=recipe.train.epochs), stored=False, crops=False)
      learned |= fit_stage(recipe, workdir, method, clip, dataset, load, stage, stage.part(learnable), frozen,
                           stop=stop, fresh=fresh)
  return learned


def fit_stage(cfg, workdir, method, clip, dataset, load, stage, learnable, frozen, *, stop, fresh):
  """Trains one part under its own recipe, on the images of its categories; returns what was learned of it."""
  count = len(dataset)
  members = np.arange(count) if stage.categories is None else np.flatnonzero(
    np.isin(dataset.category_index, stage.categories))
  # train.fit counts these images, `load` those of the whole set: image i of epoch e is at i + e * count.
  read = lambda images: load(members[images % len(members)] + images // len(members) * count)
  trained_on = [dataset.categories[c] for c in np.unique(dataset.category_index[members])]
  print(f'fit{stage.name and f" {stage.name}"}: {cfg.train.epochs} epochs on {dataset.name} ({", ".join(trained_on)}), '
        f'{sum(x.size for x in jax.tree.leaves(learnable))} learned numbers', flush=True)
  workdir = workdir / stage.name
  with logs.Writer(workdir) as writer:
    return train.fit(
      functools.partial(method.loss, clip=clip, cfg=cfg), train.make_tx(cfg.optim), learnable, frozen,
      read, len(members), epochs=cfg.train.epochs, batch=cfg.train.batch, seed=cfg.seed, workdir=workdir,
      writer=writer, identity=identity(cfg, method, clip, dataset, stage), stop=stop, fresh=fresh,
      shuffle=cfg.train.shuffle)


def selected(cfg, method, texts, dataset):
  """What the method's host half makes of the text features of the data set of that name; the same where it has none."""
  return method.select(jax.device_get(texts), dataset, cfg=cfg) if hasattr(method, 'select') else texts


def few_shot(cfg, method, clip):
  """(memory of the references that cfg.fewshot draws, their ids by category); (None, None) for a zero-shot run."""
  if not hasattr(method, 'memory') or not cfg.fewshot.shots:
    return None, None
  dataset = open_data(cfg, 'target', 'train')
  drawn = references.draw(dataset, cfg.fewshot.shots, seed=cfg.fewshot.seed, replacement=cfg.fewshot.replacement)
  load, parts = reader(cfg, method, clip, dataset, stored=False, crops=False), []
  for start in range(0, drawn.size, cfg.features.batch):
    indices, valid = features.padded(drawn.reshape(-1)[start:start + cfg.features.batch], cfg.features.batch)
    parts.append(jax.tree.map(lambda x, keep=valid: x[keep], load(indices)[0]))
  shaped = jax.tree.map(lambda *x: np.concatenate(x).reshape(*drawn.shape, *x[0].shape[1:]), *parts)
  memory = jax.jit(functools.partial(method.memory, clip=clip, cfg=cfg))(clip.params, shaped)
  return memory, {c: [dataset.ids[i] for i in row] for c, row in zip(dataset.categories, drawn)}


def identity(cfg, method, clip, dataset, stage=methods.WHOLE):
  """What decides the learned numbers: weights, auxiliary data, what is read of it, and the recipe of the stage."""
  recipe = {k: v for k, v in json.loads(cfg.to_json_best_effort()).items() if k not in NOT_RECIPE}
  for dotted in getattr(method, 'EVALUATION_KEYS', ()):
    *path, last = dotted.split('.')
    functools.reduce(dict.__getitem__, path, recipe).pop(last)
  if stage.name:
    recipe['stage'] = [stage.name, stage.categories]
  if dataset is None:
    return {'weights': clip.fingerprint, **recipe}
  return {'weights': clip.fingerprint, 'auxiliary data': dataset.fingerprint,
          'spec': repr(method.spec(clip, cfg)._replace(crops=0)), 'features.storage': cfg.features.storage, **recipe}


def evaluate_target(cfg, workdir, method, clip, learnable, aux, dataset):
  """Evaluates on the target set; writes and prints results, tables and pictures; returns {selection: the means}."""
  if cfg.eval.oracle_epoch and aux is None:
    raise ValueError('eval.oracle_epoch is True, but nothing was trained here, so there are no epochs to choose from')
  start = time.time()
  measure, drawn = evaluator(cfg, method, clip, dataset)
  result = measure(learnable)
  rules = protocol.record(aux, dataset, aux_name=cfg.data.aux, target_name=cfg.data.target,
                          allow_seen=cfg.data.allow_seen) | {
    'selection': f'last epoch ({cfg.train.epochs})' if trains(cfg, method, clip) else 'none', 'seed': cfg.seed,
    'checkpoint': cfg.checkpoint or None, 'references': drawn}
  write_results(cfg, workdir, clip, learnable, aux, dataset, result, rules, time.time() - start)
  means = {rules['selection']: result.summary}
  if cfg.eval.oracle_epoch:
    epoch, best = oracle(cfg, workdir, method, clip, aux, measure, result)
    rules |= {'selection': f'oracle epoch {epoch} of {cfg.train.epochs} (selected on the target, by image AUROC)'}
    write_results(cfg, workdir, clip, learnable, aux, dataset, best, rules, time.time() - start, suffix='-oracle')
    means[rules['selection']] = best.summary
  return means


def evaluator(cfg, method, clip, dataset):
  """(measure(learnable) -> evaluate.Result on a target set, ids of the references it compares with by category)."""
  load, place = reader(cfg, method, clip, dataset), runtime.place()
  memory, drawn = few_shot(cfg, method, clip)
  frozen, memory = jax.device_put((clip.params, memory), place.copy)
  make_bank = jax.jit(functools.partial(method.bank, categories=names(cfg, dataset), clip=clip, cfg=cfg))
  chosen = hasattr(method, 'select')
  if chosen:
    texts = jax.device_put(selected(cfg, method, make_bank({}, frozen), cfg.data.target), place.copy)
  jitted = evaluate.make_predict(method, clip, cfg, place=place)

  def measure(learnable):
    learnable = jax.device_put(learnable, place.copy)
    bank = texts if chosen else make_bank(learnable, frozen)
    return evaluate.run(
      lambda values, batch: jitted(learnable, frozen, bank, memory, values, batch),
      load, dataset, batch=cfg.eval.batch, place=place, fpr_limit=cfg.eval.fpr_limit,
      finish=functools.partial(method.finish, cfg=cfg) if hasattr(method, 'finish') else None,
      keep=pictures.chosen(dataset, cfg.eval.pictures))

  return measure, drawn


def oracle(cfg, workdir, method, clip, aux, measure, last):
  """(epoch, Result) of the best of all epochs' checkpoints by mean image AUROC on the target; `last` is the last one's.

  That is a choice made on the test images, as some papers report it: no zero-shot result.
  """
  value = lambda result: result.summary['image_auroc']['value']
  if value(last) is None:
    raise ValueError(f'eval.oracle_epoch chooses by image AUROC, which {cfg.data.target} leaves undefined: '
                     f'{last.summary["image_auroc"]["reason"]}')
  steps, template = math.ceil(len(aux) / cfg.train.batch), learned_shapes(cfg, method, clip)
  recipe, tx, results = identity(cfg, method, clip, aux), train.make_tx(cfg.optim), [last]
  for epoch in reversed(range(1, cfg.train.epochs)):
    results.insert(0, measure(train.learned(workdir, template, tx, epoch * steps, identity=recipe)))
  best = int(np.argmax([value(result) for result in results]))
  return best + 1, results[best]


def write_results(cfg, workdir, clip, learnable, aux, dataset, result, rules, seconds, suffix=''):
  """Writes metrics, manifest, pictures and page of an evaluation below workdir/results, and prints the table."""
  source = 'nothing' if rules['selection'] == 'none' else 'texts' if aux is None else naming.short(cfg.data.aux)
  folder = results_folder(cfg, workdir, source, suffix) / f'seed{cfg.seed}'
  logs.write_json(folder / 'metrics.json', {
    'protocol': rules, 'mean': result.summary, 'counts': result.counts,
    'per_category': {c: {m: v._asdict() for m, v in row.items()} for c, row in result.rows.items()}})
  logs.write_atomic(folder / 'per_category.csv', tables.to_csv(result.rows, result.counts))
  logs.write_json(folder / 'manifest.json', manifest(cfg, clip, rules, seconds))
  shown = {}
  for category, picture in pictures.sheets(dataset, result.scores, result.maps):
    shown[category] = f'pictures/{category}.png'
    logs.write_atomic(folder / shown[category], picture)
  label, learned = cfg.get('label', cfg.method), sum(x.size for x in jax.tree.leaves(learnable))
  explanation = page.explain(label, cfg.clip, clip.image_size, learned, aux, dataset, rules['shared_images']['count'],
                             source == 'texts')
  title = f'{label}, {folder.parent.name}: split {cfg.data.split}, seed {cfg.seed}'
  logs.write_atomic(folder / 'index.html', page.render(
    title, explanation, result.rows, result.summary, published(cfg), shown))

  print(f'\n{title}; maps and masks at {clip.image_size} px; percent; selection: {rules["selection"]}')
  print(tables.text(result.rows, result.summary, published(cfg)))
  print('\n' + '\n'.join(textwrap.fill(line, 110) for line in explanation))
  print(f'\nresults: {folder}\n' + (f'look at: {folder / "index.html"}' if shown else ''))


def results_folder(cfg, workdir, source, suffix=''):
  """The folder of the results of every seed: on the target, of what was learned from `source`."""
  shots = f'-{cfg.fewshot.shots}shot' if 'fewshot' in cfg and cfg.fewshot.shots else ''
  return workdir / 'results' / cfg.method / f'{source}-to-{naming.short(cfg.data.target)}{shots}{suffix}'


def trained(cfg, workdir, method, clip, aux):
  """What an earlier run learned: config.checkpoint, or the workdir's newest checkpoint, held against the config."""
  if cfg.checkpoint:
    return method.load_official(files.read_safetensors(cfg.checkpoint), clip=clip, cfg=cfg)
  template = learned_shapes(cfg, method, clip)
  if not trains(cfg, method, clip):
    return template
  if aux is None:
    return generated.trained(cfg, workdir, method, clip, identity(cfg, method, clip, None))
  found = {}
  for stage in methods.stages(method, cfg):
    recipe = with_changes(cfg, stage.changes)
    part = train.learned(workdir / stage.name, stage.part(template), train.make_tx(recipe.optim),
                         identity=identity(recipe, method, clip, aux, stage))
    if part is None:
      raise FileNotFoundError(f'no checkpoint in {workdir / stage.name / "checkpoints"}; train first, with --mode=fit '
                              'or --mode=run')
    found |= part
  return found


def learned_shapes(cfg, method, clip):
  """What the method learns under this config, as shapes; {} for nothing."""
  return jax.eval_shape(lambda: method.init(jax.random.key(cfg.seed), clip, cfg))


def trains(cfg, method, clip):
  """Whether this method learns under this config, from data.aux or from examples of its own."""
  return hasattr(method, 'loss') and not cfg.checkpoint and bool(jax.tree.leaves(learned_shapes(cfg, method, clip)))


def with_aux_names(cfg, dataset):
  """The config with the auxiliary set's object names, for methods that train prompts per category."""
  if 'prompt' not in cfg or 'categories' not in cfg.prompt or cfg.prompt.categories:
    return cfg
  return with_changes(cfg, {'prompt.categories': names(cfg, dataset)})


def settled(cfg, method, clip, dataset):
  """The config with what the method's `settle` finds out about the auxiliary categories."""
  if not hasattr(method, 'settle'):
    return cfg
  means = functools.partial(class_means, cfg, method, clip, dataset)
  return with_changes(cfg, method.settle(clip.params, means, clip=clip, cfg=cfg))


def class_means(cfg, method, clip, dataset, *, normalize=False):
  """The mean class token [C, E] of each category's images, with `normalize` each brought to length 1 first."""
  load, size, tokens = reader(cfg, method, clip, dataset, crops=False), cfg.features.batch, []
  for start in range(0, len(dataset), size):
    indices, valid = features.padded(np.arange(start, min(start + size, len(dataset))), size)
    tokens.append(np.asarray(load(indices)[0].cls, np.float64)[valid])
  tokens = np.concatenate(tokens)
  if normalize:
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
  return np.stack([tokens[dataset.category_index == c].mean(0) for c in range(len(dataset.categories))])


def with_changes(cfg, changes):
  """The config with other values of these dotted keys."""
  changed = mlc.ConfigDict(cfg.to_dict())  # a ConfigDict made from cfg itself would share its nested nodes
  changed.update_from_flattened_dict(changes)
  return mlc.FrozenConfigDict(changed)


def names(cfg, dataset):
  """What the categories are called in prompts: as one says it, or with prompt.raw_names as the folders are called."""
  raw = 'prompt' in cfg and cfg.prompt.get('raw_names', False)
  return dataset.categories if raw else tuple(dataset.object_names[c] for c in dataset.categories)


def manifest(cfg, clip, protocol, seconds):
  """Everything that would have to be equal for the same numbers, as a JSON-able dict."""
  versions = {p: metadata.version(p) for p in ('jax', 'flax', 'optax', 'numpy', 'pillow', 'scipy')}
  return {
    'config': json.loads(cfg.to_json_best_effort()), 'protocol': protocol, 'weights_sha256': clip.fingerprint,
    'image_size': clip.image_size, 'metric_resolution': clip.image_size, 'zsad_jax': zsad_jax.__version__,
    'git': git_revision(), 'versions': versions, 'python': platform.python_version(),
    'device': runtime.device_summary(), 'evaluation_seconds': round(seconds, 1),
    'peak_rss_bytes': runtime.peak_rss_bytes()}


def git_revision():
  """The commit of this checkout, '-dirty' where files differ from it; None outside a git checkout."""
  try:
    said = subprocess.run(['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*'],
                          cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return None
  return said.stdout.strip()


def published(cfg):
  """The paper's means for this target, where weights, number of references and `only` are as in its measurement."""
  if 'published' not in cfg:
    return None
  stated = cfg.published.to_dict()
  clip, shots = stated.pop('clip', 'vit_l14_336'), stated.pop('shots', 0)
  same = cfg.clip == clip and ('fewshot' not in cfg or cfg.fewshot.shots == shots)
  same &= all(_get(cfg, key) == value for key, value in stated.pop('only', ()))
  return stated.get(cfg.data.target, {}) if same else None


def _words(text):
  return tuple(name.strip() for name in text.split(',') if name.strip())


def _get(cfg, dotted):
  for part in dotted.split('.'):
    cfg = cfg[part]
  return cfg
