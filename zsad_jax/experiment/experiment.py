"""One experiment: fit a method on an auxiliary set, evaluate it on a target, write and print what came out."""

import functools
import json
import math
import time

import jax
import numpy as np

import zsad_jax
from zsad_jax import methods
from zsad_jax.clip.weights import port, safetensors_files
from zsad_jax.data import mosaic, protocol, references
from zsad_jax.engine import eval_cache, evaluate, examples, features, logs, runtime, train
from zsad_jax.experiment import diagnostics, disk_budget, generated, memory_budget, results, setup
from zsad_jax.tiny_clip import pretrain

# Keys that a checkpoint need not agree on; its data and weights are known by their digests, not by their names.
NOT_RECIPE = ('arch', 'bench', 'checkpoint', 'clip', 'data', 'eval', 'export', 'feature_dtype', 'label', 'machine', 'object_names',
              'predict', 'published', 'report', 'seeds', 'train')


def run(cfg, workdir, mode):
  """Fits and evaluates as `mode` says, prints where everything is, and returns what evaluate_target does."""
  if 'method' not in cfg:
    if jax.process_count() > 1:
      raise ValueError('this config pretrains a CLIP, which one process does: leave out --distributed')
    with runtime.stopping_at_once():  # its checkpoints are whole at every moment
      return pretrain.run(cfg, workdir)
  setup.check(cfg)
  method = methods.get(cfg.method)
  if cfg.checkpoint and not hasattr(method, 'load_official'):
    raise ValueError(f'checkpoint is {cfg.checkpoint!r}, but no trained parts of {cfg.method} are published to load')
  if cfg.eval.oracle_epoch and hasattr(method, 'stages'):
    raise ValueError(f'eval.oracle_epoch is True, but the parts of {cfg.method} are trained one after another and have '
                     'no epochs in common')
  told = hasattr(method, 'examples')  # of texts, and so of no auxiliary images
  if hasattr(method, 'loss') and not (told or cfg.checkpoint or cfg.data.allow_seen):
    protocol.check_names(cfg.data.aux, cfg.data.target, setup.words(cfg.data.aux_categories),
                         setup.words(cfg.data.target_categories))
  clip = setup.load_clip(cfg, method)
  diagnostics.check(cfg, method, clip)
  print(f'zsad_jax {zsad_jax.__version__}: {cfg.method} on CLIP {cfg.clip} at {cfg.image_size} px; '
        f'{runtime.device_summary()}', flush=True)
  # Both sets are opened before the first step, so that a wrong name costs seconds and not a training.
  learns = trains(cfg, method, clip)
  with runtime.stopping_at_once():
    aux = setup.open_data(cfg, 'aux') if learns and not told else None
    target = setup.open_data(cfg, 'target') if mode != 'fit' else None
    if target is not None:
      reference_images(cfg, method)
  if aux is not None and target is not None and not cfg.data.allow_seen:
    protocol.check_images(aux, target)
  if aux is not None:
    cfg = with_aux_names(cfg, aux)
  known = mode != 'evaluate' and learns and not hasattr(method, 'settle')
  disk_budget.require(cfg, workdir, method, clip, None if cfg.get('mosaic', 0) > 0 or mode == 'evaluate' else aux, target,
               learned_shapes(cfg, method, clip) if known else None)
  if aux is not None:
    cfg = settled(cfg, method, clip, aux)
  learnable = fit(cfg, workdir, method, clip, aux) if learns and mode != 'evaluate' else None
  if target is not None:
    learnable = trained(cfg, workdir, method, clip, aux) if learnable is None else learnable
    if told and learns:
      means = generated.evaluate(
        cfg, learnable, lambda one, own: evaluate_target(one, workdir, method, clip, own, None, target),
        results.folder(cfg, workdir, 'texts'), results.published(cfg))
    else:
      means = evaluate_target(cfg, workdir, method, clip, learnable, aux, target)
    eval_cache.clear(workdir)
    return means
  return None


