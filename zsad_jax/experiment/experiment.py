"""One experiment: fit on the auxiliary data set, evaluate on the target data set, write and print the results."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import zsad_jax
from zsad_jax import data
from zsad_jax.clip.weights import port
from zsad_jax.data import protocol
from zsad_jax.engine import eval_cache, evaluate, examples, logs, runtime
from zsad_jax.experiment import diagnostics, disk_budget, memory_budget, results, seeds, setup
from zsad_jax.experiment.run import Run
from zsad_jax.methods import Params
from zsad_jax.report import headings, tables
from zsad_jax.tiny_clip import pretrain

Means = dict[str, dict[str, dict]]  # {selection: {metric: {'value', ...}}}


class DataSets(NamedTuple):
  """The opened data sets of an experiment; None for one that it does not need."""
  aux: data.Dataset | None
  target: data.Dataset | None


def run(cfg: setup.Config, workdir: Path, mode: str) -> Means | None:
  """Fits and evaluates as `mode` says ('run', 'fit' or 'evaluate'), for every seed of the config.

  Returns:
    {selection: summary} over the target's categories, with the spread over seeds if there are several; None for 'fit'.

  Raises:
    ValueError, OSError, FloatingPointError: see Run; one sentence on what to change.
    runtime.Preempted: the run was asked to stop and has saved its state.
  """
  if 'method' not in cfg:
    if jax.process_count() > 1:
      raise ValueError('pretraining a CLIP runs in one process: leave out --distributed')
    with runtime.stopping_at_once():  # its checkpoints are complete at every moment
      pretrain.run(cfg, workdir)
    return None
  method = setup.check(cfg)
  if method.loss is not None and not (cfg.checkpoint or cfg.data.allow_seen):
    protocol.check_names(cfg.data.aux, cfg.data.target, setup.words(cfg.data.aux_categories),
                         setup.words(cfg.data.target_categories))
  whole = Run.load(cfg)
  print(f'zsad_jax {zsad_jax.__version__}: {setup.label(cfg)} on CLIP {cfg.clip} at {cfg.image_size} px; '
        f'{runtime.device_summary()}', flush=True)
  sets = open_sets(whole, mode)
  runs = seeds.of_run(whole)
  means = [_one_seed(one, seeds.folder(workdir, one, len(runs)), workdir, mode, sets) for one in runs]
  if mode == 'fit':
    return None
  eval_cache.clear(workdir)
  return means[0] if len(runs) == 1 else _report_spread(runs, workdir, means)


def open_sets(run: Run, mode: str) -> DataSets:
  """Opens what the experiment needs before its first step, so that a wrong name costs seconds and not a training.

  Raises:
    ValueError: the two data sets share images, see protocol; a category has too few references.
  """
  with runtime.stopping_at_once():
    aux = setup.open_data(run.cfg, 'aux') if run.trains and not run.trains_on_texts else None
    target = setup.open_data(run.cfg, 'target') if mode != 'fit' else None
    if target is not None:
      run.references()
  if aux is not None and target is not None and not run.cfg.data.allow_seen:
    protocol.check_images(aux, target)
  return DataSets(aux, target)


def _one_seed(run: Run, folder: Path, workdir: Path, mode: str, sets: DataSets) -> Means:
  """Fits and evaluates one seed, whose checkpoints are in `folder`; returns {} if nothing was evaluated."""
  trains = run.trains and mode != 'evaluate'
  # Stages that follow from the auxiliary data set are known only after it was encoded.
  predictable = trains and run.method.auxiliary_overrides is None
  encoded = sets.aux if trains and not run.cfg.get('mosaic', 0) else None
  disk_budget.require(run, folder, encoded, sets.target, trains=predictable)
  run = run.for_auxiliary(sets.aux)
  if trains:
    memory_budget.require_training(run)
    params = run.fit(folder, sets.aux)
  if sets.target is None:
    return {}
  if not trains:
    params = run.restore(folder, sets.aux)
  return evaluate_target(run, folder, workdir, params, sets)


def evaluate_target(run: Run, folder: Path, workdir: Path, params: Params, sets: DataSets) -> Means:
  """Evaluates on the target data set; writes and prints results; returns {selection: summary}."""
  cfg, start = run.cfg, time.time()
  if cfg.eval.oracle_epoch and sets.aux is None:
    raise ValueError('eval.oracle_epoch=True needs a training on images: nothing was trained here, so there are no '
                     'epochs to choose from')
  measure, references = evaluator(run, workdir, sets.target)
  evaluation = results.Evaluation(
    sets.aux, sets.target, measure(params), f'last ({cfg.train.epochs})' if run.trains else 'none', references,
    sum(x.size for x in jax.tree.leaves(params)), 0, {})
  evaluation = evaluation._replace(figures=diagnostics.figures(run, jax.device_get(params), sets.target))
  results.write(run, workdir, evaluation._replace(seconds=time.time() - start))
  means = {evaluation.selection: evaluation.result.summary}
  if cfg.eval.oracle_epoch:
    epoch, best = _oracle(run, folder, sets.aux, measure, evaluation.result)
    chosen = evaluation._replace(
      result=best, figures={}, oracle=True, seconds=time.time() - start,
      selection=f'oracle: {epoch} of {cfg.train.epochs}, the best on the target by Image AUROC')
    results.write(run, workdir, chosen)
    means[chosen.selection] = best.summary
  return means


def evaluator(run: Run, workdir: Path, target: data.Dataset) -> tuple[Callable[[Params], evaluate.Result], dict | None]:
  """Returns (measure(params) -> evaluate.Result on the target, ids of the few-shot references by category).

  Categories that an interrupted evaluation in `workdir` had finished are not evaluated again.
  """
  cfg, bounded = run.cfg, memory_budget.fitted(run, target)
  load = run.reader(target)
  memory_bank, references = run.reference_bank()
  predictor = bounded.predictor(setup.object_names(cfg, target), memory_bank)
  spread, worst = examples.split_count(cfg.report.pictures)
  options = evaluate.Options(
    cfg.eval.fpr_limit, cfg.eval.aupr, keep=examples.spread_over_defects(target, spread), worst=worst,
    curves=cfg.report.figures and cfg.report.pictures > 0)
  identity = {'program': eval_cache.sources(), 'weights': run.clip.fingerprint, 'target data': target.fingerprint,
              'config': setup.sections(cfg, *setup.RESULT), 'pictures': [cfg.report.pictures, options.curves],
              'references': port.digest(jax.device_get(memory_bank))}

  def measure(params: Params) -> evaluate.Result:
    cache = eval_cache.EvalCache(workdir, {**identity, 'params': port.digest(jax.device_get(params))}, evaluate.RECORDS)
    return evaluate.run(
      predictor.bind(params), load, target, batch=cfg.machine.eval_batch, place=run.place,
      postprocess=run.postprocess, options=options, cache=cache)

  return measure, references


def _oracle(run: Run, folder: Path, aux: data.Dataset, measure: Callable, last: evaluate.Result
            ) -> tuple[int, evaluate.Result]:
  """(epoch, Result) of the best of all epochs by mean Image AUROC on the target; `last` is the last epoch's.

  This selects on the test images, as some papers do: not a zero-shot result.
  """
  value = lambda result: result.summary['image_auroc']['value']
  if value(last) is None:
    raise ValueError(f'eval.oracle_epoch=True selects by Image AUROC, which is undefined on {run.cfg.data.target}: '
                     f'{last.summary["image_auroc"]["reason"]}')
  every = [measure(run.restore(folder, aux, epoch)) for epoch in range(1, run.cfg.train.epochs)] + [last]
  best = int(np.argmax([value(result) for result in every]))
  return best + 1, every[best]


def _report_spread(runs: list[Run], workdir: Path, means: list[Means]) -> Means:
  """Writes seeds.json and prints the mean and standard deviation over seeds; returns {selection: spread}."""
  cfg, numbers = runs[0].cfg, [run.cfg.seed for run in runs]
  spreads = {}
  for selections in zip(*means):
    name = ' / '.join(dict.fromkeys(selections))
    spreads[name] = seeds.spread([one[selection] for one, selection in zip(means, selections)], cfg.eval.std_ddof)
  logs.write_json(results.folder_of_seeds(runs[0], workdir) / 'seeds.json', {
    'seeds': numbers, 'std_ddof': cfg.eval.std_ddof, 'spread': spreads})
  rows = [(f'{setup.label(cfg)}, epoch {name}' if len(spreads) > 1 else setup.label(cfg), spread,
           results.published(cfg) or {}) for name, spread in spreads.items()]
  known = [metric for metric in headings.METRICS if any(
    spread[metric]['value'] is not None for spread in spreads.values())]
  print(f'\nSeeds {", ".join(map(str, numbers))}: mean and standard deviation (n - {cfg.eval.std_ddof}) of the means '
        f'over categories, percent; published means in parentheses\n{tables.comparison(rows, known)}')
  return spreads