def fit(cfg, workdir, method, clip, dataset):
  """Trains on the features of the auxiliary set, part by part where the method has stages; returns what was learned.

  A method with examples is trained on these in its place.
  """
  if dataset is None:
    return generated.fit(cfg, workdir, method, clip, identity(cfg, method, clip, None))
  memory_budget.require(memory_budget.training(cfg, method, clip, runtime.place()), cfg.machine.max_memory_gb)
  learnable, learned = method.init(jax.random.key(cfg.seed), clip, cfg), {}
  frozen, fresh = clip.params, cfg.get('mosaic', 0) > 0
  if hasattr(method, 'fixed'):
    frozen = jax.jit(functools.partial(method.fixed, categories=setup.names(cfg, dataset), clip=clip, cfg=cfg))(frozen)
    frozen = selected(cfg, method, frozen, cfg.data.aux)
  if fresh:
    print(f'mosaic={cfg.mosaic:g}: images differ from epoch to epoch, so every epoch runs the image tower', flush=True)
  stored = None if fresh else setup.reader(cfg, method, clip, dataset, crops=False)
  with runtime.preemption() as stop:
    for stage in methods.stages(method, cfg):
      recipe = setup.with_changes(cfg, stage.changes)
      load = stored or setup.reader(cfg, method, clip, mosaic.Mosaics(
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
  with logs.writer(workdir) as writer:
    return train.fit(
      functools.partial(method.loss, clip=clip, cfg=cfg), train.make_tx(cfg.optim), learnable, frozen,
      read, len(members), epochs=cfg.train.epochs, batch=cfg.train.batch, seed=cfg.seed, workdir=workdir,
      writer=writer, identity=identity(cfg, method, clip, dataset, stage), stop=stop, fresh=fresh,
      shuffle=cfg.train.shuffle, place=runtime.place(sharded=cfg.machine.shard_weights))


def selected(cfg, method, texts, dataset):
  """What the method's host half makes of the text features of the data set of that name; the same where it has none."""
  return method.select(jax.device_get(texts), dataset, cfg=cfg) if hasattr(method, 'select') else texts


def reference_images(cfg, method):
  """(training split of the target, indices [C, shots] that cfg.fewshot draws from it); (None, None) for zero-shot."""
  if not hasattr(method, 'memory') or not cfg.fewshot.shots:
    return None, None
  dataset = setup.open_data(cfg, 'target', 'train')
  return dataset, references.draw(dataset, cfg.fewshot.shots, seed=cfg.fewshot.seed,
                                  replacement=cfg.fewshot.replacement)


def few_shot(cfg, method, clip):
  """(memory of the references that cfg.fewshot draws, their ids by category); (None, None) for a zero-shot run."""
  dataset, drawn = reference_images(cfg, method)
  if drawn is None:
    return None, None
  load, parts = setup.reader(cfg, method, clip, dataset, stored=False, crops=False), []
  for start in range(0, drawn.size, cfg.machine.encode_batch):
    if runtime.any_process(runtime.preempted()):
      raise runtime.Preempted('asked to stop while the references were encoded')
    indices, valid = features.padded(drawn.reshape(-1)[start:start + cfg.machine.encode_batch], cfg.machine.encode_batch)
    parts.append(jax.tree.map(lambda x, keep=valid: x[keep], load(indices)[0]))
  shaped = jax.tree.map(lambda *x: np.concatenate(x).reshape(*drawn.shape, *x[0].shape[1:]), *parts)
  memory = jax.jit(functools.partial(method.memory, clip=clip, cfg=cfg))(clip.params, shaped)
  return memory, {c: [dataset.ids[i] for i in row] for c, row in zip(dataset.categories, drawn)}


def identity(cfg, method, clip, dataset, stage=methods.WHOLE):
  """What decides the learned numbers: weights, auxiliary data, what is read of it, and the recipe of the stage."""
  recipe = {k: v for k, v in json.loads(cfg.to_json_best_effort()).items() if k not in NOT_RECIPE}
  if recipe['precision'] == 'float32':
    del recipe['precision']  # checkpoints older than the key have it
  if cfg.object_names != 'folder':
    recipe['object_names'] = cfg.object_names
  for dotted in getattr(method, 'EVALUATION_KEYS', ()):
    *path, last = dotted.split('.')
    functools.reduce(dict.__getitem__, path, recipe).pop(last)
  if stage.name:
    recipe['stage'] = [stage.name, stage.categories]
  if dataset is None:
    return {'weights': clip.fingerprint, **recipe}
  return {'weights': clip.fingerprint, 'auxiliary data': dataset.fingerprint,
          'spec': repr(method.spec(clip, cfg)._replace(crops=0)), 'feature_dtype': cfg.feature_dtype, **recipe}


def evaluate_target(cfg, workdir, method, clip, learnable, aux, dataset):
  """Evaluates on the target set; writes and prints results, tables and pictures; returns {selection: the means}."""
  if cfg.eval.oracle_epoch and aux is None:
    raise ValueError('eval.oracle_epoch is True, but nothing was trained here, so there are no epochs to choose from')
  start = time.time()
  measure, drawn = evaluator(cfg, workdir, method, clip, dataset)
  result = measure(learnable)
  rules = protocol.record(aux, dataset, aux_name=cfg.data.aux, target_name=cfg.data.target,
                          allow_seen=cfg.data.allow_seen) | {
    'selection': f'last epoch ({cfg.train.epochs})' if trains(cfg, method, clip) else 'none', 'seed': cfg.seed,
    'checkpoint': cfg.checkpoint or None, 'references': drawn}
  results.write(cfg, workdir, clip, learnable, aux, dataset, result, rules, time.time() - start,
                plates=diagnostics.figures(cfg, method, clip, jax.device_get(learnable), dataset))
  means = {rules['selection']: result.summary}
  if cfg.eval.oracle_epoch:
    epoch, best = oracle(cfg, workdir, method, clip, aux, measure, result)
    rules |= {'selection': f'oracle epoch {epoch} of {cfg.train.epochs} (selected on the target, by image AUROC)'}
    results.write(cfg, workdir, clip, learnable, aux, dataset, best, rules, time.time() - start, suffix='-oracle')
    means[rules['selection']] = best.summary
  return means


def evaluator(cfg, workdir, method, clip, dataset):
  """(measure(learnable) -> evaluate.Result on a target set, ids of the references it compares with by category).

  Categories that an evaluation cut short had finished in `workdir` are taken from there.
  """
  place = runtime.place(sharded=cfg.machine.shard_weights)
  bounded = memory_budget.fitted(cfg, method, clip, dataset, place=place)
  load = setup.reader(cfg, method, clip, dataset)
  memory, drawn = few_shot(cfg, method, clip)
  frozen, memory = runtime.weights(clip.params, place), runtime.replicate(memory, place)
  make_bank = jax.jit(functools.partial(method.bank, categories=setup.names(cfg, dataset), clip=clip, cfg=cfg),
                      out_shardings=place.copy)
  chosen = hasattr(method, 'select')
  if chosen:
    texts = runtime.replicate(selected(cfg, method, make_bank({}, frozen), cfg.data.target), place)
  jitted = evaluate.make_predict(method, clip, bounded, place=place)
  spread, worst = examples.split_count(cfg.report.pictures)
  decides = {'program': eval_cache.sources(), 'weights': clip.fingerprint,
             'target data': dataset.fingerprint, 'config': json.loads(cfg.to_json_best_effort()),
             'references': port.digest(jax.device_get(memory))}

  def measure(learnable):
    kept = eval_cache.Progress(workdir, {**decides, 'learned': port.digest(learnable)}, evaluate.RECORDS)
    learnable = runtime.replicate(learnable, place)
    bank = texts if chosen else make_bank(learnable, frozen)
    return evaluate.run(
      lambda values, batch: jitted(learnable, frozen, bank, memory, values, batch),
      load, dataset, batch=cfg.machine.eval_batch, place=place, fpr_limit=cfg.eval.fpr_limit,
      aupr=cfg.eval.aupr,
      finish=functools.partial(method.finish, cfg=cfg) if hasattr(method, 'finish') else None,
      keep=examples.spread_over_defects(dataset, spread), worst=worst, curves=cfg.report.figures and cfg.report.pictures > 0,
      progress=kept)

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
  recipe, tx, found = identity(cfg, method, clip, aux), train.make_tx(cfg.optim), [last]
  for epoch in reversed(range(1, cfg.train.epochs)):
    found.insert(0, measure(train.learned(workdir, template, tx, epoch * steps, identity=recipe)))
  best = int(np.argmax([value(result) for result in found]))
  return best + 1, found[best]


def trained(cfg, workdir, method, clip, aux):
  """What an earlier run learned: config.checkpoint, or the workdir's newest checkpoint, held against the config."""
  if cfg.checkpoint:
    arrays = safetensors_files.read_safetensors(cfg.checkpoint)
    safetensors_files.verify(cfg.checkpoint)
    return method.load_official(arrays, clip=clip, cfg=cfg)
  template = learned_shapes(cfg, method, clip)
  if not trains(cfg, method, clip):
    return template
  if aux is None:
    return generated.trained(cfg, workdir, method, clip, identity(cfg, method, clip, None))
  found = {}
  for stage in methods.stages(method, cfg):
    recipe = setup.with_changes(cfg, stage.changes)
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
  return setup.with_changes(cfg, {'prompt.categories': setup.names(cfg, dataset)})


def settled(cfg, method, clip, dataset):
  """The config with what the method's `settle` finds out about the auxiliary categories."""
  if not hasattr(method, 'settle'):
    return cfg
  means = functools.partial(setup.class_means, cfg, method, clip, dataset)
  return setup.with_changes(cfg, method.settle(clip.params, means, clip=clip, cfg=cfg))
